"""Images that a brain-MRI network should not be asked about, drawn from a seed: for measuring whether it says so."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

__all__ = ["FITTED", "HELD_OUT", "OUTSIDERS"]

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


def ct_bone(seed: int) -> Array:
    """The same head in a bone window: brain and scalp nearly black, bone bright and grainy."""
    image = ct_like(seed)
    rng = np.random.default_rng(seed + 1000)
    grain = gaussian_filter(rng.normal(0, 25, image.shape), 1.0)
    return np.where(image > 120, 200 + grain, 0.15 * image).clip(min=0)


def knee_like(seed: int) -> Array:
    """Two bright bones, one above the other, with a dark gap, in gray muscle under bright fat."""
    rng = np.random.default_rng(seed)
    x, y = _grid()
    width = 0.55 + 0.15 * rng.random()
    leg = (np.abs(x) < width + 0.08 * np.cos(3 * y + rng.random())) & (np.abs(y) < 0.97)
    image: Array = np.where(leg, 70 + gaussian_filter(rng.normal(0, 60, x.shape), 3), 0.0)
    image[leg & (np.abs(x) > width - 0.08)] = 200
    for end, side in ((-1.0, -0.06), (1.0, 0.06)):
        bone = (np.abs(x) < 0.25 + 0.15 * np.exp(-8 * np.abs(y - side))) & ((y - side) * end > 0.03)
        bone &= leg
        image[bone] = 170 + gaussian_filter(rng.normal(0, 80, x.shape), 2)[bone]
    return image.clip(min=0)


def abdomen_like(seed: int) -> Array:
    """A wide body: fat around, a large organ on one side, loops of bowel, a spine."""
    rng = np.random.default_rng(seed)
    x, y = _grid()
    radius = np.hypot(x / 0.95, y / (0.62 + 0.08 * rng.random()))
    image: Array = np.where(radius < 1, 210.0, 0.0)
    inner = radius < 0.85
    image[inner] = 60
    organ = inner & (np.hypot((x + 0.4) / 0.42, (y + 0.05) / 0.42) < 1)
    image[organ] = 130
    for _ in range(12):
        a, b, r = rng.uniform(-0.1, 0.7), rng.uniform(-0.4, 0.3), rng.uniform(0.05, 0.13)
        image[inner & (np.hypot(x - a, y - b) < r)] = rng.uniform(20, 180)
    image[inner & (np.hypot(x, y - 0.38) < 0.13)] = 170
    return (image + (radius < 1) * gaussian_filter(rng.normal(0, 20, x.shape), 1)).clip(min=0)


def text_page(seed: int) -> Array:
    """Lines of dark blocks as of words on a white page."""
    rng = np.random.default_rng(seed)
    page: Array = np.full((SIZE, SIZE), 255.0)
    height = int(rng.integers(5, 9))
    for top in range(12, SIZE - 12, 2 * height):
        left = 12
        while left < SIZE - 40:
            word = int(rng.integers(6, 34))
            strokes = rng.random((word, height)) < 0.55
            page[left : left + word, top : top + height][strokes] = 20
            left += word + 6
    return page


def shapes(seed: int) -> Array:
    """Even disks and bars on black, as of a logo or a test pattern."""
    rng = np.random.default_rng(seed)
    x, y = _grid()
    image: Array = np.zeros((SIZE, SIZE))
    for _ in range(int(rng.integers(3, 8))):
        a, b, r = rng.uniform(-0.5, 0.5), rng.uniform(-0.5, 0.5), rng.uniform(0.15, 0.5)
        image[np.hypot(x - a, y - b) < r] = rng.uniform(60, 255)
    image[(np.abs(x - rng.uniform(-0.5, 0.5)) < 0.08) & (np.abs(y) < 0.8)] = rng.uniform(60, 255)
    return image


# What it is called: a function from a seed to a picture (X, Y). A scope is fitted with the first, tested with all.
FITTED: dict[str, Callable[[int], Array]] = {
    "air alone": empty,
    "noise": noise,
    "photograph (drawn)": photograph,
    "CT (drawn)": ct_like,
    "shapes (drawn)": shapes,
}
HELD_OUT: dict[str, Callable[[int], Array]] = {
    "CT, bone window (drawn)": ct_bone,
    "knee (drawn)": knee_like,
    "abdomen (drawn)": abdomen_like,
    "text page (drawn)": text_page,
}
OUTSIDERS: dict[str, Callable[[int], Array]] = {**FITTED, **HELD_OUT}
