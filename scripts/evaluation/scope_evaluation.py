"""scope.npz and scope.json of a run: what its training images look like, and whether others differ from them."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scripts.command.files import write_json
from scripts.data.datalists.clusters import clusters as clusters_of
from scripts.data.preprocessing import Pipeline
from scripts.evaluation.contrasts import CHANGES
from scripts.evaluation.contrasts import HELD_OUT as UNSEEN
from scripts.evaluation.items import EvaluationDataset, evaluated_items
from scripts.evaluation.outsiders import HELD_OUT as UNDRAWN
from scripts.evaluation.outsiders import OUTSIDERS
from scripts.evaluation.scope_fit import (
    COUNT,
    changed_pair,
    drawn_items,
    features_of,
    fit_scope,
    item_features,
    prepared_items,
)
from scripts.evaluation.uncertainty_evaluation import draw
from scripts.inference import scope
from scripts.inference.inferers import input_channels, spatial_dims
from scripts.measures.intervals import auc, auc_interval
from scripts.runs.folder import last_stage, read_datalist

logger = logging.getLogger(__name__)

DRAWN = 16  # pictures of each kind of `OUTSIDERS`, and images changed by each of `CHANGES`


@dataclass
class OutsideImages:
    """Images of one kind that the network should not be asked about.

    Attributes:
        name, kind: what it is called, and "images" (from elsewhere), "changed" or "drawn".
        left_out: whether no scope is fitted with this kind.
        values: (N, F) features of those that the pipeline takes.
        clusters: patients, near-duplicate groups or images of which neither is known.
        refusals: the reasons why the others were refused.
    """

    name: str
    kind: str
    left_out: bool
    values: NDArray[np.float64]
    clusters: list[str]
    refusals: list[str]


def foreign_images(
    network: Any,
    items: Sequence[Mapping[str, Any]],
    transform: Pipeline,
    outside: Mapping[str, Mapping[str, str]],
    batch_size: int = 16,
    count: int = DRAWN,
) -> Iterator[OutsideImages]:
    """Every kind of foreign images: those from elsewhere, items changed by each contrast, and drawn ones (2D).

    Args:
        network: in evaluation mode.
        items: like those of the training, but not of it.
        transform: of the run's preprocessing.
        outside: see `outside_items`.
        batch_size: images at once.
        count: of each kind that is made.
    """
    for name, others in outside_items(outside):
        features, at, refusals = item_features(network, others, transform, batch_size)
        owners = clusters_of(others)
        yield OutsideImages(name, "images", True, features, [owners[i] for i in at], refusals)
    prepared = [item for _, item in prepared_items(items[:: max(1, len(items) // count)], transform)]
    pairs = [(item["image"], item["foreground"]) for item in prepared if not isinstance(item, str)]
    for name in CHANGES if pairs else ():
        made = [changed_pair(pair, name, 10_000 + i) for i, pair in enumerate(pairs)]
        parts = [features_of(network, made[i : i + batch_size]) for i in range(0, len(made), batch_size)]
        yield OutsideImages(
            name, "changed", name in UNSEEN, np.concatenate(parts), [f"{name} {i}" for i in range(len(made))], []
        )
    channels = input_channels(network)
    for name in OUTSIDERS if spatial_dims(network) == 2 else ():
        drawn = drawn_items([name], channels, count, first=COUNT)
        features, at, refusals = item_features(network, drawn, transform, batch_size)
        yield OutsideImages(name, "drawn", name in UNDRAWN, features, [drawn[i]["name"] for i in at], refusals)


def outside_items(outside: Mapping[str, Mapping[str, str]]) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """Name and items of each datalist {name: {datalist_file, dataset_dir}} of images from elsewhere, all parts."""
    for name, paths in outside.items():
        datalist = read_datalist(paths.get("datalist_file"), paths.get("dataset_dir"))
        yield name, evaluated_items(datalist, "all", paths["dataset_dir"])


def compare(
    inside: NDArray, inside_clusters: Sequence[str], outside: NDArray, outside_clusters: Sequence[str], refused: int
) -> dict[str, Any]:
    """Figures of one kind of outside images.

    Args:
        inside, outside: scores.
        inside_clusters, outside_clusters: patients, near-duplicate groups, or images of which neither is known.
        refused: how many the pipeline did not take: they are recognized, without a score.

    Returns:
        {n, refused, flagged: how many score above 1, recognized: share refused or flagged, auroc of the scored
        ones with interval, None where none is scored}.
    """
    total = len(outside) + refused
    flagged = int((outside > 1).sum())
    metrics: dict[str, Any] = {
        "n": total,
        "refused": refused,
        "flagged": flagged,
        "recognized": (refused + flagged) / total,
        "auroc": None,
        "auroc_ci95": [None, None],
    }
    if len(outside):
        target = np.repeat([False, True], [len(inside), len(outside)])
        scores = np.concatenate([inside, outside])
        clusters = [f"in {u}" for u in inside_clusters] + [f"out {u}" for u in outside_clusters]
        metrics["auroc"] = auc(target, scores)
        metrics["auroc_ci95"] = auc_interval(target, scores, clusters)
    return metrics


def write_scope(
    network: Any,
    run_dir: str | Path,
    dataset: EvaluationDataset,
    transform: Pipeline,
    folder: str | Path,
    datalist: Mapping[str, Any],
    dataset_dir: str,
    own_datalist: bool,
    outside: Mapping[str, Mapping[str, str]] | None = None,
    cases: int | None = 200,
    batch_size: int = 16,
) -> dict[str, Any]:
    """Write scope.json, and scope.npz beside the weights where it is not there yet.

    Where there is none and it can not be fitted (too few images, or not the run's own datalist), scope.json says why
    under "unavailable" and holds nothing else. Whole volumes are not compared with drawn images, which are 2D.

    Args:
        network: in evaluation mode.
        run_dir: whose last stage keeps scope.npz.
        dataset: of the evaluated part, the inside.
        transform: of the run's preprocessing, without labels.
        folder: ``runs/<run>/evaluation``.
        datalist, dataset_dir: what is evaluated.
        own_datalist: whether that is the run's own datalist: only then a scope can be fitted here.
        outside: {name: {datalist_file, dataset_dir}} of images from elsewhere, beside the drawn ones.
        cases: at most so many evaluated images, drawn by a fixed seed; None: all.
        batch_size: images at once.
    """
    stage = last_stage(run_dir)
    try:
        if own_datalist and not scope.is_current(stage, network):
            fit_scope(network, datalist, dataset_dir, transform, batch_size=batch_size).save(stage / scope.FILE)
        reference = scope.load(stage)
    except (scope.TooFewImages, scope.OldScope, FileNotFoundError) as error:
        logger.warning("scope not measured: %s", error)
        unavailable = {"unavailable": str(error)}
        write_json(unavailable, Path(folder) / "scope.json")
        return unavailable
    items = [dataset.data[i] for i in draw(dataset, cases)]
    values, kept, reasons = item_features(network, items, transform, batch_size)
    scores = reference.score(values)
    clusters = clusters_of([items[i] for i in kept])
    result: dict[str, Any] = {
        "limit_quantile": scope.QUANTILE,
        "training": reference.training,
        "validation": reference.validation,
        "inside": {"n": len(items), "refused": len(reasons), "flagged": float((scores > 1).mean())},
        "outside": [],
    }
    for foreign in foreign_images(network, items, transform, outside or {}, batch_size):
        away = reference.score(foreign.values) if len(foreign.values) else np.empty(0)
        figures = compare(scores, clusters, away, foreign.clusters, len(foreign.refusals))
        about = {"name": foreign.name, "kind": foreign.kind, "left_out_of_fit": foreign.left_out}
        result["outside"].append({**about, **figures, "reasons": sorted(set(foreign.refusals))[:1]})
    write_json(result, Path(folder) / "scope.json")
    return result
