"""Images as nnU-Net v2 prepares them for a network, and values of the network back on the image's grid.

The order is nnU-Net's: axes as in the plans, crop to what is not 0 in any channel, normalization of the crop, then
resampling to the plans' spacing. It is written down here once more, so that nothing of a results folder is run and
nnunetv2 need not be installed; `make test-nnunet` compares it with nnunetv2's own.

Arrays are as nnU-Net reads them: (C, Z, Y, X), a picture with Z = 1, spacings in the same order.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.ndimage import binary_fill_holes, map_coordinates, zoom
from torch import Tensor

from scripts.explain.nnunet import NNUNet

__all__ = ["Prepared", "prepare"]

# Where one spacing is so many times another, slices are resampled one by one (nnU-Net's ANISO_THRESHOLD).
ANISOTROPIC = 3.0
RESAMPLING = "resample_data_or_seg_to_shape"
TINY = 1e-8


@dataclass(frozen=True)
class Prepared:
    """An image as the network takes it, and the way back.

    Attributes:
        trained: whose plans were followed.
        image: (1, C, Z, Y, X) for a network of volumes; for one of slices they are the batch, (Z, C, Y, X). float32.
        size: of the image, (Z, Y, X), axes as in the plans.
        box: of the crop in it.
        spacing_mm: of the image, axes as in the plans.
    """

    trained: NNUNet
    image: Tensor
    size: tuple[int, ...]
    box: tuple[slice, ...]
    spacing_mm: tuple[float, ...]

    @property
    def grid(self) -> tuple[int, ...]:
        """Of the network, (Z, Y, X)."""
        volumes = len(self.trained.patch_size) == 3
        return tuple(self.image.shape[2:] if volumes else (len(self.image), *self.image.shape[2:]))

    def restored(self, values: Tensor) -> NDArray[np.float32]:
        """Values of the network's grid, (B, K, *grid) as `image` has it, on the image's grid (K, Z, Y, X).

        They are resampled as nnU-Net resamples its logits, and 0 outside the crop; axes are the image's own again.
        """
        volumes = len(self.trained.patch_size) == 3
        array = (values[0] if volumes else values.transpose(0, 1)).float().cpu().numpy()
        crop = tuple(side.stop - side.start for side in self.box)
        spacing = _target_spacing(self.trained, self.spacing_mm)
        array = _resampled(
            array, crop, spacing, self.spacing_mm, self.trained.resampling["probabilities"], self.trained
        )
        whole = np.zeros((len(array), *self.size), np.float32)
        whole[(slice(None), *self.box)] = array
        back = np.argsort(self.trained.transpose)
        return whole.transpose(0, *(back + 1))


def prepare(model: NNUNet, image: NDArray, spacing_mm: Sequence[float]) -> Prepared:
    """An image as nnU-Net's preprocessor leaves it.

    Args:
        model: a trained results folder.
        image: (C, Z, Y, X) as it was read; a picture has Z = 1.
        spacing_mm: (Z, Y, X).

    Raises:
        ValueError: for another number of channels or axes, values that are not finite, an image of zeros, and a
            normalization or resampling that is not one of nnU-Net's own.
    """
    if image.ndim != 4 or len(image) != len(model.channels):
        raise ValueError(
            f"{model.folder}: expected ({len(model.channels)}, Z, Y, X) with the channels "
            f"{', '.join(model.channels)}, got {image.shape}"
        )
    if not np.isfinite(image).all():
        raise ValueError("the image has NaN or infinite values")
    data = image.astype(np.float32).transpose(0, *(np.array(model.transpose) + 1))
    spacing = tuple(float(spacing_mm[axis]) for axis in model.transpose)
    inside = binary_fill_holes((data != 0).any(0))
    if not inside.any():
        raise ValueError("the image is 0 everywhere")
    box = tuple(slice(int(at.min()), int(at.max()) + 1) for at in np.nonzero(inside))
    crop = _normalized(model, data[(slice(None), *box)], inside[box])
    target = _target_spacing(model, spacing)
    new = tuple(round(old / now * n) for old, now, n in zip(spacing, target, crop.shape[1:], strict=True))
    crop = _resampled(crop, new, spacing, target, model.resampling["data"], model)
    tensor = torch.from_numpy(np.ascontiguousarray(crop, dtype=np.float32))
    tensor = tensor[None] if len(model.patch_size) == 3 else tensor.transpose(0, 1).contiguous()
    return Prepared(model, tensor, tuple(data.shape[1:]), box, spacing)


def _target_spacing(model: NNUNet, spacing_mm: Sequence[float]) -> tuple[float, ...]:
    """Spacing of the network's grid; a network of slices leaves that between slices."""
    return model.spacing_mm if len(model.spacing_mm) == 3 else (spacing_mm[0], *model.spacing_mm)


