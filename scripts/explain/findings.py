"""Causes of a heatmap in the background that show without the network: air, order of transforms, sources, grid."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from scripts.explain.baselines import check_foreground
from scripts.explain.measures import case_measures, oracle_map

__all__ = [
    "CANNOT_TELL",
    "DOES_NOT_HOLD",
    "FOLLOWS",
    "HOLDS",
    "Finding",
    "air_not_zero",
    "coarse_grid",
    "order_of_transforms",
    "source_shortcut",
    "verdict",
]

HOLDS, DOES_NOT_HOLD, CANNOT_TELL = "holds", "does not hold", "cannot tell"
FOLLOWS = "consequence"  # it holds, and would not if another cause that holds were fixed
SHORTCUT = "source or air shortcut"
NO_AIR = "the foreground mask covers every pixel: there is no air"


@dataclass(frozen=True)
class Finding:
    """One known cause, tested.

    Attributes:
        cause: its name.
        verdict: `HOLDS`, `FOLLOWS`, `DOES_NOT_HOLD` or `CANNOT_TELL`.
        figures: name: number, what was measured.
        reason: one sentence: the figure, and the limit that it was held against; or why it cannot be decided.
        advice: what to do where it holds, or what to give where it cannot be decided.
        follows: the cause that it is a consequence of; "" for none.
        signs: which of several signs were found, for a cause that has several.
    """

    cause: str
    verdict: str
    figures: dict[str, float] = field(default_factory=dict)
    reason: str = ""
    advice: str = ""
    follows: str = ""
    signs: tuple[str, ...] = ()


def verdict(condition: bool) -> str:
    """`HOLDS` or `DOES_NOT_HOLD`."""
    return HOLDS if condition else DOES_NOT_HOLD


def _airs(x: Tensor, foreground: Tensor) -> tuple[list[Tensor], list[Tensor]]:
    """Values in the air (N, C) and in the head (M, C) of each sample, double."""
    inside = check_foreground(foreground, x)
    pairs = [(image.double().flatten(1).T, head.flatten()) for image, head in zip(x, inside, strict=True)]
    return [values[~head] for values, head in pairs], [values[head] for values, head in pairs]


def air_not_zero(x: Tensor, foreground: Tensor, tolerance: float = 0.0) -> Finding:
    """Whether the air, as the network sees it, is anything but exactly 0.

    Args:
        x: network input (B, C, *spatial).
        foreground: (B, 1, *spatial), non-zero inside.
        tolerance: share of the air that may differ: 0 for the mask that the pipeline itself used; more for a mask that
            was estimated and may leave out a few pixels of the head.
    """
    cause = "air not zero"
    values = torch.cat(_airs(x, foreground)[0])
    if not len(values):
        return Finding(cause, CANNOT_TELL, {}, NO_AIR)
    share = float((values != 0).any(1).double().mean())
    limit = f"limit {tolerance:.1%}, the foreground being estimated" if tolerance else "limit: none"
    largest = float(values.abs().max())
    return Finding(
        cause,
        verdict(share > tolerance),
        {"share_of_air_not_zero": share, "largest_value_in_air": largest},
        f"{share:.1%} of the air pixels are not exactly 0 ({limit})"
        + (f"; the largest value there is {largest:.3g}" if share else ""),
        "multiply the image by its foreground mask after the last transform that computes intensities",
    )


def order_of_transforms(x: Tensor, foreground: Tensor, objection: str | None = None) -> Finding:
    """Whether the image was masked first and normalized afterwards: its air is then one constant below 0.

    A constant above 0 is a bright background that was never masked; `air_not_zero` tells it.

    Args:
        x: network input (B, C, *spatial).
        foreground: (B, 1, *spatial), non-zero inside.
        objection: what is wrong with the list of transforms itself, if it was read; names the culprits. The verdict
            goes by the pixels: a normalization of the non-zero pixels alone may stand behind a mask.
    """
    cause, advice = (
        "order of transforms",
        "normalize with the statistics of the foreground first, and set the air to 0 last",
    )
    pairs = [(air, head) for air, head in zip(*_airs(x, foreground), strict=True) if len(air)]
    if not pairs:
        return Finding(cause, CANNOT_TELL, {}, NO_AIR)
    middle = torch.stack([air.median(0).values for air, _ in pairs])
    # A mask is rarely exact to the pixel, and interpolation rounds: nearly all of the air has to be nearly constant.
    near = [((air - m).abs() <= 0.01 * head.std(0, False)).all(1) for (air, head), m in zip(pairs, middle, strict=True)]
    constant = [float(same.double().mean()) for same in near]
    moved = [c > 0.9 and bool((m < 0).any()) for c, m in zip(constant, middle, strict=True)]
    figures = {
        "share_of_images": sum(moved) / len(moved),
        "air_value": float(middle.mean()),
        "share_of_air_of_one_value": float(np.mean(constant)),
    }
    reason = (
        f"in {figures['share_of_images']:.0%} of the images the air is one value below 0 (limit: none); on average it "
        f"is {figures['air_value']:.2f}"
    )
    if objection:
        reason += f". The list of transforms: {objection}" + (
            "" if any(moved) else "; but the air came out as it should"
        )
    return Finding(cause, verdict(any(moved)), figures, reason, advice)


def source_shortcut(sources: Sequence[str], labels: Sequence[int], draws: int = 1000) -> Finding:
    """Whether the source of an image gives its label away.

    Guesses each image's class by its source, and takes the balanced accuracy. On few images of many sources such a
    guess looks good by chance, so that it is held against shuffled labels too. Several classes of tumors are also
    taken together: a source that tells only tumor from none is the worst of all, and of K classes gives 2 / K.

    Args:
        sources: collection of each image.
        labels: class of each image, below 0 for unknown.
        draws: shuffles.
    """
    known = [(s, int(k)) for s, k in zip(sources, labels, strict=True) if int(k) >= 0]
    names, classes = sorted({s for s, _ in known}), sorted({k for _, k in known})
    advice = (
        "take tumors and healthy images from the same sources, or sample every class of a source alike, and report "
        "results by source"
    )
    if len(classes) < 2 or len(names) < 2:
        summary = f"{len(names)} source and {len(classes)} class{'es' if len(classes) != 1 else ''}"
        return Finding(
            SHORTCUT, CANNOT_TELL, {}, f"it takes two sources and two classes to compare; given: {summary}", advice
        )
    source = np.array([names.index(s) for s, _ in known])
    label, what = np.array([classes.index(k) for _, k in known]), "the class"
    accuracy = _accuracy_from(source, label)
    if classes[0] == 0 and len(classes) > 2:
        tumor = (label > 0).astype(int)
        if _accuracy_from(source, tumor) - 1 / 2 > accuracy - 1 / len(classes):
            label, what, classes = tumor, "tumor or none", [0, 1]
            accuracy = _accuracy_from(source, label)
    rng = np.random.default_rng(0)
    by_chance = [_accuracy_from(source, rng.permutation(label)) for _ in range(draws)]
    p = float(np.mean([value >= accuracy - 1e-12 for value in by_chance]))
    chance, limit = 1 / len(classes), 1 / len(classes) + 0.2
    figures = {"balanced_accuracy_from_source": accuracy, "chance": chance, "p_by_chance": p}
    reason = f"the source alone gives {what} with a balanced accuracy of {accuracy:.2f} (limit {limit:.2f})"
    if accuracy > limit and p > 0.05:
        counts = Counter(s for s, _ in known)
        reason += f", but so it does for {p:.0%} of shuffled labels: {len(known)} images of {len(counts)} sources"
        return Finding(SHORTCUT, CANNOT_TELL, figures, reason, "give more images")
    signs = ("source",) if accuracy > limit else ()
    return Finding(SHORTCUT, verdict(accuracy > limit), figures, reason, advice, signs=signs)


def _accuracy_from(source: np.ndarray, label: np.ndarray) -> float:
    """Balanced accuracy of the class that is most over-represented in each source; chance is 1 / number of classes."""
    table = np.zeros((source.max() + 1, label.max() + 1))
    np.add.at(table, (source, label), 1)
    share = table / table.sum(0)
    return float(share.max(1).sum() / table.shape[1])


def coarse_grid(tumor: Tensor, foreground: Tensor, layer_size: Sequence[int]) -> Finding:
    """Whether the layer's grid is too coarse to draw the tumor: what a perfect map would score there.

    A grid blurs what it draws, over the tissue around the tumor first; how much of the perfect map falls into the air
    is reported too, so that what is in the air beyond it is looked for in other causes.

    Args:
        tumor: (B, 1, *spatial), 0 or 1.
        foreground: (B, 1, *spatial), 0 or 1.
        layer_size: grid of the layer.
    """
    cause, cells = "coarse grid", float(math.prod(layer_size))
    with_tumor = tumor.flatten(1).any(1)
    if not bool(with_tumor.any()):
        return Finding(cause, CANNOT_TELL, {"cells": cells}, "no image has a tumor mask", "give masks of some tumors")
    tumor, foreground = tumor[with_tumor], foreground[with_tumor]
    measures = case_measures(oracle_map(tumor, layer_size), tumor, foreground)
    oracle, area = float(measures["tumor_energy"].mean()), float(measures["tumor_area"].mean())
    in_air = float(measures["background_energy"].mean())
    return Finding(
        cause,
        verdict(oracle < 0.5),
        {"oracle_tumor_energy": oracle, "oracle_background_energy": in_air, "tumor_area": area, "cells": cells},
        f"a perfect map on a grid of {' x '.join(map(str, layer_size))} has {oracle:.0%} of its energy in the tumor "
        f"(limit 50 %) and {in_air:.1%} in the air, over {len(tumor)} tumors"
        + (": what a map has in the air beyond that has another cause" if oracle < 0.5 else ""),
        "explain a layer of a finer grid, or give the network larger images",
    )
