"""Masks of a tumor or head from drawn pictures and volumes: which values are meant, and what is no mask at all."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image
from scipy.ndimage import maximum_filter, minimum_filter

from transforms.limits import DEFAULT_LIMITS, ReadLimits
from transforms.pictures import decoded, is_gray, is_transparent

MAX_LABEL = 4
# What is darker in a drawn mask of 8 bits is background with the noise of JPEG.
_BLACK = 24
# An area of one gray holds a block of so many pixels a side; edges that are drawn softly hold none.
_BLOCK = 4
# A tumor mask that sets more than half of the picture and of its rim is inverted, or a frame for a mask.
_MAX_SHARE, _MAX_RIM = 0.5, 0.9


def read_mask_picture(path: str | os.PathLike[str], limits: ReadLimits = DEFAULT_LIMITS) -> np.ndarray:
    """Read a drawn mask of any mode as one channel: the brightest of its colors, or how opaque it is.

    Transparency is the mask where all that is opaque is of one color, as in an annotation painted on an empty layer.
    A palette is resolved to its colors.

    Returns:
        float32 (X, Y), X along the width.

    Raises:
        ValueError: As `transforms.pictures.decoded`.
    """
    image = decoded(path, limits)
    pixels = np.asarray(image) if is_gray(image) else _brightest(image)
    return np.ascontiguousarray(pixels.T, dtype=np.float32)


def _brightest(image: Image.Image) -> np.ndarray:
    if not is_transparent(image):
        return np.asarray(image.convert("RGB")).max(axis=2)
    values = np.asarray(image.convert("RGBA"))
    colors, opaque = values[..., :3], values[..., 3]
    painted = colors[opaque > 127]
    if opaque.min() < 128 and len(painted) and (painted == painted[0]).all():
        return opaque
    return (colors.max(axis=2).astype(np.float32) * opaque / 255).round()


def binary_mask(array: np.ndarray, path: Any, picture: bool) -> np.ndarray:
    """Turn a drawn mask into 0 and 1.

    In a volume every label of 1 or more counts (0.99999997 too: the cut is at 0.5). A picture of 8 or 16 bits is cut in
    the middle of its range, so that anti-aliased edges fall right; one whose brightest value is at most 4 holds labels.

    Args:
        array: of any shape; of a picture (X, Y) or (1, X, Y).
        path: for the message.
        picture: whether it was drawn.

    Raises:
        ValueError: When the values are not finite, or a picture's brightest value is neither a label nor white, or it
            holds whole areas of a darker gray or color.
    """
    if not np.isfinite(array).all():
        raise ValueError(f"mask {path} holds values that are not finite (NaN or infinite); set them to 0")
    top = float(array.max())
    cut = 0.5
    if picture and top > MAX_LABEL:
        if top <= 127 or 255 < top <= 32767:
            raise ValueError(
                f"mask {path} has a brightest value of {top:g}; expected 0 and 255 (16 bits: 65535), or labels 0-4"
            )
        cut = 127.0 if top <= 255 else 32767.0
        between = _areas(array.reshape(array.shape[-2:]), cut)
        if between:
            raise ValueError(
                f"mask {path} holds areas of gray or color {', '.join(f'{value:g}' for value in between)} beside "
                f"{top:g}, and it is not clear which are tumor; save it as 0 and 255, or as labels 0-4"
            )
    return (array > cut).astype(np.uint8)


def unknown_labels(array: np.ndarray, known: Collection[int]) -> str:
    """The label values of a mask that are none of the known ones, at most five, in words; "" where there are none.

    Masks may be float with a maximum of 0.99999997.
    """
    values = np.unique(array)
    odd = values[(np.abs(values - np.rint(values)) > 1e-3) | ~np.isin(np.rint(values), list(known))]
    return ", ".join(f"{value:g}" for value in odd[:5])


def region_masks(array: np.ndarray, path: Any, regions: Mapping[str, Sequence[int]]) -> np.ndarray:
    """Masks of named regions from the label values of one mask.

    Args:
        array: of any shape, whole numbers but for rounding (0.99999997).
        path: for the message.
        regions: label values by name; all that may stand in a mask, besides 0.

    Returns:
        uint8 (R, *shape), 0 or 1, in the order of the regions.

    Raises:
        ValueError: When a value belongs to no region or is not finite.
    """
    if not np.isfinite(array).all():
        raise ValueError(f"mask {path} holds values that are not finite (NaN or infinite); set them to 0")
    known = sorted({value for values in regions.values() for value in values})
    if unknown := unknown_labels(array, [0, *known]):
        raise ValueError(
            f"mask {path} holds the label {unknown}, of which no region is; the regions {', '.join(regions)} are made "
            f"of {', '.join(map(str, known))}: state another scheme of regions, or correct the mask"
        )
    member = np.zeros((len(regions), known[-1] + 1), np.uint8)
    for row, values in zip(member, regions.values(), strict=True):
        row[list(values)] = 1
    return member[:, np.rint(array).astype(np.intp)]


def _areas(values: np.ndarray, cut: float) -> list[float]:
    """Values between black and the cut that fill a block of pixels: no soft edges, but drawn areas."""
    between = (values > _BLACK * (cut / 127)) & (values <= cut)
    if not between.any():
        return []
    indices = np.nonzero(between)
    box = tuple(slice(max(0, axis.min() - 1), axis.max() + 2) for axis in indices)
    values, between = values[box], between[box]
    lowest, highest = (step(values, _BLOCK, mode="constant", cval=-1) for step in (minimum_filter, maximum_filter))
    return sorted(np.unique(values[between & (lowest == highest)]).tolist())[:5]


def check_tumor(mask: np.ndarray, path: Any) -> None:
    """Refuse what can be no tumor: an inverted mask, or one of the whole image.

    Args:
        mask: (X, Y[, Z]), 0 or 1; axes of length 1 do not count.
        path: for the message.

    Raises:
        ValueError: When the mask sets more than half of the image and nearly all of its rim.
    """
    share = float(mask.mean())
    if share <= _MAX_SHARE:
        return
    faces = [np.take(mask, end, axis=axis).reshape(-1) for axis in range(mask.ndim) for end in (0, -1)
             if mask.shape[axis] > 1]  # fmt: skip
    rim = float(np.concatenate(faces).mean()) if faces else 1.0
    if rim > _MAX_RIM:
        raise ValueError(
            f"mask {path} marks {share:.0%} of the image as tumor and {rim:.0%} of its rim: inverted, or no mask; "
            "save it with tumor in white on black"
        )
