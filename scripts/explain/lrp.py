"""Maps of relevance: what each place of a layer, or of the image, has of the score."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from scripts.explain.cam import CamPass
from scripts.explain.gradients import INPUT
from scripts.explain.grids import ToMap, as_map
from scripts.explain.layers import LayerError, evaluating, frozen, resolve_layer
from scripts.explain.recording import chosen_layers, record
from scripts.explain.relevance import relevance_rules
from scripts.explain.scores import checked_score, one_tensor, plain, plain_values
from scripts.explain.targets import SegmentationRegion, Target

__all__ = ["CONSERVED", "lrp", "output_relevance"]

# Largest share of the score (of 1, for scores below it) by which the image's relevances may differ from it.
CONSERVED = 1e-3


def output_relevance(target: Target, output: Tensor, varies: Tensor) -> Tensor:
    """Relevance of each output, which adds up to the score.

    Each output has its value times the derivative of the score by it. What is missing from the score then, because a
    target is not linear (log-odds of several classes) or because some outputs are constants that no place of the image
    has a part in (`varies` is false), is shared in proportion to the derivatives.

    Args:
        target: the score.
        output: of the network.
        varies: whether the image changes an output, in its shape.
    """
    with torch.enable_grad():
        leaf = output.detach().clone().requires_grad_()
        score = target(leaf)
        (slope,) = torch.autograd.grad(score.sum(), leaf)
    flat = (slope * varies).flatten(1)
    relevance = flat * output.detach().flatten(1)
    size = flat.abs().sum(1, keepdim=True)
    missing = (score.detach().to(relevance.dtype) - relevance.sum(1))[:, None]
    relevance = relevance + torch.where(size > 0, missing * flat.abs() / size.clamp(min=1e-30), 0.0)
    return relevance.reshape(output.shape)


def _varies(model: nn.Module, x: Tensor, kwargs: Mapping[str, Any], output: Tensor) -> Tensor:
    """Whether the image changes an output, in the output's shape: not the constant logit of a reference class."""
    if output.dim() != 2:
        return torch.ones_like(output, dtype=torch.bool)
    noise = torch.rand(x.shape, generator=torch.Generator().manual_seed(0)).to(x) + 0.5  # what is 0 stays so
    return one_tensor(model, model(x * noise, **kwargs)) != output


def lrp(
    model: nn.Module,
    x: Tensor,
    layers: str | Sequence[str] | None,
    target: Target,
    forward_kwargs: Mapping[str, Any] | None = None,
    aliases: Mapping[str, str] | None = None,
    signed: bool = False,
    reshape_transform: ToMap | None = None,
) -> CamPass:
    """Relevance of each place of the layers, and of the image under the name "input"; see `relevance`.

    The relevances of all places of the image add up to the score, within `CONSERVED`, or there is no map. So do those
    of a layer that everything passes through; one of several branches has its own share. Where the score is below 0
    all that speaks for it is below 0 as well, and the map is empty unless it is signed.

    Args:
        model, x, target, forward_kwargs, aliases, signed, reshape_transform: see `cam.cam_pass`.
        layers: dotted names, aliases, or "input"; None chooses one, see `recording.default_layer`.

    Returns:
        maps: ("lrp", layer as the caller named it): (B, 1, *layer grid), float32, >= 0 unless signed; adds up to the
        relevance of the layer.

    Raises:
        LayerError: for a layer that cannot be explained, an operation without a rule, and where the relevances do not
            add up to the score.
    """
    with torch.inference_mode(False), torch.enable_grad(), evaluating(model), frozen(model):
        x = plain(x)
        kwargs = plain_values(forward_kwargs)
        names = chosen_layers(model, x, layers, kwargs, dense=isinstance(target, SegmentationRegion))
        inner = [name for name in names if name != INPUT]
        with torch.no_grad():
            expected = one_tensor(model, model(x.clone(), **kwargs))
            varies = _varies(model, x, kwargs, expected)
        leaf = x.clone().requires_grad_()
        with relevance_rules(model), record(model, inner, aliases, none=True) as recorder:
            output = one_tensor(model, model(leaf.clone(), **kwargs))
        recorder.check()
        to_maps = {
            name: as_map(model, name, activation, x, reshape_transform)
            for name, activation in recorder.activations.items()
        }
        relevance = output_relevance(target, output, varies)
        score = checked_score(model, target, expected)
        kind = type(model).__name__
        if not torch.allclose(output.detach(), expected, rtol=1e-4, atol=1e-4):
            raise LayerError(f"no relevance: {kind} puts out other values when its operations are followed one by one")
        leaves = [leaf, *recorder.activations.values()]
        found = torch.autograd.grad(output, leaves, relevance.to(output.dtype), allow_unused=True)
    total = torch.zeros_like(score) if found[0] is None else found[0].flatten(1).sum(1)
    error = ((total - score).abs() / score.abs().clamp(min=1)).nan_to_num(torch.inf)
    if bool((error > CONSERVED).any()):
        worst = int(error.argmax())
        raise LayerError(
            f"no relevance: that of the image adds up to {float(total[worst]):.4g} where the score of sample {worst} "
            f"is {float(score[worst]):.4g}; {kind} has a part whose operations cannot be followed (a function with a "
            "backward pass of its own, checkpoints). Take a gradient method"
        )
    result = CamPass(expected.detach(), score.detach())
    by_name = dict(zip([INPUT, *recorder.activations], found, strict=True))
    for name in names:
        layer = INPUT if name == INPUT else resolve_layer(model, name, aliases)
        value = by_name[layer]
        if value is None:
            raise LayerError(f"the target does not depend on layer {name!r} of {kind}")
        relevance = value.detach() if name == INPUT else to_maps[layer](value.detach())
        map_ = relevance.float().sum(1, keepdim=True)
        result.maps["lrp", name] = map_ if signed else map_.clamp(min=0)
    return result
