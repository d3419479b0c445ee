"""Causes of a heatmap in the background that lie in the gradient: its average, its size, the layer."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from scripts.explain.baselines import check_foreground
from scripts.explain.cam import MIN_COHERENCE, gradcam, gradient_coherence, hirescam
from scripts.explain.findings import CANNOT_TELL, HOLDS, Finding, verdict
from scripts.explain.grids import as_map
from scripts.explain.layers import LayerError, evaluating, frozen, resolve_layer
from scripts.explain.recording import default_layer, nodes_behind, record
from scripts.explain.scores import plain
from scripts.explain.targets import SegmentationRegion, Target

__all__ = [
    "NoGradientError",
    "activations_and_gradients",
    "cells_with_head",
    "gradient_averaging",
    "logits_of",
    "lost_gradient",
    "normalizations",
    "unsuitable_layer",
]

BATCH = 8
# Methods that weigh a channel by one number over space.
AVERAGING = ("gradcam", "gradcam++", "scorecam")
REFERENCE_ADVICE = "explain another class, or the margin to it: this one is the reference of the others, or never used"
BLOCK_ADVICE = "name a whole block, or leave the choice to scripts.explain.recording.default_layer"


class NoGradientError(LayerError):
    """The explained score does not depend on the layer, though another score of the network does."""


def normalizations(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Normalization layers by their class names; blocks that hold one, and normalized weights, left out."""
    for name, module in model.named_modules():
        if not name or "norm" not in type(module).__name__.lower() or "parametrizations" in name:
            continue
        inner = [child for child in module.modules() if child is not module]
        if not any("norm" in type(child).__name__.lower() or "conv" in type(child).__name__.lower() for child in inner):
            yield name, module


def cells_with_head(foreground: Tensor, size: Sequence[int]) -> Tensor:
    """Cells of a layer's grid with any foreground, (B, 1, *size), bool."""
    pool: Any = F.adaptive_max_pool3d if len(size) == 3 else F.adaptive_max_pool2d
    return pool((foreground != 0).float(), tuple(size)) > 0


def _batches(x: Tensor, kwargs: Mapping[str, Any]) -> Iterator[tuple[Tensor, Tensor, dict[str, Any]]]:
    """Index, images and arguments of `forward`, a few samples at a time."""
    for start in range(0, len(x), BATCH):
        index = torch.arange(start, min(start + BATCH, len(x)))
        batch_kwargs = {k: v[index] if isinstance(v, Tensor) and len(v) == len(x) else v for k, v in kwargs.items()}
        yield index, plain(x)[index].clone(), batch_kwargs


def activations_and_gradients(
    model: nn.Module, x: Tensor, layer: str, target: Target, kwargs: Mapping[str, Any]
) -> tuple[Tensor, Tensor, Tensor]:
    """Score (B,), activations and gradients (B, C, *grid) of a layer, float32.

    Raises:
        NoGradientError: when the score does not depend on the layer, though another output of the network does.
        LayerError: for a layer that cannot be explained.
    """
    scores, activations, gradients = [], [], []
    with torch.inference_mode(False), torch.enable_grad(), evaluating(model), frozen(model):
        for index, images, batch_kwargs in _batches(x, kwargs):
            with record(model, [layer]) as recorder:
                output = model(images, **batch_kwargs)
                recorder.check()
            name = recorder.layers[0]
            score = target.take(index)(output)
            try:
                gradients.append(recorder.gradients(score, retain_graph=True)[name].float())
            except LayerError as error:
                if isinstance(output, Tensor) and _depends(output, recorder.activations[name]):
                    raise NoGradientError(f"target {target.name} has no gradient at layer {layer!r}") from error
                raise
            scores.append(score.detach().float())
            activations.append(recorder.activations[name].detach().float())
    features = torch.cat(activations)
    to_map = as_map(model, name, features, x)
    return torch.cat(scores), to_map(features), to_map(torch.cat(gradients))


