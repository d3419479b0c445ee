"""Which plane of a case its pictures show: one channel of several, and of a volume the slice where the tumor lies."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["PicturePlane", "check_channel"]


def check_channel(channel: Any, network: Any) -> None:
    """Refuse a channel that a network's images do not have, before the work.

    Args:
        channel: counted from 0.
        network: whose first convolution says how many channels it takes.

    Raises:
        ValueError: when it is no number, or out of range.
    """
    _check(channel, next(p for p in network.parameters() if p.ndim > 2).shape[1])


def _check(channel: Any, count: int) -> None:
    if isinstance(channel, bool) or not isinstance(channel, int) or not 0 <= channel < count:
        raise ValueError(f"picture_channel: the images have channels 0 to {count - 1}, got {channel!r}")


@dataclass(frozen=True)
class PicturePlane:
    """A plane of a case; made by `of`.

    Attributes:
        channel: of the image, counted from 0.
        channels: of the image.
        slice: axial slice of the network's grid, counted from 0; None of a 2D image.
        slices: of the grid; 0 of a 2D image.
    """

    channel: int
    channels: int
    slice: int | None = None
    slices: int = 0

    @classmethod
    def of(
        cls, image: Any, mask: Any = None, heat: Any = None, predicted: Any = None, channel: int = 0
    ) -> PicturePlane:
        """Choose the plane of a case.

        Of a volume it is the slice with the most tumor in the true mask; without one that of the map's maximum; without
        a map the slice with the most predicted tumor; else the one with the most head. A slice in which the channel
        shows nothing is not chosen.

        Args:
            image: (C, X, Y[, Z]), air exactly 0, Z to superior.
            mask, predicted: (1, X, Y[, Z]), 0 or 1, or None.
            heat: (1, X, Y[, Z]), at least 0, or None.
            channel: to be shown, counted from 0.

        Raises:
            ValueError: when the image has another number of axes or no such channel.
        """
        array = np.asarray(image)
        if array.ndim not in (3, 4):
            raise ValueError(f"image: expected a channel-first array (C, X, Y[, Z]), got shape {array.shape}")
        _check(channel, len(array))
        if array.ndim == 3:
            return cls(channel, len(array))
        head = (array[channel] != 0).sum(axis=(0, 1))
        by_slice: list[NDArray] = [np.asarray(x)[0].sum(axis=(0, 1)) for x in (mask, predicted) if x is not None]
        if heat is not None:
            by_slice.insert(int(mask is not None), np.asarray(heat)[0].max(axis=(0, 1)))
        score = next((x for x in ((x * (head > 0)) for x in by_slice) if x.any()), head)
        return cls(channel, len(array), int(score.argmax()), array.shape[3])

    def around(self, count: int, *shown: Any) -> list[PicturePlane]:
        """This plane and others of its volume, from below to above: what a reader goes through.

        Args:
            count: at most so many, at least 2.
            shown: (1, X, Y, Z) each, masks and maps; the planes span the slices in which any is above 0, a quarter of
                their number to either side.

        Returns:
            planes in ascending order, this one among them; of a picture this one alone.
        """
        index = self.slice
        if index is None:
            return [self]
        there = np.flatnonzero(sum(np.asarray(value)[0].max(axis=(0, 1)) > 0 for value in shown if value is not None))
        ends = (there.min(), there.max()) if len(there) else (index, index)
        margin = max(1, (ends[1] - ends[0] + 1) // 4)
        low, high = max(0, min(ends[0] - margin, index)), min(self.slices - 1, max(ends[1] + margin, index))
        chosen = {int(z) for z in np.rint(np.linspace(low, high, min(count, high - low + 1)))}
        if index not in chosen:  # in place of the nearest
            chosen = chosen - {min(chosen, key=lambda z: abs(z - index))} | {index}
        return [replace(self, slice=z) for z in sorted(chosen)]

    def image(self, image: Any) -> NDArray:
        """The plane of the image, (1, X, Y)."""
        return self.map(np.asarray(image)[self.channel : self.channel + 1])

    def map(self, value: Any) -> NDArray:
        """The plane of a map or mask (1, X, Y[, Z]), as (1, X, Y)."""
        array = np.asarray(value)
        return array if self.slice is None else array[..., self.slice]

    def mask(self, value: Any) -> NDArray | None:
        """`map`, or None where there is no mask."""
        return None if value is None else self.map(value)

    @property
    def where(self) -> str:
        """Words for a caption, such as "channel 0 of 4, axial slice 17 of 32"; "" where there is nothing to choose."""
        words = [f"channel {self.channel} of {self.channels}"] if self.channels > 1 else []
        words += [f"axial slice {self.slice} of {self.slices}"] if self.slice is not None else []
        return ", ".join(words)
