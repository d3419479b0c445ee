"""From slices to volumes and patients: Dice over all slices together, and a diagnosis by a stated rule."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from scripts.inference.volume_rule import VolumeRule
from scripts.measures.intervals import column_summary
from scripts.measures.metrics import diagnosis_metrics
from scripts.measures.thresholds import choose_threshold
from scripts.networks.heads import AT_ZERO

__all__ = ["VolumeRule", "group_rows", "own_threshold", "patient_summary", "volume_summary"]

RULE = VolumeRule()
LEAST = 10  # patients with a tumor, and without, that volumes of slices are given a threshold of their own by
DICE_RULE = (
    "2 x overlap / (true + predicted), each summed over the slices that were evaluated, in pixels of the image "
    "(slices are scaled to the network's grid one by one)"
)
WHOLE_DICE_RULE = (
    "2 x overlap / (true + predicted) of the volume, which is one case; of several volumes of a patient each summed "
    "over them, in voxels of the file"
)
WHOLE_RULE = "the network sees the volume as one case: its own probabilities against the threshold, and its own class"


def group_rows(
    rows: Sequence[dict[str, Any]], key: str, threshold: float, rule: VolumeRule = RULE
) -> list[dict[str, Any]]:
    """One row a volume or patient.

    Args:
        rows: of `scripts.evaluation.evaluation.CaseResults`, with ``probability`` (K,) by class.
        key: "volume" (rows without one are left out) or "cluster".
        threshold: of a slice's tumor probability, from validation.
        rule: how its probabilities follow from those of its slices.

    Returns:
        rows of: name, cluster, source, n cases, n_masked, dice and mean_case_dice (NaN without tumor in any mask),
        tumor and predicted milliliters (volumes, NaN without known spacing), diagnosis (-1 unknown), predicted class,
        score (tumor probability), right: share of cases with the right class; and for its joined answer tumor_pixels,
        predicted_pixels and head_pixels over its cases, evidence_maximum and evidence_overlap.
    """
    groups: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        if row[key]:
            groups.setdefault(row[key], []).append(row)
    return [_group(name, members, threshold, rule) for name, members in groups.items()]


def _group(name: str, members: Sequence[dict[str, Any]], threshold: float, rule: VolumeRule) -> dict[str, Any]:
    masked = [row for row in members if row["has_mask"]]
    true, said, both = (
        sum(row[f"{what}_pixels"] * row["pixel_area"] for row in masked if row["shared_pixels"] is not None)
        for what in ("tumor", "predicted", "shared")
    )
    known = [row for row in members if row["diagnosis"] >= 0]
    probability = rule.probability(members)
    score = 1 - probability[0]
    known_maxima = [row["evidence_maximum"] for row in members if row.get("evidence_maximum") is not None]
    overlaps = [row["evidence_overlap"] for row in members if row.get("evidence_overlap") is not None]
    tumors = Counter(row["diagnosis"] for row in known if row["diagnosis"] > 0)
    return {
        "name": name,
        "cluster": members[0]["cluster"],
        "source": members[0]["source"],
        "n": len(members),
        "n_masked": len(masked),
        "dice": 2 * both / (true + said) if true else float("nan"),
        "mean_case_dice": _mean([row["dice"] for row in members]),
        "tumor_ml": _milliliters(masked, "tumor"),
        "predicted_ml": _milliliters(members, "predicted"),
        "diagnosis": (tumors.most_common(1)[0][0] if tumors else 0) if known else -1,
        "predicted": int(1 + np.argmax(probability[1:])) if score >= rule.threshold_of(threshold) else 0,
        "score": score,
        "right": _mean([float(row["predicted"] == row["diagnosis"]) for row in known]),
        **{
            f"{what}_pixels": _sum([row.get(f"{what}_pixels") for row in members])
            for what in ("tumor", "predicted", "head")
        },
        "evidence_maximum": max(known_maxima) if known_maxima else None,
        "evidence_overlap": any(overlaps) if overlaps else None,
    }


def _sum(values: Sequence[float | None]) -> float | None:
    """None where one is not known."""
    known = [value for value in values if value is not None]
    return sum(known) if len(known) == len(values) else None


def _mean(values: Sequence[float]) -> float:
    kept = [v for v in values if v == v]
    return float(np.mean(kept)) if kept else float("nan")


def _milliliters(rows: Sequence[dict[str, Any]], what: str) -> float:
    """Volume over the evaluated slices, or of a volume that is one case; NaN where spacing or a slice is not known."""
    whole = [row.get(f"{what}_ml", float("nan")) for row in rows]
    if len(whole) == 1 and math.isfinite(whole[0]):
        return float(whole[0])
    if not rows or any(row["slice_mm"] != row["slice_mm"] for row in rows):
        return float("nan")
    return float(sum(row[f"{what}_mm2"] * row["slice_mm"] for row in rows)) / 1000


def patient_summary(patients: Sequence[dict[str, Any]], whole: bool = False) -> dict[str, Any]:
    """Number of patients (or groups) and summaries of dice, mean_case_dice and accuracy; each patient counts once.

    Args:
        patients: of `group_rows`.
        whole: a case is a whole volume, not a slice.
    """
    return {
        "n": len(patients),
        "dice": column_summary(patients, "dice"),
        "mean_case_dice": column_summary(patients, "mean_case_dice"),
        "accuracy": column_summary(patients, "right"),
        "dice_rule": WHOLE_DICE_RULE if whole else DICE_RULE,
    }


def volume_summary(
    volumes: Sequence[dict[str, Any]], classes: int, rule: VolumeRule = RULE, whole: bool = False
) -> dict[str, Any]:
    """Figures over volumes.

    Args:
        volumes: of `group_rows`, at least one.
        classes: number of classes K.
        rule: that they were diagnosed by.
        whole: each is one case of a 3D network, not evaluated by slices.

    Returns:
        {n, slices S (evaluated of each), dice S, predicted_ml_tumor_free S, classification (of `diagnosis_metrics`, if
        any diagnosis is known), dice_rule, diagnosis_rule}.
    """
    known = [row for row in volumes if row["diagnosis"] >= 0]
    free = [row for row in known if row["diagnosis"] == 0]
    result = {
        "n": len(volumes),
        "slices": column_summary(volumes, "n"),
        "dice": column_summary(volumes, "dice"),
        "predicted_ml_tumor_free": column_summary(free, "predicted_ml"),
        "dice_rule": WHOLE_DICE_RULE if whole else DICE_RULE,
        "diagnosis_rule": WHOLE_RULE if whole else str(rule),
    }
    if known:
        diagnosis, predicted = (np.array([row[name] for row in known]) for name in ("diagnosis", "predicted"))
        score = np.array([row["score"] for row in known])
        clusters = [row["cluster"] for row in known]
        result["classification"] = diagnosis_metrics(diagnosis, predicted, score, classes, clusters)
    return result


def own_threshold(volumes: Sequence[dict[str, Any]]) -> tuple[float | None, str]:
    """Threshold of a volume's tumor probability that validation volumes of slices support.

    Args:
        volumes: of `group_rows`, of the validation part.

    Returns:
        that with the best balanced accuracy, above the probability without evidence, None with fewer than `LEAST`
        patients of either kind; and what to do with it, or what is missing, in words.
    """
    known = [row for row in volumes if row["diagnosis"] >= 0]
    tumor = np.array([row["diagnosis"] > 0 for row in known], dtype=bool)
    sick, healthy = (
        len({row["cluster"] for row, has_tumor in zip(known, tumor, strict=True) if has_tumor == k})
        for k in (True, False)
    )
    if min(sick, healthy) < LEAST:
        return None, (
            f"volumes keep the threshold that they have: one of their own takes {LEAST} patients with a tumor and "
            f"{LEAST} without, this part has {sick} and {healthy}"
        )
    threshold = choose_threshold(np.array([row["score"] for row in known]), tumor, AT_ZERO)
    return threshold, (
        f"volumes are best separated at {threshold:.3f} ({sick} patients with a tumor, {healthy} without): "
        f"`volume_threshold: {threshold:.3f}` in the run's network.yaml makes it theirs"
    )
