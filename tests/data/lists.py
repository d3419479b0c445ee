"""A minimal datalist, the datalist of a folder as recognized, and the items of one."""

from __future__ import annotations

from pathlib import Path

from scripts.data import datalists
from scripts.data.datalists.recognition import recognized
from scripts.data.datalists.schema import Report


def items_of(datalist: dict) -> list[dict]:
    return [item for split in datalists.SPLITS for item in datalist[split]]


def minimal() -> dict:
    return {
        "name": "x",
        "modality": {"0": "FLAIR"},
        "classes": {"0": "no_tumor", "1": "tumor"},
        "training": [{"image": "a.png", "diagnosis": 0, "patient": "p1"}],
        "validation": [{"image": "b.png", "diagnosis": 1, "patient": "p2"}],
        "test": [{"image": "c.png", "label": "m.png", "patient": "p3", "slice": 4}],
    }


def built(folder: Path, **options) -> tuple[list[dict], Report]:
    datalist, report = recognized(folder, progress=False, **options)
    return items_of(datalist), report
