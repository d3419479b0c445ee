"""Whether two files lie on one grid: one rule, in millimeters, for masks, channels and merged lists alike."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import nibabel as nib
import numpy as np

# The corners of two volumes on one grid may lie so far apart, as a share of the smallest voxel distance.
GRID_TOLERANCE = 0.1


def corners_mm(shape: Sequence[int], affine: np.ndarray) -> np.ndarray:
    """Where the centers of the corner voxels lie, (8, 3) in mm; what has two axes only is one voxel thick."""
    ends = [(0, n - 1) for n in (*shape, 1)[:3]]
    return np.asarray(list(itertools.product(*ends)), float) @ affine[:3, :3].T + affine[:3, 3]


def grid_gap_mm(shape: Sequence[int], affine: np.ndarray, other: np.ndarray) -> float:
    """How far the corners of two volumes of one shape and orientation lie apart at most, in mm."""
    if np.array_equal(affine, other):
        return 0.0
    return float(np.linalg.norm(corners_mm(shape, affine) - corners_mm(shape, other), axis=1).max())


def tolerance_mm(affine: np.ndarray) -> float:
    """A tenth of the smallest voxel distance, in mm."""
    return GRID_TOLERANCE * float(nib.affines.voxel_sizes(affine).min())


def off_grid(shape: Sequence[int], affine: np.ndarray, other: np.ndarray) -> str:
    """What separates two volumes of one shape and orientation, "" where they lie on one grid.

    They do where their corners lie within a tenth of the smallest voxel distance of each other, however they are
    turned: headers are rounded, and a mask that is shifted by a voxel would train the network on the wrong place.

    >>> off_grid((9, 9, 9), np.eye(4), np.eye(4) + np.array([[0, 0, 0, 0.05]] + 3 * [[0] * 4]))
    ''
    >>> off_grid((101, 9, 9), np.eye(4), np.diag([1.01, 1, 1, 1]))
    'their corners lie up to 1 mm apart, at most 0.1 mm (a tenth of a voxel) is taken as rounding'
    """
    gap, allowed = grid_gap_mm(shape, affine, other), tolerance_mm(affine)
    if gap <= allowed:
        return ""
    most = f"at most {allowed:.3g} mm (a tenth of a voxel) is taken as rounding"
    return f"their corners lie up to {gap:.3g} mm apart, {most}"


def orient(array: np.ndarray, affine: np.ndarray, codes: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Permute and flip the axes of a volume so that they run to where `codes` say, without interpolation.

    Args:
        array: (X, Y, Z) or (X, Y, Z, C).
        affine: 4x4, voxel to RAS+ millimeters.
        codes: "LPS" and the like.

    Returns:
        the turned array (a view of the memory) and its affine.
    """
    turn = nib.orientations.ornt_transform(nib.io_orientation(affine), nib.orientations.axcodes2ornt(codes))
    turned = nib.orientations.apply_orientation(array, turn)
    return turned, affine @ nib.orientations.inv_ornt_aff(turn, array.shape[:3])


def uncropped(
    mask: np.ndarray, affine: np.ndarray, shape: Sequence[int], image_affine: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Put a mask that was cropped to what it marks back on the grid of its image, with background around it.

    Args:
        mask: (X, Y, Z), its axes in the order and direction of the image's.
        affine: 4x4, voxel to RAS+ millimeters.
        shape: (X, Y, Z) of the image.
        image_affine: of the image.

    Returns:
        the mask and its affine: on the image's grid, or as they were where a voxel of the mask is none of the image.

    >>> small = np.eye(4)
    >>> small[:3, 3] = 0, 0, 2
    >>> uncropped(np.ones((2, 2, 1)), small, (2, 2, 4), np.eye(4))[0][0, 0]
    array([0., 0., 1., 0.])
    """
    start = np.rint(np.linalg.inv(image_affine) @ affine[:, 3])[:3].astype(int)
    placed = image_affine.copy()
    placed[:3, 3] += image_affine[:3, :3] @ start
    end = start + mask.shape[:3]
    if mask.shape[:3] == tuple(shape) or (start < 0).any() or (end > shape).any():
        return mask, affine
    if off_grid(mask.shape[:3], placed, affine):
        return mask, affine
    made = np.zeros((*shape, *mask.shape[3:]), mask.dtype)
    made[tuple(slice(*ends) for ends in zip(start, end, strict=True))] = mask
    return made, image_affine
