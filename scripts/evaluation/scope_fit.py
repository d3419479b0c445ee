"""Fit what the training images of a run look like, beside foreign ones that are drawn or made of them.

    python -m scripts scope --run_dir RUN --dataset_dir DIR --datalist_file LIST.json

writes ``scope.npz`` beside the weights, where inference finds it; after every training, again. Without a run it is that
of the shipped weights.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from scripts.command.verbs import Outcome, inference_overlays
from scripts.data.preprocessing import Pipeline
from scripts.evaluation.contrasts import FITTED as CONTRASTS
from scripts.evaluation.contrasts import changed
from scripts.evaluation.items import evaluated_items
from scripts.evaluation.outsiders import FITTED as DRAWN
from scripts.evaluation.outsiders import OUTSIDERS
from scripts.inference import scope
from scripts.inference.inferers import input_channels, spatial_dims
from scripts.inference.pipeline import Inference
from scripts.inference.scope_features import features, probe
from scripts.runs.folder import read_datalist

__all__ = [
    "changed_pair",
    "drawn_items",
    "execute",
    "features_of",
    "fit_scope",
    "item_features",
    "prepared_items",
]

COUNT = 24  # pictures of each drawn kind
LIMIT = 400  # images of the training and of the validation part

Prepared = Mapping[str, Any]
Pair = tuple[Any, Any]  # a prepared image (C, *size) and its foreground (1, *size)


def prepared_items(
    items: Sequence[Mapping[str, Any]], transform: Pipeline, desc: str = ""
) -> Iterator[tuple[int, Prepared | str]]:
    """Index and what the pipeline makes of each item, or the reason why it is refused."""
    for index, item in enumerate(tqdm(items, desc=desc, disable=not desc)):
        data = {key: item[key] for key in ("image", "slice", "plane", "foreground", "name") if key in item}
        try:
            yield index, transform(data)
        except ValueError as error:
            yield index, str(error)


def features_of(network: Any, batch: Sequence[Pair]) -> NDArray[np.float64]:
    """Features (N, F) of prepared images."""
    device = next(network.parameters()).device
    image, foreground = (torch.stack([torch.as_tensor(pair[i]) for pair in batch]) for i in (0, 1))
    return features(network, image.float().to(device), foreground.to(device))


def item_features(
    network: Any,
    items: Sequence[Mapping[str, Any]],
    transform: Pipeline,
    batch_size: int = 16,
    desc: str = "",
    changes: Sequence[str] = (),
) -> tuple[NDArray[np.float64], list[int], list[str]]:
    """Features of the items that the pipeline takes.

    Args:
        network: in evaluation mode.
        items: with absolute paths or arrays.
        transform: of the run's preprocessing.
        batch_size: images at once.
        desc: of the progress bar; "" for none.
        changes: of `scripts.evaluation.contrasts.CHANGES`: features of each item changed by one of them, in turn,
            follow those of all items.

    Returns:
        features (N, F), or (2 N, F) with changes, the indices of the N items, and the reasons why others were refused.
    """
    kept: list[int] = []
    reasons: list[str] = []
    unchanged: list[NDArray[np.float64]] = []
    other: list[NDArray[np.float64]] = []
    waiting: list[Pair] = []

    def measure() -> None:
        """Features of those that wait: whole volumes of all cases would fill the memory."""
        if waiting:
            unchanged.append(features_of(network, waiting))
        if waiting and changes:
            first = len(kept) - len(waiting)
            names = [changes[(first + i) % len(changes)] for i in range(len(waiting))]
            pairs = [
                changed_pair(pair, name, first + i) for i, (pair, name) in enumerate(zip(waiting, names, strict=True))
            ]
            other.append(features_of(network, pairs))
        waiting.clear()

    for index, item in prepared_items(items, transform, desc):
        if isinstance(item, str):
            reasons.append(item)
            continue
        kept.append(index)
        waiting.append((item["image"], item["foreground"]))
        if len(waiting) == batch_size:
            measure()
    measure()
    return np.concatenate([*unchanged, *other]) if unchanged else np.empty((0, 0)), kept, reasons


def changed_pair(pair: Pair, change: str, seed: int) -> Pair:
    """A prepared image and its foreground after one of `scripts.evaluation.contrasts.CHANGES`."""
    image, foreground = (torch.as_tensor(x).numpy() for x in pair)
    image, inside = changed(change, image, foreground[0], np.random.default_rng(seed))
    return torch.from_numpy(image), torch.from_numpy(inside[None].astype(np.uint8))


def drawn_items(kinds: Sequence[str], channels: int = 1, count: int = COUNT, first: int = 0) -> list[dict[str, Any]]:
    """Items of `scripts.evaluation.outsiders.OUTSIDERS`, 2D; every channel shows the same picture.

    Args:
        kinds: of the outsiders.
        channels: of the network.
        count: of each kind.
        first: seed of the first; a fit takes those from 0 to `COUNT`.
    """
    return [
        {
            "image": np.repeat(OUTSIDERS[kind](seed)[None].astype(np.float32), channels, axis=0),
            "name": f"{kind} {seed}",
        }
        for kind in kinds
        for seed in range(first, first + count)
    ]


def fit_scope(
    network: Any,
    datalist: Mapping[str, Any],
    dataset_dir: str,
    transform: Pipeline,
    limit: int | None = LIMIT,
    batch_size: int = 16,
) -> scope.Scope:
    """Fit a scope on training and validation images, at most ``limit`` of each, the classes as equal as they allow.

    A class that is rare in the training would otherwise be flagged more often than the others. The foreign images are
    the training images changed, one of the fitted `contrasts` each, and the fitted `outsiders`; the limit of a picture
    comes from validation images changed alike, and further `outsiders`.

    Raises:
        TooFewImages: when a part has fewer than 20, before any is read, or fewer that the pipeline takes.
    """
    clean, foreign = {}, {}
    parts = {part: balanced(evaluated_items(datalist, part, dataset_dir), limit) for part in ("training", "validation")}
    for part, chosen in parts.items():
        scope.check_enough(part, len(chosen))
    for number, (part, chosen) in enumerate(parts.items()):
        values, kept, _ = item_features(network, chosen, transform, batch_size, f"scope, {part}", list(CONTRASTS))
        clean[part], foreign[part] = values[: len(kept)], values[len(kept) :]
        if spatial_dims(network) == 2 and len(kept):
            pictures = drawn_items(list(DRAWN), input_channels(network), first=COUNT * number)
            drawn, _, _ = item_features(network, pictures, transform, batch_size)
            foreign[part] = np.concatenate([foreign[part], drawn]) if len(drawn) else foreign[part]
    return scope.fit(clean["training"], clean["validation"], foreign["training"], probe(network), foreign["validation"])


def balanced(items: Sequence[Mapping[str, Any]], limit: int | None) -> list[Mapping[str, Any]]:
    """At most ``limit`` items, in turn of their classes, drawn by a fixed seed; all for None."""
    waiting: dict[Any, list[Mapping[str, Any]]] = {}
    for i in np.random.default_rng(0).permutation(len(items)):
        waiting.setdefault(items[i].get("diagnosis", -1), []).append(items[i])
    turns = max(map(len, waiting.values()), default=0)
    classes = [waiting[key] for key in sorted(waiting)]
    return [members[turn] for turn in range(turns) for members in classes if turn < len(members)][:limit]


def execute(arguments: argparse.Namespace) -> Outcome:
    """The verb ``scope``."""
    inference = Inference(weights=arguments.weights, overlay=inference_overlays(arguments), device=arguments.device)
    datalist = read_datalist(str(arguments.datalist_file), str(arguments.dataset_dir))
    pipeline = inference.preprocessing[0].pipeline
    fitted = fit_scope(inference.network, datalist, str(arguments.dataset_dir), pipeline, arguments.limit or LIMIT)
    file = inference.weights.parent / scope.FILE
    fitted.save(file)
    text = f"fitted on {fitted.training} training, {fitted.validation} validation and {fitted.foreign} foreign images"
    return Outcome(text, [file])
