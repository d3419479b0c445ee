"""Read what inference is given: a picture, a volume, several files or an array, and a mask of the head with it."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from torch import Tensor

from transforms.foreground import air_level
from transforms.grids import off_grid, orient, uncropped
from transforms.intensity import different_values
from transforms.limits import DEFAULT_LIMITS, ReadLimits
from transforms.masks import binary_mask, read_mask_picture
from transforms.order import Pipeline
from transforms.pictures import read_picture
from transforms.reading import CROPPED, file_kind, read_volume

# A volume whose voxel distances differ by less than this factor is cut as the networks are trained: axially.
_ISOTROPIC = 1.2
_FEW_VALUES = 24


def acquired_plane(shape: Sequence[int], affine: np.ndarray) -> str:
    """Plane in which a volume was acquired.

    Args:
        shape: (X, Y, Z) in LPS orientation.
        affine: of the file, in any orientation.

    Returns:
        the plane across the only axis of length 1, else across the largest voxel distance; "axial" where the distances
        are within a factor of 1.2 of each other.
    """
    across = ("sagittal", "coronal", "axial")  # the plane across each LPS axis
    single = [axis for axis in range(3) if shape[axis] == 1]
    if len(single) == 1:
        return across[single[0]]
    distances = nib.affines.voxel_sizes(affine)
    order = nib.orientations.io_orientation(affine)[:, 0].astype(int)
    by_axis = [float(distances[list(order).index(axis)]) for axis in range(3)]
    if max(by_axis) < _ISOTROPIC * min(by_axis):
        return "axial"
    return across[int(np.argmax(by_axis))]


def read_image(
    value: Any, affine: Any, name: str, limits: ReadLimits = DEFAULT_LIMITS
) -> tuple[np.ndarray, np.ndarray, bool, str]:
    """Array (*shape, C), float32, affine, whether it is a picture, and the name of the source."""
    if isinstance(value, (np.ndarray, Tensor)):
        array = np.asarray(value.detach().cpu() if isinstance(value, Tensor) else value, dtype=np.float32)
        if array.ndim not in (2, 3, 4):
            raise ValueError(f"{name}: expected an array (X, Y[, Z[, C]]), got shape {array.shape}")
        if array.ndim == 2 and affine is None:
            return array[..., None], np.eye(4), True, name
        if affine is None:
            raise ValueError(
                f"{name} of shape {array.shape} is a volume and needs its affine (4x4, to RAS+ millimeters); a color "
                "picture has to be turned to gray first"
            )
        matrix = np.asarray(affine, dtype=float)
        if matrix.shape != (4, 4) or not np.isfinite(matrix).all() or abs(np.linalg.det(matrix[:3, :3])) < 1e-9:
            raise ValueError(f"{name}: expected an invertible 4x4 affine, got {np.asarray(affine).tolist()}")
        return (array if array.ndim == 4 else array[..., None]), matrix, False, name
    paths = list(value) if isinstance(value, (list, tuple)) else [value]
    if not paths or not all(isinstance(path, (str, Path)) for path in paths):
        raise ValueError(f"expected a path, several paths or an array as the image, got {type(value).__name__}")
    loaded = [_read_file(path, limits) for path in paths]
    first = loaded[0]
    shape, names = first[0].shape[:-1], f"{paths[0]} and"
    arrays = [first[0]]
    for path, (array, matrix, _) in zip(paths[1:], loaded[1:], strict=True):
        arrays.append(_onto(shape, first[1], array, matrix, f"{names} {path}"))
    return np.concatenate(arrays, axis=-1), first[1], first[2], str(paths[0])


def _onto(
    shape: tuple[int, ...], affine: np.ndarray, array: np.ndarray, array_affine: np.ndarray, names: str
) -> np.ndarray:
    """The array of another file turned to the orientation of an image; one on another grid is refused."""
    if len(shape) == 3 and array.ndim >= 3:
        array, array_affine = orient(array, array_affine, nib.aff2axcodes(affine))
    if array.shape[: len(shape)] != shape:
        raise ValueError(f"{names} differ in size: {shape} and {array.shape[: len(shape)]}; resample one to the other")
    if apart := off_grid(shape, affine, array_affine):
        raise ValueError(f"{names} are not on the same grid: {apart}; resample one to the other")
    return array


def _read_file(path: str | Path, limits: ReadLimits) -> tuple[np.ndarray, np.ndarray, bool]:
    kind = file_kind(path)
    if kind == "picture":
        return read_picture(path, limits)[..., None], np.eye(4), True
    array, affine = read_volume(path, kind, limits)
    if array.ndim not in (2, 3, 4):
        raise ValueError(f"file {path} has shape {array.shape}; expected (X, Y), (X, Y, Z) or (X, Y, Z, C)")
    return (array if array.ndim == 4 else array[..., None]), affine, False


def read_foreground(
    value: Any,
    shape: tuple[int, ...],
    affine: np.ndarray,
    picture: bool,
    source: str,
    limits: ReadLimits = DEFAULT_LIMITS,
) -> np.ndarray:
    """The user's foreground on the file's grid, uint8 (*shape), 0 or 1."""
    if isinstance(value, (np.ndarray, Tensor)):
        array = np.asarray(value.detach().cpu() if isinstance(value, Tensor) else value)
        mask = (array != 0).astype(np.uint8)
    else:
        kind = file_kind(value)
        if (kind == "picture") != picture:
            raise ValueError(f"foreground {value} and image {source} are of different kinds")
        array, mask_affine = (read_mask_picture(value, limits), affine) if picture else read_volume(value, kind, limits)
        if kind in CROPPED and len(shape) == 3:
            array, mask_affine = uncropped(*orient(array, mask_affine, nib.aff2axcodes(affine)), shape, affine)
        mask = binary_mask(
            _onto(shape, affine, array, mask_affine, f"image {source} and foreground {value}"), value, picture
        )
    if mask.ndim == len(shape) + 1 and mask.shape[-1] == 1:
        mask = mask[..., 0]
    if mask.shape != shape:
        raise ValueError(f"the given foreground has size {mask.shape}, the image {source} has {shape}")
    if not mask.any():
        raise ValueError(f"the given foreground of {source} is empty; leave it out to have one computed")
    return mask


def intensity_flags(array: np.ndarray) -> list[dict[str, Any]]:
    """What about the values of (*shape, C) is unlike the scans that the networks are trained on."""
    flags = []
    channels = [array[..., c] for c in range(array.shape[-1])]
    if any(air_level(channel) is not None for channel in channels):
        flags.append(
            {
                "code": "shifted_air",
                "message": "the file was normalized before and its air was not set back to 0: intensities are not "
                "those of a magnitude image, and the foreground may be wrong",
            }
        )
    values = min(len(different_values(channel.reshape(-1)[:: max(1, channel.size // 65536)])) for channel in channels)
    if values < _FEW_VALUES:
        flags.append(
            {
                "code": "few_values",
                "message": f"the image holds about {values} different values, as a mask or a label map does",
            }
        )
    return flags


def check_uncut(item: Mapping[Hashable, Any], source: str, why: str) -> None:
    """Refuse a slice or plane of an image that is not cut."""
    for key in ("slice", "plane"):
        if item.get(key) not in (None, "", "auto"):
            raise ValueError(f"{source} {why}: it has no {key} {item[key]!r} to choose; leave {key!r} out")


def first_reasons(failed: Mapping[int, str]) -> str:
    """The first two reasons, each once."""
    reasons = list(dict.fromkeys(failed.values()))
    return "; ".join(reasons[:2]) + ("; ..." if len(reasons) > 2 else "")


def only_step(pipeline: Pipeline, kind: type) -> int:
    """Place of the one transform of a kind in a pipeline.

    Raises:
        ValueError: when there is not exactly one.
    """
    kinds = [type(step) for step in pipeline.transforms]
    if kinds.count(kind) != 1:
        raise ValueError(f"expected one {kind.__name__} among the transforms of a slice, got {kinds.count(kind)}")
    return kinds.index(kind)
