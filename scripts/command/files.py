"""Files and folders that are written whole or not at all, by any number of processes at once."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

__all__ = ["file_sha256", "remove_partial", "whole", "whole_folder", "write_bytes", "write_json", "write_text"]

PARTIAL = ".partial"


def _place(path: Path) -> Path:
    """A name in the same folder that no other process takes, and short however long the file's own is."""
    path.parent.mkdir(parents=True, exist_ok=True)
    return path.with_name(f".{os.getpid()}.{uuid.uuid4().hex[:8]}{PARTIAL}")


def file_sha256(path: str | Path) -> str:
    """SHA-256 of a file's content, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def whole(path: str | Path) -> Iterator[Path]:
    """A place to write a file to, which takes the file's name when the block ends and is deleted after an error.

    Args:
        path: of the file; its folder is made if absent.

    Raises:
        OSError: with the path of the file, also where the system names none ("no space left on device").

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     with whole(Path(folder) / "a.txt") as place:
        ...         _ = place.write_text("content")
        ...     [p.name for p in Path(folder).iterdir()]
        ['a.txt']
    """
    path = Path(path).expanduser()
    with _named(path):
        place = _place(path)
        try:
            yield place
            os.replace(place, path)
        finally:
            place.unlink(missing_ok=True)


@contextmanager
def whole_folder(path: str | Path, replace: bool = True) -> Iterator[Path]:
    """A temporary folder to fill, which replaces `path` when the block ends without an error.

    Args:
        path: of the folder; the temporary one has the same name.
        replace: False: keep a folder that another process put there first, and delete this one.
    """
    path = Path(path).expanduser()
    with _named(path):
        place = _place(path)
        try:
            (place / path.name).mkdir(parents=True)
            yield place / path.name
            if replace:
                shutil.rmtree(path, ignore_errors=True)
            try:
                os.replace(place / path.name, path)
            except OSError:
                if replace or not path.is_dir():
                    raise
        finally:
            shutil.rmtree(place, ignore_errors=True)


@contextmanager
def _named(path: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, RuntimeError) as error:
        # torch.save raises a RuntimeError of its own after the system's error.
        cause: BaseException | None = error
        while cause is not None and not isinstance(cause, OSError):
            cause = cause.__cause__ or cause.__context__
        if cause is None or cause.filename is not None or cause.errno is None:
            raise
        raise OSError(cause.errno, os.strerror(cause.errno), str(path)) from error


def write_bytes(content: bytes, path: str | Path) -> Path:
    """Write a file whole or not at all."""
    with whole(path) as place:
        place.write_bytes(content)
    return Path(path)


def write_text(text: str, path: str | Path) -> Path:
    """Write a text file, in UTF-8 with its line ends as they are, whole or not at all."""
    return write_bytes(text.encode("utf-8"), path)


def write_json(value: Any, path: str | Path) -> None:
    """Write JSON whole or not at all; NaN is refused.

    Raises:
        ValueError: when a number is not finite.
    """
    write_text(json.dumps(value, indent=1, allow_nan=False) + "\n", path)


def remove_partial(folder: str | Path, older_than_s: float = 0.0) -> None:
    """Delete what killed processes had begun to write into a folder.

    Args:
        folder: that nobody writes to at the moment, or with an age that no file takes to be written.
        older_than_s: age above which a place counts as left over.
    """
    for place in Path(folder).glob(f".*{PARTIAL}"):
        if time.time() - place.stat().st_mtime >= older_than_s:
            if place.is_dir():
                shutil.rmtree(place, ignore_errors=True)
            else:
                place.unlink(missing_ok=True)
