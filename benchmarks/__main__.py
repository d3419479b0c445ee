"""A fast subset of all benchmarks, as ratios of CPU times, beside those of before: has something become slower?

    python -m benchmarks [--rounds 7] [--keep] [--before benchmarks/ratios.json]

One thread, about a minute of CPU time: pictures read and prepared (`benchmarks.data`) and maps (`benchmarks.explain`)
beside MONAI's, and small functions (`benchmarks.small`) beside numpy's. Ours and theirs take turns, and only their
ratio is compared, so that another machine or a slower moment matters little. What has a ratio that is worse than before
by more than `ALLOWED` is measured again in twice the rounds; the exit status is 1 if one stays worse. ``--keep`` writes
the new ratios to ``--before``.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch

from benchmarks import data, explain, small
from benchmarks.timing import machine
from scripts.command import errors
from scripts.command.files import write_json
from scripts.command.machine import tune_process

ALLOWED = 0.05
RATIOS = Path(__file__).with_name("ratios.json")
PICTURES = 12


def of_data(rounds: int) -> dict[str, float]:
    """Our time in MONAI's, by what `benchmarks.data` measures of pictures in both."""
    logging.getLogger("monai").setLevel(logging.ERROR)
    with tempfile.TemporaryDirectory() as scratch:
        lines = data.lines(data.draw(Path(scratch), PICTURES), Path(scratch))
        sides = ("ours", "MONAI")
        both = {what: {who: calls[who] for who in sides} for what, calls in lines.items() if {*sides} <= {*calls}}
        rows = {
            (row["what"], row["who"]): row["least_ms"] for row in data.measure(both, PICTURES, rounds, progress=False)
        }
    return {f"{what}, in MONAI's": rows[what, "ours"] / rows[what, "MONAI"] for what in both}


def of_maps(rounds: int) -> dict[str, float]:
    """Forward passes that each map takes, see `benchmarks.explain`; a small network."""
    rows = explain.measure(
        explain.make_network((8, 12, 16, 16), 12), explain.make_image(96), rounds, clock=time.process_time
    )
    return {f"{row.name}, in predictions": row.forward_passes for row in rows if row.target is not None}


def of_functions(rounds: int) -> dict[str, float]:
    """Our time in the library's of small functions."""
    return {row.name: row.value for row in small.measure(10 * rounds)}


PARTS: tuple[Callable[[int], dict[str, float]], ...] = (of_data, of_maps, of_functions)


def worse(now: Mapping[str, float], before: Mapping[str, float]) -> list[str]:
    """Names of the ratios that are more than `ALLOWED` above those of before."""
    return [name for name, value in now.items() if name in before and value > before[name] * (1 + ALLOWED)]


def measure(rounds: int, before: Mapping[str, float]) -> dict[str, float]:
    """All ratios; a part with one that is worse is measured again, and the lower of both counts."""
    ratios: dict[str, float] = {}
    for part in PARTS:
        now = part(rounds)
        if worse(now, before):
            again = part(2 * rounds)
            now = {name: min(value, again[name]) for name, value in now.items()}
        ratios |= now
    return ratios


def table(now: Mapping[str, float], before: Mapping[str, float]) -> str:
    """The ratios as a Markdown table."""
    slower = worse(now, before)
    lines = ["| ratio of CPU times | now | before | change |", "|---|---|---|---|"]
    for name, value in now.items():
        old = before.get(name)
        change = "" if old is None else f"{100 * (value / old - 1):+.0f} %{' WORSE' if name in slower else ''}"
        lines.append(f"| {name} | {value:.3f} | {'' if old is None else f'{old:.3f}'} | {change} |")
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; 1 where a ratio is worse."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=7, help="measurements of each (default: 7)")
    parser.add_argument("--before", type=Path, default=RATIOS, help="ratios to compare with (default: those kept here)")
    parser.add_argument("--keep", action="store_true", help="write the new ratios there")
    arguments = parser.parse_args(argv)
    tune_process()
    torch.set_num_threads(1)
    before = json.loads(arguments.before.read_text("utf-8"))["ratios"] if arguments.before.is_file() else {}
    ratios = measure(arguments.rounds, before)
    print(table(ratios, before))
    print(f"{machine()}; a ratio is worse above {1 + ALLOWED:g} times that of before")
    if arguments.keep:
        write_json({"ratios": ratios, "machine": machine()}, arguments.before)
        print(f"written: {arguments.before}")
        return 0
    return int(bool(worse(ratios, before)))


if __name__ == "__main__":
    errors.start_logging()
    with errors.one_sentence_errors():
        sys.exit(main())
