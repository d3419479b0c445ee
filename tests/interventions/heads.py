"""Phantom heads with and without their tumor, on one scale: exact truth for what lies under it."""

from __future__ import annotations

from functools import cache

import numpy as np

from scripts.interventions.insertion import Donor
from scripts.phantoms.head import draw_head, render, with_tumor

SIZE = 96


def _grid(level_mm: float, slices: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    axis = ((np.arange(SIZE) - (SIZE - 1) / 2) * 2.3).astype(np.float32)
    return axis, axis, (level_mm + 3.0 * (np.arange(slices) - slices // 2)).astype(np.float32)


@cache
def pair(seed: int, slices: int = 1, channels: int = 1) -> tuple[Donor, Donor]:
    """A head with a tumor and the same one without: noise of equal state, so that they differ by the tumor alone.

    The mask of the second is that of the first.
    """
    found = []
    head = draw_head(np.random.default_rng([seed, 0]))
    sick = with_tumor(head, np.random.default_rng([seed, 1]), 12.0, radius_mm=15.0)
    tumor = render(sick, *_grid(12.0, slices)).tumor
    for person in (sick, head):
        picture = render(person, *_grid(12.0, slices))
        noise = np.random.default_rng([seed, 2]).normal(0, 0.02, (channels, *picture.signal.shape))
        signal = picture.signal[None] * (1 + 0.1 * np.arange(channels).reshape(-1, 1, 1, 1))
        image = np.where(picture.head, np.maximum(signal + noise, 0.001), 0).astype(np.float32)
        arrays = image, tumor & picture.head, picture.head
        found.append(Donor(*(array[..., 0] if slices == 1 else array for array in arrays)))
    return found[0], found[1]