def _normalized(model: NNUNet, crop: NDArray[np.float32], inside: NDArray[np.bool_]) -> NDArray[np.float32]:
    """A crop (C, Z, Y, X), normalized channel by channel; `inside` are its places that are not 0, holes filled."""
    result = crop.copy()
    for c, scheme in enumerate(model.schemes):
        plane, known = result[c], model.intensities.get(str(c), {})
        if scheme == "ZScoreNormalization":
            mask = inside if model.masked[c] else np.ones_like(inside)
            mean, deviation = plane[mask].mean(), plane[mask].std()
            plane[mask] = (plane[mask] - mean) / max(float(deviation), TINY)
        elif scheme == "CTNormalization":
            np.clip(plane, known["percentile_00_5"], known["percentile_99_5"], out=plane)
            plane[:] = (plane - known["mean"]) / max(known["std"], TINY)
        elif scheme == "RescaleTo01Normalization":
            plane -= plane.min()
            plane /= max(float(plane.max()), TINY)
        elif scheme == "RGBTo01Normalization":
            plane /= 255
        elif scheme != "NoNormalization":
            raise ValueError(f"{model.folder}: normalization {scheme!r} is none of nnU-Net's own")
    return result


def _resampled(
    data: NDArray[np.float32],
    size: Sequence[int],
    spacing: Sequence[float],
    new_spacing: Sequence[float],
    rule: tuple[str, Mapping[str, Any]],
    model: NNUNet,
) -> NDArray[np.float32]:
    """Data (K, Z, Y, X) on another grid of the same extent, by splines whose values stay in the range of the data."""
    name, options = rule
    if tuple(data.shape[1:]) == tuple(size):
        return data
    if name != RESAMPLING:
        raise ValueError(
            f"{model.folder}: an image of spacing {', '.join(f'{s:g}' for s in spacing)} mm is to be resampled by "
            f"{name!r}, and {RESAMPLING!r} alone is known here; give an image of the plans' spacing"
        )
    order, order_z = int(options.get("order", 3)), int(options.get("order_z", 0))
    apart = _axis_apart(options.get("force_separate_z", False), spacing, new_spacing)
    result = np.empty((len(data), *size), np.float32)
    for k, values in enumerate(data.astype(np.float64)):
        if apart is None:
            result[k] = _zoomed(values, size, order)
            continue
        within = [n for axis, n in enumerate(size) if axis != apart]
        slices = np.stack([_zoomed(plane, within, order) for plane in np.moveaxis(values, apart, 0)], apart)
        if slices.shape == tuple(size):
            result[k] = slices
        else:
            places = np.indices(size).astype(np.float64)
            places[apart] = slices.shape[apart] / size[apart] * (places[apart] + 0.5) - 0.5
            result[k] = map_coordinates(slices, places, order=order_z, mode="nearest")
    return result


def _zoomed(values: NDArray[np.float64], size: Sequence[int], order: int) -> NDArray[np.float64]:
    """Values on another grid, cell borders on cell borders; splines may not leave the range of the values."""
    factors = [new / old for new, old in zip(size, values.shape, strict=True)]
    zoomed = zoom(values, factors, order=order, mode="nearest", grid_mode=True)
    return np.clip(zoomed, values.min(), values.max())


def _axis_apart(forced: bool | None, spacing: Sequence[float], new_spacing: Sequence[float]) -> int | None:
    """The axis of thick slices, which is resampled by itself; None where there is none."""
    if forced is None:
        thick = [s for s in (spacing, new_spacing) if max(s) / min(s) > ANISOTROPIC]
    else:
        thick = [spacing] if forced else []
    if not thick:
        return None
    axes = [axis for axis, s in enumerate(thick[0]) if s == max(thick[0])]
    return axes[0] if len(axes) == 1 else None
