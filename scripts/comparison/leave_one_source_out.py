"""How a network does on a source that it was not trained on: one training a source, each evaluated on what it left out.

    python -m scripts leave-one-source-out --dataset_dir DIR --datalist_file LIST.json --out runs/sources

Run it again after an interruption: finished trainings and evaluations are kept. Further ``--id value`` pairs and
``--overlay`` files are those of scripts.training.train.
"""

from __future__ import annotations

import argparse
import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from scripts.command.files import write_json
from scripts.command.overrides import parse_overrides
from scripts.command.verbs import Outcome, compute_values
from scripts.command.workflows import run_config
from scripts.comparison.experiments import SOURCES
from scripts.data.datalists import schema as datalists
from scripts.data.datalists.clusters import clusters
from scripts.evaluation.items import is_own_datalist
from scripts.runs import folder as runs
from scripts.training.train import train

__all__ = ["leave_one_source_out", "without_source"]

logger = logging.getLogger(__name__)

FIGURES = (
    ("dice", "segmentation/dice/mean", "segmentation/dice/ci95"),
    ("balanced_accuracy", "classification/balanced_accuracy", "classification/balanced_accuracy_ci95"),
    ("roc_auc", "classification/roc_auc", "classification/roc_auc_ci95"),
)


def source_of(item: Mapping[str, Any]) -> str:
    """Source of an item, as the evaluation names it."""
    return str(item.get("source") or "unknown")


def without_source(datalist: Mapping[str, Any], source: str) -> tuple[dict[str, Any], int]:
    """A datalist whose training and validation leave out a source, and whose test part is all of it.

    Items of other sources that belong to one of its patients or near-duplicate groups are left out too.

    Returns:
        the datalist, and how many such items there were.

    """
    every = [(part, item) for part in datalists.SPLITS for item in datalist[part]]
    test = [item for _, item in every if source_of(item) == source]
    owners = dict(zip((id(item) for _, item in every), clusters([item for _, item in every]), strict=True))
    tested = {owners[id(item)] for item in test}
    files = {str(item["image"]) for item in test}
    reduced: dict[str, Any] = {**datalist, "name": f"{datalist.get('name', '')} without {source}", "test": test}
    linked = 0
    for part in ("training", "validation"):
        others = [item for item in datalist[part] if source_of(item) != source]
        reduced[part] = [i for i in others if owners[id(i)] not in tested and str(i["image"]) not in files]
        linked += len(others) - len(reduced[part])
    return reduced, linked


def hindrance(datalist: Mapping[str, Any]) -> str | None:
    """Why nothing can be trained on a datalist: a part is empty, or without a mask or a diagnosis; None if it can."""
    for part in ("training", "validation"):
        if not datalist[part]:
            return f"nothing is left in {part}"
        if not any("label" in item for item in datalist[part]):
            return f"no mask is left in {part}"
        if not any("label" in item or "diagnosis" in item for item in datalist[part]):
            return f"no diagnosis is left in {part}"
    return None


def leave_one_source_out(
    dataset_dir: str, datalist_file: str, out: str | Path, overlays: Sequence[str] = (), **overrides: Any
) -> list[dict[str, Any]]:
    """Train and evaluate once a source.

    Args:
        dataset_dir, datalist_file: of all sources together.
        out: folder of the runs, one a source.
        overlays, overrides: of `scripts.training.train.train`.

    Returns:
        rows of leave_one_source_out.json: source, n test images, training images, linked items left out, of `FIGURES`
        value and interval (None where not defined), and `hindrance`: why it was not trained without this source, or
        None.

    Raises:
        ValueError: when there is one source only.
    """
    datalist = runs.read_datalist(datalist_file, dataset_dir)
    sources = sorted({source_of(item) for part in datalists.SPLITS for item in datalist[part]})
    if len(sources) < 2:
        raise ValueError(f"one source only ({', '.join(sources)}): there is none to leave out; merge several datalists")
    lists = {source: without_source(datalist, source) for source in sources}
    rows = []
    for source, (reduced, linked) in lists.items():
        row: dict[str, Any] = {"source": source, "n": len(reduced["test"]), "training": len(reduced["training"])}
        row |= {"linked": linked, "hindrance": hindrance(reduced)}
        if row["hindrance"]:
            logger.warning("without %s: not trained, %s", source, row["hindrance"])
            row |= {key: value for name, _, _ in FIGURES for key, value in ((name, None), (f"{name}_ci95", [None] * 2))}
            rows.append(row)
            continue
        folder = Path(out) / _folder(source)
        file = folder / "datalist.json"
        file.parent.mkdir(parents=True, exist_ok=True)
        datalists.write(reduced, file)
        logger.info("without %s: %d training images", source, len(reduced["training"]))
        paths = {"dataset_dir": dataset_dir, "datalist_file": str(file)}
        train(folder, overlays, **paths, **overrides)
        metrics = folder / "evaluation" / "metrics.json"
        weights = runs.last_stage(folder) / "model.pt"
        if not (
            metrics.is_file() and metrics.stat().st_mtime >= weights.stat().st_mtime and is_own_datalist(folder, file)
        ):
            run_config("evaluate.yaml", run_dir=str(folder), extras=[], **paths)
        overall = json.loads(metrics.read_text(encoding="utf-8"))["test"]["overall"]
        for name, value, limits in FIGURES:
            row[name], row[f"{name}_ci95"] = _at(overall, value), _at(overall, limits) or [None, None]
        rows.append(row)
    write_json(rows, Path(out) / SOURCES)
    return rows


def _folder(source: str) -> str:
    return "without_" + "".join(c if c.isalnum() or c in "-_." else "_" for c in source)


def _at(content: Any, path: str) -> Any:
    for key in path.split("/"):
        content = content.get(key) if isinstance(content, Mapping) else None
    return content


def format_rows(rows: Sequence[Mapping[str, Any]]) -> str:
    """The rows as a plain table: value and 95 % interval."""
    table = [["source left out", "n", *(name.replace("_", " ") for name, _, _ in FIGURES), ""]]
    for row in rows:
        cells = [str(row["source"]), str(row["n"])]
        for name, _, _ in FIGURES:
            low, high = row[f"{name}_ci95"]
            limits = "" if low is None else f"  [{low:.3f}, {high:.3f}]"
            cells.append("n/a" if row[name] is None else f"{row[name]:.3f}{limits}")
        table.append([*cells, f"not trained: {row['hindrance']}"] if row["hindrance"] else [*cells, ""])
    widths = [max(len(line[i]) for line in table) for i in range(len(table[0]))]
    return "\n".join("   ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)).rstrip() for line in table)


def execute(arguments: argparse.Namespace) -> Outcome:
    """The verb ``leave-one-source-out``."""
    rows = leave_one_source_out(
        str(arguments.dataset_dir), str(arguments.datalist_file), arguments.out, arguments.overlay,
        **compute_values(arguments), **parse_overrides(arguments.overrides),
    )  # fmt: skip
    return Outcome(format_rows(rows) + "\n", [arguments.out / SOURCES])
