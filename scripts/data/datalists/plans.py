"""Roles that a builder assigns to files by their names, before an image is read: `nifti_cases.plan(folder)`."""

from __future__ import annotations

import functools
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, ParamSpec

from scripts.data.datalists.schema import Datalist, Report

P = ParamSpec("P")
SHOWN = 3  # patterns of names, at most, that a line lists


@dataclass
class Plan:
    """Files sorted into their roles by name.

    Attributes:
        taken: lines that say what was taken for what: "FLAIR = *_flair.nii.gz in 12 of 12 cases".
        report: what was refused so far; the rest is added as images are read.
        finish: reads the images.
    """

    taken: list[str]
    report: Report
    finish: Callable[[], Datalist]

    def build(self) -> Datalist:
        """Read the images; the datalist names what limits left out."""
        datalist = self.finish()
        return {**datalist, "left_out": dict(self.report.left_out)} if self.report.left_out else datalist


class Builder(Generic[P]):
    """A builder made of a function that returns a `Plan`: called, it reads the images too.

    Attributes:
        plan: the function itself.
    """

    def __init__(self, plan: Callable[P, Plan]) -> None:
        self.plan = plan
        functools.update_wrapper(self, plan)

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> tuple[Datalist, Report]:
        """The datalist and the report."""
        plan = self.plan(*args, **kwargs)
        return plan.build(), plan.report


def name_pattern(path: Path, case: str) -> str:
    """A file's name with "*" for its case in front and "#" for numbers of three digits or more.

    >>> name_pattern(Path("a/BraTS20_001_flair.nii.gz"), "HGG/BraTS20_001"), name_pattern(Path("VSD.T1.54512.mha"), "x")
    ('*_flair.nii.gz', 'VSD.T1.#.mha')
    >>> name_pattern(Path("sub-01_ses-2_T1w.nii"), "sub-01/ses-2")
    '*_T1w.nii'
    """
    parts = [f"{re.escape(part)}(?![a-z0-9])[_-]?" for part in case.split("/")]
    match = re.match("|".join([parts[-1], "".join(f"(?:{part})?" for part in parts)]), path.name, re.IGNORECASE)
    end = match.end() if match else 0
    start = "*" + path.name[end - 1] * (path.name[end - 1] in "_-") if end else ""
    return start + re.sub(r"\d{3,}", "#", path.name[end:])


def took(role: str, named: Sequence[tuple[Path, str]], total: int, unit: str = "cases") -> str:
    """A line on the files of one role: their patterns, the most frequent first, and in how many of all cases.

    >>> took("FLAIR", [(Path("p1_flair.nii"), "p1"), (Path("p2_flair.nii"), "p2")], 3)
    'FLAIR = *_flair.nii in 2 of 3 cases'

    Args:
        role: what they were taken for.
        named: (file, case) of each.
        total: number of all cases.
        unit: what is counted.
    """
    patterns = Counter(name_pattern(path, case) for path, case in named).most_common()
    shown = " or ".join(pattern for pattern, _ in patterns[:SHOWN])
    more = f" or {len(patterns) - SHOWN} more patterns" if len(patterns) > SHOWN else ""
    return f"{role} = {shown}{more} in {len(named)} of {total} {unit}" if named else f"{role} = none of {total} {unit}"
