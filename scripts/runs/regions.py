"""Regions of a run: those that its datalist states."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from scripts.data.datalists.regions import Regions
from scripts.runs.folder import read_datalist

__all__ = ["given", "stated"]


def stated(datalist: Mapping[str, Any]) -> Regions | None:
    """Label values of the regions that a datalist's masks are of, the tumor first; None: one region, the tumor."""
    regions = datalist.get("regions") or {}
    return regions if len(regions) > 1 else None


def given(datalist_file: str | None, dataset_dir: str | None) -> Regions | None:
    """The same of a datalist file; None without one (MONAI Label gives none)."""
    return None if datalist_file is None else stated(read_datalist(datalist_file, dataset_dir))
