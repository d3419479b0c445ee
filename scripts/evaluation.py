"""metrics.json and cases.csv of a trained run: one row a case, figures over cases, thresholds from validation."""

from __future__ import annotations

import csv
import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ignite.engine import Engine, Events
from monai.metrics import compute_dice, compute_hausdorff_distance, compute_iou

from scripts.metrics import case_summary, classification_metrics, decide, tumor_probability
from scripts.runs import write_json

logger = logging.getLogger(__name__)

SEGMENTATION = ("dice", "iou", "hd95")


class CaseResults:
    """Collects one row a case from an evaluator whose step computes segmentation and classification.

    A row: name, patient (or near-duplicate group), source, diagnosis (-1 unknown), logits, has_mask, tumor_pixels and
    predicted_pixels on the network's grid, label_coverage, and dice, iou, hd95 (pixels of the network's grid), NaN
    without a tumor in the mask.
    """

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []

    def attach(self, engine: Engine) -> None:
        """Collect at every iteration."""
        engine.add_event_handler(Events.STARTED, lambda _: self.rows.clear())
        engine.add_event_handler(Events.ITERATION_COMPLETED, self.collect)

    def collect(self, engine: Any) -> None:
        """Add the cases of a batch."""
        batch, pred, target = engine.state.batch, engine.state.output["pred"], engine.state.output["label"]
        label = target["label"].float().cpu()
        segmented = (pred["seg"].argmax(dim=1, keepdim=True) > 0).float().cpu()
        dice, iou = compute_dice(segmented, label), compute_iou(segmented, label)
        for i in range(len(label)):
            masked = bool(target["has_mask"][i])
            tumor, predicted = int(label[i].sum()), int(segmented[i].sum())
            scored = masked and tumor > 0
            self.rows.append(
                {
                    "name": batch["name"][i],
                    "patient": batch["patient"][i] or batch["group"][i] or batch["name"][i],
                    "source": batch["source"][i],
                    "diagnosis": int(target["diagnosis"][i]),
                    "logits": [float(v) for v in pred["cls"][i]],
                    "has_mask": masked,
                    "tumor_pixels": tumor if masked else None,
                    "predicted_pixels": predicted,
                    "label_coverage": float(batch["label_coverage"][i]),
                    "dice": float(dice[i]) if scored else float("nan"),
                    "iou": float(iou[i]) if scored else float("nan"),
                    "hd95": _hd95(segmented[i : i + 1], label[i : i + 1]) if scored and predicted else float("nan"),
                }
            )


def _hd95(segmented: torch.Tensor, label: torch.Tensor) -> float:
    return float(compute_hausdorff_distance(segmented, label, include_background=True, percentile=95))


def summarize(rows: Sequence[dict[str, Any]], threshold: float, temperature: float) -> dict[str, Any]:
    """M of metrics.json for a set of cases.

    Args:
        rows: of `CaseResults`.
        threshold, temperature: from validation.
    """
    known = [row for row in rows if row["diagnosis"] >= 0]
    groups = [row["patient"] for row in rows]
    result: dict[str, Any] = {"n": len(rows)}
    if known:
        result["classification"] = classification_metrics(
            np.array([row["logits"] for row in known]),
            np.array([row["diagnosis"] for row in known]),
            threshold,
            temperature,
            [row["patient"] for row in known],
        )
    result["segmentation"] = {
        name: case_summary(np.array([row[name] for row in rows], dtype=float), groups) for name in SEGMENTATION
    }
    free = [row for row in rows if row["tumor_pixels"] == 0 or (row["tumor_pixels"] is None and row["diagnosis"] == 0)]
    result["segmentation"]["false_positive_pixels"] = case_summary(
        np.array([row["predicted_pixels"] for row in free], dtype=float), [row["patient"] for row in free]
    )
    coverage = np.array([row["label_coverage"] if row["tumor_pixels"] else np.nan for row in rows], dtype=float)
    result["segmentation"]["label_coverage"] = case_summary(coverage, groups)
    return result


def write_evaluation(
    rows: Sequence[dict[str, Any]],
    folder: str | Path,
    threshold: float,
    temperature: float,
    part: str = "test",
    bootstrap_by: str = "patient",
) -> dict[str, Any]:
    """Write metrics.json and cases.csv.

    Args:
        rows: of `CaseResults`.
        folder: ``runs/<run>/evaluation``.
        threshold, temperature: from validation.
        part: name of the datalist's part.
        bootstrap_by: what ``patient`` of the rows really is: "patient" or "near-duplicate group".

    Returns:
        the content of metrics.json.
    """
    sources = sorted({row["source"] for row in rows})
    result = {
        part: {
            "overall": summarize(rows, threshold, temperature),
            "by_source": {s: summarize([r for r in rows if r["source"] == s], threshold, temperature) for s in sources},
        },
        "intervals": f"95 % percentile bootstrap by {bootstrap_by}",
        "grid": "the network's; hd95 in its pixels, Dice over cases with a tumor in the mask",
    }
    write_json(result, Path(folder) / "metrics.json")
    table = [
        {
            **{k: v for k, v in row.items() if k != "logits"},
            "tumor_probability": float(tumor_probability(np.array([row["logits"]]), temperature)[0]),
            "predicted": int(decide(np.array([row["logits"]]), threshold, temperature)[0]),
        }
        for row in rows
    ]
    write_csv(table, Path(folder) / "cases.csv")
    logger.info("%d cases evaluated, figures in %s", len(rows), folder)
    return result


def write_csv(rows: Sequence[dict[str, Any]], path: str | Path) -> None:
    """Write rows of equal keys whole or not at all; NaN and None become empty."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    with open(partial, "w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        for row in rows:
            writer.writerow({k: "" if v is None or v != v else v for k, v in row.items()})
    os.replace(partial, path)
