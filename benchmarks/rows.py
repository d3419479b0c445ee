"""Lines of a benchmark's result, with what they may be at most."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


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