def _depends(output: Tensor, activation: Tensor) -> bool:
    if not output.requires_grad or not activation.requires_grad:
        return False
    return torch.autograd.grad(output.sum(), [activation], allow_unused=True)[0] is not None


def logits_of(model: nn.Module, x: Tensor, kwargs: Mapping[str, Any]) -> Tensor:
    """Output of the network, a few samples at a time, detached, float32.

    Raises:
        TypeError: when it is not one tensor.
    """
    outputs = []
    with torch.no_grad(), evaluating(model):
        for _, images, batch_kwargs in _batches(x, kwargs):
            output = model(images, **batch_kwargs)
            if not isinstance(output, Tensor):
                raise TypeError(
                    f"{type(model).__name__} returned {type(output).__name__}; expected one tensor: ask for it by "
                    "arguments of forward, or name one of several, see scripts.explain.outputs"
                )
            outputs.append(output.float())
    return torch.cat(outputs)


def gradient_averaging(
    model: nn.Module,
    x: Tensor,
    foreground: Tensor,
    target: Target,
    layer: str,
    forward_kwargs: Mapping[str, Any] | None = None,
    method: str = "gradcam",
) -> Finding:
    """Whether Grad-CAM paints the air because it averages gradients over space, or the average is rounding noise.

    HiResCAM is the same product without the average: what Grad-CAM has in the air beyond it is the average's doing.
    That Grad-CAM also paints tissue without gradient is reported as a figure, and is no fault by itself: behind a
    log-sum-exp pooling it makes Grad-CAM the evidence.

    Args:
        model, x, foreground, target, forward_kwargs: see `network_findings.pooling_over_air`.
        layer: the explained layer.
        method: the one that is looked at; only those of `AVERAGING` can suffer from it.
    """
    cause, kwargs = "gradient averaging", dict(forward_kwargs or {})
    inside = check_foreground(foreground, x)
    _, activations, gradients = activations_and_gradients(model, x, layer, target, kwargs)
    coherence = gradient_coherence(gradients)
    maps = {
        "gradcam": gradcam(activations, gradients).clamp(min=0),
        "hirescam": hirescam(activations, gradients).clamp(min=0),
    }
    size = gradients.abs().sum(1, keepdim=True)
    silent = size < 1e-3 * size.flatten(1).amax(1).reshape(-1, *[1] * (size.dim() - 1))
    cells = cells_with_head(inside, gradients.shape[2:])
    figures = {"coherence": float(coherence.nan_to_num(0).mean())}
    for name, value in maps.items():
        total = float(value.sum())
        if total > 0:
            figures[f"{name}_energy_in_air"] = float((value * ~cells).sum()) / total
    cam_total = float(maps["gradcam"].sum())
    if cam_total == 0:
        return Finding(cause, CANNOT_TELL, figures, "Grad-CAM is empty for every image")
    figures["gradcam_energy_without_gradient"] = float((maps["gradcam"] * silent).sum()) / cam_total
    beyond = figures["gradcam_energy_in_air"] - figures.get("hirescam_energy_in_air", 0.0)
    cancelled = bool((coherence < MIN_COHERENCE).any())
    if cancelled:
        least = float(coherence.min())
        reason = (
            f"the gradients at {layer!r} cancel over space (coherence {least:.1e}, limit {MIN_COHERENCE:.0e}): their "
            "mean is rounding"
        )
    else:
        reason = (
            f"Grad-CAM at {layer!r} has {figures['gradcam_energy_in_air']:.1%} of its energy in cells of air, "
            f"{round(beyond, 3) + 0.0:+.1%} against HiResCAM (limit +5 %)"
        )
    if method not in AVERAGING:
        reason = f"{method} averages no gradient; {reason}"
    return Finding(
        cause,
        verdict(method in AVERAGING and (cancelled or beyond > 0.05)),
        figures,
        reason,
        "use HiResCAM, or a layer with nothing but a linear map and the pooling behind it",
    )


