"""Trained models beside each other: one row each, means over seeds, and differences on the same cases."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score

from scripts.comparison.trained_models import MEASURES, Key, Measure, Model, check_comparable
from scripts.measures.bootstrap import Resamples, interval
from scripts.measures.metrics import balanced_accuracy

__all__ = ["compare", "difference", "value_of"]


def _labels(model: Model, keys: Sequence[Key]) -> tuple[NDArray, NDArray, NDArray]:
    rows = [model.cases[key] for key in keys]
    diagnosis = np.array([int(row["diagnosis"]) for row in rows])
    predicted = np.array([int(row["predicted"]) for row in rows])
    return diagnosis, predicted, np.array([float(row["tumor_probability"]) for row in rows])


def value_of(model: Model, measure: Measure) -> tuple[float | None, int]:
    """A measure of one model and the number of cases that it is over; None where nothing defines it."""
    keys = sorted(model.maps if measure.maps else model.cases)
    if measure.name in ("balanced_accuracy", "roc_auc"):
        keys = [key for key in keys if int(model.cases[key]["diagnosis"]) >= 0]
        diagnosis, predicted, probability = _labels(model, keys)
        if measure.name == "balanced_accuracy":
            return (balanced_accuracy(diagnosis, predicted) if keys else None), len(keys)
        both = 0 < (diagnosis > 0).sum() < len(keys)
        return (float(roc_auc_score(diagnosis > 0, probability)) if both else None), len(keys)
    values = model.column(measure, keys)
    values = values[np.isfinite(values)]
    return (float(values.mean()) if len(values) else None), len(values)


def _units(model: Model, keys: Sequence[Key]) -> list[str]:
    return [model.cases[key].get("unit") or f"{key[0]}: {model.cases[key]['patient']}" for key in keys]


def difference(ours: Sequence[Model], reference: Sequence[Model], measure: Measure) -> dict[str, Any] | None:
    """Mean of `ours` minus mean of `reference` on the same cases, with the interval of that difference.

    Seeds that both have are paired (all are taken where they share none). Patients, or near-duplicate groups, are
    resampled, the same ones for both sides; the networks stay as they are, so the interval says nothing about what
    another training would give: `by_seed` does.

    Returns:
        {difference, ci95, by_seed, seeds, n, better: whether the interval lies on the good side of 0, worse}; None
        where one side was not trained for it, or no case defines it.
    """
    if not all(model.has(measure) for model in (*ours, *reference)):
        return None
    shared = sorted({m.seed for m in ours} & {m.seed for m in reference})
    a, b = ([m for m in side if not shared or m.seed in shared] for side in (ours, reference))
    a, b = sorted(a, key=lambda m: m.seed), sorted(b, key=lambda m: m.seed)
    keys = sorted(b[0].maps if measure.maps else b[0].cases)
    if measure.name in ("balanced_accuracy", "roc_auc"):
        keys = [key for key in keys if int(b[0].cases[key]["diagnosis"]) >= 0]
        found = [[value_of(m, measure)[0] for m in side] for side in (a, b)]
        values = [[v for v in side if v is not None] for side in found]
        if not keys or values != found:
            return None
        drawn = Resamples(_units(b[0], keys))
        classes = 1 + max(int(max(*_labels(m, keys)[0], *_labels(m, keys)[1])) for m in (*a, *b))
        sides = [np.mean([_resampled(m, measure, keys, drawn, classes) for m in side], axis=0) for side in (a, b)]
        means, samples = [float(np.mean(side)) for side in values], sides[0] - sides[1]
        pairs = len(keys)
    else:
        columns = [np.stack([m.column(measure, keys) for m in side]) for side in (a, b)]
        defined = np.isfinite(columns[0]).all(axis=0) & np.isfinite(columns[1]).all(axis=0)
        pairs = int(defined.sum())
        if not pairs:
            return None
        columns = [column[:, defined] for column in columns]
        chosen = [keys[i] for i in np.flatnonzero(defined)]
        values = [[float(v) for v in column.mean(axis=1)] for column in columns]
        means = [float(np.mean(side)) for side in values]
        samples = Resamples(_units(b[0], chosen)).mean(columns[0].mean(axis=0) - columns[1].mean(axis=0))
    change, limits = means[0] - means[1], interval(samples)
    low, high = limits if measure.higher else [None if v is None else -v for v in reversed(limits)]
    return {
        "difference": change,
        "ci95": limits,
        "by_seed": [x - y for x, y in zip(*values, strict=True)] if shared else None,
        "seeds": shared,
        "n": pairs,
        "better": low is not None and low > 0,
        "worse": high is not None and high < 0,
    }


def _resampled(
    model: Model, measure: Measure, keys: Sequence[Key], drawn: Resamples, classes: int
) -> NDArray[np.float64]:
    diagnosis, predicted, probability = _labels(model, keys)
    if measure.name == "roc_auc":
        return drawn.auc(diagnosis > 0, probability)
    confusion = drawn.confusion(diagnosis, predicted, classes)
    with np.errstate(invalid="ignore", divide="ignore"):
        recall = np.diagonal(confusion, axis1=1, axis2=2) / confusion.sum(axis=2)
    return np.nanmean(recall, axis=1)


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
    return {
        "reference": reference,
        "measures": [
            {"name": m.name, "label": m.label, "higher_is_better": m.higher, "kind": m.kind} for m in MEASURES
        ],
        "rows": [_row(name, own, rows[reference]) for name, own in rows.items()],
        "differences": "row minus reference on the same cases, the seeds that both have; 95 % percentile bootstrap by "
        "patient, or near-duplicate group where it is unknown",
        "machines": sorted({model.machine for model in models}),
        "datalist_sha256": models[0].datalist,
    }


def _row(name: str, own: Sequence[Model], reference: Sequence[Model]) -> dict[str, Any]:
    own = sorted(own, key=lambda model: model.seed)
    first = own[0]
    seconds = [model.seconds for model in own]
    row: dict[str, Any] = {
        "name": name,
        "folders": [str(model.folder) for model in own],
        "seeds": [model.seed for model in own],
        "tasks": sorted(first.tasks),
        "parameters": first.parameters,
        "training_seconds": float(np.mean(seconds)),
        "map": None if first.method is None else {"method": first.method, "layer": first.layer},
        "notes": sorted({note for model in own for note in model.notes}),
        "measures": {},
        "difference": {},
    }
    for measure in MEASURES:
        if not first.has(measure):
            row["measures"][measure.name] = {"missing": f"not trained for {measure.task}"}
            continue
        found = [value_of(model, measure) for model in own]
        values = [value for value, _ in found if value is not None]
        if len(values) < len(own):
            row["measures"][measure.name] = {"missing": "no case defines it"}
            continue
        row["measures"][measure.name] = {
            "mean": float(np.mean(values)),
            "min": min(values),
            "max": max(values),
            "by_seed": values,
            "n": found[0][1],
        }
        if name != reference[0].name:
            row["difference"][measure.name] = difference(own, reference, measure)
    return row
