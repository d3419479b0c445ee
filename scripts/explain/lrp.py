"""Maps of relevance: what each place of a layer, or of the image, has of the score.

`lrp` is the relevance of the layer's own cells. `lrp_places` draws that of any layer in places of `PLACE` pixels:
smaller cells are added up, larger ones divided. A cell keeps the relevance it has, and within the cell that lies where
the layer's relevance goes when it is handed on down to the image, by ways through this layer alone. What is handed on
leaves the cells that it came from, for neighbors that they see as well; only how it divides up within a cell is taken
from there.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from scripts.explain.cam import CamPass
from scripts.explain.gradients import INPUT
from scripts.explain.grids import ToMap, as_map
from scripts.explain.layers import LayerError, evaluating, frozen, resolve_layer
from scripts.explain.maps import ADAPTIVE_MEAN
from scripts.explain.recording import chosen_layers, record
from scripts.explain.relevance import relevance_rules
from scripts.explain.scores import checked_score, one_tensor, plain, plain_values
from scripts.explain.targets import SegmentationRegion, Target

__all__ = ["CONSERVED", "LRP_METHODS", "in_places", "lrp", "output_relevance"]

LRP, PLACES = LRP_METHODS = ("lrp", "lrp_places")

# Largest share of the score (of 1, for scores below it) by which the image's relevances may differ from it.
CONSERVED = 1e-3
# Pixels along a side of a place. Chosen on the validation part of the shipped weights: the relevance of single pixels
# points at tumors less well, since a convolution of stride 2 sees one pixel in four more often than the others.
PLACE = 2


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


def in_places(cells: Tensor, handed_on: Tensor, place: int = PLACE) -> Tensor:
    """Draw the relevance of cells in places of some pixels, so that it adds up to the same.

    Args:
        cells: (B, 1, *grid), of any sign.
        handed_on: (B, 1, *image), what is left of it at each pixel; its size within a cell shares the cell's relevance
            out, evenly where it is 0 in the whole cell.
        place: pixels along a side.

    Returns:
        (B, 1, *places): by axis as many as fit into each cell; of smaller cells as many as they fill, the last maybe in
        part.

    >>> pixels = torch.tensor([[[3.0, 3.0, 0.0, 2.0, 0.0, 0.0, 0.0, 0.0]]])
    >>> in_places(torch.tensor([[[8.0, 2.0]]]), pixels).tolist()
    [[[6.0, 2.0, 1.0, 1.0]]]
    >>> in_places(pixels, pixels).tolist()
    [[[6.0, 2.0, 0.0, 0.0]]]
    """
    grid, size = tuple(cells.shape[2:]), tuple(handed_on.shape[2:])
    times = [max(1, pixels // (place * n)) for pixels, n in zip(size, grid, strict=True)]
    average = ADAPTIVE_MEAN[len(grid)]
    sizes = average(handed_on.abs(), tuple(n * k for n, k in zip(grid, times, strict=True)))
    whole = average(sizes, grid)
    for axis, k in enumerate(times, start=2):
        cells, whole = cells.repeat_interleave(k, axis) / k, whole.repeat_interleave(k, axis)
    divided = cells * torch.where(whole > 0, sizes / whole.where(whole > 0, torch.ones_like(whole)), 1.0)
    joined = [max(1, place * n // pixels) for pixels, n in zip(size, grid, strict=True)]
    missing = [-n % k for n, k in zip(divided.shape[2:], joined, strict=True)]
    filled = F.pad(divided, [width for extra in reversed(missing) for width in (0, extra)])
    counts = tuple(n // k for n, k in zip(filled.shape[2:], joined, strict=True))
    return average(filled, counts) * math.prod(joined)


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
    methods: Sequence[str] = (LRP,),
) -> CamPass:
    """Relevance of each place of the layers, and of the image under the name "input"; see `relevance`.

    The relevances of all places of the image add up to the score, within `CONSERVED`, or there is no map. So do those
    of a layer that everything passes through; one of several branches has its own share. Where the score is below 0
    all that speaks for it is below 0 as well, and the map is empty unless it is signed. Of a sample whose image has no
    part in any output (no evidence anywhere) every map is 0.

    Args:
        model, x, target, forward_kwargs, aliases, signed, reshape_transform: see `cam.cam_pass`.
        layers: dotted names, aliases, or "input"; None chooses one, see `recording.default_layer`.
        methods: of `LRP_METHODS`.

    Returns:
        maps: (method, layer as the caller named it): (B, 1, *grid), float32, >= 0 unless signed; adds up to the
        relevance of the layer. The grid is the layer's, of "lrp_places" that of `in_places`.

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
        again = PLACES in methods
        grads = torch.autograd.grad(output, leaves, relevance.to(output.dtype), allow_unused=True, retain_graph=again)
        by_name = dict(zip([INPUT, *recorder.activations], grads, strict=True))
        handed_on: dict[str, Tensor] = {}
        for layer, activation in recorder.activations.items() if again else ():
            if by_name[layer] is not None:
                (handed_on[layer],) = torch.autograd.grad(
                    activation, leaf, by_name[layer], retain_graph=True, materialize_grads=True
                )
    total = torch.zeros_like(score) if grads[0] is None else grads[0].flatten(1).sum(1)
    due = score * varies.flatten(1).any(1)
    error = ((total - due).abs() / score.abs().clamp(min=1)).nan_to_num(torch.inf)
    if bool((error > CONSERVED).any()):
        worst = int(error.argmax())
        raise LayerError(
            f"no relevance: that of the image adds up to {float(total[worst]):.4g} where the score of sample {worst} "
            f"is {float(score[worst]):.4g}; {kind} has a part whose operations cannot be followed (a function with a "
            "backward pass of its own, checkpoints). Take a gradient method"
        )
    result = CamPass(expected.detach(), score.detach())
    for name in names:
        layer = INPUT if name == INPUT else resolve_layer(model, name, aliases)
        value = by_name[layer]
        if value is None:
            raise LayerError(f"the target does not depend on layer {name!r} of {kind}")
        relevance = value.detach() if name == INPUT else to_maps[layer](value.detach())
        map_ = relevance.float().sum(1, keepdim=True)
        for method in methods:
            drawn = map_
            if method == PLACES:
                drawn = in_places(map_, handed_on.get(layer, value).float().sum(1, keepdim=True))
            result.maps[method, name] = drawn if signed else drawn.clamp(min=0)
    return result
