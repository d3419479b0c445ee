"""Images as nnU-Net prepares them, by hand: crop, normalization, resampling, and the way back."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.ndimage import zoom

from scripts.explain.nnunet_images import RESAMPLING, prepare
from tests.explain.nnunet_results import DEFAULT, plan


def test_images_are_cropped_and_normalized_by_hand():
    image = np.zeros((1, 3, 5, 4), np.float32)
    image[0, 1, 1:4, 1:4] = [[1.0, 3.0, 1.0], [3.0, 0.0, 3.0], [1.0, 3.0, 1.0]]
    ready = prepare(plan(), image, (1, 1, 1))
    assert ready.box == (slice(1, 2), slice(1, 4), slice(1, 4))
    # One plane has no holes for nnU-Net, which fills them in three axes: the 0 in the middle is outside, and stays.
    expected = torch.tensor([[-1.0, 1.0, -1.0], [1.0, 0.0, 1.0], [-1.0, 1.0, -1.0]])
    assert torch.equal(ready.image, expected[None, None, None])
    back = ready.restored(ready.image)
    assert back.shape == image.shape
    assert back[0, 1, 1:4, 1:4].tolist() == expected.tolist()
    assert back.sum() == pytest.approx(float(expected.sum()))
    all_of_it = prepare(plan(masked=(False,)), image, (1, 1, 1)).image  # (value - 16/9) / its deviation
    assert float(all_of_it.mean()) == pytest.approx(0, abs=1e-6)
    assert float(all_of_it.std(unbiased=False)) == pytest.approx(1)
    bounds = {"0": {"percentile_00_5": 0.5, "percentile_99_5": 2.0, "mean": 1.0, "std": 0.5}}
    ct = prepare(plan(schemes=("CTNormalization",), intensities=bounds), image, (1, 1, 1)).image[0, 0, 0]
    assert ct.tolist() == [[0.0, 2.0, 0.0], [2.0, -1.0, 2.0], [0.0, 2.0, 0.0]]


def test_axes_are_those_of_the_plans_and_go_back():
    image = np.random.default_rng(0).uniform(1, 2, (1, 2, 3, 4)).astype(np.float32)
    turned = plan(transpose=(2, 0, 1), schemes=("NoNormalization",))
    ready = prepare(turned, image, (1, 1, 1))
    assert torch.equal(ready.image[0], torch.from_numpy(image.transpose(0, 3, 1, 2)))
    np.testing.assert_array_equal(ready.restored(ready.image), image)


def test_a_network_of_slices_sees_them_one_by_one_at_its_own_spacing():
    image = np.random.default_rng(0).uniform(1, 2, (1, 5, 8, 6)).astype(np.float32)
    ready = prepare(plan((4, 4), (2.0, 1.0), schemes=("NoNormalization",)), image, (7.0, 1.0, 1.0))
    assert (tuple(ready.image.shape), ready.grid) == ((5, 1, 4, 6), (5, 4, 6))
    assert ready.restored(ready.image).shape == image.shape
    constant = prepare(plan((4, 4), (2.0, 1.0), schemes=("NoNormalization",)), np.full_like(image, 3.0), (7, 1, 1))
    np.testing.assert_allclose(constant.restored(constant.image), 3.0)


@pytest.mark.parametrize(
    ("changed", "image", "message"),
    [
        ({}, np.ones((2, 2, 2, 2)), r"expected \(1, Z, Y, X\) with the channels FLAIR, got \(2, 2, 2, 2\)"),
        ({}, np.zeros((1, 2, 2, 2)), "0 everywhere"),
        ({}, np.full((1, 2, 2, 2), np.nan), "NaN"),
        ({"schemes": ("MyNormalization",)}, np.ones((1, 2, 2, 2)), "'MyNormalization' is none of nnU-Net's own"),
        (
            {"resampling": {"data": ("resample_torch_fornnunet", {})}, "spacing_mm": (2.0, 1.0, 1.0)},
            np.ones((1, 4, 4, 4)),
            "resampled by 'resample_torch_fornnunet'",
        ),
    ],
)
def test_images_that_cannot_be_prepared_are_refused_in_one_sentence(changed, image, message):
    with pytest.raises(ValueError, match=message) as error:
        prepare(plan(**changed), image, (1, 1, 1))
    assert "\n" not in str(error.value)


def prepared(image, read_mm=(1, 1, 1), **changed):
    """The network's image (Z, Y, X) of one channel."""
    return prepare(plan(**changed), image, read_mm).image[0, 0].numpy()


@pytest.mark.parametrize(
    ("scheme", "expected"),
    [
        ("RescaleTo01Normalization", [0.0, 0.2, 1.0]),
        ("RGBTo01Normalization", [51 / 255, 102 / 255, 1.2]),
        ("NoNormalization", [51.0, 102.0, 306.0]),
        ("CTNormalization", [-1.0, 0.5, 4.5]),
    ],
)
def test_schemes_by_hand(scheme, expected):
    image = np.array([51.0, 102.0, 306.0]).reshape(1, 1, 1, 3)
    bounds = {"0": {"percentile_00_5": 72.0, "percentile_99_5": 182.0, "mean": 92.0, "std": 20.0}}
    assert prepared(image, schemes=(scheme,), intensities=bounds).flatten() == pytest.approx(np.array(expected))
    assert image.flatten().tolist() == [51.0, 102.0, 306.0], "the image given is left alone"


def test_constant_images_are_not_divided_by_nothing():
    image = np.full((1, 1, 2, 2), 5.0)
    for scheme in ("ZScoreNormalization", "RescaleTo01Normalization"):
        assert not prepared(image, schemes=(scheme,)).any()


