"""Probes: one thing at a time taken from a picture of the other class, to name what a verdict reads instead.

Nothing that a probe changes says anything about a tumor. Each has a control: the same thing from a picture of the same
class. A verdict that changes with the probe and not with its control reads that thing.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import numpy as np
from PIL import Image as Pictures

from scripts.certificate.cases import Case
from scripts.interventions.regions import Image, Mask, inner
from scripts.measures.shortcuts import corners

__all__ = ["BLOCKY", "PROBES", "blockiness", "other_of"]

# Of the shorter side: the frame, and the side of a corner.
FRAME, CORNER = 0.03, 0.1
# Depth of skull and scalp, as `scripts.interventions.inner` counts it.
SHELL = 0.17
_QUALITIES = (15, 30, 45, 60, 75, 90)
_BLOCK = 8
# Steps across blocks, relative to the others, above which a picture counts as JPEG of a low quality.
BLOCKY = 1.3


def _fitted(image: Image, size: tuple[int, ...]) -> Image:
    """Cut or padded with its least value evenly on both sides to a size."""
    box, widths = [], [(0, 0)]
    for have, want in zip(image.shape[1:], size, strict=True):
        start = max(0, (have - want) // 2)
        box.append(slice(start, start + min(have, want)))
        missing = max(0, want - have)
        widths.append((missing // 2, missing - missing // 2))
    index: Any = (slice(None), *box)
    return np.pad(image[index], widths, constant_values=image.min())


def corner(case: Case, other: Case) -> Image:
    """The four corners, whatever they show, of the other picture."""
    shape = case.image.shape[1:]
    side = max(2, round(CORNER * min(shape[:2])))
    return _exchanged(case, other, corners(shape, (side, side)))


def border(case: Case, other: Case) -> Image:
    """The outermost frame of the other picture."""
    frame = np.ones(case.image.shape[1:], bool)
    width = max(1, round(FRAME * min(frame.shape[:2])))
    frame[width:-width, width:-width] = False
    return _exchanged(case, other, frame)


def compression(case: Case, other: Case) -> Image:
    """JPEG blocks as the other picture has them: put on at its quality, or moved off their grid; else as it is."""
    if case.image.ndim != 3:
        raise ValueError("JPEG blocks are of pictures, not of volumes")
    blocky, theirs = blockiness(case.image) > BLOCKY, blockiness(other.image) > BLOCKY
    if blocky == theirs:
        return case.image
    if theirs:
        return _compressed(case.image, blockiness(other.image))
    half = _BLOCK // 2
    moved = np.pad(case.image, ((0, 0), (half, 0), (half, 0)), mode="edge")[
        :, : case.image.shape[1], : case.image.shape[2]
    ]
    # Half a pixel of blur takes the steps away that are left at the old places.
    return (0.5 * moved + 0.25 * np.roll(moved, 1, 1) + 0.25 * np.roll(moved, 1, 2)).astype(np.float32)


def blockiness(image: Image) -> float:
    """Steps across the borders of 8 x 8 blocks relative to all other steps; about 1 without JPEG."""
    ratios = []
    for axis in (1, 2):
        step = np.abs(np.diff(image, axis=axis)).mean(axis=(0, 3 - axis))
        at = np.arange(len(step)) % _BLOCK == _BLOCK - 1
        ratios.append((step[at].mean() + 1e-6) / (step[~at].mean() + 1e-6))
    return float(np.mean(ratios))


def _compressed(image: Image, wanted: float) -> Image:
    """JPEG at the quality whose blockiness comes nearest to what is wanted."""
    low, high = float(image.min()), float(image.max())
    plane = np.rint((image - low) * (255 / max(high - low, 1e-6))).astype(np.uint8)
    candidates = []
    for quality in _QUALITIES:
        channels = []
        for channel in plane:
            file = io.BytesIO()
            Pictures.fromarray(channel.T).save(file, "JPEG", quality=quality)
            channels.append(np.asarray(Pictures.open(file)).T)
        again = np.stack(channels).astype(np.float32) * ((high - low) / 255) + low
        candidates.append((abs(blockiness(again) - wanted), quality, again))
    return min(candidates, key=lambda entry: entry[:2])[2]


def size(case: Case, other: Case) -> Image:
    """Cut or padded to the other picture's size; the head keeps its pixels."""
    return _fitted(case.image, other.image.shape[1:])


