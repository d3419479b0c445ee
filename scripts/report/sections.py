"""What the sections of the page are filled with: figures drawn from the runs' files, and which rows stand where."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from scripts.pictures import evaluation_figures, figures
from scripts.runs.documents import Document, format_number
from scripts.runs.reading import Run

WORST_CASES = 8


def uri(png: bytes) -> str:
    """A PNG as an address that needs no file: a drawing, pixel for pixel."""
    return _webp(Image.open(io.BytesIO(png)), lossless=True)


def photograph(path: Path) -> str:
    """A picture of a case as an address that needs no file; compressed, the file in the run's folder is not."""
    return _webp(Image.open(path), quality=90)


def _webp(image: Image.Image, **how: Any) -> str:
    buffer = io.BytesIO()
    image.convert("RGB").save(buffer, format="WEBP", **how)
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode()


def data_rows(data: Document) -> list[tuple[str, str]]:
    """Pairs of source and class that any part has, in the order of the file."""
    rows = [(source, name) for part in data.value("/counts").values() for source in part for name in part[source]]
    return sorted(set(rows), key=rows.index)


def column(run: Run, name: str) -> list[float]:
    """The defined values of a column of the evaluation's cases.csv."""
    values = [run.cases.real(f"/{i}/{name}") for i in range(len(run.cases.content))]
    return [value for value in values if value is not None]


def training(run: Run) -> list[tuple[str, str]]:
    """Titles and pictures of the training curves."""
    charts = figures.training_curves([(stage.title, stage.scalars) for stage in run.stages])
    return [(title, uri(png)) for title, png in charts.items()]


def segmentation(loaded: Sequence[Run]) -> list[tuple[str, str]]:
    """Histogram of Dice, and Dice by tumor area where the files have it."""
    dice = {run.title: column(run, "dice") for run in loaded}
    plots = []
    if any(dice.values()):
        plots.append(("Histogram of Dice by case", uri(figures.dice_histogram({k: v for k, v in dice.items() if v}))))
    pointer = f"/{loaded[0].part}/by_area"
    areas = {run.title: run.metrics.value(pointer) for run in loaded if run.metrics.has(pointer)}
    if areas and any(b["n"] for b in next(iter(areas.values()))):
        plots.append(("Mean Dice by tumor area", uri(evaluation_figures.dice_by_area(areas))))
    block = f"/{loaded[0].part}/overall/regions"
    regions = {run.title: run.metrics.value(block) for run in loaded if run.metrics.has(block)}
    if regions and any(region["dice"]["n"] for region in next(iter(regions.values())).values()):
        plots.append(("Mean Dice by region", uri(evaluation_figures.dice_by_region(regions))))
    return plots


def classification(loaded: Sequence[Run]) -> list[tuple[str, str]]:
    """Confusion matrices, ROC, precision-recall and reliability curves, as far as the files have them."""
    charts = []
    curves, aucs, bins = {}, {}, {}
    for run in loaded:
        block = f"/{run.part}/overall/classification"
        if not run.metrics.has(block):
            continue
        matrix = run.metrics.value(f"{block}/confusion_matrix")
        names = run.metrics.content.get("classes") or [f"class {k}" for k in range(len(matrix))]
        picture = figures.confusion_matrix(matrix, names, f"{run.title}: diagnoses")
        charts.append((f"Confusion matrix of {run.title}", uri(picture)))
        if run.metrics.has(f"{block}/reliability_tumor"):
            bins[run.title] = run.metrics.value(f"{block}/reliability_tumor")
        auc = run.metrics.real(f"{block}/roc_auc")
        if auc is not None:
            known = [i for i in range(len(run.cases.content)) if (run.cases.real(f"/{i}/diagnosis") or 0) >= 0]
            tumor = [(run.cases.real(f"/{i}/diagnosis") or 0) > 0 for i in known]
            probability = [run.cases.real(f"/{i}/tumor_probability") for i in known]
            curves[run.title] = (tumor, probability)
            aucs[run.title] = auc
    if curves:
        named = {f"{title}, AUC {format_number(aucs[title], 'ratio')}": curve for title, curve in curves.items()}
        charts.append(("ROC curves", uri(figures.roc(named))))
        charts.append(("Precision-recall curves", uri(evaluation_figures.precision_recall(curves))))
    if bins:
        charts.append(("Reliability curves", uri(evaluation_figures.reliability(bins))))
    return charts


