"""Thresholds of the masks: Dice at each of them by hand, and which one is chosen."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from monai.metrics import compute_dice

from scripts.measures.thresholds import DEFAULT, LEAST, THRESHOLDS, choose_mask_threshold, mask_curve
from scripts.networks.regions import region_log_odds, region_masks

MIDDLE = THRESHOLDS.index(DEFAULT)


@pytest.mark.parametrize("nested", [True, False])
def test_the_curve_is_the_dice_of_the_masks_at_each_threshold(nested):
    generator = torch.Generator().manual_seed(0)
    seg = torch.randn(1, 2, 12, 10, 8, generator=generator)
    truth = torch.rand(1, 1, 12, 10, 8, generator=generator) > 0.6
    curve = mask_curve(region_log_odds(seg, nested)[0, 0], truth[0, 0])
    for threshold, dice in zip(THRESHOLDS, curve, strict=True):
        mask = region_masks(seg, nested, torch.full((2 if nested else 1,), threshold))[:, :1]
        assert dice == pytest.approx(float(compute_dice(mask.float(), truth.float())))


def test_of_a_case_without_the_region_the_curve_says_whether_anything_is_marked():
    odds = torch.logit(torch.tensor([0.12, 0.62]))
    curve = mask_curve(odds, torch.zeros(2))
    assert curve.tolist() == [float(threshold < 0.62) for threshold in THRESHOLDS]


def curves(best: float, count: int = LEAST) -> np.ndarray:
    """Dice of cases that is highest at one threshold."""
    return np.tile(0.9 - np.abs(np.array(THRESHOLDS) - best), (count, 1))


NONE = np.zeros((0, len(THRESHOLDS)))


def test_the_threshold_of_the_best_mean_dice_is_chosen_and_words_say_what_it_brings():
    found, words = choose_mask_threshold(curves(0.3), [str(k) for k in range(LEAST)], NONE)
    assert found == 0.3
    assert words == "0.3 (mean Dice 0.900, 0.700 at 0.5; 10 patients)"


def test_too_few_patients_leave_it_at_one_half_however_many_cases_they_have():
    cases = curves(0.3, 40)
    found, words = choose_mask_threshold(cases, [str(k % (LEAST - 1)) for k in range(40)], NONE)
    assert found == DEFAULT
    assert words.startswith("0.5 (9 of the 10 patients with it")
    assert choose_mask_threshold(NONE, [], NONE)[0] == DEFAULT


def test_a_threshold_that_marks_more_of_the_others_is_not_chosen():
    patients = [str(k) for k in range(LEAST)]
    free = np.tile((np.array(THRESHOLDS) < 0.45).astype(float), (5, 1))  # marked below 0.45 in each
    assert choose_mask_threshold(curves(0.3), patients, free)[0] == 0.45
    assert choose_mask_threshold(curves(0.7), patients, free)[0] == 0.7


def test_thresholds_that_are_as_good_give_way_to_one_half():
    assert choose_mask_threshold(np.ones((LEAST, len(THRESHOLDS))), [str(k) for k in range(LEAST)], NONE)[0] == DEFAULT


def test_thresholds_lie_evenly_on_both_sides_of_one_half():
    assert np.diff(THRESHOLDS) == pytest.approx(np.full(len(THRESHOLDS) - 1, THRESHOLDS[1] - THRESHOLDS[0]))
    assert np.array(THRESHOLDS) + np.array(THRESHOLDS[::-1]) == pytest.approx(np.ones(len(THRESHOLDS)))
    assert len(set(THRESHOLDS)) == len(THRESHOLDS) > 9
    assert 0 < min(THRESHOLDS) <= 0.1


@pytest.mark.parametrize(("gain", "best"), [(4e-7, DEFAULT), (2e-6, THRESHOLDS[-1])])
def test_a_gain_of_rounding_is_none(gain, best):
    dice = np.full((LEAST, len(THRESHOLDS)), 0.5)
    dice[:, -1] += gain
    assert choose_mask_threshold(dice, [str(k) for k in range(LEAST)], NONE)[0] == best


def test_a_threshold_that_marks_as_many_of_the_others_may_be_chosen():
    patients, free = [str(k) for k in range(LEAST)], np.zeros((4, len(THRESHOLDS)))
    free[0, : MIDDLE + 1] = 1  # down to 0.1 the same one
    assert choose_mask_threshold(curves(0.3), patients, free)[0] == 0.3
    free[1, :MIDDLE] = 1
    assert choose_mask_threshold(curves(0.3), patients, free)[0] == DEFAULT


def test_cases_count_once_in_the_mean_of_the_curve():
    dice = np.zeros((LEAST + 1, len(THRESHOLDS)))
    dice[:6, 0], dice[6:, -1] = 0.5, 0.55  # 3.0 of 11 against 2.75
    found, words = choose_mask_threshold(dice, [str(k) for k in range(LEAST + 1)], NONE)
    assert found == THRESHOLDS[0]
    assert words == f"0.1 (mean Dice {3 / 11:.3f}, 0.000 at 0.5; 11 patients)"
