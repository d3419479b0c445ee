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
    units = [str(k) for k in range(LEAST)]
    free = np.tile((np.array(THRESHOLDS) < 0.45).astype(float), (5, 1))  # marked below 0.45 in each
    assert choose_mask_threshold(curves(0.3), units, free)[0] == 0.45
    assert choose_mask_threshold(curves(0.7), units, free)[0] == 0.7


def test_thresholds_that_are_as_good_give_way_to_one_half():
    assert choose_mask_threshold(np.ones((LEAST, len(THRESHOLDS))), [str(k) for k in range(LEAST)], NONE)[0] == DEFAULT
