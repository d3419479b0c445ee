"""Small functions in the path of every image beside the library's, which they equal: why they are our own.

    python -m benchmarks.small [--rounds 50]

CPU time, one thread, the least of rounds in which ours and the library's take turns.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from scipy.stats import skew

from benchmarks.rows import Row, table
from benchmarks.timing import CLOCKS, timed
from scripts.measures.shortcuts import skewness
from transforms.intensity import different_values, ordered, percentiles, quantile

CALLS = 20  # in one measurement


def pairs() -> dict[str, tuple[Callable[[], Any], Callable[[], Any]]]:
    """Ours and the library's by name, on 30,000 drawn values or 512 x 512 drawn gray values."""
    rng = np.random.default_rng(0)
    values, wide = rng.random(30_000).astype(np.float32), rng.random(30_000)
    pixels = rng.integers(0, 256, (512, 512)).astype(np.float32)
    return {
        "percentiles / np.percentile": (lambda: percentiles(values, 99.9)[0], lambda: np.percentile(values, 99.9)),
        "quantile / np.quantile": (lambda: quantile(values, 0.5), lambda: np.quantile(values, 0.5)),
        "ordered / np.partition": (lambda: ordered(values, 29_900), lambda: np.partition(values, 29_900)[29_900]),
        "different_values / np.unique": (lambda: different_values(pixels), lambda: np.unique(pixels)),
        "skewness / scipy.stats.skew": (lambda: skewness(wide), lambda: skew(wide)),
    }


def _repeat(function: Callable[[], Any]) -> None:
    for _ in range(CALLS):
        function()


def measure(rounds: int) -> list[Row]:
    """One row a function: our least time over the rounds in the library's.

    Raises:
        AssertionError: when a function's answer is not the library's.
    """
    rows = []
    for name, (ours, library) in pairs().items():
        np.testing.assert_allclose(ours(), library(), rtol=1e-6)
        jobs = {"ours": partial(_repeat, ours), "theirs": partial(_repeat, library)}
        seconds = timed(jobs, rounds, CLOCKS["cpu"])
        rows.append(Row(name, min(seconds["ours"]) / min(seconds["theirs"]), "x", 0.5))
    return rows


def main(argv: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.small", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=50, help="measurements of each (default: 50)")
    torch.set_num_threads(1)
    print(table(measure(parser.parse_args(argv).rounds)))


if __name__ == "__main__":
    main()
