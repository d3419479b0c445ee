"""A large prediction shard by shard: in this process, or all shards in processes of this machine, each started again
when it is killed."""

from __future__ import annotations

import logging
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import connection, get_all_start_methods, get_context
from pathlib import Path
from typing import Any, Protocol

from tqdm import tqdm

from scripts.command.errors import USER_ERRORS, start_logging
from scripts.command.linked import end_with, start_linked, stop_linked
from scripts.inference.ledger import TRIES, Ledger
from scripts.inference.manifest import Manifest, result_place
from scripts.inference.result_names import shown
from scripts.runs import lock

__all__ = ["Predictor", "run_local", "run_shard"]

logger = logging.getLogger(__name__)

REPORT_S = 0.5
# A process that ends so often without one input finished will not do better.
MAX_DEATHS = 10
# The lock of a process that was killed may take a moment to be free.
LOCK_S, WAIT_S = 10.0, 0.2


class Predictor(Protocol):
    """What works on the inputs of a shard, see `scripts.inference.batches.BatchPrediction`."""

    made_by: dict[str, Any]

    @property
    def columns(self) -> list[str]:
        """Of the row that an input leads to, ``image`` first, ``status`` among them."""

    def kept(self, image: Path, name: str) -> dict[str, Any] | None:
        """Row of an image whose results are whole, or None."""

    def stream(self, todo: Iterable[tuple[Path, str]]) -> Iterator[tuple[str, dict[str, Any]]]:
        """Place and row of each image, as they come to their end."""

    def lost(self, image: Path, name: str, reason: str) -> dict[str, Any]:
        """Row of an image that ended its process each time, of status "failed"."""


def run_shard(
    predictor: Predictor,
    manifest: Manifest,
    shard: tuple[int, int],
    tries: int = TRIES,
    report: Callable[[int], None] = lambda count: None,
    wait_s: float = 0.0,
) -> None:
    """Predict what is not settled yet of a shard; what failed, or ended its process, comes last and one by one.

    Args:
        predictor: loaded once.
        manifest: of all inputs.
        shard: its number, from 1, and how many there are.
        tries: how often an input is tried before it counts as failed.
        report: called with the number of newly settled inputs, first with that of earlier runs.
        wait_s: how long a lock that another process holds is waited for.

    Raises:
        ValueError: see `Ledger`.
        OSError: when the disk is full or the like.
    """
    with _ledger(predictor, manifest, shard, tries, wait_s) as ledger, _terminated_as_interrupted():
        report(sum(ledger.mine(row) and ledger.settled(row) for row in range(manifest.rows)))
        fresh = (
            (row, image)
            for row, image in manifest.images()
            if ledger.mine(row) and not ledger.settled(row) and not ledger.tried(row)
        )
        _predict(predictor, ledger, fresh, report)
        left = True
        while left:
            left = False
            for row, image in manifest.images():
                if not ledger.mine(row) or ledger.settled(row):
                    continue
                left = True
                if ledger.tried(row) >= tries:
                    ledger.settle(row, _lost(predictor, row, image, ledger.tried(row)))
                    report(1)
                else:
                    _predict(predictor, ledger, [(row, image)], report)


def _ledger(predictor: Predictor, manifest: Manifest, shard: tuple[int, int], tries: int, wait_s: float) -> Ledger:
    until = time.monotonic() + wait_s
    while True:
        try:
            return Ledger(manifest.path.parent, shard, manifest.rows, predictor.made_by, predictor.columns, tries)
        except lock.InUse:
            if time.monotonic() > until:
                raise
            time.sleep(WAIT_S)


def _predict(
    predictor: Predictor, ledger: Ledger, inputs: Iterable[tuple[int, Path]], report: Callable[[int], None]
) -> None:
    """Predict inputs; those under way when this ends early are taken back."""
    under_way: dict[str, int] = {}

    def todo() -> Iterator[tuple[Path, str]]:
        for row, image in inputs:
            place = result_place(row, image)
            kept = predictor.kept(image, place)
            if kept is not None:
                ledger.settle(row, kept)
                report(1)
                continue
            ledger.begin(row)
            under_way[place] = row
            yield image, place

    try:
        for place, table in predictor.stream(todo()):
            row = under_way.pop(place)
            ledger.settle(row, table)
            report(int(ledger.settled(row)))
    finally:
        for row in under_way.values():
            ledger.take_back(row)


