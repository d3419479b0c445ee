"""Each intervention with its control: the same operation, place and size, without a tumor.

All of them take ``image`` float32 (C, H, W[, D]) whose air is exactly 0, ``mask`` (the tumor) and ``foreground`` (the
head) bool (H, W[, D]), and a random generator; the same state of it gives the same picture. Outside ``region`` of the
result every value is as it was, bit for bit; air stays 0, and no tissue becomes 0.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from scripts.interventions.infill import Hole
from scripts.interventions.infills import infill
from scripts.interventions.insertion import Donor, check_seen, insert, relative
from scripts.interventions.regions import (
    Image,
    Mask,
    NoRoom,
    check,
    elsewhere,
    grow,
    inner,
)

# Whose diagnosis holds for the changed picture: no tumor, as before, or that of the donor.
Answer = Literal["none", "host", "donor"]


@dataclass(frozen=True)
class Outcome:
    """A changed picture and what is true of it.

    Args:
        image: float32 (C, H, W[, D]).
        mask: bool (H, W[, D]), the tumor that the honest mask marks now; empty without one.
        region: bool (H, W[, D]), where anything may have changed.
        answer: whose diagnosis is the honest one.
    """

    image: Image
    mask: Mask
    region: Mask
    answer: Answer


def _region(image: Image, mask: Mask, foreground: Mask, margin: int) -> tuple[Mask, Mask]:
    """What is replaced, and the healthy tissue left inside the head."""
    check(image, mask, foreground)
    region = grow(mask, margin) & foreground
    if not region.any():
        raise NoRoom("the mask lies outside of the head")
    return region, inner(foreground) & ~grow(mask, margin)


def remove(
    image: Image,
    mask: Mask,
    foreground: Mask,
    rng: np.random.Generator,
    how: str = "membrane",
    margin: int = 4,
    control: bool = False,
) -> Outcome:
    """Replace the tumor by healthy tissue. Control: healthy tissue of the same shape elsewhere, the tumor stays.

    Args:
        image, mask, foreground, rng: see the module.
        how: of `INFILLS`.
        margin: pixels around the tumor that are replaced as well, the seam among them.
        control: the control instead.

    Raises:
        NoRoom: when the head leaves no tissue to take or no place for the control.
    """
    region, healthy = _region(image, mask, foreground, margin)
    if control:
        place, _ = elsewhere(region, healthy, rng)
        hole = Hole(image, place, healthy & ~place, foreground, margin)
        return Outcome(infill(how, hole, rng), mask, place, "host")
    hole = Hole(image, region, healthy, foreground, margin)
    return Outcome(infill(how, hole, rng), np.zeros_like(mask), region, "none")


def transplant(
    image: Image,
    foreground: Mask,
    donor: Donor,
    rng: np.random.Generator,
    how: str = "alpha",
    margin: int = 4,
    control: bool = False,
) -> Outcome:
    """Put the donor's tumor into a head without one, at the donor's own place. Control: healthy tissue of the donor.

    Args:
        image, foreground, rng: of the host, see the module.
        donor: of the same plane; `Donor.mirrored` for the other side.
        how: of `BLENDS`.
        margin: pixels of the donor's tissue around the tumor, over which it is joined.
        control: the control instead.

    Raises:
        NoRoom: when it fits nowhere, or would hardly be seen, see `check_seen`.
    """
    check(image, None, foreground)
    changed, core, region = insert(image, foreground, donor, rng, how, margin, control=control)
    if not control:
        check_seen(donor, Donor(changed, core, foreground), region, margin)
    return Outcome(changed, np.zeros_like(core) if control else core, region, "host" if control else "donor")


def swap(
    image: Image,
    mask: Mask,
    foreground: Mask,
    donor: Donor,
    rng: np.random.Generator,
    infill_how: str = "membrane",
    blend_how: str = "alpha",
    margin: int = 4,
    control: bool = False,
) -> Outcome:
    """Give the donor's tumor other surroundings: a head whose own tumor is taken out. Control: the host's own again.

    The control does to the host what the swap does, with the host as its own donor: nothing but seams is new.
    """
    healed = remove(image, mask, foreground, rng, infill_how, margin)
    host = Donor(image, mask, foreground)
    source = host if control else donor
    changed, core, region = insert(healed.image, foreground, source, rng, blend_how, margin)
    if not control:
        check_seen(donor, Donor(changed, core, foreground), region, margin)
    return Outcome(changed, core, region | healed.region, "host" if control else "donor")


def translate(
    image: Image,
    mask: Mask,
    foreground: Mask,
    rng: np.random.Generator,
    infill_how: str = "membrane",
    blend_how: str = "alpha",
    margin: int = 4,
    control: bool = False,
) -> Outcome:
    """Move the tumor to another place of its head. Control: healthy tissue is put there, the tumor stays."""
    _, healthy = _region(image, mask, foreground, margin)
    place, _ = elsewhere(mask, healthy, rng)
    center = relative(np.array([float(np.mean(axis)) for axis in np.nonzero(place)]), foreground)
    donor = Donor(image, mask, foreground)
    if control:
        changed, _, region = insert(image, foreground, donor, rng, blend_how, margin, 1.0, center, healthy, True)
        return Outcome(changed, mask, region & ~mask, "host")
    healed = remove(image, mask, foreground, rng, infill_how, margin)
    changed, core, region = insert(healed.image, foreground, donor, rng, blend_how, margin, 1.0, center, healthy)
    return Outcome(changed, core, region | healed.region, "host")


def scale(
    image: Image,
    mask: Mask,
    foreground: Mask,
    rng: np.random.Generator,
    factor: float = 0.7,
    infill_how: str = "membrane",
    blend_how: str = "alpha",
    margin: int = 4,
    control: bool = False,
) -> Outcome:
    """Make the tumor smaller or larger at its place. Control: the tumor at its own size, taken out and put back."""
    healed = remove(image, mask, foreground, rng, infill_how, margin)
    donor = Donor(image, mask, foreground)
    free = inner(foreground) | mask
    changed, core, region = insert(
        healed.image, foreground, donor, rng, blend_how, margin, 1.0 if control else factor, None, free
    )
    return Outcome(changed, core, region | healed.region, "host")


def fade(
    image: Image,
    mask: Mask,
    foreground: Mask,
    rng: np.random.Generator,
    levels: tuple[float, ...] = (0.0, 0.25, 0.5, 0.75, 1.0),
    how: str = "membrane",
    margin: int = 4,
    control: bool = False,
) -> list[Outcome]:
    """The tumor at several strengths: 0 is `remove`, 1 the picture as it is. Control: healthy tissue faded so.

    Returns:
        an outcome a level; the answer is "none" at 0 alone, where the tumor is gone.
    """
    gone = remove(image, mask, foreground, rng, how, margin, control)
    outcomes = []
    for share in levels:
        if not 0 <= share <= 1:
            raise ValueError(f"a level of fading is 0 to 1, got {share}")
        mixed = image if share == 1 else gone.image + np.float32(share) * (image - gone.image)
        kept = np.where(gone.region, mixed, image).astype(np.float32)
        stays = control or share > 0
        outcomes.append(Outcome(kept, mask if stays else gone.mask, gone.region, "host" if stays else "none"))
    return outcomes
