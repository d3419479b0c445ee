"""Crop to the head, and fit to the network's size; both are undone by ``Compose.inverse``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from monai.config import KeysCollection
from monai.transforms import CropForegroundd, Resize, Resized
from monai.transforms.spatial.functional import resize


class CropToForegroundd(CropForegroundd):
    """MONAI's CropForegroundd on the foreground mask: the mask's bounding box with a margin, never beyond the image.

    Args:
        keys: what to crop.
        foreground_key: the mask, (1, X, Y[, Z]), non-zero in the head.
        margin: voxels to keep around the box.
        allow_missing_keys: skip keys that the item does not have.
    """

    stage = "crop"

    def __init__(
        self,
        keys: KeysCollection,
        foreground_key: str = "foreground",
        margin: Sequence[int] | int = 4,
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(
            keys,
            source_key=foreground_key,
            margin=margin,
            allow_smaller=True,
            start_coord_key=None,
            end_coord_key=None,
            allow_missing_keys=allow_missing_keys,
        )


class ResizeToFit(Resize):
    """MONAI's Resize to the largest size of the same aspect ratio that fits into a box of any proportions.

    Args:
        spatial_size: the box, one integer an axis.
    """

    def __init__(self, spatial_size: Sequence[int]) -> None:
        super().__init__(spatial_size=tuple(spatial_size), size_mode="all")

    def __call__(
        self,
        img: torch.Tensor,
        mode: str | None = None,
        align_corners: bool | None = None,
        anti_aliasing: bool | None = None,
        anti_aliasing_sigma: Any = None,
        dtype: Any = None,
        lazy: bool | None = None,
    ) -> torch.Tensor:
        """Resize ``img``, (C, X, Y[, Z]); arguments as in MONAI's Resize.

        Raises:
            ValueError: When the image has another number of axes than the box.
        """
        shape = tuple(img.shape[1:])
        if len(shape) != len(self.spatial_size):
            raise ValueError(f"image of size {shape} cannot be fitted into {self.spatial_size}: other number of axes")
        scale = min(box / size for box, size in zip(self.spatial_size, shape, strict=True))
        target = tuple(max(1, min(box, round(size * scale))) for box, size in zip(self.spatial_size, shape, strict=True))
        return resize(
            img,
            target,
            mode or self.mode,
            align_corners,
            torch.float32,
            len(shape),
            bool(anti_aliasing),
            anti_aliasing_sigma,
            bool(lazy),
            self.get_transform_info(),
        )


class ResizeToFitd(Resized):
    """Dictionary form of :class:`ResizeToFit`: images (bi/trilinear, anti-aliased) and masks (nearest).

    Args:
        keys: what to resize.
        spatial_size: the box, one integer an axis.
        mode: ``"image"`` or ``"mask"`` for each key.
        allow_missing_keys: skip keys that the item does not have.
    """

    def __init__(
        self, keys: KeysCollection, spatial_size: Sequence[int], mode: Sequence[str], allow_missing_keys: bool = False
    ) -> None:
        linear = {1: "linear", 2: "bilinear", 3: "trilinear"}[len(spatial_size)]
        super().__init__(
            keys,
            spatial_size=tuple(spatial_size),
            mode=[linear if m == "image" else "nearest-exact" for m in mode],
            anti_aliasing=[m == "image" for m in mode],
            allow_missing_keys=allow_missing_keys,
        )
        self.resizer = ResizeToFit(spatial_size)
