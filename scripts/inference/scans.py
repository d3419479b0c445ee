"""One image file as the network sees it: a picture, or a volume as a stack of slices, and the way back to its grid."""

from __future__ import annotations

import json
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import nibabel as nib
import numpy as np
import torch
from monai.data import MetaTensor
from monai.transforms import MapTransform
from torch import Tensor

from scripts.data.preprocessing import Pipeline, make_preprocessing
from scripts.inference.scan_files import (
    acquired_plane,
    check_uncut,
    first_reasons,
    intensity_flags,
    only_step,
    read_foreground,
    read_image,
)
from transforms.borders import OFFSET_KEY, WINDOW_KEY, on_image, overlap
from transforms.cropping import CropToForegroundd, PadToFitd, foreground_box, room_for
from transforms.foreground import foreground_warnings
from transforms.limits import DEFAULT_LIMITS
from transforms.loading import PLANES, view_plane
from transforms.reading import orient_lps

_LPS = np.array([-1.0, -1.0, 1.0])
SCAN = "scan"


@dataclass
class Placement:
    """Where a slice (or a whole volume) lies on the network's grid.

    Attributes:
        index: slice of the stack; 0 for a picture or a whole volume.
        box: per axis [start, stop] of the crop in the slice; may reach beyond it, into air that was put around.
        fitted: per axis size of the crop on the network's grid.
        before: per axis cells of padding before it.
        share: share of the slice that is foreground, 0 to 1.
        window: per axis [start, stop] of what was read of the slice; air was put around it.
    """

    index: int
    box: list[list[int]]
    fitted: list[int]
    before: list[int]
    share: float
    window: list[list[int]]


