"""What the tumor mask says before cropping and resizing, and the item as training takes it."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.transforms import MapTransform, Transform

from transforms.describe import describe, file_of
from transforms.intensity import plain

COVERAGE_KEY = "label_coverage"
VOXELS_KEY = "tumor_voxels"
REGIONS_KEY = "regions"  # of an item: label values of each region
MASKS_KEY = "region_masks"


def label_coverage(label: torch.Tensor, foreground: torch.Tensor) -> float:
    """Share of tumor voxels inside the foreground, 0 to 1; 1 where there is no tumor.

    Args:
        label, foreground: (1, X, Y[, Z]), non-zero in tumor and head.
    """
    tumor = plain(label).numpy() != 0
    count = np.count_nonzero(tumor)
    return 1.0 if count == 0 else np.count_nonzero(tumor & (plain(foreground).numpy() != 0)) / count


class LabelCoveraged(MapTransform):
    """Record, on the original grid, how much tumor the foreground mask keeps and how many voxels the tumor has.

    Adds ``label_coverage`` (float) and ``tumor_voxels`` (int) to items with a label; others pass unchanged.

    Args:
        label_key: the tumor mask, (1, X, Y[, Z]), 0 or 1.
        foreground_key: the foreground mask of the same shape.
    """

    def __init__(self, label_key: str = "label", foreground_key: str = "foreground") -> None:
        super().__init__(label_key, allow_missing_keys=True)
        self.label_key, self.foreground_key = label_key, foreground_key

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return the item with the two facts added."""
        item = dict(data)
        if self.label_key in item:
            tumor = plain(item[self.label_key])[:1]  # of several regions the first
            item[COVERAGE_KEY] = label_coverage(tumor, item[self.foreground_key])
            item[VOXELS_KEY] = int(np.count_nonzero(tumor.numpy()))
        return item


def case_name(item: Mapping[Hashable, Any], image_key: str = "image") -> str:
    """Name of a loaded case: ``item["name"]``, or the file's stem, with ``slice_suffix`` for a slice."""
    if item.get("name"):
        return str(item["name"])
    path = file_of(item, image_key)
    stem = Path(path).name.removesuffix(".gz") if path else "case"
    stem = stem.rsplit(".", 1)[0] if "." in stem else stem
    return stem + slice_suffix(item)


def slice_suffix(item: Mapping[Any, Any]) -> str:
    """What tells slices of one volume apart in a name; "" for what is no slice.

    >>> slice_suffix({"slice": 7}), slice_suffix({"slice": 7, "plane": "coronal"}), slice_suffix({})
    ('_s007', '_cor007', '')
    """
    if item.get("slice") is None:
        return ""
    plane = str(item.get("plane") or "axial")
    return f"_{'s' if plane == 'axial' else plane[:3]}{int(item['slice']):03d}"


def _bits(mask: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(mask).view(np.uint8))


class Finalized(Transform):
    """Turn a preprocessed item into plain tensors with the same keys for every item, with and without masks.

    Afterwards the item holds exactly: image float32 (C, ...), foreground and label uint8 (1, ...; the label all 0 if
    there is none), has_mask bool (also of items that say ``lesion_free``: their empty mask is known), diagnosis int,
    source, patient, group and name str, label_coverage float. Where the item states several regions, ``region_masks``
    (R, ...) holds them all, and the label is the first of them, the tumor.
    A missing diagnosis is derived from the label: no tumor voxel (on the original grid) is class 0, any is class 1 if
    there are two classes, else -1 (unknown). ``patient`` and ``group`` (of near-duplicates) are "" where unknown.

    Args:
        num_classes: number of classes, class 0 being "no tumor"; None: unknown here, a diagnosis is then taken as it
            is, and one that would have to be derived from a tumor is an error.
        image_key, label_key, foreground_key: where the arrays are.

    Raises:
        ValueError: When the diagnosis is not a class, or says "no tumor" against a mask with tumor. Names the file.
    """

    stage = "finalize"

    def __init__(
        self,
        num_classes: int | None = None,
        image_key: str = "image",
        label_key: str = "label",
        foreground_key: str = "foreground",
    ) -> None:
        if num_classes is not None and num_classes < 2:
            raise ValueError(f"num_classes must be 2 or more (class 0 is no tumor), got {num_classes}")
        self.num_classes = num_classes
        self.image_key, self.label_key, self.foreground_key = image_key, label_key, foreground_key

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return the item for training."""
        image, foreground, label = (data.get(k) for k in (self.image_key, self.foreground_key, self.label_key))
        if image is None or foreground is None:
            raise ValueError(f"{describe(data, self.image_key)}: no '{self.image_key}' or '{self.foreground_key}'")
        foreground = _bits(plain(foreground).numpy() != 0)
        has_mask = label is not None
        count = len(data.get(REGIONS_KEY) or (1,))
        if label is None:
            masks = foreground.new_zeros((count, *foreground.shape[1:]))
        else:
            masks = _bits(plain(label).numpy() > 0.5)
        return {
            self.image_key: plain(image).to(torch.float32).contiguous(),
            self.foreground_key: foreground,
            self.label_key: masks[:1].contiguous(),
            **({MASKS_KEY: masks} if count > 1 else {}),
            "has_mask": has_mask or bool(data.get("lesion_free", False)),
            "diagnosis": self._diagnosis(data, has_mask),
            "source": str(data.get("source") or "unknown"),
            "patient": "" if data.get("patient") is None else str(data["patient"]),
            "group": "" if data.get("group") is None else str(data["group"]),
            "name": case_name(data, self.image_key),
            COVERAGE_KEY: float(data.get(COVERAGE_KEY, 1.0)),
        }

    def _diagnosis(self, data: Mapping[Hashable, Any], has_mask: bool) -> int:
        voxels = int(data.get(VOXELS_KEY, 0))
        value = data.get("diagnosis")
        if value is None:
            if not has_mask:
                return -1
            if voxels > 0 and self.num_classes is None:
                raise ValueError(
                    f"{describe(data, self.image_key)}: no diagnosis, and a tumor in the mask is class 1 only if there "
                    "are two classes: give 'diagnosis', or num_classes to the pipeline"
                )
            return 0 if voxels == 0 else (1 if self.num_classes == 2 else -1)
        limit = math.inf if self.num_classes is None else self.num_classes
        if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or not -1 <= value < limit:
            raise ValueError(
                f"{describe(data, self.image_key)}: diagnosis {value!r} is not a class; expected an integer from 0 to "
                f"{limit - 1}, or -1 for unknown"
            )
        if int(value) == 0 and voxels > 0:
            raise ValueError(
                f"{describe(data, self.image_key)}: diagnosis 0 (no tumor), but its mask has {voxels} tumor voxels"
            )
        return int(value)
