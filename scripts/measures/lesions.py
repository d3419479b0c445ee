"""Lesion-wise detection: connected tumors of a mask found or missed, and predicted ones that are none."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from scripts.measures.intervals import column_summary, ratio_interval

__all__ = ["FOUND_SHARE", "count_lesions", "lesion_summary"]

FOUND_SHARE = 0.1  # of a lesion's pixels that a prediction has to cover
RULE = (
    "a lesion is a connected component of the mask (pixels that touch at a corner are connected), found if at least "
    f"{FOUND_SHARE:.0%} of it is predicted; a false one is a predicted component that shares no pixel with a lesion"
)


def count_lesions(predicted: NDArray, label: NDArray) -> dict[str, int]:
    """Lesions of one case.

    Args:
        predicted, label: (X, Y[, Z]), non-zero in tumor.

    Returns:
        {"lesions", "lesions_found", "false_lesions"}, see `RULE`.
    """
    touching = np.ones((3,) * label.ndim, dtype=int)
    said, true = predicted != 0, label != 0
    lesions, count = ndimage.label(true, structure=touching)
    shares = ndimage.mean(said, lesions, index=range(1, count + 1)) if count else []
    components, predictions = ndimage.label(said, structure=touching)
    hits = ndimage.maximum(true, components, index=range(1, predictions + 1)) if predictions else []
    return {
        "lesions": count,
        "lesions_found": int(np.sum(np.asarray(shares) >= FOUND_SHARE)),
        "false_lesions": int(np.sum(np.asarray(hits) == 0)),
    }


def lesion_summary(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Lesion-wise figures over cases with a mask.

    Args:
        rows: of `scripts.evaluation.evaluation.CaseResults`; those without a mask are left out.

    Returns:
        {n lesions, found, sensitivity, sensitivity_ci95, false_per_image S over all masked images,
        false_per_tumor_free_image S, rule}.
    """
    masked = [row for row in rows if row["has_mask"]]
    tumors = [row for row in masked if row["lesions"]]
    total, detected = sum(row["lesions"] for row in tumors), sum(row["lesions_found"] for row in tumors)
    counts = np.array([[row["lesions_found"], row["lesions"]] for row in tumors], dtype=float).reshape(-1, 2)
    limits = ratio_interval(counts[:, 0], counts[:, 1], [row["cluster"] for row in tumors])
    free = [row for row in masked if not row["lesions"]]
    return {
        "n": total,
        "found": detected,
        "sensitivity": detected / total if total else None,
        "sensitivity_ci95": limits,
        "false_per_image": column_summary(masked, "false_lesions"),
        "false_per_tumor_free_image": column_summary(free, "false_lesions"),
        "rule": RULE,
    }
