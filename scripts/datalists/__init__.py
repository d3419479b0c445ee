"""Datalists: what is trained, validated and tested on; builders, checks, reading and writing."""

from __future__ import annotations

from scripts.datalists.folders import image_folder
from scripts.datalists.schema import (
    SPLITS,
    Datalist,
    Item,
    Report,
    assemble,
    assert_no_overlap,
    merge,
    read,
    split_units,
    summary,
    unit,
    validate,
    write,
    write_report,
)
from scripts.datalists.similarity import group_near_duplicates, perceptual_hash
from scripts.datalists.volumes import nifti_cases

__all__ = [
    "SPLITS",
    "Datalist",
    "Item",
    "Report",
    "assemble",
    "assert_no_overlap",
    "group_near_duplicates",
    "image_folder",
    "merge",
    "nifti_cases",
    "perceptual_hash",
    "read",
    "split_units",
    "summary",
    "unit",
    "validate",
    "write",
    "write_report",
]
