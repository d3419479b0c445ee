"""DynUNet's blocks with the foreground as an explicit argument; module names as in MONAI, so checkpoints load."""

from __future__ import annotations

from typing import Any

import torch
from monai.networks.blocks.dynunet_block import UnetBasicBlock, UnetUpBlock
from torch import nn
from torch.utils.checkpoint import checkpoint

from scripts.networks.normalization import ForegroundInstanceNorm, PlainNorm

NORMALIZATIONS = ("foreground", "instance")


def masked_norm(norm: nn.Module, normalization: str) -> nn.Module:
    """Replace an instance-norm layer by one that takes a mask, keeping its parameters.

    Args:
        norm: ``nn.InstanceNorm2d`` or ``nn.InstanceNorm3d`` without running statistics.
        normalization: "foreground" (statistics of the foreground, 0 in air) or "instance" (the stock layer).

    Raises:
        ValueError: when ``norm`` is another layer.
    """
    if not isinstance(norm, (nn.InstanceNorm2d, nn.InstanceNorm3d)) or norm.track_running_stats:
        raise ValueError(
            f"expected instance normalization without running statistics, got {norm}; "
            "build the network with norm_name=('INSTANCE', {'affine': True})"
        )
    if normalization == "instance":
        return PlainNorm(norm)
    masked = ForegroundInstanceNorm(norm.num_features, eps=norm.eps, affine=False)
    masked.weight, masked.bias = norm.weight, norm.bias
    return masked


def recompute_blocks(network: Any) -> None:
    """Make a network's blocks keep their inputs alone in training, and compute the rest again for the backward pass.

    Random numbers are drawn again as they were, so dropout is that of the forward pass.

    Raises:
        ValueError: when the network is made of other blocks.
    """
    if not isinstance(getattr(network, "input_block", None), MaskedBlock):
        raise ValueError(
            f"gradient_checkpointing is over the blocks of MultiTaskDynUNet, not of {type(network).__name__}"
        )
    for block in (network.input_block, *network.downsamples, network.bottleneck, *network.upsamples):
        block.recompute = True


class MaskedBlock(nn.Module):
    """MONAI's ``UnetBasicBlock``: convolution, norm, activation, twice; the norm sees the foreground.

    Args:
        block: the block whose layers are taken over, by name.
        normalization: see `masked_norm`.
    """

    def __init__(self, block: UnetBasicBlock, normalization: str):
        super().__init__()
        self.conv1 = block.conv1
        self.conv2 = block.conv2
        self.lrelu = block.lrelu
        self.norm1 = masked_norm(block.norm1, normalization)
        self.norm2 = masked_norm(block.norm2, normalization)
        self.recompute = False  # see `recompute_blocks`

    def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Run on ``x`` (B, C, H, W[, D]); ``mask`` (B, 1, h, w[, d]) is the foreground on the output's grid."""
        if not torch.jit.is_scripting():  # noqa: SIM102 - TorchScript leaves out the branch of this very condition
            if self.recompute and self.training and torch.is_grad_enabled():
                return checkpoint(self.computed, x, mask, use_reentrant=False)
        return self.computed(x, mask)

    def computed(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """What `forward` returns."""
        x = self.lrelu(self.norm1(self.conv1(x), mask))
        return self.lrelu(self.norm2(self.conv2(x), mask))


class MaskedUpBlock(nn.Module):
    """MONAI's ``UnetUpBlock``: transposed convolution, concatenation with the skip, then a `MaskedBlock`.

    Args:
        block: the block whose layers are taken over, by name.
        normalization: see `masked_norm`.
    """

    def __init__(self, block: UnetUpBlock, normalization: str):
        super().__init__()
        self.transp_conv = block.transp_conv
        self.conv_block = MaskedBlock(block.conv_block, normalization)
        self.recompute = False

    def forward(self, x: torch.Tensor, skip: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Upsample ``x`` to the grid of ``skip`` and ``mask`` and merge."""
        if not torch.jit.is_scripting():  # noqa: SIM102 - as above
            if self.recompute and self.training and torch.is_grad_enabled():
                return checkpoint(self.computed, x, skip, mask, use_reentrant=False)
        return self.computed(x, skip, mask)

    def computed(self, x: torch.Tensor, skip: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """What `forward` returns."""
        return self.conv_block(torch.cat((self.transp_conv(x), skip), dim=1), mask)
