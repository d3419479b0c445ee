"""The loss of the masks: overlap and cross-entropy, from sums over the batch (`scripts.training.losses`)."""

from __future__ import annotations

import math

import torch
from torch import nn

__all__ = ["SMOOTH", "SegmentationLoss"]

SMOOTH = 1e-5


class SegmentationLoss(nn.Module):
    """Soft Dice of the tumor channels over the whole batch, plus cross-entropy.

    MONAI's ``DiceCELoss(batch=True)`` where the batch has a tumor; without any, cross-entropy alone. Of several regions
    each is a channel with a sigmoid, and the cross-entropy is the mean of their binary ones.

    Args:
        out_channels: of the network, background included; of several regions their number.
        nested: the channels are regions that may lie in each other, without a background.
        focal_gamma: exponent of the focal loss in place of cross-entropy; 0 is cross-entropy.
        tversky_beta: in (0, 1), weight of missed pixels in the overlap, that of false ones being the rest (Tversky's
            index); 0.5 is Dice.
        per_item: the overlap of each item with a tumor by itself, and their mean; what is predicted in heads without
            one then counts in the cross-entropy alone.

    Raises:
        ValueError: when there is no background channel, or a number is out of range.
    """

    def __init__(
        self,
        out_channels: int = 2,
        nested: bool = False,
        focal_gamma: float = 0.0,
        tversky_beta: float = 0.5,
        per_item: bool = False,
    ):
        super().__init__()
        if out_channels < 2:
            raise ValueError(f"segmentation needs a background channel and a tumor channel, got {out_channels} channel")
        if not 0 <= focal_gamma < math.inf or not 0 < tversky_beta < 1:
            raise ValueError(
                f"mask_loss: focal_gamma is 0 or more, tversky_beta between 0 and 1; got {focal_gamma}, {tversky_beta}"
            )
        self.out_channels, self.nested = out_channels, nested
        self.focal_gamma, self.tversky_beta, self.per_item = focal_gamma, tversky_beta, per_item
        self.size = 3 * (out_channels if nested else out_channels - 1) + 2

    def sums(self, seg: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
        """Sums of a batch.

        Args:
            seg: logits (M, C, H, W[, D]).
            label: (M, 1, H, W[, D]), class of each pixel; of several regions (M, C, H, W[, D]), 0 or 1.

        Returns:
            (size,): overlap of each tumor channel, its prediction, its truth, cross-entropy, number of pixels. With
            ``per_item`` the first are the sum of the items' overlaps as a share, the items with a tumor, and its truth.

        Raises:
            ValueError: when the network has another number of channels.
        """
        if seg.shape[1] != self.out_channels:
            raise ValueError(
                f"the network has {seg.shape[1]} segmentation channels, the loss is for {self.out_channels}: give "
                "the loss the network's out_channels"
            )
        if self.nested:
            if label.shape != seg.shape:
                raise ValueError(
                    f"the network segments {seg.shape[1]} regions, the masks are of {label.shape[1]}: the datalist "
                    "states other regions than the network was made for"
                )
            p, y = torch.sigmoid(seg), label.to(seg.dtype)
            how = "none" if self.focal_gamma else "sum"
            entropy = nn.functional.binary_cross_entropy_with_logits(seg, y, reduction=how) / self.out_channels
        else:
            classes = label[:, 0].long()
            p = torch.softmax(seg, dim=1)[:, 1:]
            y = torch.stack([(classes == k).to(p.dtype) for k in range(1, self.out_channels)], dim=1)
            entropy = nn.functional.cross_entropy(seg, classes, reduction="none" if self.focal_gamma else "sum")
        if self.focal_gamma:
            missing = -torch.expm1(-entropy * (self.out_channels if self.nested else 1))  # 1 - p of the truth
            entropy = (entropy * missing.clamp(min=1e-12) ** self.focal_gamma).sum()  # of 0, a power has no gradient
        pixels = entropy.new_tensor([seg[:, 0].numel()])
        return torch.cat([*self._overlaps(p, y), entropy[None], pixels])

    def _overlaps(self, p: torch.Tensor, y: torch.Tensor) -> list[torch.Tensor]:
        """Overlap, prediction and truth of each channel, or what stands for them with ``per_item``."""
        if not self.per_item:
            axes = [0, *range(2, p.ndim)]
            return [(p * y).sum(axes), p.sum(axes), y.sum(axes)]
        axes = list(range(2, p.ndim))
        true = y.sum(axes)
        present = (true > 0).to(p.dtype)
        shares = self._share((p * y).sum(axes), p.sum(axes), true) * present
        return [shares.sum(0), present.sum(0), true.sum(0)]

    def _share(self, overlap: torch.Tensor, predicted: torch.Tensor, true: torch.Tensor) -> torch.Tensor:
        """Tversky's index, which is Dice where missed and false pixels weigh alike."""
        apart = 2 * (1 - self.tversky_beta) * predicted + 2 * self.tversky_beta * true
        return (2 * overlap + SMOOTH) / (apart + SMOOTH)

    def of_sums(self, sums: torch.Tensor) -> torch.Tensor | None:
        """The loss, a scalar; None without a pixel.

        Dice is of the channels that the batch has a tumor of: of nothing it is 1 for any prediction, without a
        gradient, and cross-entropy says the rest. Where there is a tumor, what is predicted in heads without one lowers
        it.
        """
        overlap, predicted, true = sums[:-2].chunk(3)
        if sums[-1] == 0:
            return None
        share = overlap / predicted.clamp(min=1) if self.per_item else self._share(overlap, predicted, true)
        dice = 1 - share
        present = (true > 0).to(dice.dtype)
        return (dice * present).sum() / present.sum().clamp(min=1) + sums[-2] / sums[-1]

    def forward(self, seg: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
        """The loss of one batch; arguments as of `sums`."""
        loss = self.of_sums(self.sums(seg, label))
        if loss is None:
            raise ValueError("no item to compute the segmentation loss of")
        return loss
