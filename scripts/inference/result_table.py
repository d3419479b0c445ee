"""One table of all predictions: CSV for spreadsheets, JSON for programs, HTML with pictures for people."""

from __future__ import annotations

import csv
import html
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from scripts.command.files import write_json, write_text

__all__ = ["cell", "columns", "write_table"]

BEFORE = (
    "image", "name", "verdict", "tumor_detected", "tumor_probability", "threshold", "prevalence", "predicted_class",
)  # fmt: skip
RAW = ("raw_tumor_detected", "raw_predicted_class", "raw_tumor_voxels", "raw_evidence_maximum")
AFTER = ("plane", "slices_read", "tumor_voxels", "evidence_maximum", *RAW, "overlay", "flags", "status", "error")
PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>TumorLens predictions</title>
<style>
body {{ font: 15px/1.4 sans-serif; margin: 2em; color: #222 }}
table {{ border-collapse: collapse }}
th, td {{ border-bottom: 1px solid #ccc; padding: .4em .8em; text-align: left; vertical-align: top }}
td.number {{ text-align: right; font-variant-numeric: tabular-nums }}
img {{ max-height: 220px; max-width: 420px }}
</style></head><body>
<h1>TumorLens predictions</h1>
<p>{summary}</p>
<p>For research on imaging. Not a medical device, not for diagnosis, triage or treatment.</p>
<p>Color: evidence for a tumor on an absolute scale, dark blue to red-orange. Dashed magenta line: predicted mask.</p>
<table><thead><tr>{head}</tr></thead><tbody>
{rows}
</tbody></table></body></html>
"""


def columns(classes: Sequence[str]) -> list[str]:
    """Names of the columns; one a class, ``probability_<class>``."""
    return [*BEFORE, *(f"probability_{name}" for name in classes), *AFTER]


def write_table(rows: Sequence[Mapping[str, Any]], classes: Sequence[str], out: Path, summary: str) -> None:
    """Write results.csv, results.json and results.html, each whole or not at all.

    Args:
        rows: one an image, of the keys of `columns`.
        classes: names by index.
        out: folder of the results, which "overlay" is relative to.
        summary: a sentence above the table of the page.
    """
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, columns(classes))
    writer.writeheader()
    writer.writerows({key: cell(value) for key, value in row.items()} for row in rows)
    write_text(text.getvalue(), out / "results.csv")
    write_json([dict(row) for row in rows], out / "results.json")
    write_text(_page(rows, classes, summary), out / "results.html")


def cell(value: Any) -> Any:
    """What a spreadsheet would run as a formula, as the text that it is."""
    return f"'{value}" if isinstance(value, str) and value.startswith(("=", "+", "-", "@")) else value


def _page(rows: Sequence[Mapping[str, Any]], classes: Sequence[str], summary: str) -> str:
    head = ["image", "verdict", "tumor", *(name.replace("_", " ") for name in classes), "flags", "picture"]
    return PAGE.format(
        summary=html.escape(summary),
        head="".join(f"<th>{html.escape(name)}</th>" for name in head),
        rows="\n".join(_row(row, classes) for row in rows),
    )


def _row(row: Mapping[str, Any], classes: Sequence[str]) -> str:
    cells = [f"<td>{html.escape(str(row['name']))}</td>"]
    if row["error"]:
        cells.append(f'<td colspan="{len(classes) + 4}">not assessed: {html.escape(str(row["error"]))}</td>')
        return f"<tr>{''.join(cells)}</tr>"
    cells.append(f"<td>{html.escape(str(row['verdict']))}</td>")
    numbers = [row["tumor_probability"], *(row[f"probability_{name}"] for name in classes)]
    cells += [f'<td class="number">{number:.1%}</td>' for number in numbers]
    flags = ", ".join(code.replace("_", " ") for code in row["flags"].split())
    cells.append(f"<td>{html.escape(flags)}</td>")
    picture = f'<img loading="lazy" alt="overlay" src="{quote(row["overlay"])}">' if row["overlay"] else ""
    return f"<tr>{''.join(cells)}<td>{picture}</td></tr>"
