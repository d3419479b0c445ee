from __future__ import annotations

import numpy as np
import pytest
import torch
from monai.data import MetaTensor

from transforms.cropping import CropToForegroundd, ResizeToFitd
from transforms.intensity import (
    NormalizeForegroundd,
    different_values,
    normalize_foreground,
    ordered,
    percentiles,
    quantile,
    scale_robust,
)
from transforms.masking import MaskBackgroundd, mask_background


def test_robust_scale_maps_minimum_and_percentile_and_clips_nothing():
    image = torch.arange(1001, dtype=torch.float32).reshape(1, 7, 143) * 2 + 10
    scaled = scale_robust(image)
    assert scaled.min() == 0
    assert scaled.flatten()[999] == pytest.approx(1.0)
    assert scaled.max() == pytest.approx(1000 / 999)
    assert torch.equal(scale_robust(torch.full((1, 4, 4), 7.0)), torch.zeros(1, 4, 4))


def test_normalization_uses_the_foreground_only():
    image = torch.tensor([[[1.0, 3.0, 900.0], [1.0, 3.0, -50.0]]])
    foreground = torch.tensor([[[1, 1, 0], [1, 1, 0]]])
    out = normalize_foreground(image, foreground, 0, 100)
    # foreground 1, 3, 1, 3: mean 2, deviation 1; the air is clipped to 1..3 and shifted along
    assert out.tolist() == [[[-1, 1, 1], [-1, 1, -1]]]


def test_normalization_clips_at_foreground_percentiles_per_channel():
    values = torch.arange(1000, dtype=torch.float32)
    values[-1] = 1e6
    image = torch.stack([values, values * 3 + 5]).reshape(2, 10, 100)
    out = normalize_foreground(image, torch.ones(1, 10, 100))
    assert out[0].mean() == pytest.approx(0, abs=1e-5)
    assert out[0].std(correction=0) == pytest.approx(1, abs=1e-5)
    assert torch.allclose(out[0], out[1], atol=1e-4)
    clipped = np.clip(values.numpy(), *np.percentile(values.numpy(), [0.5, 99.5]))
    assert np.allclose(out[0].flatten().numpy(), (clipped - clipped.mean()) / clipped.std(), atol=1e-4)


def test_constant_or_empty_foreground_names_the_file():
    image = MetaTensor(torch.ones(1, 4, 4), meta={"filename_or_obj": "p/flat.png"})
    with pytest.raises(ValueError, match=r"p/flat.png: the foreground of channel 0 is constant \(1\)"):
        NormalizeForegroundd()({"image": image, "foreground": torch.ones(1, 4, 4)})
    with pytest.raises(ValueError, match=r"p/flat.png: the foreground mask is empty"):
        NormalizeForegroundd()({"image": image, "foreground": torch.zeros(1, 4, 4)})


def test_air_is_exactly_zero_and_foreground_zeros_are_nudged():
    image = torch.tensor([[[0.0, -2.0, 3.0, 0.0]]])
    foreground = torch.tensor([[[1, 1, 0, 0]]])
    out = mask_background(image, foreground)
    assert torch.equal(out, torch.tensor([[[1e-6, -2.0, 0.0, 0.0]]]))
    assert torch.equal(mask_background(out, foreground), out)
    item = MaskBackgroundd()({"image": image, "foreground": foreground * 7.0})
    assert item["foreground"].dtype == torch.uint8
    assert item["foreground"].tolist() == [[[1, 1, 0, 0]]]


def test_negative_zero_and_infinite_air_become_plain_zero():
    out = mask_background(torch.tensor([[[-0.0, float("inf"), 1.0]]]), torch.tensor([[[0, 0, 1]]]))
    assert out.tolist() == [[[0.0, 0.0, 1.0]]]
    assert not torch.signbit(out).any()


def test_crop_keeps_the_margin_inside_the_image_and_inverts():
    image = MetaTensor(torch.arange(80, dtype=torch.float32).reshape(1, 8, 10))
    foreground = MetaTensor(torch.zeros(1, 8, 10))
    foreground[0, 1:4, 5:8] = 1
    crop = CropToForegroundd(["image", "foreground"], margin=2)
    item = crop({"image": image, "foreground": foreground})
    assert torch.equal(item["image"].as_tensor(), image.as_tensor()[:, 0:6, 3:10])
    restored = crop.inverse(item)["image"]
    assert restored.shape == (1, 8, 10)
    assert torch.equal(restored[:, 0:6, 3:10].as_tensor(), image[:, 0:6, 3:10].as_tensor())
    assert restored[0, 6:].abs().sum() == 0


