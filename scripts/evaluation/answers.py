"""How often verdict, mask and evidence of a case contradict each other, and how often all of them are right."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from torch import Tensor

from scripts.explain.maps import upsample
from scripts.inference.answer import UNCERTAIN, Raw, join, overlaps
from scripts.inference.inferers import tumor_evidence
from scripts.inference.volume_rule import evidence_places
from scripts.measures.intervals import case_summary

__all__ = ["FIGURES", "GOOD_DICE", "RULE", "answer_lines", "answer_summary", "evidence_of_case", "joined_columns"]

GOOD_DICE = 0.5  # at which a mask counts as right
RULE = (
    "contradictions: the verdict is tumor with an empty mask, without evidence or with both in different places, or no "
    "tumor with any mask; joined: of the answer that is given; uncertain: the answer is neither yes nor no, and counts "
    f"as neither right nor wrong; both right: the class right and Dice at least {GOOD_DICE}, or no tumor, rightly, and "
    "no mask"
)
# Where a figure stands in the block "answers", and what it is called: on the screen, in the report and in the card.
FIGURES = {
    "contradictions/raw": "contradictions, raw",
    "contradictions/joined": "contradictions, joined",
    "uncertain_rate": "uncertain",
    "empty_evidence": "no evidence at all under a verdict of tumor, raw",
    "both_right/raw": "class and mask right, raw",
    "both_right/joined": "class and mask right, joined, uncertain left out",
}


def evidence_of_case(
    segmented: Tensor | None, logits: Tensor, evidence: Tensor | None, temperature: float
) -> dict[str, Any]:
    """{evidence_maximum, evidence_overlap, evidence_place} of a case, None where the network has no such output.

    Args:
        segmented: (1, *size), 0 or 1.
        logits: (K,) of the classes.
        evidence: (K, *grid) by class.
        temperature: of the network.
    """
    if evidence is None:
        return {"evidence_maximum": None, "evidence_overlap": None, "evidence_place": None}
    tumor = tumor_evidence(logits[None].float(), evidence[None].float(), temperature).clamp(min=0).cpu()
    overlap = None
    if segmented is not None:
        overlap = overlaps(segmented.numpy(), upsample(tumor, segmented.shape[1:])[0].numpy())
    place = evidence_places(tumor)[0].tolist()
    return {"evidence_maximum": float(tumor.max()), "evidence_overlap": overlap, "evidence_place": place}


def joined_columns(row: Mapping[str, Any], threshold: float) -> dict[str, Any]:
    """The joined answer of a case, and whether it and the raw outputs contradict themselves or are right.

    Args:
        row: of `scripts.evaluation.evaluation.decided`.
        threshold: of the tumor probability.

    Returns:
        {verdict, contradiction, joined_contradiction, both_right, joined_both_right}, the latter four 0, 1 or NaN: of a
        joined answer that is uncertain, and of a case whose class or mask is not known.
    """
    mask = row["predicted_pixels"]
    raw = Raw(
        row["tumor_probability"],
        threshold,
        mask,
        row["head_pixels"],
        row.get("evidence_maximum"),
        row.get("evidence_overlap"),
    )
    answer = join(raw)
    joined = raw if not answer.empty else Raw(raw.probability, threshold, 0, raw.head_voxels, 0.0, False)
    uncertain = answer.verdict == UNCERTAIN
    return {
        "verdict": answer.verdict,
        "contradiction": float(bool(raw.contradictions)),
        "joined_contradiction": math.nan if uncertain else float(bool(joined.contradictions)),
        "both_right": _both_right(row, row["predicted"], mask),
        "joined_both_right": math.nan if uncertain else _both_right(row, row["predicted"], joined.mask_voxels),
    }


def _both_right(row: Mapping[str, Any], predicted: int, mask: int | None) -> float:
    """1 where class and mask are right, 0 where one is not, NaN where one is not known or nothing is segmented."""
    if row["diagnosis"] < 0 or mask is None:
        return math.nan
    if row["diagnosis"] == 0:
        return float(predicted == 0 and not mask and not row["tumor_pixels"])
    return float(predicted == row["diagnosis"] and row["dice"] >= GOOD_DICE) if row["tumor_pixels"] else math.nan


def answer_summary(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The block "answers" of metrics.json.

    Summaries (n, mean, ci95) of contradictions and of both_right, each raw and joined, of uncertain_rate, and of
    empty_evidence over the cases that are called a tumor.

    Args:
        rows: with the columns of `joined_columns`.
    """

    def figure(values: Sequence[float]) -> dict[str, Any]:
        return case_summary(np.array(values, dtype=float), [row["cluster"] for row in rows])

    return {
        "contradictions": {
            "raw": figure([row["contradiction"] for row in rows]),
            "joined": figure([row["joined_contradiction"] for row in rows]),
        },
        "both_right": {
            "raw": figure([row["both_right"] for row in rows]),
            "joined": figure([row["joined_both_right"] for row in rows]),
        },
        "uncertain_rate": figure([float(row["verdict"] == UNCERTAIN) for row in rows]),
        "empty_evidence": figure([_empty(row) for row in rows]),
    }


def _empty(row: Mapping[str, Any]) -> float:
    """1 where a case is called a tumor without any evidence, NaN where it is not, or has no evidence map."""
    maximum = row.get("evidence_maximum")
    return math.nan if maximum is None or row["predicted"] <= 0 else float(maximum <= 0)


def answer_lines(block: Mapping[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """Name and summary of each figure of the block, in the order of `FIGURES`; earlier versions wrote fewer."""
    lines = []
    for pointer, name in FIGURES.items():
        figure: Any = block
        for key in pointer.split("/"):
            figure = figure.get(key, {})
        if figure:
            lines.append((name, figure))
    return lines