def worst_cases(loaded: Sequence[Run]) -> list[tuple[str, list[int | None]]]:
    """Name and row in each run's cases.csv of the lowest Dice scores of the first run."""
    first = loaded[0].cases
    scored = [(first.real(f"/{i}/dice"), i) for i in range(len(first.content))]
    lowest = sorted((dice, i) for dice, i in scored if dice is not None)[:WORST_CASES]
    rows = [{row["name"]: i for i, row in enumerate(run.cases.content)} for run in loaded]
    names = [first.content[i]["name"] for _, i in lowest]
    return [(name, [row.get(name) for row in rows]) for name in names]


def by_source(loaded: Sequence[Run]) -> list[tuple[str, Run, int | None]]:
    """Source, run and row in localization.json (None: no masks there), if there are several sources."""
    sources = list(loaded[0].metrics.value(f"/{loaded[0].part}/by_source"))
    rows: list[tuple[str, Run, int | None]] = []
    for source in sources if len(sources) > 1 else []:
        for run in loaded:
            measured = {row["source"] for row in run.localization.content}
            rows.append((source, run, run.localization_row(source) if source in measured else None))
    return rows


def localization_rows(loaded: Sequence[Run]) -> list[tuple[Run, int, dict[str, Any]]]:
    """Run, index and content of all rows over all sources, the best pointing game first."""
    rows = [(run, i, row) for run in loaded for i, row in run.measured() if row["source"] == "all"]
    return sorted(rows, key=lambda row: (-(row[2]["pointing_game"] or 0), -(row[2]["tumor_energy"] or 0)))


def audited(run: Run) -> list[tuple[tuple[int, int], dict[str, Any]]]:
    """Rows of audit.json before and after the pipeline: both indices, and the row after."""
    if run.audit is None:
        return []
    rows = run.audit.content["rows"]
    places = {(r["target"], r["value"], r["features"], r["stage"]): i for i, r in enumerate(rows)}
    pairs = [((places.get((*key, "before")), i), rows[i]) for (*key, stage), i in places.items() if stage == "after"]
    return [((before, after), row) for (before, after), row in pairs if before is not None and row["auc"] is not None]


def class_name(run: Run, index: int) -> str:
    """A class in words."""
    if index < 0:
        return "diagnosis unknown"
    names = run.metrics.content.get("classes") or []
    return str(names[index]).replace("_", " ") if index < len(names) else f"class {index}"


def robustness(run: Run) -> list[tuple[str, str]]:
    """A chart a corruption."""
    if run.robustness is None or run.robustness.has("/unavailable"):
        return []
    content, charts = run.robustness.content, []
    for corruption in content["corruptions"]:
        curves = evaluation_figures.robustness_curves(content["clean"], corruption["levels"])
        strengths = [level["strength"] for level in corruption["levels"]]
        picture = evaluation_figures.robustness(corruption["name"], corruption["unit"], strengths, curves)
        charts.append((f"{corruption['name']}: {', '.join(curves)} against strength", uri(picture)))
    return charts


def faithfulness(run: Run) -> list[tuple[str, str, str, list[str]]]:
    """Test, map, pointer and measures of every row of faithfulness.json that has figures with intervals."""
    if run.faithfulness is None:
        return []
    entries = []
    for test, rows in run.faithfulness.content.items():
        for place, row in _rows(rows):
            names = [key for key, value in row.items() if f"{key}_ci95" in row and isinstance(value, float)]
            if names:
                title = " at ".join(dict.fromkeys(str(row[key]) for key in ("method", "layer") if key in row))
                entries.append((test.replace("_", " "), title, f"/{test}{place}", names))
    return entries


def _rows(content: Any) -> list[tuple[str, dict[str, Any]]]:
    if isinstance(content, dict):
        return [("", content)]
    if isinstance(content, list):
        return [(f"/{i}", row) for i, row in enumerate(content) if isinstance(row, dict)]
    return []
