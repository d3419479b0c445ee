"""Any job on the items of a list, shard by shard: what came of each is kept in the ledger, and gathered in order."""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

from scripts.inference.engines import by_shards, run_shards
from scripts.inference.manifest import LEDGER, Manifest, prepare
from scripts.inference.merging import merged
from scripts.inference.result_names import shown

__all__ = ["ItemWorker", "Job", "asked", "forget", "gathered", "in_shards", "run_items"]

COLUMNS = ["image", "status", "error", "found"]


class Job(Protocol):
    """A job on items that are known by their number; plain values, to be sent to a process."""

    def settings(self) -> Mapping[str, Any]:
        """What decides about a result beside the list."""

    def start(self) -> Callable[[int], Any]:
        """Load what the items need; what comes of an item is a value that JSON holds."""


class ItemWorker:
    """Does a job on one item after the other.

    Args:
        job: started once.
    """

    def __init__(self, job: Job) -> None:
        self.made_by = {"job": type(job).__name__, **job.settings()}
        self.columns = list(COLUMNS)
        self._work = job.start()

    def kept(self, image: Path, name: str) -> None:
        """Nothing is kept beside the ledger."""

    def lost(self, image: Path, name: str, reason: str) -> dict[str, Any]:
        """Row of an item without a result."""
        return {"image": shown(image), "status": "failed", "error": reason, "found": None}

    def stream(self, todo: Iterable[tuple[Path, str]]) -> Iterator[tuple[str, dict[str, Any]]]:
        """Place and row of each item; what a program error raises ends the shard."""
        for image, name in todo:
            try:
                result = json.dumps(self._work(int(image.name)), default=_plain)
            except (ValueError, OSError) as error:
                status = "refused" if isinstance(error, ValueError) else "failed"
                yield name, {**self.lost(image, name, shown(error)), "status": status}
            else:
                yield name, {"image": shown(image), "status": "done", "error": None, "found": result}


def _plain(value: Any) -> Any:
    """A number of numpy or torch as Python's."""
    return value.item()


class _Recipe:
    """Makes the worker of a process; sent to it."""

    def __init__(self, job: Job) -> None:
        self.job = job

    def __call__(self) -> ItemWorker:
        return ItemWorker(self.job)


def run_items(arguments: argparse.Namespace, job: Job, source: Path, out: Path, count: Callable[[], int]) -> str | None:
    """Do a job on all items, or on those of a shard; or only say with ``--merge`` that all was done.

    Args:
        arguments: of `scripts.command.verbs.add_shards`.
        job: to do.
        source: file that says what the items are; a changed one is refused.
        out: folder of the results.
        count: number of items.

    Returns:
        what to say of one shard, when it alone was done; None when all can be gathered.

    Raises:
        ValueError: see `run_shards`.
    """
    if arguments.merge:
        return None

    def manifest() -> Manifest:
        return prepare(source, out, [Path(f"{number:07d}") for number in range(count())])

    return run_shards(arguments, _Recipe(job), manifest)


def in_shards(
    arguments: argparse.Namespace, job: Job, source: Path, out: Path, count: Callable[[], int]
) -> list[Any] | str | None:
    """Run a job by shards where the command line asks for shards.

    Returns:
        the result of every item, in order, after which the ledger is deleted; the sentence of `run_items` where only
        one shard was run; None where no shards are asked for.
    """
    if not asked(arguments):
        return None
    text = run_items(arguments, job, source, out, count)
    if text is not None:
        return text
    results = gathered(out)
    forget(out)
    return results


def asked(arguments: argparse.Namespace) -> bool:
    """Whether the arguments ask for shards, or for what they found."""
    return arguments.merge or by_shards(arguments)


def forget(out: Path) -> None:
    """Delete the ledger: the images may change before the next time."""
    shutil.rmtree(out / LEDGER)


def gathered(out: Path) -> list[Any]:
    """What came of every item, in order.

    Raises:
        ValueError: when one failed, is missing, or was done twice.
    """
    results = []
    for row in merged(out):
        if row["status"] != "done":
            raise ValueError(f"input {row['image']}: {row['error']}; run the same command again once that is fixed")
        results.append(json.loads(row["found"]))
    return results
