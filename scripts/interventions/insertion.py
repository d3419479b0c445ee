"""A piece of one head put into another: cut, sized, matched in contrast, placed inside the brain, blended."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from scripts.interventions.blend import blend
from scripts.interventions.likeness import Turn
from scripts.interventions.regions import (
    Image,
    Mask,
    NoRoom,
    Search,
    beside,
    box_of,
    check,
    everywhere,
    grow,
    inner,
    odd_in,
    part,
    plausible,
    shifted,
    usual,
)

# Training draws from the first; the certificate rests on the others, which no training may use.
TRAINING_BLENDS = ("alpha", "membrane")
HELD_OUT_BLENDS = ("poisson",)
# A piece that fits nowhere is shrunk in such steps, so often at most.
_SHRINK, _STEPS = 0.85, 5
# Places within this distance of the wanted one, as a share of the head's size, are as good as it.
_NEAR = 0.06
# Of its contrast with what lies so many pixels around it a tumor has to keep this share, to be there to be seen.
_KEPT, _AROUND = 0.6, 4


@dataclass(frozen=True)
class Donor:
    """A head that a piece is cut from.

    Args:
        image: float32 (C, H, W[, D]), air 0.
        mask: bool, its tumor.
        foreground: bool, its head.
    """

    image: Image
    mask: Mask
    foreground: Mask

    def turned(self, turn: Turn) -> Donor:
        """The same head turned."""
        return Donor(turn.of(self.image, 1), turn.of(self.mask), turn.of(self.foreground))


@dataclass(frozen=True)
class Piece:
    """Tissue with the mask of what is put in, cut out and sized; ``center`` in the donor's head, 0..1 by axis."""

    image: Image
    core: Mask
    region: Mask
    center: tuple[float, ...]
    size: float


