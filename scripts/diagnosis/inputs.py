"""The images of a diagnosis, through any pipeline, and what is known about them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch
from PIL import Image
from scipy.ndimage import binary_dilation
from torch import Tensor

from scripts.command.config_files import read_config
from scripts.data.datalists import schema as datalists
from scripts.data.datalists.clusters import cluster
from scripts.data.datalists.folders import IMAGE_SUFFIXES, image_folder
from scripts.data.preprocessing import check_order, foreground_mask, resolve_items
from scripts.diagnosis.network import config_ids, existing_file
from scripts.explain.windows import window_around
from scripts.measures.shortcuts import air_features, geometry_features, histogram_features, subsample
from transforms.reading import VOLUME_SUFFIXES

__all__ = ["Samples", "folder_items", "order_objection", "prepare", "read_pipeline"]


def read_pipeline(config_file: str) -> Callable[[Any], Any]:
    """The `preprocessing` of a config file, as bundles have it.

    Raises:
        ValueError: when the file has none.
    """
    parser = read_config(existing_file(config_file, "preprocessing"))
    if "preprocessing" not in parser.get():
        raise ValueError(f"{config_file} has no 'preprocessing'; it has {config_ids(parser)}")
    pipeline = parser.get_parsed_content("preprocessing")
    if not callable(pipeline):
        raise ValueError(f"'preprocessing' of {config_file} is a {type(pipeline).__name__}; expected a Compose")
    return pipeline


def order_objection(pipeline: Any) -> str | None:
    """What this bundle would say against the order of a list of transforms; None for nothing, or no list."""
    try:
        check_order(getattr(pipeline, "transforms", ()))
    except ValueError as error:
        return str(error).removeprefix("wrong order of transforms: ").partition(". ")[0]
    return None


def folder_items(folder: str | Path, limit: int = 400) -> tuple[list[dict[str, Any]], dict[str, str] | None]:
    """Items and classes of a folder: `images/<class>/*` with optional `masks`, or plain image files (no classes).

    Raises:
        ValueError: when there is no image.
    """
    root = Path(folder)
    if not root.is_dir():
        raise FileNotFoundError(f"folder {folder} does not exist")
    if (root / "images").is_dir():
        datalist, _ = image_folder(root, limit=limit, progress=False)
        items = [item for part in datalists.SPLITS for item in datalist[part]]
        for item in items:
            item.pop("source", None)  # the folder's name: nobody said that all come from one collection
        return resolve_items(items, root), datalist["classes"]
    suffixes = (*IMAGE_SUFFIXES, *VOLUME_SUFFIXES)
    files = sorted(p.name for p in root.iterdir() if p.name.lower().endswith(suffixes) and not p.name.startswith("."))
    if not files:
        raise ValueError(f"{folder} holds neither images/<class>/ nor image files ({', '.join(suffixes)})")
    return resolve_items([{"image": name} for name in files[:limit]], root), None


@dataclass
class Samples:
    """Images as the network gets them, and what is known about them.

    Attributes:
        images: (B, C, *spatial), float32.
        foreground: (B, 1, *spatial), bool.
        estimated: the foreground was estimated from the network's input; else the pipeline gave it.
        tumor: (B, 1, *spatial), 0 or 1, all 0 where there is no mask; None where no image has one.
        names, labels, sources: of the B images; a label of -1 and a source of "" are unknown.
        features: kind: one dict an image, over all images looked at (more than B), see `scripts.measures.shortcuts`.
        feature_labels, feature_clusters: of these.
        air_value: the one value of all air in all of them, None where there are several.
        left_out: (name, reason) of images that could not be used.
    """

    images: Tensor
    foreground: Tensor
    estimated: bool
    tumor: Tensor | None
    names: list[str]
    labels: list[int]
    sources: list[str]
    features: dict[str, list[dict[str, float]]] = field(default_factory=dict)
    feature_labels: list[int] = field(default_factory=list)
    feature_clusters: list[str] = field(default_factory=list)
    air_value: float | None = None
    left_out: list[tuple[str, str]] = field(default_factory=list)


def prepare(
    items: Sequence[Mapping[str, Any]],
    pipeline: Callable[[Any], Any],
    images: int = 48,
    audited: int = 300,
    window: Sequence[int] | None = None,
) -> Samples:
    """Bring items through a pipeline.

    Args:
        items: of a datalist, with absolute paths.
        pipeline: dictionary transforms; the result's "image" is the network's input without batch axis, "foreground"
            and "label" are taken where they are arrays on the same grid.
        images: at most so many are kept for the network, each class and source in its proportion.
        audited: at most so many are looked at for the shortcut.
        window: of a network of patches: so much of each image is kept, around its tumor or else its head.

    Raises:
        ValueError: when no image can be used, or the results differ in shape.
    """
    chosen = subsample([dict(item) for item in items], max(audited, images))
    for number, item in enumerate(chosen):
        item["_number"] = number
    kept_numbers = {item["_number"] for item in subsample(chosen, images)}
    kept: list[tuple[dict[str, Any], Tensor, Tensor, Tensor | None]] = []
    samples = Samples(torch.empty(0), torch.empty(0), False, None, [], [], [])
    airs: set[float] = set()
    for item in chosen:
        name = str(item.get("name", item["image"]))
        try:
            image, inside, estimated, mask = _one(item, pipeline)
        except (ValueError, RuntimeError, OSError) as error:
            samples.left_out.append((name, _innermost(error)))
            continue
        samples.estimated |= estimated
        label = int(item["diagnosis"]) if "diagnosis" in item else -1 if mask is None else int(bool(mask.any()))
        _describe(samples, item, image, inside)
        samples.feature_labels.append(label)
        air = image[:, ~inside[0]]
        airs |= {float(air.min()), float(air.max())} if air.numel() else set()
        if item["_number"] in kept_numbers:
            box = (slice(None), *window_around(_shown(inside, mask), window or image.shape[1:]))
            cut = (image[box], inside[box], None if mask is None else mask[box])
            kept.append(({**item, "name": name, "label": label}, *cut))
    if not kept:
        first = ": ".join(samples.left_out[0]) if samples.left_out else "the list is empty"
        raise ValueError(f"none of {len(chosen)} images could be brought through the pipeline; first: {first}")
    shapes = sorted({tuple(image.shape) for _, image, _, _ in kept})
    if len(shapes) > 1:
        raise ValueError(f"the pipeline gives images of different shapes, {shapes[:3]}; end it with Resized")
    samples.images = torch.stack([image for _, image, _, _ in kept])
    samples.foreground = torch.stack([inside for _, _, inside, _ in kept])
    if any(mask is not None for *_, mask in kept):
        samples.tumor = torch.stack(
            [torch.zeros_like(f, dtype=torch.float32) if m is None else m for _, _, f, m in kept]
        )
    samples.names = [item["name"] for item, *_ in kept]
    samples.labels = [item["label"] for item, *_ in kept]
    samples.sources = [str(item.get("source", "")) for item, *_ in kept]
    samples.air_value = airs.pop() if len(airs) == 1 else None
    return samples


def _shown(inside: Tensor, mask: Tensor | None) -> Tensor:
    """The tumor where an image has one, else the head, (*spatial)."""
    return inside[0] if mask is None or not bool(mask.any()) else mask[0]


def _innermost(error: BaseException) -> str:
    """What went wrong, under MONAI's wrappers for each transform."""
    while error.__cause__ is not None:
        error = error.__cause__
    return (str(error).splitlines() or [type(error).__name__])[0]


