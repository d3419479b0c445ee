"""What may be said of two runs beside each other: the differences of their cases, and the claims that hold."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from scripts.comparison.comparison import compare
from scripts.comparison.trained_models import MEASURES, Key, Model
from scripts.measures.claims import sentence
from scripts.runs.documents import MISSING, optional
from scripts.runs.reading import Run

__all__ = ["claims_of"]


def claims_of(loaded: Sequence[Run]) -> tuple[list[dict[str, Any]], str]:
    """Claims about the first run beside the second.

    Args:
        loaded: the runs of a page.

    Returns:
        one entry a measure that both have: measure, label, kind, of, reference, difference, ci95, n, groups, margin,
        claim, false_probability, needed, sentence; and why there is none, "" where there are some, or only one run.
    """
    if len(loaded) < 2:
        return [], ""
    ours, reference = loaded[:2]
    try:
        rows = compare([_model(ours), _model(reference)], reference.key)["rows"]
    except ValueError as error:
        return [], str(error)
    differences = next(row["difference"] for row in rows if row["name"] == ours.key)
    entries = []
    for measure in MEASURES:
        if measure.name not in differences:
            continue
        entry = {
            "measure": measure.name,
            "label": measure.label,
            "kind": measure.kind,
            **{"of": ours.title, "reference": reference.title, "margin": measure.margin},
            **{key: value for key, value in differences[measure.name].items() if key not in ("by_seed", "seeds")},
        }
        entries.append(
            entry | {"sentence": sentence(measure.label.partition(",")[0], ours.title, reference.title, entry)}
        )
    return entries, "" if entries else "no measure is defined for both"


def _model(run: Run) -> Model:
    """A run as a comparison takes it, from the files that the page is made of."""
    last = run.stages[-1]
    explained = optional(run.folder, "explanations/cases.csv")
    maps: list[dict[str, str]] = []
    if explained is not None and run.diagnoses:
        wanted = {"method": run.method, "layer": run.layer, "target": run.target, "mask": "true"}
        maps = [row for row in explained.content if all(row.get(k, v) == v for k, v in wanted.items())]
    return Model(
        name=run.key,
        seed=int(last.manifest.value("/seed")),
        folder=run.folder,
        tasks=set(run.tasks),
        parameters=0,
        seconds=0.0,
        method=None,
        layer=None,
        cases=_by_case(run.cases.content),
        maps=_by_case(row for row in maps if row["tumor_area"] != "" and float(row["tumor_area"]) > 0),
        datalist=last.manifest.value("/datalist_sha256") or MISSING,
        evaluated=run.metrics.content.get("provenance", {}).get("datalist_sha256"),
        size=list(last.config.content["spatial_size"]),
    )


def _by_case(rows: Iterable[dict[str, str]]) -> dict[Key, dict[str, str]]:
    return {(row["source"], row["name"]): row for row in rows}
