"""Causes of a heatmap in the background that show without the network: pictures, air, order, sources, classes, grid."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from scripts.explain.baselines import check_foreground
from scripts.explain.measures import case_measures

__all__ = [
    "CANNOT_TELL",
    "DOES_NOT_HOLD",
    "HOLDS",
    "Finding",
    "air_not_zero",
    "coarse_grid",
    "inverted_normalizer",
    "order_of_transforms",
    "source_shortcut",
    "swapped_colors",
]

HOLDS, DOES_NOT_HOLD, CANNOT_TELL = "holds", "does not hold", "cannot tell"


@dataclass(frozen=True)
class Finding:
    """One known cause, tested.

    Attributes:
        cause: its name.
        verdict: `HOLDS`, `DOES_NOT_HOLD` or `CANNOT_TELL`.
        figures: name: number, what was measured.
        reason: one sentence: the figure, and the limit that it was held against.
        advice: what to do where it holds.
    """

    cause: str
    verdict: str
    figures: dict[str, float] = field(default_factory=dict)
    reason: str = ""
    advice: str = ""


def verdict(condition: bool) -> str:
    """`HOLDS` or `DOES_NOT_HOLD`."""
    return HOLDS if condition else DOES_NOT_HOLD


def inverted_normalizer(postprocessing: Callable[[Tensor], Any]) -> Finding:
    """Whether a postprocessing of maps turns the strongest place into the weakest, or nothing into something.

    Args:
        postprocessing: function of a map (1, 1, H, W), as MONAI's CAM classes take it.
    """
    ramp = torch.linspace(0, 1, 64).reshape(1, 1, 8, 8)
    result, nothing = (torch.as_tensor(np.asarray(postprocessing(m.clone()))) for m in (ramp, torch.zeros(1, 1, 8, 8)))
    flat = result.double().flatten()
    figures = {
        "strongest_becomes": float(flat[-1]),
        "weakest_becomes": float(flat[0]),
        "empty_map_becomes": float(nothing.double().flatten()[0]),
    }
    if float(flat.max() - flat.min()) == 0:
        return Finding("inverted normalizer", CANNOT_TELL, figures, "the postprocessing makes every map constant")
    return Finding(
        "inverted normalizer",
        verdict(bool(flat[-1] < flat[0])),
        figures,
        f"the strongest place becomes {float(flat[-1]):.2f} and the weakest {float(flat[0]):.2f}; the strongest should "
        "be the larger",
        "pass postprocessing=scripts.explain.maps.max_scaling: monai.visualize's default_normalizer maps (min, max) to "
        "(1, 0), so that an empty map looks most important everywhere or nowhere",
    )


def swapped_colors(colorize: Callable[[np.ndarray], Any]) -> Finding:
    """Whether the strongest value is painted colder than the weakest, as by OpenCV's BGR shown as RGB.

    Args:
        colorize: function of values in [0, 1], (H, W) float32, to RGB (H, W, 3 or 4), of any scale.
    """
    ramp = np.linspace(0, 1, 64, dtype=np.float32).reshape(8, 8)
    colors = np.asarray(colorize(ramp), dtype=float)
    if colors.ndim != 3 or colors.shape[:2] != (8, 8) or colors.shape[2] not in (3, 4):
        raise ValueError(f"colorize: expected RGB (H, W, 3) for a map (8, 8), got {colors.shape}")
    top = float(colors[..., :3].max()) or 1.0
    warmth = (colors[..., 0] - colors[..., 2]) / top
    figures = {"warmth_of_strongest": float(warmth[-1, -1]), "warmth_of_weakest": float(warmth[0, 0])}
    difference = figures["warmth_of_strongest"] - figures["warmth_of_weakest"]
    if abs(difference) < 0.1:
        return Finding("swapped colors", CANNOT_TELL, figures, "the color map has no warm and cold end")
    return Finding(
        "swapped colors",
        verdict(difference < 0),
        figures,
        f"red minus blue is {figures['warmth_of_strongest']:+.2f} at the strongest and "
        f"{figures['warmth_of_weakest']:+.2f} at the weakest value; it should rise",
        "cv2.applyColorMap returns BGR: convert with cv2.cvtColor(..., cv2.COLOR_BGR2RGB) before showing it as RGB",
    )


def _air(x: Tensor, foreground: Tensor) -> tuple[Tensor, list[Tensor]]:
    """Foreground, and the air's values (N, C) of each sample."""
    inside = check_foreground(foreground, x)
    return inside, [image.flatten(1).T[~where.flatten()] for image, where in zip(x, inside, strict=True)]


