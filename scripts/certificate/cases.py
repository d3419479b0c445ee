"""The pictures that a certificate intervenes on: tumors with masks, and healthy heads that tumors are moved into."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from scripts.interventions import Donor
from scripts.interventions.insertion import extent
from scripts.interventions.regions import Image, Mask, box_of

# A host is chosen among heads that look alike at this many cells a side, so that planes meet their own.
_THUMBNAIL = 12
# Of a head: how far around a tumor its own tissue is replaced or taken along.
_MARGIN = 0.03


@dataclass(frozen=True)
class Case:
    """One picture with what is known about it.

    Args:
        name: unique.
        group: patient or near-duplicate group, the unit of intervals.
        source: collection.
        kind: class index, 0 no tumor.
        image: float32 (C, H, W[, D]), values as in the file.
        foreground: bool, the head.
        mask: bool, the tumor; None where there is none.
    """

    name: str
    group: str
    source: str
    kind: int
    image: Image
    foreground: Mask
    mask: Mask | None = None

    @property
    def margin(self) -> int:
        """Pixels around a tumor of this head that an intervention may change."""
        return max(2, round(_MARGIN * extent(self.foreground)))

    def donor(self) -> Donor:
        """The case as what a tumor is cut from."""
        if self.mask is None:
            raise ValueError(f"{self.name} has no tumor mask")
        return Donor(self.image, self.mask, self.foreground)


def usable_mask(mask: Mask, foreground: Mask) -> tuple[Mask | None, str]:
    """The part of a mask inside the head, or None and why the case cannot be intervened on."""
    inside = mask & foreground
    if not mask.any():
        return None, "its mask is empty"
    if inside.sum() < 0.5 * mask.sum():
        return None, "most of its mask lies outside of the head"
    if 2 * inside.sum() > foreground.sum():
        return None, f"its mask covers {inside.sum() / foreground.sum():.0%} of the head"
    if min(extent_of(inside)) < 3:
        return None, "its mask is less than 3 pixels wide"
    edge = np.ones(mask.shape, bool)
    edge[tuple(slice(1, -1) for _ in mask.shape[:2])] = False
    if (inside & edge).any():
        return None, "its tumor touches the edge of the picture"
    return inside, ""


def extent_of(mask: Mask) -> list[int]:
    """Sides of the box of a mask, the two of the plane, in pixels."""
    return [side.stop - side.start for side in box_of(mask)[:2]]


def draw(cases: Sequence[Case], count: int | None, seed: int) -> list[Case]:
    """At most ``count`` cases, one class as often as another where there are enough, different groups first."""
    if count is None or count >= len(cases):
        return list(cases)
    rng = np.random.default_rng(seed)
    by_kind: dict[int, list[Case]] = defaultdict(list)
    seen: Counter[str] = Counter()
    order = [cases[i] for i in rng.permutation(len(cases))]
    ranks = []
    for case in order:
        ranks.append(seen[case.group])
        seen[case.group] += 1
    for _, case in sorted(zip(ranks, order, strict=True), key=lambda pair: pair[0]):
        by_kind[case.kind].append(case)
    chosen: list[Case] = []
    turn = 0
    while len(chosen) < count:
        chosen += [cases[turn] for _, cases in sorted(by_kind.items()) if turn < len(cases)]
        turn += 1
    return chosen[:count]


def thumbnail(case: Case) -> np.ndarray:
    """The head in its box on a coarse grid, with its proportions: what two heads of one plane have in common."""
    box = box_of(case.foreground)
    sides = np.array([side.stop - side.start for side in box], float)
    picture = case.image.mean(axis=0)[box] * case.foreground[box]
    small = ndimage.zoom(picture, _THUMBNAIL / sides, order=1, grid_mode=True, mode="nearest")
    small = (small - small.mean()) / max(float(small.std()), 1e-6)
    proportions = np.log(sides / sides.max()) * _THUMBNAIL
    return np.concatenate([small.ravel() / np.sqrt(small.size), proportions])


def hosts_for(tumors: Sequence[Case], heads: Sequence[Case]) -> list[Case | None]:
    """For each tumor the most similar head of another group, each head about as often as another.

    Returns:
        one head a tumor; None where no head has as many channels and axes, or all are of the tumor's own group.
    """
    if not heads:
        return [None] * len(tumors)
    most = -(-len(tumors) // len(heads)) + 1
    used: Counter[int] = Counter()
    looks = [thumbnail(head) for head in heads]
    found: list[Case | None] = []
    for tumor in tumors:
        own = thumbnail(tumor)
        fits = [
            i
            for i, head in enumerate(heads)
            if head.group != tumor.group
            and head.image.ndim == tumor.image.ndim
            and len(head.image) == len(tumor.image)
            and used[i] < most
        ]
        if not fits:
            found.append(None)
            continue
        best = min(fits, key=lambda i: float(np.linalg.norm(looks[i] - own)))
        used[best] += 1
        found.append(heads[best])
    return found
