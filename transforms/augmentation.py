"""Random transforms on plain tensors that know where the head is: nothing leaks from air into tissue.

Image, foreground and label go through one interpolation grid together. Interpolating and blurring divide by the
interpolated foreground (normalized convolution), because the air is 0, which is a mean gray here and not a value of its
own.
All of them must be followed by ``MaskBackgroundd``.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from monai.transforms import MapTransform, RandomizableTransform

from transforms.intensity import plain


class RandAffineForegroundd(RandomizableTransform, MapTransform):
    """Flip, rotate, scale, shear and shift image, foreground and label alike, with one grid.

    Args:
        image_key, foreground_key, label_key: float (C, X, Y[, Z]) and two masks (1, X, Y[, Z]); the label may lack.
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
        translate: float = 0.05,
    ) -> None:
        MapTransform.__init__(self, [image_key, foreground_key, label_key], allow_missing_keys=True)
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
        keys = [key for key in (self.image_key, self.foreground_key, self.label_key) if key in item]
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
        planes = [image * (foreground != 0), *(tensors[k] for k in tensors if k != self.image_key)]
        stack = torch.cat([plane.to(torch.float32) for plane in planes])[None]
        grid = F.affine_grid(
            torch.from_numpy(np.ascontiguousarray(theta, np.float32))[None], list(stack.shape), align_corners=False
        )
        moved = F.grid_sample(stack, grid, mode="bilinear", padding_mode="zeros", align_corners=False)[0]
        channels = image.shape[0]
        weight = moved[channels : channels + 1]
        if not (weight >= 0.5).any():
            return tensors
        out = {self.image_key: moved[:channels] / weight.clamp_min(0.25)}
        for offset, key in enumerate(k for k in tensors if k != self.image_key):
            out[key] = (moved[channels + offset : channels + offset + 1] >= 0.5).to(torch.uint8)
        return out


class _RandForeground(RandomizableTransform, MapTransform):
    """One random change of the image's intensities; subclasses say which."""

    stage = "intensity"

    def __init__(self, image_key: str, foreground_key: str, prob: float) -> None:
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


def _restore_moments(changed: torch.Tensor, image: torch.Tensor, inside: torch.Tensor) -> torch.Tensor:
    """Give the foreground of ``changed`` the mean and deviation of the foreground of ``image``, per channel."""
    out = []
    for new, old in zip(changed, image, strict=True):
        std_new, mean_new = torch.std_mean(new[inside[0]], correction=0)
        std_old, mean_old = torch.std_mean(old[inside[0]], correction=0)
        out.append((new - mean_new) * (std_old / std_new.clamp_min(1e-6)) + mean_old)
    return torch.stack(out)


def _unit(image: torch.Tensor, inside: torch.Tensor) -> torch.Tensor:
    """Map each channel's foreground range to 0..1."""
    values = image[:, inside[0]]
    low, high = values.amin(1), values.amax(1)
    shape = (-1,) + (1,) * (image.ndim - 1)
    return ((image - low.view(shape)) / (high - low).clamp_min(1e-6).view(shape)).clamp(0, 1)


class RandGammaForegroundd(_RandForeground):
    """Raise the foreground's range, mapped to 0..1, to a random power; mean and deviation are kept.

    Args:
        gamma: bounds of the exponent.
        prob: probability.
    """

    def __init__(
        self,
        image_key: str = "image",
        foreground_key: str = "foreground",
        prob: float = 0.3,
        gamma: tuple[float, float] = (0.7, 1.5),
    ) -> None:
        super().__init__(image_key, foreground_key, prob)
        self.gamma = gamma

    def _change(self, image: torch.Tensor, inside: torch.Tensor) -> torch.Tensor:
        gamma = math.exp(self._uniform((math.log(self.gamma[0]), math.log(self.gamma[1]))))
        return _restore_moments(_unit(image, inside) ** gamma, image, inside)


