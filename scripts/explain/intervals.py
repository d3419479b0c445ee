"""95 % intervals over cases that belong together: cases of one patient (or near-duplicate group) count as one draw.

Every limit adds one more patient who is as bad as one can be on that side: the few cases seen may be alike by chance,
as ten found tumors of ten. Of a rate this is the exact interval of Clopper and Pearson. Student's interval, Wilson's
and the percentile bootstrap hold the truth too seldom where most cases are alike and a few are far away
(``python -m benchmarks.intervals``).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

# Bit for bit those of scipy.stats.beta and t, which take 30 times as long to check one argument.
from scipy.special import betainc, betaincinv, stdtrit
from scipy.stats import rankdata

__all__ = ["AT_LEAST_0", "SHARES", "auc", "auc_values", "mean_interval", "ratio_interval", "share_below"]

Bounds = tuple[float, float]
SHARES: Bounds = (0.0, 1.0)
SLACK = 1e-6  # by which a mean of values in single precision may miss its bounds
AT_LEAST_0: Bounds = (0.0, float("inf"))
_TAIL = 0.025  # on either side of a 95 % interval
ROUNDING = 1e-20  # relative variance below which values are alike
# Without a bound the one more patient lies so many times as far from the mean as the furthest that was seen.
FURTHER = 2.0


def group_index(groups: Sequence[Any] | NDArray) -> tuple[NDArray[np.intp], int]:
    """Index of each case's group (N,), and how many groups there are."""
    index = np.unique(np.asarray(groups), return_inverse=True)[1]
    return index, int(index.max()) + 1 if len(index) else 0


def cluster_variance(residuals: NDArray, total: float, groups: Sequence[Any] | NDArray) -> tuple[float, int]:
    """Variance of a sum of residuals over a fixed total, of groups that are independent of each other.

    Args:
        residuals: (N,) of each case, adding up to 0.
        total: what the sum is divided by.
        groups: (N,) the patient or near-duplicate group of each case.

    Returns:
        the variance, NaN of fewer than two groups, and the number of groups.
    """
    index, count = group_index(groups)
    if count < 2:
        return float("nan"), count
    sums = np.bincount(index, residuals, minlength=count)
    return float(count / (count - 1) * (sums**2).sum() / total**2), count


def mean_interval(
    values: NDArray, groups: Sequence[Any], bounds: Bounds | None = SHARES, fewest: int | None = None
) -> list[float | None]:
    """95 % interval of a mean over cases; see `ratio_interval`.

    Example:
        >>> [round(limit, 2) for limit in mean_interval([1, 1, 1, 1, 1, 1, 1, 1, 1, 1], list("abcdefghij"))]
        [0.69, 1.0]
    """
    return ratio_interval(values, np.ones(len(values)), groups, bounds, fewest)


def ratio_interval(
    parts: NDArray, wholes: NDArray, groups: Sequence[Any], bounds: Bounds | None = SHARES, fewest: int | None = None
) -> list[float | None]:
    """95 % interval of a ratio of two sums over cases, as of found lesions among all lesions.

    Each limit is the 2.5 % point of what the ratio can be in truth with one more group of the worst value on its side.
    Where that side has a bound, the worst value is the bound, and the distribution the Beta distribution that has mean
    and variance of the Bayesian bootstrap (Rubin 1981) of the groups with it: of a rate the exact interval of Clopper
    and Pearson, of other values nearly the bound of Gaffke (2005). Where it has none, the worst group lies `FURTHER`
    times as far from the ratio as the furthest, and the distribution is Student's.

    Args:
        parts, wholes: (N,) what is summed above and below, wholes at least 0; a case where either is not finite is
            left out.
        groups: (N,) the patient or near-duplicate group of each case.
        bounds: lowest and highest possible ratio, either may be infinite; None: any value is possible.
        fewest: number of groups that the figure hangs on, where that is not all of them.

    Returns:
        [low, high]; [None, None] of fewer than two groups, where all wholes are 0, or where values without two bounds
        are all alike.

    Raises:
        ValueError: when the ratio lies outside the bounds.

    Source: Phan, Thomas, Learned-Miller 2021, "Towards Practical Mean Bounds for Small Samples", section 2.
    """
    parts, wholes = np.asarray(parts, dtype=np.float64), np.asarray(wholes, dtype=np.float64)
    kept = np.isfinite(parts) & np.isfinite(wholes) & ((wholes != 0) | (parts != 0))
    parts, wholes = parts[kept], wholes[kept]
    total = wholes.sum()
    if total == 0:
        return [None, None]
    mean = float(parts.sum() / total)
    index, count = group_index(np.asarray(groups)[kept])
    variance, _ = cluster_variance(parts - mean * wholes, total, index)
    # How far each group lies from the mean, by its weight.
    apart = np.bincount(index, parts - mean * wholes) * count / total
    count = count if fewest is None else fewest
    if count < 2:
        return [None, None]
    low, high = (-np.inf, np.inf) if bounds is None else bounds
    if not low - SLACK <= mean <= high + SLACK:
        raise ValueError(f"{mean:g} over values between {low:g} and {high:g}: give the right bounds")
    if np.isfinite([low, high]).all():
        width = high - low
        share = min(max((mean - low) / width, 0.0), 1.0)
        below, above = (_beta(share, variance / width**2, count, worst) for worst in (0.0, 1.0))
        # A Beta distribution without one of its sides stands still at that bound.
        ends = betaincinv(*below, _TAIL) if below[0] else 0.0, betaincinv(*above, 1 - _TAIL) if above[1] else 1.0
        # Rounding must not put an end on the wrong side of the mean.
        return [low + width * min(float(ends[0]), share), low + width * max(float(ends[1]), share)]
    if variance <= ROUNDING * mean**2:
        return [None, None]
    limits = []
    for side in (-1, 1):
        center, error = with_one_more(mean, variance, count, side * FURTHER * float((side * apart).max()))
        limits.append(center + side * float(stdtrit(count - 1, 1 - _TAIL)) * error)
    return [max(low, min(limits[0], mean)), min(high, max(limits[1], mean))]


