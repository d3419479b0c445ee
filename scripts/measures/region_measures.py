"""Masks of several regions against the true ones, region by region: overlap, distance and surface, from MONAI.

Over the cases whose mask has the region: Dice (0 where nothing is predicted), HD95 in mm (of those with a predicted
voxel) and the normalized surface Dice at `TOLERANCE_MM`. Over the other cases: how often it is predicted all the same.
Over all volumes with a mask: Dice and F1 by lesion, see `scripts.measures.lesion_scores`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from monai.metrics import compute_dice, compute_hausdorff_distance, compute_surface_dice

from scripts.measures.intervals import column_summary
from scripts.measures.lesion_scores import lesion_scores

__all__ = ["LESION_MEASURES", "MEASURES", "TOLERANCE_MM", "column", "region_measures", "region_summary"]

TOLERANCE_MM = 1.0
MEASURES = ("dice", "hd95_mm", "nsd")
LESION_MEASURES = ("lesion_dice", "lesion_f1")
_COLUMNS = ("region", "found", *MEASURES, *LESION_MEASURES)
NAN = float("nan")


def column(measure: str, region: str) -> str:
    """Name of the column of a case's row: "hd95_mm_tumor_core"."""
    return f"{measure}_{region}"


def region_measures(
    predicted: torch.Tensor | None, truth: torch.Tensor | None, names: Sequence[str], pixel_mm: torch.Tensor
) -> dict[str, float]:
    """Columns of one case, NaN where a measure is not defined.

    Args:
        predicted: (R, X, Y[, Z]) bool; None of a network that was not trained to segment.
        truth: the same; None without a mask.
        names: of the R regions.
        pixel_mm: (D,) size of a voxel by axis, NaN where unknown: distances and scores by lesion are NaN then.
    """
    row = {column(measure, name): NAN for name in names for measure in _COLUMNS}
    spacing = [float(side) for side in pixel_mm] if bool(torch.isfinite(pixel_mm).all()) else None
    for k, name in enumerate(names):
        if truth is None:
            continue
        there = bool(truth[k].any())
        row[column("region", name)] = float(there)
        if predicted is None:
            continue
        marked = bool(predicted[k].any())
        row[column("found", name)] = float(marked)
        if spacing is not None and len(spacing) == 3:
            scores = lesion_scores(predicted[k].numpy(), truth[k].numpy(), spacing)
            row |= {column(measure, name): score for measure, score in scores.items()}
        if not there:
            continue
        said, true = predicted[k][None, None].float(), truth[k][None, None].float()
        row[column("dice", name)] = float(compute_dice(said, true))
        if spacing is None:
            continue
        row[column("nsd", name)] = 0.0
        if marked:
            limits: dict[str, Any] = {"include_background": True, "spacing": spacing}
            row[column("hd95_mm", name)] = float(compute_hausdorff_distance(said, true, percentile=95, **limits))
            row[column("nsd", name)] = float(compute_surface_dice(said, true, [TOLERANCE_MM], **limits))
    return row


def region_summary(rows: Sequence[Mapping[str, Any]], names: Sequence[str]) -> dict[str, Any]:
    """Figures by region: {n, missed: without a predicted voxel, each of the measures S, false_positive_rate S}.

    Args:
        rows: with the columns of `region_measures`.
        names: of the regions.
    """
    by_region = {}
    for name in names:
        present = [row for row in rows if row[column("region", name)] == 1]
        free = [row for row in rows if row[column("region", name)] == 0]
        by_region[name] = {
            "n": len(present),
            "missed": sum(row[column("found", name)] == 0 for row in present),
            **{measure: column_summary(rows, column(measure, name)) for measure in MEASURES},
            "false_positive_rate": column_summary(free, column("found", name)),
            **{measure: column_summary(rows, column(measure, name)) for measure in LESION_MEASURES},
        }
    return by_region
