"""Random transforms with their draws fixed: each does what its formula says."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from scripts.data.preprocessing import make_augmentation
from transforms.augmentation import (
    RandAffineForegroundd,
    RandBiasForegroundd,
    RandBlurForegroundd,
    RandContrastForegroundd,
    RandGammaForegroundd,
    RandNoiseForegroundd,
    _change_values,
)


class Highest:
    """Draws what is the most."""

    def rand(self) -> float:
        return 0.0

    def uniform(self, low: float, high: float, size: int | None = None):
        return high if size is None else np.full(size, high)


def item(shape: tuple[int, ...], seed: int = 0) -> dict[str, torch.Tensor]:
    """Values around 3 in a box that leaves two places of air at each side."""
    generator = torch.Generator().manual_seed(seed)
    inside = torch.zeros(1, *shape, dtype=torch.uint8)
    inside[(slice(None), *(slice(2, n - 2) for n in shape))] = 1
    image = (torch.randn((2, *shape), generator=generator) + 3) * inside
    return {"image": image, "foreground": inside}


RANGES = ("rotate", "scale", "shear", "translate", "gamma", "factor", "shift", "std", "sigma", "strength")
PARAMETERS = ("prob", "flip_prob", "flip_axes", *RANGES)


def test_strength_1_are_the_defaults_of_each_transform():
    steps = make_augmentation((64, 64), strength=1.0).transforms[:-1]
    assert len(steps) == 6
    for step in steps:
        own = type(step)()
        for key in PARAMETERS:
            if hasattr(own, key):
                assert getattr(step, key) == pytest.approx(getattr(own, key)), (type(step).__name__, key)


def turn(dims: int, first: int, second: int, angle: float) -> np.ndarray:
    matrix = np.eye(dims)
    matrix[first, first] = matrix[second, second] = math.cos(angle)
    matrix[first, second], matrix[second, first] = -math.sin(angle), math.sin(angle)
    return matrix


@pytest.mark.parametrize("dims", [2, 3])
def test_the_matrix_is_rotation_shear_and_scale_and_then_the_shift_of_a_share_of_the_size(dims):
    affine = RandAffineForegroundd(prob=1.0, rotate=0.3, scale=0.25, shear=0.1, translate=0.05)
    affine.R = Highest()
    shape = (20, 40, 60)[:dims]
    affine.randomize(shape)
    shear = np.eye(dims)
    shear[0, 1] = 0.1
    turns = [turn(dims, *axes, 0.3) for axes in ([(0, 1)] if dims == 2 else [(0, 1), (0, 2), (1, 2)])]
    expected = np.linalg.multi_dot([*turns, shear]) / 1.25
    assert np.allclose(affine._matrix, np.column_stack([expected, np.multiply(shape, 0.05)]))
    assert affine._do_transform
    assert affine._flips == [0]


def test_draws_reach_from_the_negative_to_the_positive_of_each_range():
    class Asked(Highest):
        bounds: list = []  # noqa: RUF012

        def uniform(self, low, high, size=None):
            self.bounds.append((low, high))
            return super().uniform(low, high, size)

    affine = RandAffineForegroundd(prob=1.0, rotate=0.3, scale=0.25, shear=0.1, translate=0.05)
    affine.R = Asked()
    affine.randomize((8, 8))
    assert Asked.bounds == [(-0.3, 0.3), (-0.1, 0.1), (0.75, 1.25), (-0.05, 0.05)]
    Asked.bounds.clear()
    contrast = RandContrastForegroundd((0.5, 2), 0.1, prob=1.0)
    contrast.R = Asked()
    contrast(item((6, 6)))
    assert Asked.bounds == [(0.5, 2), (-0.1, 0.1)]
    Asked.bounds.clear()
    gamma = RandGammaForegroundd((0.5, 2), prob=1.0)
    gamma.R = Asked()
    gamma(item((6, 6)))
    assert Asked.bounds == [(math.log(0.5), math.log(2))], "as often smaller than 1 as larger"


def fixed(matrix: np.ndarray) -> RandAffineForegroundd:
    """Moves by a matrix, and nothing else."""
    affine = RandAffineForegroundd()
    affine._matrix, affine._do_transform, affine._flips = matrix, True, []
    affine.randomize = lambda data: None
    return affine


@pytest.mark.parametrize(("shape", "shift"), [((11, 14), (1, -2)), ((9, 11, 8), (2, -1, 1))])
def test_a_shift_by_whole_voxels_moves_image_masks_and_regions_alike(shape, shift):
    given = item(shape)
    given["label"] = given["foreground"].clone()
    given["label"][:, : shape[0] // 2] = 0
    given["region_masks"] = torch.cat([given["label"], given["label"].flip(2)])
    out = fixed(np.column_stack([np.eye(len(shape)), shift]))(given)
    for key in ("foreground", "label", "region_masks"):
        assert torch.equal(out[key], given[key].roll([-s for s in shift], tuple(range(1, len(shape) + 1)))), key
    expected = given["image"].roll([-s for s in shift], tuple(range(1, len(shape) + 1)))
    assert torch.allclose(out["image"], expected, atol=1e-4)


def test_masks_are_cut_at_one_half_of_their_interpolated_value():
    given = item((8, 8))  # places 2 to 5; powers of two, so that a half is one
    half = fixed(np.array([[1.0, 0, 0.5], [0, 1, 0]]))(given)["foreground"][0]
    assert half.any(1).nonzero().flatten().tolist() == [1, 2, 3, 4, 5], "of the first and last one half is left"
    assert half.any(0).nonzero().flatten().tolist() == [2, 3, 4, 5]
    more = fixed(np.array([[1.0, 0, 0.51], [0, 1, 0]]))(given)["foreground"][0]
    assert more.any(1).nonzero().flatten().tolist() == [1, 2, 3, 4]


def test_a_head_of_which_less_than_half_a_voxel_is_left_stays():
    dot = {"image": torch.zeros(1, 5, 5), "foreground": torch.zeros(1, 5, 5, dtype=torch.uint8)}
    dot["image"][0, 2, 2], dot["foreground"][0, 2, 2] = 7.0, 1
    moved = fixed(np.array([[1.0, 0, 0.5], [0, 1, 0]]))(dot)
    assert moved["foreground"][0].nonzero().tolist() == [[1, 2], [2, 2]]
    assert torch.allclose(moved["image"][0, 1:3, 2], torch.tensor(7.0))
    assert torch.isfinite(moved["image"]).all()
    assert torch.equal(fixed(np.array([[1.0, 0, 0.5], [0, 1, 0.5]]))(dot)["image"], dot["image"])


def test_a_label_without_tumor_stays_and_air_takes_no_part():
    given = item((9, 9))
    given["label"] = torch.zeros(1, 9, 9, dtype=torch.uint8)
    given["image"][:, 0] = 1000.0  # air that was not masked
    out = fixed(np.array([[1.0, 0, 0.4], [0, 1, 0]]))(given)
    assert out["label"] is given["label"]
    assert out["image"][:, out["foreground"][0] == 1].max() < 10


@pytest.mark.parametrize("axes", [(0,), (1,), (0, 2)])
def test_only_the_stated_axes_are_flipped(axes):
    given = item((6, 7, 8))
    flip = RandAffineForegroundd(prob=0.0, flip_prob=1.0, flip_axes=axes)
    assert torch.equal(flip(given)["image"], given["image"].flip([axis + 1 for axis in axes]))
    never = RandAffineForegroundd(prob=0.0, flip_prob=0.0, flip_axes=axes)
    assert torch.equal(never(given)["image"], given["image"])


def test_half_of_the_items_are_flipped_and_left_to_right_alone():
    corner = {"image": torch.zeros(1, 2, 2), "foreground": torch.ones(1, 2, 2, dtype=torch.uint8)}
    corner["image"][0, 0, 0] = 1
    flip = RandAffineForegroundd(prob=0.0).set_random_state(0)
    places = [tuple(flip(corner)["image"][0].nonzero()[0].tolist()) for _ in range(200)]
    assert set(places) == {(0, 0), (1, 0)}
    assert 70 < places.count((1, 0)) < 130


def matched(old: np.ndarray, new: np.ndarray) -> np.ndarray:
    """New values with the mean and deviation of the old ones."""
    return (new - new.mean()) / new.std() * old.std() + old.mean()


def inside(given: dict[str, torch.Tensor], channel: int = 0) -> np.ndarray:
    return given["image"][channel].numpy()[given["foreground"][0].numpy() == 1].astype(float)


@pytest.mark.parametrize("shape", [(9, 8), (7, 8, 9)])
def test_gamma_is_a_power_of_the_range(shape):
    given = item(shape)
    out = RandGammaForegroundd((2.0, 2.0), prob=1.0)(given)
    assert (out["image"] * (1 - given["foreground"]) == 0).all()
    for channel in range(2):
        old = inside(given, channel)
        new = ((old - old.min()) / (old.max() - old.min())) ** 2
        assert np.allclose(inside(out, channel), matched(old, new), atol=1e-4)


def test_contrast_is_a_factor_and_a_constant():
    given = item((6, 6))
    contrast = RandContrastForegroundd((0.5, 2.0), 0.25, prob=1.0)
    contrast.R = Highest()
    assert torch.allclose(contrast(given)["image"], given["image"] * 2 + 0.25)


def test_a_constant_head_stays_constant():
    given = item((6, 6))
    given["image"] = given["foreground"].expand(2, -1, -1) * 5.0
    for transform in (RandGammaForegroundd(prob=1.0), RandBiasForegroundd((0.0, 0.0), prob=1.0)):
        assert torch.allclose(transform(given)["image"], given["image"], atol=1e-5)


def test_a_change_of_values_keeps_faint_contrast():
    given = item((6, 6))
    faint = given["image"] * 1e-3
    out = _change_values(faint, given["foreground"] != 0, lambda values, _: values)
    assert torch.allclose(out, faint, rtol=1e-4, atol=1e-8)


def test_noise_has_the_stated_deviation_lies_in_the_head_and_is_new_each_time():
    given = item((64, 64))
    noise = RandNoiseForegroundd((0.5, 0.5), prob=1.0).set_random_state(0)
    added = noise(given)["image"] - given["image"]
    assert (added * (1 - given["foreground"]) == 0).all()
    values = added[:, given["foreground"][0] == 1]
    assert float(values.std()) == pytest.approx(0.5, rel=0.05)
    assert float(values.mean()) == pytest.approx(0, abs=0.02)
    assert abs(float(torch.corrcoef(values)[0, 1])) < 0.1, "each channel has its own"
    small = item((6, 6))
    firsts = {float(noise(small)["image"][0, 3, 3]) for _ in range(150)}
    assert len(firsts) == 150


@pytest.mark.parametrize("sigma", [0.3, 1.0, 1.3])
@pytest.mark.parametrize("shape", [(13, 12), (9, 10, 11)])
def test_blur_is_a_gaussian_over_what_is_head(sigma, shape):
    given = item(shape)
    given["image"] = given["image"] + 100.0 * (1 - given["foreground"])  # air that was not masked
    out = RandBlurForegroundd((sigma, sigma), prob=1.0)(given)["image"]
    radius = {0.3: 1, 1.0: 3, 1.3: 4}[sigma]
    kernel = np.exp(-0.5 * (np.arange(-radius, radius + 1) / sigma) ** 2)
    weight = given["foreground"][0].numpy().astype(float)
    sums = []
    for stack in (given["image"][0].numpy() * weight, weight):
        for axis in range(len(shape)):
            stack = np.apply_along_axis(np.convolve, axis, stack, kernel, mode="same")
        sums.append(stack)
    expected = (sums[0] / np.maximum(sums[1], 1e-9))[weight == 1]
    assert np.allclose(out[0].numpy()[weight == 1], expected, atol=1e-4)
    assert torch.isfinite(out).all()


def test_bias_is_a_smooth_field_of_three_knots_an_axis():
    given = item((12, 9))
    bias = RandBiasForegroundd((0.3, 0.3), prob=1.0).set_random_state(3)
    out = bias(given)
    again = np.random.RandomState(3)
    again.rand(), again.uniform(0.3, 0.3)
    knots = torch.from_numpy(again.uniform(-1, 1, [3, 3]) * 0.3)
    field = F.interpolate(knots[None, None], (12, 9), mode="bicubic", align_corners=True)[0, 0].exp().numpy()
    for channel in range(2):
        old = inside(given, channel)
        scaled = (old - old.min()) / (old.max() - old.min())
        new = scaled * field[given["foreground"][0].numpy() == 1]
        assert np.allclose(inside(out, channel), matched(old, new), atol=1e-4)


def test_each_is_drawn_with_its_probability_and_on_the_stated_keys():
    given = item((6, 6))
    other = {"scan": given["image"].double(), "brain": given["foreground"]}
    for kind in (RandGammaForegroundd, RandBiasForegroundd, RandBlurForegroundd, RandNoiseForegroundd):
        assert kind(prob=0.0)(given)["image"] is given["image"]
        out = kind(prob=1.0, image_key="scan", foreground_key="brain").set_random_state(0)(other)
        assert out["scan"].dtype == torch.float32
        assert not torch.equal(out["scan"], given["image"])
