from __future__ import annotations

import numpy as np
import pytest
import torch

from scripts.data.preprocessing import make_augmentation
from tests.transforms.images import disc, head
from transforms.augmentation import (
    RandAffineForegroundd,
    RandBiasForegroundd,
    RandBlurForegroundd,
    RandContrastForegroundd,
    RandGammaForegroundd,
    RandNoiseForegroundd,
    _affine_grid,
    _cubic_weights,
    _smooth,
)
from transforms.intensity import normalize_foreground
from transforms.masking import mask_background

INTENSITY = [
    RandBiasForegroundd,
    RandBlurForegroundd,
    RandContrastForegroundd,
    RandGammaForegroundd,
    RandNoiseForegroundd,
]


def case(shape=(64, 64), radius=22):
    image, outline = head(shape, radius)
    foreground = torch.from_numpy(outline)[None].to(torch.uint8)
    label = torch.from_numpy(disc(shape, 5, tuple(n * 0.4 for n in shape)))[None].to(torch.uint8)
    image = mask_background(normalize_foreground(torch.from_numpy(image)[None], foreground), foreground)
    return {"image": image, "foreground": foreground, "label": label, "name": "case"}


@pytest.mark.parametrize("shape", [(64, 64), (64, 48), (24, 24, 20)])
def test_air_is_exactly_zero_after_every_augmentation(shape):
    item = case(shape, min(shape) * 0.35)
    augment = make_augmentation(shape).set_random_state(0)
    changed = 0
    for _ in range(25):
        out = augment(item)
        assert torch.equal(out["image"] != 0, out["foreground"] == 1)
        assert out["image"].shape == item["image"].shape
        assert torch.isfinite(out["image"]).all()
        assert out["label"].dtype == out["foreground"].dtype == torch.uint8
        assert set(out["label"].unique().tolist()) <= {0, 1}
        changed += not torch.equal(out["image"], item["image"])
    assert changed > 20  # now and then nothing is drawn
    assert torch.equal(item["image"], case(shape, min(shape) * 0.35)["image"])  # the cached item is left alone


@pytest.mark.parametrize("transform", INTENSITY)
def test_each_intensity_change_followed_by_the_mask_leaves_air_zero(transform):
    item = case()
    out = transform(prob=1.0).set_random_state(1)(item)
    assert not torch.equal(out["image"], item["image"])
    assert torch.equal(out["label"], item["label"])
    masked = mask_background(out["image"], item["foreground"])
    assert torch.equal(masked != 0, item["foreground"] == 1)


def test_image_label_and_foreground_move_alike():
    item = case()
    item["image"] = item["label"] * 2.0 + item["foreground"] * 1.0  # 3 in tumor, 1 in head, 0 in air
    out = RandAffineForegroundd(prob=1.0).set_random_state(2)(item)
    inside, tumor = out["foreground"] == 1, out["label"] == 1
    assert not torch.equal(out["label"], item["label"])
    assert (out["image"][tumor] >= 2 - 1e-4).all()
    assert (out["image"][inside & ~tumor] <= 2 + 1e-4).all()
    assert (out["image"][inside] >= 1 - 1e-4).all()  # air, which is 0, does not leak into the rim


def test_flip_alone_is_exact():
    item = case()
    flip = RandAffineForegroundd(prob=0.0, flip_prob=1.0)
    for key in ("image", "foreground", "label"):
        assert torch.equal(flip(item)[key], item[key].flip(1))


def test_a_quarter_turn_lands_where_it_should():
    item = case((32, 32), 10)
    turn = RandAffineForegroundd(prob=1.0, flip_prob=0.0)
    turn.randomize((32, 32))
    turn._matrix = np.array([[0.0, -1, 0], [1, 0, 0]])  # output (x, y) about the center reads input (-y, x)
    turn._do_transform, turn._flips = True, []
    turn.randomize = lambda data: None
    out = turn(item)
    expected = torch.rot90(item["label"], 1, (1, 2))
    assert torch.equal(out["label"], expected) or torch.equal(out["label"], torch.rot90(item["label"], -1, (1, 2)))
    x, y = 20, 9
    assert out["image"][0, x, y] == pytest.approx(float(item["image"][0, 31 - y, x]), abs=1e-4)


def test_non_square_rotation_keeps_shapes():
    item = case((96, 64), 20)
    out = RandAffineForegroundd(prob=1.0, flip_prob=0.0, scale=0.0, shear=0.0, translate=0.0).set_random_state(5)(item)
    assert int(out["foreground"].sum()) == pytest.approx(int(item["foreground"].sum()), rel=0.03)
    centered = torch.from_numpy(disc((96, 64), 20))
    assert (
        2 * float((centered & (out["foreground"][0] == 1)).sum()) / float(centered.sum() + out["foreground"].sum())
        > 0.97
    )


def test_head_is_never_moved_out_of_the_image():
    item = case()
    away = RandAffineForegroundd(prob=1.0, flip_prob=0.0, translate=5.0).set_random_state(1)
    assert torch.equal(away(item)["image"], item["image"])


def test_blur_of_a_flat_head_changes_nothing_at_its_rim():
    item = case()
    item["image"] = item["foreground"] * 1.5
    out = RandBlurForegroundd(prob=1.0).set_random_state(0)(item)["image"]
    assert torch.allclose(out[item["foreground"] == 1], torch.tensor(1.5), atol=1e-5)


@pytest.mark.parametrize("transform", [RandGammaForegroundd, RandBiasForegroundd])
def test_gamma_and_bias_keep_the_foreground_moments(transform):
    item = case()
    out = transform(prob=1.0).set_random_state(4)(item)["image"]
    values, before = out[item["foreground"] == 1], item["image"][item["foreground"] == 1]
    assert values.mean() == pytest.approx(float(before.mean()), abs=1e-4)
    assert values.std() == pytest.approx(float(before.std()), rel=1e-3)


def test_seed_decides_everything_and_the_label_may_lack():
    item = case()
    runs = [[make_augmentation(64).set_random_state(seed)(item)["image"] for _ in range(1)] for seed in (7, 7, 8)]
    assert torch.equal(runs[0][0], runs[1][0])
    assert not torch.equal(runs[0][0], runs[2][0])
    without = {k: v for k, v in item.items() if k != "label"}
    out = make_augmentation(64).set_random_state(7)(without)
    assert torch.equal(out["image"], runs[0][0])
    assert "label" not in out


@pytest.mark.parametrize("shape", [(20, 14), (8, 10, 12)])
def test_the_grid_is_torchs(shape):
    theta = np.random.default_rng(0).normal(size=(len(shape), len(shape) + 1))
    expected = torch.nn.functional.affine_grid(
        torch.from_numpy(theta.astype(np.float32))[None], [1, 1, *shape], align_corners=False
    )
    assert torch.allclose(_affine_grid(theta, shape), expected, atol=1e-6)


def test_the_bias_field_runs_through_its_three_knots():
    weights = _cubic_weights(5)
    assert np.allclose(weights[[0, 2, 4]], np.eye(3), atol=1e-6)
    assert np.allclose(weights.sum(1), 1, atol=1e-6)


def test_smoothing_is_the_convolution():
    stack = np.random.default_rng(0).normal(size=(2, 9, 7)).astype(np.float32)
    kernel = np.array([0.4, 0.2, 0.1], np.float32)
    whole = np.array([0.1, 0.2, 0.4, 0.2, 0.1])
    for axis in (1, 2):
        expected = np.apply_along_axis(np.convolve, axis, stack, whole, mode="same")
        assert np.allclose(_smooth(stack, kernel, axis), expected, atol=1e-6)
