"""Does the diagnosis name the cause? Planted in seven networks of MONAI, each trained for seconds on drawn heads.

    python -m benchmarks.causes [--seeds 100 101] [--only "instance norm"] [--architectures ViT] [--out FILE]

Prints the confusion matrix: what was planted by what is named first, with the runs in which other causes are named too
(consequences apart), and the false alarms on clean networks. Exit status 1 where one is named wrong.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from benchmarks.causes.networks import ARCHITECTURES
from benchmarks.causes.plants import PLANTS, Bench, Run, architecture, seen_right
from scripts.command import errors
from scripts.command.files import write_json
from scripts.explain.diagnosis import CAUSES

CLEAN = {"clean": False, "clean, much air": True}
NOTHING = "nothing"


def diagnosed(run: Run, plant: str, name: str, seed: int) -> dict[str, Any]:
    """A row: what was planted, what is named, what is called a consequence."""
    right = seen_right(run)
    result = run.diagnosed()
    wanted = [PLANTS[plant].cause] if plant in PLANTS else []
    named = [finding.cause for finding in result.holding]
    return {
        "planted": plant, "network": name, "seed": seed, "named": named, "right": right, "exact": named == wanted,
        "consequences": {finding.cause: finding.follows for finding in result.consequences},
        "reasons": {finding.cause: finding.reason for finding in result.findings if finding.cause in (*named, *wanted)},
    }  # fmt: skip


def rows_of(seeds: Sequence[int], plants: Sequence[str], names: Sequence[str]) -> list[dict[str, Any]]:
    """All rows, those left out apart."""
    rows = []
    bar = tqdm([(s, n) for s in seeds for n in names], desc="networks", unit="network", disable=None)
    for seed, name in bar:
        bench = Bench()
        for kind, wide in CLEAN.items():
            if kind in plants and not (wide and name == "ViT"):
                rows.append(diagnosed(bench.clean(name, seed, wide), kind, name, seed))
        for kind, plant in PLANTS.items():
            if kind in plants and name not in plant.left_out:
                rows.append(diagnosed(plant.make(bench, name, seed), kind, name, seed))
    return rows


def table(rows: Sequence[dict[str, Any]]) -> str:
    """The confusion matrix as Markdown, each planted cause by what is named first, and what went wrong."""
    columns = [cause for cause in (*CAUSES, NOTHING) if any((row["named"] or [NOTHING])[0] == cause for row in rows)]
    lines = ["| planted | runs | exact | " + " | ".join(columns) + " | consequences |"]
    lines.append("|---" * (len(columns) + 4) + "|")
    for kind in dict.fromkeys(row["planted"] for row in rows):
        of = [row for row in rows if row["planted"] == kind]
        first = [(row["named"] or [NOTHING])[0] for row in of]
        after: dict[str, int] = {}
        for row in of:
            for cause in row["consequences"]:
                after[cause] = after.get(cause, 0) + 1
        counts = " | ".join(str(first.count(cause) or "") for cause in columns)
        said = ", ".join(f"{cause} {count}" for cause, count in after.items())
        lines.append(f"| {kind} | {len(of)} | {sum(row['exact'] for row in of)} | {counts} | {said} |")
    lines.append("")
    for row in rows:
        if not row["exact"]:
            lines.append(
                f"{row['planted']}, {row['network']}, seed {row['seed']}: {', '.join(row['named']) or NOTHING}"
            )
    clean = [row for row in rows if row["planted"] in CLEAN]
    planted = [row for row in rows if row["planted"] not in CLEAN]
    exact = sum(row["exact"] for row in planted)
    leading = sum((row["named"] or [NOTHING])[0] == PLANTS[row["planted"]].cause for row in planted)
    if planted:
        lines.append(
            f"{exact} of {len(planted)} runs with a planted cause exact ({exact / len(planted):.1%}): it alone; "
            f"{leading} name it first"
        )
    lines.append(f"{sum(not row['exact'] for row in clean)} false alarms on {len(clean)} clean trained networks")
    return "\n".join(lines)


def left_out(plants: Sequence[str], names: Sequence[str]) -> str:
    """What was not planted, and why."""
    reasons = [
        f"{kind}, {name}: {reason}"
        for kind in plants
        if kind in PLANTS
        for name, reason in PLANTS[kind].left_out.items()
        if name in names
    ]
    return "left out: " + "; ".join(reasons) if reasons else ""


def main(argv: Sequence[str] | None = None) -> int:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.causes", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[100, 101], help="of heads and weights")
    parser.add_argument("--only", nargs="+", default=[*CLEAN, *PLANTS], choices=[*CLEAN, *PLANTS], help="plants")
    parser.add_argument("--architectures", nargs="+", default=list(ARCHITECTURES), help="networks")
    parser.add_argument("--out", type=Path, help="write the rows as JSON here")
    arguments = parser.parse_args(argv)
    for name in arguments.architectures:
        architecture(name)
    logging.disable(logging.INFO)
    torch.set_num_threads(1)
    rows = rows_of(arguments.seeds, arguments.only, arguments.architectures)
    if arguments.out:
        write_json(rows, arguments.out)
    print(table(rows))
    print(left_out(arguments.only, arguments.architectures))
    return int(not all(row["exact"] for row in rows))


if __name__ == "__main__":
    with errors.one_sentence_errors():
        sys.exit(main())
