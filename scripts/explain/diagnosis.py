"""Why is my heatmap in the background? Every known cause, tested on a given network and batch.

Each cause is a function that returns a `Finding`: verdict, figures, and what to do. They stand in `picture_findings`
(how the map is shown), `findings` (the data), `network_findings` (the forward pass), `gradient_findings` and
`class_findings` (what is explained), `effect_findings` (what the verdict follows); `diagnose` runs all that can be run
with what is given, and marks those that only follow from another one (`consequences`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from scripts.explain.baselines import check_foreground
from scripts.explain.class_findings import wrong_class
from scripts.explain.consequences import with_consequences
from scripts.explain.effect_findings import WITHOUT_TUMOR, verdict_without_tumor
from scripts.explain.findings import (
    CANNOT_TELL,
    HOLDS,
    SHORTCUT,
    Finding,
    air_not_zero,
    coarse_grid,
    order_of_transforms,
    source_shortcut,
)
from scripts.explain.gradient_findings import (
    NoGradientError,
    activations_and_gradients,
    gradient_averaging,
    lost_gradient,
    unsuitable_layer,
)
from scripts.explain.layers import LayerError
from scripts.explain.network_findings import normalization_leak, pooling_over_air
from scripts.explain.picture_findings import inverted_normalizer, swapped_colors
from scripts.explain.recording import default_layer
from scripts.explain.statistics import frozen_statistics
from scripts.explain.targets import SegmentationRegion, Target

__all__ = ["CAUSES", "Finding", "diagnose", "in_order"]

# cause: the question, and the limit of its verdict with the reason for it.
CAUSES: dict[str, tuple[str, str]] = {
    "inverted normalizer": (
        "Does the scaling of the finished map turn strong into weak?",
        "A ramp from 0 to 1 goes through the normalizer; its top has to come out above its bottom. No measurement, so "
        "no tolerance.",
    ),
    "swapped colors": (
        "Are red and blue exchanged, so that cold places look hot?",
        "Red minus blue has to rise from the weakest to the strongest color by a tenth of the range at least; a color "
        "map without a warm end cannot tell.",
    ),
    "air not zero": (
        "Does the network see anything but 0 in the air?",
        "Not one air pixel may differ from 0 where the foreground mask is the pipeline's own: it is written by a "
        "multiplication, which is exact. Where the mask was estimated, 0.5 % may, because it may miss a few pixels of "
        "the head.",
    ),
    "order of transforms": (
        "Was the image masked first and normalized afterwards, so that the air moved away from 0?",
        "More than 90 % of an image's air has to be one value (to 1 % of the head's deviation) and that value below 0: "
        "no scanner and no format does this, a normalization behind a mask always does.",
    ),
    SHORTCUT: (
        "Does the collection an image comes from, or its air, tell the class, so that the network need not look at the "
        "head?",
        "Source: a balanced accuracy of 0.20 above chance, of the classes or of tumor against none, and better than "
        "95 % of shuffled labels. Air: a "
        "cross-validated AUC above 0.60 whose 95 % interval leaves 0.50 out, as in scripts.checks.audit.",
    ),
    "normalization leak": (
        "Does a normalization take its statistics from the air too, and write them into it?",
        "Air moved by one deviation may change the head's features behind a normalization by 0.1 % of the largest: "
        "layers that work cell by cell change by exactly 0, leaking ones by percents.",
    ),
    "pooling over air": (
        "Does the class score sum up cells of air?",
        "1 % of the score's gradient may lie in cells without foreground (a masked pooling has exactly 0, an average "
        "the share of air), and more air may not change the score while the head's features stay as they are.",
    ),
    WITHOUT_TUMOR: (
        "Does the verdict stay where the tumor is painted out?",
        "A quarter of the distance between the scores of images with and without a tumor has to go with it: networks "
        "that read the tumor lose half of it and more, those that read something else nothing.",
    ),
    "gradient averaging": (
        "Does Grad-CAM spread an averaged gradient over places that have none?",
        "Grad-CAM may have 5 points more of its energy in the air than HiResCAM, which is the same product without the "
        "average. Below a coherence of 5e-5 the average is rounding: 1e-8 to 2e-5 was measured in front of "
        "normalizations, 1e-3 and more elsewhere.",
    ),
    "wrong class index": (
        "Does the map explain another class than meant?",
        "An AUC below 0.40 that chance gives in less than 1 % of cases; or another class's logit that is better by "
        "0.20; or less than 20 % of the margin's gradient in the class's own logit, where 50 % is balanced.",
    ),
    "dead or saturated gradient": (
        "Is the gradient too small to say anything?",
        "Activations times gradients below one millionth of the score, in any image: float32 has seven digits, so that "
        "such a map is rounding.",
    ),
    "unsuitable layer": (
        "Is the layer's output no activation that the network reads?",
        "Absent, run twice, overwritten, without spatial axes, a normalization, or gradients that cancel: decided by "
        "what the layer does, not by a measurement.",
    ),
    "coarse grid": (
        "Are the layer's cells larger than the tumor?",
        "A perfect map on this grid, each cell the tumor's share of it, has to have half of its energy in the tumor: "
        "below, most of even the best map lies outside. It blurs into the tissue around the tumor; its share in the "
        "air is what this cause accounts for there.",
    ),
}
WITHOUT_MASK_TOLERANCE = 0.005


def in_order(findings: Sequence[Finding]) -> list[Finding]:
    """Findings in the order of `CAUSES`."""
    return sorted(findings, key=lambda finding: list(CAUSES).index(finding.cause))


def diagnose(
    model: nn.Module,
    x: Tensor,
    foreground: Tensor,
    target: Target,
    layer: str | None = None,
    labels: Sequence[int] | None = None,
    tumor: Tensor | None = None,
    sources: Sequence[str] | None = None,
    postprocessing: Callable[[Tensor], Any] | None = None,
    colorize: Callable[[np.ndarray], Any] | None = None,
    forward_kwargs: Mapping[str, Any] | None = None,
    pad: int = 16,
    estimated: bool = False,
    objection: str | None = None,
    method: str = "gradcam",
    without_tumor: Tensor | None = None,
    shortcut: Finding | None = None,
) -> list[Finding]:
    """Test every known cause that can be tested with what is given.

    Args:
        model: the network; its `forward(x, **forward_kwargs)` returns class logits or a dense output.
        x: its input (B, C, *spatial), as the user's pipeline makes it.
        foreground: (B, 1, *spatial), non-zero in the head.
        target: the explained score.
        layer: the explained layer; None: `default_layer`.
        labels: class of each image, below 0 for unknown; for the class index, the shortcut and the probe.
        tumor: masks (B, 1, *spatial), for the grid.
        sources: collection of each image, for the shortcut.
        postprocessing: the user's scaling of maps.
        colorize: the user's color map.
        forward_kwargs: arguments of `forward`.
        pad: pixels of air added on every side, a multiple of the network's total stride.
        estimated: `foreground` was estimated from the input, and may miss a few pixels of the head.
        objection: what is wrong with the order of the user's list of transforms, if it was read.
        method: the one that is looked at, see `gradient_findings.AVERAGING`.
        without_tumor: the images (B, C, *spatial) with their tumors painted out.
        shortcut: the finding about source and air, where more is known of them than `sources` and `labels`.

    Returns:
        one finding a cause, in the order of `CAUSES`; "cannot tell" with the reason where something is missing, and
        "consequence" where it would not hold if another one were fixed.
    """
    kwargs = dict(forward_kwargs or {})
    inside = check_foreground(foreground, x)
    findings = [
        inverted_normalizer(postprocessing)
        if postprocessing
        else _missing(
            "inverted normalizer",
            "the normalizer of your maps",
            "give it: MONAI's own, monai.visualize.default_normalizer, inverts",
        ),
        swapped_colors(colorize)
        if colorize
        else _missing("swapped colors", "the color map", "give the function that colors your maps, or ready pictures"),
        air_not_zero(x, inside, WITHOUT_MASK_TOLERANCE if estimated else 0.0),
        order_of_transforms(x, inside, objection),
    ]
    if shortcut is not None:
        findings.append(shortcut)
    elif sources is not None and labels is not None:
        findings.append(source_shortcut(sources, labels))
    else:
        findings.append(_missing(SHORTCUT, "the source or the label of each image", "give them by a datalist"))

    def of_network(
        images: Tensor, at: str | None, causes: Sequence[str] = tuple(CAUSES), painted: Tensor | None = without_tumor
    ) -> list[Finding]:
        tests: dict[str, Callable[[], Finding]] = {
            "normalization leak": lambda: normalization_leak(model, images, inside, labels, kwargs, pad),
            "pooling over air": lambda: pooling_over_air(model, images, inside, target, None, kwargs, pad),
            WITHOUT_TUMOR: lambda: verdict_without_tumor(model, images, labels, target, tumor, painted, kwargs),
        }
        made = [test() for cause, test in tests.items() if cause in causes]
        if set(causes) - set(tests):
            made += _of_layer(model, images, inside, target, at, labels, tumor, kwargs, method)
        return [finding for finding in made if finding.cause in causes]

    def without_air(causes: Sequence[str]) -> list[Finding]:
        painted = None if without_tumor is None else without_tumor * inside
        return of_network(x * inside, layer, causes, painted)

    def without_statistics(causes: Sequence[str]) -> list[Finding]:
        of_gradient = [cause for cause in causes if cause in ("gradient averaging", "unsuitable layer")]
        try:
            with frozen_statistics(model):
                return of_network(x, layer, of_gradient) if of_gradient else []
        except LayerError:  # a scripted network, or statistics of its own that cannot be held
            return []

    def at_default_layer(causes: Sequence[str]) -> list[Finding]:
        at_layer = ("gradient averaging", "dead or saturated gradient", "coarse grid")
        of_map = [cause for cause in causes if cause in at_layer]
        return of_network(x, None, of_map) if of_map and layer is not None else []

    again = {
        "order of transforms": without_air,
        "air not zero": without_air,
        "normalization leak": without_statistics,
        "unsuitable layer": at_default_layer,
    }
    return in_order(with_consequences(findings + of_network(x, layer), again))


def _missing(cause: str, what: str, advice: str = "") -> Finding:
    return Finding(cause, CANNOT_TELL, {}, f"{what} was not given", advice)


def _of_layer(
    model: nn.Module,
    x: Tensor,
    inside: Tensor,
    target: Target,
    layer: str | None,
    labels: Sequence[int] | None,
    tumor: Tensor | None,
    kwargs: dict[str, Any],
    method: str,
) -> list[Finding]:
    """Findings about the explained layer."""
    averaging, dead, grid = "gradient averaging", "dead or saturated gradient", "coarse grid"
    wrong = "wrong class index"
    try:
        layer = layer or default_layer(model, x[:1], _first(kwargs, x), dense=isinstance(target, SegmentationRegion))
        activations = activations_and_gradients(
            model, x[:1], layer, target.take(torch.zeros(1, dtype=torch.long)), _first(kwargs, x)
        )[1]
    except NoGradientError as error:
        findings = [
            lost_gradient(model, x, target, str(layer), kwargs),
            unsuitable_layer(model, x, target, str(layer), kwargs),
        ]
        return findings + [Finding(c, CANNOT_TELL, {}, str(error)) for c in (averaging, wrong, grid)]
    except LayerError as error:
        findings = [Finding("unsuitable layer", HOLDS, {}, str(error), "name a whole block")]
        reason = "the layer cannot be explained, see 'unsuitable layer'"
        return findings + [Finding(c, CANNOT_TELL, {}, reason) for c in (averaging, dead, wrong, grid)]
    findings = [
        gradient_averaging(model, x, inside, target, layer, kwargs, method),
        wrong_class(model, x, labels, target, layer, kwargs, tumor),
        lost_gradient(model, x, target, layer, kwargs),
        unsuitable_layer(model, x, target, layer, kwargs, method),
    ]
    size = activations.shape[2:]
    if tumor is None:
        cells = float(np.prod(size))
        findings.append(Finding(grid, CANNOT_TELL, {"cells": cells}, "tumor masks were not given", "give some"))
    else:
        findings.append(coarse_grid((tumor != 0).float(), inside.float(), size))
    return findings


def _first(kwargs: Mapping[str, Any], x: Tensor) -> dict[str, Any]:
    return {k: v[:1] if isinstance(v, Tensor) and len(v) == len(x) else v for k, v in kwargs.items()}
