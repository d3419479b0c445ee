"""From a noise-free picture to a scan: the grid, and what coils, optics and noise do to the signal."""

from __future__ import annotations

import numpy as np
from scipy.ndimage import gaussian_filter

from scripts.phantoms.head import Array, SmoothField

__all__ = ["acquire", "axis_mm"]


def acquire(signal: Array, grid_mm: tuple[Array, Array, Array], rng: np.random.Generator) -> Array:
    """Make a scan of a noise-free picture: coil shading, blur, a faint ghost, Rician noise (so air is not 0).

    Args:
        signal: float32 (X, Y, Z), air 0, white matter about 1.
        grid_mm: positions of the three axes in mm.
        rng: source of all randomness.

    Returns:
        Magnitude image, float32 (X, Y, Z), 0 or more.
    """
    shading = SmoothField(rng, 90)(*grid_mm) * rng.uniform(0.05, 0.18)
    rim = (grid_mm[0][:, None, None] ** 2 + grid_mm[1][None, :, None] ** 2) / 80.0**2  # surface coils see the rim best
    shading = shading + np.float32(rng.uniform(-0.05, 0.20)) * np.minimum(rim, 1.5)
    scan = gaussian_filter(signal * np.exp(shading), sigma=(*rng.uniform(0.3, 0.7, 2), 0))
    scan = scan + np.float32(rng.uniform(0, 0.025)) * np.roll(scan, scan.shape[1] // 2, axis=1)
    sigma = np.float32(rng.uniform(0.012, 0.05))
    noise = rng.standard_normal((2, *scan.shape), dtype=np.float32) * sigma
    return np.sqrt((scan + noise[0]) ** 2 + noise[1] ** 2).astype(np.float32)


def axis_mm(count: int, spacing_mm: float, center_mm: float = 0.0) -> Array:
    """Positions of `count` voxels about a center, in mm."""
    return ((np.arange(count) - (count - 1) / 2) * spacing_mm + center_mm).astype(np.float32)