def _lost(predictor: Predictor, row: int, image: Path, tries: int) -> dict[str, Any]:
    """Row of an input that ended its process each time."""
    reason = f"the process ended {tries} times while this image was read or predicted"
    logger.warning("%s failed: %s", shown(image), reason)
    return predictor.lost(image, result_place(row, image), reason)


@contextmanager
def _terminated_as_interrupted() -> Iterator[None]:
    """Take a polite request to end, as before a preemption, like Ctrl-C: what is under way is taken back."""
    free = signal.getsignal(signal.SIGTERM) is signal.SIG_DFL  # else somebody else's, such as submitit's
    if threading.current_thread() is not threading.main_thread() or not free:
        yield
        return

    def interrupt(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


@dataclass
class _Worker:
    """A process of this machine, its end of the pipe, and how it goes."""

    process: Any
    link: connection.Connection
    deaths: int = 0
    finished: bool = False


def run_local(
    recipe: Callable[[], Predictor], manifest: Manifest, processes: int, tries: int = TRIES, threads: int = 1
) -> None:
    """Predict all shards, one a process; a process that is killed is started again, and all end with this one.

    Args:
        recipe: makes the predictor of a process; sent to it.
        manifest: of all inputs.
        processes: how many, which is the number of shards too.
        tries: see `run_shard`.
        threads: that each process computes with.

    Raises:
        ValueError: what a process raised.
        OSError: the same, or when one ends again and again without an input finished.
    """
    method = "forkserver" if "forkserver" in get_all_start_methods() else "spawn"
    context = get_context(method)
    if method == "forkserver":
        context.set_forkserver_preload([recipe.__module__, __name__])
    bar = tqdm(total=manifest.rows, desc="predicting", unit="image")

    def started(number: int, deaths: int = 0) -> _Worker:
        return _Worker(*start_linked(context, _work, recipe, manifest, (number, processes), tries, threads), deaths)

    workers = {number: started(number) for number in range(1, processes + 1)}
    settled = dict.fromkeys(workers, 0)
    try:
        while running := {n: worker for n, worker in workers.items() if not worker.finished}:
            connection.wait([thing for worker in running.values() for thing in (worker.link, worker.process.sentinel)])
            for number, worker in running.items():
                _listen(worker, number, settled)
                if not worker.finished and not worker.process.is_alive():
                    _listen(worker, number, settled)
                    if worker.finished:
                        continue
                    worker.link.close()
                    code = worker.process.exitcode
                    logger.warning("shard %d of %d: its process ended (%s); starting another", number, processes, code)
                    if worker.deaths + 1 >= MAX_DEATHS:
                        raise OSError(
                            f"shard {number} of {processes}: its process ended {MAX_DEATHS} times (last with {code}) "
                            "and no input was finished; give it more memory, or fewer --processes"
                        )
                    workers[number] = started(number, worker.deaths + 1)
            bar.n = sum(settled.values())
            bar.refresh()
    finally:
        bar.close()
        stop_linked([(worker.process, worker.link) for worker in workers.values()], LOCK_S)


def _listen(worker: _Worker, number: int, settled: dict[int, int]) -> None:
    """Take what a process has said."""
    try:
        while not worker.finished and worker.link.poll():
            kind, value = worker.link.recv()
            if kind == "error":
                raise value
            if kind == "done":
                worker.finished = True
            elif value != settled[number]:
                settled[number], worker.deaths = value, 0
    except (EOFError, ConnectionError):
        return


def _work(
    link: connection.Connection,
    recipe: Callable[[], Predictor],
    manifest: Manifest,
    shard: tuple[int, int],
    tries: int,
    threads: int,
) -> None:
    """One process: predict a shard, and end when the process that started it does."""
    import torch  # here, and not where shards are counted and merged

    start_logging()
    torch.set_num_threads(threads)
    threading.Thread(target=end_with, args=(link,), daemon=True).start()
    settled, said = 0, 0.0

    def report(count: int) -> None:
        nonlocal settled, said
        settled += count
        if time.monotonic() - said >= REPORT_S:
            said = time.monotonic()
            link.send(("settled", settled))

    try:
        run_shard(recipe(), manifest, shard, tries, report, LOCK_S)
        link.send(("settled", settled))
        link.send(("done", None))
    except USER_ERRORS as error:
        link.send(("error", type(error)(str(error))))
    except KeyboardInterrupt:
        logger.info("shard %d of %d: interrupted", *shard)