def skull(case: Case, other: Case) -> Image:
    """Skull and scalp as bright, beside the brain, as the other head's: mean and spread of what lies outside of it."""
    ring, theirs = (one.foreground & ~inner(one.foreground, SHELL) for one in (case, other))
    image = case.image.copy()
    shape = (-1, 1)
    have, want = case.image[:, ring], other.image[:, theirs] * (_brain(case) / _brain(other)).reshape(shape)
    scaled = (have - have.mean(1).reshape(shape)) * (want.std(1) / np.maximum(have.std(1), 1e-6)).reshape(shape)
    image[:, ring] = np.clip(scaled + want.mean(1).reshape(shape), case.image.min(), max(case.image.max(), want.max()))
    return image


def air(case: Case, other: Case) -> Image:
    """What lies outside of the head in the grain of the other picture's air, as its collection made it."""
    outside, theirs = ~case.foreground, ~other.foreground
    image = case.image.copy()
    values = other.image[:, theirs]
    if values.shape[1] == 0 or not outside.any():
        raise ValueError("one of the pictures shows no air")
    rng = np.random.default_rng(case.image.shape[1])
    image[:, outside] = values[:, rng.integers(values.shape[1], size=int(outside.sum()))]
    return image


def intensity(case: Case, other: Case) -> Image:
    """All gray values times one factor, so that the brain is as bright as the other's."""
    ratio = (_brain(other) / _brain(case)).reshape(-1, *[1] * case.foreground.ndim)
    return (case.image * ratio).astype(np.float32)


def _brain(case: Case) -> Image:
    """Median of the brain by channel, (C,)."""
    return np.maximum(np.median(case.image[:, inner(case.foreground, SHELL)], axis=1), 1e-6).astype(np.float32)


# From the most particular to the most general: a reader of the corner reacts to more than the corner alone.
PROBES: dict[str, Callable[[Case, Case], Image]] = {
    "corner": corner,
    "border": border,
    "JPEG grid": compression,
    "image size": size,
    "skull": skull,
    "air": air,
    "mean intensity": intensity,
}


def _exchanged(case: Case, other: Case, region: Mask) -> Image:
    """The other picture's values there, taken from its own edge, and only where neither shows its head."""
    image = case.image.copy()
    theirs = _aligned(other.image, case.image.shape[1:])
    heads = case.foreground | _aligned(other.foreground[None], case.image.shape[1:])[0]
    image[:, region & ~heads] = theirs[:, region & ~heads]
    return image


def _aligned(array: Any, shape: tuple[int, ...]) -> Any:
    """Each quarter of the array at its own corner of the shape, so that edges lie at edges whatever the sizes."""
    places = []
    for have, want in zip(array.shape[1:], shape, strict=True):
        index = np.arange(want)
        places.append(np.clip(np.where(index < want / 2, index, index - want + have), 0, have - 1))
    quarters: Any = (slice(None), *np.ix_(*places))
    return array[quarters]


def other_of(case: Case, cases: list[Case], same: bool, turn: int) -> Case | None:
    """A picture of the same or of the other side (tumor, none) and of another group, in turn."""
    fits = [
        c
        for c in cases
        if (bool(c.kind) == bool(case.kind)) == same and c.group != case.group and c.image.ndim == case.image.ndim
        and len(c.image) == len(case.image)
    ]  # fmt: skip
    return fits[turn % len(fits)] if fits else None