@pytest.mark.parametrize(
    ("shape", "box", "fitted"), [((20, 40), (8, 8), (4, 8)), ((4, 4), (8, 8), (8, 8)), ((30, 20), (8, 16), (8, 5))]
)
def test_fit_keeps_the_aspect_ratio_and_inverts(shape, box, fitted):
    fit = ResizeToFitd(["image", "label"], box, ("image", "mask"))
    item = {
        "image": MetaTensor(torch.ones(1, *shape)),
        "label": MetaTensor((torch.arange(shape[0] * shape[1]).reshape(1, *shape) % 3 == 0).to(torch.uint8)),
    }
    out = fit(item)
    assert out["image"].shape[1:] == fitted
    assert torch.allclose(out["image"].as_tensor(), torch.ones(1, *fitted))
    assert set(out["label"].unique().tolist()) <= {0.0, 1.0}
    assert fit.inverse(out)["image"].shape[1:] == shape


def test_downscaling_averages_instead_of_picking():
    stripes = torch.zeros(1, 64, 64)
    stripes[:, ::2] = 1
    out = ResizeToFitd(["image"], (16, 16), ("image",))({"image": MetaTensor(stripes)})["image"]
    assert (out[:, 2:-2] - 0.5).abs().max() < 0.05


@pytest.mark.parametrize("size", [1, 2, 3, 17, 512, 513, 5000])
@pytest.mark.parametrize("kind", ["drawn", "ties", "constant", "rising", "falling"])
def test_percentiles_are_those_of_numpy(size, kind):
    rng = np.random.default_rng(size)
    values = {
        "drawn": rng.normal(size=size), "ties": rng.integers(0, 3, size), "constant": np.full(size, 7.0),
        "rising": np.arange(size), "falling": -np.arange(size),
    }[kind].astype(np.float32)  # fmt: skip
    shares = (0, 0.5, 1, 25, 49.99, 50, 50.01, 90, 99.5, 99.9, 100)
    assert np.allclose(percentiles(values, *shares), np.percentile(values, shares), rtol=1e-6, atol=1e-6 * size)


@pytest.mark.parametrize("size", [1, 2, 17, 2047, 2048, 30000])
@pytest.mark.parametrize("kind", ["drawn", "ties", "constant", "rising", "falling"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_quantiles_and_places_are_those_of_numpy_bit_for_bit(size, kind, dtype):
    rng = np.random.default_rng(size)
    values = {
        "drawn": rng.normal(size=size), "ties": rng.integers(0, 3, size), "constant": np.full(size, 7.0),
        "rising": np.arange(size), "falling": -np.arange(size),
    }[kind].astype(dtype)  # fmt: skip
    for share in (0.0, 0.005, 0.01, 0.25, 0.4999, 0.5, 0.75, 0.9, 0.995, 1.0):
        assert quantile(values, share) == np.quantile(values, share)
        assert quantile(values, share).dtype == dtype
        place = int(share * (size - 1))
        assert ordered(values, place) == np.sort(values)[place]


def test_different_values_are_those_of_numpy():
    rng = np.random.default_rng(0)
    for values in (rng.integers(0, 300, (9, 8)), rng.normal(size=(9, 8)), rng.integers(-3, 3, 50), [70000.0, 1.0]):
        pixels = np.asarray(values, np.float32)
        np.testing.assert_array_equal(different_values(pixels), np.unique(pixels))


def test_a_channel_that_is_dark_nearly_everywhere_is_scaled_by_its_maximum():
    image = torch.full((2, 100, 100), 3.0)
    image[0, 0, 0] = 11.0  # one of 10,000: the percentile is the minimum
    scaled = scale_robust(image)
    assert scaled[0].max() == 1.0
    assert scaled[0].sum() == 1.0
    assert not scaled[1].any()


def test_percentiles_of_the_foreground_may_be_all_and_not_the_same():
    image, foreground = torch.arange(16.0).reshape(1, 4, 4), torch.ones(1, 4, 4)
    whole = NormalizeForegroundd(lower=0, upper=100)({"image": image, "foreground": foreground})["image"]
    assert torch.allclose(whole, (image - 7.5) / np.sqrt((256 - 1) / 12), atol=1e-6)
    clipped = NormalizeForegroundd()({"image": image, "foreground": foreground})["image"]
    low, high = 15 * 0.005, 15 * 0.995
    expected = image.clamp(low, high)
    assert torch.allclose(clipped, (expected - expected.mean()) / expected.std(correction=0), atol=1e-5)
    for lower, upper in ((-1, 99), (50, 50), (1, 101)):
        with pytest.raises(ValueError, match="percentiles must satisfy"):
            NormalizeForegroundd(lower=lower, upper=upper)


def test_what_counts_as_constant_is_relative_to_the_level():
    foreground = torch.ones(1, 2, 2)
    image = 1000 + torch.tensor([[[0.0, 0.01], [0.0, 0.01]]])  # deviation 5e-6 of the level
    assert torch.allclose(normalize_foreground(image, foreground, 0, 100).abs(), torch.ones(1, 2, 2), atol=0.05)
    with pytest.raises(ValueError, match="constant"):
        normalize_foreground(1000 + torch.tensor([[[0.0, 0.001], [0.0, 0.001]]]), foreground, 0, 100)
    faint = torch.tensor([[[0.0, 1e-9], [0.0, 1e-9]]])
    assert torch.allclose(normalize_foreground(faint, foreground, 0, 100).abs(), torch.ones(1, 2, 2), atol=0.05)
