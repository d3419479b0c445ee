"""Lines of Python by package at two commits, each file of the first where the second has it.

    python -m benchmarks.lines 1df3e30^ 1df3e30 [--now HEAD]

prints the lines of each package before the first commit's files went into packages, after it, and now.
"""

from __future__ import annotations

import argparse
import subprocess
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def git(*arguments: str) -> str:
    """Output of a git command in the checkout."""
    done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True, encoding="utf-8")
    return done.stdout


def moves(before: str, after: str) -> dict[str, str]:
    """New path by old path of the files that moved between two commits, as git finds them (30 % alike or more)."""
    rows = [line.split("\t") for line in git("diff", "-M30", "--name-status", before, after).splitlines()]
    return {row[1]: row[2] for row in rows if row[0].startswith("R")}


def package(path: str) -> str:
    """Package of a file: the second folder within ``scripts``, else the first.

    >>> package("scripts/data/datalists/clusters.py"), package("bundle/page.py"), package("scripts/__main__.py")
    ('scripts/data', 'bundle', 'scripts')
    """
    parts = path.split("/")
    return "/".join(parts[:2]) if parts[0] == "scripts" and len(parts) > 2 else parts[0]


def lines(commit: str, moved: Mapping[str, str]) -> Counter[str]:
    """Lines of Python by package at a commit, files counted where they moved to."""
    counts: Counter[str] = Counter()
    for path in git("ls-tree", "-r", "--name-only", commit).splitlines():
        if path.endswith(".py"):
            counts[package(moved.get(path, path))] += git("show", f"{commit}:{path}").count("\n")
    return counts


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("before", help="commit before the files moved")
    parser.add_argument("after", help="commit after it")
    parser.add_argument("--now", default="HEAD", help="commit to compare both with (default: HEAD)")
    options = parser.parse_args()
    counts = [
        lines(options.before, moves(options.before, options.after)), lines(options.after, {}), lines(options.now, {}),
    ]  # fmt: skip
    print("| package | before | after | now |\n|---|---|---|---|")
    for name in sorted({*counts[0], *counts[1], *counts[2]}):
        print(f"| {name} | " + " | ".join(f"{count[name]:,}" for count in counts) + " |")
    sums = [sum(n for name, n in count.items() if name not in ("tests", "benchmarks")) for count in counts]
    print("| all but tests and benchmarks | " + " | ".join(f"{n:,}" for n in sums) + " |")


if __name__ == "__main__":
    main()
