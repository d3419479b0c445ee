"""The verb ``datalist``: build, merge and check datalists."""

from __future__ import annotations

import argparse
import logging
from dataclasses import fields
from pathlib import Path
from typing import Any

from scripts.command.verbs import Outcome
from scripts.data.arguments import DIAGNOSES
from scripts.data.datalists.decathlon import decathlon
from scripts.data.datalists.dicom import dicom_series
from scripts.data.datalists.folders import image_folder
from scripts.data.datalists.known_fingerprints import FILE as FINGERPRINTS
from scripts.data.datalists.known_fingerprints import KnownFingerprints
from scripts.data.datalists.merging import merge_sources
from scripts.data.datalists.naming import CHANNELS
from scripts.data.datalists.nnunet import write_raw
from scripts.data.datalists.plans import Builder
from scripts.data.datalists.recognition import recognized
from scripts.data.datalists.regions import SCHEMES, Regions, check_regions, fitting
from scripts.data.datalists.schema import (
    Datalist,
    Report,
    absent_classes,
    merge,
    read,
    read_json,
    summary,
    write,
    write_report,
)
from scripts.data.datalists.slices import SliceRule
from scripts.data.datalists.volumes import nifti_cases, nifti_volumes

BUILDERS: dict[str, Builder[...]] = {
    "build": recognized,
    "image_folder": image_folder,
    "nifti_cases": nifti_cases,
    "nifti_volumes": nifti_volumes,
    "dicom_series": dicom_series,
    "decathlon": decathlon,
}
RULE = [field.name for field in fields(SliceRule)]


def chosen_regions(scheme: str) -> Regions:
    """The regions of a scheme of this name, or those that a JSON file ``{"name": [values], ...}`` states.

    Raises:
        ValueError: when it is neither, or the file states no regions.
    """
    if scheme in SCHEMES:
        return {name: list(values) for name, values in SCHEMES[scheme].items()}
    path = Path(scheme).expanduser()
    if not path.is_file():
        raise ValueError(f"--regions: no scheme {scheme!r}; there are {', '.join(SCHEMES)}, or give a JSON file")
    content = read_json(path)
    check_regions(content, str(path))
    return content


def _regions_words(datalist: Datalist, report: Report) -> str:
    """Which regions the masks are of; where none were stated, which schemes would know their labels."""
    regions, labels = datalist.get("regions"), sorted(set(report.figures.get("labels", [])) - {0})
    if regions:
        return "\nregions: " + ", ".join(f"{name} = {values}" for name, values in regions.items())
    if len(labels) < 2:
        return ""
    return (
        f"\nregions: tumor = any label (found: {', '.join(map(str, labels))}); several are stated by --regions, "
        f"never guessed: {', '.join(fitting(labels))} know these labels"
    )


def _table(rows: list[dict[str, Any]]) -> str:
    cells = [list(rows[0]), *[[str(value) for value in row.values()] for row in rows]]
    widths = [max(len(line[k]) for line in cells) for k in range(len(cells[0]))]
    return "\n".join("  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)) for line in cells)


def _finish(datalist: Datalist, report: Report, out: Path) -> Outcome:
    write(datalist, out)
    if absent := absent_classes(datalist):
        logging.warning("the training part has no item of class %s", " and ".join(absent))
    figures = ", ".join(f"{key} {value}" for key, value in report.figures.items())
    if report.left_out:
        figures += "\nleft out: " + ", ".join(f"{count} {reason}" for reason, count in report.left_out.items())
    figures += _regions_words(datalist, report)
    return Outcome(f"{_table(summary(datalist))}\n{figures}", [out, _report_file(out)])


def _report_file(out: Path) -> Path:
    return out.with_name(f"{out.stem}.report.json")


def _merge(options: dict[str, Any], out: Path) -> Outcome:
    lists = [read(path) for path in options.pop("lists")]
    folders = options.pop("dataset_dir")
    if folders is None:
        if options:
            raise ValueError(f"--{next(iter(options))} needs --dataset_dir")
        logging.warning("without --dataset_dir no image is read: near-duplicates across the lists are not looked for")
        datalist = merge(lists, name=out.stem)
        write(datalist, out)
        return Outcome(_table(summary(datalist)), [out])
    known = KnownFingerprints([place / FINGERPRINTS for place in options.pop("fingerprints", ())])
    datalist, report = merge_sources(lists, folders, name=out.stem, fingerprints=known, **options)
    write_report(report, _report_file(out))
    return _finish(datalist, report, out)


def _build(command: str, options: dict[str, Any], out: Path) -> Outcome:
    strict, dry_run, source = options.pop("strict"), options.pop("dry_run"), options.pop("source")
    unknown = [channel for channel in options.get("channels", ()) if channel not in CHANNELS]
    if unknown:
        raise ValueError(f"--channels: no channel {unknown[0]!r}; there are {', '.join(CHANNELS)}")
    if "regions" in options:
        options["regions"] = chosen_regions(options["regions"])
    if "whole_volumes" in options:
        chosen = {name: options.pop(name) for name in RULE if name in options}
        if "planes" in chosen:
            chosen["planes"] = tuple(chosen["planes"])
        if options.pop("whole_volumes"):
            chosen["planes"] = ()
        if chosen:
            options["rule"] = SliceRule(**chosen)
    if "diagnosis" in options:
        options["diagnosis"] = DIAGNOSES[options["diagnosis"]]
    if command in ("build", "decathlon"):
        options["unpack"] = out.with_name(f"{out.stem}_pictures")
    plan = BUILDERS[command].plan(source, **options)
    report = plan.report
    print("\n".join(plan.taken), flush=True)
    if dry_run:
        return Outcome(f"nothing was read (--dry_run); refused so far: {len(report.unusable)}")
    datalist = plan.build()
    write_report(report, _report_file(out))
    if strict and report.unusable:
        raise ValueError(f"{len(report.unusable)} files cannot be used, first: {', '.join(report.unusable[0])}")
    return _finish(datalist, report, out)


def execute(arguments: argparse.Namespace) -> Outcome:
    """The verb ``datalist``.

    Raises:
        ValueError, OSError: as the builders.
    """
    excluded = ("verb", "chosen", "overrides", "parser", "command", "out")
    options = {name: value for name, value in vars(arguments).items() if name not in excluded}
    if arguments.command == "check":
        return Outcome(_table(summary(read(options["datalist_file"], options["dataset_dir"]))))
    if arguments.command == "nnunet":
        counts = write_raw(
            read(options["datalist_file"], options["dataset_dir"]), options["dataset_dir"], arguments.out
        )
        return Outcome(", ".join(f"{count} {part}" for part, count in counts.items()), [arguments.out])
    if arguments.command == "merge":
        return _merge(options, arguments.out)
    return _build(arguments.command, options, arguments.out)
