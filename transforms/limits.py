"""How large a file may be to be read, decided from its header before anything is unpacked."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass


class Refused(ValueError):
    """A file that is not read."""


class TooLarge(Refused):
    """A file that is larger than what is read."""


def refused(path: str | os.PathLike[str], what: str, advice: str) -> Refused:
    """The error of a file that is not read: its name, what is wrong, and after the semicolon what to do.

    >>> str(refused("a.nii", "holds colors", "export gray values"))
    'file a.nii holds colors; export gray values'
    """
    return Refused(f"{'folder' if os.path.isdir(path) else 'file'} {path} {what}; {advice}")


@dataclass(frozen=True)
class ReadLimits:
    """Largest images that are read.

    Attributes:
        pixels: of a picture.
        voxels: of a volume, all channels together.
        side: pixels or voxels along one axis of either; of a volume, slices and channels too, whose number decides
            how long it takes to predict it.
    """

    pixels: int = 1 << 26
    voxels: int = 1 << 30
    side: int = 1 << 16

    def check_picture(self, path: str | os.PathLike[str], size: Sequence[int]) -> None:
        """Raises TooLarge for a picture of too many pixels."""
        self._check(path, size, self.pixels, "pixels", "make it smaller")

    def check_volume(self, path: str | os.PathLike[str], shape: Sequence[int]) -> None:
        """Raises ValueError for a volume of no voxels, TooLarge for one of too many."""
        if not shape or any(n < 1 for n in shape):
            raise refused(
                path, f"says that its shape is {tuple(shape)}, expected sizes of at least 1", "export it again"
            )
        self._check(path, shape, self.voxels, "voxels", "cut it or resample it")

    def _check(self, path: str | os.PathLike[str], shape: Sequence[int], most: int, unit: str, advice: str) -> None:
        if math.prod(shape) > most or max(shape) > self.side:
            size = " x ".join(map(str, shape))
            what = f"holds {size} {unit}, at most {most:,} and {self.side:,} along one axis are read"
            raise TooLarge(str(refused(path, what, advice)))


DEFAULT_LIMITS = ReadLimits()
