"""Small networks and images for the tests of networks, losses and engines."""

from __future__ import annotations

import torch
from torch import nn

from scripts.networks.multitask_dynunet import MultiTaskDynUNet

STRIDES, FILTERS = [1, 2, 2], [4, 6, 8]
TOTAL_STRIDE = 4
BLOCKS = ("input_block", "downsamples.0", "bottleneck", "upsamples.0", "upsamples.1")


def shape_arguments(dims: int = 2, in_channels: int = 1) -> dict:
    """The arguments that MONAI's DynUNet and ours share."""
    return {
        "spatial_dims": dims,
        "in_channels": in_channels,
        "out_channels": 2,
        "kernel_size": [3, 3, 3],
        "strides": STRIDES,
        "upsample_kernel_size": [2, 2],
        "filters": FILTERS,
    }


def tiny(dims: int = 2, in_channels: int = 1, seed: int = 0, **options) -> MultiTaskDynUNet:
    """Three levels, three classes, total stride 4, evidence at stride 2.

    Norms and evidence get random parameters as of a trained network: with shifts of 0 and evidence near 0 much would
    hold by chance.
    """
    torch.manual_seed(seed)
    options = {"num_classes": 3, "evidence_channels": 5, **options}
    network = MultiTaskDynUNet(**{**shape_arguments(dims, in_channels), **options}).eval()
    for name, parameter in network.named_parameters():
        if "norm" in name:
            if name.endswith("weight"):
                nn.init.uniform_(parameter, 0.5, 1.5)
            else:
                nn.init.normal_(parameter, std=0.5)
        elif "head.evidence" in name or name.endswith("head.bias"):
            nn.init.normal_(parameter, std=0.5)
    return network


def heads(dims: int = 2, size: int = 24, batch: int = 2, touching: bool = False, channels: int = 1) -> torch.Tensor:
    """(B, C, size, ...) ellipses of noise in air of exactly 0; ``touching``: cut off by the border on two sides."""
    generator = torch.Generator().manual_seed(dims)
    axes = torch.meshgrid(*[torch.arange(size) + 0.5] * dims, indexing="ij")
    center = 0.2 * size if touching else 0.5 * size
    images = []
    for b in range(batch):
        radius = size * (0.25 + 0.05 * b)
        inside = sum(((axis - center) / (radius * (1 + 0.2 * d))) ** 2 for d, axis in enumerate(axes)) < 1
        noise = torch.randn((channels, *inside.shape), generator=generator) + 0.3
        noise[noise == 0] = 1e-6
        images.append(noise * inside)
    return torch.stack(images)


def pad_with_air(x: torch.Tensor, amounts: list[int]) -> torch.Tensor:
    """Pad the spatial axes; ``amounts`` in the order of ``torch.nn.functional.pad``: last axis first."""
    return nn.functional.pad(x, amounts)


def crop(x: torch.Tensor, amounts: list[int], stride: int = 1) -> torch.Tensor:
    """Undo `pad_with_air` on a grid of the given stride."""
    return nn.functional.pad(x, [-a // stride for a in amounts])


def gradients(network: nn.Module) -> dict[str, torch.Tensor | None]:
    """Gradients by parameter name."""
    return {name: None if p.grad is None else p.grad.clone() for name, p in network.named_parameters()}
