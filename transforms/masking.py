"""Set air to exactly 0, and keep the foreground off it: the network reads its foreground as ``image != 0``."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.transforms import MapTransform

from transforms.intensity import like, plain

NUDGE = 1e-6  # in standard deviations of the foreground: invisible, and not 0


def mask_background(image: torch.Tensor, foreground: torch.Tensor) -> torch.Tensor:
    """Set everything outside the foreground to exactly 0, and exact zeros inside it to 1e-6.

    Args:
        image: float (C, X, Y[, Z]).
        foreground: (1, X, Y[, Z]), non-zero in the head.

    Returns:
        float32 (C, X, Y[, Z]); ``out != 0`` equals the foreground in every channel.
    """
    inside, values = plain(foreground).numpy() != 0, plain(image).numpy()
    pixels = np.zeros(values.shape, np.float32)
    np.copyto(pixels, values, where=inside)
    holes = (values == 0) & inside
    if holes.any():
        pixels[holes] = NUDGE
    return like(torch.from_numpy(pixels), image)


class MaskBackgroundd(MapTransform):
    """Dictionary form of :func:`mask_background`; to be repeated after every interpolation and augmentation.

    Args:
        keys: images, (C, X, Y[, Z]), normalized.
        foreground_key: the mask, (1, X, Y[, Z]); becomes uint8, 0 or 1.
    """

    stage = "mask"

    def __init__(self, keys: KeysCollection = "image", foreground_key: str = "foreground") -> None:
        super().__init__(keys)
        self.foreground_key = foreground_key

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return the item with masked images."""
        item = dict(data)
        foreground = item[self.foreground_key]
        inside = (plain(foreground).numpy() != 0).view(np.uint8)
        item[self.foreground_key] = like(torch.from_numpy(inside), foreground)
        for key in self.key_iterator(item):
            item[key] = mask_background(item[key], foreground)
        return item
