"""Classification heads: evidence pooled over the foreground, and the stock global-average MLP for comparison."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from monai.networks.blocks import Convolution
from torch import nn

from scripts.networks.normalization import ForegroundInstanceNorm

POOLINGS = ("logsumexp", "mean")
EVIDENCE = ("signed", "softplus", "rectified")
AT_ZERO = 0.05  # probability of any tumor where there is no evidence at all, for every number of classes


class FusedFeatures(nn.Module):
    """The last encoder levels on the grid of the finest of them, without the decoder.

    Each level passes a 1x1 convolution; coarse levels are repeated onto the finer grid (nearest, because an
    interpolation that clamps at the border would treat an image that touches it unlike the same image padded with air)
    and added; then a 3x3 convolution, normalization over the foreground and an activation. Exactly 0 in air.

    Args:
        spatial_dims: 2 or 3.
        in_channels: channels of the levels, finest first.
        scales: size of the finest level's grid relative to each level's, per axis, finest first (ones).
        channels: channels of the result.
    """

    def __init__(self, spatial_dims: int, in_channels: Sequence[int], scales: Sequence[Sequence[int]], channels: int):
        super().__init__()
        self.scales = [[float(s) for s in scale] for scale in scales]
        self.lateral = nn.ModuleList(
            Convolution(spatial_dims, c, channels, kernel_size=1, bias=False, conv_only=True) for c in in_channels
        )
        self.conv = Convolution(spatial_dims, channels, channels, kernel_size=3, bias=False, conv_only=True)
        self.norm = ForegroundInstanceNorm(channels)
        self.lrelu = nn.LeakyReLU(0.01)

    def forward(self, features: list[torch.Tensor], mask: torch.Tensor) -> torch.Tensor:
        """Fuse.

        Args:
            features: one tensor (B, C_i, h_i, w_i[, d_i]) a level, finest first.
            mask: (B, 1, h, w[, d]), the foreground on the finest level's grid.

        Returns:
            (B, channels, h, w[, d]), exactly 0 where ``mask`` is 0.
        """
        fused = torch.zeros_like(mask)
        for i, layer in enumerate(self.lateral):
            level = layer(features[i])
            if i > 0:
                level = nn.functional.interpolate(level, scale_factor=self.scales[i], mode="nearest")
            fused = fused + level
        return self.lrelu(self.norm(self.conv(fused), mask))


class EvidenceHead(nn.Module):
    """A spatial evidence map per class, and the class logits as its pooling over the foreground.

    Cell logits are a 1x1 convolution without bias right behind ``features``; the evidence loss teaches them. The
    evidence of tumor k is made of them and is what the classifier sums up, class 0, "no tumor", being the reference:
    its evidence is 0 everywhere, so evidence for a tumor can not hide, negated, in the map of another class.

    - "rectified": ``evidence_k = max(0, cells_k)``, ``logit_0 = 0``, ``logit_k = scale * pool(evidence_k) - c``. In
      training the gradient through the rectifier is that of softplus: a cell below 0 is still taught by the class.
    - "softplus": ``evidence_k = softplus(cells_k)`` in the foreground, the rest alike: positive everywhere.
    - "signed": ``evidence_k = cells_k``, ``logit_k = pool(evidence_k) + bias_k`` with a learned bias, the head of
      version 0.2.0. No evidence at all can then mean "tumor".

    ``scale`` is learned and positive. ``c`` is fixed so that the probability of any tumor is `AT_ZERO` where evidence
    is 0, and the network's temperature leaves it as it is: a tumor is never said without evidence for it. With no
    evidence below 0, maps of tumors do not cancel, and the map of any mixture of tumors is 0 only where all of theirs
    are.

    Grad-CAM at ``features``, after its ReLU, is ``max(0, cells_k)`` up to a positive factor: the evidence itself for
    "rectified", the positive part of it for "signed", and for "softplus" its asymptote. HiResCAM of "signed" equals the
    evidence for mean pooling, and its softmax-weighted form for log-sum-exp.

    Args:
        spatial_dims: 2 or 3.
        in_channels, scales, channels: see `FusedFeatures`.
        num_classes: K, class 0 being "no tumor".
        pooling: "logsumexp" (``log(mean(exp(r e))) / r``) or "mean".
        sharpness: r, 1/temperature: 0 is the mean, infinity the maximum.
        masked: pool over the foreground; otherwise over the whole grid (an ablation).
        evidence: "rectified", "softplus" or "signed".

    Source: log-sum-exp pooling, Pinheiro and Collobert, "From Image-level to Pixel-level Labeling with Convolutional
    Networks", CVPR 2015, eq. 6.
    """

    __constants__ = ["signed"]  # noqa: RUF012 - TorchScript leaves out the branches of the other kind

    def __init__(
        self,
        spatial_dims: int,
        in_channels: Sequence[int],
        scales: Sequence[Sequence[int]],
        channels: int,
        num_classes: int,
        pooling: str = "logsumexp",
        sharpness: float = 5.0,
        masked: bool = True,
        evidence: str = "signed",
    ):
        super().__init__()
        if pooling not in POOLINGS:
            raise ValueError(f"pooling is one of {', '.join(POOLINGS)}, got {pooling!r}")
        if evidence not in EVIDENCE:
            raise ValueError(f"evidence is one of {', '.join(EVIDENCE)}, got {evidence!r}")
        self.pooling, self.sharpness, self.masked, self.kind = pooling, sharpness, masked, evidence
        self.features = FusedFeatures(spatial_dims, in_channels, scales, channels)
        self.evidence = Convolution(spatial_dims, channels, num_classes - 1, kernel_size=1, bias=False, conv_only=True)
        self.signed = evidence == "signed"
        if self.signed:
            self.bias = nn.Parameter(torch.zeros(num_classes))
        else:
            at_zero = math.log((num_classes - 1) * (1 - AT_ZERO) / AT_ZERO)
            self.register_buffer("bias", torch.tensor([0.0] + [-at_zero] * (num_classes - 1)), persistent=False)
            self.log_scale = nn.Parameter(torch.tensor(math.log(2.0)))

    def pool(self, evidence: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Pooled evidence (B, K) from evidence (B, K, h, w[, d]) and foreground (B, 1, h, w[, d])."""
        flat = evidence.flatten(2).float()
        inside = mask.flatten(2).float() if self.masked else torch.ones_like(mask).flatten(2).float()
        count = inside.sum(dim=2)
        if self.pooling == "mean":
            return (flat * inside).sum(dim=2) / count
        scaled = (self.sharpness * flat).masked_fill(inside == 0, float("-inf"))
        return (torch.logsumexp(scaled, dim=2) - torch.log(count)) / self.sharpness

    def cells(self, features: list[torch.Tensor], masks: list[torch.Tensor]) -> torch.Tensor:
        """Cell logits (B, K, h, w[, d]), float32, exactly 0 in air and for class 0; arguments as of `forward`."""
        tumor = self.evidence(self.features(features, masks[0])).float()
        return torch.cat([torch.zeros_like(tumor[:, :1]), tumor], dim=1)

    def of_evidence(self, evidence: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Logits (B, K) of an evidence map and the foreground (B, 1, h, w[, d]): what the classifier sums up."""
        pooled = self.pool(evidence, mask)
        if self.signed:
            return pooled + self.bias
        else:  # kept, because TorchScript compiles what follows a return
            return torch.exp(self.log_scale) * pooled + self.bias

    def of_cells(self, cells: torch.Tensor, mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Logits (B, K) and evidence from cell logits and the foreground (B, 1, h, w[, d])."""
        if self.signed:
            return self.of_evidence(cells, mask), cells
        else:  # kept, because TorchScript compiles what follows a return
            tumor = torch.relu(cells[:, 1:])
            if self.training or self.kind == "softplus":
                soft = nn.functional.softplus(cells[:, 1:]) * mask.float()
                tumor = soft if self.kind == "softplus" else tumor + (soft - soft.detach())
            evidence = torch.cat([cells[:, :1], tumor], dim=1)
            return self.of_evidence(evidence, mask), evidence

    def forward(self, features: list[torch.Tensor], masks: list[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        """Classify.

        Args:
            features: the fused levels, finest first.
            masks: the foreground on the same grids.

        Returns:
            logits (B, K) and evidence (B, K, h, w[, d]), both float32; evidence is exactly 0 in air and for class 0.
        """
        return self.of_cells(self.cells(features, masks), masks[0])


class AveragePoolHead(nn.Module):
    """The usual auxiliary head: average of the bottleneck over all pixels, then two linear layers. No evidence map.

    Args:
        in_channels: channels of the bottleneck.
        num_classes: K.
        hidden_channels: width of the hidden layer.
        masked: average over the foreground only (an ablation; the stock design averages air as well).
    """

    def __init__(self, in_channels: int, num_classes: int, hidden_channels: int = 64, masked: bool = False):
        super().__init__()
        self.masked = masked
        self.mlp = nn.Sequential(
            nn.Linear(in_channels, hidden_channels), nn.ReLU(), nn.Linear(hidden_channels, num_classes)
        )

    def forward(self, features: list[torch.Tensor], masks: list[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        """Classify from the last level; the second result is an empty tensor."""
        flat = features[-1].flatten(2).float()
        if self.masked:
            inside = masks[-1].flatten(2).float()
            pooled = (flat * inside).sum(dim=2) / inside.sum(dim=2)
        else:
            pooled = flat.mean(dim=2)
        return self.mlp(pooled).float(), torch.empty(0, device=pooled.device)
