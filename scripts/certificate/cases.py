"""The pictures that a certificate intervenes on: tumors with masks, and healthy heads that tumors are moved into."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from scripts.interventions.insertion import Donor, extent
from scripts.interventions.likeness import Look, Looks, Turn
from scripts.interventions.regions import Image, Mask, box_of

# Of a head: how far around a tumor its own tissue is replaced or taken along.
_MARGIN = 0.03
# The sides of a voxel may differ by this factor.
_CUBE = 1.1


@dataclass(frozen=True)
class Case:
    """One picture with what is known about it.

    Args:
        name: unique.
        group: patient or near-duplicate group, the cluster of intervals.
        source: collection.
        kind: class index, 0 no tumor.
        image: float32 (C, H, W[, D]), values as in the file.
        foreground: bool, the head.
        mask: bool, the tumor; None where there is none.
        plane: its name; "" where it is not known, and of volumes.
    """

    name: str
    group: str
    source: str
    kind: int
    image: Image
    foreground: Mask
    mask: Mask | None = None
    plane: str = ""

    @property
    def margin(self) -> int:
        """Pixels around a tumor of this head that an intervention may change."""
        return max(2, round(_MARGIN * extent(self.foreground)))

    def donor(self) -> Donor:
        """The case as what a tumor is cut from."""
        if self.mask is None:
            raise ValueError(f"{self.name} has no tumor mask")
        return Donor(self.image, self.mask, self.foreground)

    @cached_property
    def look(self) -> Look:
        """What it is compared with other heads by, each with many."""
        return Look.of(self.image, self.foreground, self.plane)


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


def uneven(spacing: Sequence[float] | NDArray[np.floating]) -> str:
    """Why a volume of these voxels cannot be intervened on; "" where they are cubes.

    Margins, distances and the sizes of moved tumors are counted in voxels along all axes alike: of cubes they are the
    same in mm, of slices far apart they are not.

    Args:
        spacing: sides of a voxel in mm.
    """
    if not np.isfinite(spacing).all():
        return "the size of its voxels is not known"
    if max(spacing) > _CUBE * min(spacing):
        sides = " x ".join(f"{side:.3g}" for side in spacing)
        return f"its voxels of {sides} mm are no cubes: resample it"
    return ""


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


@dataclass(frozen=True)
class Host:
    """A head that a tumor is put into, and the turn by which the tumor's own head shows the view of this one."""

    case: Case
    turn: Turn

    def donor(self, tumor: Case) -> Donor:
        """The tumor's head, turned to the host's view."""
        return tumor.donor().turned(self.turn)


def hosts_for(tumors: Sequence[Case], heads: Sequence[Case]) -> list[Host | None]:
    """For each tumor the most similar head of another group and the same view, each head about as often as another.

    Returns:
        one host a tumor; None where no head of its channels and axes shows the same view, or all are of its own group.
    """
    most = -(-len(tumors) // max(1, len(heads))) + 1
    used: Counter[str] = Counter()
    by_form: dict[tuple[int, int], list[Case]] = defaultdict(list)
    for head in heads:
        by_form[_form(head)].append(head)
    looks = {form: Looks([head.look for head in alike]) for form, alike in by_form.items()}
    hosts: list[Host | None] = []
    for tumor in tumors:
        alike, host = by_form.get(_form(tumor), []), None
        for near in looks[_form(tumor)].nearest(tumor.look) if alike else []:
            if alike[near.place].group != tumor.group and used[alike[near.place].name] < most:
                host = Host(alike[near.place], near.turn.back())
                used[host.case.name] += 1
                break
        hosts.append(host)
    return hosts


def _form(case: Case) -> tuple[int, int]:
    return case.image.ndim, len(case.image)
