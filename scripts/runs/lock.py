"""A lock that lets one process work in a folder, names its holder, and is released when that process is gone."""

from __future__ import annotations

import atexit
import json
import logging
import os
import socket
import threading
import time
import uuid
from pathlib import Path
from typing import Any

from scripts.command.files import remove_partial
from scripts.runs.provenance import command_line

__all__ = ["FILE", "STALE_S", "InUse", "acquire", "holder", "release"]

logger = logging.getLogger(__name__)

FILE = "lock.json"
RENEWAL_S, STALE_S = 30.0, 300.0

_held: dict[Path, int] = {}  # lock file: process that took it; a forked one holds nothing
_renewing: threading.Thread | None = None


class InUse(ValueError):
    """Another process works in a folder."""


def acquire(folder: str | Path, argument: str = "run_dir") -> None:
    """Hold a folder until `release`, or until the process ends; taking it again in the same process changes nothing.

    A lock whose process is gone is taken over: on this machine that is looked up, on another one a lock counts as left
    behind when it was not renewed for `STALE_S` seconds. What a killed process had begun to write is deleted.

    Args:
        folder: made if absent.
        argument: with which another folder is chosen.

    Raises:
        InUse: when another process holds it; says which, since when and what to do.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder.resolve() / FILE
    if _held.get(path) == os.getpid():
        return
    while not _create(path):
        text, owner = _read(path)
        if text is None:
            continue  # released in between
        if owner is None or _holds(owner, path):
            who = "another process" if owner is None else f"process {owner['pid']} on {owner['host']}"
            since = "" if owner is None else f" since {owner['since']} ({owner['command']})"
            raise InUse(
                f"{folder} is in use by {who}{since}: wait until it ends, or choose another {argument}; if that "
                f"process is gone, delete {path}"
            )
        if _remove(path, text):
            logger.info("%s: process %s on %s, which held it, is gone", folder, owner["pid"], owner["host"])
    _held[path] = os.getpid()
    remove_partial(folder)
    _keep_renewing()


def holder(folder: str | Path) -> str | None:
    """Description of another process that holds the folder; None if no running process does."""
    path = Path(folder).resolve() / FILE
    text, owner = _read(path)
    if text is None or path in _held or (owner is not None and not _holds(owner, path)):
        return None
    return "another process" if owner is None else f"process {owner['pid']} on {owner['host']}"


def release(folder: str | Path) -> None:
    """Release a folder, if this process holds it."""
    path = Path(folder).resolve() / FILE
    if _held.get(path) == os.getpid():
        del _held[path]
        path.unlink(missing_ok=True)


@atexit.register
def _release_all() -> None:
    for path in list(_held):
        release(path.parent)


def _create(path: Path) -> bool:
    """Create the lock file for this process; whether it was absent."""
    try:
        file = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
    except FileExistsError:
        return False
    now = time.strftime("%Y-%m-%dT%H:%M:%S")
    with open(file, "w", encoding="utf-8") as stream:
        json.dump({**_this(), "since": now, "command": command_line()}, stream, indent=1)
    return True


def _read(path: Path) -> tuple[str | None, dict[str, Any] | None]:
    """Text and owner of a lock; no text if it is gone, no owner while it is being written."""
    try:
        text = path.read_text(encoding="utf-8")
        return text, json.loads(text)
    except FileNotFoundError:
        return None, None
    except ValueError:
        late = time.time() - path.stat().st_mtime > STALE_S
        return text, {"pid": "?", "host": "?", "place": "?", "boot": None, "start": None} if late else None


def _remove(path: Path, text: str) -> bool:
    """Delete a stale lock, unless another process has replaced it since it was read."""
    aside = path.with_name(f"{FILE}.{uuid.uuid4().hex[:8]}")
    try:
        os.rename(path, aside)
    except FileNotFoundError:
        return False
    if aside.read_text(encoding="utf-8") != text and not path.exists():
        os.rename(aside, path)
        return False
    aside.unlink(missing_ok=True)
    return True


def _this() -> dict[str, Any]:
    """Identity of this process, by which another one sees whether it still runs."""
    host = socket.gethostname()
    return {
        "host": host,
        "pid": os.getpid(),
        "place": f"{host} {_link('/proc/self/ns/pid')}",  # containers may share a name but not their processes
        "boot": _line("/proc/sys/kernel/random/boot_id"),
        "start": _start(os.getpid()),
    }


def _holds(owner: dict[str, Any], path: Path) -> bool:
    """Whether the owner of a lock still runs."""
    here = _this()
    if owner["place"] != here["place"] or os.name == "nt":
        return time.time() - path.stat().st_mtime < STALE_S
    if owner["boot"] != here["boot"]:
        return False
    try:
        os.kill(owner["pid"], 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass  # it runs, as another user
    return owner["start"] == _start(owner["pid"])


def _start(pid: int) -> str | None:
    """Start of a process in clock ticks, as process numbers are reused; None outside Linux."""
    line = _line(f"/proc/{pid}/stat")
    if line is None:
        return None
    state, *rest = line.rpartition(")")[2].split()
    return None if state == "Z" else rest[18]


def _line(path: str) -> str | None:
    try:
        return Path(path).read_text(encoding="utf-8").strip()
    except OSError:
        return None


def _link(path: str) -> str:
    try:
        return os.readlink(path)
    except OSError:
        return ""


def _keep_renewing() -> None:
    global _renewing
    if _renewing is None or not _renewing.is_alive():
        _renewing = threading.Thread(target=_renew, name="lock", daemon=True)
        _renewing.start()


def _renew() -> None:
    while _held:
        for path in list(_held):
            try:
                os.utime(path)
            except OSError as error:
                logger.warning("%s cannot be renewed: %s", path, error.strerror)
        time.sleep(RENEWAL_S)