def test_channels_are_normalized_each_by_its_own_scheme_inside_what_any_of_them_shows():
    image = np.zeros((2, 1, 1, 4))
    image[0, 0, 0, 1:3], image[1, 0, 0, 2:4] = [2.0, 4.0], [255.0, 510.0]
    changed = {"channels": ("FLAIR", "T1"), "schemes": ("ZScoreNormalization", "RGBTo01Normalization")}
    found = prepare(plan(**changed, masked=(True, False)), image, (1, 1, 1))
    assert found.box == (slice(0, 1), slice(0, 1), slice(1, 4))
    assert found.image[0, 1].flatten().tolist() == [0.0, 1.0, 2.0]
    mean, deviation = 2.0, np.sqrt((0 + 4 + 4) / 3)  # of 2, 4, 0: the last place is inside by the other channel
    assert found.image[0, 0].flatten().tolist() == pytest.approx([(v - mean) / deviation for v in (2, 4, 0)])


PLAIN = {"schemes": ("NoNormalization",)}


def slices(*values):
    """(1, Z, 3, 4), a value a slice."""
    return np.broadcast_to(np.array(values, np.float32)[None, :, None, None], (1, len(values), 3, 4)).copy()


def test_thick_slices_are_resampled_by_themselves_and_thin_ones_by_splines():
    image = slices(1.0, 5.0, 2.0, 3.0)
    thick = prepared(image, (4, 1, 1), spacing=(2.0, 1.0, 1.0), **PLAIN)
    assert thick[:, 0, 0].tolist() == [1, 1, 5, 5, 2, 2, 3, 3]
    thin = prepared(image, (3, 1, 1), spacing=(1.5, 1.0, 1.0), **PLAIN)  # three times as thick is not thick
    expected = np.clip(zoom(image[0], (2, 1, 1), order=3, mode="nearest", grid_mode=True), 1, 5)
    np.testing.assert_allclose(thin, expected, rtol=1e-6)
    assert 1 < thin[2, 0, 0] < 5
    target = prepared(slices(*range(1, 10)), (1.5, 1, 1), spacing=(4.5, 1.0, 1.0), **PLAIN)
    assert target[:, 0, 0].tolist() == [2, 5, 8], "the plans' own spacing is that of thick slices"


def test_order_between_slices_is_that_of_the_plans():
    options = {**DEFAULT, "order_z": 1}
    linear = prepared(
        slices(1.0, 5.0), (4, 1, 1), spacing=(2.0, 1.0, 1.0), **PLAIN, resampling={"data": (RESAMPLING, options)}
    )
    assert linear[:, 0, 0] == pytest.approx([1, 2, 4, 5])
    nearest = prepared(
        slices(1.0, 5.0), (4, 1, 1), spacing=(2.0, 1.0, 1.0), **PLAIN,
        resampling={"data": (RESAMPLING, {"force_separate_z": True})},
    )  # fmt: skip
    assert nearest[:, 0, 0].tolist() == [1, 1, 5, 5]


def test_within_slices_splines_of_the_plans_order():
    image = np.random.default_rng(0).uniform(1, 2, (1, 2, 6, 8)).astype(np.float32)
    options = {"order": 1, "force_separate_z": None}
    for order, resampling in ((3, DEFAULT), (1, options)):
        changed = {"spacing": (5.0, 2.0, 0.5), **PLAIN, "resampling": {"data": (RESAMPLING, resampling)}}
        found = prepared(image, (5, 1, 1), **changed)
        assert found.shape == (2, 3, 16)
        for plane, original in zip(found, image[0], strict=True):
            expected = zoom(original, (0.5, 2), order=order, mode="nearest", grid_mode=True)
            np.testing.assert_allclose(plane, np.clip(expected, original.min(), original.max()), rtol=1e-5)


@pytest.mark.parametrize("forced", [False, None])
def test_two_thick_axes_or_none_are_resampled_together(forced):
    image = np.random.default_rng(0).uniform(1, 2, (1, 2, 2, 8)).astype(np.float32)
    spacing = (4, 4, 1) if forced is None else (4, 1, 1)
    resampling = {"data": (RESAMPLING, {**DEFAULT, "force_separate_z": forced})}
    target = tuple(s / 2 for s in spacing)
    found = prepared(image, spacing, spacing=target, **PLAIN, resampling=resampling)
    expected = zoom(image[0].astype(np.float64), 2, order=3, mode="nearest", grid_mode=True)
    np.testing.assert_allclose(found, np.clip(expected, image.min(), image.max()), rtol=1e-5)


def test_values_go_back_by_the_rule_of_probabilities_and_lie_in_the_crop():
    image = np.zeros((1, 6, 4, 5))
    image[0, 2:6, 1:4, 1:5] = slices(1.0, 2.0, 3.0, 4.0)[0]
    rules = {"data": (RESAMPLING, DEFAULT), "probabilities": (RESAMPLING, {**DEFAULT, "force_separate_z": True})}
    ready = prepare(plan(spacing=(2.0, 1.0, 1.0), **PLAIN, resampling=rules), image, (1, 1, 1))
    assert (ready.grid, ready.size) == ((2, 3, 4), (6, 4, 5))
    values = torch.zeros(1, 2, 2, 3, 4)
    values[0, 1, 0], values[0, 1, 1] = 7.0, 9.0
    back = ready.restored(values)
    assert back.shape == (2, 6, 4, 5)
    assert back.dtype == np.float32
    assert back[1, 2:, 2, 2].min() == 7
    assert back[1, 2:, 2, 2].max() == 9
    assert not back[0].any()
    assert not back[1, :2].any()
    assert not back[1, :, 0].any()
    assert not back[1, :, :, 0].any()
