"""Fingerprints of images on disk, by the images' files: what a merge finds there it does not read again."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scripts.command.files import whole
from scripts.data.caching import describe_item
from scripts.data.datalists.clusters import Item
from scripts.data.datalists.fingerprints import SIZE

__all__ = ["FILE", "VERSION", "KnownFingerprints", "key_of", "write"]

logger = logging.getLogger(__name__)

FILE = "fingerprints.npz"
VERSION = 1  # of the file, and of the fingerprints
_DIGEST = 32  # bytes of a key, and of the hash of an image's content
_COLUMNS = {"keys": _DIGEST, "fingerprints": SIZE, "contents": _DIGEST}


def key_of(item: Item, root: Path) -> bytes:
    """What is shown, the slice and the state of its file (path, size, times), as 32 bytes.

    Raises:
        ValueError: when the file cannot be read.
    """
    named = item["image"] if isinstance(item["image"], list) else [item["image"]]
    about: dict[str, Any] = {key: item[key] for key in ("slice", "plane") if key in item}
    return hashlib.sha256(describe_item({**about, "image": str(root.resolve() / named[0])}).encode()).digest()


class KnownFingerprints:
    """Fingerprints and content hashes of images, by `key_of`.

    Args:
        files: of `write`.

    Raises:
        FileNotFoundError: when one is not there.
        ValueError: when one is something else.
    """

    def __init__(self, files: Sequence[Path] = ()) -> None:
        self._rows: dict[bytes, tuple[int, int]] = {}
        self._read = [_columns(path) for path in files]
        for number, columns in enumerate(self._read):
            self._rows |= {key.tobytes(): (number, row) for row, key in enumerate(columns["keys"])}
        if files:
            logger.info("%d fingerprints are known", len(self._rows))

    def of(self, item: Item, root: Path) -> tuple[NDArray[np.uint8], str] | None:
        """What `linking.picture_of` says of an item; None where it is not known, or its file has changed since."""
        if not self._rows:
            return None
        try:
            location = self._rows.get(key_of(item, root))
        except ValueError:  # its file cannot be read, which whoever reads it says better
            return None
        if location is None:
            return None
        number, row = location
        return self._read[number]["fingerprints"][row], self._read[number]["contents"][row].tobytes().hex()


def _columns(path: Path) -> dict[str, NDArray[np.uint8]]:
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist; python -m scripts fingerprint writes it")
    try:
        with np.load(path, allow_pickle=False) as file:
            if int(file["version"]) != VERSION:
                raise KeyError("version")
            columns = {name: np.asarray(file[name], np.uint8) for name in _COLUMNS}
        if {name: values.shape[1:] for name, values in columns.items()} != {n: (w,) for n, w in _COLUMNS.items()}:
            raise KeyError("shape")
    except (ValueError, KeyError, OSError, EOFError) as error:
        raise ValueError(f"{path} holds no fingerprints of this version ({error}); write them again") from error
    return columns


def write(path: Path, keyed: Iterable[tuple[bytes, NDArray[np.uint8], str]]) -> int:
    """Write keys, fingerprints and content hashes (hexadecimal); returns how many."""
    columns: dict[str, list[bytes]] = {name: [] for name in _COLUMNS}
    for key, fingerprint, content in keyed:
        for name, value in zip(_COLUMNS, (key, fingerprint.tobytes(), bytes.fromhex(content)), strict=True):
            columns[name].append(value)
    arrays: dict[str, Any] = {
        name: np.frombuffer(b"".join(values), np.uint8).reshape(-1, _COLUMNS[name]) for name, values in columns.items()
    }
    with whole(path) as place, open(place, "wb") as file:
        np.savez(file, version=VERSION, **arrays)
    return len(columns["keys"])
