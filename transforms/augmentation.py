"""Random transforms on plain tensors that know where the head is: nothing leaks from air into tissue.

Image, foreground and label go through one interpolation grid together. Interpolating and blurring divide by the
interpolated foreground (normalized convolution), because the air is 0, which is a mean gray here and not a value of its
own.
All of them must be followed by ``MaskBackgroundd``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from monai.transforms import MapTransform, RandomizableTransform

from transforms.intensity import plain
from transforms.labels import MASKS_KEY


class RandAffineForegroundd(RandomizableTransform, MapTransform):
    """Flip, rotate, scale, shear and shift image, foreground and label alike, with one grid.

    Args:
        image_key, foreground_key, label_key: float (C, X, Y[, Z]) and two masks (1, X, Y[, Z]); the label may lack.
            ``region_masks`` (R, X, Y[, Z]) move along where they are.
        prob: probability of the affine part.
        flip_prob: probability of a flip, for each of ``flip_axes``.
        flip_axes: spatial axes that may be flipped; axis 0 is left-right in axial and coronal pictures.
        rotate: largest angle, radians (in 3D about each axis).
        scale: largest relative change of size (0.1: from 0.9 to 1.1).
        shear: largest shear.
        translate: largest shift, as a share of the image's size.

    Masks are cut at one half of the interpolated value. Where the head would leave the image, the item stays as it is.
    """

    stage = "interpolate"

    def __init__(
        self,
        image_key: str = "image",
        foreground_key: str = "foreground",
        label_key: str = "label",
        prob: float = 0.7,
        flip_prob: float = 0.5,
        flip_axes: Sequence[int] = (0,),
        rotate: float = 0.26,
        scale: float = 0.12,
        shear: float = 0.06,
        translate: float = 0.04,
    ) -> None:
        MapTransform.__init__(self, [image_key, foreground_key, label_key, MASKS_KEY], allow_missing_keys=True)
        RandomizableTransform.__init__(self, prob)
        self.image_key, self.foreground_key, self.label_key = image_key, foreground_key, label_key
        self.flip_prob, self.flip_axes = flip_prob, tuple(flip_axes)
        self.rotate, self.scale, self.shear, self.translate = rotate, scale, shear, translate
        self._flips: list[int] = []
        self._matrix = np.eye(3)

    def randomize(self, data: tuple[int, ...]) -> None:
        """Draw the flips and the affine matrix for an image of spatial size ``data``."""
        super().randomize(None)
        self._flips = [axis for axis in self.flip_axes if self.R.rand() < self.flip_prob]
        if not self._do_transform:
            return
        dims = len(data)
        matrix = np.eye(dims)
        for first, second in [(0, 1)] if dims == 2 else [(0, 1), (0, 2), (1, 2)]:
            angle = self.R.uniform(-self.rotate, self.rotate)
            turn = np.eye(dims)
            turn[first, first] = turn[second, second] = math.cos(angle)
            turn[first, second], turn[second, first] = -math.sin(angle), math.sin(angle)
            matrix = matrix @ turn
        shear = np.eye(dims)
        shear[0, 1] = self.R.uniform(-self.shear, self.shear)
        matrix = matrix @ shear / self.R.uniform(1 - self.scale, 1 + self.scale)
        shift = self.R.uniform(-self.translate, self.translate, dims) * np.asarray(data)
        self._matrix = np.concatenate([matrix, shift[:, None]], axis=1)  # output voxel -> input voxel, about the center

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return the moved item."""
        item = dict(data)
        keys = [key for key in (self.image_key, self.foreground_key, self.label_key, MASKS_KEY) if key in item]
        tensors = {key: plain(item[key]) for key in keys}
        shape = tuple(tensors[self.image_key].shape[1:])
        self.randomize(shape)
        if self._flips:
            dims = [axis + 1 for axis in self._flips]
            tensors = {key: torch.flip(tensor, dims) for key, tensor in tensors.items()}
        if self._do_transform:
            tensors = self._resample(tensors, shape)
        item.update(tensors)
        return item

    def _resample(self, tensors: dict[str, torch.Tensor], shape: tuple[int, ...]) -> dict[str, torch.Tensor]:
        half = np.asarray(shape) / 2
        normalized = np.concatenate(
            [self._matrix[:, :-1] * half[None] / half[:, None], self._matrix[:, -1:] / half[:, None]], axis=1
        )
        dims = len(shape)
        theta = np.concatenate(
            [normalized[::-1, :dims][:, ::-1], normalized[::-1, dims:]], axis=1
        )  # torch: last axis first
        image, foreground = tensors[self.image_key], tensors[self.foreground_key]
        # A label without any tumor (half the items, and all without a mask) stays what it is.
        masks = [key for key in tensors if key != self.image_key and tensors[key].any()]
        stack = torch.cat([image * (foreground != 0), *(tensors[key].to(torch.float32) for key in masks)])[None]
        grid = _affine_grid(theta, shape)
        moved = F.grid_sample(stack, grid, mode="bilinear", padding_mode="zeros", align_corners=False)[0]
        channels = image.shape[0]
        weight = moved[channels : channels + 1]
        if not weight.max() >= 0.5:
            return tensors
        out = {**tensors, self.image_key: moved[:channels] / weight.clamp_min(0.25)}
        start = channels
        for key in masks:
            out[key] = _cut(moved[start : start + len(tensors[key])])
            start += len(tensors[key])
        return out