def lost_gradient(
    model: nn.Module,
    x: Tensor,
    target: Target,
    layer: str,
    forward_kwargs: Mapping[str, Any] | None = None,
) -> Finding:
    """Whether the gradient is dead or saturated: too small to say anything.

    Args:
        model, x, target, layer, forward_kwargs: see `gradient_averaging`.
    """
    cause = "dead or saturated gradient"
    advice = "explain the logit or the margin, not a probability; look for activations that never open at this layer"
    try:
        result = activations_and_gradients(model, x, layer, target, dict(forward_kwargs or {}))
    except NoGradientError as error:
        reason = f"{error}: it is a constant there, while other outputs are not"
        return Finding(
            cause,
            HOLDS,
            {"share_of_images_without_gradient": 1.0},
            reason,
            REFERENCE_ADVICE,
        )
    score, activations, gradients = result
    if isinstance(target, SegmentationRegion):  # an image in which nothing is predicted has no score to be explained
        informative = (score != 0) | gradients.flatten(1).any(1)
        if not bool(informative.any()):
            return Finding(cause, CANNOT_TELL, {}, f"{target.name} is empty in all images", "give images with a tumor")
        score, activations, gradients = score[informative], activations[informative], gradients[informative]
    effect = (activations * gradients).abs().flatten(1).sum(1)
    dead = effect < 1e-6 * score.abs().clamp(min=1.0)
    silent = (gradients.flatten(2).abs().amax(2) == 0).double().mean()
    figures = {
        "share_of_images_without_gradient": float(dead.double().mean()),
        "share_of_channels_without_gradient": float(silent),
        "smallest_effect": float(effect.min()),
    }
    if not bool(gradients.any()):
        reason = f"the gradient at {layer!r} is exactly 0 everywhere: {target.name} is a constant there"
        return Finding(cause, HOLDS, figures, reason, REFERENCE_ADVICE)
    return Finding(
        cause,
        verdict(bool(dead.any())),
        figures,
        f"in {figures['share_of_images_without_gradient']:.0%} of the images activations times gradients at {layer!r} "
        f"are below one millionth of the score (limit: none); the smallest sum is {figures['smallest_effect']:.3g}",
        advice,
    )


def unsuitable_layer(
    model: nn.Module,
    x: Tensor,
    target: Target,
    layer: str,
    forward_kwargs: Mapping[str, Any] | None = None,
    method: str = "gradcam",
) -> Finding:
    """Whether the layer cannot carry a Grad-CAM: absent, run twice, no spatial output, cancelling, or a normalization.

    Args:
        model, x, target, layer, forward_kwargs, method: see `gradient_averaging`.
    """
    cause, kwargs = "unsuitable layer", dict(forward_kwargs or {})
    try:
        _, activations, gradients = activations_and_gradients(model, x, layer, target, kwargs)
    except NoGradientError as error:
        return Finding(cause, CANNOT_TELL, {}, f"{error}: see 'dead or saturated gradient'")
    except LayerError as error:
        return Finding(cause, HOLDS, {}, str(error), BLOCK_ADVICE)
    name = resolve_layer(model, layer)
    kind = type(model.get_submodule(name)).__name__
    coherence = float(gradient_coherence(gradients).nan_to_num(1.0).min())
    grid = "x".join(map(str, activations.shape[2:]))
    figures = {"share_of_negative_activations": float((activations < 0).double().mean()), "coherence": coherence}
    if activations[0, 0].numel() == 1:
        reason = f"{layer!r} is a {kind} of a single cell: it has no places of the image to choose from"
        return Finding(cause, HOLDS, figures, reason, BLOCK_ADVICE)
    default = _default(model, x, kwargs, target)
    is_norm, is_default = name in dict(normalizations(model)), name == default
    cut, last = _readers(model, x, name, kwargs)
    # The last features of some networks have no name but that of the normalization (EfficientNet).
    if (is_norm or cut) and not (is_default and last):
        what = f"is a {kind}" if is_norm else f"is a {kind} that ends in a normalization, and an activation cuts it"
        reason = (
            f"{layer!r} {what}: its output is not what the layers behind it read, and "
            f"{figures['share_of_negative_activations']:.0%} of it is negative"
        )
        return Finding(cause, HOLDS, figures, reason, BLOCK_ADVICE)
    elsewhere = None if bool(gradients.any()) or is_default else default
    if elsewhere is not None and lost_gradient(model, x, target, elsewhere, kwargs).verdict != HOLDS:
        reason = f"no place of {layer!r} matters to {target.name}, and those of the default layer do"
        return Finding(cause, HOLDS, figures, reason, BLOCK_ADVICE)
    if coherence < MIN_COHERENCE and method in AVERAGING:
        reason = (
            f"no Grad-CAM at {layer!r}: the gradients of every channel cancel over space (coherence {coherence:.1e}, "
            f"limit {MIN_COHERENCE:.0e}), because a normalization stands behind it"
        )
        return Finding(cause, HOLDS, figures, reason, "use HiResCAM there, or the layer behind the normalization")
    reason = f"{layer!r} is a {kind} on a grid of {grid} that runs once (coherence of its gradients {coherence:.2g})"
    return Finding(cause, verdict(False), figures, reason, BLOCK_ADVICE)


