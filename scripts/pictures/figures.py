"""Figures of the report as PNG bytes: one axis each, so that they stay legible on a phone and side by side on a desk.

Colors are those of Okabe and Ito, and every line differs by its dashes too.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray
from PIL import Image
from sklearn.metrics import roc_curve

__all__ = ["comparison_picture", "confusion_matrix", "dice_histogram", "new_axes", "png", "roc", "training_curves"]

COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
DASHES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)), (0, (8, 2)), (0, (1, 1)))
WIDTH, DPI = 4.4, 180  # inches, pixels per inch
INK, RULE = "#222222", "#bbbbbb"
STYLE: Any = {
    "font.family": "DejaVu Sans",
    "font.size": 10,
    "axes.titlesize": 10.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.edgecolor": RULE,
    "axes.labelcolor": INK,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e6e6e6",
    "lines.linewidth": 1.8,
    "legend.frameon": False,
    "legend.fontsize": 9,
}
# What a chart of the training curves shows: title, unit of its y axis, beginning of the tags, bounds of y.
CURVES: tuple[tuple[str, str, str, tuple[float | None, float | None]], ...] = (
    ("Training loss and its parts", "loss", "train/loss/", (0, None)),
    ("Validation", "score, 1 = best", "validation/", (0, 1.02)),
    ("Learning rate", "learning rate", "learning_rate/", (0, None)),
    ("Gradient norm before clipping", "norm", "train/gradient_norm", (0, None)),
)
Curve = Sequence[tuple[int, float]]


def new_axes(height: float = 3.3) -> tuple[Figure, Any]:
    """A figure of the common width, and its one axis."""
    figure = Figure(figsize=(WIDTH, height), dpi=DPI, layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.subplots()


def png(figure: Figure) -> bytes:
    """A figure as PNG on white.

    The pixels are those of `Figure.savefig`, which draws twice: once for the layout alone.
    """
    figure.set_facecolor("white")
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    pixels = np.ascontiguousarray(np.asarray(canvas.buffer_rgba())[..., :3])  # nothing is transparent
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "png", dpi=(figure.dpi, figure.dpi))
    return buffer.getvalue()


def confusion_matrix(matrix: Sequence[Sequence[int]], classes: Sequence[str], title: str) -> bytes:
    """Counts of cases, true class by row, colored by the share of the row.

    Args:
        matrix: (K, K) counts.
        classes: K names.
        title: over the picture.

    Raises:
        ValueError: when matrix and names do not fit, or there is no case.
    """
    counts = np.asarray(matrix)
    if counts.shape != (len(classes), len(classes)):
        raise ValueError(f"confusion matrix of shape {counts.shape} for {len(classes)} classes: {', '.join(classes)}")
    if counts.sum() == 0:
        raise ValueError("confusion matrix without any case")
    with matplotlib.rc_context(STYLE):
        figure, axes = new_axes(3.7)
        rows = counts.sum(axis=1, keepdims=True)
        share = counts / np.maximum(rows, 1)
        picture = axes.imshow(share, cmap="Blues", vmin=0, vmax=1)
        for (i, j), value in np.ndenumerate(counts):
            text = f"{value}\n{share[i, j]:.0%}" if rows[i, 0] else f"{value}"
            axes.text(j, i, text, ha="center", va="center", color="white" if share[i, j] > 0.55 else INK)
        names = [name.replace("_", " ") for name in classes]
        axes.set_xticks(range(len(names)), names, rotation=0 if len(names) < 3 else 30)
        axes.set_yticks(range(len(names)), names)
        axes.set(xlabel="predicted class", ylabel="true class", title=title)
        axes.grid(False)
        bar = figure.colorbar(picture, ax=axes, fraction=0.045, ticks=[0, 0.5, 1])
        bar.set_label("share of the true class")
        return png(figure)


def roc(runs: Mapping[str, tuple[Any, Any]]) -> bytes:
    """ROC curves of tumor against no tumor.

    Args:
        runs: label: (tumor (N,) bool, probability (N,) of tumor).

    Raises:
        ValueError: when a run has cases of one class alone.
    """
    with matplotlib.rc_context(STYLE):
        figure, axes = new_axes(4.0)
        axes.plot([0, 1], [0, 1], color="#888888", linewidth=1, linestyle=":", label="chance")
        for i, (label, (tumor, probability)) in enumerate(runs.items()):
            tumor = np.asarray(tumor, dtype=bool)
            if tumor.all() or not tumor.any():
                raise ValueError(f"{label}: ROC needs cases with and without tumor, all {len(tumor)} are of one kind")
            false, true, _ = roc_curve(tumor, np.asarray(probability, dtype=float), drop_intermediate=False)
            axes.plot(false, true, color=COLORS[i], linestyle=DASHES[i], label=label)
        axes.set(
            xlabel="1 - specificity (false alarms among tumor-free)",
            ylabel="sensitivity (tumors found)",
            title="ROC: tumor against no tumor",
            xlim=(-0.02, 1.02),
            ylim=(-0.02, 1.02),
            aspect="equal",
        )
        axes.legend(loc="lower right")
        return png(figure)


def dice_histogram(runs: Mapping[str, Any]) -> bytes:
    """Histogram of Dice per case, in 20 bins from 0 to 1, with the mean as a vertical line.

    Args:
        runs: label: Dice of each tumor case, in [0, 1].

    Raises:
        ValueError: when a run has no case.
    """
    with matplotlib.rc_context(STYLE):
        figure, axes = new_axes()
        for i, (label, values) in enumerate(runs.items()):
            values = np.asarray(values, dtype=float)
            if len(values) == 0:
                raise ValueError(f"{label}: no tumor case with a Dice score")
            axes.hist(
                values,
                bins=np.linspace(0, 1, 21),
                histtype="stepfilled" if i == 0 else "step",
                color=COLORS[i],
                alpha=0.45 if i == 0 else 1.0,
                linestyle=DASHES[i],
                linewidth=1.6,
                label=f"{label} ({len(values)} cases)",
            )
            axes.axvline(values.mean(), color=COLORS[i], linestyle=DASHES[i], linewidth=1.2)
        axes.set(
            xlabel="Dice of a case (vertical lines: means)", ylabel="tumor cases", title="Dice by case", xlim=(0, 1)
        )
        axes.yaxis.set_major_locator(MaxNLocator(integer=True))
        axes.legend(loc="upper left")
        return png(figure)


def training_curves(stages: Sequence[tuple[str, Mapping[str, Curve]]]) -> dict[str, bytes]:
    """Charts of a run's scalars, its stages one after the other along the epochs.

    Args:
        stages: (name, {tag: [(epoch, value), ...]}) in order of training; values that are not finite are left out.

    Returns:
        title: PNG; a chart whose tags no stage has is left out.
    """
    offsets, lengths, total = [], [], 0
    for _, scalars in stages:
        offsets.append(total)
        lengths.append(max((step for curve in scalars.values() for step, _ in curve), default=0))
        total += lengths[-1]
    charts = {}
    for title, unit, beginning, bounds in CURVES:
        tags = sorted({tag for _, scalars in stages for tag in scalars if tag.startswith(beginning)})
        if not tags:
            continue
        with matplotlib.rc_context(STYLE):
            figure, axes = new_axes()
            for i, tag in enumerate(tags):
                for (_, scalars), offset in zip(stages, offsets, strict=True):
                    curve = [(offset + e, v) for e, v in scalars.get(tag, ()) if np.isfinite(v)]
                    if curve:
                        label = tag.rpartition("/")[2].replace("_", " ")
                        known = label in axes.get_legend_handles_labels()[1]
                        axes.plot(
                            *zip(*curve, strict=True),
                            color=COLORS[i % len(COLORS)],
                            linestyle=DASHES[i % len(DASHES)],
                            marker="." if len(curve) == 1 else None,
                            label=None if known else label,
                        )
            axes.set(xlabel="epoch", ylabel=unit, xlim=(0, max(total, 1)))
            axes.set_title(title, pad=18)
            axes.set_ylim(*bounds)
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
            for (name, _), offset, length in zip(stages, offsets, lengths, strict=True):
                if offset:
                    axes.axvline(offset, color="#888888", linewidth=1)
                axes.text(
                    offset + length / 2, 1.02, name, transform=axes.get_xaxis_transform(), ha="center", fontsize=8.5
                )
            if len(tags) > 1:
                axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.2), ncols=2 if len(tags) in (2, 4) else 3)
            charts[title] = png(figure)
    return charts


def comparison_picture(columns: Sequence[str], rows: Sequence[tuple[str, Sequence[tuple[NDArray, str]]]]) -> bytes:
    """Several cases below each other, the same columns for each.

    Args:
        columns: their titles.
        rows: (name, [(picture (H, W, 3) uint8, line of text below it), ...]) of each case.

    Raises:
        ValueError: when there is no case, or a row has another number of pictures than there are columns.
    """
    if not rows:
        raise ValueError("comparison picture without any case")
    for name, cells in rows:
        if len(cells) != len(columns):
            raise ValueError(f"case {name}: {len(cells)} pictures for {len(columns)} columns")
    width = 2.6
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(width * len(columns), (width + 0.25) * len(rows) + 0.4), dpi=DPI, layout="constrained")
        FigureCanvasAgg(figure)
        grid = figure.subplots(len(rows), len(columns), squeeze=False)
        for i, (_, cells) in enumerate(rows):
            for j, (picture, text) in enumerate(cells):
                axes = grid[i, j]
                axes.imshow(picture, interpolation="lanczos")
                axes.set(xticks=[], yticks=[])
                axes.spines[:].set_visible(False)
                axes.set_xlabel(text, fontsize=9.5, labelpad=3)
                if i == 0:
                    axes.set_title(columns[j], loc="center")
        return png(figure)
