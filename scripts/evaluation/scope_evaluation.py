"""scope.npz and scope.json of a run: what its training images look like, and whether others differ from them."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.transforms import Compose
from numpy.typing import NDArray
from tqdm import tqdm

from scripts.data import datalists
from scripts.evaluation.items import EvaluationDataset, evaluated_items
from scripts.evaluation.outsiders import OUTSIDERS
from scripts.evaluation.uncertainty_evaluation import draw
from scripts.inference import scope
from scripts.inference.inferers import spatial_dims
from scripts.measures.intervals import auc, auc_interval
from scripts.runs.folder import last_stage, read_datalist, write_json

logger = logging.getLogger(__name__)

DRAWN = 16  # pictures of each kind of `OUTSIDERS`


def item_features(
    network: Any, items: Sequence[Mapping[str, Any]], transform: Compose, batch_size: int = 16, desc: str = ""
) -> tuple[NDArray[np.float64], list[int], list[str]]:
    """Features of the items that the pipeline takes.

    Args:
        network: in evaluation mode.
        items: with absolute paths or arrays.
        transform: of the run's preprocessing.
        batch_size: images at once.
        desc: of the progress bar; "" for none.

    Returns:
        features (N, F), the indices of those items, and the reasons why the others were refused.
    """
    device, kept, reasons = next(network.parameters()).device, [], []
    waiting: list[Mapping[str, Any]] = []
    found: list[NDArray[np.float64]] = []

    def measure() -> None:
        """Features of those that wait: whole volumes of all cases would fill the memory."""
        image, foreground = (torch.stack([torch.as_tensor(x[key]) for x in waiting]) for key in ("image", "foreground"))
        found.append(scope.features(network, image.float().to(device), foreground.to(device)))
        waiting.clear()

    for index, item in enumerate(tqdm(items, desc=desc, disable=not desc)):
        given = {key: item[key] for key in ("image", "slice", "plane", "foreground", "name") if key in item}
        try:
            waiting.append(transform(given))
            kept.append(index)
        except ValueError as error:
            reasons.append(str(error))
        if len(waiting) == batch_size:
            measure()
    if waiting:
        measure()
    return np.concatenate(found) if found else np.empty((0, 0)), kept, reasons


def fit_scope(
    network: Any,
    datalist: Mapping[str, Any],
    dataset_dir: str,
    transform: Compose,
    limit: int | None = 400,
    batch_size: int = 16,
) -> scope.Scope:
    """Fit a scope on training and validation images, at most ``limit`` of each, drawn by a fixed seed."""
    found = []
    for part in ("training", "validation"):
        items = evaluated_items(datalist, part, dataset_dir)
        chosen = [items[i] for i in draw(items, limit)]
        found.append(item_features(network, chosen, transform, batch_size, f"scope, {part}")[0])
    return scope.fit(found[0], found[1], scope.probe(network))


def outside_items(outside: Mapping[str, Mapping[str, str]]) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """Name and items of each datalist {name: {datalist_file, dataset_dir}} of images from elsewhere, all parts."""
    for name, where in outside.items():
        datalist = read_datalist(where.get("datalist_file"), where.get("dataset_dir"))
        yield name, evaluated_items(datalist, "all", where["dataset_dir"])


def drawn_items(channels: int = 1) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """The same for `OUTSIDERS`, 2D; every channel shows the same picture."""
    for name, picture in OUTSIDERS.items():
        arrays = [np.repeat(picture(seed)[None].astype(np.float32), channels, axis=0) for seed in range(DRAWN)]
        yield name, [{"image": array, "name": f"{name} {i}"} for i, array in enumerate(arrays)]


def compare(
    inside: NDArray, inside_units: Sequence[str], outside: NDArray, outside_units: Sequence[str], refused: int
) -> dict[str, Any]:
    """Figures of one kind of outside images.

    Args:
        inside, outside: scores.
        inside_units, outside_units: patients, near-duplicate groups or volumes.
        refused: how many the pipeline did not take: they are recognized, without a score.

    Returns:
        {n, refused, flagged: how many score above 1, recognized: share refused or flagged, auroc of the scored
        ones with interval, None where none is scored}.
    """
    total = len(outside) + refused
    flagged = int((outside > 1).sum())
    found: dict[str, Any] = {
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
        units = [f"in {u}" for u in inside_units] + [f"out {u}" for u in outside_units]
        found["auroc"] = auc(target, scores)
        found["auroc_ci95"] = auc_interval(target, scores, units)
    return found


def write_scope(
    network: Any,
    run_dir: str | Path,
    dataset: EvaluationDataset,
    transform: Compose,
    folder: str | Path,
    datalist: Mapping[str, Any],
    dataset_dir: str,
    own: bool,
    outside: Mapping[str, Mapping[str, str]] | None = None,
    cases: int | None = 200,
    batch_size: int = 16,
) -> dict[str, Any]:
    """Write scope.json, and scope.npz beside the weights where it is not there yet.

    Where there is none and it can not be fitted (too few images, or not the run's own datalist), scope.json says why
    under "unavailable" and holds nothing else. Whole volumes are compared with those of ``outside`` alone: the drawn
    images are 2D.

    Args:
        network: in evaluation mode.
        run_dir: whose last stage keeps scope.npz.
        dataset: of the evaluated part, the inside.
        transform: of the run's preprocessing, without labels.
        folder: ``runs/<run>/evaluation``.
        datalist, dataset_dir: what is evaluated.
        own: whether that is the run's own datalist: only then a scope can be fitted here.
        outside: {name: {datalist_file, dataset_dir}} of images from elsewhere, beside the drawn ones.
        cases: at most so many evaluated images, drawn by a fixed seed; None: all.
        batch_size: images at once.
    """
    stage = last_stage(run_dir)
    try:
        if own and not scope.is_current(stage, network):
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
    units = datalists.units([items[i] for i in kept])
    result: dict[str, Any] = {
        "limit_quantile": scope.QUANTILE,
        "training": reference.training,
        "validation": reference.validation,
        "inside": {"n": len(items), "refused": len(reasons), "flagged": float((scores > 1).mean())},
        "outside": [],
    }
    channels = next(p for p in network.parameters() if p.ndim > 2).shape[1]
    drawn = drawn_items(channels) if spatial_dims(network) == 2 else ()
    for kind, groups in (("images", outside_items(outside or {})), ("drawn", drawn)):
        for name, others in groups:
            found, at, refusals = item_features(network, others, transform, batch_size)
            away = reference.score(found) if len(found) else np.empty(0)
            where = [str(others[i].get("volume") or others[i].get("patient") or others[i]["name"]) for i in at]
            figures = compare(scores, units, away, where, len(refusals))
            result["outside"].append({"name": name, "kind": kind, **figures, "reasons": sorted(set(refusals))[:1]})
    write_json(result, Path(folder) / "scope.json")
    return result
