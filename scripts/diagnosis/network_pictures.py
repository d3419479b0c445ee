"""The pictures of the causes that lie in the network and its gradients, PNG bytes."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from scripts.diagnosis.examination import Examination
from scripts.diagnosis.panels import (
    AIR,
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
from scripts.explain.cam import gradcam, hirescam
from scripts.explain.gradient_findings import activations_and_gradients, cells_with_head, logits_of
from scripts.explain.grids import as_map
from scripts.explain.layers import LayerError, evaluating
from scripts.explain.maps import max_scaling, upsample
from scripts.explain.measures import oracle_map
from scripts.explain.network_findings import first_normalization, with_more_air
from scripts.explain.recording import default_layer, record
from scripts.pictures import overlays
from scripts.pictures.figures import COLORS, png

__all__ = [
    "averaging_picture",
    "class_picture",
    "gradient_picture",
    "grid_picture",
    "layer_picture",
    "leak_picture",
    "pooling_picture",
]


def leak_picture(examination: Examination) -> bytes | None:
    """Features behind the first normalization, the same with more air, and what a corner cell holds of the class."""
    subject, samples = examination.subject, examination.subject.samples
    layer = first_normalization(subject.network, samples.images, subject.forward_kwargs)
    if layer is None:
        return None
    i = shown_cases(examination)[0]
    one = slice(i, i + 1)
    try:
        before, after, _ = with_more_air(
            subject.network,
            samples.images[one],
            samples.foreground[one],
            layer,
            subject.forward_kwargs,
            examination.pad,
        )
    except ValueError:
        return None  # the finding says that the network takes no larger input
    # The channel whose air stands out most from its head shows best what is written there.
    corner, size = before[0].flatten(1)[:, 0].abs(), before[0].flatten(1).std(1).clamp(min=1e-12)
    channel = int((corner / size).argmax())
    planes = [plane_of(t[0, channel : channel + 1], height_of(examination, i))[0].T for t in (before, after)]
    bound = float(np.percentile(np.abs(planes[0]), 98)) or 1.0
    figure, grid = new_figure(2.6, 4, width_ratios=[1, 1, 1, 1.1])
    for axes, plane, said in zip(
        grid[0], (*planes, planes[1] - planes[0]),
        (f"behind {layer[-18:]}", f"{examination.pad} px more air", "difference"), strict=False,
    ):  # fmt: skip
        seen = show(axes, plane, said, cmap="RdBu_r", vmin=-bound, vmax=bound)
        contour(axes, examination, i, (plane.shape[1], plane.shape[0]))
    figure.colorbar(seen, ax=grid[0][2], shrink=0.8)
    _corners(grid[0][3], examination, layer)
    return png(figure)


def _corners(axes: Any, examination: Examination, layer: str) -> None:
    """A corner cell's value in the channel that differs most between the classes."""
    subject, samples = examination.subject, examination.subject.samples
    parts = []
    for start in range(0, len(samples.images), 8):
        with torch.no_grad(), evaluating(subject.network), record(subject.network, [layer]) as recorder:
            subject.network(images := samples.images[start : start + 8].clone(), **subject.forward_kwargs)
        activation = recorder.activations[recorder.layers[0]]
        parts.append(
            as_map(subject.network, recorder.layers[0], activation, images)(activation).flatten(2)[:, :, 0].float()
        )
    values, labels = torch.cat(parts).numpy(), np.array(samples.labels)
    groups = [(name, labels == 0, COLORS[0]) for name in ("no tumor",)] + [("tumor", labels > 0, COLORS[1])]
    groups = [group for group in groups if group[1].any()] or [("all", labels == labels, COLORS[0])]
    spread = values.std(0) + 1e-12
    apart = np.abs(values[groups[0][1]].mean(0) - values[groups[-1][1]].mean(0)) / spread
    channel = int(apart.argmax())
    for x, (_, chosen, color) in enumerate(groups):
        jitter = np.random.default_rng(x).uniform(-0.18, 0.18, int(chosen.sum()))
        axes.plot(x + jitter, values[chosen, channel], "o", color=color, markersize=4, alpha=0.6)
    axes.set_xticks(range(len(groups)), [group[0] for group in groups])
    axes.set_xlim(-0.6, len(groups) - 0.4)
    axes.set_title(f"Corner cell, channel {channel}", fontsize=9, fontweight="normal")


