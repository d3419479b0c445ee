"""Where the values of a layer lie in the image: maps, channels-last maps and tokens, all brought to (B, C, *grid)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from itertools import product

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd

from scripts.explain.layers import LayerError

__all__ = ["ToMap", "as_map"]

# From a layer's output, or its gradient, to (B, C, *grid).
ToMap = Callable[[Tensor], Tensor]

RESHAPE_ADVICE = "give reshape_transform, a function of the layer's output that returns (B, C, *grid)"


def as_map(model: nn.Module, name: str, output: Tensor, x: Tensor, reshape_transform: ToMap | None = None) -> ToMap:
    """Function that brings a layer's output and its gradient to (B, C, *grid), chosen by their shape.

    - As many axes as the input: (B, C, *grid). It is channels last, (B, *grid, C), where the network has layer norms
      over a last axis of C channels, and (B, *grid) has one stride along all axes of the image. Where both readings
      have one stride, a layer of layer norms and linear layers alone is channels last, and one of convolutions alone
      channels first; any other is refused as ambiguous.
    - Three axes for an image of two or three: tokens (B, N, C), in the order of their places, the last axis fastest.
      The grid has N cells, or N - 1 behind a class token, which comes first and is left out. It is the one of equal
      strides that divide the image, else of equal strides rounded down or up, else of any strides that divide it;
      several such grids are refused as ambiguous.

    Args:
        model, name: network and layer, for errors and for what the layer is made of.
        output: of the layer.
        x: input (B, C, *spatial).
        reshape_transform: takes the place of these rules.

    Raises:
        LayerError: when no grid fits, several do, or `reshape_transform` returns something else.
    """
    size, kind = tuple(x.shape[2:]), type(model).__name__
    if reshape_transform is not None:
        with torch.no_grad():
            shape = tuple(reshape_transform(output.detach()).shape)
        if len(shape) != x.dim() or shape[0] != len(x):
            raise LayerError(
                f"reshape_transform made {shape} of layer {name!r}, {tuple(output.shape)}; expected ({len(x)}, C, "
                f"*grid) with {len(size)} axes of a grid"
            )
        return reshape_transform
    if len(output) == len(x) and output.dim() == x.dim():
        return _channels_last if _is_channels_last(model, name, output, size) else _unchanged
    if len(output) == len(x) and output.dim() == 3:
        grid = _token_grid(output.shape[1], size, name)
        return lambda tokens: _tokens_as_map(tokens, grid)
    raise LayerError(
        f"layer {name!r} of {kind} puts out {tuple(output.shape)}; expected ({len(x)}, C, *spatial) with {len(size)} "
        f"spatial axes, or tokens ({len(x)}, N, C); {RESHAPE_ADVICE}"
    )


def _unchanged(values: Tensor) -> Tensor:
    return values


def _channels_last(values: Tensor) -> Tensor:
    return values.movedim(-1, 1)


def _tokens_as_map(tokens: Tensor, grid: tuple[int, ...]) -> Tensor:
    places = tokens[:, tokens.shape[1] - math.prod(grid) :]
    return places.transpose(1, 2).reshape(len(tokens), tokens.shape[2], *grid)


def _is_channels_last(model: nn.Module, name: str, output: Tensor, size: tuple[int, ...]) -> bool:
    widths = {m.normalized_shape for m in model.modules() if isinstance(m, nn.LayerNorm)}
    last = (output.shape[-1],) in widths and _one_stride(size, output.shape[1:-1])
    if not last or not _one_stride(size, output.shape[2:]):
        return last
    parts = list(model.get_submodule(name).modules())
    on_last = any(isinstance(part, nn.LayerNorm | nn.Linear) for part in parts)
    on_first = any(isinstance(part, _ConvNd | _NormBase | nn.GroupNorm) for part in parts)
    if on_last == on_first:
        raise LayerError(
            f"layer {name!r} of {type(model).__name__} puts out {tuple(output.shape)}, whose channels may be its "
            f"second or its last axis; {RESHAPE_ADVICE}"
        )
    return on_last


def _grids_of_one_stride(size: Sequence[int]) -> Iterator[tuple[int, ...]]:
    """Grids that one stride along all axes leaves of an image, rounded down or up."""
    for stride in range(1, max(size) + 1):
        yield tuple(max(1, length // stride) for length in size)
        yield tuple(-(-length // stride) for length in size)


def _one_stride(size: Sequence[int], grid: Sequence[int]) -> bool:
    return tuple(grid) in _grids_of_one_stride(size)


def _token_grid(tokens: int, size: tuple[int, ...], name: str) -> tuple[int, ...]:
    divisors = [[cells for cells in range(1, length + 1) if length % cells == 0] for length in size]
    exact = [grid for grid in product(*divisors) if math.prod(grid) in (tokens, tokens - 1) and math.prod(grid) > 1]
    equal = [grid for grid in exact if len({length // cells for length, cells in zip(size, grid, strict=True)}) == 1]
    rounded = [grid for grid in _grids_of_one_stride(size) if math.prod(grid) in (tokens, tokens - 1)]
    for grids in (equal, [grid for grid in rounded if math.prod(grid) > 1], exact):
        candidates = sorted(set(grids))
        if len(candidates) == 1:
            return candidates[0]
        if candidates:
            raise LayerError(
                f"the {tokens} tokens of layer {name!r} lie on one of several grids of an image of {size}: "
                f"{', '.join(map(str, candidates[:3]))}; {RESHAPE_ADVICE}"
            )
    raise LayerError(
        f"the {tokens} tokens of layer {name!r} fill no grid of an image of {size}, with or without a class token; "
        f"{RESHAPE_ADVICE}"
    )
