"""Trained models beside each other: one row each, means over seeds, and differences on the same cases."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scripts.comparison.trained_models import MEASURES, Key, Measure, Model, check_comparable
from scripts.measures import claims
from scripts.measures.intervals import auc_values, recall_values

__all__ = ["compare", "difference", "value_of"]


def _labels(model: Model, keys: Sequence[Key]) -> tuple[NDArray, NDArray, NDArray]:
    rows = [model.cases[key] for key in keys]
    diagnosis = np.array([int(row["diagnosis"]) for row in rows])
    predicted = np.array([int(row["predicted"]) for row in rows])
    return diagnosis, predicted, np.array([float(row["tumor_probability"]) for row in rows])


def _keys(model: Model, measure: Measure) -> list[Key]:
    """The cases that a measure is over: of a diagnosis those whose diagnosis is known."""
    keys = sorted(model.maps if measure.maps else model.cases)
    if measure.name in ("balanced_accuracy", "roc_auc"):
        keys = [key for key in keys if int(model.cases[key]["diagnosis"]) >= 0]
    return keys


def value_of(model: Model, measure: Measure) -> tuple[float | None, int]:
    """A measure of one model and the number of cases that it is over; None where nothing defines it."""
    values = _by_case(model, measure, _keys(model, measure))
    values = values[np.isfinite(values)]
    return (float(values.mean()) if len(values) else None), len(values)


def _clusters(model: Model, keys: Sequence[Key]) -> list[str]:
    return [
        model.cases[key].get("cluster") or model.cases[key].get("unit") or f"{key[0]}: {model.cases[key]['patient']}"
        for key in keys
    ]


def _by_case(model: Model, measure: Measure, keys: Sequence[Key]) -> NDArray[np.float64]:
    """One value a case (N,) whose mean is the measure; NaN where a case does not define it."""
    if not keys or measure.name not in ("balanced_accuracy", "roc_auc"):
        return model.column(measure, keys)
    diagnosis, predicted, probability = _labels(model, keys)
    if measure.name == "balanced_accuracy":
        return recall_values(diagnosis, predicted)
    tumor = diagnosis > 0
    return auc_values(tumor, probability) if 0 < tumor.sum() < len(tumor) else np.full(len(keys), np.nan)


def difference(
    ours: Sequence[Model], reference: Sequence[Model], measure: Measure
) -> tuple[dict[str, Any], claims.Difference] | None:
    """Mean of `ours` minus mean of `reference` on the same cases, with the interval of that difference.

    Seeds that both have are paired; where they share none, the means over all of each side are.

    Returns:
        ({difference, ci95, by_seed, seeds, n}, what `claims.verdict` needs); None where one side was not trained for
        it, or no case defines it.
    """
    if not all(model.has(measure) for model in (*ours, *reference)):
        return None
    shared = sorted({m.seed for m in ours} & {m.seed for m in reference})
    a, b = (
        sorted((m for m in side if not shared or m.seed in shared), key=lambda m: m.seed) for side in (ours, reference)
    )
    keys = _keys(b[0], measure)
    if not keys:
        return None
    sides = [np.stack([_by_case(m, measure, keys) for m in side]) for side in (a, b)]
    defined = np.isfinite(sides[0]).all(axis=0) & np.isfinite(sides[1]).all(axis=0)
    if not defined.any():
        return None
    sides = [side[:, defined] for side in sides]
    clusters = _clusters(b[0], [keys[i] for i in np.flatnonzero(defined)])
    by_seed = (sides[0].mean(axis=1) - sides[1].mean(axis=1)).tolist() if shared else None
    if not shared:
        sides = [side.mean(axis=0, keepdims=True) for side in sides]
    measured = claims.difference_of(sides[0], sides[1], clusters)
    row = {
        "difference": measured.difference,
        "ci95": measured.ci95,
        "by_seed": by_seed,
        "seeds": shared,
        "n": int(defined.sum()),
        "groups": measured.groups,
    }
    return row, measured


def compare(models: Sequence[Model], reference: str | None = None) -> dict[str, Any]:
    """Content of comparison.json.

    Args:
        models: any order; those of one name are seeds of one row.
        reference: name of the row that the others are compared with; None: the first.

    Raises:
        ValueError: when the models can not be compared, or the reference is not among them.
    """
    if not models:
        raise ValueError("no run to compare")
    check_comparable(models)
    rows: dict[str, list[Model]] = {}
    for model in models:
        rows.setdefault(model.name, []).append(model)
    reference = next(iter(rows)) if reference is None else reference
    if reference not in rows:
        raise ValueError(f"reference is one of {', '.join(rows)}, got {reference!r}")
    table = [_row(name, of_row) for name, of_row in rows.items()]
    differences = [
        (row, measure, result)
        for row in table
        for measure in MEASURES
        if row["name"] != reference and "missing" not in row["measures"][measure.name]
        if (result := difference(rows[row["name"]], rows[reference], measure)) is not None
    ]
    said = claims.verdicts(
        [measured for _, _, (_, measured) in differences],
        [measure.higher for _, measure, _ in differences],
        [measure.margin for _, measure, _ in differences],
    )
    for (row, measure, (entry, _)), claim in zip(differences, said, strict=True):
        row["difference"][measure.name] = entry | claim
    return {
        "reference": reference,
        "measures": [
            {"name": m.name, "label": m.label, "higher_is_better": m.higher, "kind": m.kind, "margin": m.margin}
            for m in MEASURES
        ],
        "rows": table,
        "differences": f"row minus reference on the same cases, the seeds that both have; {claims.METHOD}; “equal” "
        "where the 95 % interval lies within the margin",
        "claims": len(differences),
        "machines": sorted({model.machine for model in models}),
        "datalist_sha256": models[0].datalist,
    }


def _row(name: str, models: Sequence[Model]) -> dict[str, Any]:
    models = sorted(models, key=lambda model: model.seed)
    first = models[0]
    seconds = [model.seconds for model in models]
    row: dict[str, Any] = {
        "name": name,
        "folders": [str(model.folder) for model in models],
        "seeds": [model.seed for model in models],
        "tasks": sorted(first.tasks),
        "parameters": first.parameters,
        "training_seconds": float(np.mean(seconds)),
        "map": None if first.method is None else {"method": first.method, "layer": first.layer},
        "notes": sorted({note for model in models for note in model.notes}),
        "measures": {},
        "difference": {},
    }
    for measure in MEASURES:
        if not first.has(measure):
            row["measures"][measure.name] = {"missing": f"not trained for {measure.task}"}
            continue
        measured = [value_of(model, measure) for model in models]
        values = [value for value, _ in measured if value is not None]
        if len(values) < len(models):
            row["measures"][measure.name] = {"missing": "no case defines it"}
            continue
        row["measures"][measure.name] = {
            "mean": float(np.mean(values)),
            "min": min(values),
            "max": max(values),
            "by_seed": values,
            "n": measured[0][1],
        }
    return row