def air_not_zero(x: Tensor, foreground: Tensor) -> Finding:
    """Whether the air, as the network sees it, is anything but exactly 0.

    Args:
        x: network input (B, C, *spatial).
        foreground: (B, 1, *spatial), non-zero inside.
    """
    _, airs = _air(x, foreground)
    values = torch.cat(airs)
    if not len(values):
        return Finding("air not zero", CANNOT_TELL, {}, "the foreground mask covers every pixel: there is no air")
    share = float((values != 0).any(1).double().mean())
    return Finding(
        "air not zero",
        verdict(share > 0),
        {"share_of_air_not_zero": share, "largest_value_in_air": float(values.abs().max())},
        f"{share:.1%} of the air pixels are not exactly 0 (limit: none)",
        "multiply the image by its foreground mask after the last transform that computes intensities",
    )


def order_of_transforms(x: Tensor, foreground: Tensor) -> Finding:
    """Whether the image was masked first and normalized afterwards: its air is then one constant that is not 0.

    Args:
        x: network input (B, C, *spatial).
        foreground: (B, 1, *spatial), non-zero inside.
    """
    _, airs = _air(x, foreground)
    airs = [air for air in airs if len(air)]
    if not airs:
        return Finding(
            "order of transforms", CANNOT_TELL, {}, "the foreground mask covers every pixel: there is no air"
        )
    middle = torch.stack([air.double().median(0).values for air in airs])
    # A mask is rarely exact to the pixel: nearly all of the air has to be the constant, not all.
    constant = [float((air == m.to(air)).all(1).double().mean()) for air, m in zip(airs, middle, strict=True)]
    moved = [c > 0.9 and bool((m != 0).any()) for c, m in zip(constant, middle, strict=True)]
    figures = {
        "share_of_images": sum(moved) / len(moved),
        "air_value": float(middle.mean()),
        "share_of_air_of_one_value": float(np.mean(constant)),
    }
    return Finding(
        "order of transforms",
        verdict(any(moved)),
        figures,
        f"in {figures['share_of_images']:.0%} of the images the air is one value other than 0, on average "
        f"{figures['air_value']:.2f}",
        "normalize with the statistics of the foreground first, and set the air to 0 last",
    )


def source_shortcut(sources: Sequence[str], labels: Sequence[int]) -> Finding:
    """Whether the source of an image gives its label away.

    Args:
        sources: collection of each image.
        labels: class of each image, below 0 for unknown.
    """
    known = [(s, int(k)) for s, k in zip(sources, labels, strict=True) if int(k) >= 0]
    classes = Counter(k for _, k in known)
    if len(classes) < 2 or len({s for s, _ in known}) < 2:
        return Finding("source shortcut", CANNOT_TELL, {}, "it takes two sources and two classes to compare")
    table: dict[str, Counter] = defaultdict(Counter)
    for source, label in known:
        table[source][label] += 1
    # Share of each class among its images of a source, corrected for class sizes: chance is 1 / number of classes.
    right: Counter = Counter()
    for counts in table.values():
        guess = max(counts, key=lambda k: counts[k] / classes[k])
        right[guess] += counts[guess]
    accuracy = float(np.mean([right[k] / n for k, n in classes.items()]))
    limit = 1 / len(classes) + 0.2
    return Finding(
        "source shortcut",
        verdict(accuracy > limit),
        {"balanced_accuracy_from_source": accuracy, "chance": 1 / len(classes)},
        f"the source alone gives the class with a balanced accuracy of {accuracy:.2f} (limit {limit:.2f})",
        "take tumors and healthy images from the same sources, or sample every class of a source alike, and report "
        "results by source",
    )


def coarse_grid(tumor: Tensor, foreground: Tensor, layer_size: Sequence[int]) -> Finding:
    """Whether the layer's grid is too coarse to draw the tumor: what a perfect map would score there.

    Args:
        tumor: (B, 1, *spatial), 0 or 1.
        foreground: (B, 1, *spatial), 0 or 1.
        layer_size: grid of the layer.
    """
    with_tumor = tumor.flatten(1).any(1)
    if not bool(with_tumor.any()):
        return Finding("coarse grid", CANNOT_TELL, {}, "no image has a tumor mask")
    tumor, foreground = tumor[with_tumor], foreground[with_tumor]
    measures = case_measures(torch.ones(len(tumor), 1, *layer_size), tumor, foreground)
    oracle, area = float(measures["oracle_tumor_energy"].mean()), float(measures["tumor_area"].mean())
    return Finding(
        "coarse grid",
        verdict(oracle < 0.5),
        {"oracle_tumor_energy": oracle, "tumor_area": area, "cells": float(math.prod(layer_size))},
        f"a perfect map on a grid of {' x '.join(map(str, layer_size))} has {oracle:.0%} of its energy in the tumor "
        "(limit 50 %)",
        "explain a layer of a finer grid",
    )
