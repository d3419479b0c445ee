"""Arguments of the pipeline, names of cases, and what is let through to a network."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from scripts.data.preprocessing import (
    check_network_input,
    collate,
    make_augmentation,
    make_preprocessing,
    make_training_pipeline,
    resolve_items,
    spatial_sizes,
)


def test_sizes_are_of_two_or_three_axes_of_8_at_least():
    assert spatial_sizes(8) == (8, 8)
    assert spatial_sizes([8.0, 16]) == (8, 16)
    assert spatial_sizes((9, 8, 10)) == (9, 8, 10)
    for wrong in (7, (8, 7), (8,), (8, 8, 8, 8), (16, 16, 7)):
        with pytest.raises(ValueError, match="two or three, each at least 8"):
            spatial_sizes(wrong)


def names(pipeline) -> list[str]:
    return [type(step).__name__ for step in pipeline.transforms]


def test_the_pipeline_is_of_the_steps_in_their_order():
    flat = names(make_preprocessing(32))
    assert flat == [
        "LoadCased", "CropBordersd", "ScaleRobustd", "ForegroundMaskd", "LabelCoveraged", "PadBordersd",
        "CropToForegroundd", "NormalizeForegroundd", "ResizeToFitd", "PadToFitd", "MaskBackgroundd",
    ]  # fmt: skip
    assert names(make_preprocessing((32, 32, 32))) == ["LoadCased", "Orientationd", *flat[1:]]
    assert names(make_preprocessing(32, trace=False)) == ["LoadCased", "Untraced", *flat[1:]]
    untraced = names(make_preprocessing(32, trace=False))
    assert names(make_training_pipeline(32, False)) == [*untraced, "Finalized"]
    random = names(make_augmentation(32))
    assert names(make_training_pipeline(32, True)) == [*untraced, "Finalized", *random]
    patches = make_training_pipeline((32, 32, 32), True, spacing_mm=2.0)
    assert names(patches)[-len(random) - 2 : -len(random)] == ["Finalized", "RandCropPatchd"]
    assert "RandCropPatchd" not in names(make_training_pipeline((32, 32, 32), False, spacing_mm=2.0))
    assert random[0] == "RandAffineForegroundd"
    assert random[-1] == "MaskBackgroundd"


def test_augmentation_without_strength_only_flips():
    with pytest.raises(ValueError, match="expected strength >= 0 and flip_axes below 2, got -1 "):
        make_augmentation(32, strength=-1)
    for axes in ((2,), (-1,), (0, 2)):
        with pytest.raises(ValueError, match="flip_axes below 2"):
            make_augmentation(32, flip_axes=axes)
    make_augmentation((32, 32, 32), flip_axes=(0, 1, 2))
    image = torch.rand(1, 16, 16) + 0.5
    item = {"image": image, "foreground": torch.ones(1, 16, 16, dtype=torch.uint8)}
    item["label"] = (image > 1).to(torch.uint8)
    pipeline = make_augmentation(16, strength=0, flip_axes=(1,))
    pipeline.set_random_state(seed=0)
    seen = [pipeline(dict(item))["image"] for _ in range(20)]
    flipped = [torch.allclose(found, image.flip(2), atol=1e-5) for found in seen]
    kept = [torch.allclose(found, image, atol=1e-5) for found in seen]
    assert all(a != b for a, b in zip(flipped, kept, strict=True))
    assert 3 < sum(flipped) < 17
    still = make_augmentation(16, strength=0, flip_axes=())
    assert torch.allclose(still(dict(item))["image"], image, atol=1e-5)
    strong = make_augmentation(16, strength=1.0, affine_prob=1.0)
    strong.set_random_state(seed=0)
    assert not torch.allclose(strong(dict(item))["image"], image, atol=1e-2)


@pytest.fixture
def tree(tmp_path) -> Path:
    for name in ("a/x/flair.nii.gz", "a/y/flair.nii.gz", "b/x/flair.nii.gz", "one.jpg", "m.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    return tmp_path


def named(tree, *items) -> list[str]:
    return [item["name"] for item in resolve_items(items, tree)]


def test_names_have_as_many_folders_as_tell_them_apart(tree):
    a, b, c = ({"image": f"{home}/flair.nii.gz"} for home in ("a/x", "a/y", "b/x"))
    assert named(tree, a) == ["flair"]
    assert named(tree, a, b) == ["x_flair", "y_flair"]
    assert named(tree, a, b, c, {"image": "one.jpg"}) == ["a_x_flair", "y_flair", "b_x_flair", "one"]
    assert named(tree, {**a, "slice": 4}, {**a, "slice": 12}) == ["flair_s004", "flair_s012"]
    assert named(tree, {**a, "slice": 4, "plane": "coronal"}) == ["flair_cor004"]
    assert named(tree, {**a, "name": "mine"}, b) == ["mine", "flair"]
    assert named(tree, {**a, "name": "flair"}, b) == ["flair", "y_flair"]
    assert named(tree, {"image": ["a/y/flair.nii.gz", "one.jpg"]}) == ["flair"]


def test_paths_become_absolute_and_the_rest_is_kept(tree):
    item = {"image": ["one.jpg", Path("m.png")], "label": "m.png", "foreground": Path("m.png"), "diagnosis": 1}
    (found,) = resolve_items([item], str(tree))
    assert found == {
        "image": [str(tree / "one.jpg"), str(tree / "m.png")], "label": str(tree / "m.png"),
        "foreground": str(tree / "m.png"), "diagnosis": 1, "name": "one",
    }  # fmt: skip
    assert item["image"][0] == "one.jpg", "the datalist stays as it is"
    with pytest.raises(ValueError, match=r"5 files of the datalist do not exist, first: \S+/0, \S+/1, \S+/2 \("):
        resolve_items([{"image": [str(k) for k in range(5)]}], tree)
    with pytest.raises(ValueError, match="item 1 of the datalist has no 'image'"):
        resolve_items([{"image": "one.jpg"}, {"image": ""}], tree)


def test_a_batch_of_nothing_or_of_other_shapes_is_refused():
    with pytest.raises(ValueError, match="cannot collate an empty batch"):
        collate([])
    one = {"image": torch.zeros(1, 2), "name": "a"}
    assert collate([one, {"image": torch.ones(1, 2), "name": "b"}])["image"].shape == (2, 1, 2)
    assert collate([one])["name"] == ["a"]


INSIDE = torch.zeros(1, 1, 8, 8)
INSIDE[..., 2:6, 2:6] = 1


def image(mean: float, deviation: float, channels: int = 1) -> torch.Tensor:
    """Two values in the head, none of them 0."""
    signs = torch.tensor([1.0, -1.0]).repeat(32).view(1, 1, 8, 8)
    return (mean + deviation * signs).expand(1, channels, 8, 8) * INSIDE


@pytest.mark.parametrize(
    ("mean", "deviation", "fits"),
    [(0, 1, True), (1.99, 1, True), (2.01, 1, False), (-1.99, 1, True), (-2.01, 1, False), (0.5, 0.11, True),
     (0.5, 0.09, False), (0, 4.99, True), (0, 5.01, False)],
)  # fmt: skip
def test_a_head_is_normalized_to_about_0_and_1(mean, deviation, fits):
    for channels in (1, 3):
        given = image(mean, deviation, channels)
        for foreground in (None, INSIDE, INSIDE.to(torch.uint8)):
            if fits:
                check_network_input(given, foreground)
                check_network_input(given[0], None if foreground is None else foreground[0])
            else:
                with pytest.raises(ValueError, match=r"item 0: foreground mean .*normalize first"):
                    check_network_input(given, foreground)


def test_statistics_are_over_all_channels_and_voxels():
    given = torch.cat([image(1.5, 1), image(-1.5, 1)], dim=1)
    check_network_input(given)
    with pytest.raises(ValueError, match=r"foreground mean 3, deviation 1\.58"):
        check_network_input(torch.cat([image(4.2247, 1.0), image(1.7753, 1.0)], dim=1))
    check_network_input(image(0, 1)[..., None].expand(1, 1, 8, 8, 3), INSIDE[..., None].expand(1, 1, 8, 8, 3))


def test_what_is_wrong_is_named_with_its_case():
    good = image(0, 1)
    for broken, reason in (
        (torch.where(good == 1, torch.inf, good), "values that are not finite"),
        (torch.where(good == 1, torch.nan, good), "values that are not finite"),
        (good + 0.01 * (1 - INSIDE), r"air is not exactly 0 \(share of zeros 0\.000, mean 0\.01\)"),
        (good * (good > 0), "8 foreground voxels are exactly 0 and would count as air"),
    ):
        with pytest.raises(ValueError, match=f"network input of b: .*{reason}"):
            check_network_input(torch.cat([good, broken]), INSIDE.expand(2, -1, -1, -1), ["a", "b"])
    for shape in ((8, 8), (1, 1, 1, 8, 8, 8)):
        with pytest.raises(ValueError, match="expected float"):
            check_network_input(torch.ones(shape))
    for foreground in (INSIDE[0], INSIDE[..., :7]):
        with pytest.raises(ValueError, match="does not fit image"):
            check_network_input(good, foreground)
    with pytest.raises(ValueError, match="the foreground is empty"):
        check_network_input(good, INSIDE * 0)
    both = torch.cat([good, torch.zeros_like(good)], dim=1)
    with pytest.raises(ValueError, match="16 foreground voxels are exactly 0"):
        check_network_input(both)
    assert np.isfinite(float(both.sum()))
