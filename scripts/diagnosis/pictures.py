"""The pictures of a diagnosis, one a cause: PNG bytes made of what was measured."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import matplotlib
import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from scripts.diagnosis import network_pictures as of_network
from scripts.diagnosis.examination import Examination
from scripts.diagnosis.panels import (
    AIR,
    DPI,
    HEAD,
    LIMIT,
    WIDTH,
    case_of,
    contour,
    height_of,
    new_figure,
    overlay_of,
    plane_of,
    share_in_air,
    short,
    show,
    shown_cases,
)
from scripts.explain.effect_findings import WITHOUT_TUMOR
from scripts.explain.findings import CANNOT_TELL, SHORTCUT
from scripts.explain.maps import max_scaling, upsample
from scripts.pictures import overlays
from scripts.pictures.figures import COLORS, STYLE, png

__all__ = ["PICTURES", "map_picture", "picture_of"]


def map_picture(examination: Examination) -> bytes | None:
    """The map that is looked at, on several cases, and the same map with more air around the image."""
    if examination.maps is None:
        return None
    samples, cases = examination.subject.samples, shown_cases(examination)
    on_image = upsample(examination.maps, samples.images.shape[2:])
    rows = [("", max_scaling(on_image))]
    if examination.padded_maps is not None:
        rows.append((f"{examination.pad} px more air", examination.padded_maps))
    figure, grid = new_figure(2.5 * len(rows), max(4, len(cases)), len(rows))
    for line, (said, maps) in zip(grid, rows, strict=True):
        for axes in line:
            axes.set_axis_off()
        for axes, i in zip(line, cases, strict=False):
            energy = share_in_air(maps[i], samples.foreground[i])
            title = f"{said or short(samples.names[i])}: " + ("empty" if energy is None else f"{energy:.0%} in air")
            show(axes, overlay_of(examination, i, maps[i]), title)
    return png(figure)


def normalizer_picture(examination: Examination) -> bytes | None:
    """What goes into the normalizer and what comes out, as a curve and on a map."""
    normalizer, samples = examination.subject.normalizer, examination.subject.samples
    if normalizer is None:
        return None
    ramp = torch.linspace(0, 1, 64).reshape(1, 1, 8, 8)
    out = np.asarray(normalizer(ramp.clone()), dtype=float).ravel()
    figure, grid = new_figure(2.7, 3 if examination.maps is not None else 1)
    axes = grid[0][0]
    axes.plot(ramp.flatten().numpy(), out, color=COLORS[0])
    axes.plot([0, 1], [out.min(), out.max()], color=LIMIT, linewidth=1, linestyle=":")
    axes.set(title="A ramp through the normalizer", xlabel="raw map, 1 = strongest", ylabel="shown as")
    if examination.maps is not None:
        i = shown_cases(examination)[0]
        raw = upsample(examination.maps, samples.images.shape[2:])[i : i + 1]
        shown = torch.as_tensor(np.asarray(normalizer(raw.clone()))).float()
        for axes, value, said in ((grid[0][1], raw, "raw map"), (grid[0][2], shown, "behind the normalizer")):
            seen = show(axes, plane_of(value[0], height_of(examination, i))[0].T, said, cmap="inferno")
            contour(axes, examination, i)
            figure.colorbar(seen, ax=axes, shrink=0.8)
    return png(figure)


def colors_picture(examination: Examination) -> bytes | None:
    """The color map from weakest to strongest, and the user's pictures."""
    colormap, pictures = examination.subject.colormap, examination.given_pictures[:4]
    if colormap is None and not pictures:
        return None
    figure = Figure(figsize=(WIDTH, (0.8 if colormap is not None else 0) + (2.4 if pictures else 0)), dpi=DPI)
    FigureCanvasAgg(figure)
    figure.set_layout_engine("constrained")
    parts = figure.subfigures(int(colormap is not None) + bool(pictures), 1, squeeze=False, height_ratios=None)[:, 0]
    if colormap is not None:
        bar = np.asarray(colormap(np.tile(np.linspace(0, 1, 256, dtype=np.float32), (12, 1))))[..., :3]
        axes = parts[0].subplots()
        axes.imshow(bar, aspect="auto", extent=(0, 1, 0, 1))
        axes.set(yticks=[], xlabel="value of the map: 0 = weakest, 1 = strongest")
        axes.grid(False)
    for axes, (name, picture) in zip(parts[-1].subplots(1, 4) if pictures else (), pictures, strict=False):
        show(axes, picture, f"yours: {short(name, 20)}")
    if pictures:
        for axes in parts[-1].axes:
            axes.set_axis_off()
    return png(figure)


