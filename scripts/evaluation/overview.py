"""The main figures of metrics.json as text, for the end of an evaluation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from scripts.evaluation.answers import answer_lines
from scripts.measures.region_measures import TOLERANCE_MM

__all__ = ["overview"]


def overview(result: Mapping[str, Any], part: str, folder: str | Path) -> str:
    """The main figures of metrics.json as text, with their intervals.

    Args:
        result: content of metrics.json.
        part: of the datalist.
        folder: that it was written to.
    """
    whole = result[part]["overall"]
    classification, dice = whole.get("classification"), whole["segmentation"]["dice"]
    lines = [(f"cases of {part}", str(whole["n"]))]
    if classification is not None:
        for name in ("balanced_accuracy", "accuracy", "sensitivity", "specificity", "roc_auc"):
            lines.append((name.replace("_", " "), _with_interval(classification[name], classification[f"{name}_ci95"])))
    lines.append((f"Dice over {dice['n']} tumors", _with_interval(dice["mean"], dice["ci95"])))
    for region, figures in whole.get("regions", {}).items():
        name = region.replace("_", " ")
        for measure, words in (
            ("dice", "Dice"),
            ("hd95_mm", "HD95 in mm"),
            ("nsd", f"surface Dice at {TOLERANCE_MM:g} mm"),
            ("lesion_dice", "Dice by lesion"),
            ("lesion_f1", "F1 by lesion"),
        ):
            figure = figures[measure]
            lines.append((f"{words}, {name} of {figure['n']}", _with_interval(figure["mean"], figure["ci95"])))
    rate = whole["segmentation"]["false_positive_rate"]
    lines.append((f"{rate['n']} tumor-free with a mask", _with_interval(rate["mean"], rate["ci95"])))
    answers = answer_lines(whole["answers"]) if "answers" in whole else []
    lines += [(name, _with_interval(figure["mean"], figure["ci95"])) for name, figure in answers]
    if result["provenance"].get("seen"):
        lines.append(("of them in the training", str(result["provenance"]["seen"])))
    width = max(len(name) for name, _ in lines)
    table = [f"{name:<{width}}  {value}" for name, value in lines]
    return "\n".join(
        [*table, *(f"note: {note}" for note in result["notes"]), f"written: {Path(folder) / 'metrics.json'}"]
    )


def _with_interval(value: float | None, limits: Sequence[float | None]) -> str:
    if value is None:
        return "n/a"
    return f"{value:.3f}" if limits[0] is None else f"{value:.3f}  [{limits[0]:.3f}, {limits[1]:.3f}]"