def _cut(mask: torch.Tensor) -> torch.Tensor:
    """Interpolated mask, float, to uint8 0 or 1 (numpy compares ten times as fast as torch on one core)."""
    return torch.from_numpy((mask.numpy() >= 0.5).view(np.uint8))


def _affine_grid(theta: np.ndarray, shape: tuple[int, ...]) -> torch.Tensor:
    """``F.affine_grid`` with ``align_corners=False`` for one item, by outer sums: a tenth of its time.

    Args:
        theta: (D, D + 1), last axis first, as ``F.affine_grid`` takes it.
        shape: spatial size, D integers.

    Returns:
        float32 (1, *shape, D).
    """
    dims = len(shape)
    grid = np.empty((1, *shape, dims), np.float32)
    for row in range(dims):
        total: Any = np.float32(theta[row, dims])
        for column in range(dims):
            axis = dims - 1 - column
            ticks = ((2 * np.arange(shape[axis]) + 1) / shape[axis] - 1) * theta[row, column]
            total = total + ticks.astype(np.float32).reshape([-1 if a == axis else 1 for a in range(dims)])
        grid[0, ..., row] = total
    return torch.from_numpy(grid)


class _RandForeground(RandomizableTransform, MapTransform):
    """One random change of the image's intensities; subclasses say which.

    Args:
        prob: probability.
        image_key, foreground_key: float (C, X, Y[, Z]) and its mask (1, X, Y[, Z]).
    """

    stage = "intensity"

    def __init__(self, prob: float, image_key: str = "image", foreground_key: str = "foreground") -> None:
        MapTransform.__init__(self, image_key)
        RandomizableTransform.__init__(self, prob)
        self.image_key, self.foreground_key = image_key, foreground_key

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return the item with its image changed, or unchanged by chance."""
        item = dict(data)
        self.randomize(None)
        if self._do_transform:
            image = plain(item[self.image_key]).to(torch.float32)
            item[self.image_key] = self._change(image, plain(item[self.foreground_key]) != 0)
        return item

    def _change(self, image: torch.Tensor, inside: torch.Tensor) -> torch.Tensor:
        raise NotImplementedError

    def _uniform(self, bounds: tuple[float, float]) -> float:
        return float(self.R.uniform(*bounds))


def _change_values(
    image: torch.Tensor, inside: torch.Tensor, change: Callable[[np.ndarray, np.ndarray], np.ndarray]
) -> torch.Tensor:
    """Change the foreground's values, mapped to 0..1, and give them back the mean and deviation that they had.

    Args:
        image: float32 (C, X, Y[, Z]).
        inside: bool (1, X, Y[, Z]).
        change: of (values, mask): float32 (N,) in 0..1 and the bool mask (X, Y[, Z]) that they lie in.

    Returns:
        float32 like ``image``, 0 in air.
    """
    mask = inside[0].numpy()
    out = np.zeros(image.shape, np.float32)
    for channel, plane in enumerate(image.numpy()):
        old = plane[mask]
        low, high = old.min(), old.max()
        new = change((old - low) / max(high - low, np.float32(1e-6)), mask)
        (mean_old, std_old), (mean_new, std_new) = _moments(old), _moments(new)
        factor = std_old / max(std_new, 1e-6)
        out[channel][mask] = new * np.float32(factor) + np.float32(mean_old - mean_new * factor)
    return torch.from_numpy(out)


def _moments(values: np.ndarray) -> tuple[float, float]:
    """Mean and population standard deviation."""
    mean = float(values.mean(dtype=np.float64))
    centered = values - np.float32(mean)
    return mean, math.sqrt(float(np.einsum("i,i", centered, centered)) / centered.size)  # not BLAS: see intensity.py


class RandGammaForegroundd(_RandForeground):
    """Raise the foreground's range, mapped to 0..1, to a random power; mean and deviation are kept.

    Args:
        gamma: bounds of the exponent.
        prob: probability.
        keys: ``image_key`` and ``foreground_key``.
    """

    def __init__(self, gamma: tuple[float, float] = (0.7, 1.5), prob: float = 0.3, **keys: str) -> None:
        super().__init__(prob, **keys)
        self.gamma = gamma

    def _change(self, image: torch.Tensor, inside: torch.Tensor) -> torch.Tensor:
        gamma = math.exp(self._uniform((math.log(self.gamma[0]), math.log(self.gamma[1]))))
        return _change_values(image, inside, lambda values, _: values ** np.float32(gamma))


class RandContrastForegroundd(_RandForeground):
    """Scale the deviation from 0 (the foreground's mean) and add a constant.

    Args:
        factor: bounds of the factor.
        shift: largest constant, in standard deviations of the foreground.
        prob: probability.
        keys: ``image_key`` and ``foreground_key``.
    """

    def __init__(
        self, factor: tuple[float, float] = (0.85, 1.15), shift: float = 0.1, prob: float = 0.3, **keys: str
    ) -> None:
        super().__init__(prob, **keys)
        self.factor, self.shift = factor, shift

    def _change(self, image: torch.Tensor, inside: torch.Tensor) -> torch.Tensor:
        return image * self._uniform(self.factor) + self._uniform((-self.shift, self.shift))


class RandNoiseForegroundd(_RandForeground):
    """Add Gaussian noise.

    Args:
        std: bounds of its standard deviation, in those of the foreground.
        prob: probability.
        keys: ``image_key`` and ``foreground_key``.
    """

    def __init__(self, std: tuple[float, float] = (0.0, 0.15), prob: float = 0.2, **keys: str) -> None:
        super().__init__(prob, **keys)
        self.std = std

    def _change(self, image: torch.Tensor, inside: torch.Tensor) -> torch.Tensor:
        std = self._uniform(self.std)
        generator = torch.Generator().manual_seed(int(self.R.randint(2**31 - 1)))
        mask, out = inside[0].numpy(), image.numpy().copy()
        count = int(np.count_nonzero(mask))  # air needs none: it is masked next
        for plane in out:
            plane[mask] += std * torch.randn(count, generator=generator).numpy()
        return torch.from_numpy(out)


class RandBlurForegroundd(_RandForeground):
    """Blur the foreground with a Gaussian; air takes no part in it.

    Args:
        sigma: bounds of its width, pixels.
        prob: probability.
        keys: ``image_key`` and ``foreground_key``.
    """

    def __init__(self, sigma: tuple[float, float] = (0.4, 1.2), prob: float = 0.15, **keys: str) -> None:
        super().__init__(prob, **keys)
        self.sigma = sigma

    def _change(self, image: torch.Tensor, inside: torch.Tensor) -> torch.Tensor:
        sigma = self._uniform(self.sigma)
        radius = max(1, math.ceil(2.5 * sigma))
        # Not divided by its sum, which the division by the smoothed foreground takes out again.
        kernel = np.exp(-0.5 * (np.arange(radius + 1) / sigma) ** 2).astype(np.float32)
        weight = inside.numpy().astype(np.float32)
        stack = np.concatenate([image.numpy() * weight, weight])
        for axis in range(1, image.ndim):
            stack = _smooth(stack, kernel, axis)
        return torch.from_numpy(stack[:-1] / np.maximum(stack[-1:], np.float32(1e-3)))


def _smooth(stack: np.ndarray, kernel: np.ndarray, axis: int) -> np.ndarray:
    """Convolve with a symmetric kernel (its middle first) along one axis; zeros beyond the edge.

    Sums of shifted arrays: twice as fast as torch's convolution of so few channels on one core.
    """
    source = np.moveaxis(stack, axis, 0)
    out = source * kernel[0]
    for step, weight in enumerate(kernel[1:], start=1):
        part = source * weight
        out[step:] += part[:-step]
        out[:-step] += part[step:]
    return np.moveaxis(out, 0, axis)


class RandBiasForegroundd(_RandForeground):
    """Multiply by a smooth random field (coil sensitivity); mean and deviation of the foreground are kept.

    Args:
        strength: bounds of the field's amplitude in log units (0.3: about 0.74 to 1.35 times).
        prob: probability.
        keys: ``image_key`` and ``foreground_key``.
    """

    def __init__(self, strength: tuple[float, float] = (0.1, 0.4), prob: float = 0.3, **keys: str) -> None:
        super().__init__(prob, **keys)
        self.strength = strength

    def _change(self, image: torch.Tensor, inside: torch.Tensor) -> torch.Tensor:
        amplitude = self._uniform(self.strength)
        coarse = self.R.uniform(-1, 1, [3] * (image.ndim - 1)).astype(np.float32) * np.float32(amplitude)
        for axis, size in enumerate(image.shape[1:]):
            coarse = np.moveaxis(np.tensordot(_cubic_weights(size), coarse, axes=(1, axis)), 0, axis)
        return _change_values(image, inside, lambda values, mask: values * np.exp(coarse[mask]))


@lru_cache(maxsize=16)
def _cubic_weights(size: int) -> np.ndarray:
    """(size, 3): bicubic interpolation of three knots, the outer ones on the outermost voxels."""
    knots = torch.eye(3)[None, :, :, None]
    return F.interpolate(knots, (size, 1), mode="bicubic", align_corners=True)[0, :, :, 0].T.contiguous().numpy()
