"""What the shipped weights were to reach, and by how much each target is missed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def _measured(figures: Mapping[str, Any], name: str) -> tuple[float, Any]:
    """Value and interval of a measure, of which the interval stands beside it."""
    return figures[name], figures.get(f"{name}_ci95")


def _after(results: Mapping[str, Any], test: str, how: str, measure: str) -> tuple[float, Any]:
    """Share after an intervention, and its interval."""
    key = (test, how, measure, "all")
    rows = results["certificate"]["rows"]
    row = next(row for row in rows if (row["test"], row["how"], row["measure"], row["part"]) == key)
    return row["after"], row["after_ci95"]


def _not_after(results: Mapping[str, Any], test: str, how: str, measure: str) -> tuple[float, Any]:
    share, ends = _after(results, test, how, measure)
    return 1 - share, None if ends[0] is None else [1 - ends[1], 1 - ends[0]]


def _mean(figures: Mapping[str, Any]) -> tuple[float, Any]:
    return figures["mean"], figures["ci95"]


def targets(results: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Each target with its goal, the value reached, its interval, and by how much it is missed (0: reached).

    Args:
        results: of `python -m scripts card`, as ``docs/training/results.json`` holds them.
    """
    overall = results["overall"]
    masks, answers, classes = overall["segmentation"], overall["answers"], overall["classification"]
    evidence = next(row for row in results["localization"] if row["method"] == "evidence")
    rows = [
        ("Dice over tumor cases", ">=", 0.86, _mean(masks["dice"])),
        ("Dice over gliomas", ">=", 0.75, _mean(results["by_class"]["glioma"]["segmentation"]["dice"])),
        ("4-class balanced accuracy", ">=", 0.97, _measured(classes, "balanced_accuracy")),
        ("ROC AUC, tumor against none", ">=", 0.99, _measured(classes, "roc_auc")),
        ("Tumor-free images with a mask, raw", "<=", 0.01, _mean(masks["false_positive_rate"])),
        ("Contradictions, raw", "<=", 0.02, _mean(answers["contradictions"]["raw"])),
        ("Class and mask right, raw", ">=", 0.95, _mean(answers["both_right"]["raw"])),
        *(
            (f"Painted out ({how}): no tumor", ">=", 0.9, _not_after(results, "removal", how, "called tumor"))
            for how in ("poisson", "learned")
        ),
        ("Moved into a healthy head: tumor", ">=", 0.9, _after(results, "transplant", "poisson", "called tumor")),
        (
            "Moved into a healthy head: its kind",
            ">=",
            0.75,
            _after(results, "transplant", "poisson", "called that kind"),
        ),
        ("ECE, 4 classes", "<=", 0.025, _measured(classes, "ece")),
        ("NLL after temperature, less that before", "<=", 0, (classes["nll"] - classes["nll_uncalibrated"], None)),
        ("Pointing game", ">=", 0.95, _measured(evidence, "pointing_game")),
        ("Energy in tumor", ">=", 0.86, _measured(evidence, "tumor_energy")),
        ("Energy in air, layer's grid", "<=", 0, _measured(evidence, "background_energy_layer")),
        ("Energy in air, image grid", "<=", 0, _measured(evidence, "background_energy")),
        ("No evidence under a verdict of tumor", "<=", 0, _mean(answers["empty_evidence"])),
    ]
    return [
        {
            "title": title,
            "goal": f"{sign} {goal:g}",
            "value": value,
            "ci95": ends,
            "missed": max(0.0, goal - value if sign == ">=" else value - goal),
        }
        for title, sign, goal, (value, ends) in rows
    ]