def _one(item: Mapping[str, Any], pipeline: Callable[[Any], Any]) -> tuple[Tensor, Tensor, bool, Tensor | None]:
    """Image, foreground, whether that was estimated, and tumor mask of one item."""
    data = {key: item[key] for key in item if key != "_number"}
    result = pipeline(data)
    if not isinstance(result, Mapping) or "image" not in result:
        raise ValueError(
            "the pipeline has to take and give a dictionary with 'image': use MONAI's transforms ending in d"
        )
    image = _tensor(result["image"])
    if image is None or image.dim() not in (3, 4):
        raise ValueError(f"the pipeline gives {_said(result['image'])}, expected an image (C, X, Y) or (C, X, Y, Z)")
    if not bool(torch.isfinite(image).all()):
        raise ValueError("the pipeline gives values that are not finite")
    expected = (1, *image.shape[1:])
    inside, mask = (_on_grid(result.get(key), expected) for key in ("foreground", "label"))
    if inside is not None and bool(inside.any()):
        return image, inside, False, None if mask is None or not result.get("has_mask", True) else mask.float()
    foreground = foreground_mask(image)
    # A thin rim of partial volume belongs to the head; without it every smooth edge would count as air that is not 0.
    foreground = binary_dilation(foreground, iterations=max(1, round(max(image.shape[1:]) / 64)))
    return image, torch.from_numpy(foreground[None]), True, None if mask is None else mask.float()


def _tensor(value: Any) -> Tensor | None:
    if not isinstance(value, (Tensor, np.ndarray)):
        return None
    return torch.as_tensor(np.asarray(value)).as_subclass(Tensor).float().clone()


def _on_grid(value: Any, shape: tuple[int, ...]) -> Tensor | None:
    tensor = _tensor(value)
    return None if tensor is None or tuple(tensor.shape) != shape else tensor != 0


def _said(value: Any) -> str:
    return f"{tuple(value.shape)}" if hasattr(value, "shape") else f"a {type(value).__name__}"


def _describe(samples: Samples, item: Mapping[str, Any], image: Tensor, inside: Tensor) -> None:
    pixels, head = image.numpy(), inside[0].numpy()
    by_kind = {
        "air": air_features(pixels, head),
        "outline": geometry_features(head, with_size=False),
        "histogram": histogram_features(pixels, head),
    }
    size = _file_size(item)
    if size is not None:
        by_kind["file size"] = size
    for kind, features in by_kind.items():
        samples.features.setdefault(kind, []).append(features)
    samples.feature_clusters.append(cluster(dict(item)))


def _file_size(item: Mapping[str, Any]) -> dict[str, float] | None:
    """Width and height of the file's pictures, by its header; None for another format than pictures, NIfTI and MGH."""
    path = Path(item["image"] if isinstance(item["image"], str) else item["image"][0])
    if path.name.lower().endswith((".nii", ".nii.gz", ".mgz", ".mgh")):
        shape: Sequence[int] = nib.load(path).shape  # type: ignore[attr-defined]
    elif path.suffix.lower() in IMAGE_SUFFIXES:
        with Image.open(path) as opened:
            shape = opened.size
    else:
        return None
    return {"width": float(shape[0]), "height": float(shape[1]), "aspect": shape[0] / shape[1]}
