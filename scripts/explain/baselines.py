"""What stands in place of the tissue that is taken away: a blur, a mean or a constant, inside the foreground only."""

from __future__ import annotations

import torch
from monai.networks.layers import GaussianFilter
from torch import Tensor

__all__ = ["Baseline", "baseline_image", "blurred_foreground", "check_foreground"]

Baseline = float | str | Tensor
# Of the image's longest axis: wide enough that a tumor of a tenth of the image is gone.
BLUR_SHARE = 0.1


def check_foreground(foreground: Tensor | None, x: Tensor) -> Tensor:
    """Foreground as bool (B, 1, *spatial) on the device of `x`; all True for None.

    Args:
        foreground: (B, 1, *spatial), non-zero inside.
        x: input (B, C, *spatial).

    Raises:
        ValueError: for another shape, or a sample without any foreground.
    """
    expected = (x.shape[0], 1, *x.shape[2:])
    if foreground is None:
        return torch.ones(expected, dtype=torch.bool, device=x.device)
    inside = torch.as_tensor(foreground).as_subclass(Tensor).to(x.device) != 0
    if tuple(inside.shape) != expected:
        raise ValueError(f"foreground: expected {expected} for an input {tuple(x.shape)}, got {tuple(inside.shape)}")
    without = (~inside.flatten(1).any(1)).nonzero().flatten().tolist()
    if without:
        raise ValueError(f"foreground: sample(s) {without} have none; every pixel there is air")
    return inside


def blurred_foreground(x: Tensor, foreground: Tensor, sigma_pixels: float | None = None) -> Tensor:
    """Blur the inside of the foreground with itself alone; nothing flows in from the air, and the air stays.

    Normalized convolution: blur(x f) / blur(f) inside, `x` outside. Unlike a black image, it keeps what an instance
    normalization divides out (mean and, in part, contrast), so that a network reads it as a head without details.

    Args:
        x: (B, C, *spatial).
        foreground: (B, 1, *spatial), bool.
        sigma_pixels: standard deviation of the Gaussian; None: a tenth of the longest axis.

    Returns:
        (B, C, *spatial), dtype of `x`.
    """
    sigma = BLUR_SHARE * max(x.shape[2:]) if sigma_pixels is None else float(sigma_pixels)
    if sigma <= 0:
        raise ValueError(f"sigma_pixels: expected a positive number, got {sigma_pixels}")
    blur = GaussianFilter(x.dim() - 2, sigma).to(x.device)
    inside = foreground.to(torch.float32)
    weight = blur(inside).clamp(min=torch.finfo(torch.float32).tiny)
    blurred = blur(x.float() * inside) / weight
    return torch.where(foreground, blurred.to(x.dtype), x)


def baseline_image(x: Tensor, foreground: Tensor, baseline: Baseline, sigma_pixels: float | None = None) -> Tensor:
    """Image with the foreground replaced and the air as it was.

    Args:
        x: (B, C, *spatial).
        foreground: (B, 1, *spatial), bool.
        baseline: "blur" (`blurred_foreground`), "mean" (of each sample's and channel's foreground), a number, or an
            image (B or 1, C or 1, *spatial) of which the inside of the foreground is taken.
        sigma_pixels: of the blur.

    Returns:
        (B, C, *spatial), dtype of `x`.

    Raises:
        ValueError: for another word, or an image that does not fit.
    """
    if isinstance(baseline, Tensor):
        try:
            image = baseline.as_subclass(Tensor).to(x).expand_as(x)
        except RuntimeError as error:
            raise ValueError(f"baseline: {tuple(baseline.shape)} does not fit the input {tuple(x.shape)}") from error
        return torch.where(foreground, image, x)
    if isinstance(baseline, str):
        if baseline == "blur":
            return blurred_foreground(x, foreground, sigma_pixels)
        if baseline != "mean":
            raise ValueError(f"baseline: expected 'blur', 'mean', a number or an image, got {baseline!r}")
        inside = foreground.flatten(2).float()
        mean = (x.flatten(2).float() * inside).sum(2) / inside.sum(2)
        return torch.where(foreground, mean.reshape(*mean.shape, *[1] * (x.dim() - 2)).to(x.dtype), x)
    return torch.where(foreground, torch.as_tensor(float(baseline), dtype=x.dtype, device=x.device), x)
