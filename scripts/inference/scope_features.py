"""What an image looks like, as numbers: gray values, their places and texture, and what the first layers make of it."""

from __future__ import annotations

from functools import lru_cache
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter1d
from torch import Tensor

from scripts.inference.inferers import Encoded, input_channels, spatial_dims
from scripts.measures.shortcuts import QUANTILES, skewness
from transforms.foreground import mask_depth
from transforms.intensity import quantile

__all__ = ["features", "probe"]

LEVEL = 0  # of the encoder, the finest
SHELLS = (0.0, 0.08, 0.16, 0.25, 0.4, 0.6, 1.0)  # depth under the outline, as a share of the largest
WIDTHS = (1, 2, 4)  # of the structures, in pixels


@torch.no_grad()
def features(
    network: Any,
    image: Tensor,
    foreground: Tensor | None = None,
    encoded: Encoded | None = None,
) -> NDArray[np.float64]:
    """Features (B, F) of images (B, C, H, W[, D]) from the bundle's pipeline.

    By channel of the image: quantiles and skewness of the normalized gray values; their mean and deviation in shells
    from the outline inward; steps between neighbors, and what structures of several widths there are. By channel of
    the encoder's first level: mean and deviation over the foreground.

    Args:
        network: a `MultiTaskDynUNet` in evaluation mode; one without masked levels gives the picture's alone.
        image: air exactly 0.
        foreground: (B, 1, H, W[, D]); None: where the image is not 0.
        encoded: of `network.encode`, where it ran already.
    """
    mask = (image != 0).any(dim=1, keepdim=True) if foreground is None else foreground != 0
    pairs = zip(image.cpu().numpy(), mask[:, 0].cpu().numpy(), strict=True)
    picture = np.array([_of_picture(x, inside) for x, inside in pairs])
    if encoded is None and hasattr(network, "encode"):
        encoded = network.encode(image, foreground)
    levels, masks = encoded[:2] if encoded else ([], [])
    if not masks:
        return picture
    layer, inside = levels[LEVEL].flatten(2).float(), masks[LEVEL].flatten(2).float()
    count = inside.sum(dim=2)
    mean = torch.bmm(layer, inside.transpose(1, 2))[..., 0] / count
    deviation = torch.linalg.vector_norm((layer - mean[..., None]) * inside, dim=2) / count.sqrt()
    return np.concatenate([picture, mean.cpu().numpy(), deviation.cpu().numpy()], axis=1)


def _of_picture(image: NDArray, inside: NDArray) -> list[float]:
    """Of one image (C, H, W[, D]) and its foreground (H, W[, D]), bool."""
    values: list[float] = []
    for channel in image:
        pixels = channel[inside].astype(np.float64)
        values += [*(float(quantile(pixels, share / 100)) for share in QUANTILES), skewness(pixels)]
    depth = mask_depth(inside)[inside]
    depth /= max(float(depth.max(initial=0.0)), 1e-9)
    shells = [(depth > low) & (depth <= high) for low, high in pairwise(SHELLS)]
    blurs = [np.maximum(_blurred(inside.astype(np.float32), width), 1e-6) for width in WIDTHS]
    for channel in image:
        pixels = channel[inside]
        for shell in shells:
            part = pixels[shell]
            values += [float(part.mean()), float(part.std())] if part.size else [0.0, 0.0]
        steps = _steps(channel, inside)
        values += [float(quantile(steps, share)) for share in (0.5, 0.9, 0.99)]
        shown = channel * inside
        for width, share in zip(WIDTHS, blurs, strict=True):
            values.append(float((channel - _blurred(shown, width) / share)[inside].std()))
    return values


def _blurred(image: NDArray, width: int) -> NDArray[np.float32]:
    """scipy's ``gaussian_filter`` of a float32 image to rounding, by products of matrices: in half its time.

    torch's products, not numpy's: BLAS wakes threads of its own for them, which no setting of torch's limits and which
    then keep a whole core busy waiting for the next image.
    """
    blurred = torch.from_numpy(np.ascontiguousarray(image))
    for axis, size in enumerate(image.shape):
        blurred = torch.tensordot(_gaussian(size, width), blurred, dims=([1], [axis])).movedim(0, axis)
    return blurred.numpy()


@lru_cache(maxsize=64)
def _gaussian(size: int, width: int) -> torch.Tensor:
    """What ``gaussian_filter1d`` does with ``size`` values, float32 (size, size)."""
    return torch.from_numpy(gaussian_filter1d(np.eye(size), width, axis=0).astype(np.float32))


def _steps(channel: NDArray, inside: NDArray) -> NDArray:
    """Steps between neighbors that both lie in the foreground, along every axis; one 0 where there are none."""
    steps = [np.zeros(1, np.float32)]
    for axis in range(channel.ndim):
        ahead, behind = (np.moveaxis(x, axis, 0) for x in (channel, inside))
        steps.append(np.abs(np.diff(ahead, axis=0))[behind[1:] & behind[:-1]])
    return np.concatenate(steps[1:]) if sum(map(len, steps[1:])) else steps[0]


def probe(network: Any) -> NDArray[np.float64]:
    """Features (F,) of an image of noise with a border of air, the same for every network."""
    size = [32] * spatial_dims(network)
    image = torch.zeros(1, input_channels(network), *size)
    inner = (slice(None), slice(None), *[slice(4, 28)] * len(size))
    image[inner] = torch.randn(image[inner].shape, generator=torch.Generator().manual_seed(0))
    return features(network, image.to(next(network.parameters()).device))[0]
