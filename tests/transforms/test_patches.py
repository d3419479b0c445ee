"""One random patch of a volume: where its center lies, what its class is, and that nothing in it changes."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch

from scripts.data.preprocessing import Pipeline, make_preprocessing, make_training_pipeline
from tests.scans import head, oblique, save
from transforms.cropping import ResizeToFitd, room_for
from transforms.patches import RandCropPatchd


def volume(has_mask: bool = True, diagnosis: int = 1) -> dict[str, Any]:
    """A head of 40 x 32 x 24 voxels with a tumor of 12 voxels a side and a core of 4 in it."""
    foreground = torch.zeros(1, 40, 32, 24, dtype=torch.uint8)
    foreground[:, 4:36, 4:28, 2:22] = 1
    masks = torch.zeros(2, 40, 32, 24, dtype=torch.uint8)
    if has_mask and diagnosis:
        masks[0, 20:32, 10:22, 6:18], masks[1, 24:28, 14:18, 10:14] = 1, 1
    place = torch.arange(40 * 32 * 24, dtype=torch.float32).reshape(1, 40, 32, 24)
    return {
        "image": place, "foreground": foreground, "label": masks[:1], "region_masks": masks, "has_mask": has_mask,
        "diagnosis": diagnosis, "name": "p1",
    }  # fmt: skip


def drawn(item: dict[str, Any], share: float, count: int = 60, size: int = 8) -> list[dict[str, Any]]:
    crop = RandCropPatchd((size, size, size), share)
    crop.set_random_state(seed=1)
    return [crop(item) for _ in range(count)]


def center(patch: dict[str, Any]) -> tuple[int, ...]:
    size = patch["image"].shape[1] // 2
    return tuple(int(i) for i in np.unravel_index(int(patch["image"][0, size, size, size]), (40, 32, 24)))


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_the_share_of_centers_in_the_tumor_is_the_stated_one_and_regions_come_alike(share):
    item = volume()
    count = 200
    where = Counter()
    for patch in drawn(item, share, count):
        x, y, z = center(patch)
        assert bool(item["foreground"][0, x, y, z])
        where["core" if item["region_masks"][1, x, y, z] else "rest" if item["label"][0, x, y, z] else "head"] += 1
    tumor = (where["core"] + where["rest"]) / count
    assert tumor == pytest.approx(share, abs=0.11)
    if share:
        assert where["core"] / (where["core"] + where["rest"]) == pytest.approx(0.5, abs=0.15)


def test_a_patch_is_a_part_of_the_volume_as_it_is():
    item = volume()
    for patch in drawn(item, 0.5, 10):
        start = np.unravel_index(int(patch["image"].min()), (40, 32, 24))
        box = (slice(None), *(slice(int(a), int(a) + 8) for a in start))
        for key in ("image", "label", "foreground", "region_masks"):
            assert torch.equal(patch[key], item[key][box])


def test_the_class_of_a_patch_is_its_own():
    seen = set()
    for patch in drawn(volume(), 0.4):
        voxels = int(patch["label"].sum())
        assert patch["diagnosis"] == (0 if voxels == 0 else -1 if voxels < 64 else 1)
        seen.add(patch["diagnosis"])
    assert seen == {-1, 0, 1}
    assert {patch["diagnosis"] for patch in drawn(volume(has_mask=False), 0.5, 5)} == {-1}
    assert {patch["diagnosis"] for patch in drawn(volume(diagnosis=0), 0.5, 5)} == {0}
    assert {patch["diagnosis"] for patch in drawn(volume(has_mask=False, diagnosis=0), 0.5, 5)} == {0}


def test_the_same_seed_draws_the_same_patch():
    one, other = (drawn(volume(), 0.5, 4) for _ in range(2))
    assert all(torch.equal(a["image"], b["image"]) for a, b in zip(one, other, strict=True))


def test_what_cannot_be_cropped_is_refused_in_one_sentence():
    with pytest.raises(ValueError, match=r"tumor_share lies between 0 and 1, got 1\.5"):
        RandCropPatchd((8, 8, 8), 1.5)
    with pytest.raises(ValueError, match=r"p1.*\(40, 32, 24\) is smaller than the patch \(8, 8, 32\)"):
        RandCropPatchd((8, 8, 32), 0.5)(volume())


@pytest.mark.parametrize("wrong", [0, -1, "1mm", [1, 1], [1, 1, 0]])
def test_a_spacing_is_a_number_three_or_acquired(wrong):
    with pytest.raises(ValueError, match="spacing_mm is a number of mm, three of them, or 'acquired'"):
        ResizeToFitd(["image"], (16, 16, 16), ["image"], spacing_mm=wrong)


def test_pictures_have_no_spacing():
    with pytest.raises(ValueError, match="spacing_mm is for volumes"):
        make_preprocessing((64, 64), spacing_mm=1.0)


@pytest.fixture
def scan(tmp_path):
    """A file of 40 x 46 x 12 voxels of 1 x 1.1 x 3 mm."""
    return str(save(tmp_path / "a_flair.nii.gz", head((40, 46, 12)), oblique((1.0, 1.1, 3.0)), "RAS"))


def test_a_volume_is_resampled_to_the_stated_spacing_and_padded_to_the_stride(scan):
    own = make_preprocessing((16, 16, 16), trace=False, spacing_mm="acquired")({"image": scan})
    fine = make_preprocessing((16, 16, 16), trace=False, spacing_mm=[1, 1.1, 1.5])({"image": scan})
    inside = [[int(n) for n in np.ptp(np.argwhere(i["foreground"][0].numpy()), axis=0) + 1] for i in (own, fine)]
    assert inside[1][:2] == inside[0][:2]
    assert inside[1][2] == pytest.approx(2 * inside[0][2], abs=1)
    for item in (own, fine):
        assert all(n % 16 == 0 for n in item["image"].shape[1:])
        assert torch.equal(item["image"] != 0, item["foreground"] != 0)
    assert room_for([16, 16, 16], [40, 10, 33]) == [48, 16, 48]


def test_tracing_changes_no_voxel_and_finds_the_way_back(scan):
    plain = make_preprocessing((16, 16, 16), trace=False, spacing_mm=2.0)({"image": scan})
    pipeline = make_preprocessing((16, 16, 16), spacing_mm=2.0)
    traced = pipeline({"image": scan})
    assert torch.equal(traced["image"].as_tensor(), plain["image"])
    assert pipeline.inverse(traced)["image"].shape[1:] == (40, 46, 12)


def test_a_patch_and_the_volume_agree_voxel_by_voxel(scan):
    """Intensities are those of the whole volume's head: a patch of training is a part of what inference sees."""
    item = {"image": scan, "label": None, "diagnosis": 0}
    whole = make_training_pipeline((16, 16, 16), augment=False, num_classes=2, spacing_mm=2.0)(item)
    crop = RandCropPatchd((16, 16, 16))
    crop.set_random_state(seed=0)
    patch = crop(whole)["image"]
    windows = whole["image"].unfold(1, 16, 1).unfold(2, 16, 1).unfold(3, 16, 1)
    assert bool((windows == patch[:, None, None, None]).flatten(4).all(dim=4).any())


def test_the_training_pipeline_ends_in_a_patch(scan):
    pipeline = make_training_pipeline((16, 16, 16), augment=True, num_classes=2, spacing_mm=2.0)
    assert isinstance(pipeline, Pipeline)
    pipeline.set_random_state(seed=0)
    found = pipeline({"image": scan, "diagnosis": 0})
    assert found["image"].shape == (1, 16, 16, 16)
    assert torch.equal(found["image"] != 0, found["foreground"] != 0)
