"""Processes linked by a pipe to the one that started them: they end with it, and it ends them."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from multiprocessing import connection
from typing import Any

__all__ = ["end_with", "start_linked", "stop_linked"]


def start_linked(context: Any, work: Callable[..., None], *arguments: Any) -> tuple[Any, connection.Connection]:
    """Start a process, and give it and this end of the pipe.

    Args:
        context: of `multiprocessing`.
        work: what it runs; its first argument is the other end. `end_with` makes it end with this process.
        arguments: the further ones; sent to it.
    """
    link, other = context.Pipe()
    process = context.Process(target=work, args=(other, *arguments), daemon=True)
    process.start()
    other.close()
    return process, link


def end_with(link: connection.Connection) -> None:
    """Wait for the end of the process at the other end of the pipe, and end at once; the target of a daemon thread."""
    try:
        link.recv()
    except (EOFError, OSError):
        os._exit(1)


def stop_linked(started: Iterable[tuple[Any, connection.Connection]], seconds: float) -> None:
    """End all processes, wait at most so long for each, and close the pipes."""
    pairs = list(started)
    for process, _ in pairs:
        process.terminate()
    for process, link in pairs:
        process.join(seconds)
        link.close()