def _beta(share: float, variance: float, count: int, worst: float) -> tuple[float, float]:
    """Parameters of the distribution of a share when one more group of the worst value is added.

    Args:
        share: measured, 0..1.
        variance: of it, by group.
        count: groups.
        worst: 0 or 1.
    """
    mean = (count * share + worst) / (count + 1)
    # Sum of squares of the groups, and that of the one more; divided as in the Dirichlet distribution of their weights.
    squares = variance * count * (count - 1) + (share - worst) ** 2 * count / (count + 1)
    spread = squares / ((count + 1) * (count + 2))
    largest = mean * (1 - mean)
    if largest <= 0:
        return (0.0, 1.0) if mean < 0.5 else (1.0, 0.0)
    size = max(largest / spread - 1, 1e-6)
    return mean * size, (1 - mean) * size


def share_below(share: float, variance: float, count: int, limit: float) -> float:
    """Probability that a share is below a limit in truth, as the lower limit of `ratio_interval` takes it.

    Of a rate it is the p-value of the exact binomial test.

    Args:
        share: measured, 0..1.
        variance: of it, by group (`cluster_variance`).
        count: groups.
        limit: 0..1.

    Example:
        >>> round(share_below(1.0, 0.0, 22, 0.9), 3), round(0.9**22, 3)
        (0.098, 0.098)
    """
    a, b = _beta(share, variance, count, 0.0)
    return float(betainc(a, b, limit)) if a else 1.0


def with_one_more(mean: float, variance: float, count: int, distance: float) -> tuple[float, float]:
    """Mean and its standard error when one more group at a distance from the mean is added.

    Args:
        mean: measured.
        variance: of it, by group.
        count: groups.
        distance: of the one more from the mean, below it negative.
    """
    squares = variance * count * (count - 1) + distance**2 * count / (count + 1)
    return mean + distance / (count + 1), float((squares / ((count + 1) * count)) ** 0.5)


def auc(positive: NDArray, score: NDArray) -> float:
    """Area under the ROC curve by ranks, equal scores counted half; NaN when one side is empty.

    Args:
        positive: bool (N,).
        score: (N,), higher for positive.
    """
    positive = np.asarray(positive, dtype=bool)
    count, others = int(positive.sum()), int((~positive).sum())
    if count == 0 or others == 0:
        return float("nan")
    ranks = rankdata(score)
    return float((ranks[positive].sum() - count * (count + 1) / 2) / (count * others))


def auc_values(positive: NDArray, score: NDArray) -> NDArray[np.float64]:
    """One value a case (N,) whose mean is the AUC and whose variance is that of the AUC (DeLong's placements).

    Args:
        positive: bool (N,), of both kinds.
        score: (N,), higher for positive.
    """
    positive, score = np.asarray(positive, dtype=bool), np.asarray(score, dtype=np.float64)
    area, values = auc(positive, score), np.empty(len(score))
    for side, sign in ((positive, 1), (~positive, -1)):
        others = np.sort(sign * score[~side])
        scores = sign * score[side]
        below = (np.searchsorted(others, scores, "left") + np.searchsorted(others, scores, "right")) / (2 * len(others))
        values[side] = area + len(score) / side.sum() * (below - area)
    return values
