"""Why is my heatmap in the background? Every known cause, tested on a given network and batch.

Each cause is a function that returns a `Finding`: verdict, figures, and what to do. Those that need no network are in
`findings`, the others in `network_findings`; `diagnose` runs all that can be run with what is given.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from torch import Tensor, nn

from scripts.explain.baselines import check_foreground
from scripts.explain.findings import (
    CANNOT_TELL,
    HOLDS,
    Finding,
    air_not_zero,
    coarse_grid,
    inverted_normalizer,
    order_of_transforms,
    source_shortcut,
    swapped_colors,
)
from scripts.explain.layers import LayerError, default_layer
from scripts.explain.network_findings import (
    activations_and_gradients,
    gradient_averaging,
    lost_gradient,
    normalization_leak,
    pooling_over_air,
    unsuitable_layer,
    wrong_class,
)
from scripts.explain.targets import ClassMargin, ClassScore, SegmentationRegion, Target

__all__ = ["Finding", "diagnose"]


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
) -> list[Finding]:
    """Test every known cause that can be tested with what is given.

    Args:
        model: the network; its `forward(x, **forward_kwargs)` returns class logits or a dense output.
        x: its input (B, C, *spatial), as the user's pipeline makes it.
        foreground: (B, 1, *spatial), non-zero in the head.
        target: the explained score.
        layer: the explained layer; None: `default_layer`.
        labels: class of each image; for the class index, the shortcut and the probe.
        tumor: masks (B, 1, *spatial), for the grid.
        sources: collection of each image, for the shortcut.
        postprocessing: the user's scaling of maps.
        colorize: the user's color map.
        forward_kwargs: arguments of `forward`.
        pad: pixels of air added on every side, a multiple of the network's total stride.

    Returns:
        one finding a cause, in the order of FEATURES; "cannot tell" with the reason where something is missing.
    """
    kwargs = dict(forward_kwargs or {})
    inside = check_foreground(foreground, x)
    found: list[Finding] = []

    def missing(cause: str, what: str) -> Finding:
        return Finding(cause, CANNOT_TELL, {}, f"no {what} was given")

    found.append(
        inverted_normalizer(postprocessing) if postprocessing else missing("inverted normalizer", "postprocessing")
    )
    found.append(swapped_colors(colorize) if colorize else missing("swapped colors", "color map"))
    found += [air_not_zero(x, inside), order_of_transforms(x, inside)]
    if sources is not None and labels is not None:
        found.append(source_shortcut(sources, labels))
    else:
        found.append(missing("source shortcut", "source and label of each image"))
    found.append(normalization_leak(model, x, inside, labels, kwargs, pad))
    try:
        layer = layer or default_layer(model, x, kwargs, dense=isinstance(target, SegmentationRegion))
        _, activations, _ = activations_and_gradients(model, x, layer, target, kwargs)
    except LayerError as error:
        causes = ("pooling over air", "gradient averaging", "wrong class index", "dead or saturated gradient")
        found += [Finding(cause, CANNOT_TELL, {}, f"the layer cannot be explained: {error}") for cause in causes]
        found.append(Finding("unsuitable layer", HOLDS, {}, str(error), "name a whole block"))
        found.append(Finding("coarse grid", CANNOT_TELL, {}, "the layer cannot be explained"))
        return found
    found.append(pooling_over_air(model, x, inside, target, layer, kwargs, pad))
    found.append(gradient_averaging(model, x, inside, target, layer, kwargs))
    index = _index(target)
    if labels is not None and index is not None:
        found.append(wrong_class(model, x, labels, index, layer, kwargs))
    else:
        reason = "it takes the label of each image, and a target that is one class's logit"
        found.append(Finding("wrong class index", CANNOT_TELL, {}, reason))
    found.append(lost_gradient(model, x, target, layer, kwargs))
    found.append(unsuitable_layer(model, x, target, layer, kwargs))
    if tumor is not None:
        found.append(coarse_grid((tumor != 0).float(), inside.float(), activations.shape[2:]))
    else:
        found.append(missing("coarse grid", "tumor mask"))
    return found


def _index(target: Target) -> int | None:
    """The class whose logit is explained; None for a margin, which has the right class by construction, and others."""
    if isinstance(target, ClassMargin):
        return None
    return target.class_idx if isinstance(target, ClassScore) and isinstance(target.class_idx, int) else None