def _values(examination: Examination) -> tuple[np.ndarray, np.ndarray]:
    """Values of the air and of the head, first channel."""
    images, inside = examination.subject.samples.images[:, :1], examination.subject.samples.foreground
    return images[~inside].numpy(), images[inside].numpy()


def air_picture(examination: Examination) -> bytes | None:
    """Where the air is not 0, and which values it has beside the head's."""
    air, head = _values(examination)
    if not air.size:
        return None
    figure, grid = new_figure(2.7, 3)
    samples = examination.subject.samples
    different = [
        (float((samples.images[i][:, ~samples.foreground[i][0]] != 0).sum()), -i) for i in range(len(samples.images))
    ]
    i = -max(different)[1] if max(different)[0] else shown_cases(examination)[0]
    image, _, _ = case_of(examination, i)
    show(grid[0][0], overlays.gray_image(image), f"{short(samples.names[i])}: the head")
    head_there, pixels = (plane_of(t[i], height_of(examination, i))[0] for t in (samples.foreground, samples.images))
    outside = np.where(head_there != 0, np.nan, pixels).T
    cmap = matplotlib.colormaps["viridis"].with_extremes(bad="#dddddd")
    low, high = (float(np.nanmin(outside)), float(np.nanmax(outside))) if np.isfinite(outside).any() else (0.0, 0.0)
    if low == high == 0:
        high = 1.0
    seen = show(grid[0][1], outside, f"its air, {low:.3g} to {high if low != 0 or high != 1.0 else 0:.3g}", cmap=cmap,
                 vmin=low, vmax=max(high, low + 1e-6))  # fmt: skip
    if low != 0 or high != 1.0:
        figure.colorbar(seen, ax=grid[0][1], shrink=0.8)
    _histogram(grid[0][2], air, head)
    return png(figure)


def _histogram(axes: Any, air: np.ndarray, head: np.ndarray) -> None:
    low, high = (float(f(np.r_[air.min(), air.max(), np.percentile(head, [0.5, 99.5])])) for f in (np.min, np.max))
    edges = np.linspace(low, high + 1e-6, 61)
    axes.hist(head, edges, color=HEAD, alpha=0.75, label="head")
    axes.hist(air, edges, color=AIR, alpha=0.75, label="air")
    axes.axvline(0, color=LIMIT, linewidth=1, linestyle=":")
    axes.set_yscale("log")
    axes.set(title="All images", xlabel="value at the network's input", ylabel="pixels")
    axes.legend(loc="upper right")


def order_picture(examination: Examination) -> bytes | None:
    """The air's value in each image beside the range of the head's."""
    images, inside = examination.subject.samples.images[:, :1], examination.subject.samples.foreground
    if bool(inside.all()):
        return None
    figure, grid = new_figure(2.5, 1)
    axes = grid[0][0]
    for i, (image, mask) in enumerate(zip(images, inside, strict=True)):
        low, high = np.percentile(image[mask].numpy(), [1, 99])
        axes.plot(
            [i, i], [low, high], color=HEAD, linewidth=3, alpha=0.5, label="head, 1 % to 99 %" if i == 0 else None
        )
        if not bool(mask.all()):
            air = np.percentile(image[~mask].numpy(), [5, 50, 95])
            axes.plot([i, i], air[[0, 2]], color=AIR, linewidth=2, label="air, 5 % to 95 %" if i == 0 else None)
            axes.plot(i, air[1], "o", color=AIR, markersize=3)
    axes.axhline(0, color=LIMIT, linewidth=1, linestyle=":")
    axes.set(title="Air and head at the network's input", xlabel="image", ylabel="value")
    axes.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=2)  # above: the lines fill the axes
    return png(figure)


