"""Results of a large prediction in a store by its address, in place of files below the results' folder.

The address is one of fsspec's: ``s3://bucket/prefix``, ``gs://``, ``az://``, ``sftp://``, ``file:///``... The result of
an image is written last and removed first, so that it says that all else is whole, whatever the store.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from scripts.inference.result_names import shown

__all__ = ["RESULT", "ResultStore"]

RESULT = "_result.json"


class ResultStore:
    """A place by its address, opened once a process.

    Attributes:
        address: as results name it.

    Args:
        address: of a folder, or of a bucket and prefix.

    Raises:
        ValueError: when the address has no protocol, none that is known, or one whose package is missing.
        OSError: when the place can not be reached or made.
    """

    def __init__(self, address: str) -> None:
        import fsspec

        self.address = shown(re.sub("//[^/@]*@", "//", address)).rstrip("/")  # no name, no password
        if "://" not in address:
            raise ValueError(f"a store is an address like s3://bucket/prefix or file:///folder, got {self.address}")
        try:
            self._files, root = fsspec.core.url_to_fs(address)
        except (ImportError, ValueError) as error:  # its package is missing; no such protocol
            raise ValueError(f"store {self.address}: {error}") from error
        self._root = root.rstrip("/")
        self._files.makedirs(self._root, exist_ok=True)

    def take(self, files: Sequence[Path], out: Path) -> None:
        """Move files here, in their order, under their places below ``out``; each that is here is deleted there.

        Raises:
            OSError: when one can not be written; the ones before it are here.
        """
        for file in files:
            place = self._place(file.relative_to(out).as_posix())
            self._files.makedirs(place.rpartition("/")[0], exist_ok=True)
            self._files.put_file(str(file), place)
        for file in files:
            file.unlink()

    def result(self, name: str) -> dict[str, Any] | None:
        """Result of an image, by its place, when it and all files that it names are here; else None."""
        try:
            result: dict[str, Any] = json.loads(self._files.cat_file(self._place(name + RESULT)))
        except FileNotFoundError:
            return None
        whole = all(self._files.exists(self._place(name + ending)) for ending in result["files"])
        return result if whole else None

    def remove(self, name: str, endings: Sequence[str]) -> None:
        """Delete the results of an image, the one that says that all are whole first."""
        for ending in (RESULT, *endings):
            try:
                self._files.rm_file(self._place(name + ending))
            except FileNotFoundError:
                continue

    def _place(self, name: str) -> str:
        return f"{self._root}/{name}"
