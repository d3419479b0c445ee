"""Find the head (or, in skull-stripped images, the brain) in an image of any intensity scale."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform
from scipy import ndimage
from skimage.filters import threshold_otsu

from transforms.describe import describe

# The mask is found on a grid of one to two times this many cells a side: averaging takes the noise out, and it is fast.
_GRID = {2: 128, 3: 80}
_LOW_SHARE = 0.12  # of the way from air to tissue; brain extraction (BET) uses 0.1
_NOISE_SHARE = 0.25  # noise in the rim's belt may raise the lower threshold up to this share of the way, no further
_MIN_COMPONENT = 0.03  # of the largest component; burnt-in letters are below 0.005
_MIN_AREA = 0.003  # of the image
_MIN_NEIGHBOR_CORRELATION = 0.4  # white noise: below 0.1 after averaging; heads: above 0.9


def foreground_mask(image: np.ndarray | torch.Tensor) -> np.ndarray:
    """Find the head, skull and scalp kept; in a skull-stripped image the brain.

    The rule is scale-free: air is what the rim of the image shows, tissue what Otsu's threshold separates from it, and
    the mask is what lies above 12 % of the way (or four standard deviations of the air) and is connected to tissue.
    Small components (burnt-in text) are dropped, holes and dark bays (bone, fluid, the cut edge of the field of view)
    are filled. A constant air inside the intensity range (z-scored images with air 0) and a white background are
    recognized at the rim.

    Args:
        image: (C, X, Y), (C, X, Y, Z) or (X, Y), any real dtype, range and unit. A voxel is foreground if any channel
            says so.

    Returns:
        bool array of the spatial shape, (X, Y) or (X, Y, Z), True in the head.

    Raises:
        ValueError: When the image is not 2D or 3D, is not finite, or shows no foreground (constant, or noise only).
    """
    if isinstance(image, torch.Tensor):
        image = image.detach().cpu().numpy()
    # A contiguous copy in native byte order: torch takes neither negative strides nor big-endian or uint16 arrays.
    data = torch.from_numpy(np.ascontiguousarray(image, dtype=np.float32))
    if data.ndim == 2:
        data = data[None]
    dims = data.ndim - 1
    if dims not in (2, 3) or 0 in data.shape:
        raise ValueError(f"expected an image of shape (C, X, Y) or (C, X, Y, Z), got {tuple(data.shape)}")
    if not np.isfinite(data.sum(dtype=torch.float64).item()):
        raise ValueError(f"{int((~torch.isfinite(data)).sum())} values are not finite (NaN or infinite)")
    shape = tuple(data.shape[1:])
    factors = tuple(max(1, n // _GRID[dims]) for n in shape)
    found, reasons = None, []
    for channel in data:
        try:
            mask = _coarse_mask(channel, factors)
        except _NothingFound as error:
            reasons.append(str(error))
            continue
        found = mask if found is None else found | mask
    if found is None:
        raise ValueError(f"no foreground found: {'; '.join(dict.fromkeys(reasons))}")
    for axis, factor in enumerate(factors):
        found = np.repeat(found, factor, axis=axis) if factor > 1 else found
    return np.ascontiguousarray(found[tuple(slice(n) for n in shape)])


class _NothingFound(ValueError):
    """One channel shows no foreground."""


def _coarse_mask(channel: torch.Tensor, factors: tuple[int, ...]) -> np.ndarray:
    """Mask of one channel on the coarse grid, ``ceil(n / factor)`` cells a side."""
    low, high = float(channel.min()), float(channel.max())
    if high <= low:
        raise _NothingFound("the image is constant")
    channel = (channel - low) / (high - low)
    air_value = _constant_air(channel)
    if air_value is not None:
        channel = (channel - air_value).abs()
    pool = torch.nn.functional.avg_pool2d if channel.ndim == 2 else torch.nn.functional.avg_pool3d
    kernel: Any = factors
    coarse = pool(channel[None, None], kernel, ceil_mode=True)[0, 0].numpy()
    _refuse_noise(coarse)
    signal = ndimage.uniform_filter(coarse, 3, mode="nearest")
    signal = np.minimum(signal, np.quantile(signal[::2, ::2], 0.995))
    ring = _ring(signal.shape)
    page = _white_page(signal, ring)
    if page is not None:
        # The averaging blurred the page's edge over two cells: they would stay behind as a bright frame.
        rim = _dilate(_dilate(page))
        signal = np.where(rim, signal.min(), signal)
    threshold_high, threshold_low = _thresholds(signal, ring)
    mask = _keep_components(signal > threshold_low, signal > threshold_high)
    share = float(mask.mean())
    if share < _MIN_AREA:
        raise _NothingFound(
            f"the largest bright region covers {share:.2%} of the image, at least {_MIN_AREA:.1%} expected"
        )
    mask = _fill(mask)
    if page is not None:  # a head that touches the page gets its outermost cells back
        mask |= _dilate(_dilate(_dilate(mask))) & rim & ~_erode(page)
    return mask


def _ring(shape: tuple[int, ...]) -> np.ndarray:
    """True on the outermost cells; for volumes on the in-plane rim only, since heads are cut at the first slice."""
    ring = np.zeros(shape, bool)
    for axis in range(2):
        index: list[Any] = [slice(None)] * len(shape)
        for end in (0, -1):
            index[axis] = end
            ring[tuple(index)] = True
    return ring


def _constant_air(channel: torch.Tensor) -> float | None:
    """Air that is one exact value in the middle of the range, as in z-scored skull-stripped images; else None."""
    rim = torch.cat([channel[0].flatten(), channel[-1].flatten(), channel[:, 0].flatten(), channel[:, -1].flatten()])
    value = float(rim.median())
    if not 0.02 < value < 0.9 or float((rim == value).float().mean()) < 0.5:
        return None
    return value if float((channel < value - 0.02).float().mean()) > 0.02 else None


def _refuse_noise(coarse: np.ndarray) -> None:
    """Raise when neighboring cells are unrelated: noise without a head."""
    centered = coarse - coarse.mean()
    products = (centered[1:] * centered[:-1]).mean(), (centered[:, 1:] * centered[:, :-1]).mean()
    correlation = float(np.mean(products)) / max(float((centered**2).mean()), 1e-20)
    if correlation < _MIN_NEIGHBOR_CORRELATION:
        raise _NothingFound(f"the image is noise (neighboring pixels correlate at {correlation:.2f})")


def _white_page(signal: np.ndarray, ring: np.ndarray) -> np.ndarray | None:
    """Cells of a white page around the head, or around the picture's black frame; None if there is no page."""
    bottom, top = float(signal.min()), float(signal.max())
    white = signal > bottom + 0.85 * (top - bottom)
    if white[ring].mean() < 0.25:
        return None
    labels, count = ndimage.label(white)
    contact = np.bincount(labels[ring], minlength=count + 1)
    contact[0] = 0
    return (contact >= 0.1 * ring.sum())[labels]