def tissue_scale(image: Image, inside: Mask, foreground: Mask) -> tuple[Image, Image]:
    """Median of the tissue, and its height above the dark of the head (bone, fluid), by channel, each (C, 1, ...).

    Any two heads differ in quartiles by their ventricles and folds; the darkest and the middle they have in common, so
    that a contrast matched by them stays a contrast. Both follow any gain and offset of the image.
    """
    middle = np.median(image[:, inside], axis=1)
    values = image[:, foreground]
    low = np.percentile(values[:, :: max(1, values.shape[1] // 8000)], 3, axis=1)
    shape = (-1, *[1] * foreground.ndim)
    height = np.maximum(middle - low, 1e-6)
    return middle.reshape(shape).astype(np.float32), height.reshape(shape).astype(np.float32)


def extent(foreground: Mask) -> float:
    """The side of a square (3D: a cube) of the head's size, in pixels."""
    return float(np.count_nonzero(foreground) ** (1 / foreground.ndim))


def relative(point: np.ndarray, foreground: Mask) -> tuple[float, ...]:
    """A position as shares of the box of the head, 0..1 by axis."""
    box = box_of(foreground)
    return tuple(float((p - side.start) / (side.stop - side.start)) for p, side in zip(point, box, strict=True))


def cut(donor: Donor, factor: float, margin: int) -> Piece:
    """The donor's tumor with a margin of its own tissue, ``factor`` times as large."""
    region = grow(donor.mask, margin) & donor.foreground
    box = box_of(region, 2)
    core, around, image = donor.mask[box], region[box], part(donor.image, box)
    if abs(factor - 1) > 0.01:
        core, around = (resized(m[None].astype(np.float32), factor)[0] >= 0.5 for m in (core, around))
        image = resized(image, factor)
    if not core.any():
        raise NoRoom("nothing is left of the tumor at this size")
    center = np.array([float(np.mean(places)) for places in np.nonzero(donor.mask)])
    return Piece(image, core, around | core, relative(center, donor.foreground), factor)


def resized(image: Image, factor: float) -> Image:
    """Linear interpolation to ``factor`` times the size along every axis, smoothed first where it gets smaller."""
    if factor < 0.9:
        image = ndimage.gaussian_filter(image, (0, *[0.4 / factor] * (image.ndim - 1)))
    return ndimage.zoom(image, (1, *[factor] * (image.ndim - 1)), order=1, mode="nearest", grid_mode=True)


def contrast(head: Donor, region: Mask) -> float:
    """How far a tumor differs from the tissue around ``region``, in `tissue_scale` of the head: the largest channel's.

    Raises:
        NoRoom: when nothing of the head lies around it.
    """
    around = grow(region, _AROUND) & ~region & head.foreground
    if not around.any():
        raise NoRoom("no tissue is left around the tumor to see it against")
    height = tissue_scale(head.image, inner(head.foreground) & ~region, head.foreground)[1].ravel()
    middle = np.median(head.image[:, around], axis=1)[:, None]
    return float((np.abs(head.image[:, head.mask] - middle).mean(axis=1) / height).max())


def check_seen(before: Donor, after: Donor, region: Mask, margin: int) -> None:
    """Refuse a tumor that lost its contrast on the way: blends flatten, and a dark tumor in dark surroundings is none.

    Args:
        before: the head that it comes from.
        after: the head that it lies in now.
        region: of that one, what was changed.
        margin: pixels around it that came along.

    Raises:
        NoRoom: when more than 40 % of the contrast with its surroundings is lost.
    """
    clipped = Donor(before.image, before.mask & before.foreground, before.foreground)
    if contrast(after, region) < _KEPT * contrast(clipped, grow(clipped.mask, margin) & clipped.foreground):
        raise NoRoom("the tumor would hardly be seen in this head: most of its contrast is lost")


def destination(
    core: Mask, allowed: Mask, foreground: Mask, center: tuple[float, ...], rng: np.random.Generator
) -> tuple[int, ...] | None:
    """Where the piece's box comes to lie: near the wanted place of the head, drawn among those that are as near.

    Args:
        core: (h, w[, d]) what must lie in ``allowed``.
        allowed: (H, W[, D]).
        foreground: of the head.
        center: wanted, in shares of the head's box.
        rng: draws.

    Returns:
        position of the box's first pixel, or None where it fits nowhere.
    """
    search = Search(core, allowed)
    if not len(search.shifts):
        return None
    centroid = np.array([float(np.mean(places)) for places in np.nonzero(core)])
    box = box_of(foreground)
    wanted = np.array([side.start + c * (side.stop - side.start) for c, side in zip(center, box, strict=True)])
    distance = np.linalg.norm(search.shifts + centroid - wanted, axis=1)
    near = distance <= max(float(distance.min()) + 2, _NEAR * extent(foreground))
    return tuple(int(v) for v in search.shifts[rng.choice(np.flatnonzero(near))])


def insert(
    image: Image,
    foreground: Mask,
    donor: Donor,
    rng: np.random.Generator,
    how: str,
    margin: int,
    factor: float | None = None,
    center: tuple[float, ...] | None = None,
    free: Mask | None = None,
    control: bool = False,
) -> tuple[Image, Mask, Mask]:
    """Put the donor's tumor, or for the control healthy tissue of the same head and shape, into a head.

    Args:
        image: of the host.
        foreground: of the host.
        donor: what is put in.
        rng: draws the place; the same state draws the same place for the tumor and its control.
        how: of `BLENDS`.
        margin: pixels of the donor's own tissue around the tumor, over which it is joined.
        factor: of size; None: the ratio of the heads. Made smaller where the tumor fits nowhere.
        center: wanted place, in shares of the host's head; None: the donor's own.
        free: tissue of the host that may be replaced; None: the inside of its head.
        control: healthy tissue instead of the tumor.

    Returns:
        the changed picture, the mask of what was put in, and the region that was changed.

    Raises:
        NoRoom: when it fits nowhere in the host, or for a control nowhere in the donor's healthy tissue.
    """
    check(donor.image, donor.mask, donor.foreground, "donor")
    if len(donor.image) != len(image):
        raise ValueError(f"the donor has {len(donor.image)} channels, the host {len(image)}")
    allowed = inner(foreground) if free is None else free
    ratio = np.clip(extent(foreground) / extent(donor.foreground), 0.5, 2.0)
    size = float(ratio) if factor is None else factor
    for _ in range(_STEPS):
        piece = cut(donor, size, margin)
        place = destination(piece.core, allowed, foreground, center or piece.center, rng)
        if place is not None:
            break
        size *= _SHRINK
    else:
        raise NoRoom("the tumor fits nowhere inside this head, also when made smaller")
    inside = inner(donor.foreground) & ~grow(donor.mask, margin)
    if not inside.any():
        raise NoRoom("no healthy tissue is left beside the donor's tumor to match the contrast with")
    tissue = _healthy_like(piece, donor, inside, rng) if control else piece.image
    donor_median, height = tissue_scale(donor.image, inside, donor.foreground)
    host, wanted = tissue_scale(image, inner(foreground), foreground)
    tissue = (tissue - donor_median) * (wanted / height) + host
    core, region, whole = _laid_out(piece, tissue, place, image, foreground)
    box = box_of(region, 3)
    around = foreground[box] & (region[box] | plausible(part(image, box), inner(foreground)[box] & ~region[box]))
    mixed = blend(how, part(image, box), part(whole, box), region[box], around, margin)
    changed = image.copy()
    part(changed, box)[:] = np.where(region[box] & (mixed == 0), np.float32(1e-6), mixed)
    return changed, core, region


def _healthy_like(piece: Piece, donor: Donor, inside: Mask, rng: np.random.Generator) -> Image:
    """Healthy tissue of the donor in the piece's box, of any place that holds the piece's shape and is not odd."""
    # With its seam where that fits, so that no skull comes along.
    search = Search(piece.region, inside)
    if not len(search.shifts):
        search = Search(piece.core, inside)
    if not len(search.shifts):
        raise NoRoom("the donor has no healthy tissue of the tumor's size for the control")
    odd = odd_in(search, donor.image, *usual(donor.image, beside(donor.mask, inside)))
    shift = search.shifts[int(rng.choice(np.flatnonzero(odd <= odd.min() + 1e-6)))]
    return shifted(donor.image, shift, everywhere(piece.core))


def _laid_out(
    piece: Piece, tissue: Image, place: tuple[int, ...], image: Image, foreground: Mask
) -> tuple[Mask, Mask, Image]:
    """Core, region and tissue of a piece in the host's picture; what reaches over its edge is cut."""
    core, region, whole = np.zeros(foreground.shape, bool), np.zeros(foreground.shape, bool), image.copy()
    to, source = [], []
    for start, length, size in zip(place, piece.core.shape, foreground.shape, strict=True):
        to.append(slice(max(0, start), min(size, start + length)))
        source.append(slice(max(0, -start), max(0, -start) + to[-1].stop - to[-1].start))
    there, here = tuple(to), tuple(source)
    core[there] = piece.core[here]
    region[there] = piece.region[here]
    part(whole, there)[:] = part(tissue, here)
    region &= foreground
    return core & region, region, whole
