"""Figures over cases with their 95 % intervals: means, rates, AUC and balanced accuracy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scripts.explain.intervals import (
    AT_LEAST_0,
    SHARES,
    Bounds,
    auc,
    auc_values,
    cluster_variance,
    mean_interval,
    ratio_interval,
)

__all__ = [
    "AT_LEAST_0",
    "METHOD",
    "SHARES",
    "auc",
    "auc_interval",
    "auc_values",
    "case_summary",
    "column_summary",
    "mean_interval",
    "ratio_interval",
    "recall_values",
    "standard_error",
]

METHOD = (
    "95 % intervals with one more patient of the worst value on either side (of rates Clopper and Pearson's; Student's "
    "with one twice as far as the furthest where values have no bound, which misses rare far values of 20 patients and "
    "fewer)"
)
# Measures of a case that have no upper bound.
UNBOUNDED = ("hd95", "hd95_mm", "n", "predicted_ml", "predicted_mm2", "predicted_pixels", "false_lesions")


def fewest_groups(groups: Sequence[Any], *sides: NDArray) -> int:
    """Number of groups on the side that has fewest.

    Args:
        groups: (N,) of each case.
        sides: bool (N,) each.
    """
    named = np.asarray(groups)
    return min(len(np.unique(named[side])) for side in sides)


def auc_interval(positive: NDArray, score: NDArray, groups: Sequence[Any]) -> list[float | None]:
    """95 % interval of the AUC; [None, None] where a side has fewer than two groups.

    Args:
        positive: bool (N,).
        score: (N,), higher for positive.
        groups: (N,) the patient or near-duplicate group of each case.
    """
    positive = np.asarray(positive, dtype=bool)
    fewest = fewest_groups(groups, positive, ~positive)
    return [None, None] if fewest < 2 else mean_interval(auc_values(positive, score), groups, fewest=fewest)


def recall_values(true: NDArray, predicted: NDArray) -> NDArray[np.float64]:
    """One value a case (N,) whose mean is the balanced accuracy over the classes there are, and whose variance is its.

    Args:
        true, predicted: int (N,), N at least 1.
    """
    classes, index, counts = np.unique(true, return_inverse=True, return_counts=True)
    right = (np.asarray(true) == np.asarray(predicted)).astype(float)
    recall = np.bincount(index, right) / counts
    return recall.mean() + len(index) / (len(classes) * counts[index]) * (right - recall[index])


def standard_error(values: NDArray, groups: Sequence[Any]) -> float | None:
    """Standard error of a mean over cases, by group; None of fewer than two.

    Args:
        values: (N,).
        groups: (N,) the patient or near-duplicate group of each case.
    """
    values = np.asarray(values, dtype=float)
    variance, count = cluster_variance(values - values.mean(), len(values), groups)
    return None if count < 2 else variance**0.5


def case_summary(values: NDArray, groups: Sequence[Any], bounds: Bounds | None = SHARES) -> dict[str, Any]:
    """Figures over cases: {n, clusters, mean, std, median, ci95}; NaN (undefined) cases are left out.

    ``clusters`` counts the patients or groups; of fewer than two there is no interval.

    Args:
        values: (N,).
        groups: (N,) the patient or near-duplicate group of each case.
        bounds: of `mean_interval`.
    """
    values = np.asarray(values, dtype=float)
    defined = np.isfinite(values)
    kept, kept_groups = values[defined], np.asarray(groups)[defined]
    if len(kept) == 0:
        return {"n": 0, "clusters": 0, "mean": None, "std": None, "median": None, "ci95": [None, None]}
    return {
        "n": len(kept),
        "clusters": len(set(kept_groups.tolist())),
        "mean": float(kept.mean()),
        "std": float(kept.std(ddof=1)) if len(kept) > 1 else 0.0,
        "median": float(np.median(kept)),
        "ci95": mean_interval(kept, list(kept_groups), bounds=bounds),
    }


def column_summary(rows: Sequence[Mapping[str, Any]], name: str) -> dict[str, Any]:
    """`case_summary` of a column, with the bounds that its name has.

    Args:
        rows: of cases, with the column and ``cluster``, the patient or group; None is undefined.
        name: of the column.
    """
    values = np.array([row[name] for row in rows], dtype=float)
    unbounded = name in UNBOUNDED or name.startswith("hd95_mm_")  # the latter of one region
    return case_summary(values, [row["cluster"] for row in rows], AT_LEAST_0 if unbounded else SHARES)
