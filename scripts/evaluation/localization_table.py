"""The rows of localization.json from the measures of the cases, and the table of them that is printed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from scripts.evaluation.localization import BASELINES, COMPLETENESS
from scripts.explain.clusters import clusters
from scripts.explain.localization import DISTANCES
from scripts.explain.measures import aggregate
from scripts.measures.intervals import mean_interval

__all__ = ["format_regions", "format_table", "localization_table", "sorted_rows"]


def localization_table(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Rows of localization.json: over all cases, then by source, then by class; the same against the predicted masks.

    Every row says what it is over: ``mask`` ("true" or "predicted"), ``source`` and ``class`` ("all" or a name).
    Integrated gradients also say the median of |sum of the attributions - difference of the scores| / |difference|
    as ``completeness_error``, over the ``completeness_error_n`` explained cases of the row's own source and class, and
    null where there is none. Rows over all classes against the true masks also say ``empty_rate_free``, the share of
    the ``n_free`` tumor-free cases in which the map finds nothing, as it should: a method whose map is never empty
    gains energy where the network misses a tumor, and paints every healthy head. ``cancelled_rate`` is the share of
    cases that have no Grad-CAM because its gradients cancel over space: they are misses in energy and pointing game,
    and stand apart from ``empty_rate`` and ``empty_rate_free``, where a map was there and found nothing.

    Args:
        rows: of `measure`.

    Raises:
        ValueError: when no case has a tumor in its true mask.
    """
    table: list[dict[str, Any]] = []
    for mask in ("true", "predicted"):
        chosen = [row for row in rows if row["mask"] == mask]
        if mask == "predicted" and not any(row["tumor_area"] > 0 for row in chosen):
            continue  # the network predicts no tumor in any case
        by_source = aggregate(chosen, by="source")
        by_class = aggregate(chosen, by="class")
        table += [_ordered(row, mask, row["source"], "all") for row in by_source]
        table += [_ordered(row, mask, "all", row["class"]) for row in by_class if row["class"] != "all"]
    explained = [row for row in rows if row["method"] == "integrated_gradients" and row["mask"] == "true"]
    for row in table:
        if row["method"] == "integrated_gradients":
            row.update(_completeness(row, explained))
    healthy = [row for row in rows if row["mask"] == "true" and row["tumor_area"] == 0]
    for row in table:
        if (row["mask"], row["class"]) == ("true", "all") and row["method"] not in BASELINES:
            row.update(_on_tumor_free(row, healthy))
    return table


def _completeness(row: Mapping[str, Any], explained: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The median error over the cases of a row's own stratum, and how many they are; null without one."""
    errors = [
        case[COMPLETENESS]
        for case in explained
        if case["target"] == row["target"]
        and row["source"] in ("all", case["source"])
        and row["class"] in ("all", case["class"])
        and np.isfinite(case[COMPLETENESS])
    ]
    return {COMPLETENESS: float(np.median(errors)) if errors else None, f"{COMPLETENESS}_n": len(errors)}


def _on_tumor_free(row: Mapping[str, Any], healthy: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """How often a map is empty where there is no tumor; null where the method did not run on such cases."""
    chosen = [
        case
        for case in healthy
        if all(case[key] == row[key] for key in ("method", "layer", "target"))
        and row["source"] in ("all", case["source"])
    ]
    if not chosen:
        return {"n_free": 0, "empty_rate_free": None, "empty_rate_free_ci95": [None, None]}
    groups = [name for _, name in clusters(chosen)]
    empty = np.array([case["empty"] for case in chosen])
    interval = mean_interval(empty, groups)
    return {"n_free": len(chosen), "empty_rate_free": float(empty.mean()), "empty_rate_free_ci95": interval}


def _ordered(row: Mapping[str, Any], mask: str, source: str, class_name: str) -> dict[str, Any]:
    head = {key: row[key] for key in ("method", "layer", "target")}
    return {
        **head,
        "mask": mask,
        "source": source,
        "class": class_name,
        **{k: v for k, v in row.items() if k != "class"},
    }


def sorted_rows(
    table: Sequence[Mapping[str, Any]], mask: str = "true", source: str = "all", class_name: str = "all"
) -> list[Mapping[str, Any]]:
    """Rows over one stratum, the most energy in the tumor first, then the better pointing game."""
    rows = [r for r in table if (r["mask"], r["source"], r["class"]) == (mask, source, class_name)]
    return sorted(rows, key=lambda r: (-(r["tumor_energy"] or 0), -(r["pointing_game"] or 0)))


def format_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows of localization.json as plain text, in the given order."""
    head = ["method", "layer", "target", "n", "energy in tumor", "pointing game", "rank accuracy", "peak to tumor"]
    head += ["in air", "empty", "cancelled", "empty without tumor"]
    lines = [
        [
            *(str(row[key]) for key in ("method", "layer", "target", "n")),
            *(_percent(row[f"{name}_ci95"], row[name]) for name in ("tumor_energy", "pointing_game")),
            _percent(None, row.get("rank_accuracy")),
            _mm(row.get("peak_distance_mm")),
            *(_percent(None, row[name]) for name in ("background_energy", "empty_rate", "cancelled_rate")),
            _percent(None, row.get("empty_rate_free")),
        ]
        for row in rows
    ]
    return _aligned(head, lines)


def format_regions(rows: Sequence[Mapping[str, Any]]) -> str:
    """The regions of rows of localization.json as plain text, region by region; "" of rows without."""
    lines = [
        [
            name,
            *(str(row[key]) for key in ("method", "layer", "target")),
            str(region["n"]),
            *(_percent(region[f"{key}_ci95"], region[key]) for key in ("energy", "pointing_game")),
            *(_percent(None, region[key]) for key in ("rank_accuracy", "area")),
            *(_mm(region[key]) for key in DISTANCES),
        ]
        for name in (rows[0].get("regions", {}) if rows else {})
        for row in rows
        for region in (row["regions"][name],)
    ]
    head = ["region", "method", "layer", "target", "n", "energy in it", "pointing game", "rank accuracy", "area"]
    return "\n" + _aligned([*head, "peak to it", "between centers"], lines) + "\n" if lines else ""


def _aligned(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    widths = [max(len(line[i]) for line in (head, *lines)) for i in range(len(head))]
    text = ["  ".join(cell.ljust(w) for cell, w in zip(line, widths, strict=True)).rstrip() for line in (head, *lines)]
    return "\n".join([text[0], "-" * max(map(len, text)), *text[1:]])


def _mm(value: float | None) -> str:
    return "n/a" if value is None else f"{value:.1f} mm"


def _percent(interval: Sequence[float | None] | None, value: float | None) -> str:
    if value is None:
        return "n/a"
    text = f"{100 * value:5.1f} %"
    if interval is None or interval[0] is None or interval[1] is None:
        return text
    return f"{text} [{100 * interval[0]:.1f}, {100 * interval[1]:.1f}]"
