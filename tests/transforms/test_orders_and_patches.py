"""What each transform does to the order, and what a patch is at its limits."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from monai import transforms as stock

from transforms.borders import CropBordersd, PadBordersd
from transforms.cropping import CropToForegroundd
from transforms.foreground import ForegroundMaskd
from transforms.intensity import NormalizeForegroundd, ScaleRobustd
from transforms.labels import Finalized
from transforms.masking import MaskBackgroundd
from transforms.order import Pipeline, check_order, stage_of
from transforms.patches import LEAST_TUMOR, RandCropPatchd

FIND, CROP, MASK = ForegroundMaskd(), CropToForegroundd(["image", "foreground"]), MaskBackgroundd()
NORMALIZE, BORDERS = NormalizeForegroundd(), CropBordersd(["image"])


@pytest.mark.parametrize(
    ("transform", "stage"),
    [
        (stock.CropForegroundd("image", "image"), "crop"),
        (stock.SpatialPadd("image", 8), None), (stock.MaskIntensityd("image"), "mask"), (stock.MaskIntensity(), "mask"),
        (stock.HistogramNormalized("image"), "normalize"), (stock.NormalizeIntensity(), "normalize"),
        (stock.Rotate90d("image"), None), (stock.Rotated("image", 0.1), "interpolate"), (stock.Flip(0), None),
        (stock.Orientationd("image", "LPS", labels=None), None), (stock.Zoomd("image", 2), "interpolate"),
        (stock.Spacingd("image", (1, 1)), "interpolate"), (stock.RandAxisFlipd("image"), None),
        (stock.ScaleIntensityRanged("image", 0, 1, 0, 1), "scale"),
        (stock.ClipIntensityPercentilesd("image", 1, 99), "scale"),
        (stock.RandGaussianNoised("image"), "intensity"), (stock.AdjustContrastd("image", 2), "intensity"),
        (stock.RandSmoothFieldAdjustContrastd("image", (8, 8), (2, 2)), "intensity"),
        (stock.RandSmoothDeformd("image", (8, 8), (2, 2)), "interpolate"), (stock.EnsureTyped("image"), None),
        (stock.LoadImaged("image"), None), (FIND, "foreground"), (CROP, "crop"), (NORMALIZE, "normalize"),
        (MASK, "mask"),
        (BORDERS, "border"), (PadBordersd(["image"]), None), (ScaleRobustd(), "scale"), (Finalized(2), "finalize"),
        (print, None),
    ],
)  # fmt: skip
def test_what_a_transform_does_is_known(transform, stage):
    assert stage_of(transform) == stage


def test_a_stage_is_a_word_and_a_subclass_does_what_its_base_does():
    class Turned(stock.Rotated):
        stage = 3

    assert stage_of(Turned("image", 0.1)) == "interpolate"


@pytest.mark.parametrize(
    ("transforms", "reason"),
    [
        (
            [FIND, BORDERS, NORMALIZE, MASK],
            "CropBordersd after ForegroundMaskd: its statistics would depend on a border",
        ),
        ([ScaleRobustd(), BORDERS], "CropBordersd after ScaleRobustd"),
        ([FIND, NORMALIZE, BORDERS, MASK], "CropBordersd after ForegroundMaskd"),
        ([FIND, NORMALIZE], "NormalizeForegroundd stands and no MaskBackgroundd follows"),
        ([FIND, NORMALIZE, MASK, ScaleRobustd()], "ScaleRobustd stands after the last MaskBackgroundd"),
        (
            [FIND, MASK, stock.MaskIntensityd("image"), ScaleRobustd()],
            "ScaleRobustd stands after the last MaskIntensityd",
        ),
        ([CROP], "CropToForegroundd without a foreground mask before it"),
    ],
)
def test_an_order_is_refused_for_its_first_fault(transforms, reason):
    with pytest.raises(ValueError, match=f"wrong order of transforms: {reason}"):
        check_order(transforms)


@pytest.mark.parametrize(
    "transforms",
    [
        [BORDERS, BORDERS, ScaleRobustd(), FIND, CROP, NORMALIZE, MASK], [FIND, CROP, CROP], [ScaleRobustd(), FIND],
        [stock.RandGaussianNoised("image")], [FIND, FIND, NORMALIZE, NORMALIZE, MASK, MASK], [MASK],
        [FIND, NORMALIZE, MASK, stock.Rotated("label", 0.1)], [],
    ],
)  # fmt: skip
def test_an_order_in_which_air_ends_as_zero_is_taken(transforms):
    check_order(transforms)


def test_the_order_is_that_of_the_stated_key():
    check_order([NORMALIZE, MASK], image_key="scan")
    with pytest.raises(ValueError, match="without a foreground mask"):
        check_order([NormalizeForegroundd("scan")], image_key="scan")
    with pytest.raises(ValueError, match="without a foreground mask"):
        Pipeline([NormalizeForegroundd("scan")], image_key="scan")


def add(item: dict) -> dict:
    return {**item, "count": item.get("count", 0) + 1}


@pytest.mark.parametrize(("start", "end", "count"), [(0, None, 3), (1, None, 2), (0, 2, 2), (3, 3, 0), (3, None, 0)])
def test_a_part_of_a_pipeline_is_run(start, end, count):
    assert Pipeline([add, add, add])({}, start=start, end=end).get("count", 0) == count


@pytest.mark.parametrize(("start", "end"), [(-1, 2), (2, 1), (0, 4), (4, None)])
def test_a_part_that_is_none_is_refused(start, end):
    with pytest.raises(ValueError, match="asked for, there are 3"):
        Pipeline([add, add, add])({"name": "p"}, start=start, end=end)


def test_an_error_names_the_item_once():
    def fail(item):
        raise ValueError(item["text"])

    for text, said in (
        ("is broken", "file a/p.png, slice 4: is broken"),
        ("file a/p.png is broken", "file a/p.png is broken"),
        ("a/p.png is broken", "a/p.png is broken"),
    ):
        with pytest.raises(ValueError, match=f"^{said}$"):
            Pipeline([fail])({"image": "a/p.png", "slice": 4, "text": text})
    with pytest.raises(ValueError, match=r"^TypeError: "):
        Pipeline([lambda item: item + 1])("no item")

    def wrapped(item):
        try:
            fail({"text": "the first cause"})
        except ValueError as error:
            raise RuntimeError("around it") from error

    with pytest.raises(ValueError, match=r"^file p: the first cause$"):
        Pipeline([wrapped])({"name": "p"})


# Patches


def volume(voxels: int, **more) -> dict:
    """8 x 8 x 8 voxels, so many of them tumor."""
    label = torch.zeros(512, dtype=torch.uint8)
    label[:voxels] = 1
    item = {
        "image": torch.arange(512.0).reshape(1, 8, 8, 8), "foreground": torch.ones(1, 8, 8, 8, dtype=torch.uint8),
        "label": label.reshape(1, 8, 8, 8), "has_mask": True, "diagnosis": 1,
    }  # fmt: skip
    return {**item, **more}


@pytest.mark.parametrize(
    ("voxels", "more", "expected"),
    [
        (0, {}, 0), (1, {}, -1), (LEAST_TUMOR - 1, {}, -1), (LEAST_TUMOR, {}, 1), (LEAST_TUMOR, {"diagnosis": 2}, 2),
        (0, {"has_mask": False}, -1), (0, {"has_mask": False, "diagnosis": 0}, 0),
        (0, {"has_mask": False, "diagnosis": -1}, -1), (500, {"diagnosis": -1}, -1),
    ],
)  # fmt: skip
def test_fewer_than_64_voxels_of_tumor_are_neither_tumor_nor_none(voxels, more, expected):
    assert LEAST_TUMOR == 64, "as its docstring says"
    assert RandCropPatchd((8, 8, 8))(volume(voxels, **more))["diagnosis"] == expected


def test_a_patch_may_be_the_volume_and_no_larger():
    whole = volume(100)
    out = RandCropPatchd((8, 8, 8))(whole)
    assert all(torch.equal(out[key], whole[key]) for key in ("image", "label", "foreground"))
    for axis in range(3):
        size = [8, 8, 8]
        size[axis] = 9
        with pytest.raises(ValueError, match="is smaller than the patch"):
            RandCropPatchd(size)(whole)


@pytest.mark.parametrize("share", [0, 1])
def test_all_or_none_of_the_centers_may_lie_in_the_tumor(share):
    item = volume(0)
    item["label"][0, 2:5, 2:5, 2:5] = 1
    crop = RandCropPatchd((1, 1, 1), share).set_random_state(0)
    assert {int(crop(item)["label"].sum()) for _ in range(20)} == {share}
    for wrong in (-0.01, 1.01):
        with pytest.raises(ValueError, match="tumor_share lies between 0 and 1"):
            RandCropPatchd((1, 1, 1), wrong)


def test_half_of_the_centers_lie_in_the_tumor_unless_stated_and_all_in_the_head():
    item = volume(0)
    item["label"][0, 2:4, 2:4, 2:4] = 1
    item["foreground"][:, 6:] = 0
    crop = RandCropPatchd((1, 1, 1)).set_random_state(0)
    drawn = [crop(item) for _ in range(200)]
    assert 70 < sum(int(patch["label"].sum()) for patch in drawn) < 130
    assert all(int(patch["foreground"].sum()) == 1 for patch in drawn)


def test_without_a_tumor_the_center_is_anywhere_in_the_head_and_odd_and_even_sizes_surround_it():
    item = volume(0)
    item["foreground"][:] = 0
    item["foreground"][0, 4, 3, 5] = 1
    for size, start in ((2, (3, 2, 4)), (3, (3, 2, 4)), (4, (2, 1, 3))):
        patch = RandCropPatchd((size,) * 3, 1.0).set_random_state(0)(item)
        assert np.unravel_index(int(patch["image"].min()), (8, 8, 8)) == start
        assert patch["image"].shape == (1, size, size, size)
        assert patch["image"].is_contiguous()
