from __future__ import annotations

import numpy as np
import pytest
import torch
from monai.transforms import (
    Compose,
    CropForegroundd,
    EnsureTyped,
    MaskIntensityd,
    NormalizeIntensityd,
    OneOf,
    RandAffined,
    RandFlipd,
    RandGaussianNoised,
    Resized,
    ScaleIntensityd,
)

from transforms.augmentation import RandAffineForegroundd, RandNoiseForegroundd
from transforms.cropping import CropToForegroundd, ResizeToFitd
from transforms.foreground import ForegroundMaskd
from transforms.intensity import NormalizeForegroundd
from transforms.masking import MaskBackgroundd
from transforms.order import Pipeline, stage_of

FIND, CROP = ForegroundMaskd(), CropToForegroundd(["image", "foreground"])
NORMALIZE, MASK = NormalizeForegroundd(), MaskBackgroundd()
RESIZE = ResizeToFitd(["image", "foreground"], (8, 8), ("image", "mask"))
GOOD = [FIND, CROP, NORMALIZE, RESIZE, MASK]


@pytest.mark.parametrize(
    ("transforms", "reason"),
    [
        ([FIND, CROP, MASK, NORMALIZE], "NormalizeForegroundd after MaskBackgroundd.* moves air to about -1"),
        (
            [FIND, MASK, NormalizeIntensityd("image")],
            "NormalizeIntensityd after MaskBackgroundd.*moves air to about -1",
        ),
        ([FIND, MaskIntensityd("image", mask_key="m"), NORMALIZE], "after MaskIntensityd.*moves air to about -1"),
        ([FIND, NORMALIZE, FIND, MASK], "percentile threshold on z-scored data keeps everything"),
        ([FIND, NORMALIZE, CROP, MASK], "CropToForegroundd after NormalizeForegroundd.*crop first"),
        ([FIND, NORMALIZE, CropForegroundd("image", "image"), MASK], "CropForegroundd after NormalizeForegroundd"),
        ([NORMALIZE, MASK], "NormalizeForegroundd without a foreground mask before"),
        ([NormalizeIntensityd("image"), FIND, MASK], "NormalizeIntensityd without a foreground mask before"),
        ([CROP, FIND, NORMALIZE, MASK], "CropToForegroundd without a foreground mask before"),
        ([*GOOD, RESIZE], "ResizeToFitd stands after the last MaskBackgroundd: air would no longer be exactly 0"),
        ([*GOOD, Resized("image", (8, 8))], "Resized stands after the last"),
        ([*GOOD, RandAffined("image")], "RandAffined stands after the last"),
        ([*GOOD, RandGaussianNoised("image")], "RandGaussianNoised stands after the last"),
        ([*GOOD, ScaleIntensityd("image")], "ScaleIntensityd stands after the last"),
        ([*GOOD, RandAffineForegroundd()], "RandAffineForegroundd stands after the last"),
        ([*GOOD, Compose([RandNoiseForegroundd()])], "RandNoiseForegroundd stands after the last"),
        ([*GOOD, OneOf([RandAffined("image")])], "RandAffined stands after the last"),
        ([FIND, CROP, NORMALIZE, RESIZE], "ResizeToFitd stands and no MaskBackgroundd follows"),
    ],
)
def test_wrong_orders_are_refused_with_the_reason(transforms, reason):
    with pytest.raises(ValueError, match=reason):
        Pipeline(transforms)


@pytest.mark.parametrize(
    "transforms",
    [
        GOOD,
        [*GOOD, RandAffineForegroundd(), RandNoiseForegroundd(), MASK],
        [*GOOD, RandFlipd("image", prob=0.5), EnsureTyped("image")],  # moves voxels, mixes none
        [*GOOD, RandAffined("label")],  # not the image
        [ScaleIntensityd("image"), *GOOD],
        [RandAffineForegroundd(), MASK],
        [EnsureTyped("image")],
    ],
)
def test_right_orders_are_accepted_and_stay_a_compose(transforms):
    pipeline = Pipeline(transforms)
    assert isinstance(pipeline, Compose)
    assert list(pipeline.transforms) == list(transforms)


def test_stages_of_monai_transforms_are_known_by_module():
    assert stage_of(Resized("image", (8, 8))) == "interpolate"
    assert stage_of(RandFlipd("image")) is None
    assert stage_of(NormalizeIntensityd("image")) == "normalize"
    assert stage_of(RandGaussianNoised("image")) == "intensity"
    assert stage_of(lambda x: x) is None


def test_failure_names_file_and_reason_and_keeps_the_cause():
    pipeline = Pipeline([EnsureTyped("image"), FIND])
    with pytest.raises(ValueError, match=r"^file p/x\.png: no foreground found: the image is constant") as caught:
        pipeline({"image": torch.zeros(1, 8, 8), "name": "p/x.png"})
    assert isinstance(caught.value.__cause__, ValueError)
    assert caught.value.__cause__ is not caught.value
    with pytest.raises(ValueError, match=r"file p/x\.png: KeyError"):
        Pipeline([EnsureTyped("missing")])({"image": torch.zeros(1, 8, 8), "name": "p/x.png"})


def test_a_dictionary_goes_the_short_way_and_gives_what_monai_gives():
    item = {"image": torch.arange(64.0).reshape(1, 8, 8)}
    steps = [EnsureTyped("image"), RandFlipd("image", prob=0.5, spatial_axis=0), RandAffined("image", prob=1.0)]
    ours, stock = Pipeline(steps, image_key="other"), Compose(steps)
    for seed in range(3):
        ours.set_random_state(seed)
        got = ours(item)["image"]
        stock.set_random_state(seed)
        assert torch.equal(got, stock(item)["image"])
    assert ours(item, start=1, end=1) is item
    with pytest.raises(ValueError, match="transforms 2 to 9 asked for, there are 3"):
        ours(item, start=2, end=9)
    state = ours.transforms[1].R.get_state()[1].copy()
    ours(item, threading=True)  # works on copies
    assert np.array_equal(ours.transforms[1].R.get_state()[1], state)


def test_several_items_from_one_are_taken_one_by_one():
    several = Pipeline([lambda item: [item, {"image": item["image"] + 1}], EnsureTyped("image")])
    assert [int(one["image"].max()) for one in several({"image": torch.zeros(1, 8, 8)})] == [0, 1]