def _thresholds(signal: np.ndarray, ring: np.ndarray) -> tuple[float, float]:
    """Otsu's threshold (surely tissue) and the lower one (tissue where connected to tissue)."""
    top = float(signal.max())
    if top <= float(signal.min()):
        raise _NothingFound("nothing stands out from the background")
    counts = np.bincount((signal * (127.999 / top)).astype(np.uint8).ravel(), minlength=128)
    high = float(threshold_otsu(hist=(counts, (np.arange(128) + 0.5) * (top / 128))))
    tissue = float(np.median(signal[signal > high]))
    rim = signal[ring]
    rim = rim[rim <= high]
    darkest = float(signal.min())
    air = float(np.median(rim)) if rim.size > 0.05 * ring.sum() else darkest
    spread = 1.4826 * float(np.median(np.abs(rim - air))) if rim.size else 0.0
    reach = tissue - darkest
    if air > darkest + 0.3 * reach or spread > 0.1 * reach:  # the head is cut all around: the rim shows tissue, not air
        return high, darkest + _LOW_SHARE * reach
    low = air + max(_LOW_SHARE * (tissue - air), 4 * spread)
    # A field of view with blank (exactly 0) sides hides its noise from the rim: look a little further in.
    sure = _dilate(_dilate(_fill(_dilate(_erode(signal > high)))))
    belt = signal[_belt(signal.shape) & ~sure]
    if belt.size > 0.02 * signal.size:
        noise = air + 1.3 * (float(np.quantile(belt, 0.8)) - air)
        low = max(low, min(noise, air + _NOISE_SHARE * (tissue - air)))
    return high, min(low, high)


