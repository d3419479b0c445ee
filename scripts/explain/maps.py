"""One scale and one grid for all maps: divided by the largest value, never stretched from a smallest one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["ADAPTIVE_MEAN", "check_maps", "combine_maps", "is_empty", "max_scaling", "scale_maps", "upsample"]

ADAPTIVE_MEAN: dict[int, Any] = {1: F.adaptive_avg_pool1d, 2: F.adaptive_avg_pool2d, 3: F.adaptive_avg_pool3d}
LINEAR = {1: "linear", 2: "bilinear", 3: "trilinear"}


def check_maps(maps: Tensor, what: str = "map") -> Tensor:
    """Return `maps` as a plain tensor after checking its shape (B, 1, *spatial) and that all values are finite.

    Raises:
        ValueError: for another shape.
        FloatingPointError: for NaN or infinite values.
    """
    if not isinstance(maps, Tensor) or maps.dim() not in (3, 4, 5) or maps.shape[1] != 1:
        shape = tuple(maps.shape) if isinstance(maps, Tensor) else type(maps).__name__
        raise ValueError(f"{what}: expected (B, 1, *spatial) with one to three spatial axes, got {shape}")
    maps = maps.as_subclass(Tensor)
    bad = (~torch.isfinite(maps)).flatten(1).any(1)
    if bool(bad.any()):
        raise FloatingPointError(f"{what}: NaN or infinite values in sample(s) {bad.nonzero().flatten().tolist()}")
    return maps


def is_empty(maps: Tensor) -> Tensor:
    """Whether each map (B, 1, *spatial) has no positive value at all, (B,), bool."""
    return check_maps(maps).flatten(1).amax(1) <= 0


def scale_maps(maps: Tensor) -> tuple[Tensor, Tensor]:
    """Divide each map by its largest value; what speaks against the target (below 0) becomes 0.

    Args:
        maps: (B, 1, *spatial), any finite values, larger = stronger.

    Returns:
        maps: float32 in [0, 1], 1 = strongest of its sample; all 0 for an empty map.
        empty: (B,), bool, maps without a positive value: "nothing found", to be shown as such.

    >>> scaled, empty = scale_maps(torch.tensor([[[[-1.0, 2.0, 4.0]]], [[[-1.0, 0.0, 0.0]]]]))
    >>> scaled.tolist(), empty.tolist()
    ([[[[0.0, 0.5, 1.0]]], [[[0.0, 0.0, 0.0]]]], [False, True])
    """
    maps = check_maps(maps)
    positive = maps.double().clamp(min=0)
    largest = positive.flatten(1).amax(1)
    empty = largest <= 0
    divisor = torch.where(empty, torch.ones_like(largest), largest)
    return (positive / divisor.reshape(-1, *[1] * (maps.dim() - 1))).float(), empty


def max_scaling(maps: Tensor) -> Tensor:
    """`scale_maps` without the flags, for the `postprocessing` argument of MONAI's CAM classes."""
    return scale_maps(maps)[0]


def upsample(maps: Tensor, size: Sequence[int]) -> Tensor:
    """Bring maps (B, 1, *spatial) to the image grid `size` by linear interpolation, align_corners=False.

    A cell's value stands at the cell's center, so that a map at stride s lies on the image without a shift.
    """
    maps = check_maps(maps)
    size = tuple(int(s) for s in size)
    if len(size) != maps.dim() - 2:
        raise ValueError(f"a map of shape {tuple(maps.shape)} cannot be brought to the grid {size}: other dimensions")
    if tuple(maps.shape[2:]) == size:
        return maps
    dtype = torch.float32 if maps.dtype in (torch.float16, torch.bfloat16) else maps.dtype
    return F.interpolate(maps.to(dtype), size=size, mode=LINEAR[len(size)], align_corners=False)


def combine_maps(maps: Sequence[Tensor], size: Sequence[int], how: str = "mean") -> Tensor:
    """Aggregate maps of several layers: each brought to the grid `size` and scaled to its maximum, then combined.

    Args:
        maps: each (B, 1, *its own grid).
        size: common grid.
        how: "mean", "max", or "product" (geometric mean: only what all layers agree on remains).

    Returns:
        (B, 1, *size), float32 in [0, 1], not scaled to 1 again.
    """
    if not maps:
        raise ValueError("combine_maps: no maps given")
    stack = torch.stack([max_scaling(upsample(m, size)) for m in maps])
    if how == "mean":
        return stack.mean(0)
    if how == "max":
        return stack.amax(0)
    if how == "product":
        return stack.prod(0).pow(1.0 / len(maps))
    raise ValueError(f"how: expected 'mean', 'max' or 'product', got {how!r}")
