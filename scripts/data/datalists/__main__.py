"""Command line: `python -m scripts datalist image_folder --folder DIR --out data/x.json`.

Likewise `nifti_cases`, `nifti_volumes`, `dicom_series`, `decathlon`, `merge` and `check`.
"""

from __future__ import annotations

import argparse
import logging
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from scripts.command.cli import one_sentence_errors, start_logging
from scripts.data.datalists.decathlon import decathlon
from scripts.data.datalists.dicom import dicom_series
from scripts.data.datalists.folders import image_folder
from scripts.data.datalists.merging import merge_sources
from scripts.data.datalists.naming import CHANNELS
from scripts.data.datalists.plans import Builder
from scripts.data.datalists.schema import (
    DEFAULT_FRACTIONS,
    PLANES,
    Datalist,
    Report,
    absent_classes,
    merge,
    read,
    summary,
    write,
    write_report,
)
from scripts.data.datalists.similarity import MAX_DISTANCE
from scripts.data.datalists.slices import SliceRule
from scripts.data.datalists.volumes import BINARY, nifti_cases, nifti_volumes

BUILDERS: dict[str, tuple[Builder[...], str]] = {
    "image_folder": (image_folder, "images/<class>/* with optional masks/<same stem>.png"),
    "nifti_cases": (nifti_cases, "folders of cases with FLAIR, T1, T1ce or T2 and a mask (seg), as 2D slices"),
    "nifti_volumes": (nifti_volumes, "volumes without masks, all without a tumor"),
    "dicom_series": (dicom_series, "folders of one DICOM series each"),
    "decathlon": (decathlon, "a dataset.json with training: [{image, label}]"),
}
DIAGNOSES = {"no_tumor": 0, "unknown": -1}


def _add_split(command: argparse.ArgumentParser) -> None:
    command.add_argument("--seed", type=int, default=0)
    command.add_argument(
        "--fractions", type=float, nargs=3, default=DEFAULT_FRACTIONS, metavar=("TRAIN", "VAL", "TEST")
    )


