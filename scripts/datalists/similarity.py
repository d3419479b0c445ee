"""Near-duplicate groups by perceptual hash: the only guard where patient numbers are missing.

Measured on the 5,000 slices of brisc2025 (256-bit phash, single linkage): pairs up to a distance of 34 bits are nearly
all the same picture or a neighboring slice of the same patient, and copies that were resized or JPEG-coded anew (down
to 100 px, quality 60) stay within 8 bits, with another gamma within 22. Up to 40 bits groups stay small (3,755 groups,
the largest of 14); at 56 bits chains run through 401 images, and at 64 through 2,097. With the usual 64-bit hash chains
start earlier than neighboring slices are found (103 images at 6 bits, 1,542 at 8), so it is not used.

A mirrored, rotated or differently cropped copy is not found.
"""

from __future__ import annotations

import logging
import math

import imagehash
import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

logger = logging.getLogger(__name__)

HASH_SIZE = 16
MAX_DISTANCE = 40
# A group may hold this many images, or this share of all, whatever is more; beyond it the images are chained.
MAX_GROUP, MAX_GROUP_SHARE = 20, 0.1
_STEP = 8
_BLOCK = 1024


def gray_image(image: Image.Image) -> Image.Image:
    """An 8-bit gray copy of a picture of any mode; modes of more than 8 bits are stretched from minimum to maximum."""
    if image.mode in ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr", "HSV"):
        return image.convert("L")
    pixels = np.asarray(image, dtype=np.float64)
    low, high = float(pixels.min()), float(pixels.max())
    return Image.fromarray(np.rint((pixels - low) / max(high - low, 1e-12) * 255).astype(np.uint8))


def perceptual_hash(image: Image.Image) -> NDArray[np.bool_]:
    """The 256-bit perceptual hash (ImageHash's phash) of a picture, bool (256,), of any size and mode."""
    small = gray_image(image).resize((64, 64), Image.Resampling.LANCZOS)
    return np.asarray(imagehash.phash(small, hash_size=HASH_SIZE, highfreq_factor=4).hash).ravel()


def _near_pairs(hashes: NDArray[np.bool_], limit: int) -> tuple[NDArray, NDArray, NDArray]:
    """All pairs (first, second, distance in bits), first < second, at a distance of at most `limit`."""
    signs = hashes.astype(np.float32) * 2 - 1
    found: list[tuple[NDArray, NDArray, NDArray]] = []
    for start in range(0, len(signs), _BLOCK):
        distance = (hashes.shape[1] - signs[start : start + _BLOCK] @ signs[start:].T) / 2
        first, second = np.nonzero(distance <= limit + 0.25)
        keep = second > first
        first, second = first[keep], second[keep]
        found.append((first + start, second + start, distance[first, second]))
    return (
        np.concatenate([pair[0] for pair in found]),
        np.concatenate([pair[1] for pair in found]),
        np.concatenate([pair[2] for pair in found]),
    )


def group_near_duplicates(
    hashes: NDArray[np.bool_], max_distance: int = MAX_DISTANCE, same: NDArray[np.int64] | None = None
) -> tuple[NDArray[np.int64], int]:
    """Join images whose hashes differ by at most `max_distance` bits, directly or over others (single linkage).

    Where that chains more than 20 images and more than a tenth of all into one group, the distance is lowered by
    8 bits until it does not; exact duplicates stay together whatever the distance. The distance used is returned.

    Args:
        hashes: bool (N, bits), N >= 1.
        max_distance: in bits, from 0 to `bits`.
        same: (N,) content numbers: images of one number are duplicates.

    Returns:
        Group number of every image, int64 (N,), counted from 0 in order of first appearance, and the distance used.

    Raises:
        ValueError: when there is no hash, or the distance is out of range.
    """
    if hashes.ndim != 2 or len(hashes) == 0:
        raise ValueError(f"expected hashes of shape (N, bits) with N >= 1, got {hashes.shape}")
    if not 0 <= max_distance <= hashes.shape[1]:
        raise ValueError(f"max_distance must be from 0 to {hashes.shape[1]} bits, got {max_distance}")
    count = len(hashes)
    first, second, distance = _near_pairs(hashes, max_distance)
    links = (
        np.arange(count)
        if same is None
        else np.unique(same, return_index=True)[1][np.unique(same, return_inverse=True)[1]]
    )
    allowed = max(MAX_GROUP, math.ceil(MAX_GROUP_SHARE * count))
    while True:
        near = distance <= max_distance + 0.25
        rows, columns = np.concatenate([first[near], np.arange(count)]), np.concatenate([second[near], links])
        graph = coo_matrix((np.ones(len(rows), dtype=np.int8), (rows, columns)), shape=(count, count))
        labels = connected_components(graph, directed=False)[1]
        largest = int(np.bincount(labels).max())
        if largest <= allowed or max_distance == 0:
            break
        lower = max(0, max_distance - _STEP)
        logger.warning(
            "%d of %d images chained into one near-duplicate group at %d bits; trying %d bits",
            largest, count, max_distance, lower,
        )  # fmt: skip
        max_distance = lower
    order = {label: k for k, label in enumerate(dict.fromkeys(labels.tolist()))}
    return np.array([order[label] for label in labels.tolist()], dtype=np.int64), max_distance
