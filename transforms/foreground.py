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

from transforms.describe import describe
from transforms.intensity import ordered
from transforms.morphology import dilate, erode, fill, growing_steps, keep_components

# The mask is found on a grid of one to two times this many cells a side: averaging takes the noise out, and it is fast.
_GRID = {2: 128, 3: 80}
_LOW_SHARE = 0.12  # of the way from air to tissue; brain extraction (BET) uses 0.1
_NOISE_SHARE = 0.25  # noise outside the head may raise the lower threshold up to this share of the way, no further
_NOISE_WIDTH = 3.0  # above the median of what is outside, so many times its distance to the 20 % quantile
_CLEAR = 8  # what is nearer to sure tissue than this part of the image's side is not looked at for noise
_BINS = 256
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
    data = np.ascontiguousarray(image, dtype=np.float32)
    if data.ndim == 2:
        data = data[None]
    dims = data.ndim - 1
    if dims not in (2, 3) or 0 in data.shape:
        raise ValueError(f"expected an image of shape (C, X, Y) or (C, X, Y, Z), got {data.shape}")
    if not np.isfinite([data.min(), data.max()]).all():  # NaN is passed on by both
        raise ValueError(f"{int((~np.isfinite(data)).sum())} values are not finite (NaN or infinite)")
    shape = data.shape[1:]
    factors = tuple(max(1, n // _GRID[dims]) for n in shape)
    union, reasons = None, []
    for channel in data:
        try:
            mask = _coarse_mask(channel, factors)
        except _NothingFound as error:
            reasons.append(str(error))
            continue
        union = mask if union is None else union | mask
    if union is None:
        raise ValueError(f"no foreground found: {'; '.join(dict.fromkeys(reasons))}")
    return _enlarge(union, factors, shape)


class _NothingFound(ValueError):
    """One channel shows no foreground."""


def _enlarge(coarse: np.ndarray, factors: tuple[int, ...], shape: tuple[int, ...]) -> np.ndarray:
    """Every cell as a block of ``factors`` pixels, cut to ``shape``."""
    for axis in reversed(range(coarse.ndim)):  # the last axis first: what is copied most then lies in one piece
        coarse = np.repeat(coarse, factors[axis], axis=axis) if factors[axis] > 1 else coarse
    return np.ascontiguousarray(coarse[tuple(slice(n) for n in shape)])


def _pool(channel: np.ndarray, factors: tuple[int, ...]) -> np.ndarray:
    """Means over blocks of ``factors`` pixels, the last ones over what is left (a third of the time of torch's)."""
    for axis, factor in enumerate(factors):
        whole = channel.shape[axis] // factor * factor
        source = np.moveaxis(channel, axis, 0)
        if factor == 1:
            continue
        out = source[0:whole:factor] + source[1:whole:factor]
        for k in range(2, factor):
            out += source[k:whole:factor]
        out *= np.float32(1 / factor)
        if whole < len(source):
            out = np.concatenate([out, source[whole:].mean(axis=0, keepdims=True)])
        channel = np.moveaxis(out, 0, axis)
    return channel


def _coarse_mask(channel: np.ndarray, factors: tuple[int, ...]) -> np.ndarray:
    """Mask of one channel on the coarse grid, ``ceil(n / factor)`` cells a side."""
    low, high = float(channel.min()), float(channel.max())
    if high <= low:
        raise _NothingFound("the image is constant")
    air_value = _constant_air(channel, low, high)
    if air_value is not None:
        channel, low = np.abs(channel - np.float32(air_value)), 0.0
    coarse = (_pool(channel, factors) - np.float32(low)) * np.float32(1 / (high - low))
    _refuse_noise(coarse)
    signal = _smooth(coarse)
    np.minimum(signal, np.float32(_quantile(signal[::2, ::2].ravel(), 0.995)), out=signal)
    page = _white_page(signal)
    if page is not None:
        # The averaging blurred the page's edge over two cells: they would stay behind as a bright frame.
        rim = dilate(dilate(page))
        signal = np.where(rim, signal.min(), signal)
    threshold_high, threshold_low = _thresholds(signal)
    mask = keep_components(signal > threshold_low, signal > threshold_high, _MIN_COMPONENT)
    share = np.count_nonzero(mask) / mask.size
    if share < _MIN_AREA:
        raise _NothingFound(
            f"the largest bright region covers {share:.2%} of the image, at least {_MIN_AREA:.1%} expected"
        )
    mask = fill(mask)
    if page is not None:  # a head that touches the page gets its outermost cells back
        mask |= dilate(dilate(dilate(mask))) & rim & ~erode(page)
    return mask


def _smooth(cells: np.ndarray) -> np.ndarray:
    """Mean over 3 cells along each axis, the outermost repeated (a third of scipy's time on these small grids)."""
    for axis in range(cells.ndim):
        smooth = cells.copy(order="K")
        source, out = cells.swapaxes(axis, 0), smooth.swapaxes(axis, 0)
        out[1:] += source[:-1]
        out[:-1] += source[1:]
        out[0] += source[0]
        out[-1] += source[-1]
        smooth *= np.float32(1 / 3)
        cells = smooth
    return cells


def _rim(cells: np.ndarray) -> np.ndarray:
    """Values of the outermost cells; for volumes of the in-plane rim only, since heads are cut at the first slice."""
    return np.concatenate([cells[0], cells[-1], cells[1:-1, 0], cells[1:-1, -1]], axis=None)


def _constant_air(channel: np.ndarray, low: float, high: float) -> float | None:
    """Air that is one exact value in the middle of the range, as in z-scored skull-stripped images; else None."""
    rim = _rim(channel)
    value = float(np.partition(rim, rim.size // 2)[rim.size // 2])
    share = (value - low) / (high - low)
    if not 0.02 < share < 0.9 or np.count_nonzero(rim == np.float32(value)) < 0.5 * rim.size:
        return None
    below = np.count_nonzero(channel < value - 0.02 * (high - low))
    return value if below > 0.02 * channel.size else None


def _refuse_noise(coarse: np.ndarray) -> None:
    """Raise when neighboring cells are unrelated: noise without a head."""
    centered = coarse - coarse.mean()
    flat = centered.reshape(len(centered), -1)
    pairs = np.einsum("ij,ij", flat[1:], flat[:-1]) / flat[1:].size
    step = flat.shape[1] // centered.shape[1]
    pairs += np.einsum("ij,ij", flat[:, step:], flat[:, :-step]) / (flat.size - len(flat) * step)
    correlation = 0.5 * float(pairs) / max(float(np.einsum("ij,ij", flat, flat)) / flat.size, 1e-20)
    if correlation < _MIN_NEIGHBOR_CORRELATION:
        raise _NothingFound(f"the image is noise (neighboring pixels correlate at {correlation:.2f})")


def _white_page(signal: np.ndarray) -> np.ndarray | None:
    """Cells of a white page around the head, or around the picture's black frame; None if there is no page."""
    bottom, top = float(signal.min()), float(signal.max())
    level = bottom + 0.85 * (top - bottom)
    rim = _rim(signal)
    if np.count_nonzero(rim > level) < 0.25 * rim.size:
        return None
    labels, count = ndimage.label(signal > level)
    contact = np.bincount(_rim(labels), minlength=count + 1)
    contact[0] = 0
    return (contact >= 0.1 * rim.size)[labels]


def _thresholds(signal: np.ndarray) -> tuple[float, float]:
    """Otsu's threshold (surely tissue) and the lower one (tissue where connected to tissue)."""
    darkest, top = float(signal.min()), float(signal.max())
    if top <= darkest:
        raise _NothingFound("nothing stands out from the background")
    counts = np.bincount((signal * (_BINS * 0.9999 / top)).astype(np.uint8).ravel(), minlength=_BINS)
    high = otsu(counts) * top / _BINS
    tissue = _quantile(signal[signal > high], 0.5)
    rim = _rim(signal)
    dark = rim[rim <= high]
    air = _quantile(dark, 0.5) if dark.size > 0.05 * rim.size else darkest
    spread = 1.4826 * _quantile(np.abs(dark - np.float32(air)), 0.5) if dark.size else 0.0
    reach = tissue - darkest
    if air > darkest + 0.3 * reach or spread > 0.1 * reach:  # the head is cut all around: the rim shows tissue, not air
        return high, darkest + _LOW_SHARE * reach
    low = air + max(_LOW_SHARE * (tissue - air), 4 * spread)
    return high, min(max(low, min(_noise(signal, high, air, tissue), air + _NOISE_SHARE * (tissue - air))), high)


def _noise(signal: np.ndarray, high: float, air: float, tissue: float) -> float:
    """Upper end of the noise well outside of sure tissue, where there is more than blank; else minus infinity.

    A field of view with blank (exactly 0) sides hides its noise from the rim. The lower half of what is outside tells
    the width: dim tissue is in the upper one.
    """
    subsampled = signal[::2, ::2]
    near = erode(subsampled > high)
    for step in growing_steps(1 + min(subsampled.shape[:2]) // _CLEAR):
        near = dilate(near, step)
    outside = subsampled[(subsampled > air + 0.01 * (tissue - air)) & ~near]
    if outside.size < 0.03 * subsampled.size:
        return -np.inf
    middle = _quantile(outside, 0.5)
    return middle + _NOISE_WIDTH * (middle - _quantile(outside, 0.2))


def _quantile(values: np.ndarray, share: float) -> float:
    """The value below which this share lies, without interpolation."""
    return float(ordered(values, int(share * (values.size - 1))))


def otsu(counts: np.ndarray) -> float:
    """Otsu's threshold of a histogram, in bins: the middle of the bin that separates two classes best.

    The same as scikit-image's, in a fifth of its time.

    Args:
        counts: int (N,), N >= 2.

    Raises:
        ValueError: When all values are in one bin.
    """
    below = np.cumsum(counts)[:-1].astype(np.float64)
    moment = np.cumsum(counts * np.arange(len(counts), dtype=np.float64))
    total, above = moment[-1], counts.sum() - below
    product = below * above
    split = product > 0
    if not split.any():
        raise ValueError("all values lie in one bin of the histogram: there is nothing to separate")
    spread = (total * below - moment[:-1] * (below + above)) ** 2
    return float(np.divide(spread, product, out=np.zeros_like(spread), where=split).argmax()) + 0.5


def mask_depth(mask: np.ndarray) -> np.ndarray:
    """Distance from each place of a mask to the nearest one outside of it, in pixels; 0 outside.

    scipy's ``distance_transform_edt``, bit for bit: looked for in the mask's bounding box and one line around it, as
    from within the nearest place beyond that line is on it.

    Args:
        mask: bool (X, Y[, Z]); where all is True there is no outside, and scipy's answer means nothing.

    Returns:
        float64 like ``mask``.
    """
    box = []
    for axis in range(mask.ndim):
        hit = np.flatnonzero(mask.any(axis=tuple(a for a in range(mask.ndim) if a != axis)))
        if not hit.size:
            return np.zeros(mask.shape)
        box.append(slice(max(0, int(hit[0]) - 1), int(hit[-1]) + 2))
    depth = np.zeros(mask.shape)
    depth[tuple(box)] = ndimage.distance_transform_edt(mask[tuple(box)])
    return depth


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


def foreground_warnings(mask: np.ndarray, least: float = 0.05, most: float = 0.97) -> list[str]:
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
        foreground = item.get(self.foreground_key)
        if foreground is None:
            try:
                mask = torch.from_numpy(foreground_mask(image)[None].view(np.uint8))
            except ValueError as error:
                raise ValueError(
                    f"{describe(item, self.keys[0])}: {error}. "
                    f"Leave the image out, or give a mask of the head under '{self.foreground_key}'"
                ) from error
        else:
            mask = self._checked(foreground, image, item)
        if isinstance(image, MetaTensor):
            mask = MetaTensor(mask, meta=dict(image.meta), applied_operations=list(image.applied_operations))
        item[self.foreground_key] = mask
        return item

    def _checked(self, stated: Any, image: torch.Tensor, item: Mapping[Hashable, Any]) -> torch.Tensor:
        mask = torch.as_tensor(np.asarray(stated))
        prefix = f"{describe(item, self.keys[0])}: the given foreground mask"
        if tuple(mask.shape[1:]) != tuple(image.shape[1:]):
            raise ValueError(f"{prefix} has size {tuple(mask.shape[1:])}, the image {tuple(image.shape[1:])}")
        mask = (mask != 0).any(0, keepdim=True).to(torch.uint8)
        if not mask.any():
            raise ValueError(f"{prefix} is empty; leave it out to have one computed")
        return mask
