"""Intervals by hand and against other libraries: means, ratios and AUC; groups count, not cases."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.stats import beta, binomtest, t
from sklearn import metrics as sk

from scripts.explain.intervals import (
    AT_LEAST_0,
    auc,
    auc_values,
    cluster_variance,
    group_index,
    mean_interval,
    ratio_interval,
    share_below,
    with_one_more,
)

VALUES = np.array([0.0, 0.1, 0.2, 0.8, 0.9, 1.0])


def with_worst(mean, variance, count):
    """Ends of the Beta distributions that have mean and variance of the groups, with one more at the bound."""
    ends = []
    for worst, tail in ((0, 0.025), (1, 0.975)):
        center = (count * mean + worst) / (count + 1)
        squares = variance * count * (count - 1) + (mean - worst) ** 2 * count / (count + 1)
        size = center * (1 - center) / (squares / ((count + 1) * (count + 2))) - 1
        ends.append(beta.ppf(tail, center * size, (1 - center) * size))
    return ends


@pytest.mark.parametrize(("right", "n"), [(7, 10), (0, 5), (50, 50), (1, 200)])
def test_interval_of_a_rate_is_that_of_clopper_and_pearson(right, n):
    values = np.arange(n) < right
    expected = binomtest(right, n).proportion_ci(method="exact")
    assert mean_interval(values, np.arange(n)) == pytest.approx([expected.low, expected.high])
    if right > n / 2:
        variance = values.var(ddof=1) / n
        assert share_below(right / n, variance, n, 0.5) == pytest.approx(
            binomtest(right, n, alternative="greater").pvalue
        )


def test_bounded_mean_by_hand():
    """Of 0.5, 0.75, 1, 0.75 with a zero the mean is 0.6, the sum of squares 0.575, with a one 0.8 and 0.175."""
    values = np.array([0.5, 0.75, 1.0, 0.75])
    ends = []
    for center, squares, tail in ((0.6, 0.575, 0.025), (0.8, 0.175, 0.975)):
        size = center * (1 - center) / (squares / 30) - 1
        ends.append(beta.ppf(tail, center * size, (1 - center) * size))
    assert mean_interval(values, list("abcd")) == pytest.approx(ends)
    assert ends == pytest.approx(with_worst(0.75, values.var(ddof=1) / 4, 4))
    # ... and on another scale
    assert mean_interval(10 * values - 5, list("abcd"), (-5.0, 5.0)) == pytest.approx([10 * end - 5 for end in ends])


def test_unbounded_mean_is_that_of_student_with_one_more_twice_as_far():
    values = np.random.default_rng(0).normal(10, 2, size=40)
    ends = mean_interval(values, np.arange(40), None)
    for sign, end in zip((-1, 1), ends, strict=True):
        furthest = values.min() if sign < 0 else values.max()
        more = np.append(values, values.mean() + 2 * (furthest - values.mean()))
        assert end == pytest.approx(more.mean() + sign * t.ppf(0.975, 39) * more.std(ddof=1) / math.sqrt(41))
    assert mean_interval([0.0, 0.0, 9.0], list("abc"), AT_LEAST_0)[0] == 0.0, "no distance is below 0"
    assert mean_interval([3.0, 3.0, 3.0], list("abc"), None) == [None, None], "values alike say nothing of others"
    with pytest.raises(ValueError, match="over values between 0 and 1: give the right bounds"):
        mean_interval(values, np.arange(40))


def test_cases_that_are_all_alike_have_an_interval():
    low, high = mean_interval(np.ones(44), np.arange(44))
    assert high == 1.0
    assert low == pytest.approx(0.025 ** (1 / 44)), "of 44 without a miss up to a twelfth may be missed"
    assert mean_interval(np.zeros(44), np.arange(44)) == pytest.approx([0.0, 1 - low])


def test_interval_is_clustered_by_group():
    # Ten slices of a patient are one patient: copies do not narrow the interval.
    single = mean_interval(VALUES, list("abcdef"))
    copies = np.repeat(VALUES, 10)
    assert mean_interval(copies, [g for g in "abcdef" for _ in range(10)]) == pytest.approx(single)
    naive = mean_interval(copies, np.arange(60))
    assert naive[1] - naive[0] < 0.5 * (single[1] - single[0])


def test_ratio_weighs_cases_by_what_they_hold():
    found, lesions = np.array([1.0, 3.0, 0.0]), np.array([1.0, 4.0, 1.0])
    sums = found - 4 / 6 * lesions
    variance = 3 / 2 * (sums**2).sum() / 36
    assert ratio_interval(found, lesions, list("abc")) == pytest.approx(with_worst(4 / 6, variance, 3))
    assert ratio_interval(np.zeros(3), np.zeros(3), list("abc")) == [None, None]


def test_auc_and_its_values_equal_those_of_scikit_learn():
    rng = np.random.default_rng(0)
    positive, score = rng.random(60) < 0.4, np.round(rng.random(60), 1)  # rounded: ties
    assert auc(positive, score) == pytest.approx(sk.roc_auc_score(positive, score))
    assert auc_values(positive, score).mean() == pytest.approx(auc(positive, score))
    assert math.isnan(auc(np.ones(3, bool), score[:3]))


def test_groups_are_numbered_and_counted():
    index, count = group_index(["b", "a", "b"])
    assert (index.tolist(), count) == ([1, 0, 1], 2)
    assert group_index([])[1] == 0


def test_variance_of_a_mean_is_that_of_its_groups():
    values = np.array([1.0, 3.0, 8.0])
    assert cluster_variance(values - 4, 3, list("abc")) == (pytest.approx(values.var(ddof=1) / 3), 3)
    variance, count = cluster_variance(values - 4, 3, list("aaa"))
    assert (math.isnan(variance), count) == (True, 1)


def test_one_more_at_a_distance_by_hand():
    mean, error = with_one_more(2.0, 1.0, 2, 6.0)  # 1 and 3, and one more at 2 + 6
    assert (mean, error) == (4.0, pytest.approx(np.std([1, 3, 8], ddof=1) / math.sqrt(3)))
    mean, error = with_one_more(2.0, 1.0, 2, -6.0)
    assert (mean, error) == (0.0, pytest.approx(np.std([1, 3, -4], ddof=1) / math.sqrt(3)))


def test_bounds_hold_but_for_rounding():
    values = np.array([1.0, 1.0, 1.0, 1.0 + 2e-6])  # a mean of single precision
    assert mean_interval(values, list("abcd"))[1] == 1.0
    for wrong in (values + 0.01, -values / 100):
        with pytest.raises(ValueError, match="give the right bounds"):
            mean_interval(wrong, list("abcd"))
    low, high = mean_interval(np.array([0.9, 0.9, 0.1]), list("abc"), (-np.inf, 1.0))
    assert low < 0 < 0.9 < high == 1.0, "one end has a bound"
    distances = mean_interval(np.array([2.0, 3.0, 7.0]), list("abc"), AT_LEAST_0)
    assert distances[0] == 0.0 < 7 < distances[1]
    free = mean_interval(np.array([2.0, 3.0, 7.0]), list("abc"), None)
    assert free[0] < 0
    assert free[1] == distances[1]


def test_cases_of_nothing_and_values_that_are_not_finite_are_left_out():
    parts, wholes = np.array([1.0, 3.0, 0.0]), np.array([1.0, 4.0, 1.0])
    expected = ratio_interval(parts, wholes, list("abc"))
    for part, whole in ((0.0, 0.0), (np.nan, 1.0), (1.0, np.inf)):
        more = ratio_interval(np.append(parts, part), np.append(wholes, whole), list("abcd"))
        assert more == pytest.approx(expected)
    with_part = ratio_interval(np.append(parts, 0.5), np.append(wholes, 0.0), list("abcd"))
    assert with_part != pytest.approx(expected), "what is counted in no whole counts in the sum"


def test_the_figure_may_hang_on_fewer_groups_than_there_are():
    values = np.array([0.2, 0.4, 0.9, 0.5])
    all_groups = mean_interval(values, list("abcd"))
    assert mean_interval(values, list("abcd"), fewest=4) == all_groups
    assert mean_interval(values, list("abcd"), fewest=1) == [None, None]
    low, high = mean_interval(values, list("abcd"), fewest=2)
    assert low < all_groups[0] < all_groups[1] < high
    assert mean_interval(values[:2], list("ab")) != [None, None], "two are enough"
    assert mean_interval(values[:2], list("aa")) == [None, None]


def test_unbounded_values_that_are_alike_but_for_rounding_have_no_interval():
    assert mean_interval(np.array([3.0, 3.0 + 1e-13, 3.0]), list("abc"), None) == [None, None]
    assert mean_interval(np.zeros(3), list("abc"), None) == [None, None]
    low, high = mean_interval(np.array([3.0, 3.0 + 1e-6, 3.0]), list("abc"), None)
    assert low < 3.0 < high


def test_a_share_of_none_is_below_any_limit_and_one_of_all_seldom():
    assert share_below(0.0, 0.0, 5, 0.3) == 1.0
    assert share_below(1.0, 0.0, 5, 0.3) == pytest.approx(0.3**5)


def test_auc_values_by_hand():
    # 0.9 beats both others, 0.4 beats one: area 3/4. Placements 1, 1/2 and 1/2, 1, each moved from the area by 4 / 2.
    positive, score = [True, True, False, False], [0.9, 0.4, 0.6, 0.1]
    assert auc(positive, score) == 0.75
    assert auc_values(positive, score).tolist() == [1.25, 0.25, 0.25, 1.25]
    assert auc([True, False], [1.0, 1.0]) == 0.5
    assert math.isnan(auc([False, False], [1.0, 2.0]))
