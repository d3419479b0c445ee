"""Results of a large prediction in a store by its address, in place of files below the results' folder.

The address is one of fsspec's: ``s3://bucket/prefix``, ``gs://``, ``az://``, ``sftp://``, ``file:///``... The result of
an image is written last and removed first, so that it says that all else is whole, whatever the store.
"""

from __future__ import annotations

import json
import threading
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from scripts.inference.result_names import RESULT, shown

__all__ = ["ResultStore", "StoreError"]

# Says of which inputs, and made by what, the results of a store are.
ABOUT = "about.json"


class StoreError(OSError):
    """A store did not do what it was asked; it may another time."""


class ResultStore:
    """A place by its address, opened once a process; one thread at a time speaks to it.

    Attributes:
        address: as results name it.

    Args:
        address: of a folder, or of a bucket and prefix. It holds no password: access comes from the environment or the
            configuration of fsspec.

    Raises:
        ValueError: when the address is none, holds a password, or is of a protocol that is not known or whose package
            is missing.
    """

    def __init__(self, address: str) -> None:
        _check(address)
        import fsspec  # takes a while, and few predictions need it

        self.address = shown(address).rstrip("/")
        try:
            self._files, root = fsspec.core.url_to_fs(address)
        except (ImportError, ValueError) as error:  # its package is missing; no such protocol
            raise ValueError(f"store {self.address}: {error}") from error
        self._root = root.rstrip("/")
        self._lock = threading.Lock()  # connections such as sftp's are not made for several threads

    def probe(self) -> None:
        """Check that files can be written to the store and deleted.

        Raises:
            StoreError: when it can not.
        """
        place = self._place(f"probe-{uuid.uuid4().hex}")
        with self._asked("can not be written to"):
            self._in_folder(place, partial(self._files.pipe_file, value=b""))
            self._files.rm(place)

    def claim(self, about: Mapping[str, Any]) -> None:
        """Record which inputs and settings the stored results belong to.

        Args:
            about: inputs and settings that decide about a result; plain values.

        Raises:
            ValueError: when the store holds results of other inputs, or made otherwise.
            StoreError: when it does not answer.
        """
        place = self._place(ABOUT)
        with self._asked("does not answer"):
            known = self._read(place)
            if known is None:  # several processes may say the same at once: whole, or not at all
                part = f"{place}.{uuid.uuid4().hex}"
                content = json.dumps(about, sort_keys=True).encode()
                self._in_folder(part, partial(self._files.pipe_file, value=content))
                self._files.mv(part, place)
                return
        if known != about:
            unlike = sorted(key for key in about.keys() | known.keys() if about.get(key) != known.get(key))
            raise ValueError(
                f"store {self.address} holds results of another prediction ({', '.join(unlike)} differ); choose "
                "another --results_to"
            )

    def take(self, files: Sequence[Path], out: Path) -> None:
        """Move files here, in their order, under their places below ``out``; once all are here they are deleted there.

        Raises:
            StoreError: when one can not be written; the ones before it are here.
        """
        with self._asked("did not take a file"):
            for file in files:
                self._in_folder(self._place(file.relative_to(out).as_posix()), partial(self._files.put_file, str(file)))
        for file in files:
            file.unlink()

    def result(self, name: str) -> dict[str, Any] | None:
        """Result of an image, by its place, when it and all files that it names are here; else None.

        Raises:
            StoreError: when the store does not answer.
        """
        with self._asked("does not answer"):
            result = self._read(self._place(name + RESULT))
            for ending in () if result is None else result["files"]:
                try:
                    self._files.info(self._place(name + ending))
                except FileNotFoundError:
                    return None
        return result

    def remove(self, name: str) -> None:
        """Delete the result of an image and then the files that it names; nothing where there is none.

        Raises:
            StoreError: when the store does not answer.
        """
        with self._asked("does not answer"):
            result = self._read(self._place(name + RESULT))
            for ending in () if result is None else (RESULT, *result["files"]):
                try:
                    self._files.rm(self._place(name + ending))
                except FileNotFoundError:
                    continue

    def _read(self, place: str) -> dict[str, Any] | None:
        """What a file holds; None of one that is not there, or that a killed process left unfinished."""
        try:
            content: dict[str, Any] = json.loads(self._files.cat_file(place))
        except (FileNotFoundError, ValueError):
            return None
        return content

    def _in_folder(self, place: str, write: Callable[[str], Any]) -> None:
        """Write to a place, in a store of real folders once its folder is there."""
        try:
            write(place)
        except FileNotFoundError:
            self._files.makedirs(place.rpartition("/")[0], exist_ok=True)
            write(place)

    @contextmanager
    def _asked(self, failed: str) -> Iterator[None]:
        """Hold the lock; whatever the packages behind an address raise is a `StoreError`."""
        with self._lock:
            try:
                yield
            except Exception as error:
                reason = shown(f"{type(error).__name__}: {error}")
                raise StoreError(f"store {self.address} {failed} ({reason})") from error

    def _place(self, name: str) -> str:
        return f"{self._root}/{name}"


def _check(address: str) -> None:
    """Refuse what is no address of a lasting place, without repeating what may be a password."""
    try:
        parts = urlsplit(address)
        parts.port  # noqa: B018 - a password with a "/" in it looks like a port
    except ValueError:
        raise ValueError("the address of the store is none: what follows its host's ':' is no port") from None
    if "://" not in address or not parts.scheme:
        raise ValueError("a store is given by an address like s3://bucket/prefix or file:///folder")
    if ":" in parts.netloc.rpartition("@")[0]:
        raise ValueError(
            "the address of the store holds a password, which every result would name; give it by the environment, as "
            "the package of the store says"
        )
    if parts.scheme in ("file", "local") and (parts.netloc or not parts.path.startswith("/")):
        raise ValueError(f"the store {shown(address)} is no whole path; give file:///FOLDER")
    if parts.scheme == "memory":
        raise ValueError("a store in memory ends with the process; give an address of a lasting place")
