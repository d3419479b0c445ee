"""Shortcuts for the diagnosis: what reaches the network as source or air, apart from what anatomy and contrast tell."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from scripts.diagnosis.inputs import Samples
from scripts.explain.findings import CANNOT_TELL, DOES_NOT_HOLD, HOLDS, SHORTCUT, Finding, source_shortcut
from scripts.measures.shortcuts import LIMITS, MIN_UNITS, auc_by_value

__all__ = ["COUNTED", "shortcut", "shortcut_rows"]

# Air is the only one that must tell nothing. The others hold true signs of disease or of the slice's place too.
COUNTED = ("air",)
LEGITIMATE = {
    "outline": "outline of the head",
    "histogram": "histogram of the head",
    "file size": "picture size of the files",
}


def shortcut_rows(samples: Samples) -> list[dict[str, Any]]:
    """Cross-validated AUC of "any tumor" from each kind of feature alone; `auc` None where too few to tell.

    Returns:
        rows {features, auc, auc_ci95, n, clusters, strongest, counted, limit, flagged}; empty without two classes.
    """
    known = [i for i, label in enumerate(samples.feature_labels) if label >= 0]
    truth = ["tumor" if samples.feature_labels[i] > 0 else "none" for i in known]
    rows = []
    for kind, features in samples.features.items():
        if len(features) != len(samples.feature_labels) or len(set(truth)) < 2:
            continue
        counted = kind in COUNTED
        if counted and samples.air_value is not None:
            row: dict[str, Any] = {"n": len(known), "auc": 0.5, "auc_ci95": [0.5, 0.5], "strongest": None}
        else:
            row = auc_by_value([features[i] for i in known], truth, [samples.feature_clusters[i] for i in known])[0]
        limit = LIMITS["air"] if counted else None
        flagged = counted and row["auc"] is not None and row["auc"] > LIMITS["air"] and row["auc_ci95"][0] > 0.5
        chosen = {key: row[key] for key in ("n", "auc", "auc_ci95", "strongest")}
        rows.append({"features": kind, **chosen, "counted": counted, "limit": limit, "flagged": flagged})
    return rows


def shortcut(
    samples: Samples,
    rows: Sequence[dict[str, Any]],
    sources: Sequence[str],
    labels: Sequence[int],
    pipeline_known: bool = True,
    followed: float | None = None,
) -> Finding:
    """One verdict on source and air.

    Args:
        samples: the images.
        rows: of `shortcut_rows`.
        sources, labels: of all items of the datalist, in all its parts; a source of "" is unknown.
        pipeline_known: the images came through the user's own pipeline; else its air says nothing about his.
        followed: share of the network's verdict that follows the air, see `effect_findings.air_effect`.
    """
    known = [(s, k) for s, k in zip(sources, labels, strict=True) if s]
    by_source = source_shortcut([s for s, _ in known], [k for _, k in known])
    figures, said = dict(by_source.figures), []
    if not known:
        said.append("the sources of the images were not given")
        source_verdict = CANNOT_TELL
    elif len({s for s, _ in known}) == 1:
        said.append("all images are of one source")
        source_verdict = DOES_NOT_HOLD
    else:
        said.append(by_source.reason)
        source_verdict = by_source.verdict
    air_verdict, air_said, air_figures = _air(samples, rows, pipeline_known)
    figures |= air_figures
    said.append(air_said)
    signs = list(by_source.signs) if source_verdict == HOLDS else []
    if air_verdict == HOLDS:
        signs.append("air")
        if followed is not None:
            figures["share_of_the_verdict_that_follows_the_air"] = followed
            said.append(f"with the air of the other class the verdict goes {followed:.0%} of the way over")
    others = [row for row in rows if not row["counted"] and row["auc"] is not None]
    figures |= {f"{row['features'].replace(' ', '_')}_auc": row["auc"] for row in others}
    if others:
        listed = ", ".join(f"{LEGITIMATE[row['features']]} {row['auc']:.2f}" for row in others)
        said.append(f"not counted, because anatomy and contrast may tell it: {listed}")
    verdicts = (source_verdict, air_verdict)
    verdict = HOLDS if HOLDS in verdicts else CANNOT_TELL if CANNOT_TELL in verdicts else DOES_NOT_HOLD
    advice = by_source.advice
    if air_verdict == HOLDS:
        advice = "set the air to exactly 0 behind the last transform; then " + advice
    elif verdict == CANNOT_TELL and not known:
        advice = "give a datalist with the source of each image"
    return Finding(SHORTCUT, verdict, figures, "; ".join(said), advice, signs=tuple(signs))


def _air(samples: Samples, rows: Sequence[dict[str, Any]], known: bool) -> tuple[str, str, dict[str, float]]:
    """Verdict, sentence and figures of the air."""
    if not known:
        return CANNOT_TELL, "the air of your own pipeline is not known, it was not given", {}
    if samples.air_value is not None:
        text = f"the air is {samples.air_value:g} in every pixel of every image, so that it tells nothing (AUC 0.50)"
        return DOES_NOT_HOLD, text, {"air_auc": 0.5}
    row = next((row for row in rows if row["features"] == "air"), None)
    if row is None or row["auc"] is None:
        text = f"the air differs between images, but fewer than {MIN_UNITS} patients or groups are known on a side"
        return CANNOT_TELL, text, {}
    low, high = row["auc_ci95"]
    text = f"the air alone tells tumor from none with an AUC of {row['auc']:.2f} ({low:.2f} to {high:.2f}, limit "
    figures = {"air_auc": float(row["auc"])}
    return (HOLDS if row["flagged"] else DOES_NOT_HOLD), f"{text}{LIMITS['air']:.2f})", figures
