"""The network of patches whose intensities are normalized over the head in the patch, to compare with."""

from __future__ import annotations

import torch

from scripts.networks.multitask_dynunet import MultiTaskDynUNet

__all__ = ["PatchStatisticsDynUNet", "standardized"]


def standardized(x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Each channel of (B, C, H, W[, D]) less its mean over the mask, divided by its deviation there; 0 outside.

    Args:
        x: any range.
        mask: (B, 1, H, W[, D]), 1.0 inside and 0.0 outside; where it is 0 everywhere, all is 0.
    """
    axes = list(range(2, x.ndim))
    n = mask.sum(axes, keepdim=True).clamp(min=1)
    centered = (x - (x * mask).sum(axes, keepdim=True) / n) * mask
    return centered / (centered.square().sum(axes, keepdim=True) / n).sqrt().clamp(min=1e-3)


class PatchStatisticsDynUNet(MultiTaskDynUNet):
    """`MultiTaskDynUNet` that normalizes each patch or window by itself, whatever was done to the volume before.

    What `configs/volumetric_patches.yaml` does not do, for the ablation that says what that is worth
    (``--only patch_statistics``). Both training and windows of inference normalize by the head that they see.

    Example:
        >>> x = torch.rand(1, 1, 4, 4) * 9
        >>> round(float(standardized(x, torch.ones_like(x)).std(correction=0)), 3)
        1.0
    """

    def encode(
        self, x: torch.Tensor, foreground: torch.Tensor | None = None
    ) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        """See `MultiTaskDynUNet.encode`."""
        mask = self.foreground_of(x) if foreground is None else (foreground != 0).to(x.dtype)
        return super().encode(standardized(x, mask), mask)
