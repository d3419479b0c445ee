"""The one way of image data to the network: every consumer builds its pipeline from these transforms.

The configs list them one by one; `make_preprocessing` and `make_augmentation` build the same lists in Python (a test
holds them equal).

load - borders off - scale - foreground mask - crop - normalize - fit to size - mask (air := exactly 0)
[- finalize - augment - re-mask]
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from monai.transforms import Orientationd
from torch.utils.data import default_collate

from transforms.augmentation import (
    RandAffineForegroundd,
    RandBiasForegroundd,
    RandBlurForegroundd,
    RandContrastForegroundd,
    RandGammaForegroundd,
    RandNoiseForegroundd,
)
from transforms.borders import CropBordersd, PadBordersd
from transforms.cropping import CropToForegroundd, PadToFitd, ResizeToFitd
from transforms.describe import Untraced
from transforms.foreground import ForegroundMaskd, foreground_mask
from transforms.intensity import NormalizeForegroundd, ScaleRobustd, plain
from transforms.labels import Finalized, LabelCoveraged, slice_suffix
from transforms.loading import LoadCased
from transforms.masking import MaskBackgroundd
from transforms.order import Pipeline, check_order
from transforms.patches import RandCropPatchd

__all__ = [
    "CropBordersd",
    "CropToForegroundd",
    "Finalized",
    "ForegroundMaskd",
    "LabelCoveraged",
    "LoadCased",
    "MaskBackgroundd",
    "NormalizeForegroundd",
    "PadBordersd",
    "PadToFitd",
    "Pipeline",
    "RandAffineForegroundd",
    "RandBiasForegroundd",
    "RandBlurForegroundd",
    "RandContrastForegroundd",
    "RandCropPatchd",
    "RandGammaForegroundd",
    "RandNoiseForegroundd",
    "ResizeToFitd",
    "ScaleRobustd",
    "Untraced",
    "check_network_input",
    "check_order",
    "collate",
    "foreground_mask",
    "make_augmentation",
    "make_preprocessing",
    "make_training_pipeline",
    "resolve_items",
    "spatial_sizes",
]


def spatial_sizes(spatial_size: Sequence[int] | int) -> tuple[int, ...]:
    """The sizes of two or three axes; one integer is a 2D square.

    Raises:
        ValueError: when there are other than two or three, or one is below 8.
    """
    sizes = (spatial_size, spatial_size) if isinstance(spatial_size, int) else tuple(int(s) for s in spatial_size)
    if len(sizes) not in (2, 3) or min(sizes) < 8:
        raise ValueError(f"spatial_size must be one integer (2D) or two or three, each at least 8; got {spatial_size}")
    return sizes


def make_preprocessing(
    spatial_size: Sequence[int] | int,
    margin: Sequence[int] | int = 4,
    image_key: str = "image",
    label_key: str = "label",
    foreground_key: str = "foreground",
    trace: bool = True,
    spacing_mm: float | Sequence[float] | str | None = None,
) -> Pipeline:
    """Build the deterministic pipeline from a datalist item to the network's input.

    Items need only ``image``; ``label`` and a user's own ``foreground`` mask are taken along where they are there, and
    every other key passes through. Crop, resize and pad are traced: ``pipeline.inverse`` (or MONAI's ``Invertd``)
    brings predictions back to the original grid (of a 2D slice: the slice in LPS, see ``LoadCased``).

    Args:
        spatial_size: (X, Y) or (X, Y, Z) of the result; one integer is a 2D square. The longest side is fitted, the
            rest padded with air evenly on both sides.
        margin: voxels (of the original image) kept around the head.
        image_key, label_key, foreground_key: keys of the item.
        trace: keep metadata and trace every step, so that it can be inverted. Without, the same functions run on plain
            tensors: the same pixels, bit for bit, in a fraction of the time.
        spacing_mm: of volumes: resample to it in place of fitting into the size, see ``ResizeToFitd``. The result is
            then of ``spatial_size`` or larger, see ``transforms.cropping.room_for``.

    Returns:
        a MONAI Compose. Afterwards image is float32 (C, *spatial_size), foreground mean about 0 and deviation about 1,
        air exactly 0, foreground never exactly 0; foreground uint8 and label (1, *spatial_size), 0 or 1.
    """
    sizes = spatial_sizes(spatial_size)
    keys = [image_key, label_key, foreground_key]
    transforms: list[Any] = [LoadCased(image_key, label_key, foreground_key, spatial_dims=len(sizes))]
    if len(sizes) == 3:
        transforms.append(Orientationd(keys, axcodes="LPS", labels=None, allow_missing_keys=True))
    if not trace:
        transforms.append(Untraced(keys))
    transforms += [
        CropBordersd(keys, foreground_key, margin, allow_missing_keys=True),
        ScaleRobustd(image_key),
        ForegroundMaskd(image_key, foreground_key),
        LabelCoveraged(label_key, foreground_key),
        PadBordersd(keys, margin, allow_missing_keys=True),
        CropToForegroundd(keys, foreground_key, margin=margin, allow_missing_keys=True),
        NormalizeForegroundd(image_key, foreground_key),
        ResizeToFitd(keys, sizes, mode=("image", "mask", "mask"), allow_missing_keys=True, spacing_mm=spacing_mm),
        PadToFitd(keys, sizes, allow_missing_keys=True),
        MaskBackgroundd(image_key, foreground_key),
    ]
    return Pipeline(transforms, image_key=image_key)


def make_augmentation(
    spatial_size: Sequence[int] | int,
    strength: float = 1.0,
    flip_axes: Sequence[int] = (0,),
    affine_prob: float = 0.7,
    image_key: str = "image",
    label_key: str = "label",
    foreground_key: str = "foreground",
) -> Pipeline:
    """Build the random transforms for finalized items (plain tensors), ending with the mask.

    Seed them with ``set_random_state``; image, foreground and label move alike.

    Args:
        spatial_size: as in :func:`make_preprocessing`.
        strength: scales ranges and leaves probabilities: 0 does flips only, 1 the defaults.
        flip_axes: spatial axes that may be flipped.
        affine_prob: probability of rotation, scale, shear and shift together: the costliest part.
        image_key, label_key, foreground_key: keys of the item.
    """
    dims = len(spatial_sizes(spatial_size))
    if strength < 0 or any(not 0 <= axis < dims for axis in flip_axes):
        raise ValueError(f"expected strength >= 0 and flip_axes below {dims}, got {strength} and {tuple(flip_axes)}")
    s = strength
    at: dict[str, Any] = {"image_key": image_key, "foreground_key": foreground_key}
    return Pipeline(
        [
            RandAffineForegroundd(
                **at,
                label_key=label_key,
                prob=affine_prob if s else 0.0,
                flip_axes=flip_axes,
                rotate=0.26 * s,
                scale=min(0.12 * s, 0.5),
                shear=0.06 * s,
                translate=0.04 * s,
            ),
            RandBiasForegroundd(**at, prob=0.3, strength=(0.1 * s, 0.4 * s)),
            RandGammaForegroundd(**at, prob=0.3, gamma=(0.7**s, 1.5**s)),
            RandContrastForegroundd(**at, prob=0.3, factor=(1 - min(0.15 * s, 0.9), 1 + 0.15 * s), shift=0.1 * s),
            RandBlurForegroundd(**at, prob=0.15 if s else 0.0, sigma=(0.4, 1.2 + 0.8 * (s - 1))),
            RandNoiseForegroundd(**at, prob=0.2, std=(0.0, 0.15 * s)),
            MaskBackgroundd(image_key, foreground_key),
        ],
        image_key=image_key,
    )


def make_training_pipeline(
    spatial_size: Sequence[int] | int,
    augment: bool,
    num_classes: int | None = None,
    margin: Sequence[int] | int = 4,
    strength: float = 1.0,
    flip_axes: Sequence[int] = (0,),
    affine_prob: float = 0.7,
    spacing_mm: float | Sequence[float] | str | None = None,
    tumor_share: float = 0.5,
) -> Pipeline:
    """Build preprocessing, finalization and, for training, augmentation as one flat Compose.

    Flat, because MONAI's CacheDataset caches up to the first random transform and takes a nested Compose for one.

    Args:
        spatial_size, margin: as in :func:`make_preprocessing`.
        augment: with random transforms (training) or without (validation, test).
        num_classes: number of classes, class 0 being "no tumor"; only two classes let a missing diagnosis be derived
            from a mask (None: such an item is an error). See ``transforms.labels.Finalized`` for the item.
        strength, flip_axes, affine_prob: as in :func:`make_augmentation`.
        spacing_mm: as in :func:`make_preprocessing`.
        tumor_share: of patches; with a spacing, augmentation begins with one, see ``RandCropPatchd``.
    """
    deterministic = make_preprocessing(spatial_size, margin, trace=False, spacing_mm=spacing_mm).transforms
    transforms: list[Any] = [*deterministic, Finalized(num_classes)]
    if augment and spacing_mm is not None:
        transforms.append(RandCropPatchd(spatial_sizes(spatial_size), tumor_share))
    if augment:
        transforms += make_augmentation(spatial_size, strength, flip_axes, affine_prob).transforms
    return Pipeline(transforms)


def resolve_items(items: Sequence[Mapping[str, Any]], dataset_dir: str | Path) -> list[dict[str, Any]]:
    """Make the paths of a datalist part absolute and give every case a unique name.

    Args:
        items: datalist items; ``image``, ``label`` and ``foreground`` are paths (or lists of them) relative to
            ``dataset_dir``.
        dataset_dir: folder of the images.

    Returns:
        new items with ``name``: the file's stem (and ``_sNNN``, ``_corNNN``, ``_sagNNN`` of slices), with as many
        parent folders before it as make the names of cases different.

    Raises:
        ValueError: When an item has no image, or a file does not exist. Lists up to three files.
    """
    root = Path(dataset_dir)
    resolved, missing = [], []
    for index, item in enumerate(items):
        if not item.get("image"):
            raise ValueError(f"item {index} of the datalist has no 'image'; its keys: {sorted(item)}")
        new = dict(item)
        for key in ("image", "label", "foreground"):
            value = new.get(key)
            if isinstance(value, (str, Path)):
                new[key] = str(root / value)
            elif isinstance(value, (list, tuple)):
                new[key] = [str(root / path) for path in value]
            else:
                continue
            missing += [p for p in ([new[key]] if isinstance(new[key], str) else new[key]) if not Path(p).exists()]
        resolved.append(new)
    if missing:
        shown = ", ".join(dict.fromkeys(missing[:3]))
        raise ValueError(f"{len(missing)} files of the datalist do not exist, first: {shown} (dataset_dir: {root})")
    _name_apart(resolved)
    return resolved


def _name_apart(items: list[dict[str, Any]]) -> None:
    names = [str(item.get("name") or _stem(item, 0)) for item in items]
    for depth in range(1, 6):
        twice = {name for name, count in Counter(names).items() if count > 1}
        if not twice:
            break
        names = [
            _stem(item, depth) if name in twice and not item.get("name") else name
            for item, name in zip(items, names, strict=True)
        ]
    for item, name in zip(items, names, strict=True):
        item["name"] = name


def _stem(item: Mapping[str, Any], parents: int) -> str:
    image = item["image"][0] if isinstance(item["image"], (list, tuple)) else item["image"]
    path = Path(str(image))
    stem = path.name.removesuffix(".gz").rsplit(".", 1)[0]
    folders = [part for part in path.parts[:-1] if part != path.anchor][-parents:] if parents else []
    return "_".join([*folders, stem]) + slice_suffix(item)


def collate(items: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Join finalized items, with and without masks, into a batch: tensors are stacked, strings become lists.

    Args:
        items: of :func:`make_training_pipeline`.

    Raises:
        ValueError: When the items' keys or the images' shapes differ. Names the cases.
    """
    if not items:
        raise ValueError("cannot collate an empty batch")
    first = items[0]
    for item in items[1:]:
        if item.keys() != first.keys():
            odd = sorted(set(item) ^ set(first))
            raise ValueError(f"cases {first.get('name')} and {item.get('name')} differ in their keys: {odd}")
        for key, value in item.items():
            if isinstance(value, torch.Tensor) and value.shape != first[key].shape:
                raise ValueError(
                    f"'{key}' of case {first.get('name')} has shape {tuple(first[key].shape)}, "
                    f"of {item.get('name')} {tuple(value.shape)}"
                )
    return default_collate([dict(item) for item in items])


def check_network_input(
    image: torch.Tensor, foreground: torch.Tensor | None = None, names: Sequence[str] | None = None
) -> None:
    """Refuse an input that did not come through the pipeline.

    Args:
        image: float (B, C, X, Y[, Z]), or (C, X, Y); air must be exactly 0.
        foreground: of the same shape with one channel, non-zero in the head; None: read from ``image != 0``.
        names: of the B items, for the message.

    Raises:
        ValueError: When the image is not floating point or not finite, its air is not exactly 0, a foreground voxel is
            exactly 0, an item has no foreground, or the foreground is not normalized. Says which item of the batch.
    """
    image = plain(image)
    if image.ndim not in (3, 4, 5) or not image.is_floating_point():
        raise ValueError(f"expected float (B, C, X, Y[, Z]), got {image.dtype} {tuple(image.shape)}")
    if foreground is not None and (foreground.ndim != image.ndim or foreground.shape[-2:] != image.shape[-2:]):
        raise ValueError(f"foreground {tuple(foreground.shape)} does not fit image {tuple(image.shape)}")
    batch = image if image.ndim != 3 else image[None]
    masks = None if foreground is None else plain(foreground).reshape(batch.shape[0], 1, *batch.shape[2:])
    for index, item in enumerate(batch):
        item_name = f"item {index}" if names is None else f"network input of {names[index]}"
        _check_item(item, None if masks is None else masks[index] != 0, item_name)


def _check_item(item: torch.Tensor, inside: torch.Tensor | None, origin: str) -> None:
    if not torch.isfinite(item.sum()) and not torch.isfinite(item).all():
        raise ValueError(f"{origin}: the image holds values that are not finite")
    seen = item != 0
    if inside is None:
        inside = seen.any(0, keepdim=True)
        if inside.all():
            corner = float(item.flatten(1)[0, 0])
            raise ValueError(
                f"{origin}: no voxel is exactly 0, its corner is {corner:.3g}: air must be exactly "
                "0 (crop, normalize, then mask); if the head fills the image, give the foreground"
            )
    count = int(inside.sum()) * len(item)
    if not count:
        raise ValueError(f"{origin}: the foreground is empty")
    if bool((seen != inside).any()):
        outside = item[:, ~inside[0]]
        if bool((outside != 0).any()):
            raise ValueError(
                f"{origin}: air is not exactly 0 (share of zeros {float((outside == 0).float().mean()):.3f}, mean "
                f"{float(outside.mean()):.3g}); mask after normalization and after every interpolation"
            )
        zeros = int((item[:, inside[0]] == 0).sum())
        raise ValueError(f"{origin}: {zeros} foreground voxels are exactly 0 and would count as air")
    # Air is 0 and adds nothing to the sums. One channel at a time: of a volume each is large in double precision.
    mean, square = 0.0, 0.0
    for channel in item:
        values = channel.double().flatten()
        mean, square = mean + float(values.sum()) / count, square + float(torch.dot(values, values)) / count
    std = math.sqrt(max(square - mean * mean, 0.0))
    if abs(mean) > 2 or not 0.1 < std < 5:
        raise ValueError(
            f"{origin}: foreground mean {mean:.3g}, deviation {std:.3g}; expected about 0 and 1: normalize first"
        )
