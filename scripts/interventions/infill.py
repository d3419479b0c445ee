"""Healthy tissue in place of a region: what each infill puts there, joined with the head around it."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from scripts.interventions.blend import blend
from scripts.interventions.membrane import solve
from scripts.interventions.regions import (
    Box,
    Image,
    Mask,
    NoRoom,
    Search,
    beside,
    box_of,
    everywhere,
    grow,
    odd_in,
    part,
    plausible,
    shifted,
    usual,
)

try:
    import cv2
except ImportError:  # the extra "certificate": two of the infills need it and say so
    cv2 = None  # type: ignore[assignment]

# A source is drawn among so many places that match the rim best.
_BEST = 6
# A region that fits nowhere is halved so often at most; the halves overlap by twice so many pixels.
_SPLITS, _OVERLAP = 3, 3
# A place all odd costs what a rim does that misses by so many spreads of the tissue.
_SPREADS = 5.0
# A region is rather put together of pieces than taken from a place that has so much more of it.
MUCH = 0.25
# Width of the smoothing, in pixels, that separates texture from what lies below it.
_TEXTURE = 1.5


class Hole:
    """A region to fill, cut out of its picture.

    Args:
        image: (C, H, W[, D]).
        region: to fill, in tissue.
        healthy: tissue that may be copied.
        foreground: of the head.
        seam: pixels over which what is put in fades into its surroundings, inside the region.

    Attributes:
        box: of the region with some pixels around.
        image, region, tissue: in the box; tissue is the foreground there.
        rim: tissue just outside the region, in the box.
    """

    def __init__(self, image: Image, region: Mask, healthy: Mask, foreground: Mask, seam: float) -> None:
        self.whole, self.whole_region, self.healthy, self.foreground = image, region, healthy, foreground
        self.seam = seam
        self.box: Box = box_of(region, 6)
        self.image, self.region, self.tissue = part(image, self.box), region[self.box], foreground[self.box]
        self.rim = grow(self.region, 3) & self.tissue & ~self.region
        usual = healthy if healthy.any() else foreground & ~region
        self.soft = self.tissue & (self.region | plausible(image, usual)[self.box])
        if not (self.soft & self.rim).any():
            self.soft = self.tissue

    @cached_property
    def near(self) -> Mask:
        """Healthy tissue around the region, of the whole picture."""
        return beside(self.whole_region, self.healthy)

    @cached_property
    def usual(self) -> tuple[tuple[Image, Image], float]:
        """See `regions.usual`, of the tissue around the region."""
        return usual(self.whole, self.near)

    @property
    def whole_rim(self) -> Mask:
        """The rim, in the whole picture."""
        rim = np.zeros(self.foreground.shape, bool)
        rim[self.box] = self.rim
        return rim

    def placed(self, filled: Image) -> Image:
        """The picture with the region filled; every other pixel as it was, nothing in the region exactly 0."""
        result = self.whole.copy()
        inside = np.where(filled == 0, np.float32(1e-6), filled)
        part(result, self.box)[:] = np.where(self.region, inside, self.image)
        return result


def level(piece: Image, hole: Hole, spread: bool = False) -> Image:
    """The piece with the mean (and the spread) of the hole's rim, channel by channel."""
    if not hole.rim.any():
        raise NoRoom("the region has no tissue around it")
    current, wanted = piece[:, hole.rim], hole.image[:, hole.rim]
    middle, goal = current.mean(axis=1), wanted.mean(axis=1)
    gain = np.ones_like(middle)
    if spread:
        gain = np.clip(wanted.std(axis=1) / np.maximum(current.std(axis=1), 1e-6), 0.7, 1.4)
    shape = (-1, *[1] * hole.region.ndim)
    return (piece - middle.reshape(shape)) * gain.reshape(shape) + goal.reshape(shape)