def _add_slices(command: argparse.ArgumentParser) -> None:
    rule = SliceRule()
    command.add_argument("--classes", nargs=2, default=BINARY, metavar=("NONE", "TUMOR"), help="names of the classes")
    command.add_argument("--planes", nargs="+", choices=PLANES, default=rule.planes)
    command.add_argument("--whole-volumes", action="store_true", help="one item a volume, for 3D networks")
    command.add_argument("--tumor-slices", type=int, default=rule.tumor_slices, help="at most so many a patient")
    command.add_argument("--normal-slices", type=int, default=rule.normal_slices, help="at most so many a patient")
    command.add_argument("--min-tumor-area", type=float, default=rule.min_tumor_area, help="share of the slice")
    command.add_argument("--min-foreground", type=float, default=rule.min_foreground, help="share of the slice")
    command.add_argument(
        "--shifted-air", action="store_true", help="take volumes whose air is not 0 without a brain mask too"
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m scripts datalist", description="Build and check datalists.")
    commands = parser.add_subparsers(dest="command", required=True)
    for name, (_, text) in BUILDERS.items():
        command = commands.add_parser(name, help=text, description=text)
        what = "--file" if name == "decathlon" else "--folder"
        command.add_argument(what, type=Path, required=True)
        command.add_argument("--out", type=Path, required=True, help="datalist to write; the report goes beside it")
        command.add_argument("--name", help="name of the source (default: the folder's)")
        command.add_argument("--root", type=Path, help="dataset_dir, to which paths are relative (default: the folder)")
        command.add_argument("--strict", action="store_true", help="a file that cannot be used is an error")
        command.add_argument(
            "--dry-run", action="store_true", help="say what is taken for what; read and write nothing"
        )
        _add_split(command)
        if name != "image_folder":
            _add_slices(command)
    folder, cases, volumes, series = (commands.choices[name] for name in list(BUILDERS)[:4])
    folder.add_argument("--limit", type=int, help="use a seeded subset of this many images")
    folder.add_argument("--max-distance", type=int, default=MAX_DISTANCE, help="bits of 256 between near-duplicates")
    folder.add_argument("--modality", default="MRI")
    cases.add_argument("--channels", nargs="+", choices=CHANNELS, default=("FLAIR",))
    cases.add_argument("--label-pattern", help="file name pattern of the masks, if they are named otherwise")
    volumes.add_argument("--modality", default="FLAIR")
    volumes.add_argument("--diagnosis", choices=DIAGNOSES, default="no_tumor")
    series.add_argument("--modality", default="MRI")
    series.add_argument("--diagnosis", choices=DIAGNOSES, default="unknown", help="of series without a mask")
    series.add_argument("--masks", type=Path, help="folder with <folder of the series>.nii.gz")
    _add_merge(commands)
    check = commands.add_parser("check", help="check a datalist, its files and its splits")
    check.add_argument("datalist", type=Path)
    check.add_argument("--dataset-dir", type=Path, required=True)
    return parser


def _add_merge(commands: Any) -> None:
    text = "join datalists; with --dataset-dir, near-duplicates across them are kept on one side"
    joined = commands.add_parser("merge", help=text, description=text)
    joined.add_argument("lists", type=Path, nargs="+")
    joined.add_argument("--out", type=Path, required=True)
    joined.add_argument("--dataset-dir", type=Path, nargs="+", help="folder of the images: one for all, or one a list")
    joined.add_argument("--root", type=Path, help="dataset_dir of the result (default: the folder that holds all)")
    joined.add_argument("--binary", action="store_true", help="classes no_tumor and tumor")
    joined.add_argument("--mixed-modality", action="store_true", help="allow lists of different modality")
    joined.add_argument("--resplit", action="store_true", help="split anew in place of keeping the lists' splits")
    joined.add_argument(
        "--same-patients", action="store_true", help="equal patient numbers of different sources are one person"
    )
    joined.add_argument("--max-distance", type=int, default=MAX_DISTANCE, help="bits of 256 between near-duplicates")
    _add_split(joined)


def _table(rows: list[dict[str, Any]]) -> str:
    cells = [list(rows[0]), *[[str(value) for value in row.values()] for row in rows]]
    widths = [max(len(line[k]) for line in cells) for k in range(len(cells[0]))]
    return "\n".join("  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)) for line in cells)


def _finish(datalist: Datalist, report: Report, out: Path) -> str:
    write(datalist, out)
    if absent := absent_classes(datalist):
        logging.warning("the training part has no item of class %s", " and ".join(absent))
    figures = ", ".join(f"{key} {value}" for key, value in report.figures.items())
    return f"{_table(summary(datalist))}\n{figures}\nwritten: {out}, {out.stem}.report.json"


def _merge(arguments: dict[str, Any], out: Path) -> str:
    lists = [read(path) for path in arguments.pop("lists")]
    roots = arguments.pop("dataset_dir")
    if roots is None:
        needing = ("binary", "mixed_modality", "resplit", "same_patients", "root")
        chosen = [key for key in needing if arguments[key]]
        if chosen:
            raise ValueError(f"--{chosen[0].replace('_', '-')} needs --dataset-dir")
        logging.warning("without --dataset-dir no image is read: near-duplicates across the lists are not looked for")
        datalist = merge(lists, name=out.stem)
        write(datalist, out)
        return _table(summary(datalist))
    datalist, report = merge_sources(lists, roots, name=out.stem, **arguments)
    write_report(report, out.with_name(f"{out.stem}.report.json"))
    return _finish(datalist, report, out)


def _run(arguments: dict[str, Any]) -> str:
    command = arguments.pop("command")
    if command == "check":
        return _table(summary(read(arguments["datalist"], arguments["dataset_dir"])))
    out: Path = arguments.pop("out")
    if command == "merge":
        return _merge(arguments, out)
    strict, dry_run = arguments.pop("strict"), arguments.pop("dry_run")
    source = arguments.pop("file" if command == "decathlon" else "folder")
    if "planes" in arguments:
        planes = tuple(arguments.pop("planes"))
        planes = () if arguments.pop("whole_volumes") else planes
        keys = ("tumor_slices", "normal_slices", "min_tumor_area", "min_foreground", "shifted_air")
        arguments["rule"] = SliceRule(planes, **{key: arguments.pop(key) for key in keys})
    if "diagnosis" in arguments:
        arguments["diagnosis"] = DIAGNOSES[arguments["diagnosis"]]
    plan = BUILDERS[command][0].plan(source, **arguments)
    report = plan.report
    print("\n".join(plan.taken), flush=True)
    if dry_run:
        return f"nothing was read or written (--dry-run); refused so far: {len(report.unusable)}"
    datalist = plan.finish()
    write_report(report, out.with_name(f"{out.stem}.report.json"))
    if strict and report.unusable:
        raise ValueError(f"{len(report.unusable)} files cannot be used, first: {': '.join(report.unusable[0])}")
    return _finish(datalist, report, out)


def _hyphenated(argument: str) -> str:
    """An option with hyphens in its name: the other commands spell `--dataset_dir`, so both spellings are taken.

    >>> _hyphenated("--dataset_dir=a_b"), _hyphenated("data_dir/x")
    ('--dataset-dir=a_b', 'data_dir/x')
    """
    return re.sub("^--[^=]+", lambda match: match[0].replace("_", "-"), argument)


def main(argv: Sequence[str] | None = None) -> None:
    """Build, merge or check a datalist.

    Raises:
        ValueError, OSError: as the builders; `scripts.command.cli.one_sentence_errors` makes one sentence of them.
    """
    given = sys.argv[1:] if argv is None else argv
    print(_run(vars(_parser().parse_args([_hyphenated(argument) for argument in given]))))


if __name__ == "__main__":
    start_logging()
    with one_sentence_errors():
        main()
