"""Sizes, interpolation, anti-aliasing and padding, against torch's and MONAI's own."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from monai.data import MetaTensor
from monai.transforms import Resize

from transforms.cropping import PadToFitd, ResizeToFit, ResizeToFitd, room_for, spacing_mm_of


def noise(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("traced", [False, True])
def test_a_picture_made_smaller_is_smoothed_as_torch_does_and_only_then(traced):
    image = noise(1, 30, 40)
    given = MetaTensor(image) if traced else image
    small = ResizeToFitd("image", (15, 20), ["image"])({"image": given})["image"]
    smooth = F.interpolate(image[None], (15, 20), mode="bilinear", align_corners=False, antialias=True)[0]
    assert torch.equal(torch.as_tensor(small), smooth)
    assert isinstance(small, MetaTensor) == traced
    assert small.std() < 0.7 * F.interpolate(image[None], (15, 20), mode="bilinear")[0].std(), "not picked, averaged"
    large = ResizeToFitd("image", (60, 80), ["image"])({"image": given})["image"]
    assert torch.allclose(torch.as_tensor(large), F.interpolate(image[None], (60, 80), mode="bilinear")[0], atol=1e-5)
    same = ResizeToFitd("image", (30, 40), ["image"])({"image": given})["image"]
    assert torch.equal(torch.as_tensor(same), image)


def test_an_axis_that_shrinks_is_enough_to_smooth_it():
    image = noise(1, 40, 20)
    resized = ResizeToFit((20, 20))(image, mode="bilinear", anti_aliasing=True, target=(20, 20))
    expected = F.interpolate(image[None], (20, 20), mode="bilinear", align_corners=False, antialias=True)[0]
    assert torch.equal(resized, expected)
    plain = ResizeToFit((20, 20))(image, mode="bilinear", anti_aliasing=False, target=(20, 20))
    assert torch.allclose(plain, F.interpolate(image[None], (20, 20), mode="bilinear")[0])


def test_a_volume_made_smaller_is_smoothed_as_monai_does():
    volume = noise(1, 12, 12, 12)
    small = ResizeToFitd("image", (6, 6, 6), ["image"])({"image": volume})["image"]
    expected = Resize((6, 6, 6), mode="trilinear", anti_aliasing=True)(MetaTensor(volume))
    assert torch.allclose(small, torch.as_tensor(expected), atol=1e-6)
    assert type(small) is torch.Tensor


@pytest.mark.parametrize(("shape", "size"), [((7, 10), (13, 20)), ((31, 17), (8, 5)), ((9, 9), (9, 9))])
def test_a_mask_is_picked_as_torch_picks(shape, size):
    mask = (noise(2, *shape) > 0).to(torch.uint8)
    picked = ResizeToFit(size)(mask, mode="nearest-exact", target=size)
    assert torch.equal(picked, F.interpolate(mask[None].float(), size, mode="nearest-exact")[0])
    assert picked.dtype == torch.float32


def test_the_box_is_filled_along_one_axis_and_never_exceeded():
    fit = ResizeToFit((96, 64))
    assert fit.fitted((48, 64)) == (48, 64)
    assert fit.fitted((100, 10)) == (96, 10)
    assert fit.fitted((1000, 1)) == (96, 1)
    assert fit.fitted((3, 3)) == (64, 64)
    with pytest.raises(ValueError, match="other number of axes"):
        fit(noise(1, 4, 4, 4))


def test_a_missing_key_is_skipped_only_where_that_is_allowed():
    item = {"image": noise(1, 8, 8)}
    allowed = ResizeToFitd(("image", "label"), 4, ["image", "mask"], allow_missing_keys=True)(item)
    assert list(allowed) == ["image"]
    assert allowed["image"].shape == (1, 4, 4)
    with pytest.raises(KeyError):
        ResizeToFitd(("image", "label"), 4, ["image", "mask"])(item)
    with pytest.raises(KeyError):
        PadToFitd(("image", "label"), 16)(item)
    assert list(PadToFitd(("image", "label"), 16, allow_missing_keys=True)(item)) == ["image"]


def test_room_is_the_size_asked_for_or_the_next_multiple_of_its_power_of_two():
    assert room_for([128, 96, 64], [128, 96, 64]) == [128, 96, 64]
    assert room_for([128, 96, 64], [129, 97, 65]) == [160, 128, 96]
    assert room_for([24], [25]) == [32]
    assert room_for([64], [66]) == [96], "32 is the most that a network of five levels needs"


@pytest.mark.parametrize("traced", [False, True])
@pytest.mark.parametrize(("shape", "before"), [((5, 8), (1, 0)), ((6, 7), (1, 0)), ((3, 2), (2, 3))])
def test_padding_is_even_and_the_odd_row_comes_last(shape, before, traced):
    image = noise(2, *shape)
    padded = PadToFitd("image", (8, 8))({"image": MetaTensor(image) if traced else image})["image"]
    assert isinstance(padded, MetaTensor) == traced
    place = np.zeros((8, 8), bool)
    place[before[0] : before[0] + shape[0], before[1] : before[1] + shape[1]] = True
    pixels = torch.as_tensor(padded)
    assert pixels.shape == (2, 8, 8)
    assert torch.equal(pixels[:, place].reshape(image.shape), image)
    assert not pixels[:, ~place].any()


def test_spacing_is_stated_for_volumes_alone():
    assert spacing_mm_of(None, 2) is None
    assert spacing_mm_of(1.5, 3) == (1.5, 1.5, 1.5)
    assert spacing_mm_of([1, 1, 5], 3) == (1.0, 1.0, 5.0)
    assert spacing_mm_of("acquired", 3) == ()
    with pytest.raises(ValueError, match="for volumes, and spatial_size has 2 axes"):
        spacing_mm_of(1, 2)
    for wrong in (0, -1, [1, 1], [1, 1, 0], "1 mm", [1, 1, "1"]):
        with pytest.raises(ValueError, match="spacing_mm is a number of mm"):
            spacing_mm_of(wrong, 3)


def test_a_volume_is_resampled_to_the_stated_spacing_and_keeps_its_extent():
    volume = MetaTensor(noise(1, 10, 12, 4), affine=np.diag([2.0, 1.0, 3.0, 1.0]))
    resized = ResizeToFitd("image", (8, 8, 8), ["image"], spacing_mm=1)({"image": volume})["image"]
    assert resized.shape == (1, 20, 12, 12)
    acquired = ResizeToFitd("image", (8, 8, 8), ["image"], spacing_mm="acquired")({"image": volume})["image"]
    assert torch.equal(torch.as_tensor(acquired), torch.as_tensor(volume))
    fitted = ResizeToFitd("image", (5, 5, 5), ["image"])({"image": volume})["image"]
    assert fitted.shape == (1, 4, 5, 2)
    with pytest.raises(ValueError, match="size of its voxels is not known"):
        ResizeToFitd("image", (8, 8, 8), ["image"], spacing_mm=1)({"image": noise(1, 4, 4, 4)})