def texture(hole: Hole, rng: np.random.Generator) -> Image:
    """Fine structure of the same head for the box of a hole, (C, ...): pieces of healthy residue, mean about 0."""
    donor = hole.healthy if hole.healthy.any() else hole.foreground & ~hole.whole_region
    if not donor.any():
        raise NoRoom("no healthy tissue is left to take texture from")
    area = box_of(donor)
    image, inside = part(hole.whole, area), donor[area]
    detail = np.zeros_like(hole.image)
    open_ = np.ones(hole.region.shape, bool)
    # Smoothing of the healthy tissue alone, so that no edge of the head counts as texture.
    weight = _smooth(inside.astype(np.float32))
    smooth = np.stack([_smooth(channel * inside) for channel in image]) / np.maximum(weight, 1e-3)
    residue = np.where(inside & (weight > 0.7), image - smooth, 0).astype(np.float32)
    usable = inside & (weight > 0.7)
    for _ in range(4):
        places = tuple(
            np.arange(n)[(slice(None), *[None] * (inside.ndim - 1 - axis))] + int(rng.integers(size))
            for axis, (n, size) in enumerate(zip(hole.region.shape, inside.shape, strict=True))
        )
        index = tuple(place % size for place, size in zip(places, inside.shape, strict=True))
        take = open_ & usable[index]
        detail[:, take] = residue[(slice(None), *index)][:, take]
        open_ &= ~take
    values = residue[:, usable] if usable.any() else np.zeros((len(image), 1), np.float32)
    detail[:, open_] = values[:, rng.integers(values.shape[1], size=int(open_.sum()))]
    return detail


def _smooth(values: Any) -> Any:
    return ndimage.gaussian_filter(values, _TEXTURE, truncate=2.5, mode="nearest")


def tissue_like_rim(hole: Hole, rng: np.random.Generator, mirror_axis: int | None = None) -> Image:
    """Tissue of the same head for the box of a hole, from a place whose surroundings match the hole's rim.

    Args:
        hole: to fill.
        rng: draws among the places that match best.
        mirror_axis: spatial axis along which the head is mirrored first, about its middle; None: not.

    Raises:
        NoRoom: when the region fits nowhere in healthy tissue.
    """
    image, healthy = hole.whole, hole.healthy
    if mirror_axis is not None:
        side = box_of(hole.foreground)[mirror_axis]
        turn = [0] * healthy.ndim
        turn[mirror_axis] = image.shape[mirror_axis + 1] - (side.start + side.stop)
        every = everywhere(healthy)
        image = shifted(np.flip(image, mirror_axis + 1), turn, every)
        healthy = shifted(np.flip(healthy, mirror_axis), turn, every)
    near = mirror_axis is not None
    return _gathered(hole, image, healthy, hole.whole_region, hole.whole_rim, rng, near, _SPLITS)


def odd(search: Search, hole: Hole, image: Image) -> NDArray[np.float32]:
    """How much more of each place of a search than of the tissue around the hole is odd, (N,), 0 to 1.

    A rim can match where the place itself holds skull or vessels.
    """
    return odd_in(search, image, *hole.usual)


def matching_shift(
    search: Search,
    image: Image,
    hole: Hole,
    rim: Mask,
    oddness: NDArray[np.float32],
    rng: np.random.Generator,
    most: int,
    weight: Any = 1.0,
) -> NDArray[np.int_]:
    """One of the ``most`` shifts at which the rim matches best and the place is least odd, times ``weight``."""
    spread = float(hole.whole[:, hole.near].var(axis=1).sum())
    cost = (search.mismatch(image, rim, hole.whole) + spread * (_SPREADS * oddness) ** 2) * weight
    return search.shifts[int(rng.choice(np.argsort(cost, kind="stable")[:most]))]


def _gathered(
    hole: Hole, image: Image, healthy: Mask, shape: Mask, rim: Mask, rng: np.random.Generator, near: bool, splits: int
) -> Image:
    """Tissue for a part of the region, in the hole's box; what fits nowhere is halved and joined again."""
    search = Search(shape, healthy)
    if len(search.shifts):
        oddness, weight = odd(search, hole, image), 1.0
        if splits == 0 or oddness.min() <= MUCH:
            if near:  # the other side's own place first; further off only for a much better match
                weight = 1 + 2 * np.linalg.norm(search.shifts, axis=1) / max(hole.region.shape)
            return shifted(image, matching_shift(search, image, hole, rim, oddness, rng, _BEST, weight), hole.box)
    if splits == 0:
        raise NoRoom("the region fits nowhere in the healthy tissue of this head, in pieces neither")
    sides = box_of(shape)
    axis = int(np.argmax([side.stop - side.start for side in sides]))
    middle = (sides[axis].start + sides[axis].stop) // 2
    place = np.arange(shape.shape[axis]).reshape([-1 if a == axis else 1 for a in range(shape.ndim)])
    halves = [shape & (place < middle + _OVERLAP), shape & (place >= middle - _OVERLAP)]
    first, second = (
        level(_gathered(hole, image, healthy, half, rim & grow(half, 4), rng, near, splits - 1), hole)
        for half in halves
    )
    share = np.clip((place - middle + _OVERLAP) / (2 * _OVERLAP), 0, 1)[
        tuple(side if a == axis else slice(None) for a, side in enumerate(hole.box))
    ].astype(np.float32)
    return first + (second - first) * share


