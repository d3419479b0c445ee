"""Intervals by hand and by simulation: means, ratios, AUC, balanced accuracy; groups count, not cases."""

from __future__ import annotations

import math

import numpy as np
import pytest
from sklearn import metrics as sk

from benchmarks.intervals import DISTANCES, SHARES_OF, auc_coverage, coverage, held
from scripts.measures.intervals import (
    AT_LEAST_0,
    UNBOUNDED,
    auc_interval,
    auc_values,
    case_summary,
    column_summary,
    fewest_groups,
    mean_interval,
    recall_values,
    standard_error,
)

VALUES = np.array([0.0, 0.1, 0.2, 0.8, 0.9, 1.0])


def test_interval_of_one_group_is_none_and_not_of_width_0():
    assert mean_interval(VALUES, ["a"] * 6) == [None, None]
    assert auc_interval(VALUES > 0.5, VALUES, list("aaabbb")) == [None, None], "one patient of each kind"
    summary = case_summary(VALUES, ["a"] * 6)
    assert (summary["n"], summary["clusters"], summary["mean"], summary["ci95"]) == (6, 1, 0.5, [None, None])
    # Two patients, of whom one has a value: the same.
    assert case_summary(np.array([0.5, 0.7, np.nan]), ["a", "a", "b"])["ci95"] == [None, None]
    assert case_summary(np.array([0.5, 0.7, 0.9]), ["a", "a", "b"])["clusters"] == 2


def test_balanced_accuracy_is_the_mean_of_its_values():
    rng = np.random.default_rng(0)
    true, predicted = rng.integers(0, 3, 50), rng.integers(0, 3, 50)
    assert recall_values(true, predicted).mean() == pytest.approx(sk.balanced_accuracy_score(true, predicted))
    # its variance is that of independent recalls, a third each
    recalls = [(predicted[true == k] == k) for k in range(3)]
    expected = sum(r.var() / len(r) for r in recalls) / 9
    assert recall_values(true, predicted).var() / 50 == pytest.approx(expected)


def test_summary_by_hand_leaves_out_undefined_cases():
    result = case_summary(np.array([0.2, np.nan, 0.4, 0.9]), ["a", "b", "c", "d"])
    assert result["n"] == 3
    assert result["mean"] == pytest.approx(0.5)
    assert result["std"] == pytest.approx(math.sqrt((0.09 + 0.01 + 0.16) / 2))
    assert result["median"] == pytest.approx(0.4)
    assert result["ci95"] == mean_interval(np.array([0.2, 0.4, 0.9]), ["a", "c", "d"])


def test_summary_of_nothing_is_none_and_of_one_case_has_no_interval():
    nothing = {"n": 0, "clusters": 0, "mean": None, "std": None, "median": None, "ci95": [None, None]}
    assert case_summary(np.array([np.nan, np.nan]), ["a", "b"]) == nothing
    assert case_summary(np.empty(0), []) == nothing
    assert case_summary(np.array([0.7]), ["a"]) == {
        "n": 1, "clusters": 1, "mean": 0.7, "std": 0.0, "median": 0.7, "ci95": [None, None],
    }  # fmt: skip


# Of 400 samples a coverage of 0.95 is found between 0.92 and 0.98.
@pytest.mark.parametrize("name", SHARES_OF)
@pytest.mark.parametrize("n", [5, 10, 20, 50])
def test_intervals_hold_the_truth_as_often_as_they_say(name, n):
    found, _ = coverage(SHARES_OF[name], n, 400, np.random.default_rng(0), bootstrap=False)
    assert found >= 0.92


@pytest.mark.parametrize("n", [20, 50])
def test_intervals_of_distances_hold_the_truth(n):
    found, _ = coverage(DISTANCES["HD95, a long tail"], n, 400, np.random.default_rng(0), AT_LEAST_0, bootstrap=False)
    assert found >= 0.92


