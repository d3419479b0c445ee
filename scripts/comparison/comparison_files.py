"""What a comparison is written to: a table as text and CSV, two figures, and a section that a report can show."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
import matplotlib as mpl
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from scripts.command.files import write_bytes, write_json, write_text
from scripts.measures.claims import words
from scripts.pictures.figures import STYLE, png
from scripts.pictures.overlays import png_uri
from scripts.runs.documents import Document, format_number
from scripts.runs.folder import write_csv

__all__ = ["differences_figure", "table", "values_figure", "write"]

logger = logging.getLogger(__name__)

TEMPLATES = Path(__file__).parent / "templates"
BETTER, WORSE, SAME = "#0072B2", "#D55E00", "#6b6b70"
MARKS = {"better": (BETTER, "^"), "worse": (WORSE, "v")}
SHORT = {
    "dice": "Dice",
    "balanced_accuracy": "Bal. accuracy",
    "roc_auc": "ROC-AUC",
    "tumor_energy": "In tumor",
    "pointing_game": "Pointing",
    "background_energy": "In air",
    "empty": "Empty maps",
}


def title(result: Mapping[str, Any], row: Mapping[str, Any]) -> str:
    """Name of a row on paper: the variant's title where the comparison has one."""
    name, _, stage = row["name"].partition(", ")
    known = result.get("variants", {}).get(name, {}).get("title", name)
    return f"{known}, {stage}" if stage else known


def map_title(row: Mapping[str, Any]) -> str:
    """Method and layer of the map that a row is measured by."""
    if row["map"] is None:
        return "none"
    method, layer = row["map"]["method"], row["map"]["layer"]
    return "evidence map" if method == "evidence" else f"{method} at {layer}"


def _value(entry: Mapping[str, Any], kind: str) -> str:
    if "missing" in entry:
        return "n/a"
    text = format_number(entry["mean"], kind)
    if len(entry["by_seed"]) > 1:
        text += f" ({format_number(entry['min'], kind)} to {format_number(entry['max'], kind)})"
    return text


def _change(value: float | None, kind: str) -> str:
    """A signed difference, in points of a hundred where shares are compared."""
    if value is None:
        return "n/a"
    return f"{100 * value:+.1f}" if kind == "percent" else f"{value:+.3f}"


def _difference(entry: Mapping[str, Any] | None, kind: str) -> str:
    if entry is None:
        return "n/a"
    low, high = (_change(v, kind) for v in entry["ci95"])
    return f"{_change(entry['difference'], kind)} [{low}, {high}] {words(entry)}"


def _grid(lines: Sequence[Sequence[str]]) -> str:
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    text = ["  ".join(cell.ljust(w) for cell, w in zip(line, widths, strict=True)).rstrip() for line in lines]
    return "\n".join([text[0], "-" * max(map(len, text)), *text[1:]])


def table(result: Mapping[str, Any]) -> str:
    """The comparison as plain text: values, then differences from the reference, then what was measured how.

    Args:
        result: of `scripts.comparison.comparison.compare`.
    """
    measures, rows = result["measures"], result["rows"]
    head = ["model", "seeds", "parameters", "training", *(SHORT[m["name"]] for m in measures)]
    values = [
        [
            title(result, row),
            str(len(row["seeds"])),
            format_number(row["parameters"], "count"),
            f"{row['training_seconds'] / 60:.1f} min",
            *(_value(row["measures"][m["name"]], m["kind"]) for m in measures),
        ]
        for row in rows
    ]
    others = [row for row in rows if row["name"] != result["reference"]]
    reference = next(title(result, row) for row in rows if row["name"] == result["reference"])
    changes = [
        [title(result, row), *(_difference(row["difference"].get(m["name"]), m["kind"]) for m in measures)]
        for row in others
    ]
    text = [_grid([head, *values])]
    if changes:
        text += [
            f"\ndifference from {reference} (shares in hundredths; false: probability that the claim is false)\n",
            _grid([["model", *(SHORT[m["name"]] for m in measures)], *changes]),
        ]
    text.append("\n" + "\n".join(f"{title(result, row)}: {_said(row)}" for row in rows))
    text.append(
        "(a to b): lowest and highest of the seeds. Differences: "
        + result["differences"]
        + ". Air and empty: less is better."
    )
    if "epochs" in result:
        text.append(f"epochs: {', '.join(f'{k} {v}' for k, v in result['epochs'].items())}")
    if result.get("not_run"):
        text.append("not run: " + ", ".join(result["not_run"]))
    return "\n".join(text)


def _said(row: Mapping[str, Any]) -> str:
    missing = sorted({m["missing"] for m in row["measures"].values() if "missing" in m})
    counts = [
        f"{SHORT[k]} {m['n']}"
        for k, m in row["measures"].items()
        if k in ("dice", "roc_auc", "tumor_energy") and "n" in m
    ]
    return f"map: {map_title(row)}; cases: {', '.join(counts)}" + "".join(f"; {text}" for text in missing)


