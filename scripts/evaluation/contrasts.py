"""Training images turned into what they are not: another contrast, no skull, blur, noise; to fit and to test a scope.

A prepared image is 0 in air, and of mean 0 and deviation 1 in the foreground. So is what comes out, as if such a file
had gone through the pipeline. What another sequence shows is made by curves of the gray values that are not monotonic:
of a T1 image they exchange the order of fluid, gray matter, white matter and fat, as FLAIR, T2 and proton density do.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import distance_transform_edt, gaussian_filter

__all__ = ["CHANGES", "FITTED", "HELD_OUT", "changed"]

Array = NDArray[np.float32]
Change = Callable[[Array, NDArray[np.bool_], np.random.Generator], tuple[Array, NDArray[np.bool_]]]


def _ranks(image: Array, inside: NDArray[np.bool_]) -> Array:
    """Gray values as shares of the foreground that are darker, 0 to 1."""
    known = np.sort(image[inside])
    return (np.searchsorted(known, image) / max(len(known), 1)).astype(np.float32)


def _curve(image: Array, inside: NDArray[np.bool_], values: Sequence[float]) -> Array:
    """Gray values by a curve over their ranks, through ``values`` at equal steps."""
    return np.interp(_ranks(image, inside), np.linspace(0, 1, len(values)), values).astype(np.float32)


def _any_curve(image: Array, inside: NDArray[np.bool_], rng: np.random.Generator) -> Array:
    """A random curve that both rises and falls."""
    while True:
        values = rng.random(rng.integers(4, 8))
        steps = np.diff(values)
        if steps.max() > 0.25 and steps.min() < -0.25:
            return _curve(image, inside, values.tolist())


def _near(rng: np.random.Generator, values: Sequence[float]) -> list[float]:
    return list(np.asarray(values) + rng.uniform(-0.08, 0.08, len(values)))


def inverted(image: Array, inside: NDArray[np.bool_], rng: np.random.Generator) -> tuple[Array, NDArray[np.bool_]]:
    """Dark for bright."""
    return -image, inside


def remapped(image: Array, inside: NDArray[np.bool_], rng: np.random.Generator) -> tuple[Array, NDArray[np.bool_]]:
    """Another order of the tissues, drawn by chance."""
    return _any_curve(image, inside, rng), inside


def t2_like(image: Array, inside: NDArray[np.bool_], rng: np.random.Generator) -> tuple[Array, NDArray[np.bool_]]:
    """Bright fluid, gray matter brighter than white, fat in between."""
    return _curve(image, inside, _near(rng, (1.0, 0.9, 0.6, 0.4, 0.35, 0.6, 0.75))), inside


def flair_like(image: Array, inside: NDArray[np.bool_], rng: np.random.Generator) -> tuple[Array, NDArray[np.bool_]]:
    """Dark fluid, gray matter brighter than white."""
    return _curve(image, inside, _near(rng, (0.05, 0.25, 0.75, 0.7, 0.55, 0.5, 0.75))), inside


def pd_like(image: Array, inside: NDArray[np.bool_], rng: np.random.Generator) -> tuple[Array, NDArray[np.bool_]]:
    """Fluid and gray matter bright, little contrast."""
    return _curve(image, inside, _near(rng, (0.7, 0.85, 0.9, 0.8, 0.65, 0.6, 0.95))), inside


def stripped(image: Array, inside: NDArray[np.bool_], rng: np.random.Generator) -> tuple[Array, NDArray[np.bool_]]:
    """Without the outer eighth to quarter of the head, as without scalp and skull."""
    depth = distance_transform_edt(inside)
    inner = depth > rng.uniform(0.12, 0.28) * depth.max()
    return image * inner, inner


def _both(first: Change, second: Change) -> Change:
    def change(image: Array, inside: NDArray[np.bool_], rng: np.random.Generator) -> tuple[Array, NDArray[np.bool_]]:
        return second(*first(image, inside, rng), rng)

    return change


def blurred(image: Array, inside: NDArray[np.bool_], rng: np.random.Generator) -> tuple[Array, NDArray[np.bool_]]:
    """Without the fine structures."""
    return gaussian_filter(image, rng.uniform(0.02, 0.04) * max(image.shape)).astype(np.float32), inside


def noisy(image: Array, inside: NDArray[np.bool_], rng: np.random.Generator) -> tuple[Array, NDArray[np.bool_]]:
    """Half noise or more."""
    return image + rng.uniform(0.8, 2.0) * rng.standard_normal(image.shape).astype(np.float32), inside


# What it is called: a change of one channel and its foreground. A scope is fitted with the first, tested with all.
FITTED: dict[str, Change] = {
    "inverted": inverted,
    "another contrast": remapped,
    "T2-like": t2_like,
    "skull-stripped": stripped,
    "another contrast, skull-stripped": _both(remapped, stripped),
    "blurred": blurred,
}
HELD_OUT: dict[str, Change] = {
    "FLAIR-like": flair_like,
    "proton-density-like": pd_like,
    "FLAIR-like, skull-stripped": _both(flair_like, stripped),
    "noisy": noisy,
}
CHANGES: dict[str, Change] = {**FITTED, **HELD_OUT}


def changed(name: str, image: Array, foreground: NDArray, rng: np.random.Generator) -> tuple[Array, NDArray[np.bool_]]:
    """A prepared image changed, and normalized over its foreground again.

    Args:
        name: of `CHANGES`.
        image: (C, X, Y[, Z]); each channel is changed by itself, all lose the same skull.
        foreground: (X, Y[, Z]), not 0 inside.
        rng: what is drawn by chance.

    Returns:
        image and foreground.
    """
    seed = int(rng.integers(2**63))
    inside = foreground != 0
    result = np.zeros_like(image, dtype=np.float32)
    inner = inside
    for k, channel in enumerate(image):
        altered, inner = CHANGES[name](channel.astype(np.float32), inside, np.random.default_rng(seed))
        values = altered[inner]
        result[k][inner] = (values - values.mean()) / max(float(values.std()), 1e-6)
        result[k][inner & (result[k] == 0)] = 1e-6
    return result, inner
