"""Name the case in an error message."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

from monai.data import MetaTensor


def describe(item: Mapping[Hashable, Any], key: Hashable = "image") -> str:
    """Say which file an item comes from, e.g. ``"file scans/p017.nii.gz, slice 73"``.

    Args:
        item: a datalist item, loaded or not; ``item[key]`` is a path, several, or an array with metadata.
        key: where the image is.
    """
    value = item.get(key)
    if isinstance(value, MetaTensor):
        value = value.meta.get("filename_or_obj")
    if isinstance(value, (list, tuple)) and value:
        value = value[0]
    named = value if isinstance(value, str) or hasattr(value, "__fspath__") else item.get("name")
    text = f"file {named}" if named is not None and str(named) else f"the item under '{key}'"
    plane = item.get("slice")
    return text if plane is None else f"{text}, slice {plane}"
