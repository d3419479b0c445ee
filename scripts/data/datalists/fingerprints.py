"""What a picture looks like in 672 bytes: perceptual hashes that find similar ones, and thumbnails that confirm copies.

Mirrored, rotated and differently cropped copies are common (data were augmented before they were published) and have
other hashes. So besides the picture's own hash there is that of the head cut out, turned to its principal axes, in four
mirrorings. A hash has one bit a frequency, whatever its strength: pictures of few details agree in nearly all of them
without being copies. The thumbnails keep the gray values, see `unlikeness`.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy.fft import dctn
from scipy.ndimage import map_coordinates, uniform_filter

from transforms.foreground import foreground_mask
from transforms.intensity import quantile

__all__ = [
    "BITS", "SIZE", "fingerprint", "gray_image", "packed", "perceptual_hash", "standardized", "thumbnails", "turn_head",
    "unlikeness", "unpacked",
]  # fmt: skip

HASH_SIZE, BITS = 16, 256
VIEWS = 5  # upright, then the turned head in four mirrorings
THUMBNAIL = 16
_PIXELS = (64, 64)
_ODD = (-1.0) ** np.arange(HASH_SIZE)[:, None]
_HASH_BYTES = VIEWS * BITS // 8
SIZE = _HASH_BYTES + 2 * THUMBNAIL**2


def gray_image(image: Image.Image) -> Image.Image:
    """An 8-bit gray copy of a picture of any mode; modes of more than 8 bits are stretched from minimum to maximum."""
    if image.mode in ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr", "HSV"):
        return image.convert("L")
    return Image.fromarray(_stretched(np.asarray(image, dtype=np.float64)))


def _stretched(pixels: NDArray) -> NDArray[np.uint8]:
    low, high = float(pixels.min()), float(pixels.max())
    return np.rint((pixels - low) / max(high - low, 1e-12) * 255).astype(np.uint8)


def perceptual_hash(image: Image.Image) -> NDArray[np.bool_]:
    """The 256-bit perceptual hash of a picture, bool (256,), of any size and mode (ImageHash's ``phash``)."""
    return _bits(_low_frequencies(gray_image(image).resize(_PIXELS, Image.Resampling.LANCZOS)))


def _low_frequencies(pixels: Image.Image | NDArray) -> NDArray[np.float64]:
    """The lowest frequencies of the cosine transform of an 8-bit picture of 64 by 64 pixels, (16, 16)."""
    return dctn(np.asarray(pixels, np.float64), type=2)[:HASH_SIZE, :HASH_SIZE]


def _bits(frequencies: NDArray) -> NDArray[np.bool_]:
    return (frequencies > np.median(frequencies)).ravel()


def turn_head(image: NDArray, size: int = 64) -> NDArray[np.float32]:
    """The head cut out and turned so that its longest axis is upright: the same for rotated and cropped copies.

    Args:
        image: (X, Y), any real dtype and unit.
        size: of the result.

    Returns:
        (size, size); mirrored copies give mirrored results.

    Raises:
        ValueError: when no head is found.
    """
    pixels = np.asarray(image, np.float32)
    mask = foreground_mask(pixels[None])
    places = np.argwhere(mask)
    center = places.mean(axis=0)
    _, axes = np.linalg.eigh(np.cov((places - center).T))
    long = axes[:, 1] * (1 if axes[1, 1] >= 0 else -1)
    basis = np.array([[long[1], long[0]], [-long[0], long[1]]])
    reach = float(max(quantile(along, 0.995) for along in np.abs((places - center) @ basis).T)) * 1.05
    steps = np.linspace(-reach, reach, size)
    grid = np.stack(np.meshgrid(steps, steps, indexing="ij"), axis=-1) @ basis.T + center
    head = (pixels - pixels.min()) * mask
    coarse = uniform_filter(head, max(1, int(2 * reach / size)))
    return map_coordinates(coarse, [grid[..., 0], grid[..., 1]], order=1).astype(np.float32)


def fingerprint(image: Image.Image) -> NDArray[np.uint8]:
    """Hashes of a picture and of its turned head in four mirrorings, and a thumbnail of each, uint8 (672,).

    Without a head the whole picture stands for it.
    """
    gray = gray_image(image)
    try:
        turned = turn_head(np.asarray(gray).T)
    except ValueError:
        turned = np.asarray(gray.resize(_PIXELS, Image.Resampling.LANCZOS), np.float32).T
    upright, head = np.asarray(gray.resize(_PIXELS, Image.Resampling.LANCZOS)), _stretched(turned.T)
    frequencies = _low_frequencies(head)
    # In a mirrored picture the odd frequencies have the other sign.
    views = [frequencies * down * along for down in (1, _ODD) for along in (1, _ODD.T)]
    hashes = np.stack([_bits(_low_frequencies(upright)), *map(_bits, views)])
    return packed(hashes, np.stack([_thumbnail(upright), _thumbnail(head)]))


def _thumbnail(pixels: NDArray) -> NDArray[np.uint8]:
    """Means over the squares of a (64, 64) picture, stretched to 0 to 255."""
    step = len(pixels) // THUMBNAIL
    return _stretched(pixels.reshape(THUMBNAIL, step, THUMBNAIL, step).mean(axis=(1, 3)))


def packed(hashes: NDArray[np.bool_], thumbnails: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Fingerprints of hashes (..., 5, 256) and thumbnails (..., 2, 16, 16), uint8 (..., 672)."""
    bits, gray = np.packbits(hashes, axis=-1), np.asarray(thumbnails, np.uint8)
    return np.concatenate([part.reshape(*hashes.shape[:-2], -1) for part in (bits, gray)], axis=-1)


def unpacked(fingerprints: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Hashes in fingerprints (N, 672), bool (N, 5, 256)."""
    bits = fingerprints[:, :_HASH_BYTES].reshape(len(fingerprints), VIEWS, -1)
    return np.unpackbits(bits, axis=-1).astype(bool)


def thumbnails(fingerprints: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Thumbnails in fingerprints (N, 672), of the picture and of the turned head, uint8 (N, 2, 16, 16)."""
    return fingerprints[:, _HASH_BYTES:].reshape(-1, 2, THUMBNAIL, THUMBNAIL)


def unlikeness(fingerprints: NDArray[np.uint8], first: NDArray[np.int64], second: NDArray[np.int64]) -> NDArray:
    """How little pairs of pictures look like copies, float32 (P, 2): 1 less the correlation of their thumbnails.

    Args:
        fingerprints: uint8 (N, 672).
        first: (P,) one of each pair.
        second: (P,) the other.

    Returns:
        of the pictures, and of the turned heads in the mirroring that fits best; infinite where one shows nothing.
    """
    gray = thumbnails(fingerprints)
    distances = np.empty((len(first), 2), np.float32)
    for start in range(0, len(first), 1 << 15):
        part = slice(start, start + (1 << 15))
        one, two = (standardized(gray[chosen[part]]) for chosen in (first, second))
        distances[part, 0] = 1 - np.einsum("pij,pij->p", one[:, 0], two[:, 0])
        mirrored = [two[:, 1, ::down, ::along] for down in (1, -1) for along in (1, -1)]
        distances[part, 1] = 1 - np.max([np.einsum("pij,pij->p", one[:, 1], view) for view in mirrored], axis=0)
    distances[np.isnan(distances)] = np.inf
    return distances


def standardized(gray: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Thumbnails (..., 16, 16) of mean 0 and length 1; not a number where all is one gray value."""
    centered = gray - gray.mean(axis=(-2, -1), keepdims=True, dtype=np.float32)
    length = np.sqrt((centered**2).sum(axis=(-2, -1), keepdims=True))
    return np.divide(centered, length, out=np.full_like(centered, np.nan), where=length > 0)
