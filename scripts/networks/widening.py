"""Weights of a network for one of the same design with more channels."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

JOINED = "conv_block.conv1."  # of a decoder level: reads its input's channels and then the skip's


def widened(network: nn.Module, state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Weights that fit a network from those of one with fewer channels, without a change of what is computed.

    Each tensor takes the narrow one's values for the channels that both have. What the further channels add to
    those is 0 at first; what they compute themselves stays as the network initialized it.

    Args:
        network: a `scripts.networks.MultiTaskDynUNet` with as many levels and at least as many channels at each.
        state: state dict of the narrow one.

    Returns:
        the tensors of the network's state dict that have one of this name, kernel and number of axes in ``state``,
        none of them narrower than there.

    Example:
        >>> narrow, wide = nn.Conv2d(1, 2, 3, bias=False), nn.Conv2d(1, 4, 3, bias=False)
        >>> bool((widened(wide, narrow.state_dict())["weight"][:2] == narrow.weight).all())
        True
    """
    transposed = {
        f"{name}.weight"
        for name, module in network.named_modules()
        if isinstance(module, (nn.ConvTranspose2d, nn.ConvTranspose3d))
    }
    result: dict[str, torch.Tensor] = {}
    for name, own in network.state_dict().items():
        given = state.get(name)
        if given is None or given.ndim != own.ndim or given.shape[2:] != own.shape[2:]:
            continue
        if given.shape == own.shape:
            result[name] = given
        elif all(few <= many for few, many in zip(given.shape, own.shape, strict=True)):
            value = own.clone()
            if own.ndim == 1:
                value[: len(given)] = given
            else:
                swap = name in transposed  # (in, out, ...) in place of (out, in, ...)
                new, old = (value.transpose(0, 1), given.transpose(0, 1)) if swap else (value, given)
                outputs = old.shape[0]
                parts = 2 if JOINED in name else 1
                new[:outputs] = 0
                for into, part in zip(new.chunk(parts, dim=1), old.chunk(parts, dim=1), strict=True):
                    into[:outputs, : part.shape[1]] = part
            result[name] = value
    return result
