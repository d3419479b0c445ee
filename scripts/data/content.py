"""What an item shows, as a hash of its pixels: the same under another name, in another folder, in another file type."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from transforms.loading import LoadCased
from transforms.reading import file_kind

__all__ = ["content_sha256"]

_load = {dims: LoadCased(spatial_dims=dims) for dims in (2, 3)}


def content_sha256(item: Mapping[str, Any]) -> str:
    """Hash of the gray values of an item's image, a volume whole or the slice that is named, in its first channel.

    Args:
        item: with an absolute path, or several.

    Raises:
        ValueError: when the image cannot be read.
    """
    about: dict[Any, Any] = {key: item[key] for key in ("slice", "plane") if key in item}
    first = item["image"][0] if isinstance(item["image"], (list, tuple)) else item["image"]
    dims = 2 if "slice" in about or file_kind(first) == "picture" else 3
    pixels = np.ascontiguousarray(_load[dims]({**about, "image": [str(first)]})["image"][0].numpy(), dtype=np.float32)
    return hashlib.sha256(str(pixels.shape).encode() + pixels.tobytes()).hexdigest()