@dataclass
class Scan:
    """What is needed to bring the network's outputs back to the file's own grid; plain data, kept as JSON.

    Attributes:
        source: the file (the first of several), or the name given to an array.
        picture: a PNG, JPG, ... whose axes are X along the width and Y along the height.
        shape: spatial shape of the file, (X, Y[, Z]).
        affine: 4x4, voxel indices of the file to RAS+ millimeters.
        plane: "axial", "coronal" or "sagittal" for a volume cut into slices, else "".
        count: slices in the stack, 1 for a picture or a whole volume.
        slice_shape: spatial shape of one slice as it is cut (or of the volume in LPS orientation).
        placements: of what is shown to the network, in order.
        flags: {"code", "message"[, "slices"]}, what speaks against trusting the result.
    """

    source: str
    picture: bool
    shape: list[int]
    affine: list[list[float]]
    plane: str
    count: int
    slice_shape: list[int]
    placements: list[Placement] = field(default_factory=list)
    flags: list[dict[str, Any]] = field(default_factory=list)

    def to_json(self) -> str:
        """Text that `from_json` reads back without loss."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Scan:
        """Read `to_json`."""
        values = json.loads(text)
        return cls(**{**values, "placements": [Placement(**p) for p in values["placements"]]})

    @classmethod
    def of(cls, image: Tensor) -> Scan:
        """Scan of a prepared image.

        Raises:
            ValueError: when the image was not prepared by `PrepareScand`.
        """
        text = image.meta.get(SCAN) if isinstance(image, MetaTensor) else None
        if not isinstance(text, str):
            raise ValueError("the image carries no scan: prepare it with scripts.inference.scans.PrepareScand")
        return cls.from_json(text)

    def restore(self, values: Sequence[Tensor], dtype: torch.dtype = torch.float32) -> Tensor:
        """Bring one array a placement, already on its slice's grid, to the file's grid; 0 elsewhere.

        Args:
            values: each (*slice_shape), in the order of ``placements``.
            dtype: of the result.

        Returns:
            (*shape) in the file's own orientation. Slices are turned and flipped back, never interpolated.
        """
        if self.picture:
            return values[0].to(dtype)
        if not self.plane:
            volume = values[0].to(dtype).numpy()
        else:
            stack = torch.zeros((self.count, *self.slice_shape), dtype=dtype)
            for placement, value in zip(self.placements, values, strict=True):
                stack[placement.index] = value.to(dtype)
            axes, flip = PLANES[self.plane]
            turned = stack.movedim(0, -1).numpy()
            volume = np.transpose(turned[:, ::-1] if flip else turned, np.argsort(axes))
        lps = nib.orientations.axcodes2ornt("LPS")
        back = nib.orientations.ornt_transform(lps, nib.orientations.io_orientation(np.asarray(self.affine)))
        oriented = nib.orientations.apply_orientation(volume, back)
        return torch.from_numpy(np.ascontiguousarray(oriented).reshape(self.shape))


def to_slice_grid(value: Tensor, placement: Placement, slice_shape: Sequence[int]) -> Tensor:
    """Bring an array from the network's grid to its slice's grid by linear interpolation; 0 outside the crop.

    Args:
        value: (C, *size), floating point.
        placement: of the slice.
        slice_shape: of the slice.

    Returns:
        (C, *slice_shape).
    """
    window = (slice(None), *(slice(b, b + n) for b, n in zip(placement.before, placement.fitted, strict=True)))
    inner = value[window]
    size = [stop - start for start, stop in placement.box]
    if list(inner.shape[1:]) != size:
        mode = {2: "bilinear", 3: "trilinear"}[len(size)]
        inner = torch.nn.functional.interpolate(inner[None], size, mode=mode, align_corners=False)[0]
    result = value.new_zeros((len(value), *slice_shape))
    origin = [start for start, _ in placement.window]
    moved = [[b[0] - o, b[1] - o] for b, o in zip(placement.box, origin, strict=True)]
    target, source = overlap(moved, [stop - start for start, stop in placement.window])
    place = (slice(t.start + o, t.stop + o) for t, o in zip(target, origin, strict=True))
    result[(slice(None), *place)] = inner[(slice(None), *source)]
    return result


class PrepareScand(MapTransform):
    """Read an image and bring it through the bundle's pipeline: a picture whole, a volume slice by slice.

    Every slice goes through the same transforms as in training, those of the config or of
    `scripts.data.preprocessing.make_preprocessing`: the same pixels, bit for bit. Slices without a head are left out
    and named in the scan's flags.

    The item's image is a path (PNG, JPG, ..., NIfTI, a folder with a DICOM series), several paths (one a channel), or
    an array (X, Y[, Z[, C]]) in the index order of NIfTI. Its further keys are optional: ``affine`` (4x4, of an array),
    ``foreground`` (a mask on the same grid, path or array), ``slice`` (one slice of the plane alone), ``plane`` and
    ``channel`` (in place of the arguments), ``name``. What is not cut (a picture, a volume taken whole) has no slice
    or plane to choose: they are refused there, but for the plane "auto", which asks for none.

    Args:
        spatial_size: the network's input size; two numbers: volumes are cut into slices, three: taken whole.
        margin: see `make_preprocessing`.
        plane: "axial", "coronal", "sagittal", or "auto": the plane that the volume was acquired in, which is the one
            across its largest voxel distance; axial where the distances are within a factor of 1.2.
        channel: which volume of a 4D file, counted from 0; "all": every one is a channel of the network.
        in_channels: of the network; another number of channels is an error that says so.
        min_foreground: share of a slice that must be head for the slice to count for the volume's probability; that of
            the slices that training takes.
        keys, foreground_key: of image and mask.
        transforms: of each slice, in place of those of `make_preprocessing`; plain tensors come of them.

    Raises:
        ValueError: when crop or padding lack among the transforms, or their order is wrong.

    Returns (when called):
        the item with image float32 (C, *spatial_size), or (C, *spatial_size, S) with the slices of a volume last, whose
        metadata hold the file's shape and affine and the `Scan`; and its foreground mask, uint8.
    """

    def __init__(
        self,
        spatial_size: Sequence[int] | int | None = None,
        margin: int = 4,
        plane: str = "auto",
        channel: int | str = "all",
        in_channels: int = 1,
        min_foreground: float = 0.1,
        keys: str = "image",
        foreground_key: str = "foreground",
        transforms: Sequence[Callable] | None = None,
    ) -> None:
        super().__init__(keys)
        if spatial_size is not None and transforms is None:
            transforms = make_preprocessing(spatial_size, margin, trace=False).transforms
        self.pipeline = Pipeline(transforms)
        self.crop_step, self.pad_step = (only_step(self.pipeline, kind) for kind in (CropToForegroundd, PadToFitd))
        self.margin = self.pipeline.transforms[self.crop_step].margin
        self.plane, self.channel, self.in_channels = plane, channel, in_channels
        self.min_foreground, self.foreground_key = min_foreground, foreground_key
        self.size = list(self.pipeline.transforms[self.pad_step].spatial_size)
        self.limits = DEFAULT_LIMITS  # of files; a service lowers them

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Prepare one item.

        Raises:
            ValueError: when the file cannot be read or does not fit, or no slice shows a head. Names the file.
        """
        item = dict(data)
        key = self.keys[0]
        scan, slices, masks = self._slices(item)
        prepared: list[tuple[Tensor, Tensor]] = []
        failed: dict[int, str] = {}
        indices = range(scan.count)
        if scan.plane and item.get("slice") is not None:
            indices = range(*_one_slice(item["slice"], scan))
        doubtful: dict[int, str] = {}
        for index in indices:
            foreground = None if masks is None else masks[index]
            try:
                image, mask, placement, doubt = self._prepare(scan, slices, foreground, index)
            except ValueError as error:
                if not scan.plane or len(indices) == 1:
                    raise
                # Without the file's name and what could be done about a picture.
                failed[index] = str(error).partition(f"slice {index}: ")[2].partition(". Leave")[0] or str(error)
                continue
            prepared.append((image, mask))
            scan.placements.append(placement)
            if doubt and foreground is None:
                doubtful[index] = "; ".join(doubt)
        if not prepared:
            raise ValueError(
                f"{scan.source}: none of {scan.count} {scan.plane} slices shows a head ({first_reasons(failed)}); "
                "give a mask of the head as the foreground"
            )
        scan.flags += _flags(scan, failed, doubtful, self.min_foreground)
        stacked = bool(scan.plane)
        axis = -1
        image, mask = (torch.stack([p[i] for p in prepared], axis) if stacked else prepared[0][i] for i in (0, 1))
        affine = torch.tensor(scan.affine, dtype=torch.float64)
        meta = {
            "filename_or_obj": scan.source,
            "affine": affine,
            "original_affine": affine.clone(),
            "spatial_shape": np.asarray(scan.shape),
            "original_channel_dim": "no_channel",
            "space": "RAS",
            SCAN: scan.to_json(),
        }
        item[key] = MetaTensor(image, meta=meta)
        item[self.foreground_key] = mask
        return item

    def _prepare(
        self, scan: Scan, slices: list[np.ndarray], foreground: np.ndarray | None, index: int
    ) -> tuple[Tensor, Tensor, Placement, list[str]]:
        """One slice through the pipeline, and where it lies on the network's grid; a volume leaves the list."""
        item: dict[str, Any] = {"name": scan.source}
        item["image"] = self._located(slices[index] if scan.plane else slices.pop(), scan)
        if scan.plane:
            item["slice"] = index
        if foreground is not None:
            if not foreground.any():
                raise ValueError(f"{scan.source}: the given foreground is empty in slice {index}")
            item["foreground"] = self._located(foreground, scan)
        for step in range(self.crop_step):  # one by one: nothing holds a volume when the next step is done
            item = self.pipeline(item, start=step, end=step + 1)
        mask = item["foreground"][0].numpy() != 0
        box = foreground_box(mask, self.margin)
        assert box is not None  # the foreground step refuses an empty mask
        offset = item[OFFSET_KEY]
        shown = on_image(mask, offset, scan.slice_shape)
        for step in range(self.crop_step, self.pad_step):
            item = self.pipeline(item, start=step, end=step + 1)
        fitted = list(item["image"].shape[1:])
        before = [(size - n) // 2 for size, n in zip(room_for(self.size, fitted), fitted, strict=True)]
        item = self.pipeline(item, start=self.pad_step)
        moved = [[b.start + o, b.stop + o] for b, o in zip(box, offset, strict=True)]
        placement = Placement(index, moved, fitted, before, float(shown.mean()), item[WINDOW_KEY])
        return item["image"], item["foreground"], placement, foreground_warnings(shown) if shown.ndim == 2 else []

    def _located(self, one: np.ndarray, scan: Scan) -> np.ndarray | MetaTensor:
        """A slice as it is; a whole volume with its voxel distances, and said to lie in LPS orientation already."""
        array = np.ascontiguousarray(one)
        if len(self.size) == 2:
            return array
        turned = orient_lps(np.empty(scan.shape, np.bool_), np.asarray(scan.affine))[1]
        affine = np.diag([*(_LPS * nib.affines.voxel_sizes(turned)), 1.0])
        return MetaTensor(torch.from_numpy(array), affine=torch.from_numpy(affine))

    def _slices(self, item: Mapping[Hashable, Any]) -> tuple[Scan, list[np.ndarray], Sequence[np.ndarray] | None]:
        """The scan, its slices or its one volume, (C, *slice_shape) each, and the given masks."""
        name = str(item.get("name") or "the array")
        array, affine, picture, source = read_image(item.get(self.keys[0]), item.get("affine"), name, self.limits)
        array = self._channels(array, item.get("channel"), source)
        if not np.isfinite(array.sum(dtype=np.float64)):
            bad = int((~np.isfinite(array)).sum())
            raise ValueError(
                f"{source}: {bad} values are not finite (NaN or infinite); replace them by the air's value"
            )
        foreground = item.get(self.foreground_key)
        mask = None
        if foreground is not None:
            mask = read_foreground(foreground, array.shape[:-1], affine, picture, source, self.limits)
        shape = list(array.shape[:-1])
        flags = intensity_flags(array)
        base: dict[str, Any] = {
            "source": source, "picture": picture, "shape": shape, "affine": affine.tolist(), "flags": flags,
        }  # fmt: skip
        if picture and len(self.size) == 3:
            raise ValueError(f"{source} is a picture; the network takes volumes")
        if picture or len(self.size) == 3:
            check_uncut(item, source, "is a picture" if picture else "is given to the network whole")
        if picture:
            slices = [np.moveaxis(array, -1, 0)]
            return Scan(**base, plane="", count=1, slice_shape=shape), slices, None if mask is None else [mask[None]]
        if array.ndim == 3:  # a NIfTI file of two axes
            array, mask = array[:, :, None], None if mask is None else mask[:, :, None]
        array, _ = orient_lps(array, affine)
        mask = None if mask is None else orient_lps(mask, affine)[0]
        if len(self.size) == 3:
            slices, whole = [np.moveaxis(array, -1, 0)], None if mask is None else [mask[None]]
            return Scan(**base, plane="", count=1, slice_shape=list(array.shape[:3])), slices, whole
        plane = str(item.get("plane") or self.plane)
        plane = acquired_plane(array.shape[:3], affine) if plane == "auto" else plane
        if plane not in PLANES:
            raise ValueError(f"{source}: plane is auto or one of {', '.join(PLANES)}, got {plane!r}")
        turned, _ = view_plane(array, plane)
        stack = list(np.moveaxis(turned, (2, 3), (0, 1)))
        masks = None if mask is None else list(np.moveaxis(view_plane(mask, plane)[0], 2, 0)[:, None])
        return Scan(**base, plane=plane, count=len(stack), slice_shape=list(stack[0].shape[1:])), stack, masks

    def _channels(self, array: np.ndarray, asked: Any, source: str) -> np.ndarray:
        """Pick channels of (*shape, C)."""
        count = array.shape[-1]
        channel = self.channel if asked is None else asked
        if channel not in ("all", "", -1):
            if isinstance(channel, str) and channel.isdigit():
                channel = int(channel)
            if isinstance(channel, bool) or not isinstance(channel, int) or not 0 <= channel < count:
                raise ValueError(f"{source} has channels 0 to {count - 1}, not {channel!r}")
            array = array[..., channel : channel + 1]
        if array.shape[-1] != self.in_channels:
            hint = f"give 'channel', 0 to {count - 1}" if self.in_channels == 1 else "give as many files or volumes"
            raise ValueError(f"{source} has {count} channels and the network takes {self.in_channels}: {hint}")
        return array


def _one_slice(value: Any, scan: Scan) -> tuple[int, int]:
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or not 0 <= value < scan.count:
        raise ValueError(f"file {scan.source} has {scan.plane} slices 0 to {scan.count - 1}, not {value!r}")
    return int(value), int(value) + 1


def _flags(
    scan: Scan, failed: Mapping[int, str], doubtful: Mapping[int, str], min_foreground: float
) -> list[dict[str, Any]]:
    flags = []
    if failed:
        flags.append(
            {
                "code": "slices_without_head",
                "message": f"{len(failed)} of {scan.count} slices show no head ({first_reasons(failed)})",
                "slices": sorted(failed),
            }
        )
    little = [p.index for p in scan.placements if p.share < min_foreground]
    if little and scan.plane:
        flags.append(
            {
                "code": "little_head",
                "message": f"{len(little)} slices show less than {min_foreground:.0%} head, as none in training; they "
                "do not count for the probability of the volume",
                "slices": little,
            }
        )
    doubtful = {index: reason for index, reason in doubtful.items() if not scan.plane or index not in little}
    if doubtful:
        flags.append(
            {
                "code": "foreground_doubt",
                "message": f"the foreground may be wrong: it {next(iter(doubtful.values()))}; give a mask of the head",
                **({"slices": sorted(doubtful)} if scan.plane else {}),
            }
        )
    return flags
