"""Figures of an explained run as PNG bytes: localization as bars, and what the tests of faithfulness found."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from scripts.pictures.figures import COLORS, DASHES, DPI, INK, STYLE, png

__all__ = ["faithfulness_figure", "localization_figure"]

MAIN, OTHER, BASELINE = COLORS[1], COLORS[0], "#9a9a9a"
NAMES = {"uniform", "random", "oracle"}
SHORT = {
    "tumor_log_odds": "tumor",
    "segmentation_1_predicted": "segmentation, predicted mask",
    "segmentation_1_true_mask": "segmentation, true mask",
}


def map_label(row: Mapping[str, Any]) -> str:
    """Method, layer and target of a row, short enough for an axis."""
    method = str(row["method"]).replace("_", " ")
    if row["layer"] == "none":
        return f"{method} map"
    at_layer = "" if row["layer"] in (row["method"], "input") else f" at {row['layer']}"
    target = row.get("target")
    return method + at_layer + (f" ({SHORT.get(target, target.replace('_', ' '))})" if target else "")


def localization_figure(rows: Sequence[Mapping[str, Any]], main: tuple[str, str], title: str) -> bytes:
    """Bars of energy in the tumor with 95 % intervals, and pointing game as points; energy in air beside them.

    Args:
        rows: of localization.json, over one stratum, in the order from top to bottom.
        main: (method, layer) of the map that the run is explained by, drawn in another color.
        title: over the figure.

    Raises:
        ValueError: when there is no row.
    """
    if not rows:
        raise ValueError("figure of the localization without any row")
    most = max(row["n"] for row in rows)
    labels = [map_label(row) + ("" if row["n"] == most else f", n = {row['n']}") for row in rows]
    places = np.arange(len(rows))
    colors = [
        BASELINE if row["method"] in NAMES else MAIN if (row["method"], row["layer"]) == main else OTHER for row in rows
    ]
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(10.5, 0.235 * len(rows) + 1.5), dpi=DPI * 0.7, layout="constrained")
        FigureCanvasAgg(figure)
        tumor, air = figure.subplots(1, 2, sharey=True, width_ratios=(2, 1))
        for axes, name in ((tumor, "tumor_energy"), (air, "background_energy")):
            values = [100 * (row[name] or 0) for row in rows]
            axes.barh(places, values, color=colors, height=0.72)
            for place, value, row in zip(places, values, rows, strict=True):
                low, high = row[f"{name}_ci95"]
                if low is not None and row[name] is not None:
                    axes.plot([100 * low, 100 * high], [place, place], color=INK, linewidth=1.0)
                if row[name] is None:
                    axes.text(1, place, "no map with any energy", va="center", fontsize=7.5)
                elif value < 0.05 and axes is air:
                    axes.text(1, place, "0", va="center", fontsize=7.5)
        pointing = [100 * (row["pointing_game"] or 0) for row in rows]
        tumor.plot(pointing, places, "D", color="none", markeredgecolor=INK, markersize=4.5, label="pointing game")
        tumor.legend(loc="lower right")
        tumor.set(xlim=(0, 102), xlabel="energy in tumor, %  (bar and 95 % interval)", title=title)
        air.set(xlim=(0, 102), xlabel="energy in air, %  (image grid)")
        tumor.set_yticks(places, labels, fontsize=8.5)
        tumor.set_ylim(len(rows) - 0.4, -0.6)
        for axes in (tumor, air):
            _bars_only(axes)
        return png(figure)


def _bars_only(axes: Any) -> None:
    """No lines between the bars, and those of the values behind them."""
    axes.grid(axis="y", visible=False)
    axes.set_axisbelow(True)


def faithfulness_figure(result: Mapping[str, Any], main: tuple[str, str], title: str) -> bytes:
    """One panel a test that was run.

    Args:
        result: content of faithfulness.json.
        main: (method, layer) of the map whose curves are drawn.
        title: over the figure.

    Raises:
        ValueError: when no test was run.
    """
    panels: list[tuple[Callable[..., None], str]] = []
    if "deletion_insertion" in result:
        panels += [(_curves, "deletion_insertion"), (_gains, "deletion_insertion")]
    panels += [
        (draw, name)
        for draw, name in ((_randomization, "randomization"), (_swap, "background_swap"), (_stability, "stability"))
        if name in result
    ]
    if not panels:
        raise ValueError("figure of the faithfulness without any test")
    methods = list(dict.fromkeys(row["method"] for name in result if isinstance(result[name], list)
                                 for row in result[name] if isinstance(row, Mapping) and "method" in row))  # fmt: skip
    styles = {m: (COLORS[i % len(COLORS)], DASHES[(i + i // len(COLORS)) % len(DASHES)]) for i, m in enumerate(methods)}
    with matplotlib.rc_context(STYLE):
        columns = min(3, len(panels))
        lines = -(-len(panels) // columns)
        figure = Figure(figsize=(5.0 * columns, 3.9 * lines + 0.4), dpi=DPI * 0.7, layout="constrained")
        FigureCanvasAgg(figure)
        grid = figure.subplots(lines, columns, squeeze=False).flatten()
        for axes, (draw, name) in zip(grid, panels, strict=False):
            draw(axes, result[name], main, styles)
        for axes in grid[len(panels) :]:
            axes.set_axis_off()
        figure.suptitle(f"{title}; {result['n']} tumor cases, score: {SHORT[result['target']]} log-odds", fontsize=11)
        return png(figure)


def _curves(axes: Any, rows: Sequence[Mapping[str, Any]], main: tuple[str, str], _styles: Any) -> None:
    row = next((r for r in rows if (r["method"], r["layer"]) == main), rows[0])
    curves = row["curves"]
    share = 100 * np.array(curves["share"])
    for name, color in (("deletion", COLORS[1]), ("insertion", COLORS[0])):
        axes.plot(share, curves[name], color=color, label=f"{name}, by the map")
        axes.plot(share, curves[f"random_{name}"], color=color, linestyle=":", label=f"{name}, by random maps")
    axes.set(
        xlabel=f"foreground replaced by {row['replaced_by']}, or restored, %",
        ylabel="score",
        title=f"Curves of {map_label(row)}",
    )
    axes.legend(fontsize=8, ncols=2, loc="upper center", bbox_to_anchor=(0.5, -0.18))


def _gains(axes: Any, rows: Sequence[Mapping[str, Any]], _main: tuple[str, str], _styles: Any) -> None:
    ordered = sorted(rows, key=lambda r: r["deletion_gain"] + r["insertion_gain"])
    for i, (name, color) in enumerate((("deletion_gain", COLORS[1]), ("insertion_gain", COLORS[0]))):
        places = np.arange(len(ordered)) + (0.2 - 0.4 * i)
        axes.barh(places, [r[name] for r in ordered], height=0.38, color=color, label=name.replace("_", " "))
        _intervals(axes, places, ordered, name)
    axes.set_yticks(range(len(ordered)), [map_label(r) for r in ordered], fontsize=8.5)
    axes.set_ylim(-0.7, max(len(ordered), 3) - 0.3)
    axes.axvline(0, color=INK, linewidth=0.8)
    _bars_only(axes)
    axes.set(xlabel="area gained over random maps, score", title="Deletion and insertion: above 0 beats chance")
    axes.legend(fontsize=8, ncols=2, loc="upper center", bbox_to_anchor=(0.5, -0.18))


def _intervals(axes: Any, places: Any, rows: Sequence[Mapping[str, Any]], name: str) -> None:
    for place, row in zip(places, rows, strict=True):
        low, high = row[f"{name}_ci95"]
        if low is not None:
            axes.plot([low, high], [place, place], color=INK, linewidth=1.0)


def _randomization(axes: Any, rows: Sequence[Mapping[str, Any]], _main: tuple[str, str], styles: Any) -> None:
    for row in rows:
        values = [np.nan if s["rank_correlation"] is None else s["rank_correlation"] for s in row["stages"]]
        color, dash = styles[row["method"]]
        axes.plot(range(len(values)), values, color=color, linestyle=dash, marker=".", label=map_label(row))
    stages = rows[0]["stages"]
    last = [s["layers"][-1] if s["layers"] else "none" for s in stages]
    axes.set_xticks(range(len(stages)), last, rotation=35, ha="right", fontsize=7.5)
    axes.axhline(0, color=INK, linewidth=0.8)
    columns = 2 if len(rows) > 5 else 1
    axes.set(
        ylim=(-1.1 - 0.17 * -(-len(rows) // columns), 1.05),  # room for the legend below the lines
        yticks=np.linspace(-1, 1, 5),
        xlabel="weights random from the output down to",
        ylabel="rank correlation",
        title="Randomized weights: should fall to 0",
    )
    axes.legend(fontsize=7, ncols=columns, loc="lower left")


def _swap(axes: Any, rows: Sequence[Mapping[str, Any]], _main: tuple[str, str], _styles: Any) -> None:
    kinds = {
        "masked again": [r for r in rows if r["masked_again"] and r["foreground"] == "given"],
        "not masked, foreground given": [r for r in rows if not r["masked_again"] and r["foreground"] == "given"],
        "not masked, foreground read off the image": [
            r for r in rows if not r["masked_again"] and r["foreground"] != "given"
        ],
    }
    for i, (label, chosen) in enumerate(kinds.items()):
        places = np.arange(len(chosen)) + 0.27 * (i - 1)
        values = [r["absolute_change"] for r in chosen]
        axes.barh(places, values, height=0.25, color=COLORS[i], label=label)
        for place, value in zip(places, values, strict=True):
            axes.text(value, place, " < 1e-6" if 0 < value < 1e-6 else f" {value:.2g}", va="center", fontsize=7.5)
    axes.set_yticks(range(len(chosen)), [f"air := {r['air']}" for r in chosen])
    axes.margins(x=0.15)
    _bars_only(axes)
    axes.set(
        xlabel=f"mean |change of the score|, of a mean |score| of {rows[0]['absolute_score']:.2g}",
        title="Other air: 0 where air does not count",
    )
    axes.legend(fontsize=7, loc="lower center", bbox_to_anchor=(0.4, -0.42))


def _stability(axes: Any, rows: Sequence[Mapping[str, Any]], _main: tuple[str, str], _styles: Any) -> None:
    ordered = sorted(rows, key=lambda r: r["ssim"] if r["ssim"] is not None else -1)
    for i, (name, color) in enumerate((("ssim", COLORS[2]), ("rank_correlation", COLORS[3]))):
        places = np.arange(len(ordered)) + (0.2 - 0.4 * i)
        axes.barh(places, [r[name] or 0 for r in ordered], height=0.38, color=color, label=name.replace("_", " "))
        _intervals(axes, places, ordered, name)
    axes.set_yticks(range(len(ordered)), [map_label(r) for r in ordered], fontsize=8.5)
    axes.set_ylim(-0.7, max(len(ordered), 3) - 0.3)
    _bars_only(axes)
    axes.set(
        xlim=(min(0, *(r["rank_correlation"] or 0 for r in ordered)), 1.02),
        xlabel="likeness with the map of the clean image",
        title=f"Stability: noise of {rows[0]['noise_std']:.0%} of the deviation",
    )
    axes.legend(fontsize=8, ncols=2, loc="upper center", bbox_to_anchor=(0.5, -0.18))
