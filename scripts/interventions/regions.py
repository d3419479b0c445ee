"""Where an intervention may act: grown masks, the inside of a head, and places where a shape fits."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from scipy.signal import fftconvolve

Image = NDArray[np.float32]  # (C, H, W[, D])
Mask = NDArray[np.bool_]  # (H, W[, D])
Box = tuple[slice, ...]

# Places are searched on a grid of at most so many cells a side: shifts are multiples of its cells.
_CELLS = 96
# Of the radius of a disk of the head's area: so far inside of its outline lies the brain.
DEPTH = 0.14
# Share of odd values that a place may hold over those that tissue has.
_SOME = 0.07


class NoRoom(ValueError):
    """No place of the head holds the shape: the intervention is not possible on this picture."""


def check(image: NDArray[Any], mask: NDArray[Any] | None, foreground: NDArray[Any], what: str = "image") -> None:
    """Refuse arrays that do not belong together.

    Raises:
        ValueError: when the image is not float32 (C, H, W[, D]), a mask is not bool of its shape, or is empty, or the
            tumor covers more than half of the head.
    """
    if image.dtype != np.float32 or image.ndim not in (3, 4):
        raise ValueError(f"the {what} must be float32 (C, H, W[, D]), got {image.dtype} {image.shape}")
    for name, array in (("foreground", foreground), ("mask", mask)):
        if array is None:
            continue
        if array.dtype != np.bool_ or array.shape != image.shape[1:]:
            raise ValueError(
                f"the {name} of the {what} must be bool {image.shape[1:]}, got {array.dtype} {array.shape}"
            )
        if not array.any():
            raise ValueError(f"the {name} of the {what} is empty")
    if mask is not None and 2 * np.count_nonzero(mask & foreground) > np.count_nonzero(foreground):
        share = np.count_nonzero(mask & foreground) / np.count_nonzero(foreground)
        raise NoRoom(f"the mask covers {share:.0%} of the head: too little healthy tissue is left beside it")


def box_of(mask: Mask, margin: int = 0) -> Box:
    """The smallest box that holds a mask, ``margin`` larger on every side, cut at the picture's edge."""
    slices = []
    for axis in range(mask.ndim):
        held = np.flatnonzero(mask.any(axis=tuple(a for a in range(mask.ndim) if a != axis)))
        slices.append(slice(max(0, int(held[0]) - margin), min(mask.shape[axis], int(held[-1]) + 1 + margin)))
    return tuple(slices)


def grow(mask: Mask, radius: int) -> Mask:
    """All within ``radius`` pixels of a mask: a disk or ball of that radius about each of its pixels."""
    if radius < 1 or not mask.any():
        return mask.copy()
    box = box_of(mask, radius + 1)
    grown = mask.copy()
    grown[box] = ndimage.distance_transform_edt(~mask[box]) <= radius + 0.5
    return grown


def inner(foreground: Mask, depth: float = DEPTH) -> Mask:
    """The inside of a head, where the brain lies: without skull and scalp.

    Args:
        foreground: of the head.
        depth: distance to the outline, of the radius of a disk (3D: a ball) of the head's size.
    """
    step = _step(foreground.shape)
    coarse = _pooled(foreground, step, np.all)
    box = box_of(coarse, 1) if coarse.any() else tuple(slice(n) for n in coarse.shape)
    # A head that is cut at the picture's edge, or at a volume's first slice, goes on beyond it.
    padded = np.pad(coarse[box], 1, mode="edge")
    distance = ndimage.distance_transform_edt(padded)[tuple(slice(1, -1) for _ in box)]
    inside = np.zeros_like(coarse)
    inside[box] = distance > depth * _radius(int(coarse.sum()), coarse.ndim)
    for axis in range(inside.ndim):
        inside = np.repeat(inside, step, axis=axis)
    return inside[tuple(slice(n) for n in foreground.shape)] & foreground


def _radius(size: int, dims: int) -> float:
    return float(np.sqrt(size / np.pi) if dims == 2 else np.cbrt(0.75 * size / np.pi))


