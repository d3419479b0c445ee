"""Deep supervision: the decoder's coarser levels segment too, while the network is trained."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

__all__ = ["decode_levels", "deep_heads", "fit_state", "level_weights", "names"]


def deep_heads(network: Any, wanted: bool, bias: float) -> nn.ModuleList:
    """A 1x1 convolution for each level of the decoder that is supervised beside the finest, finest first.

    They are the levels of half the size, a quarter and so on but the coarsest, whose weight is 0 in nnU-Net as well.

    Args:
        network: a DynUNet.
        wanted: otherwise there are none.
        bias: that they begin with.

    Raises:
        ValueError: when no level is left.
    """
    if not wanted:
        return nn.ModuleList()
    filters = network.filters[: len(network.strides)]
    if len(filters) < 4:
        raise ValueError(
            "deep_supervision takes the decoder's levels between the finest and the coarsest: 4 filters or more, "
            f"got {len(filters)}"
        )
    conv: Any = nn.Conv3d if network.spatial_dims == 3 else nn.Conv2d
    layers = [conv(channels, network.out_channels, 1) for channels in filters[1:-2]]
    heads = nn.ModuleList(layers).apply(network.initialize_weights)
    for layer in layers:
        nn.init.constant_(layer.bias, bias)
    return heads


def decode_levels(network: Any, features: list[torch.Tensor], masks: list[torch.Tensor]) -> dict[str, torch.Tensor]:
    """What is supervised, from `MultiTaskDynUNet.encode`: the logits "seg" of its ``decode``, and of its deep heads.

    Returns:
        "seg" (B, C, H, W[, D]), "seg_1" (B, C, H / 2, W / 2[, D / 2]) and so on, as the strides are.
    """
    levels: list[torch.Tensor] = []
    outputs = names(len(network.deep_heads))
    result = {"seg": network.decode(features, masks, levels if outputs else None)}
    for k, (name, layer) in enumerate(zip(outputs, network.deep_heads, strict=True), 1):
        result[name] = network.in_head(layer(levels[-1 - k]).float(), masks[k])
    return result


def names(count: int) -> list[str]:
    """Names of the coarser levels' logits among a network's outputs, finest first: "seg_1", "seg_2", ..."""
    return [f"seg_{k}" for k in range(1, count + 1)]


def level_weights(count: int) -> list[float]:
    """Shares of the finest level and ``count`` coarser ones in the loss: each half of the one before, 1 in all.

    Source: Isensee et al., "nnU-Net", Nature Methods 2021; ``nnUNetTrainer._build_loss`` of nnunetv2.

    >>> level_weights(0), [round(w, 3) for w in level_weights(2)]
    ([1.0], [0.571, 0.286, 0.143])
    """
    halves = [0.5**k for k in range(count + 1)]
    return [half / sum(halves) for half in halves]


def fit_state(network: Any, state_dict: dict[str, torch.Tensor], prefix: str) -> None:
    """Make weights trained with or without deep supervision fit a network built with or without it, in place.

    No output depends on the heads once training is over, so those that a network does not have are left out, and those
    that the weights do not have stay as they are.
    """
    heads = {f"{prefix}deep_heads.{name}": value for name, value in network.deep_heads.state_dict().items()}
    for name in [name for name in state_dict if name.startswith(f"{prefix}deep_heads.") and name not in heads]:
        del state_dict[name]
    for name, value in heads.items():
        state_dict.setdefault(name, value)
