"""Regions of a tumor as pictures show them: beside the tumor itself each in a color of its own, by name."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from scripts.pictures.planes import PicturePlane

__all__ = ["PART_COLORS", "Part", "parts_of"]

# Bright and far from each other, from the tumor's cyan and magenta, and from the map's blue to orange.
PART_COLORS = ((255, 238, 70), (120, 255, 80), (255, 255, 255))


@dataclass(frozen=True)
class Part:
    """A region beside the first one, the tumor.

    Attributes:
        name: in words.
        color: of its lines, RGB.
        mask, predicted: (1, X, Y) 0/1, the true one and the predicted one; None where there is none.
    """

    name: str
    color: tuple[int, int, int]
    mask: Any = None
    predicted: Any = None


def parts_of(names: Sequence[str], truth: Any, predicted: Any, plane: PicturePlane) -> list[Part]:
    """The regions of a case after the first, in a plane; more than there are `PART_COLORS` are not drawn.

    Args:
        names: of the regions, the tumor first; one or none: there are no parts.
        truth, predicted: (R, X, Y[, Z]) 0/1 in the order of the names, or None.
        plane: that is shown.
    """
    return [
        Part(
            name.replace("_", " "),
            color,
            None if truth is None else plane.map(truth[k : k + 1]),
            None if predicted is None else plane.map(predicted[k : k + 1]),
        )
        for k, (name, color) in enumerate(zip(names[1:], PART_COLORS, strict=False), 1)
    ]
