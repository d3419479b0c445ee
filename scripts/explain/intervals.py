"""95 % intervals over cases that belong together: cases of one patient (or near-duplicate group) count as one draw.

The percentile bootstrap covers too little in small samples (``python -m benchmarks.intervals``), so none is used here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata, t

__all__ = ["AT_LEAST_0", "SHARES", "auc", "auc_values", "mean_interval", "ratio_interval"]

Bounds = tuple[float, float]
SHARES: Bounds = (0.0, 1.0)
AT_LEAST_0: Bounds = (0.0, float("inf"))
LEVEL = 0.95
ROUNDING = 1e-20  # relative variance below which values are alike
# How much the largest variance that values between two bounds can have weighs, in groups: the few cases seen may be
# alike by chance, as three found tumors of three.
PRIOR_GROUPS = 0.2


def group_index(groups: Sequence[Any]) -> tuple[NDArray[np.intp], int]:
    """Index of each case's group (N,), and how many groups there are."""
    index = np.unique(np.asarray(groups), return_inverse=True)[1]
    return index, int(index.max()) + 1 if len(index) else 0


def cluster_variance(residuals: NDArray, total: float, groups: Sequence[Any]) -> tuple[float, int]:
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
        [0.66, 1.0]
    """
    return ratio_interval(values, np.ones(len(values)), groups, bounds, fewest)


def ratio_interval(
    parts: NDArray, wholes: NDArray, groups: Sequence[Any], bounds: Bounds | None = SHARES, fewest: int | None = None
) -> list[float | None]:
    """95 % interval of a ratio of two sums over cases, as of found lesions among all lesions.

    The variance is that of the groups' sums (cluster-robust). Between two bounds: Wilson's interval at the number of
    groups that has this variance, with quantiles of Student's t; the variance is drawn toward the largest possible by
    a fifth of a group, so that cases that are all alike have an interval of some width. Without two bounds: Student's
    t.

    Args:
        parts, wholes: (N,) what is summed above and below, wholes at least 0; a case where either is not finite is
            left out.
        groups: (N,) the patient or near-duplicate group of each case.
        bounds: lowest and highest possible ratio, either may be infinite; None: any value is possible.
        fewest: number of groups that the figure hangs on, where that is not all of them.

    Returns:
        [low, high]; [None, None] of fewer than two groups, where all wholes are 0, or where unbounded values are all
        alike.

    Raises:
        ValueError: when the ratio lies outside the bounds.
    """
    parts, wholes = np.asarray(parts, dtype=np.float64), np.asarray(wholes, dtype=np.float64)
    kept = np.isfinite(parts) & np.isfinite(wholes) & ((wholes != 0) | (parts != 0))
    parts, wholes = parts[kept], wholes[kept]
    total = wholes.sum()
    if total == 0:
        return [None, None]
    mean = float(parts.sum() / total)
    variance, count = cluster_variance(parts - mean * wholes, total, np.asarray(groups)[kept])
    fewest = count if fewest is None else fewest
    if fewest < 2:
        return [None, None]
    low, high = (-np.inf, np.inf) if bounds is None else bounds
    if not low - 1e-9 <= mean <= high + 1e-9:
        raise ValueError(f"{mean:g} over values between {low:g} and {high:g}: give the right bounds")
    if not np.isfinite([low, high]).all():
        if variance <= ROUNDING * mean**2:
            return [None, None]
        half = float(t.ppf((1 + LEVEL) / 2, fewest - 1)) * variance**0.5
        return [max(low, mean - half), min(high, mean + half)]
    share = min(max((mean - low) / (high - low), 0.0), 1.0)
    largest = share * (1 - share)
    freedom = fewest - 1 + PRIOR_GROUPS
    variance = ((fewest - 1) * variance / (high - low) ** 2 + PRIOR_GROUPS * largest / fewest) / freedom
    effective = largest / variance if variance > 0 else float(fewest)
    q = float(t.ppf((1 + LEVEL) / 2, freedom))
    center = (share + q**2 / (2 * effective)) / (1 + q**2 / effective)
    half = q / (1 + q**2 / effective) * (largest / effective + q**2 / (4 * effective**2)) ** 0.5
    # Rounding must not put an end on the wrong side of the mean.
    ends = min(max(center - half, 0.0), share), max(min(center + half, 1.0), share)
    return [low + (high - low) * end for end in ends]


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
    area, found = auc(positive, score), np.empty(len(score))
    for side, sign in ((positive, 1), (~positive, -1)):
        others = np.sort(sign * score[~side])
        own = sign * score[side]
        below = (np.searchsorted(others, own, "left") + np.searchsorted(others, own, "right")) / (2 * len(others))
        found[side] = area + len(score) / side.sum() * (below - area)
    return found
