"""Jobs timed in turn, and what they were timed on."""

from __future__ import annotations

import argparse
import resource
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from scripts.runs import provenance

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
    """The machine of a manifest, with the release and the threads of torch."""
    return f"{provenance.machine()}, torch {torch.__version__}, {torch.get_num_threads()} thread(s)"


def add_options(parser: argparse.ArgumentParser, threads: int, clock: str) -> None:
    """``--threads``, ``--clock``, ``--out`` and ``--check``, with the defaults of a benchmark."""
    parser.add_argument(
        "--threads", type=int, default=threads, help=f"of torch (default: {threads}); 0 leaves them as they are"
    )
    text = f"wall on a quiet machine, cpu where something else runs beside (default: {clock})"
    parser.add_argument("--clock", choices=list(CLOCKS), default=clock, help=text)
    parser.add_argument("--out", help="JSON file to write")
    parser.add_argument("--check", action="store_true", help="exit with 1 when a target is missed")


def set_threads(threads: int) -> None:
    """Threads of torch; 0 leaves them as they are."""
    if threads:
        torch.set_num_threads(threads)


def peak_bytes() -> int:
    """Largest memory that this process has held.

    Of Linux's two figures the one that begins anew with a program: ``ru_maxrss`` of a child may be that of its parent.
    """
    status = Path("/proc/self/status")
    if status.is_file():
        held = next((line for line in status.read_text().splitlines() if line.startswith("VmHWM:")), None)
        if held is not None:
            return int(held.split()[1]) * 1024
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024
