"""One self-contained page about one or two runs, made only from the files in their folders.

    python -m scripts.report runs/demo

Every number on the page is read from a file by `Document.number` and carries where it stands (`data-source`), its full
value (`data-value`) and how it is shown (`data-kind`); a test reads the page and the files and compares.
"""

from __future__ import annotations

import argparse
import base64
import io
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from PIL import Image

from scripts import figures
from scripts.cli import one_sentence_errors
from scripts.overlays import colorize
from scripts.run_files import METHODS, Document, Run, data_summary, format_number

__all__ = ["comparison_table", "data_summary", "format_number", "write_comparison_picture", "write_report"]

RUNS = {"ours": "TumorLens", "baseline": "stock design"}
TEMPLATES = Path(__file__).parent / "templates"
WORST_CASES = 8
CONFIG_KEYS = (
    "spatial_size",
    "max_epochs",
    "batch_size",
    "items",
    "learning_rate",
    "encoder_factor",
    "weight_decay",
    "precision",
    "seg_weight",
    "cls_weight",
    "evidence_weight",
    "frozen",
    "key_metric",
)


@dataclass(frozen=True)
class Measure:
    """A row of the comparison: `pointer` leads to the value in `file`, `n` and `ci95` to what stands beside it."""

    label: str
    file: str
    pointer: str
    n: str
    ci95: str
    kind: str
    better: str
    note: str = ""
    printed: bool = True


def _classification(label: str, name: str, better: str, note: str = "", printed: bool = False) -> Measure:
    block = "/{part}/overall/classification/"
    return Measure(label, "metrics", block + name, block + "n", f"{block}{name}_ci95", "ratio", better, note, printed)


def _localization(label: str, name: str, better: str, note: str = "", printed: bool = True) -> Measure:
    row = "/{row}/"
    return Measure(label, "localization", row + name, row + "n", f"{row}{name}_ci95", "percent", better, note, printed)


DICE = "/{part}/overall/segmentation/dice/"
MEASURES = (
    Measure("Dice over tumor cases", "metrics", DICE + "mean", DICE + "n", DICE + "ci95", "ratio", "higher"),
    _classification("Balanced accuracy", "balanced_accuracy", "higher", "{chance}", printed=True),
    _classification("Accuracy", "accuracy", "higher"),
    _classification("Accuracy of the majority class", "majority_accuracy", "", "what always naming it would score"),
    _classification("ROC-AUC, tumor against none", "roc_auc", "higher", "chance scores 0.5"),
    _localization("Pointing game", "pointing_game", "higher", "the map's maximum lies in the tumor"),
    _localization("Energy in tumor", "tumor_energy", "higher", "share of the map's sum"),
    _localization("Tumor area", "tumor_area", "", "energy in tumor that a uniform map would have", printed=False),
    _localization("Energy in air, layer's grid", "background_energy_layer", "lower", "cells without any foreground"),
    _localization("Energy in air, image grid", "background_energy", "lower", "after bilinear interpolation"),
    _localization("Empty maps", "empty_rate", "lower", "counted as misses above", printed=False),
)


def _cell(run: Run, measure: Measure) -> tuple[Document, str, str, str | None]:
    """Document and pointers of value, n and interval of a row of the comparison; None where there is no interval."""
    document: Document = getattr(run, measure.file)
    value, n, ci95 = (p.format(part=run.part, row=run.row) for p in (measure.pointer, measure.n, measure.ci95))
    return document, value, n, ci95 if document.has(ci95) and document.real(ci95 + "/0") is not None else None


def _read(demo_dir: str | Path, runs: Mapping[str, str], part: str) -> list[Run]:
    root = Path(demo_dir)
    if not root.is_dir():
        raise FileNotFoundError(f"{root} is not a folder")
    if not runs:
        raise ValueError("runs: expected at least one, {folder: title}")
    return [Run(root, key, title, part) for key, title in runs.items()]


