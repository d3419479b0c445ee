"""Read the elements of DICOM files from strangers: no more memory than the file is long, whatever its lengths say."""

from __future__ import annotations

import io
import logging
import os
import warnings
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import pydicom
from pydicom.dataset import FileDataset

from transforms.limits import Refused, refused

__all__ = ["quietly", "read_elements"]

_SMALL = 1 << 16  # what is asked for at once without looking how much is left
_INFLATED = 1 << 28  # bytes that a file packed as a whole may unpack to
_CHUNK = 1 << 20


class _Bounded(io.BufferedReader):
    """A file that is never asked for more than it holds: Python sets aside as much memory as is asked for."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        super().__init__(io.FileIO(path))
        self._path, self._size = path, os.fstat(self.fileno()).st_size

    def read(self, size: int | None = -1, /) -> bytes:
        """Read; the whole rest is what pydicom asks for to inflate it, which is tried first without keeping it."""
        if size is None or size < 0:
            content = super().read()
            _check_inflated(content, self._path)
            return content
        return super().read(min(size, max(0, self._size - self.tell())) if size > _SMALL else size)


def _check_inflated(content: bytes, path: str | os.PathLike[str]) -> None:
    unpacking, size = zlib.decompressobj(-zlib.MAX_WBITS), 0
    while content and not unpacking.eof:
        size += len(unpacking.decompress(content, _CHUNK))
        content = unpacking.unconsumed_tail
        if size > _INFLATED:
            raise refused(
                path, f"is packed as a whole (deflated) and unpacks to more than {_INFLATED >> 20} MiB",
                "export it without compression",
            )  # fmt: skip


def read_elements(path: str | os.PathLike[str], only: Sequence[str] | None = None, pixels: bool = False) -> FileDataset:
    """Read a DICOM file, with the preamble or without.

    Args:
        path: the file.
        only: keywords of the elements that are kept; None: all.
        pixels: read the pixels, which else are left out.

    Raises:
        ValueError: When it is damaged, or packed to a small part of its size. Names the file and says what to do.
        OSError: When it cannot be opened.
    """
    with quietly():
        try:
            with _Bounded(path) as file:
                tags = None if only is None else list(only)
                return pydicom.dcmread(file, stop_before_pixels=not pixels, force=True, specific_tags=tags)
        except Exception as error:  # pydicom raises many kinds on damaged elements; all mean the same here
            if isinstance(error, Refused) or (isinstance(error, OSError) and error.errno is not None):
                raise
            raise refused(path, "is a damaged DICOM file", "copy or export it again") from error


@contextmanager
def quietly() -> Iterator[None]:
    """Without pydicom's warnings about values that break the standard: what matters of them is an error of ours."""
    logger = logging.getLogger("pydicom")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
