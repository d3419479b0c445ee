"""Small pictures of a head, made by formula."""

from __future__ import annotations

from pathlib import Path

import itk
import numpy as np


def disc(shape: tuple[int, ...], radius: float, center: tuple[float, ...] | None = None) -> np.ndarray:
    """bool array, True within ``radius`` of the center."""
    center = center or tuple((n - 1) / 2 for n in shape)
    grid = np.indices(shape)
    return sum((g - c) ** 2 for g, c in zip(grid, center, strict=True)) <= radius**2


def head(shape: tuple[int, ...] = (160, 160), radius: float = 55, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Image (float32, 0 to 200, air 0) with scalp, dark bone, brain and dark ventricles; its outline (bool)."""
    whole, bone, brain = disc(shape, radius), disc(shape, radius * 0.9), disc(shape, radius * 0.82)
    image = np.where(whole, 200.0, 0.0)
    image[bone] = 2.0
    texture = np.random.default_rng(seed).normal(0, 5, shape)
    image[brain] = (110 + texture)[brain]
    image[disc(shape, radius * 0.2)] = 10.0
    return image.astype(np.float32), whole


def overlap(a: np.ndarray, b: np.ndarray) -> float:
    """Dice of two bool arrays."""
    return 2 * float((a & b).sum()) / float(a.sum() + b.sum())


def nrrd(array: np.ndarray, affine: np.ndarray, path: Path) -> str:
    """Write a volume (X, Y, Z) as NRRD, which ITK places in LPS; the affine goes to RAS."""
    place = np.diag([-1.0, -1, 1, 1]) @ affine
    image = itk.image_from_array(np.ascontiguousarray(array.T))
    spacing = np.linalg.norm(place[:3, :3], axis=0)
    image.SetSpacing(spacing.tolist())
    image.SetDirection(place[:3, :3] / spacing)
    image.SetOrigin(place[:3, 3].tolist())
    itk.imwrite(image, str(path))
    return str(path)
