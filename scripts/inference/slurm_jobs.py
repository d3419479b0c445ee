"""The shards of a large prediction as an array of Slurm jobs, by submitit; a job that is preempted goes on later."""

from __future__ import annotations

import logging
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from scripts.command.optional import needed
from scripts.inference.manifest import Manifest
from scripts.inference.shards import Predictor, run_shard
from scripts.runs import lock

__all__ = ["check_available", "run_slurm"]

logger = logging.getLogger(__name__)

FOLDER = "slurm"  # of the jobs' logs, in the ledger
POLL_S = 2.0
# A job that left the queue has failed when its result does not appear within so many seconds: shared folders lag.
LAG_S = 60.0
# A job that was killed and begun again on another node finds its own lock until that counts as left behind.
LOCK_S = lock.STALE_S + 60


@dataclass(frozen=True)
class ShardJob:
    """What a job runs."""

    recipe: Callable[[], Predictor]
    manifest: Manifest
    shards: int
    tries: int

    def __call__(self, number: int) -> None:
        """Predict what is left of a shard."""
        run_shard(self.recipe(), self.manifest, (number, self.shards), self.tries, wait_s=LOCK_S)

    def checkpoint(self, number: int) -> Any:
        """The same again, when the job is preempted or its time is over: what is finished stands in the ledger."""
        return check_available().helpers.DelayedSubmission(self, number)


def check_available() -> Any:
    """The module submitit.

    Raises:
        ValueError: when it is not installed.
    """
    return needed(
        "submitit",
        "--engine slurm needs submitit: pip install -c constraints.txt '.[slurm]'; without it, start the shards by "
        "--shard I/N in an array job of your own",
    )


def run_slurm(
    recipe: Callable[[], Predictor],
    manifest: Manifest,
    shards: int,
    tries: int,
    settings: Mapping[str, Any],
    cluster: str | None = None,
) -> None:
    """Submit an array of jobs, one a shard, and wait for all.

    Args:
        recipe: makes the predictor of a job.
        manifest: of all inputs, on a file system that the nodes share.
        shards: number of jobs.
        tries: see `run_shard`.
        settings: of submitit's executor, for example ``timeout_min``, ``gpus_per_node``, ``slurm_partition``.
        cluster: "slurm"; "local" for processes of this machine; None: Slurm where there is one.

    Raises:
        ValueError: when submitit is not installed.
        OSError: when jobs fail; names the logs of the first.
    """
    submitit = check_available()
    executor = submitit.AutoExecutor(folder=manifest.path.parent / FOLDER, cluster=cluster)
    executor.update_parameters(name="tumorlens-predict", **settings)
    jobs = executor.map_array(ShardJob(recipe, manifest, shards, tries), range(1, shards + 1))
    logger.info("%d jobs of %s: %s to %s", shards, executor.cluster, jobs[0].job_id, jobs[-1].job_id)
    lost = _without_result(jobs) if executor.cluster == "slurm" else []
    reasons = [
        (job, "it left the queue without a result: canceled, killed, or out of memory or time")
        if job in lost
        else (job, str(job.exception()).strip().rpartition("\n")[2])
        for job in jobs
        if job in lost or job.exception() is not None
    ]
    if reasons:
        job, reason = reasons[0]
        raise OSError(
            f"{len(reasons)} of {shards} jobs failed, first that of shard {jobs.index(job) + 1} ({reason}); its log is "
            f"{job.paths.stderr}. Run the same command again: what is finished is kept"
        )


def _without_result(jobs: Sequence[Any]) -> list[Any]:
    """Wait until each job has a result or left Slurm's queue, and return those without a result.

    submitit itself asks ``sacct``, which many clusters go without; there it waits for a canceled job without end.
    """
    last_seen = dict.fromkeys((job.job_id for job in jobs), time.monotonic())
    left, lost = list(jobs), []
    while left:
        time.sleep(POLL_S)
        queued = _queued()
        for number in last_seen:
            if queued is None or number in queued:
                last_seen[number] = time.monotonic()
        left = [job for job in left if not job.paths.result_pickle.exists()]
        lost += [job for job in left if time.monotonic() - last_seen[job.job_id] > LAG_S]
        left = [job for job in left if job not in lost]
    return lost


def _queued() -> set[str] | None:
    """Numbers of this user's jobs that wait or run; None where Slurm does not answer."""
    asked = subprocess.run(
        ["squeue", "--me", "--noheader", "--array", "--format=%i"], capture_output=True, text=True, check=False
    )
    if asked.returncode:
        logger.warning("squeue does not answer: %s", asked.stderr.strip())
        return None
    return set(asked.stdout.split())
