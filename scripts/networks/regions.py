"""What segmentation logits say of each region: one rule for a tumor against its background and for nested regions.

One region is a channel beside the background, with a softmax over both; of several regions each is a channel with a
sigmoid, so that they may lie in each other. The first region is the tumor.
"""

from __future__ import annotations

from typing import Any

import torch

__all__ = ["is_nested", "region_masks", "region_probability", "tumor_mask"]


def is_nested(network: Any) -> bool:
    """Whether a network segments several regions; one from elsewhere has a background and a tumor."""
    return bool(getattr(network, "nested", False))


def region_masks(seg: torch.Tensor, nested: bool) -> torch.Tensor:
    """Mask (B, R, ...), bool, of each region from segmentation logits (B, C, ...).

    >>> region_masks(torch.tensor([[[3.0], [-1.0], [0.5]]]), nested=True).flatten().tolist()
    [True, False, True]
    >>> region_masks(torch.tensor([[[0.2], [0.3]]]), nested=False).flatten().tolist()
    [True]
    """
    return seg > 0 if nested else seg[:, 1:].amax(dim=1, keepdim=True) > seg[:, :1]  # argmax takes ten times as long


def region_probability(seg: torch.Tensor, nested: bool) -> torch.Tensor:
    """Probability (B, R, ...), float32, of each region from segmentation logits (B, C, ...)."""
    return torch.sigmoid(seg.float()) if nested else 1 - torch.softmax(seg.float(), dim=1)[:, :1]


def tumor_mask(seg: torch.Tensor, network: Any) -> torch.Tensor:
    """Mask (B, 1, ...), bool, of the tumor, a network's first region."""
    return region_masks(seg, is_nested(network))[:, :1]