def test_a_sample_without_a_miss_does_not_exclude_that_there_are_some():
    """Ten found tumors: an eighth that is missed, as in truth, lies in the interval."""
    low, high = mean_interval(np.random.default_rng(0).beta(90, 10, 10), np.arange(10))
    assert low < 0.9 * 7 / 8 < 0.9 < high


def test_the_interval_of_a_rate_holds_it_wherever_it_lies():
    for n in (5, 20, 200):
        ends = np.array([mean_interval(np.arange(n) < k, np.arange(n)) for k in range(n + 1)], dtype=float)
        assert min(held(ends, p) for p in np.linspace(0.002, 0.998, 333)) >= 0.95


def test_interval_of_the_auc_holds_the_truth():
    assert auc_coverage(50, 400, np.random.default_rng(0)) >= 0.92


def test_values_of_recall_have_the_balanced_accuracy_as_their_mean():
    """0.75 +- 3 / (2 classes * cases of the class) * (right - recall of the class)."""
    values = recall_values(np.array([0, 0, 1]), np.array([0, 1, 1]))
    assert values.tolist() == [0.75 + 0.75 * 0.5, 0.75 - 0.75 * 0.5, 0.75]


def test_an_auc_needs_two_groups_a_side():
    score = np.array([0.9, 0.4, 0.6, 0.1])
    positive = np.array([True, True, False, False])
    low, high = auc_interval(positive, score, ["a", "b", "c", "d"])
    assert 0 <= low < 0.75 < high <= 1
    assert auc_interval(positive, score, ["a", "a", "c", "d"]) == [None, None]
    assert auc_interval(positive, score, ["a", "b", "c", "c"]) == [None, None]


def test_distances_have_no_upper_bound_also_those_of_one_region():
    for name, bounded in (("hd95", False), ("hd95_mm_tumor_core", False), ("dice", True)):
        rows = [{name: value, "cluster": cluster} for cluster, value in enumerate((0.1, 0.9, 0.9, 0.9))]
        assert (column_summary(rows, name)["ci95"][1] <= 1) == bounded


def test_the_side_with_fewest_groups_counts():
    groups = ["a", "a", "b", "c", "c"]
    assert fewest_groups(groups, np.array([True, True, False, False, False])) == 1
    assert fewest_groups(groups, np.array([True] * 5), np.array([False, True, True, False, False])) == 2
    assert fewest_groups(groups, np.zeros(5, bool), np.ones(5, bool)) == 0


def test_an_auc_hangs_on_its_scarcer_side():
    rng = np.random.default_rng(0)
    positive = np.arange(40) < 5
    score = rng.random(40) + positive
    ends = auc_interval(positive, score, np.arange(40))
    assert ends == pytest.approx(mean_interval(auc_values(positive, score), np.arange(40), fewest=5))
    assert ends[0] < mean_interval(auc_values(positive, score), np.arange(40))[0]


def test_the_standard_error_of_a_mean_is_by_group():
    values = np.array([0.1, 0.3, 0.8, 0.9])
    assert standard_error(values, list("abcd")) == pytest.approx(values.std(ddof=1) / 2)
    # Two groups of two: half of the difference of their means.
    assert standard_error(values, list("aabb")) == pytest.approx((0.85 - 0.2) / 2)
    assert standard_error(values, list("aaaa")) is None


@pytest.mark.parametrize("name", [*UNBOUNDED, "hd95_mm_tumor_core"])
def test_measures_without_an_upper_bound_may_exceed_one_and_none_is_below_0(name):
    rows = [{name: value, "cluster": cluster} for cluster, value in enumerate((0.0, 0.0, 0.0, 40.0))]
    summary = column_summary([*rows, {name: None, "cluster": 9}], name)
    assert (summary["n"], summary["mean"], summary["median"]) == (4, 10.0, 0.0)
    assert summary["ci95"][0] == 0
    assert summary["ci95"][1] > 10
    with pytest.raises(ValueError, match="give the right bounds"):
        column_summary([{"dice": row[name], "cluster": row["cluster"]} for row in rows], "dice")
