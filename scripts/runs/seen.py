"""Which images a run was trained or selected on, by their content, and how many of others are among them."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from scripts.command.config_files import read_mapping
from scripts.command.files import write_json
from scripts.data.content import content_sha256
from scripts.runs import parallel
from scripts.runs.checkpoint_files import CONFIG
from scripts.runs.folder import last_stage, read_datalist, stage_items

__all__ = ["FILE", "count_seen", "seen_by", "write_seen"]

logger = logging.getLogger(__name__)

FILE = "seen.json"
PARTS = ("training", "validation")


def write_seen(stage_dir: str | Path, **parts: Sequence[Mapping[str, Any]]) -> None:
    """Write what a stage was trained and selected on beside its weights, in the first process.

    Args:
        stage_dir: of a finished stage.
        parts: items with absolute paths, "training" and "validation".
    """
    if parallel.first() and not (Path(stage_dir) / FILE).is_file():
        write_json(
            {part: sorted({content_sha256(item) for item in items}) for part, items in parts.items()},
            Path(stage_dir) / FILE,
        )


def seen_by(run_dir: str | Path) -> set[str] | None:
    """Content of the images of a run's training and validation, over its stages.

    Of a run that holds no such file they are read from its datalist.

    Returns:
        hashes; None where neither is at hand.
    """
    stage = last_stage(run_dir)
    files = [path for folder in (stage, stage.parent) for path in (folder / FILE, *folder.glob(f"*/{FILE}"))]
    records = [json.loads(path.read_text(encoding="utf-8")) for path in files if path.is_file()]
    if records:
        return {content for parts in records for contents in parts.values() for content in contents}
    config = read_mapping(stage / CONFIG)
    try:
        datalist = read_datalist(config.get("datalist_file"), config.get("dataset_dir"))
        items = [
            item for part in PARTS if datalist[part] for item in stage_items(datalist, part, config["dataset_dir"])
        ]
        return {content_sha256(item) for item in items}
    except (ValueError, OSError) as error:
        logger.warning("not known which images %s was trained on: %s", stage, error)
        return None


def count_seen(run_dir: str | Path, items: Sequence[Mapping[str, Any]]) -> int | None:
    """How many items a run was trained or selected on, by their content; None where that is not known."""
    known = seen_by(run_dir)
    if known is None:
        return None
    seen = sum(content_sha256(item) in known for item in items)
    if seen:
        logger.warning("%d of the %d evaluated images were trained or selected on", seen, len(items))
    return seen
