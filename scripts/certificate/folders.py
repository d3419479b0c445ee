"""Pictures of a folder as cases: images/<class>/*.png with masks of the same stem in another folder."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from scripts.certificate.cases import Case, usable_mask
from scripts.data.datalists.clusters import clusters
from scripts.data.planes import plane_of
from scripts.data.preprocessing import foreground_mask

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff")


def read_cases(
    images: Path, masks: Path | None, classes: list[str], left_out: Counter[str], limit: int | None = None
) -> list[Case]:
    """Cases of a folder of pictures.

    Args:
        images: one folder a class, named as the classes.
        masks: pictures of the same stems in any subfolder, not 0 in the tumor; None: no tumors can be intervened on.
        classes: names, class 0 no tumor.
        left_out: counts reasons, in place.
        limit: at most so many of each class, evenly over its names; None: all.

    Raises:
        FileNotFoundError: when a folder does not exist.
        ValueError: when no folder is named as a class, or two masks have one stem.
    """
    for folder in (images, masks):
        if folder is not None and not folder.is_dir():
            raise FileNotFoundError(f"{folder} is not a folder")
    folders = {path.name.lower(): path for path in sorted(images.iterdir()) if path.is_dir()}
    known = [name for name in classes if name.lower() in folders]
    if not known:
        raise ValueError(
            f"{images} has no folder named as a class ({', '.join(classes)}); there are {', '.join(folders) or 'none'}"
        )
    drawn = _by_stem(masks) if masks is not None else {}
    cases = []
    for kind, name in enumerate(classes):
        files = _pictures(folders[name.lower()]) if name.lower() in folders else []
        if limit is not None and len(files) > limit:
            files = [files[k] for k in np.linspace(0, len(files) - 1, limit).astype(int)]
        for file in files:
            case = _case(file, kind, drawn, left_out)
            if case is not None:
                cases.append(case)
    return cases


def datalist_cases(items: Sequence[dict[str, Any]], index: Sequence[int], left_out: Counter[str]) -> list[Case]:
    """Cases of the pictures of a datalist.

    Args:
        items: of `scripts.evaluation.items.evaluated_items`, with ``diagnosis``.
        index: the model's class of each diagnosis.
        left_out: counts reasons, in place.
    """
    cases = []
    for item, group in zip(items, clusters(items), strict=True):
        file, kind = item["image"], int(item.get("diagnosis", -1))
        if not isinstance(file, str) or Path(file).suffix.lower() not in SUFFIXES:
            left_out["no single picture file (volumes are certified for runs of this bundle alone)"] += 1
            continue
        if kind < 0:
            left_out["no diagnosis"] += 1
            continue
        masks = {Path(file).stem: Path(item["label"])} if "label" in item else {}
        case = _case(Path(file), index[kind], masks, left_out)
        if case is not None:
            source, plane = str(item.get("source", "")), plane_of(item)
            cases.append(replace(case, name=str(item["name"]), group=group, source=source, plane=plane))
    return cases


def _pictures(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES)


def _by_stem(masks: Path) -> dict[str, Path]:
    by_stem: dict[str, Path] = {}
    for path in _pictures(masks):
        if path.stem in by_stem:
            raise ValueError(f"two masks have one stem: {by_stem[path.stem]} and {path}")
        by_stem[path.stem] = path
    return by_stem


def read_picture(path: Path) -> np.ndarray:
    """A picture as float32 (C, X, Y) of gray values 0..255: one channel where all are equal, else three."""
    with Image.open(path) as file:
        if file.mode.startswith("I"):
            deep = np.asarray(file, np.float32)
            return np.ascontiguousarray(deep.T[None] * (255 / max(float(deep.max()), 1.0)), np.float32)
        array = np.asarray(file.convert("RGB"), np.float32)
    planes = array.transpose(2, 1, 0)
    return np.ascontiguousarray(planes[:1] if (planes == planes[:1]).all() else planes)


def _case(file: Path, kind: int, masks: dict[str, Path], left_out: Counter[str]) -> Case | None:
    try:
        image = read_picture(file)
        head = foreground_mask(image)
    except (OSError, ValueError) as error:
        left_out[f"cannot be used: {type(error).__name__}: {str(error).replace(str(file), file.name)}"] += 1
        return None
    mask = None
    if kind:
        if file.stem not in masks:
            left_out["a tumor without a mask"] += 1
            return None
        with Image.open(masks[file.stem]) as drawn:
            mask = np.asarray(drawn.convert("L")).T > 127
        if mask.shape != head.shape:
            left_out["its mask has another size"] += 1
            return None
        mask, reason = usable_mask(mask, head)
        if reason:
            left_out[reason] += 1
            return None
    name, plane = f"{file.parent.name}/{file.name}", plane_of({"image": str(file)})
    return Case(name, file.stem, "", kind, image, head, mask, plane)
