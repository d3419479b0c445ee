"""The figures that runs are compared by: a table to print, its rows on the page, and the figure on top of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from scripts.pictures import evaluation_figures
from scripts.runs.documents import MISSING, Document, format_number
from scripts.runs.reading import Run

__all__ = ["MEASURES", "chance", "comparison_rows", "first_figures", "format_comparison", "glance"]


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
RANDOM = "/{part}/baselines/random_map/dice/"
MEASURES = (
    Measure("Dice over tumor cases", "metrics", DICE + "mean", DICE + "n", DICE + "ci95", "ratio", "higher"),
    Measure(
        "Dice of a random map", "metrics", RANDOM + "mean", RANDOM + "n", RANDOM + "ci95", "ratio", "",
        "as large as the tumor, inside the head", printed=False,
    ),
    _classification("Balanced accuracy", "balanced_accuracy", "higher", "{chance}", printed=True),
    _classification("Accuracy", "accuracy", "higher"),
    _classification("Accuracy of the majority class", "majority_accuracy", "", "what always naming it would score"),
    _classification("ROC-AUC, tumor against none", "roc_auc", "higher", "chance scores 0.5"),
    _localization("Pointing game", "pointing_game", "higher", "the map's maximum lies in the tumor"),
    _localization("Energy in tumor", "tumor_energy", "higher", "share of the map's sum"),
    _localization("Tumor area", "tumor_area", "", "energy in tumor that a uniform map would have", printed=False),
    _localization("Energy in air, layer's grid", "background_energy_layer", "lower", "cells without any foreground"),
    _localization("Energy in air, image grid", "background_energy", "lower", "after linear interpolation"),
    _localization("Empty maps", "empty_rate", "lower", "counted as misses above", printed=False),
    _localization("Cancelled maps", "cancelled_rate", "lower", "no Grad-CAM there; misses too", printed=False),
)  # fmt: skip


@dataclass(frozen=True)
class Cell:
    """Where value, n and interval of a measure stand; None where the run's files do not have them."""

    document: Document
    value: str | None
    n: str | None
    ci95: str | None

    @classmethod
    def of(cls, run: Run, measure: Measure) -> Cell:
        """Cell of a run."""
        document: Document = getattr(run, measure.file)
        value, n, ci95 = (p.format(part=run.part, row=run.row) for p in (measure.pointer, measure.n, measure.ci95))
        if measure.file == "localization" and run.row is None:
            return cls(document, None, None, None)
        limits = document.has(ci95) and document.real(ci95 + "/0") is not None
        return cls(
            document,
            value if document.has(value) else None,
            n if document.has(n) else None,
            ci95 if limits else None,
        )

    def real(self) -> float | None:
        """The value, None where there is none."""
        return None if self.value is None else self.document.real(self.value)

    def limits(self) -> tuple[float | None, float | None]:
        """Its interval."""
        if self.ci95 is None:
            return None, None
        return self.document.real(f"{self.ci95}/0"), self.document.real(f"{self.ci95}/1")

    def shown(self, kind: str) -> tuple[Any, list[Markup] | None, Any]:
        """Value, interval and n as they stand on the page."""
        value = MISSING if self.value is None else self.document.number(self.value, kind)
        limits = [self.document.number(f"{self.ci95}/{i}", kind) for i in (0, 1)] if self.ci95 else None
        return value, limits, MISSING if self.n is None else self.document.number(self.n, "count")


def chance(run: Run) -> str:
    """What always naming one class scores in balanced accuracy, in words."""
    if not run.diagnoses:
        return "not trained to diagnose"
    if not run.classes_tested:
        return "no case has a diagnosis"
    return f"always naming one class scores {format_number(1 / run.classes_tested, 'ratio')}"


def comparison_rows(loaded: Sequence[Run]) -> list[dict[str, Any]]:
    """Rows of the table on the page."""
    rows = []
    for measure in MEASURES:
        cells = [Cell.of(run, measure) for run in loaded]
        if all(cell.value is None for cell in cells):
            continue
        claim = "dice" if measure.pointer.startswith(DICE) else measure.pointer.rpartition("/")[2]
        note = measure.note.format(chance=chance(loaded[0]))
        shown = [cell.shown(measure.kind) for cell in cells]
        rows.append({"label": measure.label, "note": note, "better": measure.better, "cells": shown, "claim": claim})
    return rows


def first_figures(rows: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Those of `comparison_rows` that stand on top of the page."""
    return [row for row in rows if row["label"] in SIX]


def format_comparison(loaded: Sequence[Run]) -> str:
    """The comparison as plain text: value and 95 % interval a run; n of Dice, diagnoses and maps below."""
    table = [["", *(run.title for run in loaded)], ["map measured below", *(run.map_title for run in loaded)]]
    for measure in MEASURES:
        if measure.printed:
            row = [measure.label]
            for cell in (Cell.of(run, measure) for run in loaded):
                text = format_number(cell.real(), measure.kind)
                if cell.ci95:
                    low, high = (format_number(limit, measure.kind) for limit in cell.limits())
                    text += f"  [{low}, {high}]"
                row.append(text)
            table.append(row)
    widths = [max(len(row[i]) for row in table) for i in range(len(table[0]))]
    lines = ["   ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in table]
    lines.insert(2, "-" * (sum(widths) + 3 * (len(widths) - 1)))

    def count(run: Run, pointer: str) -> Any:
        return run.metrics.value(pointer) if run.metrics.has(pointer) else 0

    counts = [
        f"{run.title}: {count(run, f'/{run.part}/overall/segmentation/dice/n')} tumor cases, "
        f"{count(run, f'/{run.part}/overall/classification/n')} diagnoses, "
        f"{0 if run.row is None else run.localization.value(f'/{run.row}/n')} maps"
        for run in loaded
    ]
    return "\n".join([*lines, "", *counts, str(loaded[0].metrics.content.get("intervals", ""))]).rstrip()


SIX = (
    "Dice over tumor cases", "Balanced accuracy", "Accuracy", "ROC-AUC, tumor against none", "Pointing game",
    "Energy in tumor",
)  # fmt: skip


def glance(loaded: Sequence[Run]) -> bytes:
    """The figure on top of the page: main figures with intervals, and what would be scored without looking."""
    first = loaded[0]
    without: Mapping[str, tuple[Document, str]] = {
        "Dice over tumor cases": (first.metrics, f"/{first.part}/baselines/random_map/dice/mean"),
        "Balanced accuracy": (first.metrics, f"/{first.part}/baselines/majority/balanced_accuracy"),
        "Accuracy": (first.metrics, f"/{first.part}/overall/classification/majority_accuracy"),
        "Energy in tumor": (first.localization, f"/{first.row}/tumor_area"),
        "Pointing game": (first.localization, f"/{first.row}/tumor_area"),
    }
    rows = []
    for measure in MEASURES:
        if measure.label not in SIX:
            continue
        cells = [Cell.of(run, measure) for run in loaded]
        if all(cell.real() is None for cell in cells):
            continue
        level: float | None = 0.5
        if measure.label in without:
            document, pointer = without[measure.label]
            level = document.real(pointer) if document.has(pointer) else None
        rows.append((measure.label.partition(",")[0], [(cell.real(), cell.limits()) for cell in cells], level))
    return evaluation_figures.glance(rows, [run.title for run in loaded])
