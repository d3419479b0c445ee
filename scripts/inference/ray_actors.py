"""The shards of a large prediction in actors of a Ray cluster; one that is lost is started again on what is left."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tqdm import tqdm

from scripts.command.errors import USER_ERRORS, start_logging
from scripts.command.locations import ROOT
from scripts.command.optional import needed
from scripts.inference.ledger import finished
from scripts.inference.manifest import Manifest
from scripts.inference.shards import LOCK_S, MAX_DEATHS, Predictor, run_shard
from scripts.runs import lock

__all__ = ["ShardActor", "check_available", "run_ray"]

logger = logging.getLogger(__name__)

# Nothing of size is sent: the least that Ray takes.
OBJECT_STORE = 80 * 2**20


class _Stopped(BaseException):
    """The driver ends: what is under way is taken back."""


class ShardActor:
    """A process of the cluster, which loads the network once and predicts one shard."""

    def __init__(self) -> None:
        self._stopped = False

    def work(
        self, recipe: Callable[[], Predictor], manifest: Manifest, shard: tuple[int, int], tries: int, wait_s: float
    ) -> None:
        """Predict what is left of a shard."""
        start_logging()
        try:
            run_shard(recipe(), manifest, shard, tries, self._report, wait_s)
        except _Stopped:
            logger.info("shard %d of %d: stopped", *shard)

    def stop(self) -> None:
        """End `work` after the input at hand; called from beside it."""
        self._stopped = True

    def _report(self, count: int) -> None:
        if self._stopped:
            raise _Stopped


def check_available() -> Any:
    """The module ray.

    Raises:
        ValueError: when it is not installed.
    """
    return needed(
        "ray",
        "--engine ray needs Ray: pip install -c constraints.txt '.[ray]'; without it, start the shards by --shard I/N",
    )


def run_ray(
    recipe: Callable[[], Predictor], manifest: Manifest, shards: int, tries: int, settings: Mapping[str, Any]
) -> None:
    """Predict all shards, each in an actor of its own; as many at once as the cluster has room for.

    Args:
        recipe: makes the predictor of an actor; sent to it.
        manifest: of all inputs, on a file system that the nodes share.
        shards: number of actors.
        tries: see `run_shard`.
        settings: ``address`` of a cluster ("auto": the one of this machine); without it, and without the environment
            variable RAY_ADDRESS, one is started here. The others are what an actor needs: ``num_cpus`` (1),
            ``num_gpus``, ``memory``, ...

    Raises:
        ValueError: when Ray is not installed, a setting is none, or what an actor raised.
        OSError: the same, when there is no such cluster, or a shard is lost again and again.
    """
    ray = check_available()
    options = {"num_cpus": 1, **settings}
    address = options.pop("address", os.environ.get("RAY_ADDRESS"))
    # Two methods at a time: the work, and the request to end it.
    kind = ray.remote(ShardActor).options(max_restarts=0, max_concurrency=2, **options)
    with _cluster(ray, address):
        if address is None and options["num_cpus"] + options.get("num_gpus", 0) > 0:
            _check_room(ray, options)
        _run(ray, kind, (recipe, manifest, tries), shards)


@contextmanager
def _cluster(ray: Any, address: str | None) -> Iterator[None]:
    """Join a cluster, or start one of this machine."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    about: dict[str, Any] = {"address": address}
    if address is None:
        about = {"address": "local", "include_dashboard": False, "object_store_memory": OBJECT_STORE}
    if Path.cwd() != ROOT:  # Ray lets its workers import from the driver's folder
        about["runtime_env"] = {"env_vars": {"PYTHONPATH": str(ROOT)}}
    try:
        ray.init(**about, logging_level=logging.WARNING)
    except (ConnectionError, RuntimeError) as error:
        first = str(error).strip().partition("\n")[0]
        raise OSError(f"no Ray cluster answers at {address} ({first}); give --ray address=HOST:PORT of one") from error
    try:
        yield
    finally:
        ray.shutdown()


def _check_room(ray: Any, options: Mapping[str, Any]) -> None:
    """Refuse what this machine will never have; a cluster may get more nodes."""
    has = ray.cluster_resources()
    for name, kind in (("num_cpus", "CPU"), ("num_gpus", "GPU"), ("memory", "memory")):
        if options.get(name, 0) > has.get(kind, 0):
            raise ValueError(f"--ray {name}={options[name]}: this machine has {has.get(kind, 0):g}; ask for less")


def _run(ray: Any, kind: Any, work: tuple[Any, Manifest, int], shards: int) -> None:
    recipe, manifest, tries = work
    running: dict[Any, int] = {}
    actors: dict[int, Any] = {}
    deaths, settled = dict.fromkeys(range(1, shards + 1), 0), dict.fromkeys(range(1, shards + 1), 0)

    def start(number: int, wait_s: float) -> None:
        actors[number] = kind.remote()
        running[actors[number].work.remote(recipe, manifest, (number, shards), tries, wait_s)] = number

    bar = tqdm(total=shards, desc="predicting", unit="shard")
    try:
        for number in deaths:
            start(number, LOCK_S)
        while running:
            (future,), _ = ray.wait(list(running))
            number = running.pop(future)
            try:
                ray.get(future)
            except ray.exceptions.RayTaskError as error:
                if isinstance(error.cause, USER_ERRORS):
                    raise type(error.cause)(str(error.cause)) from error
                raise
            except ray.exceptions.RayError as error:  # the process or its node is gone
                now = finished(manifest.path.parent, (number, shards))
                deaths[number] = 1 if now > settled[number] else deaths[number] + 1
                settled[number] = now
                reason = str(error).strip().partition("\n")[0]
                if deaths[number] >= MAX_DEATHS:
                    raise OSError(
                        f"shard {number} of {shards}: its process ended {MAX_DEATHS} times (last: {reason}) and no "
                        "input was finished; give it more memory, or fewer --processes"
                    ) from error
                logger.warning("shard %d of %d: its process ended (%s); starting another", number, shards, reason)
                # The lock of a process on a node that is gone is only known to be left behind by its age.
                start(number, lock.STALE_S + LOCK_S)
            else:
                del actors[number]  # its room is for the next
                bar.update()
    finally:
        bar.close()
        for actor in actors.values():
            actor.stop.remote()
        if running:
            ray.wait(list(running), num_returns=len(running), timeout=LOCK_S)