def surface(hole: Hole) -> Image:
    """The harmonic surface over the region, in the hole's box."""
    smooth = np.stack([_smooth(channel) for channel in hole.image])
    return solve(np.where(hole.tissue, hole.image, smooth), hole.region, hole.soft & ~hole.region)


def membrane(hole: Hole, rng: np.random.Generator) -> Image:
    """A harmonic surface over the region with the texture of the same head."""
    grain = texture(hole, rng)
    return blend("alpha", hole.image, surface(hole) + grain, hole.region, hole.tissue, hole.seam)


def patch(hole: Hole, rng: np.random.Generator) -> Image:
    """Tissue shifted from another place of the same head, leveled at the rim, with a soft seam."""
    piece = level(tissue_like_rim(hole, rng), hole)
    return blend("alpha", hole.image, piece, hole.region, hole.tissue, hole.seam)


def mirror(hole: Hole, rng: np.random.Generator, axis: int = 0) -> Image:
    """Tissue of the head's other side, matched at the rim in mean and spread, with a soft seam."""
    piece = level(tissue_like_rim(hole, rng, axis), hole, spread=True)
    return blend("alpha", hole.image, piece, hole.region, hole.tissue, hole.seam)


def poisson(hole: Hole, rng: np.random.Generator) -> Image:
    """Tissue shifted from another place of the same head, joined by its gradients (Poisson)."""
    return blend("poisson", hole.image, tissue_like_rim(hole, rng), hole.region, hole.soft, hole.seam)


def _inpainted(hole: Hole, rng: np.random.Generator, method: str) -> Image:
    if cv2 is None:
        raise ValueError(
            f"the infill {method!r} needs OpenCV: pip install -c constraints.txt '.[certificate]', or take another"
        )
    flag = {"telea": cv2.INPAINT_TELEA, "navier_stokes": cv2.INPAINT_NS}[method]
    stacked = hole.image if hole.region.ndim == 3 else hole.image[..., None]
    hidden = (hole.region if hole.region.ndim == 3 else hole.region[..., None]) | False
    outside = ~(hole.soft if hole.region.ndim == 3 else hole.soft[..., None])
    filled = stacked.copy()
    for channel in range(len(stacked)):
        for k in range(stacked.shape[-1]):
            if not hidden[..., k].any():
                continue
            # Air is hidden too: it must not run into the tissue. Float pictures are taken as they are.
            unknown = (hidden[..., k] | outside[..., k]).astype(np.uint8)
            if unknown.all():
                raise NoRoom("a slice of the region has no tissue around it")
            plane = np.ascontiguousarray(stacked[channel, ..., k])
            seen = plane[unknown == 0]
            low, width = seen.min(), max(float(np.ptp(seen)), 1e-6)
            # Of float pictures in 0..1 OpenCV 5.0's Telea makes values far outside their range; 0..255 is right.
            scaled = (plane - low) * np.float32(255 / width)
            filled[channel, ..., k] = cv2.inpaint(scaled, unknown, 4.0, flag) * np.float32(width / 255) + low
    piece = (filled if hole.region.ndim == 3 else filled[..., 0]) + texture(hole, rng)
    return blend("alpha", hole.image, piece, hole.region, hole.tissue, hole.seam)


def telea(hole: Hole, rng: np.random.Generator) -> Image:
    """Telea's fast marching (OpenCV), slice by slice in 3D, with the texture of the same head."""
    return _inpainted(hole, rng, "telea")


def navier_stokes(hole: Hole, rng: np.random.Generator) -> Image:
    """Bertalmio's flow of isophotes (OpenCV), slice by slice in 3D, with the texture of the same head."""
    return _inpainted(hole, rng, "navier_stokes")
