"""Changes that say nothing about a tumor: borders, mirroring, order of colors, brightness, size."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np

from scripts.interventions.insertion import resized
from scripts.interventions.regions import Image


def bordered(image: Image, share: float, sides: str, value: float) -> Image:
    """The picture with a border around its plane, or along one side: what lies outside of the head says nothing.

    Args:
        image: (C, X, Y[, Z]).
        share: of the picture's side, added on each side.
        sides: "all", or "one": before the first axis.
        value: 0 the picture's least value, 1 its largest.
    """
    low, high = float(image.min()), float(image.max())
    widths = [(0, 0)]
    for axis, size in enumerate(image.shape[1:]):
        width = round(share * size) if axis < 2 else 0
        widths.append((width, width) if sides == "all" else (width if axis == 0 else 0, 0))
    return np.pad(image, widths, constant_values=np.float32(low + value * (high - low)))


def mirrored(image: Image) -> Image:
    """Left and right exchanged."""
    return np.ascontiguousarray(image[:, ::-1])


def recolored(image: Image) -> Image:
    """Red and blue exchanged: the order in which a model takes colors; a picture without colors stays as it is."""
    return np.ascontiguousarray(image[::-1]) if len(image) == 3 else image


def brightened(image: Image, factor: float) -> Image:
    """All gray values times a factor."""
    return image * np.float32(factor)


HARMLESS: dict[str, Callable[[Image], Image]] = {
    "a black border of 10 %": partial(bordered, share=0.1, sides="all", value=0.0),
    "a black border of 20 %": partial(bordered, share=0.2, sides="all", value=0.0),
    "a white border of 10 %": partial(bordered, share=0.1, sides="all", value=1.0),
    "a black border of 20 % on one side": partial(bordered, share=0.2, sides="one", value=0.0),
    "mirroring": mirrored,
    "red and blue exchanged": recolored,
    "gray values times 0.8": partial(brightened, factor=0.8),
    "gray values times 1.25": partial(brightened, factor=1.25),
    "75 % of the pixels a side": partial(resized, factor=0.75),
    "150 % of the pixels a side": partial(resized, factor=1.5),
}