class RandContrastForegroundd(_RandForeground):
    """Scale the deviation from 0 (the foreground's mean) and add a constant.

    Args:
        factor: bounds of the factor.
        shift: largest constant, in standard deviations of the foreground.
        prob: probability.
    """

    def __init__(
        self,
        image_key: str = "image",
        foreground_key: str = "foreground",
        prob: float = 0.3,
        factor: tuple[float, float] = (0.85, 1.15),
        shift: float = 0.1,
    ) -> None:
        super().__init__(image_key, foreground_key, prob)
        self.factor, self.shift = factor, shift

    def _change(self, image: torch.Tensor, inside: torch.Tensor) -> torch.Tensor:
        return image * self._uniform(self.factor) + self._uniform((-self.shift, self.shift))


class RandNoiseForegroundd(_RandForeground):
    """Add Gaussian noise.

    Args:
        std: bounds of its standard deviation, in those of the foreground.
        prob: probability.
    """

    def __init__(
        self,
        image_key: str = "image",
        foreground_key: str = "foreground",
        prob: float = 0.2,
        std: tuple[float, float] = (0.0, 0.15),
    ) -> None:
        super().__init__(image_key, foreground_key, prob)
        self.std = std

    def _change(self, image: torch.Tensor, inside: torch.Tensor) -> torch.Tensor:
        std = self._uniform(self.std)
        generator = torch.Generator().manual_seed(int(self.R.randint(2**31 - 1)))
        return image + std * torch.randn(image.shape, generator=generator)


class RandBlurForegroundd(_RandForeground):
    """Blur the foreground with a Gaussian; air takes no part in it.

    Args:
        sigma: bounds of its width, pixels.
        prob: probability.
    """

    def __init__(
        self,
        image_key: str = "image",
        foreground_key: str = "foreground",
        prob: float = 0.15,
        sigma: tuple[float, float] = (0.4, 1.2),
    ) -> None:
        super().__init__(image_key, foreground_key, prob)
        self.sigma = sigma

    def _change(self, image: torch.Tensor, inside: torch.Tensor) -> torch.Tensor:
        sigma = self._uniform(self.sigma)
        radius = max(1, math.ceil(2.5 * sigma))
        kernel = torch.exp(-0.5 * (torch.arange(-radius, radius + 1) / sigma) ** 2)
        kernel = kernel / kernel.sum()
        weight = inside.to(torch.float32)
        stack = torch.cat([image * weight, weight])[:, None]
        conv = F.conv2d if image.ndim == 3 else F.conv3d
        for axis in range(image.ndim - 1):
            shape = [1] * (image.ndim + 1)
            shape[axis + 2] = -1
            padding = [radius if a == axis else 0 for a in range(image.ndim - 1)]
            stack = conv(stack, kernel.view(shape), padding=padding)
        return stack[:-1, 0] / stack[-1:, 0].clamp_min(1e-3)


class RandBiasForegroundd(_RandForeground):
    """Multiply by a smooth random field (coil sensitivity); mean and deviation of the foreground are kept.

    Args:
        strength: bounds of the field's amplitude in log units (0.3: about 0.74 to 1.35 times).
        prob: probability.
    """

    def __init__(
        self,
        image_key: str = "image",
        foreground_key: str = "foreground",
        prob: float = 0.3,
        strength: tuple[float, float] = (0.1, 0.4),
    ) -> None:
        super().__init__(image_key, foreground_key, prob)
        self.strength = strength

    def _change(self, image: torch.Tensor, inside: torch.Tensor) -> torch.Tensor:
        dims = image.ndim - 1
        coarse = self.R.uniform(-1, 1, [3] * dims) * self._uniform(self.strength)
        mode = "bicubic" if dims == 2 else "trilinear"
        field = F.interpolate(
            torch.from_numpy(coarse.astype(np.float32))[None, None], image.shape[1:], mode=mode, align_corners=True
        )[0]
        return _restore_moments(_unit(image, inside) * field.exp(), image, inside)