def _default(model: nn.Module, x: Tensor, kwargs: Mapping[str, Any], target: Target) -> str | None:
    """The layer that is explained where none is named; None where there is none."""
    _, image, sample_kwargs = next(_batches(x[:1], {k: v[:1] if _per_sample(v, x) else v for k, v in kwargs.items()}))
    try:
        return default_layer(model, image, sample_kwargs, dense=isinstance(target, SegmentationRegion))
    except LayerError:
        return None


def _per_sample(value: Any, x: Tensor) -> bool:
    return isinstance(value, Tensor) and len(value) == len(x)


ACTIVATIONS = (
    "relu",
    "silu",
    "gelu",
    "elu",
    "mish",
    "hardswish",
    "hardtanh",
    "softplus",
    "threshold",
    "sigmoid",
    "tanh",
)
HANDED_ON = ("view", "reshape", "clone", "alias", "contiguous")


def _readers(model: nn.Module, x: Tensor, layer: str, kwargs: Mapping[str, Any]) -> tuple[bool, bool]:
    """Who reads a layer's output, by the graph of a forward pass.

    Returns:
        whether the layer, of whatever name, puts out what a normalization does, and nothing but activations read it;
        whether no convolution stands behind it.
    """
    kept: list[tuple[Any, Any]] = []

    def keep(_module: nn.Module, _args: Any, output: Any) -> Tensor | None:
        if not isinstance(output, Tensor):
            return None
        copy = output.clone()
        kept.append((output.grad_fn, copy.grad_fn))
        return copy

    sample_kwargs = {k: v[:1] if _per_sample(v, x) else v for k, v in kwargs.items()}
    with torch.inference_mode(False), torch.enable_grad(), evaluating(model), frozen(model):
        handle = model.get_submodule(layer).register_forward_hook(keep)
        try:
            output = model(plain(x)[:1].clone().requires_grad_().clone(), **sample_kwargs)
        finally:
            handle.remove()
    if len(kept) != 1 or not isinstance(output, Tensor):
        return False, False
    made_by, handed_on = kept[0]
    behind = nodes_behind(output.grad_fn, handed_on)
    last = not any("convolution" in node.name().lower() for node in behind)
    while made_by is not None and any(word in made_by.name().lower() for word in HANDED_ON):
        made_by = made_by.next_functions[0][0] if made_by.next_functions else None
    if made_by is None or "norm" not in made_by.name().lower():
        return False, last
    readers = [node for node in behind if any(n is handed_on for n, _ in node.next_functions)]
    cut = bool(readers) and all(any(word in node.name().lower() for word in ACTIVATIONS) for node in readers)
    return cut, last
