"""Scale intensities: robustly to about 0..1 on loading, and by the foreground's own statistics."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform

from transforms.describe import describe


def like(tensor: torch.Tensor, source: torch.Tensor) -> torch.Tensor:
    """Give ``tensor`` the metadata and the traced operations of ``source``, if it has any."""
    if isinstance(source, MetaTensor):
        return MetaTensor(tensor, meta=source.meta, applied_operations=source.applied_operations)
    return tensor


def plain(tensor: torch.Tensor) -> torch.Tensor:
    """Return the tensor without metadata; arithmetic on tensors with metadata is ten times as slow."""
    return tensor.as_tensor() if isinstance(tensor, MetaTensor) else tensor


_SAMPLE = 256  # of many values, whose order bounds what is looked for


def scale_robust(image: torch.Tensor, upper: float = 99.9) -> torch.Tensor:
    """Map each channel's minimum to 0 and its upper percentile to 1; nothing is clipped.

    Args:
        image: float (C, X, Y[, Z]), any range. The percentile is taken over at most about 33,000 voxels on a regular
            raster, which makes it fast and repeatable. A channel without spread becomes 0.
        upper: percentile, 0 to 100.
    """
    pixels = plain(image).numpy().astype(np.float32, copy=False)
    out = np.empty_like(pixels)
    for channel, array in enumerate(pixels):
        low = array.min()
        span = percentiles(_raster(array), upper)[0] - low
        if not span > 0:
            span = max(array.max() - low, np.finfo(np.float32).tiny)
        np.subtract(array, low, out=out[channel])
        out[channel] /= span
    return like(torch.from_numpy(out), image)


def _raster(values: np.ndarray) -> np.ndarray:
    """At most about 33,000 values at regular steps: percentiles of all of them would take most of the time."""
    flat = values.reshape(-1)
    return np.ascontiguousarray(flat[:: max(1, flat.size // 16384)])


def percentiles(values: np.ndarray, *shares: float) -> list[np.float32]:
    """``np.percentile`` (linear interpolation) of flat values, in a third of its time where the shares are extreme.

    Args:
        values: float32 (N,), N >= 1.
        shares: percentiles, 0 to 100.
    """
    return [_percentile(values, share / 100 * (values.size - 1)) for share in shares]


def _percentile(values: np.ndarray, place: float) -> np.float32:
    first, second = _ordered(values, int(place))
    return np.float32(first + (float(second) - float(first)) * (place - int(place)))


def quantile(values: np.ndarray, share: float) -> np.floating:
    """``np.quantile`` (linear interpolation) of flat values, bit for bit, in a fraction of its time.

    Args:
        values: float32 or float64 (N,), N >= 1, finite.
        share: 0 to 1.

    Returns:
        a scalar of the type of ``values``.
    """
    place = (values.size - 1) * share
    first, second = _ordered(values, int(place))
    part = place - int(place)
    return first + (second - first) * part if part < 0.5 else second - (second - first) * (1 - part)


def _ordered(values: np.ndarray, low: int) -> tuple[np.floating, np.floating]:
    """The values at one place of the ascending order and at the next."""
    high = min(low + 1, values.size - 1)
    candidates, skipped = _around(values, low, high)
    ordered = np.partition(candidates, sorted({low - skipped, high - skipped}))
    return ordered[low - skipped], ordered[high - skipped]


def ordered(values: np.ndarray, place: int) -> np.floating:
    """The value at a place of the ascending order of flat values (N,), in a third of the time of ``np.partition``.

    Args:
        values: float (N,), N >= 1, finite.
        place: 0 to N - 1.
    """
    candidates, skipped = _around(values, place, place)
    return np.partition(candidates, place - skipped)[place - skipped]


def _around(values: np.ndarray, low: int, high: int) -> tuple[np.ndarray, int]:
    """Those values that hold the places ``low`` to ``high`` of the order, few of many, and how many are below them.

    Bounds of them come from the order of a sample; where these do not hold, all values are taken.
    """
    if values.size < 8 * _SAMPLE:
        return values, 0
    sample = np.sort(values[:: values.size // _SAMPLE])
    step = values.size / sample.size
    margin = 4 + int(2 * math.sqrt(min(low, values.size - low) / step))
    first, last = int(low / step) - margin, int(high / step) + margin
    below, inside = 0, None
    if first > 0:
        inside = values >= sample[first]
        below = values.size - int(np.count_nonzero(inside))
    if last < sample.size:
        under = values <= sample[last]
        inside = under if inside is None else inside & under
    candidates = values if inside is None else values[inside]
    return (candidates, below) if below <= low and high < below + candidates.size else (values, 0)


def different_values(pixels: np.ndarray) -> np.ndarray:
    """``np.unique``, which puts all pixels in order; whole numbers of up to 16 bits are counted instead.

    Args:
        pixels: of any shape, at least one.

    Returns:
        (M,) ascending, of the type of ``pixels``.
    """
    low, high = float(pixels.min()), float(pixels.max())
    if low < 0 or high >= 1 << 16:
        return np.unique(pixels)
    whole = pixels.astype(np.uint16)
    if (whole != pixels).any():
        return np.unique(pixels)
    return np.flatnonzero(np.bincount(whole.ravel())).astype(pixels.dtype)


def normalize_foreground(
    image: torch.Tensor, foreground: torch.Tensor, lower: float = 0.5, upper: float = 99.5
) -> torch.Tensor:
    """Clip each channel to percentiles of its foreground, then z-score it with the foreground's mean and deviation.

    Args:
        image: float (C, X, Y[, Z]).
        foreground: (1, X, Y[, Z]), non-zero in the head.
        lower, upper: percentiles of the foreground, 0 to 100, taken over at most about 33,000 of its voxels on a
            regular raster.

    Returns:
        float32 (C, X, Y[, Z]); over the foreground mean 0 and (population) standard deviation 1. Air is clipped and
        shifted along, so it is *not* 0: mask next.

    Raises:
        ValueError: When the foreground is empty, or constant in a channel.
    """
    pixels = plain(image).numpy().astype(np.float32, copy=False)
    inside = plain(foreground)[0].numpy() != 0
    if not inside.any():
        raise ValueError("the foreground mask is empty")
    out = np.empty(pixels.shape, np.float32)
    for channel, array in enumerate(pixels):
        values = array[inside]
        low, high = percentiles(_raster(values), lower, upper)
        clipped = np.clip(values, low, high).astype(np.float64)
        mean = float(clipped.mean())
        clipped -= mean
        # Not BLAS: its threads, woken for so short a product, wait for each other longer than the whole pipeline takes.
        std = float(np.sqrt(np.einsum("i,i", clipped, clipped) / clipped.size))
        if not std > 1e-6 * max(abs(mean), 1e-6):
            raise ValueError(f"the foreground of channel {channel} is constant ({mean:g}): nothing to normalize")
        np.clip(array, low, high, out=out[channel])
        out[channel] -= np.float32(mean)
        out[channel] /= np.float32(std)
    return like(torch.from_numpy(out), image)


class ScaleRobustd(MapTransform):
    """Dictionary form of :func:`scale_robust`.

    Args:
        keys: images, (C, X, Y[, Z]).
        upper: percentile that becomes 1.
    """

    stage = "scale"

    def __init__(self, keys: KeysCollection = "image", upper: float = 99.9) -> None:
        super().__init__(keys)
        self.upper = upper

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return the item with scaled images."""
        item = dict(data)
        for key in self.key_iterator(item):
            item[key] = scale_robust(item[key], self.upper)
        return item


class NormalizeForegroundd(MapTransform):
    """Dictionary form of :func:`normalize_foreground`.

    Args:
        keys: images, (C, X, Y[, Z]).
        foreground_key: the mask, (1, X, Y[, Z]).
        lower, upper: percentiles of the foreground to clip at.

    Raises:
        ValueError: When the foreground is empty or constant. Names the file.
    """

    stage = "normalize"

    def __init__(
        self,
        keys: KeysCollection = "image",
        foreground_key: str = "foreground",
        lower: float = 0.5,
        upper: float = 99.5,
    ) -> None:
        super().__init__(keys)
        if not 0 <= lower < upper <= 100:
            raise ValueError(f"percentiles must satisfy 0 <= lower < upper <= 100, got {lower} and {upper}")
        self.foreground_key, self.lower, self.upper = foreground_key, lower, upper

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return the item with normalized images."""
        item = dict(data)
        for key in self.key_iterator(item):
            try:
                item[key] = normalize_foreground(item[key], item[self.foreground_key], self.lower, self.upper)
            except ValueError as error:
                raise ValueError(f"{describe(item, key)}: {error}") from error
        return item
