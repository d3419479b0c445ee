"""Load a datalist item: image, optional label, optional foreground mask, from pictures or volumes."""

from __future__ import annotations

import math
import os
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from monai.data import MetaTensor
from monai.transforms import MapTransform

from transforms.describe import describe
from transforms.grids import off_grid, uncropped
from transforms.labels import REGIONS_KEY
from transforms.limits import refused
from transforms.masks import binary_mask, check_tumor, read_mask_picture, region_masks
from transforms.pictures import read_picture
from transforms.reading import CROPPED, file_kind, orient_lps, read_volume, volumes

Regions = Mapping[str, Sequence[int]]
# Axes in LPS that become X, Y and the count of a plane, and whether Y is flipped.
PLANES = {"axial": ((0, 1, 2), False), "coronal": ((0, 2, 1), True), "sagittal": ((1, 2, 0), True)}


class LoadCased(MapTransform):
    """Load the files of one item into channel-first tensors with metadata.

    The format is found from the file's content. Pictures become one gray channel with X along the width. With
    ``spatial_dims=2`` a volume gives the plane ``item["slice"]`` of ``item["plane"]`` (axial if not given), counted
    after turning the volume to LPS: to superior for axial, to posterior for coronal, to the left for sagittal planes.
    Each is shown as radiologists do: axial X to the patient's left, Y to posterior; coronal X to the left, Y to
    inferior; sagittal X to posterior, Y to inferior. The plane's 4x4 affine places it in the patient. With
    ``spatial_dims=3`` a volume keeps its own orientation (turn it with a traced ``Orientationd``). Several files
    under the image key become channels.

    Channels, label and foreground mask must lie on the image's grid: the same size and, of volumes, the same place in
    the patient (`transforms.grids.off_grid`). A mask volume may be stored in another orientation of that grid, and one
    of NRRD cropped to a part of it (`transforms.grids.uncropped`). Pictures and arrays have no place, so of them the
    size alone counts.

    Where the item states ``regions`` (label values by name, see `transforms.masks.region_masks`), the label becomes one
    channel a region, the tumor first; ``Finalized`` takes them apart.

    Args:
        image_key, label_key, foreground_key: where the paths are (or channel-first arrays, taken as they are); only the
            image must be there. Label and foreground mask become uint8 (1, X, Y[, Z]), 0 or 1.
        spatial_dims: 2 or 3.

    Raises:
        ValueError: When a file is missing or unreadable, sizes or grids differ, or a slice is missing, superfluous or
            outside the volume, or the plane is unknown. Names the file.
    """

    stage = "load"

    def __init__(
        self,
        image_key: str = "image",
        label_key: str = "label",
        foreground_key: str = "foreground",
        spatial_dims: int = 2,
    ) -> None:
        super().__init__([image_key, label_key, foreground_key], allow_missing_keys=True)
        if spatial_dims not in (2, 3):
            raise ValueError(f"spatial_dims must be 2 or 3, got {spatial_dims}")
        self.image_key, self.label_key, self.foreground_key = image_key, label_key, foreground_key
        self.spatial_dims = spatial_dims

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return the item with tensors in place of paths."""
        item = dict(data)
        if item.get(self.image_key) is None:
            raise ValueError(f"{describe(item, self.image_key)}: no '{self.image_key}'; keys: {sorted(map(str, item))}")
        name = describe(item, self.image_key)
        view = str(item.get("plane", "axial"))
        if view not in PLANES:
            raise ValueError(f"{name}: unknown plane {view!r}; expected one of {', '.join(PLANES)}")
        image = self._load(item[self.image_key], item.get("slice"), view, name, mask=False)
        regions = item.get(REGIONS_KEY)
        if not math.isfinite(image.as_tensor().sum().item()):
            bad = int((~torch.isfinite(image)).sum())
            raise ValueError(f"{name}: {bad} values are not finite (NaN or infinite); replace them by the air's value")
        for key in (self.label_key, self.foreground_key):
            if item.get(key) is None:
                item.pop(key, None)
                continue
            mask_regions = regions if key == self.label_key else None
            like = _first(item[self.image_key])
            mask = self._load(item[key], item.get("slice"), view, name, mask=True, regions=mask_regions, like=like)
            (size, place), (image_size, image_place) = _lps_grid(mask), _lps_grid(image)
            if size != image_size:
                raise ValueError(
                    f"{key} {_named(item[key])} has size {tuple(mask.shape[1:])}, "
                    f"but the image {_named(item[self.image_key])} has {tuple(image.shape[1:])}: both must be the "
                    "same; give the mask of this image"
                )
            if _is_volume(item[key]) and _is_volume(item[self.image_key]):
                apart = off_grid(size, image_place, place)
                if apart:
                    raise ValueError(
                        f"{key} {_named(item[key])} and image {_named(item[self.image_key])} have the same size, but "
                        f"are not on the same grid: {apart}; resample the mask to the image"
                    )
            if key == self.label_key:
                check_tumor(mask[0].numpy(), _named(item[key]))
            item[key] = mask
        item[self.image_key] = image
        return item

    def _load(
        self,
        value: Any,
        plane: Any,
        view: str,
        origin: str,
        mask: bool,
        regions: Regions | None = None,
        like: Any = None,
    ) -> MetaTensor:
        if isinstance(value, (np.ndarray, torch.Tensor)):
            return self._from_array(value, origin, mask, regions)
        paths = list(value) if isinstance(value, (list, tuple)) else [value]
        if not paths:
            raise ValueError(f"{origin}: an empty list of files")
        loaded = [self._load_one(path, plane, view, mask, regions, like) for path in paths]
        if len(loaded) == 1:
            return loaded[0]
        for path, tensor in zip(paths, loaded, strict=True):
            if tensor.shape[1:] != loaded[0].shape[1:]:
                raise ValueError(
                    f"channels differ in size: {paths[0]} has {tuple(loaded[0].shape[1:])}, "
                    f"{path} has {tuple(tensor.shape[1:])}; resample one to the other"
                )
            apart = off_grid(tensor.shape[1:], loaded[0].affine.numpy(), tensor.affine.numpy())
            if apart and _is_volume(path) and _is_volume(paths[0]):
                raise ValueError(
                    f"channels {path} and {paths[0]} are not on the same grid: {apart}; resample one to the other"
                )
        plain = [tensor.as_tensor() for tensor in loaded]
        merged = torch.stack(plain).amax(0) if mask else torch.cat(plain)
        return MetaTensor(merged, meta=loaded[0].meta)

    def _from_array(self, value: Any, origin: str, mask: bool, regions: Regions | None = None) -> MetaTensor:
        tensor = value if isinstance(value, MetaTensor) else MetaTensor(torch.as_tensor(np.array(value)))
        if tensor.ndim != self.spatial_dims + 1:
            raise ValueError(
                f"{origin}: expected a channel-first {self.spatial_dims}D array, got {tuple(tensor.shape)}"
            )
        if mask and regions is not None:
            return _with_meta(torch.from_numpy(region_masks(_single(tensor.numpy(), origin), origin, regions)), tensor)
        if mask:
            return _with_meta((tensor.as_tensor() > 0.5).any(0, keepdim=True).to(torch.uint8), tensor)
        return tensor.to(torch.float32)  # type: ignore[return-value]

    def _load_one(
        self, path: Any, plane: Any, view: str, mask: bool, regions: Regions | None = None, like: Any = None
    ) -> MetaTensor:
        if not isinstance(path, (str, os.PathLike)):
            raise ValueError(f"expected a path or an array, got {type(path).__name__}")
        kind = file_kind(path)
        if kind == "picture":
            if self.spatial_dims == 3:
                raise ValueError(f"file {path} is a picture; give volumes to a 3D pipeline")
            if plane is not None and not mask:
                raise ValueError(f"file {path} is a picture and has no slice {plane}; drop 'slice' from the item")
            array, affine = (read_mask_picture(path) if mask else read_picture(path))[None], np.eye(4)
        elif self.spatial_dims == 2:
            array, affine = _plane_of(path, kind, plane, view, like)
        else:
            if plane is not None:
                raise ValueError(f"file {path}: the item names slice {plane}, but this is a 3D pipeline; drop 'slice'")
            array, affine = read_volume(path, kind)
            if kind in CROPPED and _is_volume(like):
                array, affine = _whole(*orient_lps(array, affine), like)
            if array.ndim not in (3, 4):
                raise ValueError(f"file {path} has shape {array.shape}; give volumes to a 3D pipeline")
            array = array[None] if array.ndim == 3 else np.moveaxis(array, -1, 0)
        if mask and regions is not None:
            array = region_masks(_single(array, str(path)), path, regions)
        elif mask:
            array = binary_mask(array, path, picture=kind == "picture").max(axis=0, keepdims=True)
        meta: dict[str, Any] = {
            "filename_or_obj": str(path),
            "affine": torch.from_numpy(affine),
            "original_affine": torch.from_numpy(affine.copy()),
            "spatial_shape": np.asarray(array.shape[1:]),
            "original_channel_dim": "no_channel",
            "space": "RAS",
        }
        if plane is not None:
            meta["slice"] = int(plane)
            meta["plane"] = view
        return MetaTensor(torch.from_numpy(np.array(array)), meta=meta)


def _single(array: np.ndarray, origin: str) -> np.ndarray:
    """The one channel of a mask whose label values say the regions."""
    if len(array) != 1:
        raise ValueError(f"mask {origin} has {len(array)} channels; regions are made of the label values of one")
    return array[0]


def _whole(mask: np.ndarray, affine: np.ndarray, like: Any) -> tuple[np.ndarray, np.ndarray]:
    """A mask in LPS on the whole grid of an image, where it is a part of it."""
    image, image_affine = volumes.get(like, file_kind(like))
    return uncropped(mask, affine, image.shape[:3], image_affine)


def _plane_of(path: Any, kind: str, plane: Any, view: str, like: Any = None) -> tuple[np.ndarray, np.ndarray]:
    """One plane of a volume, (C, X, Y), and the affine that places it; of a mask, on the grid of an image."""
    try:
        array, affine = volumes.get(path, kind)
        if kind in CROPPED and _is_volume(like):
            array, affine = _whole(array, affine, like)
    except OSError as error:
        raise refused(path, f"cannot be opened: {error.strerror}", "give yourself the right to read it") from error
    array, turn = view_plane(array, view)
    count = array.shape[2]
    if plane is None and count == 1:
        plane = 0
    if plane is None:
        raise ValueError(
            f"file {path} is a volume of {count} slices and this is a 2D pipeline; give 'slice' in the item"
        )
    if isinstance(plane, bool) or not isinstance(plane, (int, np.integer)) or not 0 <= plane < count:
        raise ValueError(f"file {path} has {view} slices 0 to {count - 1}, not {plane!r}; correct 'slice'")
    picked = array[:, :, plane]
    picked = picked[None] if picked.ndim == 2 else np.moveaxis(picked, -1, 0)
    shift = np.eye(4)
    shift[2, 3] = plane
    return np.ascontiguousarray(picked, np.float32), affine @ turn @ shift


def view_plane(array: np.ndarray, view: str) -> tuple[np.ndarray, np.ndarray]:
    """Turn a volume in LPS so that its last axis counts the planes of a view and the first two are the picture's.

    Args:
        array: (X, Y, Z[, C]) in LPS.
        view: "axial", "coronal" or "sagittal".

    Returns:
        The turned array (a view of the memory), and the 4x4 matrix from its indices to those of ``array``.
    """
    axes, flip = PLANES[view]
    turn = np.zeros((4, 4))
    turn[3, 3] = 1
    for new, old in enumerate(axes):
        turn[old, new] = 1
    turned = np.transpose(array, (*axes, *range(3, array.ndim)))
    if flip:  # superior comes first, as rows of a picture count downward
        turned = turned[:, ::-1]
        turn[axes[1], 1], turn[axes[1], 3] = -1, array.shape[axes[1]] - 1
    return turned, turn


def _with_meta(tensor: torch.Tensor, like: torch.Tensor) -> MetaTensor:
    if isinstance(like, MetaTensor):
        return MetaTensor(tensor, meta=dict(like.meta), applied_operations=list(like.applied_operations))
    return MetaTensor(tensor)


def _lps_grid(tensor: MetaTensor) -> tuple[tuple[int, ...], np.ndarray]:
    """Spatial shape and affine after turning to LPS: masks may be stored in another orientation than the image."""
    shape, affine = tuple(tensor.shape[1:]), tensor.affine.numpy()
    if len(shape) != 3:
        return shape, affine
    turned, affine = orient_lps(np.empty(shape, np.bool_), affine)
    return turned.shape, affine


def _is_volume(value: Any) -> bool:
    """Whether a file (the first of several) has a place in the patient; pictures and arrays have none."""
    first = _first(value)
    return isinstance(first, (str, os.PathLike)) and file_kind(first) != "picture"


def _first(value: Any) -> Any:
    return value[0] if isinstance(value, (list, tuple)) and len(value) else value


def _named(value: Any) -> str:
    value = _first(value)
    return str(value) if isinstance(value, (str, os.PathLike)) else "(an array)"
