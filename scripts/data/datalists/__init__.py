"""Datalists: what is trained, validated and tested on; builders, checks, reading and writing."""

from __future__ import annotations

from scripts.data.datalists.decathlon import decathlon
from scripts.data.datalists.dicom import dicom_series
from scripts.data.datalists.fingerprints import fingerprint, perceptual_hash
from scripts.data.datalists.folders import image_folder
from scripts.data.datalists.merging import merge_sources
from scripts.data.datalists.patients import find_patients
from scripts.data.datalists.recognition import recognized
from scripts.data.datalists.schema import (
    NO_LESION,
    SPLITS,
    Datalist,
    Report,
    absent_classes,
    assert_no_overlap,
    content_sha256,
    merge,
    read,
    read_json,
    read_unchecked,
    same_content,
    summary,
    validate,
    write,
    write_report,
)
from scripts.data.datalists.similarity import group_near_duplicates
from scripts.data.datalists.slices import SliceRule
from scripts.data.datalists.splits import assemble, split_units
from scripts.data.datalists.units import Item, paths, unit, units
from scripts.data.datalists.volumes import nifti_cases, nifti_volumes

__all__ = [
    "NO_LESION",
    "SPLITS",
    "Datalist",
    "Item",
    "Report",
    "SliceRule",
    "absent_classes",
    "assemble",
    "assert_no_overlap",
    "content_sha256",
    "decathlon",
    "dicom_series",
    "find_patients",
    "fingerprint",
    "group_near_duplicates",
    "image_folder",
    "merge",
    "merge_sources",
    "nifti_cases",
    "nifti_volumes",
    "paths",
    "perceptual_hash",
    "read",
    "read_json",
    "read_unchecked",
    "recognized",
    "same_content",
    "split_units",
    "summary",
    "unit",
    "units",
    "validate",
    "write",
    "write_report",
]