def pooling_picture(examination: Examination) -> bytes | None:
    """Where the score's gradient lies at the features in front of the pooling."""
    subject, samples = examination.subject, examination.subject.samples
    cases = shown_cases(examination)
    index = torch.tensor(cases)
    images = samples.images[index]
    try:
        layer = default_layer(subject.network, images[:1], dict(subject.forward_kwargs))
        gradients = activations_and_gradients(
            subject.network, images, layer, subject.target.take(index), subject.forward_kwargs
        )[2]
    except LayerError:
        return None  # the finding says why
    size = gradients.abs().sum(1, keepdim=True)
    figure, grid = new_figure(2.6, 4)
    for axes in grid[0]:
        axes.set_axis_off()
    for axes, i, value in zip(grid[0], cases, size, strict=False):
        cells = cells_with_head(samples.foreground[i : i + 1], value.shape[1:])[0]
        share = float((value * ~cells).sum() / value.sum().clamp(min=1e-30))
        plane = plane_of(value, height_of(examination, i))[0].T
        seen = show(
            axes,
            plane,
            f"{short(samples.names[i])}: {share:.0%} in air",
            cmap="inferno",
            vmin=0,
            vmax=1.15 * float(size.max()),
        )
        contour(axes, examination, i, (plane.shape[1], plane.shape[0]))
    figure.colorbar(seen, ax=grid[0][-1], shrink=0.7, label="|gradient|")
    return png(figure)


def averaging_picture(examination: Examination) -> bytes | None:
    """Grad-CAM beside HiResCAM, which is the same without the average."""
    subject, samples = examination.subject, examination.subject.samples
    if examination.layer is None or examination.maps is None:
        return None
    cases = shown_cases(examination, 2)
    index = torch.tensor(cases)
    _, activations, gradients = activations_and_gradients(
        subject.network, samples.images[index], examination.layer, subject.target.take(index), subject.forward_kwargs
    )
    figure, grid = new_figure(2.5, 4)
    for axes in grid[0]:
        axes.set_axis_off()
    for k, i in enumerate(cases):
        for j, (name, method) in enumerate((("Grad-CAM", gradcam), ("HiResCAM", hirescam))):
            raw = method(activations[k : k + 1], gradients[k : k + 1]).clamp(min=0)
            heat = max_scaling(upsample(raw, samples.images.shape[2:]))[0]
            energy = share_in_air(heat, samples.foreground[i])
            said = f"{name}: " + ("empty" if energy is None else f"{energy:.0%} in air")
            show(grid[0][2 * k + j], overlay_of(examination, i, heat), said)
    return png(figure)


def class_picture(examination: Examination) -> bytes | None:
    """The explained score of every image, by its class."""
    subject, labels = examination.subject, np.array(examination.subject.samples.labels)
    output = logits_of(subject.network, subject.samples.images, subject.forward_kwargs)
    known = sorted({int(k) for k in labels if k >= 0})
    if output.dim() != 2 or not known:
        return None
    score = subject.target(output).detach().numpy()
    figure, grid = new_figure(2.4, 1)
    axes = grid[0][0]
    for y, k in enumerate(known):
        jitter = np.random.default_rng(k).uniform(-0.25, 0.25, int((labels == k).sum()))
        axes.plot(score[labels == k], y + jitter, "o", color=COLORS[k % len(COLORS)], alpha=0.6, markersize=5)
    axes.set_yticks(range(len(known)), [subject.classes.get(str(k), f"class {k}") for k in known])
    axes.set_ylim(len(known) - 0.5, -0.5)
    axes.set(xlabel=f"{subject.target.name}: should be higher for the class that is meant", title="Explained score")
    return png(figure)


