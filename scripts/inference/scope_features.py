"""What an image looks like, as numbers: gray values, their places and texture, and what the first layers make of it."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.ndimage import distance_transform_edt, gaussian_filter
from torch import Tensor

from scripts.inference.inferers import input_channels, spatial_dims
from scripts.measures.shortcuts import histogram_features

__all__ = ["features", "probe"]

LEVEL = 0  # of the encoder, the finest
SHELLS = (0.0, 0.08, 0.16, 0.25, 0.4, 0.6, 1.0)  # depth under the outline, as a share of the largest
WIDTHS = (1, 2, 4)  # of the structures, in pixels


@torch.no_grad()
def features(
    network: Any,
    image: Tensor,
    foreground: Tensor | None = None,
    encoded: tuple[list[Tensor], list[Tensor]] | None = None,
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
    levels, masks = encoded or ([], [])
    if not masks:
        return picture
    layer, inside = levels[LEVEL].flatten(2).double(), masks[LEVEL].flatten(2).double()
    weight = inside / inside.sum(dim=2, keepdim=True)
    mean = (layer * weight).sum(dim=2)
    deviation = ((layer - mean[..., None]) ** 2 * weight).sum(dim=2).sqrt()
    return np.concatenate([picture, mean.cpu().numpy(), deviation.cpu().numpy()], axis=1)


def _of_picture(image: NDArray, inside: NDArray) -> list[float]:
    """Of one image (C, H, W[, D]) and its foreground (H, W[, D]), bool."""
    named = histogram_features(image, inside)
    values = [value for name, value in named.items() if "quantile" in name or name.endswith("skewness")]
    depth = distance_transform_edt(inside)
    depth /= max(float(depth.max()), 1e-9)
    shells = [inside & (depth > low) & (depth <= high) for low, high in pairwise(SHELLS)]
    blurs = [np.maximum(gaussian_filter(inside.astype(np.float32), width), 1e-6) for width in WIDTHS]
    for channel in image:
        for shell in shells:
            own = channel[shell]
            values += [float(own.mean()), float(own.std())] if own.size else [0.0, 0.0]
        values += [float(v) for v in np.percentile(_steps(channel, inside), (50, 90, 99))]
        shown = channel * inside
        for width, share in zip(WIDTHS, blurs, strict=True):
            values.append(float((channel - gaussian_filter(shown, width) / share)[inside].std()))
    return values


def _steps(channel: NDArray, inside: NDArray) -> NDArray:
    """Steps between neighbors that both lie in the foreground, along every axis; one 0 where there are none."""
    found = [np.zeros(1, np.float32)]
    for axis in range(channel.ndim):
        ahead, behind = (np.moveaxis(x, axis, 0) for x in (channel, inside))
        found.append(np.abs(np.diff(ahead, axis=0))[behind[1:] & behind[:-1]])
    return np.concatenate(found[1:]) if sum(map(len, found[1:])) else found[0]


def probe(network: Any) -> NDArray[np.float64]:
    """Features (F,) of an image of noise with a border of air, the same for every network."""
    size = [32] * spatial_dims(network)
    image = torch.zeros(1, input_channels(network), *size)
    inner = (slice(None), slice(None), *[slice(4, 28)] * len(size))
    image[inner] = torch.randn(image[inner].shape, generator=torch.Generator().manual_seed(0))
    return features(network, image.to(next(network.parameters()).device))[0]
