"""Command line: `python -m scripts.datalists image_folder --folder DIR --out data/x.json`.

Likewise `nifti_cases`, `merge` and `check`.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from scripts.datalists.folders import image_folder
from scripts.datalists.schema import DEFAULT_FRACTIONS, Report, merge, read, summary, write, write_report
from scripts.datalists.similarity import MAX_DISTANCE
from scripts.datalists.volumes import nifti_cases


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m scripts.datalists", description="Build and check datalists.")
    commands = parser.add_subparsers(dest="command", required=True)
    for name, text in (
        ("image_folder", "images/<class>/* with optional masks/<same stem>.png"),
        ("nifti_cases", "<patient>/*flair*.nii.gz with *seg*.nii.gz, as 2D slices"),
    ):
        command = commands.add_parser(name, help=text, description=text)
        command.add_argument("--folder", type=Path, required=True)
        command.add_argument("--out", type=Path, required=True, help="datalist to write; the report goes beside it")
        command.add_argument("--name", help="name of the source (default: the folder's)")
        command.add_argument("--root", type=Path, help="dataset_dir, to which paths are relative (default: the folder)")
        command.add_argument("--seed", type=int, default=0)
        command.add_argument(
            "--fractions", type=float, nargs=3, default=DEFAULT_FRACTIONS, metavar=("TRAIN", "VAL", "TEST")
        )
        command.add_argument("--strict", action="store_true", help="a file that cannot be used is an error")
    folder, nifti = commands.choices["image_folder"], commands.choices["nifti_cases"]
    folder.add_argument("--limit", type=int, help="use a seeded subset of this many images")
    folder.add_argument("--max-distance", type=int, default=MAX_DISTANCE, help="bits of 256 between near-duplicates")
    folder.add_argument("--modality", default="MRI")
    nifti.add_argument("--tumor-slices", type=int, default=5, help="at most so many per patient")
    nifti.add_argument("--normal-slices", type=int, default=3, help="at most so many per patient")
    nifti.add_argument("--min-tumor-area", type=float, default=0.003, help="share of the slice")
    nifti.add_argument("--min-foreground", type=float, default=0.10, help="share of the slice")
    nifti.add_argument("--image-pattern", default="*flair*.nii*")
    nifti.add_argument("--label-pattern", default="*seg*.nii*")
    nifti.add_argument("--modality", default="FLAIR")
    joined = commands.add_parser("merge", help="join datalists that share dataset_dir, classes and modality")
    joined.add_argument("lists", type=Path, nargs="+")
    joined.add_argument("--out", type=Path, required=True)
    check = commands.add_parser("check", help="check a datalist, its files and its splits")
    check.add_argument("datalist", type=Path)
    check.add_argument("--dataset-dir", type=Path, required=True)
    return parser


def _table(rows: list[dict[str, Any]]) -> str:
    cells = [list(rows[0]), *[[str(value) for value in row.values()] for row in rows]]
    widths = [max(len(line[k]) for line in cells) for k in range(len(cells[0]))]
    return "\n".join("  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)) for line in cells)


def _run(arguments: dict[str, Any]) -> str:
    command = arguments.pop("command")
    if command == "check":
        return _table(summary(read(arguments["datalist"], arguments["dataset_dir"])))
    out: Path = arguments.pop("out")
    if command == "merge":
        datalist = merge([read(path) for path in arguments["lists"]], name=out.stem)
        write(datalist, out)
        return _table(summary(datalist))
    strict = arguments.pop("strict")
    build = image_folder if command == "image_folder" else nifti_cases
    report: Report
    datalist, report = build(arguments.pop("folder"), **arguments)  # type: ignore[operator]
    write_report(report, out.with_name(f"{out.stem}.report.json"))
    if strict and report.unusable:
        raise ValueError(f"{len(report.unusable)} files cannot be used, first: {': '.join(report.unusable[0])}")
    write(datalist, out)
    figures = ", ".join(f"{key} {value}" for key, value in report.figures.items())
    return f"{_table(summary(datalist))}\n{figures}"


def main(argv: Sequence[str] | None = None) -> int:
    """Build, merge or check a datalist; returns the exit status, 1 with one sentence on stderr on failure."""
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s")
    try:
        print(_run(vars(_parser().parse_args(argv))))
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
