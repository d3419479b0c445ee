"""Which heads show the same view, so that a tumor's place in the one is a place of the brain in the other."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from scripts.interventions.regions import Image, Mask, box_of

# Heads are compared at this many cells a side, pictures and volumes.
_CELLS = {2: 24, 3: 12}
# Weight of their proportions.
_WEIGHT = 12
# Two heads of one plane further apart than this do not show the same of it: one has a neck and the other none, and a
# tumor would come to lie in a jaw. Where a plane is not known, nine in ten pairs within the second are of the same one;
# both looked at on pictures of a training part. The third is for volumes.
UNLIKE, UNKNOWN_PLANE, UNLIKE_VOLUMES = 1.35, 1.17, 1.3


@dataclass(frozen=True)
class Turn:
    """Quarter turns in the plane of the first two axes, then a mirror image along the first."""

    quarters: int = 0
    mirrored: bool = False

    def back(self) -> Turn:
        """The turn that undoes it: a mirrored one undoes itself."""
        return self if self.mirrored else Turn(-self.quarters % 4)

    def of(self, array: NDArray[Any], axis: int = 0) -> NDArray[Any]:
        """The array turned; ``axis`` is the first of its spatial axes."""
        turned = np.rot90(array, self.quarters, (axis, axis + 1))
        return np.flip(turned, axis) if self.mirrored else turned


def turns(dims: int) -> tuple[Turn, ...]:
    """All eight for a picture, whose sides may lie anyhow; for a volume as it is and left and right exchanged."""
    quarters = range(4) if dims == 2 else (0,)
    return tuple(Turn(k, mirrored) for mirrored in (False, True) for k in quarters)


@dataclass(frozen=True)
class Look:
    """A head in its box on a coarse grid, in units of its own spread, and the logarithms of its proportions.

    Args:
        cells: float32 (24, 24), or (12, 12, 12).
        sides: (2 or 3,).
        plane: its name; "" where it is not known. Of volumes it says nothing.
    """

    cells: NDArray[np.float32]
    sides: NDArray[np.float32]
    plane: str = ""

    @classmethod
    def of(cls, image: Image, foreground: Mask, plane: str = "") -> Look:
        """The look of an image (C, H, W[, D]) and its head (H, W[, D]); ``plane`` as of the class."""
        box = box_of(foreground)
        sides = np.array([side.stop - side.start for side in box], np.float32)
        inside = foreground[box]
        factors = _CELLS[inside.ndim] / sides
        cells = ndimage.zoom(image.mean(axis=0)[box] * inside, factors, order=1, grid_mode=True, mode="nearest")
        cells = (cells - cells.mean()) / max(float(cells.std()), 1e-6)
        return cls(cells.astype(np.float32), np.log(sides / sides.max()), plane)

    def vector(self, turn: Turn = Turn()) -> NDArray[np.float32]:
        """What the distance of two heads is taken of, after a turn."""
        sides = self.sides[[1, 0, *range(2, len(self.sides))]] if turn.quarters % 2 else self.sides
        cells = turn.of(self.cells)
        return np.concatenate([cells.ravel() / np.sqrt(cells.size), sides * _WEIGHT]).astype(np.float32)


class Near(NamedTuple):
    """A head near in look: its place in the list, and the turn that brings it to the view of the other."""

    distance: float
    place: int
    turn: Turn


class Looks:
    """The looks of many heads, each in every turn.

    Args:
        looks: of one number of axes.
    """

    def __init__(self, looks: list[Look]):
        self.turns = turns(looks[0].cells.ndim)
        self.planes = np.array([look.plane for look in looks for _ in self.turns])
        self.vectors = np.stack([look.vector(turn) for look in looks for turn in self.turns])
        self.squares = (self.vectors**2).sum(axis=1)

    def nearest(self, look: Look, count: int | None = None) -> list[Near]:
        """The ``count`` nearest that show the same view, nearest first; a head may occur in several turns."""
        query = look.vector()
        distance = np.sqrt(np.maximum(self.squares - 2 * self.vectors @ query + float(query @ query), 0))
        if look.cells.ndim == 3:
            limit = np.full(len(self.planes), UNLIKE_VOLUMES)
        else:
            named = (self.planes != "") & (look.plane != "")
            limit = np.where(named, np.where(self.planes == look.plane, UNLIKE, -1), UNKNOWN_PLANE)
        order = np.argsort(np.where(distance <= limit, distance, np.inf), kind="stable")[:count]
        places = [divmod(int(k), len(self.turns)) for k in order if distance[k] <= limit[k]]
        return [Near(float(distance[i * len(self.turns) + t]), i, self.turns[t]) for i, t in places]