def gradient_picture(examination: Examination) -> bytes | None:
    """Activations times gradients of each image, as a share of the score."""
    subject = examination.subject
    if examination.layer is None:
        return None
    try:
        score, activations, gradients = activations_and_gradients(
            subject.network, subject.samples.images, examination.layer, subject.target, subject.forward_kwargs
        )
    except LayerError:
        return None  # the finding says why
    effect = (activations * gradients).abs().flatten(1).sum(1) / score.abs().clamp(min=1.0)
    figure, grid = new_figure(2.3, 1)
    axes = grid[0][0]
    axes.plot(range(len(effect)), effect.clamp(min=1e-9).numpy(), "o", color=COLORS[0], markersize=4)
    axes.axhline(1e-6, color=AIR, linestyle="--", linewidth=1.2, label="limit")
    axes.set_yscale("log")
    axes.set(title="What the gradient accounts for", xlabel="image", ylabel="share of the score", ylim=(3e-10, None))
    axes.legend(loc="lower right")
    return png(figure)


def layer_picture(examination: Examination) -> bytes | None:
    """Activations of the explained layer, and the map made of them."""
    if examination.layer is None or examination.maps is None:
        return None
    subject, samples = examination.subject, examination.subject.samples
    cases = shown_cases(examination, 2)
    index = torch.tensor(cases)
    activations = activations_and_gradients(
        subject.network, samples.images[index], examination.layer, subject.target.take(index), subject.forward_kwargs
    )[1]
    figure, grid = new_figure(2.5, 4)
    for axes in grid[0]:
        axes.set_axis_off()
    for k, i in enumerate(cases):
        mean = plane_of(activations[k].mean(0, keepdim=True), height_of(examination, i))[0].T
        bound = float(np.abs(mean).max()) or 1.0
        seen = show(grid[0][2 * k], mean, f"{examination.layer}, mean"[-30:], cmap="RdBu_r", vmin=-bound, vmax=bound)
        figure.colorbar(seen, ax=grid[0][2 * k], shrink=0.7)
        heat = max_scaling(upsample(examination.maps, samples.images.shape[2:]))[i]
        show(grid[0][2 * k + 1], overlay_of(examination, i, heat), subject.method)
    return png(figure)


def grid_picture(examination: Examination) -> bytes | None:
    """The layer's grid over the tumor, and the best map that it can draw."""
    samples = examination.subject.samples
    if examination.maps is None or samples.tumor is None or samples.images.dim() != 4:
        return None
    cells = tuple(examination.maps.shape[2:])
    cases = [i for i in shown_cases(examination, 3) if bool(samples.tumor[i].any())][:2]
    figure, grid = new_figure(2.6, 4)
    for axes in grid[0]:
        axes.set_axis_off()
    for k, i in enumerate(cases):
        image, _, mask = case_of(examination, i)
        picture = overlays.overlay(image, np.zeros_like(image), mask=mask, scale=overlays.legible_scale(image.shape))
        axes = grid[0][2 * k]
        show(axes, picture, f"{short(samples.names[i])}, {cells[0]} x {cells[1]} cells")
        for count, draw, length in (
            (cells[0], axes.axvline, picture.shape[1]),
            (cells[1], axes.axhline, picture.shape[0]),
        ):
            for j in range(1, count):
                draw(j * length / count - 0.5, color="#ffffff", linewidth=0.4, alpha=0.55)
        best = max_scaling(upsample(oracle_map(samples.tumor[i : i + 1], cells), samples.images.shape[2:]))[0]
        show(grid[0][2 * k + 1], overlay_of(examination, i, best.float()), "the best map on this grid")
    return png(figure)
