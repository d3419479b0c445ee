"""Name the case in an error message, and put plain tensors in place of traced ones."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform


def describe(item: Mapping[Hashable, Any], key: Hashable = "image") -> str:
    """Say which file an item comes from, e.g. ``"file scans/p017.nii.gz, slice 73"``.

    Args:
        item: a datalist item, loaded or not; ``item[key]`` is a path, several, or an array with metadata.
        key: where the image is.
    """
    value = item.get(key)
    if isinstance(value, torch.Tensor):
        value = file_of(item, key)
    if isinstance(value, (list, tuple)) and value:
        value = value[0]
    named = value if isinstance(value, str) or hasattr(value, "__fspath__") else item.get("name")
    text = f"file {named}" if named is not None and str(named) else f"the item under '{key}'"
    plane = item.get("slice")
    return text if plane is None else f"{text}, slice {plane}"


def file_of(item: Mapping[Hashable, Any], key: Hashable = "image") -> str | None:
    """Say which file the tensor ``item[key]`` was loaded from; None where that is not known."""
    value = item.get(key)
    meta = value.meta if isinstance(value, MetaTensor) else item.get(f"{key}_meta_dict")
    path = meta.get("filename_or_obj") if isinstance(meta, Mapping) else None
    return None if path is None else str(path)


SPACING_KEY = "spacing_mm"  # of an item: distance of the image's voxels by axis, in mm


def spacing_of(image: torch.Tensor) -> tuple[float, ...] | None:
    """Distance of the voxels of a volume (C, X, Y, Z) by axis, in mm; None where its metadata do not say."""
    if not isinstance(image, MetaTensor) or image.ndim != 4:
        return None
    return tuple(float(side) for side in image.pixdim)


class Untraced(MapTransform):
    """Put plain tensors in place of tensors with metadata: what follows is faster, and cannot be inverted.

    The transforms of this package trace what they do exactly if what they are given has metadata; the pixels are the
    same either way. Of the first key, the image, the distance of the voxels of a volume stays in the item, as
    ``spacing_mm``. The file's name stays in the item, as ``<key>_meta_dict`` (MONAI's name for it).

    Args:
        keys: tensors; missing keys are skipped.
    """

    def __init__(self, keys: KeysCollection) -> None:
        super().__init__(keys, allow_missing_keys=True)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return the item with plain tensors."""
        item = dict(data)
        for key in self.key_iterator(item):
            value = item[key]
            if isinstance(value, MetaTensor):
                item[f"{key}_meta_dict"] = {"filename_or_obj": value.meta.get("filename_or_obj")}
                if key == self.keys[0] and (spacing := spacing_of(value)) is not None:
                    item[SPACING_KEY] = spacing
                item[key] = value.as_tensor()
        return item
