"""Weights of a network for one of the same design with more channels."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

JOINED = "conv_block.conv1."  # of a decoder level: reads its input's channels and then the skip's
# Where a network ends: channels that are sequences, regions or classes, of which no further one is like the others.
INPUT, OUTPUTS = "input_block.conv1.", ("output_block.", "head.evidence.", "deep_heads.")
FEATURES = "head.features."  # of the evidence head; of any other head nothing is widened
# What may be there or not without another design: buffers that came with later versions, and what only a training uses.
OPTIONAL = ("fixed_part", "mask_threshold", "deep_heads.")


def widened(network: nn.Module, state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Weights that fit a network from those of one with fewer features, without a change of what is computed.

    Each tensor takes the narrow one's values for the features that both have. What the further ones add to those is 0
    at first; what they compute themselves stays as the network initialized it. Sequences, regions and classes are no
    features: a tensor that has another number of them is left out, and so is every other shape where the networks have
    not the same levels.

    Args:
        network: a `scripts.networks.MultiTaskDynUNet`.
        state: state dict of one with fewer features.

    Returns:
        the tensors of the network's state dict that take values of the one of the same name in ``state``.

    Example:
        >>> narrow, wide = nn.Conv2d(1, 2, 3, bias=False), nn.Conv2d(1, 4, 3, bias=False)
        >>> bool((widened(wide, narrow.state_dict())["weight"][:2] == narrow.weight).all())
        True
    """
    levels, stored_levels = (
        {name for name in names if not name.startswith(("head.", *OPTIONAL))} for names in (network.state_dict(), state)
    )
    alike = levels == stored_levels
    transposed = {
        f"{name}.weight"
        for name, module in network.named_modules()
        if isinstance(module, (nn.ConvTranspose2d, nn.ConvTranspose3d))
    }
    result: dict[str, torch.Tensor] = {}
    for name, wide in network.state_dict().items():
        stored = state.get(name)
        if stored is None or stored.ndim != wide.ndim or stored.shape[2:] != wide.shape[2:]:
            continue
        if stored.shape == wide.shape:
            result[name] = stored
        elif (
            alike
            and _of_features(name, stored, wide)
            and all(narrow <= many for narrow, many in zip(stored.shape, wide.shape, strict=True))
        ):
            value = wide.clone()
            if wide.ndim == 1:
                value[: len(stored)] = stored
            else:
                swap = name in transposed  # (in, out, ...) in place of (out, in, ...)
                new, old = (value.transpose(0, 1), stored.transpose(0, 1)) if swap else (value, stored)
                outputs = old.shape[0]
                parts = 2 if JOINED in name else 1
                new[:outputs] = 0
                for into, part in zip(new.chunk(parts, dim=1), old.chunk(parts, dim=1), strict=True):
                    into[:outputs, : part.shape[1]] = part
            result[name] = value
    return result


def _of_features(name: str, stored: torch.Tensor, value: torch.Tensor) -> bool:
    """Whether what the tensors differ in are features, not sequences, regions or classes."""
    if name in OPTIONAL:
        return False
    if name.startswith(INPUT) and value.ndim > 1:
        return stored.shape[1] == value.shape[1]
    if name.startswith(OUTPUTS):
        return stored.shape[0] == value.shape[0]
    return not name.startswith("head.") or name.startswith(FEATURES)
