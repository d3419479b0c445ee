"""Images that a brain-MRI network should not be asked about, drawn from a seed: for measuring whether it says so."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

__all__ = ["OUTSIDERS"]

SIZE = 224
Array = NDArray[np.float64]


def _grid() -> tuple[Array, Array]:
    line = np.linspace(-1, 1, SIZE)
    x, y = np.meshgrid(line, line, indexing="ij")
    return x, y


def empty(seed: int) -> Array:
    """Air alone."""
    return np.zeros((SIZE, SIZE))


def noise(seed: int) -> Array:
    """Uniform noise."""
    return np.random.default_rng(seed).random((SIZE, SIZE))


def photograph(seed: int) -> Array:
    """Structure of every size, as in photographs (power falls with frequency), and a few boxes in front."""
    rng = np.random.default_rng(seed)
    scene: Array = np.zeros((SIZE, SIZE))
    for width in (1, 5, 15, 40):
        scene += width**1.7 * gaussian_filter(rng.standard_normal((SIZE, SIZE)), width)
    x, y = np.mgrid[:SIZE, :SIZE]
    for _ in range(6):
        a, b, w, h = rng.integers(10, SIZE, 4)
        scene[(np.abs(x - a) < w / 3) & (np.abs(y - b) < h / 3)] += rng.normal() * scene.std()
    return scene


def ct_like(seed: int) -> Array:
    """A head as CT shows it in a brain window: white skull, nearly even brain, dark ventricles, dark scalp."""
    rng = np.random.default_rng(seed)
    x, y = _grid()
    width, height = 0.6 + 0.08 * rng.random(), 0.75 + 0.1 * rng.random()
    radius = np.hypot(x / width, y / height)
    image: Array = np.where(radius < 1, 60.0, 0.0) + np.where((radius > 0.88) & (radius < 0.97), 190.0, 0.0)
    brain = radius < 0.88
    image[brain] += gaussian_filter(rng.normal(0, 9, (SIZE, SIZE)), 0.7)[brain]
    for side in (-1, 1):
        image[(np.hypot((x - 0.1 * side) / 0.07, (y + 0.05) / 0.22) < 1) & brain] -= 30
    image[(radius > 0.97) & (radius < 1)] = 30
    return image.clip(min=0)


# What it is called: a function from a seed to a picture (X, Y).
OUTSIDERS: dict[str, Callable[[int], Array]] = {
    "air alone": empty,
    "noise": noise,
    "photograph (drawn)": photograph,
    "CT (drawn)": ct_like,
}
