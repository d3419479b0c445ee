"""Harmonic and Poisson interpolation over a hole, coarse grids first: exact at the rim, a few milliseconds."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]
Mask = NDArray[np.bool_]

_SWEEPS = 24
_SMALLEST = 6


def solve(values: Array, hole: Mask, tissue: Mask, source: Array | None = None) -> Array:
    """The surface over a hole that meets its rim and whose Laplacian is ``source`` (None: 0, a membrane).

    Air takes no part: there the membrane is free. Solved on coarser grids first, then smoothed by Jacobi steps.

    Args:
        values: (C, H, W[, D]), used outside of the hole.
        hole: where to fill.
        tissue: what counts as rim; the hole itself always does.
        source: (C, H, W[, D]), sum over the neighbors of (neighbor - own) that is wanted in the hole.

    Returns:
        ``values`` with the hole filled, a new array.
    """
    valid = tissue | hole
    filled = np.where(hole, np.float32(0), values).astype(np.float32)
    if min(hole.shape) >= 2 * _SMALLEST:
        known = (tissue & ~hole).astype(np.float32)
        weight = _pool(known[None])
        coarse_known = weight[0] > 0
        coarse = np.where(coarse_known, _pool(filled * known) / np.maximum(weight, 1e-6), 0).astype(np.float32)
        coarse_hole = (_pool(hole[None].astype(np.float32))[0] > 0) & ~coarse_known
        # A cell of twice the width sums four times the Laplacian.
        thinner = None if source is None else _pool(source * hole) * 4
        guess = solve(coarse, coarse_hole, coarse_known, thinner) if coarse_hole.any() else coarse
        filled = np.where(hole, _enlarge(guess, hole.shape), filled)
    elif (tissue & ~hole).any():
        filled = np.where(hole, filled[:, tissue & ~hole].mean(axis=1).reshape(-1, *[1] * hole.ndim), filled)
    counts = np.maximum(_neighbors(valid[None].astype(np.float32))[0], 1)
    share = np.float32(1) / counts
    weights = valid.astype(np.float32)
    for _ in range(_SWEEPS):
        around = _neighbors(filled * weights)
        if source is not None:
            around -= source
        filled = np.where(hole, around * share, filled)
    return filled


def laplacian(values: Array, valid: Mask) -> Array:
    """Sum over the valid neighbors of (neighbor - own), (C, H, W[, D])."""
    weights = valid.astype(np.float32)
    return _neighbors(values * weights) - values * _neighbors(weights[None])


def _neighbors(values: Array) -> Array:
    total = np.zeros_like(values)
    for axis in range(1, values.ndim):
        to, source = total.swapaxes(axis, 0), values.swapaxes(axis, 0)
        to[1:] += source[:-1]
        to[:-1] += source[1:]
    return total


def _pool(values: Array) -> Array:
    """Means over blocks of two, what lies beyond the edge being 0."""
    for axis in range(1, values.ndim):
        if values.shape[axis] % 2:
            values = np.pad(values, [(0, int(a == axis)) for a in range(values.ndim)])
        source = values.swapaxes(axis, 0)
        values = (source[::2] + source[1::2]).swapaxes(axis, 0) * np.float32(0.5)
    return values


def _enlarge(values: Array, shape: tuple[int, ...]) -> Array:
    """Twice the size by linear interpolation between the middles of cells, cut to ``shape``."""
    for axis in range(1, values.ndim):
        source = values.swapaxes(axis, 0)
        before = np.concatenate([source[:1], source[:-1]])
        after = np.concatenate([source[1:], source[-1:]])
        fine = np.stack([3 * source + before, 3 * source + after], axis=1) * np.float32(0.25)
        fine = fine.reshape(-1, *source.shape[1:])[: shape[axis - 1]]
        values = fine.swapaxes(axis, 0)
    return values
