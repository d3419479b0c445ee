"""Jobs timed in turn, and what they were timed on."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch

CLOCKS: dict[str, Callable[[], float]] = {"wall": time.perf_counter, "cpu": time.process_time}


def timed(jobs: Mapping[str, Callable[[], Any]], rounds: int, clock: Callable[[], float]) -> dict[str, list[float]]:
    """Seconds of each job in each round; one round before that is thrown away.

    The slow ones run once a round too: a slower moment of the machine hits all.
    """
    seconds: dict[str, list[float]] = {name: [] for name in jobs}
    for number in range(rounds + 1):
        for name, job in jobs.items():
            start = clock()
            job()
            if number:
                seconds[name].append(clock() - start)
    return seconds


def machine() -> str:
    """System, cores, release and threads of torch."""
    where = f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores, torch {torch.__version__}"
    return f"{where}, {torch.get_num_threads()} thread(s)"