def shortcut_picture(examination: Examination) -> bytes | None:
    """What each kind of feature alone tells of the class, and which classes each source holds."""
    rows = [row for row in examination.rows if row["auc"] is not None]
    pairs = [
        (s, k) for s, k in zip(examination.subject.sources, examination.subject.labels, strict=True) if s and k >= 0
    ]
    sources, classes = sorted({s for s, _ in pairs}), sorted({k for _, k in pairs})
    if not rows and not pairs:
        return None
    figure, grid = new_figure(max(2.4, 0.4 * len(sources) + 1), bool(rows) + bool(pairs))
    if rows:
        axes = grid[0][0]
        for y, row in enumerate(rows):
            color = AIR if row["counted"] else "#999999"
            axes.plot(row["auc_ci95"], [y, y], color=color, linewidth=2)
            axes.plot(row["auc"], y, "o", color=color)
            axes.annotate(f"{row['auc']:.2f}", (1.04, y), va="center", fontsize=9, color=color)
            if row["limit"] is not None:
                axes.plot([row["limit"]] * 2, [y - 0.35, y + 0.35], color=LIMIT, linestyle=":")
        names = [f"{row['features']}\n({'counted' if row['counted'] else 'not counted'})" for row in rows]
        axes.set_yticks(range(len(rows)), names, fontsize=8)
        axes.axvline(0.5, color="#888888", linewidth=1)
        axes.set(title="Tumor or none, predicted from ... alone", xlabel="AUC, cross-validated", xlim=(0.3, 1.15),
                 ylim=(len(rows) - 0.5, -0.5))  # fmt: skip
        axes.set_xticks([0.4, 0.6, 0.8, 1.0])
    if pairs:
        axes = grid[0][-1]
        counts = np.array([[sum(p == (s, k) for p in pairs) for k in classes] for s in sources])
        axes.imshow(counts / counts.sum(1, keepdims=True), cmap="Blues", vmin=0, vmax=1.6, aspect="auto")
        for (i, j), value in np.ndenumerate(counts):
            axes.text(j, i, f"{value}", ha="center", va="center", fontsize=9)
        names = [examination.subject.classes.get(str(k), str(k)) for k in classes]
        axes.set_xticks(range(len(classes)), names, fontsize=8)
        axes.set_yticks(range(len(sources)), [s[:18] for s in sources], fontsize=8)
        axes.set_title("Images by source and class")
        axes.grid(False)
    return png(figure)


def without_tumor_picture(examination: Examination) -> bytes | None:
    """Images with a tumor, and the same with the tumor painted out."""
    samples = examination.subject.samples
    if examination.without_tumor is None or samples.tumor is None:
        return None
    cases = [i for i in shown_cases(examination, 4) if bool(samples.tumor[i].any())][:2]
    figure, grid = new_figure(2.5, 4)
    for axes in grid[0]:
        axes.set_axis_off()
    for k, i in enumerate(cases):
        height = height_of(examination, i)
        for j, (images, said) in enumerate(((samples.images, ""), (examination.without_tumor, "painted out"))):
            show(grid[0][2 * k + j], plane_of(images[i], height)[0].T, said or short(samples.names[i]), cmap="gray")
    return png(figure)


PICTURES: dict[str, Callable[[Examination], bytes | None]] = {
    "inverted normalizer": normalizer_picture,
    "swapped colors": colors_picture,
    "air not zero": air_picture,
    "order of transforms": order_picture,
    SHORTCUT: shortcut_picture,
    "normalization leak": of_network.leak_picture,
    "pooling over air": of_network.pooling_picture,
    WITHOUT_TUMOR: without_tumor_picture,
    "gradient averaging": of_network.averaging_picture,
    "wrong class index": of_network.class_picture,
    "dead or saturated gradient": of_network.gradient_picture,
    "unsuitable layer": of_network.layer_picture,
    "coarse grid": of_network.grid_picture,
}


def picture_of(examination: Examination, cause: str) -> bytes | None:
    """Picture of a cause, PNG; None where nothing can be shown."""
    finding = next(finding for finding in examination.findings if finding.cause == cause)
    if finding.verdict == CANNOT_TELL and not finding.figures:
        return None
    with matplotlib.rc_context(STYLE):
        return PICTURES[cause](examination)