def _step(shape: Sequence[int]) -> int:
    return -(-max(shape) // _CELLS)


def _pooled(mask: Mask, step: int, how: Any) -> Mask:
    """Blocks of ``step`` pixels a side: where all, or any, of them are set; beyond the edge nothing is."""
    if step == 1:
        return mask
    padded = np.pad(mask, [(0, -n % step) for n in mask.shape])
    blocks = padded.reshape([part for n in padded.shape for part in (n // step, step)])
    return how(blocks, axis=tuple(range(1, blocks.ndim, 2)))


class Search:
    """Shifts by which a shape can be moved so that all of it lies in allowed tissue.

    Args:
        shape: what is moved, in a picture of any size.
        allowed: where it may lie.

    Attributes:
        shifts: int (N, D), in pixels: position there minus position in ``shape``'s own picture; N may be 0.
    """

    def __init__(self, shape: Mask, allowed: Mask) -> None:
        self.step = step = _step(allowed.shape)
        tight = box_of(shape)
        self.box = tuple(slice(side.start // step * step, -(-side.stop // step) * step) for side in tight)
        held = np.zeros([side.stop - side.start for side in self.box], bool)
        held[tuple(slice(t.start - b.start, t.stop - b.start) for t, b in zip(tight, self.box, strict=True))] = shape[
            tight
        ]
        self.cells = _pooled(held, step, np.any)
        free = _pooled(allowed, step, np.all)
        self.shifts = np.zeros((0, shape.ndim), int)
        if all(a <= b for a, b in zip(self.cells.shape, free.shape, strict=True)):
            overlap = _correlate((~free).astype(np.float32), self.cells.astype(np.float32))
            self.places = np.argwhere(overlap < 0.5)
            self.shifts = self.places * step - np.array([side.start for side in self.box])

    def share(self, mask: Mask) -> NDArray[np.float32]:
        """Share of the shape that lies in a mask of the searched picture, at each shift, (N,), 0 to 1."""
        held = _pooled(mask, self.step, np.mean).astype(np.float32)
        return np.clip(_correlate(held, self.cells.astype(np.float32))[tuple(self.places.T)] / self.cells.sum(), 0, 1)

    def mismatch(self, image: Image, rim: Mask, wanted: Image) -> NDArray[np.float32]:
        """How badly the rim of the shape matches at each shift: variance of the difference, whatever its mean, (N,).

        Args:
            image: of the picture that is searched, (C, ...).
            rim: of the shape, inside ``box``, in the shape's own picture.
            wanted: values (C, ...) of the shape's own picture.
        """
        coarse = tuple(slice(side.start, side.stop, self.step) for side in self.box)
        weight = np.zeros(self.cells.shape, np.float32)
        inside = rim[coarse]
        weight[tuple(slice(n) for n in inside.shape)] = inside
        weight /= max(1.0, float(weight.sum()))
        total = np.zeros(len(self.places), np.float32)
        at = tuple(self.places.T)
        thin = (slice(None, None, self.step),) * rim.ndim
        for channel, target in zip(image, wanted, strict=True):
            goal = np.zeros_like(weight)
            values = target[coarse]
            goal[tuple(slice(n) for n in values.shape)] = values
            centered = channel[thin] - np.float32(channel.mean())
            goal = (goal - np.float32(channel.mean())) * (weight > 0)
            mean = _correlate(centered, weight)[at] - float((weight * goal).sum())
            square = _correlate(centered * centered, weight)[at] - 2 * _correlate(centered, weight * goal)[at]
            total += square + float((weight * goal * goal).sum()) - mean * mean
        return total


def _correlate(field: NDArray[np.float32], kernel: NDArray[np.float32]) -> NDArray[np.float32]:
    return fftconvolve(field, kernel[(slice(None, None, -1),) * kernel.ndim], mode="valid")


def part(array: NDArray[Any], box: Box) -> Any:
    """View of a box of a mask (H, W[, D]) or picture (C, H, W[, D])."""
    index: Any = (..., *box)
    return array[index]


def usual_range(image: Image, tissue: Mask) -> tuple[Image, Image]:
    """Between which values, by channel (C, 1, ...), most of the tissue lies: neither vessels nor fluid at its ends."""
    if not tissue.any():
        raise NoRoom("no healthy tissue of the head is left beside the region")
    values = image[:, tissue]
    low, high = np.percentile(values[:, :: max(1, values.shape[1] // 4000)], [12, 94], axis=1)
    shape = (-1, *[1] * tissue.ndim)
    return low.reshape(shape), high.reshape(shape)


def within(image: Image, low: Image, high: Image) -> Mask:
    """Where every channel lies in a range."""
    return np.asarray(((image >= low) & (image <= high)).all(axis=0))


def beside(region: Mask, healthy: Mask) -> Mask:
    """Healthy tissue around a region, within half of its size; all of it where there is less than the region has."""
    box = box_of(region)
    near = np.zeros(region.shape, bool)
    near[box_of(region, max(side.stop - side.start for side in box) // 2 + 6)] = True
    near &= healthy
    return near if np.count_nonzero(near) >= np.count_nonzero(region) else healthy


def usual(image: Image, tissue: Mask) -> tuple[tuple[Image, Image], float]:
    """The range of values of tissue, see `usual_range`, and the share of that tissue that lies beyond it."""
    low, high = usual_range(image, tissue)
    return (low, high), 1 - float(within(image, low, high)[tissue].mean())


def odd_in(search: Search, image: Image, limits: tuple[Image, Image], share: float) -> NDArray[np.float32]:
    """How much more of each place of a search than of tissue lies beyond its limits, (N,), 0 to 1.

    What is usual must count nothing, or the places found are too even.

    Args:
        search, image: places, and what they hold.
        limits, share: of `usual`.
    """
    return np.maximum(0, search.share(~within(image, *limits)) - share - _SOME)


def plausible(image: Image, tissue: Mask) -> Mask:
    """Where every channel has a value that the tissue has: neither skull nor scalp, vessels or fluid at its ends."""
    return within(image, *usual_range(image, tissue))


def everywhere(mask: NDArray[Any]) -> Box:
    """The box of a whole picture."""
    return tuple(slice(0, n) for n in mask.shape)


def shifted(array: NDArray[Any], shift: Sequence[int] | NDArray[np.int_], box: Box) -> NDArray[Any]:
    """What lies in the box moved by ``shift``: value at x is the array's at x + shift.

    Args:
        array: (..., *space). Beyond its edge a mask is False; a picture repeats its last value.
        shift: in pixels, by axis.
        box: of positions before the shift.
    """
    places = [np.arange(side.start, side.stop) + int(move) for side, move in zip(box, shift, strict=True)]
    sizes = array.shape[array.ndim - len(box) :]
    index: Any = (..., *np.ix_(*(np.clip(p, 0, n - 1) for p, n in zip(places, sizes, strict=True))))
    values = array[index]
    if array.dtype == np.bool_:
        for axis, (place, size) in enumerate(zip(places, sizes, strict=True)):
            inside = (place >= 0) & (place < size)
            values = values & inside.reshape([-1 if a == axis else 1 for a in range(len(box))])
    return values


def moved(mask: Mask, shift: NDArray[np.int_]) -> Mask:
    """The mask, each pixel ``shift`` further on."""
    return shifted(mask, -shift, everywhere(mask))


def elsewhere(region: Mask, healthy: Mask, rng: np.random.Generator) -> tuple[Mask, np.ndarray]:
    """The same shape at another, healthy place, and the shift there.

    Raises:
        NoRoom: when there is none.
    """
    search = Search(region, healthy)
    if not len(search.shifts):
        raise NoRoom("the control has no place: no healthy tissue of the tumor's size is left in this head")
    shift = search.shifts[int(rng.integers(len(search.shifts)))]
    return moved(region, shift), shift
