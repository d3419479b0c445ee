"""Thresholds, temperatures and bins at their limits."""

import math

import numpy as np
import pytest

from scripts.measures.metrics import (
    TEMPERATURES,
    calibration_bins,
    decide,
    expected_calibration_error,
    fit_temperature,
    lifted,
    temperature_at_bound,
)
from scripts.measures.thresholds import choose_threshold


def test_a_probability_at_the_threshold_is_a_tumor():
    assert decide(np.array([[0.0, 0.0], [1.0, 0.0]]), threshold=0.5).tolist() == [1, 0]


@pytest.mark.parametrize(
    ("probability", "threshold"),
    [([0.6, 0.7, 0.8, 0.95], 0.65), ([0.05, 0.2, 0.3, 0.4], 0.35), ([0.1, 0.3, 0.4, 0.9], 0.5)],
)
def test_of_equally_good_thresholds_the_nearest_to_one_half_is_taken(probability, threshold):
    tumor = np.array([False, True, False, True])
    assert choose_threshold(np.array(probability), tumor) == pytest.approx(threshold)


def test_a_temperature_within_a_hundredth_of_its_range_stands_at_the_bound():
    low, high = TEMPERATURES
    assert [temperature_at_bound(t) for t in (low, low * 1.009, low * 1.011)] == [True, True, False]
    assert [temperature_at_bound(t) for t in (high / 1.011, high / 1.009, high)] == [False, True, True]


def test_bins_and_errors_have_ten_bins_unless_asked_otherwise():
    said, happened = np.array([0.05, 0.15, 0.95]), np.array([False, True, True])
    assert [b["high"] for b in calibration_bins(said, happened)] == pytest.approx([k / 10 for k in range(1, 11)])
    assert [(b["low"], b["high"], b["n"]) for b in calibration_bins(said, happened, 2)] == [(0, 0.5, 2), (0.5, 1, 1)]
    assert expected_calibration_error(said, happened) == pytest.approx((0.05 + 0.85 + 0.05) / 3)
    assert expected_calibration_error(said, happened, 2) == pytest.approx((2 * 0.4 + 0.05) / 3)


def test_a_temperature_is_searched_between_its_bounds():
    """Logits ten times too sure, and ten times too unsure by the same share of errors."""
    for scale in (10.0, 0.1):
        logits = scale * np.array([[1.0, 0.0]] * 3 + [[0.0, 1.0]])
        diagnosis = np.array([0, 0, 0, 0])
        assert fit_temperature(logits, diagnosis) == pytest.approx(scale / math.log(3), rel=1e-3)
    low, high = TEMPERATURES
    assert low < 0.1 / math.log(3)
    assert high > 10 / math.log(3)
    assert lifted(logits, 2.0) is logits
    assert lifted(logits, 3.0, np.array([1.0, -1.0])) == pytest.approx(logits + np.array([2.0, -2.0]))
