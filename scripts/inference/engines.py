"""Run the shards of a job as the command line asks: in this process, in processes, Slurm jobs or Ray actors."""

from __future__ import annotations

import argparse
import os
import re
from collections import Counter
from collections.abc import Callable, Sequence

from scripts.inference import ray_actors, slurm_jobs
from scripts.inference.ledger import TRIES
from scripts.inference.manifest import Manifest
from scripts.inference.shards import Predictor, run_local, run_shard

__all__ = ["by_shards", "run_shards", "settings_of"]


def by_shards(arguments: argparse.Namespace) -> bool:
    """Whether one shard is asked for, or all in several processes."""
    return arguments.shard is not None or arguments.processes is not None or arguments.engine is not None


def run_shards(
    arguments: argparse.Namespace, recipe: Callable[[], Predictor], prepare: Callable[[], Manifest]
) -> str | None:
    """Run the shards that ``--shard``, or ``--processes`` and ``--engine``, select.

    Args:
        arguments: of `scripts.command.verbs.add_shards`.
        recipe: makes what a process works with; sent to it.
        prepare: the manifest, made once the arguments are known to be right.

    Returns:
        what became of a shard; None when all are done, and can be merged.

    Raises:
        ValueError: when the arguments do not go together, or a package is not installed.
    """
    tries = TRIES if arguments.tries is None else arguments.tries
    if not 1 <= tries <= 1000:
        raise ValueError(f"--tries is from 1 to 1000, got {tries}")
    if arguments.shard is not None:
        return _one(arguments, recipe, prepare, tries)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    processes = cores if arguments.processes is None else arguments.processes
    if processes < 1:
        raise ValueError(f"--processes is at least 1, got {processes}")
    settings = {name: settings_of(name, getattr(arguments, name)) for name in ("slurm", "ray")}
    for name, options in settings.items():
        if options and arguments.engine != name:
            raise ValueError(f"--{name} is for --engine {name}; give both")
    available = {"slurm": slurm_jobs.check_available, "ray": ray_actors.check_available}
    if arguments.engine in available:
        available[arguments.engine]()
    manifest = prepare()
    processes = min(processes, manifest.rows)
    if arguments.engine == "slurm":
        slurm_jobs.run_slurm(recipe, manifest, processes, tries, settings["slurm"])
    elif arguments.engine == "ray":
        ray_actors.run_ray(recipe, manifest, processes, tries, settings["ray"])
    else:
        run_local(recipe, manifest, processes, tries, max(1, cores // processes))
    return None


def _one(
    arguments: argparse.Namespace, recipe: Callable[[], Predictor], prepare: Callable[[], Manifest], tries: int
) -> str:
    match = re.fullmatch(r"(\d+)/(\d+)", arguments.shard)
    number, count = (int(match[1]), int(match[2])) if match else (0, 0)
    if not 1 <= number <= count:
        raise ValueError(f"--shard is a number and how many there are, 1/8 to 8/8, got {arguments.shard!r}")
    if arguments.processes is not None or arguments.engine:
        raise ValueError("--processes and --engine run all shards; give them or --shard")
    manifest = prepare()
    counted = Counter[str]()

    def report(more: int) -> None:
        counted["settled"] += more

    run_shard(recipe(), manifest, (number, count), tries, report)
    return f"shard {number} of {count}: {counted['settled']} of {manifest.rows} inputs; --merge makes the table"


def settings_of(name: str, texts: Sequence[str]) -> dict[str, int | float | str]:
    """Settings of jobs or actors from ``NAME=VALUE``.

    >>> settings_of("slurm", ["timeout_min=240", "slurm_partition=gpu"])
    {'timeout_min': 240, 'slurm_partition': 'gpu'}
    >>> settings_of("ray", ["address=head:6379", "num_gpus=0.5"])
    {'address': 'head:6379', 'num_gpus': 0.5}

    Args:
        name: of the argument.
        texts: its values.

    Raises:
        ValueError: when one has no value.
    """
    examples = {"slurm": "timeout_min=240 slurm_partition=gpu", "ray": "address=head:6379 num_gpus=1"}
    settings: dict[str, int | float | str] = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not equals or not key or not value:
            raise ValueError(f"--{name} takes NAME=VALUE, for example {examples[name]}, got {text!r}")
        number = re.fullmatch(r"\d+(\.\d+)?", value)
        settings[key] = value if number is None else float(value) if number[1] else int(value)
    return settings
