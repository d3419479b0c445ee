"""Crop to the head, and fit to the network's size; both are undone by ``Compose.inverse``."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import Crop, Resize, Resized, SpatialPad, SpatialPadd
from monai.transforms.croppad.dictionary import Cropd
from monai.transforms.spatial.functional import resize
from monai.utils import ensure_tuple, ensure_tuple_rep

from transforms.describe import SPACING_KEY, describe, spacing_of
from transforms.intensity import like, plain


def foreground_box(inside: np.ndarray, margin: Sequence[int] | int = 0) -> tuple[slice, ...] | None:
    """Find the bounding box of a mask.

    Args:
        inside: bool (X, Y[, Z]).
        margin: voxels kept around it, one number or one an axis; cut at the image's edge.

    Returns:
        one slice an axis; None if the mask is empty.
    """
    slices = []
    for axis, extra in enumerate(ensure_tuple_rep(margin, inside.ndim)):
        hit = np.flatnonzero(inside.any(axis=tuple(a for a in range(inside.ndim) if a != axis)))
        if not hit.size:
            return None
        slices.append(slice(max(0, int(hit[0]) - extra), min(inside.shape[axis], int(hit[-1]) + 1 + extra)))
    return tuple(slices)


class CropToForegroundd(Cropd):
    """Crop to the bounding box of the foreground mask, with a margin that stays inside the image.

    MONAI's CropForegroundd does the same, and pads as well: four times as slow for nothing here.

    Args:
        keys: what to crop; all of the mask's size.
        foreground_key: the mask, (1, X, Y[, Z]), non-zero in the head.
        margin: voxels to keep around the box, one number or one an axis.
        allow_missing_keys: skip keys that the item does not have.

    Raises:
        ValueError: When the mask is empty. Names the file.
    """

    stage = "crop"

    def __init__(
        self,
        keys: KeysCollection,
        foreground_key: str = "foreground",
        margin: Sequence[int] | int = 4,
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, cropper=Crop(), allow_missing_keys=allow_missing_keys)
        if min(ensure_tuple(margin)) < 0:
            raise ValueError(f"margin must be 0 or more voxels, got {margin}")
        self.foreground_key, self.margin = foreground_key, margin

    def __call__(self, data: Mapping[Hashable, Any], lazy: bool | None = None) -> dict[Hashable, Any]:
        """Return the cropped item."""
        item = dict(data)
        inside = plain(item[self.foreground_key])[0].numpy() != 0
        slices = foreground_box(inside, self.margin)
        if slices is None:
            raise ValueError(f"{describe(item, self.keys[0])}: the foreground mask is empty")
        box = (slice(None), *slices)
        for key in self.key_iterator(item):
            value = item[key]
            traced = isinstance(value, MetaTensor)
            item[key] = self.cropper(value, slices=slices, lazy=bool(lazy)) if traced else value[box]
        return item


ACQUIRED = "acquired"


def spacing_mm_of(stated: Any, dims: int) -> tuple[float, ...] | None:
    """What `ResizeToFitd` takes as a spacing, checked: the voxel distances by axis, () for "acquired", or None.

    Raises:
        ValueError: When it is something else, or of pictures, whose pixels have no size.
    """
    if stated is None:
        return None
    if dims != 3:
        raise ValueError(f"spacing_mm is for volumes, and spatial_size has {dims} axes; set spacing_mm to null")
    if stated == ACQUIRED:
        return ()
    sides = [stated] * dims if isinstance(stated, (int, float)) else stated
    if isinstance(sides, str) or len(sides) != dims or not all(isinstance(s, (int, float)) and s > 0 for s in sides):
        raise ValueError(f"spacing_mm is a number of mm, three of them, or {ACQUIRED!r}; got {stated!r}")
    return tuple(float(side) for side in sides)


class ResizeToFit(Resize):
    """MONAI's Resize to the largest size of the same aspect ratio that fits into a box of any proportions.

    Args:
        spatial_size: the box, one integer an axis.
    """

    def __init__(self, spatial_size: Sequence[int]) -> None:
        super().__init__(spatial_size=tuple(spatial_size), size_mode="all")

    def fitted(self, shape: Sequence[int]) -> tuple[int, ...]:
        """Size of an image of this shape in the box."""
        scale = min(box / size for box, size in zip(self.spatial_size, shape, strict=True))
        return tuple(max(1, min(box, round(size * scale))) for box, size in zip(self.spatial_size, shape, strict=True))

    def __call__(
        self,
        img: torch.Tensor,
        mode: str | None = None,
        align_corners: bool | None = None,
        anti_aliasing: bool | None = None,
        anti_aliasing_sigma: Any = None,
        dtype: Any = None,
        lazy: bool | None = None,
        target: tuple[int, ...] | None = None,
    ) -> torch.Tensor:
        """Resize ``img``, (C, X, Y[, Z]), to ``target``, or into the box; arguments as in MONAI's Resize.

        Raises:
            ValueError: When the image has another number of axes than the box.
        """
        shape = tuple(img.shape[1:])
        if len(shape) != len(self.spatial_size):
            raise ValueError(f"image of size {shape} cannot be fitted into {self.spatial_size}: other number of axes")
        target = self.fitted(shape) if target is None else target
        smooth = bool(anti_aliasing) and any(n < size for n, size in zip(target, shape, strict=True)) and not lazy
        planar = smooth and len(shape) == 2 and mode == "bilinear"
        traced: torch.Tensor | None = None
        if isinstance(img, MetaTensor) or (smooth and not planar):
            traced = resize(
                img,
                target,
                mode or self.mode,
                align_corners,
                torch.float32,
                len(shape),
                smooth and not planar,
                anti_aliasing_sigma,
                bool(lazy),
                self.get_transform_info(),
            )
        if not planar and traced is not None:
            return traced if isinstance(img, MetaTensor) else plain(traced)
        if traced is None and (mode or self.mode) == "nearest-exact":
            return _pick(img, target)
        # torch's own anti-aliasing, where it has one: ten times as fast as MONAI's Gaussian before the interpolation.
        pixels = plain(img).to(torch.float32)
        if planar or target != shape:
            options = {"align_corners": False, "antialias": True} if planar else {"align_corners": align_corners}
            pixels = torch.nn.functional.interpolate(pixels[None], target, mode=mode or self.mode, **options)[0]
        return pixels if traced is None else like(pixels, traced)


def _pick(mask: torch.Tensor, target: tuple[int, ...]) -> torch.Tensor:
    """Nearest-neighbor interpolation (torch's "nearest-exact", a third of its time): float32 (C, *target)."""
    picked = mask.numpy()
    for axis, size in enumerate(target, start=1):
        picked = picked.take(_nearest(picked.shape[axis], size), axis=axis)
    return torch.from_numpy(picked.astype(np.float32))


@lru_cache(maxsize=1024)
def _nearest(size: int, target: int) -> np.ndarray:
    """Which of ``size`` voxels torch takes for each of ``target``."""
    places = torch.arange(size, dtype=torch.float64)[None, None]
    return torch.nn.functional.interpolate(places, target, mode="nearest-exact")[0, 0].to(torch.int64).numpy()


class ResizeToFitd(Resized):
    """Dictionary form of :class:`ResizeToFit`: images (bi/trilinear, anti-aliased) and masks (nearest).

    Args:
        keys: what to resize.
        spatial_size: the box, one integer an axis; a single integer is a 2D square.
        mode: ``"image"`` or ``"mask"`` for each key.
        allow_missing_keys: skip keys that the item does not have.
        spacing_mm: resample a volume to voxels of this size in place of fitting it into the box: a number, one an axis,
            or "acquired", as the file has them.

    Raises:
        ValueError: When the spacing is none, or that of a volume is not known. Names the file.
    """

    def __init__(
        self,
        keys: KeysCollection,
        spatial_size: Sequence[int] | int,
        mode: Sequence[str],
        allow_missing_keys: bool = False,
        spacing_mm: float | Sequence[float] | str | None = None,
    ) -> None:
        sizes = (spatial_size, spatial_size) if isinstance(spatial_size, int) else tuple(spatial_size)
        linear = {1: "linear", 2: "bilinear", 3: "trilinear"}[len(sizes)]
        super().__init__(
            keys,
            spatial_size=sizes,
            mode=[linear if m == "image" else "nearest-exact" for m in mode],
            anti_aliasing=[m == "image" for m in mode],
            allow_missing_keys=allow_missing_keys,
        )
        self.resizer = ResizeToFit(sizes)
        self.spacing_mm = spacing_mm_of(spacing_mm, len(sizes))

    def target(self, item: Mapping[Hashable, Any]) -> tuple[int, ...] | None:
        """Size at the stated spacing; None: fitted into the box."""
        if self.spacing_mm is None:
            return None
        shape = tuple(item[self.keys[0]].shape[1:])
        if not self.spacing_mm:
            return shape
        spacing = spacing_of(item[self.keys[0]]) or item.get(SPACING_KEY)
        if spacing is None:
            raise ValueError(f"{describe(item, self.keys[0])}: the size of its voxels is not known; give a NIfTI file")
        sides = zip(shape, spacing, self.spacing_mm, strict=True)
        return tuple(max(1, round(size * now / then)) for size, now, then in sides)

    def __call__(self, data: Mapping[Hashable, Any], lazy: bool | None = None) -> dict[Hashable, Any]:
        """Return the resized item."""
        item, target = dict(data), self.target(data)
        for key, mode, smooth in zip(self.keys, self.mode, self.anti_aliasing, strict=True):
            if key in item or not self.allow_missing_keys:
                item[key] = self.resizer(item[key], mode=mode, anti_aliasing=smooth, lazy=lazy, target=target)
        return item


def room_for(spatial_size: Sequence[int], shape: Sequence[int]) -> list[int]:
    """Size that an image is padded to: the given one, or where it is larger the next multiple of its power of two.

    A patch is smaller than its volume, whose size has to be a multiple of the network's stride all the same.

    >>> room_for([128, 96, 64], [100, 141, 155])
    [128, 160, 160]
    """
    return [
        s if n <= s else -(-n // math.gcd(s, 32)) * math.gcd(s, 32) for s, n in zip(spatial_size, shape, strict=True)
    ]


class _PadToFit(SpatialPad):
    """MONAI's SpatialPad to `room_for`."""

    def compute_pad_width(self, spatial_shape: Sequence[int]) -> tuple[tuple[int, int], ...]:
        room = room_for(self.spatial_size, spatial_shape)
        widths = [(r - n, (r - n) // 2) for r, n in zip(room, spatial_shape, strict=True)]
        return ((0, 0), *((before, width - before) for width, before in widths))


class PadToFitd(SpatialPadd):
    """MONAI's SpatialPadd with zeros, evenly on both sides, to `room_for`; plain tensors stay plain.

    Args:
        keys: what to pad, (C, X, Y[, Z]).
        spatial_size: size to reach, one integer an axis; a single integer is a 2D square.
        allow_missing_keys: skip keys that the item does not have.
    """

    def __init__(
        self, keys: KeysCollection, spatial_size: Sequence[int] | int, allow_missing_keys: bool = False
    ) -> None:
        sizes = (spatial_size, spatial_size) if isinstance(spatial_size, int) else tuple(spatial_size)
        super().__init__(keys, sizes, mode="constant", allow_missing_keys=allow_missing_keys)
        self.spatial_size = sizes
        self.padder = _PadToFit(sizes)

    def __call__(self, data: Mapping[Hashable, Any], lazy: bool | None = None) -> dict[Hashable, Any]:
        """Return the padded item."""
        if any(isinstance(data.get(key), MetaTensor) for key in self.keys):
            return super().__call__(data, lazy=lazy)
        item = dict(data)
        for key in self.key_iterator(item):
            value = item[key]
            room = room_for(self.spatial_size, value.shape[1:])
            before = [(size - n) // 2 for size, n in zip(room, value.shape[1:], strict=True)]
            padded = value.new_zeros((value.shape[0], *room))
            place = (slice(b, b + n) for b, n in zip(before, value.shape[1:], strict=True))
            box = (slice(None), *place)
            padded[box] = value
            item[key] = padded
        return item
