"""Further figures of the report as PNG bytes: one axis each, legible on a phone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.collections import PathCollection
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from sklearn.metrics import precision_recall_curve

from scripts.command.files import write_bytes
from scripts.pictures.figures import COLORS, DASHES, DPI, STYLE, confusion_matrix, dice_histogram, new_axes, png, roc

__all__ = [
    "dice_by_area",
    "dice_by_region",
    "glance",
    "precision_recall",
    "reliability",
    "robustness",
    "robustness_curves",
    "robustness_sheet",
    "write_figures",
]

MARKERS = ("o", "s", "D", "^")
CHANCE = "#888888"
ROBUSTNESS = (("Dice", "dice"), ("balanced accuracy", "balanced_accuracy"), ("energy in tumor", "tumor_energy"))


def _interval(axes: Any, x: float, y: float, limits: Sequence[float | None], color: str, upright: bool) -> None:
    if limits[0] is None or limits[1] is None:
        return
    ends = ([x, x], limits) if upright else (limits, [y, y])
    axes.plot(*ends, color=color, linewidth=1.6, solid_capstyle="butt")


def glance(
    rows: Sequence[tuple[str, Sequence[tuple[float | None, Sequence[float | None]]], float | None]], runs: Sequence[str]
) -> bytes:
    """The figure on top: every main figure with its interval, and what would be scored without looking.

    Args:
        rows: (label, [(value or None, its interval) a run], what is scored without looking or None), all in [0, 1].
        runs: their titles.

    Raises:
        ValueError: when there is no row.
    """
    if not rows:
        raise ValueError("no figure to show at a glance")
    with matplotlib.rc_context(STYLE):
        figure, axes = new_axes(1.25 + 0.5 * len(rows))
        for i, (_, cells, without) in enumerate(rows):
            shifts = np.linspace(-0.16, 0.16, len(cells)) if len(cells) > 1 else [0.0]
            for j, ((value, limits), shift) in enumerate(zip(cells, shifts, strict=True)):
                if value is not None:
                    _interval(axes, value, i + shift, limits, COLORS[j], upright=False)
                    label = runs[j] if i == 0 else None
                    axes.plot(value, i + shift, MARKERS[j], color=COLORS[j], markersize=6, label=label)
            if without is not None:
                axes.plot([without] * 2, [i - 0.33, i + 0.33], color=CHANCE, linewidth=1.6, linestyle=":")
        axes.plot([], [], color=CHANCE, linewidth=1.6, linestyle=":", label="without looking")
        axes.set_yticks(range(len(rows)), [label for label, _, _ in rows])
        axes.set_ylim(len(rows) - 0.5, -0.5)
        axes.set(xlim=(-0.02, 1.02), xlabel="1 is best; lines: 95 % intervals")
        axes.grid(axis="y", visible=False)
        figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=3, columnspacing=1.2)
        return png(figure)


def precision_recall(runs: Mapping[str, tuple[Any, Any]]) -> bytes:
    """Precision-recall curves of tumor against no tumor; the dotted line is the share of tumors.

    Args:
        runs: label: (tumor (N,) bool, probability (N,) of tumor).

    Raises:
        ValueError: when a run has no tumor.
    """
    with matplotlib.rc_context(STYLE):
        figure, axes = new_axes(4.0)
        for i, (label, (tumor, probability)) in enumerate(runs.items()):
            tumor = np.asarray(tumor, dtype=bool)
            if not tumor.any():
                raise ValueError(f"{label}: a precision-recall curve needs tumors, there is none")
            precision, recall, _ = precision_recall_curve(tumor, np.asarray(probability, dtype=float))
            axes.plot(recall, precision, color=COLORS[i], linestyle=DASHES[i], label=label, drawstyle="steps-post")
            if i == 0:
                axes.axhline(tumor.mean(), color=CHANCE, linewidth=1, linestyle=":", label="share of tumors")
        axes.set(
            xlabel="recall (tumors found)",
            ylabel="precision (alarms that are right)",
            title="Precision and recall",
            xlim=(-0.02, 1.02),
            ylim=(-0.02, 1.02),
            aspect="equal",
        )
        axes.legend(loc="lower left")
        return png(figure)


def reliability(runs: Mapping[str, Sequence[Mapping[str, Any]]]) -> bytes:
    """What was said against what happened, in bins of tumor probability; the size of a point grows with its cases.

    Args:
        runs: label: bins of `scripts.measures.metrics.calibration_bins`.

    Raises:
        ValueError: when a run has no case in any bin.
    """
    with matplotlib.rc_context(STYLE):
        figure, axes = new_axes(4.0)
        axes.plot([0, 1], [0, 1], color=CHANCE, linewidth=1, linestyle=":", label="as often as said")
        for i, (label, bins) in enumerate(runs.items()):
            filled = [b for b in bins if b["n"]]
            if not filled:
                raise ValueError(f"{label}: no case in any bin of the reliability curve")
            x, y = [b["predicted"] for b in filled], [b["observed"] for b in filled]
            total = sum(b["n"] for b in filled)
            axes.plot(x, y, color=COLORS[i], linestyle=DASHES[i], linewidth=1.2)
            sizes = [12 + 160 * b["n"] / total for b in filled]
            axes.scatter(x, y, s=sizes, color=COLORS[i], marker=MARKERS[i], label=label, zorder=3)
        axes.set(
            xlabel="tumor probability that was said",
            ylabel="share that has a tumor",
            title="Reliability",
            xlim=(-0.04, 1.04),
            ylim=(-0.04, 1.04),
            aspect="equal",
        )
        legend = figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=3)
        for handle in legend.legend_handles:
            if isinstance(handle, PathCollection):
                handle.set_sizes([40])
        return png(figure)


def share(low: float, high: float) -> str:
    """A bin of areas in words: "1 to 2 %"."""
    if low == 0:
        return f"up to {100 * high:g} %"
    return f"over {100 * low:g} %" if high >= 1 else f"{100 * low:g} to {100 * high:g} %"


def dice_by_area(runs: Mapping[str, Sequence[Mapping[str, Any]]]) -> bytes:
    """Mean Dice by tumor area, with intervals; below each bin its number of cases (of the first run).

    Args:
        runs: label: bins of `scripts.evaluation.evaluation.by_area`.

    Raises:
        ValueError: when no bin has a case.
    """
    bins = next(iter(runs.values()))
    if not any(b["n"] for b in bins):
        raise ValueError("no case with a tumor in any bin of area")
    with matplotlib.rc_context(STYLE):
        figure, axes = new_axes()
        for i, (label, run_bins) in enumerate(runs.items()):
            shift = 0.1 * (i - (len(runs) - 1) / 2)
            at = [(k + shift, b["dice"]) for k, b in enumerate(run_bins) if b["dice"]["n"]]
            for x, s in at:
                _interval(axes, x, s["mean"], s["ci95"], COLORS[i], upright=True)
            axes.plot(
                [x for x, _ in at], [s["mean"] for _, s in at], MARKERS[i], color=COLORS[i], linestyle=DASHES[i],
                linewidth=1.2, label=label,
            )  # fmt: skip
        names = [f"{share(b['low'], b['high'])}\n{b['n']}" for b in bins]
        axes.set_xticks(range(len(bins)), names, fontsize=8.5)
        axes.set(ylim=(0, 1.02), ylabel="Dice, mean", title="Dice by tumor size", xlim=(-0.5, len(bins) - 0.5))
        axes.set_xlabel("tumor as a share of the head; below: cases")
        if len(runs) > 1:
            axes.legend(loc="lower right")
        return png(figure)


def dice_by_region(runs: Mapping[str, Mapping[str, Any]]) -> bytes:
    """Mean Dice and surface Dice of each region, with intervals; below its name the number of cases (of the first run).

    Args:
        runs: label: the block "regions" of metrics.json, see `scripts.measures.region_measures.region_summary`.

    Raises:
        ValueError: when no run has a case with a region.
    """
    regions = next(iter(runs.values()))
    if not any(region["dice"]["n"] for region in regions.values()):
        raise ValueError("no case with any of the regions")
    series = [
        (label, measure, words)
        for label in runs
        for measure, words in (("dice", "Dice"), ("nsd", "surface Dice at 1 mm"))
    ]
    with matplotlib.rc_context(STYLE):
        figure, axes = new_axes()
        for i, (label, measure, words) in enumerate(series):
            color, hollow = COLORS[list(runs).index(label)], {"markerfacecolor": "none"} if measure == "nsd" else {}
            shift = 0.12 * (i - (len(series) - 1) / 2)
            at = [(k + shift, region[measure]) for k, region in enumerate(runs[label].values())]
            defined = [(x, summary) for x, summary in at if summary["n"]]
            for x, summary in defined:
                _interval(axes, x, summary["mean"], summary["ci95"], color, upright=True)
            axes.plot(
                [x for x, _ in defined], [summary["mean"] for _, summary in defined], MARKERS[i % len(MARKERS)],
                color=color, label=words if len(runs) == 1 else f"{label}, {words}", **hollow,
            )  # fmt: skip
        names = [f"{name.replace('_', ' ')}\n{region['n']}" for name, region in regions.items()]
        axes.set_xticks(range(len(names)), names, fontsize=8.5)
        axes.set(ylim=(0, 1.02), ylabel="mean over cases", title="Dice by region", xlim=(-0.5, len(names) - 0.5))
        axes.set_xlabel("below: cases with the region")
        axes.legend(loc="upper center", bbox_to_anchor=(0.45, -0.24), ncols=2, fontsize=8)
        return png(figure)


def robustness_curves(clean: Mapping[str, Any], levels: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """Label: (value or None, interval) of the clean images and of every level, as far as anything defines it.

    Args:
        clean, levels: of robustness.json.
    """
    curves = {}
    for label, name in ROBUSTNESS:
        points = [
            (level[name]["mean"], level[name]["ci95"])
            if isinstance(level[name], Mapping)
            else (level[name], level[f"{name}_ci95"])
            for level in (clean, *levels)
        ]
        if any(value is not None for value, _ in points):
            curves[label] = points
    return curves


def _corruption(axes: Any, name: str, unit: str, strengths: Sequence[float], curves: Mapping[str, Sequence]) -> None:
    for i, (label, points) in enumerate(curves.items()):
        if len(points) != len(strengths) + 1:
            raise ValueError(f"{label}: {len(points)} points for {len(strengths)} strengths and the clean images")
        at = [(k + 0.06 * (i - 1), value, limits) for k, (value, limits) in enumerate(points) if value is not None]
        for x, value, limits in at:
            _interval(axes, x, value, limits, COLORS[i], upright=True)
        axes.plot(
            [x for x, _, _ in at], [v for _, v, _ in at], MARKERS[i], color=COLORS[i], linestyle=DASHES[i],
            linewidth=1.4, markersize=4.5, label=label,
        )  # fmt: skip
    axes.set_xticks(range(len(strengths) + 1), ["none", *(f"{s:g}" for s in strengths)])
    axes.set(ylim=(0, 1.02), title=name[:1].upper() + name[1:], xlim=(-0.4, len(strengths) + 0.4))
    axes.set_xlabel(unit, fontsize=9)
    axes.yaxis.set_major_locator(MaxNLocator(5))


def robustness(name: str, unit: str, strengths: Sequence[float], curves: Mapping[str, Sequence[Any]]) -> bytes:
    """Figures under one corruption, from none (left) to its strongest.

    Args:
        name, unit: of the corruption.
        strengths: of its levels.
        curves: of `robustness_curves`.

    Raises:
        ValueError: when a curve has another length.
    """
    with matplotlib.rc_context(STYLE):
        figure, axes = new_axes(2.9)
        _corruption(axes, name, unit, strengths, curves)
        figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=3, fontsize=8.5)
        return png(figure)


def robustness_sheet(content: Mapping[str, Any], columns: int = 4) -> bytes:
    """Figures under all corruptions, a panel each.

    Args:
        content: of robustness.json.
        columns: panels beside each other.
    """
    corruptions = content["corruptions"]
    columns = min(columns, len(corruptions))
    rows = -(-len(corruptions) // columns)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(3.1 * columns, 2.5 * rows + 0.4), dpi=DPI, layout="constrained")
        panels = figure.subplots(rows, columns, squeeze=False).flat
        for axes, one in zip(panels, corruptions, strict=False):
            curves = robustness_curves(content["clean"], one["levels"])
            _corruption(axes, one["name"], one["unit"], [level["strength"] for level in one["levels"]], curves)
        for axes in list(figure.axes)[len(corruptions) :]:
            axes.set_visible(False)
        handles = figure.axes[0].get_legend_handles_labels()
        if handles[0]:
            figure.legend(*handles, loc="outside lower center", ncols=3)
        return png(figure)


def write_figures(rows: Sequence[Mapping[str, Any]], metrics: Mapping[str, Any], part: str, folder: str | Path) -> None:
    """Write ``figures/*.png`` of one evaluation, as far as its cases define them.

    Args:
        rows: of `scripts.evaluation.evaluation.decided`.
        metrics: the content of metrics.json.
        part: of the datalist.
        folder: ``runs/<run>/evaluation``.
    """
    plots, classification = {}, metrics[part]["overall"].get("classification")
    if classification is not None:
        title = "Diagnoses"
        plots["confusion_matrix"] = confusion_matrix(classification["confusion_matrix"], metrics["classes"], title)
        plots["reliability"] = reliability({"this run": classification["reliability_tumor"]})
        if classification["roc_auc"] is not None:
            known = [row for row in rows if row["diagnosis"] >= 0]
            curve = ([row["diagnosis"] > 0 for row in known], [row["tumor_probability"] for row in known])
            plots["roc"], plots["precision_recall"] = roc({"this run": curve}), precision_recall({"this run": curve})
    dice = [row["dice"] for row in rows if row["dice"] == row["dice"]]
    if dice:
        plots["dice"] = dice_histogram({"this run": dice})
        plots["dice_by_area"] = dice_by_area({"this run": metrics[part]["by_area"]})
    regions = metrics[part]["overall"].get("regions", {})
    if any(region["dice"]["n"] for region in regions.values()):
        plots["dice_by_region"] = dice_by_region({"this run": regions})
    for name, picture in plots.items():
        write_bytes(picture, Path(folder) / "figures" / f"{name}.png")
