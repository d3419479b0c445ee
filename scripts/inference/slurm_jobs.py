"""The shards of a large prediction as an array of Slurm jobs, by submitit; a job that is preempted goes on later."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from scripts.command.optional import needed
from scripts.inference.manifest import Manifest
from scripts.inference.shards import Predictor, run_shard

__all__ = ["check_available", "run_slurm"]

FOLDER = "slurm"  # of the jobs' logs, in the ledger


@dataclass(frozen=True)
class ShardJob:
    """What a job runs."""

    recipe: Callable[[], Predictor]
    manifest: Manifest
    shards: int
    tries: int

    def __call__(self, number: int) -> None:
        """Predict what is left of a shard."""
        run_shard(self.recipe(), self.manifest, (number, self.shards), self.tries)

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
    failed = [(number, job) for number, job in enumerate(jobs, 1) if job.exception() is not None]
    if failed:
        number, job = failed[0]
        last = str(job.exception()).strip().rpartition("\n")[2]
        raise OSError(
            f"{len(failed)} of {shards} jobs failed, first that of shard {number} ({last}); its log is "
            f"{job.paths.stderr}. Run the same command again: what is finished is kept"
        )
