"""What ``--help`` costs: CPU seconds of a process for each verb, as the table of docs/commands.md.

python -m benchmarks.help [--rounds 3]
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections.abc import Sequence

from scripts.__main__ import verbs
from scripts.command.locations import ROOT

COLUMNS = 3


def seconds(words: Sequence[str]) -> float:
    """CPU seconds, of user and system, of ``python -m scripts`` with these words."""
    before = os.times()
    subprocess.run([sys.executable, "-m", "scripts", *words], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    after = os.times()
    return after.children_user + after.children_system - before.children_user - before.children_system


def table(measured: dict[str, float]) -> str:
    """Markdown, some verbs in a line."""
    cells = [f"{name} | {value:.2f}" for name, value in measured.items()]
    cells += [" | "] * (-len(cells) % COLUMNS)
    lines = ["| verb | s " * COLUMNS + "|", "|---|---" * COLUMNS + "|"]
    return "\n".join([*lines, *(f"| {' | '.join(cells[k : k + COLUMNS])} |" for k in range(0, len(cells), COLUMNS))])


def main(argv: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.help", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=3, help="processes of each verb; the median counts (default: 3)")
    rounds = parser.parse_args(argv).rounds
    words = {"(none)": [], **{verb.name: [verb.name, "--help"] for verb in verbs()}}
    print(table({name: sorted(seconds(word) for _ in range(rounds))[rounds // 2] for name, word in words.items()}))


if __name__ == "__main__":
    main()
