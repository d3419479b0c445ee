"""What segmentation logits say of each region: one rule for a tumor against its background and for nested regions.

One region is a channel beside the background, with a softmax over both; of several regions each is a channel with a
sigmoid, so that they may lie in each other. The first region is the tumor. A place is in a region where its probability
is above the region's threshold, which is chosen on validation data and kept with the weights as ``mask_threshold``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

__all__ = [
    "is_nested",
    "mask_threshold",
    "named_thresholds",
    "region_log_odds",
    "region_masks",
    "region_probability",
    "thresholds_by_name",
    "tumor_mask",
]


def is_nested(network: Any) -> bool:
    """Whether a network segments several regions; one from elsewhere has a background and a tumor."""
    return bool(getattr(network, "nested", False))


def mask_threshold(network: Any) -> torch.Tensor | None:
    """Threshold (R,) of each region's probability; None of a network that has none, whose masks begin at one half."""
    return getattr(network, "mask_threshold", None)


def thresholds_by_name(network: Any) -> dict[str, float]:
    """The same by name of the region; {} of a network that has none."""
    values = mask_threshold(network)
    return {} if values is None else named_thresholds(values, network.regions)


def named_thresholds(values: torch.Tensor, names: Sequence[str]) -> dict[str, float]:
    """Thresholds (R,) by name, as they were chosen: single precision would show 0.35 as 0.3499999940."""
    return dict(zip(names, (round(float(value), 6) for value in values), strict=True))


def region_log_odds(seg: torch.Tensor, nested: bool) -> torch.Tensor:
    """Log-odds (B, R, ...) of each region from segmentation logits (B, C, ...)."""
    return seg if nested else seg[:, 1:].amax(dim=1, keepdim=True) - seg[:, :1]


def region_masks(seg: torch.Tensor, nested: bool, threshold: torch.Tensor | None = None) -> torch.Tensor:
    """Mask (B, R, ...), bool, of each region from segmentation logits (B, C, ...).

    Args:
        seg: of the network.
        nested: whether the channels are regions.
        threshold: (R,) of `mask_threshold`; None: one half.

    >>> region_masks(torch.tensor([[[3.0], [-1.0], [0.5]]]), nested=True).flatten().tolist()
    [True, False, True]
    >>> region_masks(torch.tensor([[[3.0], [-1.0], [0.5]]]), True, torch.tensor([0.9, 0.2, 0.7])).flatten().tolist()
    [True, True, False]
    >>> region_masks(torch.tensor([[[0.2], [0.3]]]), nested=False).flatten().tolist()
    [True]
    """
    least: torch.Tensor | float = 0.0
    if threshold is not None:
        least = torch.logit(threshold.to(seg)).view(1, -1, *[1] * (seg.ndim - 2))  # of one half exactly 0
    # The maximum takes a tenth of the time of argmax.
    return seg > least if nested else seg[:, 1:].amax(dim=1, keepdim=True) > seg[:, :1] + least


def region_probability(seg: torch.Tensor, nested: bool) -> torch.Tensor:
    """Probability (B, R, ...), float32, of each region from segmentation logits (B, C, ...)."""
    return torch.sigmoid(seg.float()) if nested else 1 - torch.softmax(seg.float(), dim=1)[:, :1]


def tumor_mask(seg: torch.Tensor, network: Any) -> torch.Tensor:
    """Mask (B, 1, ...), bool, of the tumor, a network's first region."""
    return region_masks(seg, is_nested(network), mask_threshold(network))[:, :1]
