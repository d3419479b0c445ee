"""What metrics.json says of its own gaps: what was not trained, which cases are missing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

__all__ = ["gaps", "not_segmented", "task_notes"]


def not_segmented(rows: Sequence[Mapping[str, Any]]) -> bool:
    """Whether the run predicts no masks."""
    return any(row["predicted_pixels"] is None for row in rows)


def task_notes(rows: Sequence[Mapping[str, Any]], provenance: Mapping[str, Any]) -> list[str]:
    """What the figures do not hold because the run was not trained for it."""
    notes = []
    if not_segmented(rows):
        notes.append("this run segments nothing: there are no figures of segmentation")
    if "classification" not in provenance.get("tasks", ["classification"]):
        notes.append("the head of this run was not trained: its figures of classification are those of random weights")
    return notes


def gaps(rows: Sequence[Mapping[str, Any]], names: Sequence[str], clustered_by: str) -> list[str]:
    """Which cases are missing, by source and class, and where an interval is missing for want of patients."""
    strata: dict[str, list[Mapping[str, Any]]] = {"all cases": list(rows)}
    for row in rows:
        strata.setdefault(f"source {row['source'] or 'unnamed'}", []).append(row)
    lacking, alone = [], []
    for name, stratum in strata.items():
        known = {row["diagnosis"] for row in stratum} - {-1}
        absent = [names[k] for k in range(len(names)) if k not in known]
        maskless = [] if any(row["tumor_pixels"] for row in stratum) else ["with a tumor in the mask"]
        if missing := [*(["with a known class"] if not known else [f"of class {n}" for n in absent]), *maskless]:
            lacking.append(f"{name}: none {', none '.join(missing)}")
        if len({row["cluster"] for row in stratum}) < 2:
            alone.append(name)
    return [
        *([f"missing cases, whose figures are therefore n/a: {'; '.join(lacking)}"] if lacking else []),
        *([f"no intervals, which need more than one {clustered_by}: {', '.join(alone)}"] if alone else []),
    ]
