"""Lines of a benchmark's result, with what they may be at most."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from benchmarks.timing import machine
from scripts.command.files import write_json


@dataclass
class Row:
    """One line of the result.

    Attributes:
        name: what is compared, with what.
        value: ratio of CPU times, or a figure in ``unit``.
        unit: "x" for a ratio.
        target: most that it may be; None where nothing is promised.
    """

    name: str
    value: float
    unit: str = "x"
    target: float | None = None

    @property
    def met(self) -> bool:
        """Whether the target is reached."""
        return self.target is None or self.value <= self.target


def table(rows: Sequence[Row]) -> str:
    """Rows as a Markdown table."""
    lines = ["| | measured | target |", "|---|---|---|"]
    for row in rows:
        target = "" if row.target is None else f"<= {row.target:g}: {'met' if row.met else 'MISSED'}"
        number = f"{row.value:.3f}" if 1e-3 <= abs(row.value) < 1e4 else f"{row.value:.1e}"
        lines.append(f"| {row.name} | {number} {row.unit} | {target} |")
    return "\n".join(lines)


def reported(rows: Sequence[Row], options: argparse.Namespace) -> int:
    """Print rows and write them to ``options.out``, if there is one, with the machine and all options.

    Returns:
        exit status: 1 with ``options.check`` when a target is missed, else 0.
    """
    print(table(rows))
    if options.out:
        about = {"machine": machine(), "clock": options.clock, "options": vars(options)}
        write_json(json.loads(json.dumps({**about, "rows": [asdict(row) for row in rows]})), options.out)
    return int(options.check and not all(row.met for row in rows))
