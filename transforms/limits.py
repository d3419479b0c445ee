"""How large a file may be to be read, decided from its header before anything is unpacked."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass


def refused(path: str | os.PathLike[str], what: str, advice: str) -> ValueError:
    """The error of a file that is not read: its name, what is wrong, and after the semicolon what to do.

    >>> str(refused("a.nii", "holds colors", "export gray values"))
    'file a.nii holds colors; export gray values'
    """
    return ValueError(f"{'folder' if os.path.isdir(path) else 'file'} {path} {what}; {advice}")


@dataclass(frozen=True)
class ReadLimits:
    """Largest images that are read.

    Attributes:
        pixels: of a picture.
        voxels: of a volume, all channels together.
    """

    pixels: int = 1 << 26
    voxels: int = 1 << 30

    def check_picture(self, path: str | os.PathLike[str], size: Sequence[int]) -> None:
        """Raises ValueError for a picture of too many pixels."""
        if math.prod(size) > self.pixels:
            raise refused(
                path, f"is a picture of {' x '.join(map(str, size))} pixels, at most {self.pixels:,} are read",
                "make it smaller",
            )  # fmt: skip

    def check_volume(self, path: str | os.PathLike[str], shape: Sequence[int]) -> None:
        """Raises ValueError for a volume of no or too many voxels."""
        if not shape or any(n < 1 for n in shape):
            raise refused(
                path, f"says that its shape is {tuple(shape)}, expected sizes of at least 1", "export it again"
            )
        if math.prod(shape) > self.voxels:
            raise refused(
                path, f"holds {' x '.join(map(str, shape))} voxels, at most {self.voxels:,} are read",
                "cut it or resample it",
            )  # fmt: skip


DEFAULT_LIMITS = ReadLimits()