def comparison_table(demo_dir: str | Path, runs: Mapping[str, str] = RUNS, part: str = "test") -> str:
    """The comparison as plain text: value and 95 % interval a run; n of Dice, diagnoses and maps below.

    Args:
        demo_dir: folder of the runs.
        runs: {folder: title}.
        part: part of the datalist that was evaluated.

    Raises:
        FileNotFoundError, ValueError: naming the file that is missing or lacks something.
    """
    loaded = _read(demo_dir, runs, part)
    table = [["", *(run.title for run in loaded)], ["map measured below", *(run.map_title for run in loaded)]]
    for measure in MEASURES:
        if measure.printed:
            row = [measure.label]
            for run in loaded:
                document, value, _, ci95 = _cell(run, measure)
                text = format_number(document.real(value), measure.kind)
                if ci95:
                    low, high = (format_number(document.real(f"{ci95}/{i}"), measure.kind) for i in (0, 1))
                    text += f"  [{low}, {high}]"
                row.append(text)
            table.append(row)
    widths = [max(len(row[i]) for row in table) for i in range(len(table[0]))]
    lines = ["   ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in table]
    lines.insert(2, "-" * (sum(widths) + 3 * (len(widths) - 1)))
    counts = [
        f"{run.title}: {run.metrics.value(f'/{part}/overall/segmentation/dice/n')} tumor cases, "
        f"{run.metrics.value(f'/{part}/overall/classification/n')} diagnoses, "
        f"{run.localization.value(f'/{run.row}/n')} maps"
        for run in loaded
    ]
    return "\n".join([*lines, "", *counts, str(loaded[0].metrics.content.get("intervals", ""))]).rstrip()


def common_cases(loaded: Sequence[Run]) -> list[tuple[str, list[int]]]:
    """Tumor cases that every run has drawn: name and index in each gallery, in the first run's order.

    Raises:
        ValueError: when there is none.
    """
    indices = [{entry["name"]: i for i, entry in run.shown()} for run in loaded]
    found = [
        (entry["name"], [index[entry["name"]] for index in indices])
        for _, entry in loaded[0].shown()
        if entry.get("tumor_energy") is not None and all(entry["name"] in index for index in indices)
    ]
    if not found:
        raise ValueError(f"no tumor case stands in all of {', '.join(run.gallery.name for run in loaded)}")
    return found


def write_comparison_picture(
    demo_dir: str | Path, path: str | Path, runs: Mapping[str, str] = RUNS, cases: int = 4, part: str = "test"
) -> Path:
    """Write the maps of the runs side by side as one PNG, for a README: the first cases that all runs have drawn."""
    loaded = _read(demo_dir, runs, part)
    rows = []
    for name, indices in common_cases(loaded)[:cases]:
        first = loaded[0].gallery.content[indices[0]]
        cells = [
            (
                np.asarray(Image.open(loaded[0].picture(first, "image")).convert("RGB")),
                "masks: true cyan, predicted magenta",
            )
        ]
        for run, i in reversed(list(zip(loaded, indices, strict=True))):
            entry = run.gallery.content[i]
            tumor, air = (format_number(entry[k], "percent") for k in ("tumor_energy", "background_energy"))
            text = "no evidence" if entry["empty"] else f"in tumor {tumor}, in air {air}"
            cells.append((np.asarray(Image.open(run.picture(entry, "overlay")).convert("RGB")), text))
        rows.append((name, cells))
    columns = ["image", *(f"{run.title}:\n{run.map_title}" for run in reversed(loaded))]
    _write(Path(path), figures.comparison_picture(columns, rows))
    return Path(path)


def write_report(
    demo_dir: str | Path, runs: Mapping[str, str] = RUNS, out: str | Path = "report.html", part: str = "test"
) -> Path:
    """Write the page.

    Args:
        demo_dir: folder of data.json and the runs.
        runs: {folder: title}, the first is the one reported on, a second one is what it is compared with.
        out: file to write; a relative path is relative to `demo_dir`.
        part: part of the datalist that was evaluated.

    Returns:
        path of the page, which needs no other file and no network.

    Raises:
        FileNotFoundError, ValueError: naming the file that is missing or lacks something; nothing is written then.
    """
    root = Path(demo_dir)
    loaded = _read(root, runs, part)
    data = Document(root, "data.json")
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    page = environment.get_template("report.html.j2").render(
        part=part,
        runs=loaded,
        data=data,
        counts=_data_rows(data),
        parts=list(data.value("/counts")),
        findings=_findings(loaded, data),
        comparison=_comparison_rows(loaded),
        pictures=common_cases(loaded),
        chance=_chance(loaded[0]),
        curves=[(run, _curves(run)) for run in loaded],
        dice=_uri(figures.dice_histogram({run.title: _column(run, "dice") for run in loaded})),
        worst=_worst_cases(loaded),
        roc=_roc(loaded),
        confusion=[(run, _confusion(run, data)) for run in loaded],
        by_source=_by_source(loaded),
        localization=_localization_rows(loaded),
        config_keys=CONFIG_KEYS,
        methods=METHODS,
        bar=_uri(_png(colorize(np.broadcast_to(np.linspace(0, 1, 256), (12, 256))))),
        image=lambda run, entry, what: _uri(run.picture(entry, what).read_bytes()),
        escaped=lambda name: str(name).replace("~", "~0").replace("/", "~1"),
    )
    path = root / out
    _write(path, page.encode())
    return path


def _write(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    partial.write_bytes(content)
    os.replace(partial, path)


def _png(picture: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(picture)).save(buffer, format="PNG")
    return buffer.getvalue()


def _uri(png: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(png).decode()


def _chance(run: Run) -> str:
    return f"always naming one class scores {format_number(1 / run.classes_tested, 'ratio')}"


def _comparison_rows(loaded: Sequence[Run]) -> list[dict[str, Any]]:
    rows = []
    for measure in MEASURES:
        cells = []
        for run in loaded:
            document, value, n, ci95 = _cell(run, measure)
            limits = [document.number(f"{ci95}/{i}", measure.kind) for i in (0, 1)] if ci95 else None
            cells.append((document.number(value, measure.kind), limits, document.number(n, "count")))
        note = measure.note.format(chance=_chance(loaded[0]))
        rows.append({"label": measure.label, "note": note, "better": measure.better, "cells": cells})
    return rows


def _data_rows(data: Document) -> list[tuple[str, str]]:
    """Pairs of source and class that any part has, in the order of the file."""
    rows = [(source, name) for part in data.value("/counts").values() for source in part for name in part[source]]
    return sorted(set(rows), key=rows.index)


def _findings(loaded: Sequence[Run], data: Document) -> list[str]:
    """What in the files themselves limits the conclusions."""
    found = []
    by_source: dict[str, dict[str, list[int]]] = {}
    for sources in data.value("/counts").values():
        for source, by_class in sources.items():
            for name, count in by_class.items():
                by_source.setdefault(source, {}).setdefault(name, []).append(count["with_mask"])
    for source, by_class in by_source.items():
        if len(by_class) == 1 and len(by_source) > 1:
            found.append(
                f"Source {source} has images of one class alone ({next(iter(by_class))}): whatever marks the source "
                "(scanner, size, compression) could pass for the diagnosis."
            )
        if not any(sum(counts) for counts in by_class.values()):
            found.append(f"Source {source} has no masks: it counts for the diagnosis, not for Dice or the maps.")
    hashes = {s.manifest.value("/datalist_sha256") for run in loaded for s in run.stages}
    if len(hashes) > 1:
        found.append(
            "The stages were not all trained on the same datalist (see the hashes below): do not compare them."
        )
    for run in loaded:
        found += [f"{run.title}: stage {s.name} did not run to its end." for s in run.stages if not s.finished]
    return found


def _column(run: Run, name: str) -> list[float]:
    """The defined values of a column of the evaluation's cases.csv."""
    values = [run.cases.real(f"/{i}/{name}") for i in range(len(run.cases.content))]
    return [value for value in values if value is not None]


def _curves(run: Run) -> list[tuple[str, str]]:
    charts = figures.training_curves([(stage.title, stage.scalars) for stage in run.stages])
    return [(title, _uri(png)) for title, png in charts.items()]


def _roc(loaded: Sequence[Run]) -> str | None:
    """ROC curves, or None where the test has only tumors or none (the page says so)."""
    curves = {}
    for run in loaded:
        auc = run.metrics.real(f"/{run.part}/overall/classification/roc_auc")
        if auc is None:
            return None
        known = [i for i in range(len(run.cases.content)) if (run.cases.real(f"/{i}/diagnosis") or 0) >= 0]
        tumor = [(run.cases.real(f"/{i}/diagnosis") or 0) > 0 for i in known]
        probability = [run.cases.real(f"/{i}/tumor_probability") for i in known]
        curves[f"{run.title}, AUC {format_number(auc, 'ratio')}"] = (tumor, probability)
    return _uri(figures.roc(curves))


def _confusion(run: Run, data: Document) -> str:
    matrix = run.metrics.value(f"/{run.part}/overall/classification/confusion_matrix")
    classes = data.value("/classes")
    names = [classes[str(k)] for k in range(len(classes))] if isinstance(classes, dict) else list(classes)
    return _uri(figures.confusion_matrix(matrix, names, f"{run.title}: diagnoses"))


def _worst_cases(loaded: Sequence[Run]) -> list[tuple[str, list[int | None]]]:
    """Name and row in each run's cases.csv of the lowest Dice scores of the first run."""
    first = loaded[0].cases
    scored = [(first.real(f"/{i}/dice"), i) for i in range(len(first.content))]
    lowest = sorted((dice, i) for dice, i in scored if dice is not None)[:WORST_CASES]
    rows = [{row["name"]: i for i, row in enumerate(run.cases.content)} for run in loaded]
    names = [first.content[i]["name"] for _, i in lowest]
    return [(name, [row.get(name) for row in rows]) for name in names]


def _by_source(loaded: Sequence[Run]) -> list[tuple[str, Run, int | None]]:
    """Source, run and row in localization.json (None: no masks there), if there are several sources."""
    sources = list(loaded[0].metrics.value(f"/{loaded[0].part}/by_source"))
    rows: list[tuple[str, Run, int | None]] = []
    for source in sources if len(sources) > 1 else []:
        for run in loaded:
            measured = {row["source"] for row in run.localization.content}
            rows.append((source, run, run.localization_row(source) if source in measured else None))
    return rows


def _localization_rows(loaded: Sequence[Run]) -> list[tuple[Run, int, dict[str, Any]]]:
    """Run, index and content of all rows over all sources, the best pointing game first."""
    rows = [(run, i, row) for run in loaded for i, row in enumerate(run.localization.content) if row["source"] == "all"]
    return sorted(rows, key=lambda row: (-(row[2]["pointing_game"] or 0), -(row[2]["tumor_energy"] or 0)))


def main(argv: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m scripts.report", description=__doc__.split("\n")[0])
    parser.add_argument("demo_dir", help="folder that holds data.json and the runs' folders")
    parser.add_argument(
        "--run", action="append", metavar="FOLDER=TITLE", help="a run in it; default: ours and baseline"
    )
    parser.add_argument("--out", default="report.html", help="relative to demo_dir")
    parser.add_argument("--part", default="test", help="part of the datalist that was evaluated")
    arguments = parser.parse_args(argv)
    runs = dict(text.partition("=")[::2] for text in arguments.run) if arguments.run else RUNS
    runs = {key: title or key for key, title in runs.items()}
    print(comparison_table(arguments.demo_dir, runs, arguments.part))
    print(f"\nreport: {write_report(arguments.demo_dir, runs, arguments.out, arguments.part)}")


if __name__ == "__main__":
    with one_sentence_errors():
        main()