def csv_rows(result: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Rows of model_comparison.csv: what is missing is empty, never 0."""
    lines = []
    for row in result["rows"]:
        line: dict[str, Any] = {
            "model": row["name"],
            "title": title(result, row),
            "seeds": " ".join(map(str, row["seeds"])),
            "parameters": row["parameters"],
            "training_seconds": round(row["training_seconds"], 1),
            "method": row["map"]["method"] if row["map"] else "",
            "layer": row["map"]["layer"] if row["map"] else "",
        }
        for measure in result["measures"]:
            name = measure["name"]
            value, change = row["measures"][name], row["difference"].get(name) or {}
            line |= {name: value.get("mean"), f"{name}_min": value.get("min"), f"{name}_max": value.get("max")}
            line[f"{name}_n"] = value.get("n")
            low, high = change.get("ci95", (None, None))
            line |= {f"{name}_difference": change.get("difference"), f"{name}_low": low, f"{name}_high": high}
            line |= {f"{name}_claim": change.get("claim"), f"{name}_false": change.get("false_probability")}
        line["missing"] = "; ".join(sorted({m["missing"] for m in row["measures"].values() if "missing" in m}))
        lines.append(line)
    return lines


def _panels(result: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> tuple[Figure, Any]:
    count = len(result["measures"])
    figure = Figure(figsize=(2.6 + 1.75 * count, 1.5 + 0.32 * len(rows)), dpi=150, layout="constrained")
    axes = figure.subplots(1, count, sharey=True)
    for ax, measure in zip(axes, result["measures"], strict=True):
        better = "more" if measure["higher_is_better"] else "less"
        ax.set_title(f"{SHORT[measure['name']]}\n({better} is better)", fontsize=9, loc="center")
        ax.set_yticks(range(len(rows)), [title(result, row) for row in rows], fontsize=9)
        ax.tick_params(axis="x", labelsize=8)
        ax.xaxis.set_major_locator(MaxNLocator(4))
        ax.grid(True, axis="x")
        ax.grid(False, axis="y")
        ax.set_ylim(len(rows) - 0.5, -0.5)
    return figure, axes


def _not_there(ax: Any, row: int) -> None:
    place: dict[str, Any] = {"transform": ax.get_yaxis_transform(), "ha": "center", "va": "center"}
    box = {"facecolor": "white", "edgecolor": "none", "pad": 1}
    ax.text(0.5, row, "n/a", fontsize=8, color=SAME, bbox=box, **place)


def values_figure(result: Mapping[str, Any]) -> bytes:
    """A panel a measure: mean over seeds as a dot, each seed as a small ring, n/a where there is none."""
    rows = result["rows"]
    with mpl.rc_context(STYLE):
        figure, axes = _panels(result, rows)
        for ax, measure in zip(axes, result["measures"], strict=True):
            for i, row in enumerate(rows):
                entry = row["measures"][measure["name"]]
                color = "black" if row["name"] == result["reference"] else BETTER
                if "missing" in entry:
                    _not_there(ax, i)
                    continue
                ax.plot(entry["by_seed"], [i] * len(entry["by_seed"]), "o", mfc="none", mec=color, ms=4, mew=0.8)
                ax.plot([entry["min"], entry["max"]], [i, i], "-", color=color, lw=1)
                ax.plot(entry["mean"], i, "o", color=color, ms=6)
        figure.supxlabel("dot: mean over seeds; rings: the seeds; black: " + _reference_title(result), fontsize=8.5)
        return png(figure)


def differences_figure(result: Mapping[str, Any]) -> bytes | None:
    """A panel a measure: difference from the reference with its interval; None where there is nothing to compare."""
    rows = [row for row in result["rows"] if row["name"] != result["reference"]]
    if not rows:
        return None
    with mpl.rc_context(STYLE):
        figure, axes = _panels(result, rows)
        for ax, measure in zip(axes, result["measures"], strict=True):
            ax.axvline(0, color="black", lw=0.8)
            for i, row in enumerate(rows):
                entry = row["difference"].get(measure["name"])
                if entry is None:
                    _not_there(ax, i)
                    continue
                color, marker = MARKS.get(entry["claim"], (SAME, "o"))
                if entry["ci95"][0] is not None:
                    ax.plot(entry["ci95"], [i, i], "-", color=color, lw=1.4)
                ax.plot(entry["difference"], i, marker, color=color, ms=6)
        figure.supxlabel(
            f"difference from {_reference_title(result)} on the same cases, 95 % interval; "
            "blue triangle up: better, orange triangle down: worse, gray dot: equal or not settled",
            fontsize=8.5,
        )
        return png(figure)


def _reference_title(result: Mapping[str, Any]) -> str:
    return next(title(result, row) for row in result["rows"] if row["name"] == result["reference"])


def write(result: Mapping[str, Any], out: str | Path, name: str) -> None:
    """Write ``<name>.json``, model_comparison.csv, model_comparison.png, paired_differences.png and section.html.

    Args:
        result: of `scripts.comparison.comparison.compare`.
        out: folder.
        name: "comparison" or "ablation".
    """
    out = Path(out)
    write_json(result, out / f"{name}.json")
    write_csv(csv_rows(result), out / "model_comparison.csv")
    write_bytes(values_figure(result), out / "model_comparison.png")
    changes = differences_figure(result)
    if changes is not None:
        write_bytes(changes, out / "paired_differences.png")
    write_text(section(Document(out, f"{name}.json")), out / "section.html")


def section(document: Document) -> str:
    """A part of a page that needs no other file; every number by `Document.number`.

    Args:
        document: comparison.json or ablation.json; its pictures lie beside it.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    result, out = document.content, document.path.parent
    names = [p for p in ("model_comparison.png", "paired_differences.png") if (out / p).is_file()]
    pictures = {p: png_uri((out / p).read_bytes()) for p in names}
    return environment.get_template("comparison_section.html.j2").render(
        document=document,
        result=result,
        rows=list(enumerate(result["rows"])),
        short=SHORT,
        title=lambda row: title(result, row),
        map_title=map_title,
        words=words,
        reference=_reference_title(result),
        pictures=pictures,
    )