def _belt(shape: tuple[int, ...]) -> np.ndarray:
    """True within a tenth of the in-plane rim."""
    belt = np.ones(shape, bool)
    belt[tuple(slice(n // 10, n - n // 10) for n in shape[:2])] = False
    return belt


def _keep_components(low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """Opened components that hold sure tissue and are not small beside the largest."""
    opened = _dilate(_erode(low))
    labels, count = ndimage.label(opened)
    if count == 0:
        return opened
    sizes = np.bincount(labels.ravel(), minlength=count + 1)
    sure = np.bincount(labels[high], minlength=count + 1) > 0
    sizes[0] = 0
    sizes[~sure] = 0
    keep = (sizes > 0) & (sizes >= _MIN_COMPONENT * sizes.max())
    return keep[labels]


def _fill(mask: np.ndarray) -> np.ndarray:
    """Fill what has mask on all sides but at most one: holes, and bays cut open by the image's edge."""
    sides = np.zeros(mask.shape, np.uint8)
    for axis, size in enumerate(mask.shape):
        index = np.arange(size).reshape([-1 if a == axis else 1 for a in range(mask.ndim)])
        hit = mask.any(axis=axis, keepdims=True)
        first = np.where(hit, mask.argmax(axis=axis, keepdims=True), size)
        last = np.where(hit, size - 1 - np.flip(mask, axis).argmax(axis=axis, keepdims=True), -1)
        sides += index >= first
        sides += index <= last
    return mask | (sides >= 2 * mask.ndim - 1)


def _dilate(mask: np.ndarray) -> np.ndarray:
    """Grow by one cell along each axis (ten times as fast as scipy's on these small grids)."""
    grown = mask.copy()
    for axis in range(mask.ndim):
        to, source = grown.swapaxes(axis, 0), mask.swapaxes(axis, 0)
        to[1:] |= source[:-1]
        to[:-1] |= source[1:]
    return grown


def _erode(mask: np.ndarray) -> np.ndarray:
    """Shrink by one cell along each axis; beyond the edge of the image is outside, so that a frame line goes."""
    shrunk = ~_dilate(~mask)
    shrunk[_ring(mask.shape)] = False
    return shrunk


def air_level(image: np.ndarray | torch.Tensor) -> float | None:
    """Value of the air where the file was normalized before: air that is not 0 though the image has values below 0.

    A magnitude image has no values below 0. Files that were z-scored or otherwise shifted do, and where their air was
    not set back to 0 it lies below the tissue (BRATS 2013 as preprocessed: about -3 to -6).

    Args:
        image: (X, Y), (X, Y, Z), any real dtype and unit, finite.

    Returns:
        the median of the in-plane rim, in the image's unit, or None: no values below 0 beyond the overshoot of a
        resampling (2 % of the range), or an air of 0.
    """
    array = np.asarray(image.detach().cpu() if isinstance(image, torch.Tensor) else image, np.float32)
    low, high = float(array.min()), float(array.max())
    rim = np.concatenate([array[0].ravel(), array[-1].ravel(), array[:, 0].ravel(), array[:, -1].ravel()])
    air = float(np.median(rim))
    if low >= 0 or high <= low or abs(air) <= 0.02 * (high - low):
        return None
    return air


def doubts(mask: np.ndarray, least: float = 0.05, most: float = 0.97) -> list[str]:
    """Say why a foreground mask may be wrong, so that a person looks at it; nothing where it is as heads are.

    Args:
        mask: bool (X, Y), True in the head.
        least, most: share of the picture that a head takes.

    Returns:
        reasons, each a short phrase; empty where there is no doubt.
    """
    reasons = []
    share = float(mask.mean())
    if share < least:
        reasons.append(f"covers {share:.1%} of the image, below {least:.0%}")
    if share > most:
        reasons.append(f"covers {share:.1%} of the image, above {most:.0%}: air may be taken for head")
    corners = [mask[x, y] for x in (0, -1) for y in (0, -1)]
    if sum(corners) >= 3:
        reasons.append(f"holds {sum(corners)} of 4 corners: the head is cut all around, or air is taken for head")
    labels, count = ndimage.label(mask)
    if count > 1:
        sizes = np.bincount(labels.ravel())[1:]
        rest = 1 - float(sizes.max()) / float(sizes.sum())
        if rest > 0.1:
            reasons.append(f"is in {count} pieces, {rest:.0%} outside the largest")
    return reasons


class ForegroundMaskd(MapTransform):
    """Add the foreground mask of an image to the item, or check the one that the user gives.

    Args:
        keys: the image, (C, X, Y[, Z]); one key.
        foreground_key: where the mask goes: uint8 (1, X, Y[, Z]), 0 or 1, with the image's metadata. If the item holds
            one there already it is used: non-zero is foreground.

    Raises:
        ValueError: When no foreground is found, or the given mask has another size or is empty. Names the file.
    """

    stage = "foreground"

    def __init__(self, keys: KeysCollection = "image", foreground_key: str = "foreground") -> None:
        super().__init__(keys)
        if len(self.keys) != 1:
            raise ValueError(f"ForegroundMaskd takes one image key, got {self.keys}")
        self.foreground_key = foreground_key

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return the item with the mask added."""
        item = dict(data)
        image = item[self.keys[0]]
        given = item.get(self.foreground_key)
        if given is None:
            try:
                mask = torch.from_numpy(foreground_mask(image))[None].to(torch.uint8)
            except ValueError as error:
                raise ValueError(
                    f"{describe(item, self.keys[0])}: {error}. "
                    f"Leave the image out, or give a mask of the head under '{self.foreground_key}'"
                ) from error
        else:
            mask = self._checked(given, image, item)
        if isinstance(image, MetaTensor):
            mask = MetaTensor(mask, meta=dict(image.meta), applied_operations=list(image.applied_operations))
        item[self.foreground_key] = mask
        return item

    def _checked(self, given: Any, image: torch.Tensor, item: Mapping[Hashable, Any]) -> torch.Tensor:
        mask = torch.as_tensor(np.asarray(given))
        where = f"{describe(item, self.keys[0])}: the given foreground mask"
        if tuple(mask.shape[1:]) != tuple(image.shape[1:]):
            raise ValueError(f"{where} has size {tuple(mask.shape[1:])}, the image {tuple(image.shape[1:])}")
        mask = (mask != 0).any(0, keepdim=True).to(torch.uint8)
        if not mask.any():
            raise ValueError(f"{where} is empty; leave it out to have one computed")
        return mask
