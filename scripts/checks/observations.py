"""What is measured of one image for the audit: features of its air, size, geometry and histogram, before and after the
pipeline; one by one, by any number of processes."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from scripts.data.datalists import schema as datalists
from scripts.data.preprocessing import Pipeline, make_preprocessing
from scripts.measures.shortcuts import air_features, geometry_features, histogram_features, size_features, subsample
from transforms.borders import OFFSET_KEY, on_image
from transforms.describe import Untraced
from transforms.foreground import ForegroundMaskd
from transforms.intensity import plain

__all__ = ["KINDS", "STAGES", "AuditJob", "chosen_items", "observe", "observer"]

logger = logging.getLogger(__name__)

KINDS = ("air", "size", "geometry", "histogram")
STAGES = ("before", "after")


def observe(item: dict[str, Any], pipeline: Pipeline) -> dict[str, dict[str, dict[str, float]]]:
    """Features of one item, by kind and stage.

    Args:
        item: with absolute paths.
        pipeline: of ``make_preprocessing(..., trace=False)``.

    Raises:
        ValueError: when the item cannot be processed; names the file.
    """
    steps = [type(step) for step in pipeline.transforms]
    loaded, mask_end = steps.index(Untraced) + 1, steps.index(ForegroundMaskd) + 1
    raw = pipeline(item, end=loaded)
    masked = pipeline(raw, start=loaded, end=mask_end)
    shape = raw["image"].shape[1:]
    head = torch.from_numpy(on_image(plain(masked["foreground"])[0].numpy(), masked[OFFSET_KEY], shape))[None]
    final = pipeline(masked, start=mask_end)
    observed: dict[str, dict[str, dict[str, float]]] = {kind: {} for kind in KINDS}
    for stage, image, mask in (
        ("before", raw["image"], head),
        ("after", final["image"], final["foreground"]),
    ):
        pixels, inside = image.numpy(), mask[0].numpy() != 0
        observed["air"][stage] = air_features(pixels, inside)
        observed["geometry"][stage] = geometry_features(inside, with_size=stage == "before")
        observed["size"][stage] = size_features(inside.shape)
        observed["histogram"][stage] = histogram_features(pixels, inside)
    observed["tumor"] = {"label": {"voxels": float(final.get("tumor_voxels", -1))}}
    return observed


def chosen_items(datalist: dict[str, Any], parts: Sequence[str], limit: int | None, seed: int) -> list[dict[str, Any]]:
    """Items that are audited."""
    return subsample([item for part in parts for item in datalist[part]], limit, seed)


def observer(
    items: Sequence[dict[str, Any]], dataset_dir: str | Path, spatial_size: int
) -> Callable[[int], dict[str, Any]]:
    """Features of one of the items, by its number, or the "reason" why it cannot be used."""
    pipeline = make_preprocessing(spatial_size, trace=False)

    def one(number: int) -> dict[str, Any]:
        try:
            return observe(_located(items[number], Path(dataset_dir)), pipeline)
        except ValueError as error:
            logger.warning("not used: %s", error)
            return {"reason": str(error)}

    return one


@dataclass(frozen=True)
class AuditJob:
    """Features of one item after the other, by any number of processes."""

    datalist_file: Path
    dataset_dir: Path
    spatial_size: int
    limit: int | None
    seed: int
    parts: tuple[str, ...]

    def settings(self) -> dict[str, Any]:
        """What decides about a result beside the list."""
        about = {"dataset_dir": str(Path(self.dataset_dir).resolve()), "spatial_size": self.spatial_size}
        return {**about, "limit": self.limit, "seed": self.seed, "parts": list(self.parts)}

    def items(self) -> list[dict[str, Any]]:
        """Items of the list that are audited."""
        datalist = datalists.read(self.datalist_file, self.dataset_dir)
        return chosen_items(datalist, self.parts, self.limit, self.seed)

    def start(self) -> Callable[[int], Any]:
        """The features of an item by its number."""
        return observer(self.items(), self.dataset_dir, self.spatial_size)


def _located(item: dict[str, Any], root: Path) -> dict[str, Any]:
    """The item's files, absolute; the label only where the diagnosis has to be taken from it."""
    image = item["image"]
    located = {"image": str(root / image) if isinstance(image, str) else [str(root / path) for path in image]}
    located |= {key: item[key] for key in ("slice", "plane") if key in item}
    located |= {key: str(root / item[key]) for key in ("foreground",) if key in item}
    if "diagnosis" not in item and "label" in item:
        located["label"] = str(root / item["label"])
    return located
