"""DynUNet for segmentation, classification and evidence in one network."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import torch
from monai.networks.nets import DynUNet
from torch import nn

from scripts.networks import deep_supervision as deep
from scripts.networks.blocks import NORMALIZATIONS, MaskedBlock, MaskedUpBlock
from scripts.networks.heads import AveragePoolHead, EvidenceHead
from scripts.networks.mirroring import in_one_piece
from scripts.networks.parts import InParts
from scripts.networks.windows import WindowOutputs, check_size, larger, stitched

HEADS = ("evidence", "average_pool")
RARE_LOGIT = -4.0  # of a region, before anything is learned: probability 0.02
MODULES = {  # by part
    "encoder": ("input_block", "downsamples", "bottleneck"),
    "decoder": ("upsamples", "output_block", "deep_heads"),
    "head": ("head",),
}


class MultiTaskDynUNet(InParts, DynUNet):
    """MONAI's DynUNet, 2D or 3D, with a classification head on the encoder and normalization that ignores air.

    With ``normalization="foreground"`` nothing about the air reaches any output: padding the image with air by
    multiples of the total stride changes logits and evidence by no more than rounding. The foreground is read from the
    input (a pixel is air where all channels are exactly 0) unless it is given.

    State-dict keys of encoder and decoder are the stock ones, so a DynUNet checkpoint loads with ``strict=False``
    (``skip_layers.*`` there are duplicates and are not needed).

    Args:
        spatial_dims, in_channels, out_channels, kernel_size, strides, upsample_kernel_size, filters, dropout: as in
            ``monai.networks.nets.DynUNet``. Output channel 0 is background if there is more than one.
        num_classes: K classes of the head, class 0 being "no tumor".
        normalization: "foreground", or "instance" for the stock layer.
        head: "evidence", or "average_pool" for the stock design (no evidence map).
        evidence_levels: how many of the last encoder levels the evidence head fuses; 1 is the bottleneck alone.
        evidence_channels: width of the fused features.
        pooling, sharpness: of the evidence, see `scripts.networks.heads.EvidenceHead`.
        evidence: "rectified", "softplus", or "signed", the head of version 0.2.0 and of runs whose config has no such
            key. The state dict says which it is: "signed" has a ``head.bias``, the others a ``head.log_scale``.
        masked_pooling: pool over the foreground only. None: as the head does by default (evidence yes, average no).
        res_block: not supported.
        deep_supervision: in training alone, see `scripts.networks.deep_supervision`.
        regions: names of the regions that are segmented, the tumor first. Of several each is an output channel with a
            sigmoid, so that they may lie in each other; one (None: "tumor") has a channel beside the background's, with
            a softmax over both. See `scripts.networks.regions`.
        window: size of the patches that the network is trained on; larger images then go through it in windows, see
            `scripts.networks.windows`. None: every image in one piece.

    Raises:
        ValueError: when an option is not supported.

    Example:
        >>> net = MultiTaskDynUNet(2, 1, 2, [3, 3, 3], [1, 2, 2], [2, 2], filters=[4, 8, 16], num_classes=2)
        >>> x = torch.rand(2, 1, 32, 32) + 0.1
        >>> net(x).shape, net(x, output="cls").shape, net(x, output="evidence").shape
        (torch.Size([2, 2, 32, 32]), torch.Size([2, 2]), torch.Size([2, 2, 16, 16]))
    """

    def __init__(
        self,
        spatial_dims: int,
        in_channels: int,
        out_channels: int,
        kernel_size: Sequence[Sequence[int] | int],
        strides: Sequence[Sequence[int] | int],
        upsample_kernel_size: Sequence[Sequence[int] | int],
        filters: Sequence[int] | None = None,
        dropout: tuple | str | float | None = None,
        num_classes: int = 2,
        normalization: str = "foreground",
        head: str = "evidence",
        evidence_levels: int = 2,
        evidence_channels: int = 64,
        pooling: str = "logsumexp",
        sharpness: float = 5.0,
        masked_pooling: bool | None = None,
        evidence: str = "signed",
        res_block: bool = False,
        deep_supervision: bool = False,
        regions: Collection[str] | None = None,
        window: Sequence[int] | None = None,
    ):
        if res_block:
            raise ValueError("res_block is not supported by MultiTaskDynUNet; leave it False")
        if normalization not in NORMALIZATIONS:
            raise ValueError(f"normalization is one of {', '.join(NORMALIZATIONS)}, got {normalization!r}")
        if head not in HEADS:
            raise ValueError(f"head is one of {', '.join(HEADS)}, got {head!r}")
        if num_classes < 2:
            raise ValueError(f"num_classes counts class 0 'no tumor' too and is at least 2, got {num_classes}")
        names = list(regions or ["tumor"])
        if len(names) > 1 and out_channels != len(names):
            raise ValueError(
                f"regions {', '.join(names)} are {len(names)} output channels, got out_channels {out_channels}"
            )
        if window is not None and (len(window) != spatial_dims or head != "evidence"):
            raise ValueError(
                f"a window has a size for each of {spatial_dims} axes and needs the head 'evidence', whose map is "
                f"stitched; got window {list(window)} and head {head!r}"
            )
        super().__init__(
            spatial_dims, in_channels, out_channels, kernel_size, strides, upsample_kernel_size, filters, dropout
        )
        # Kept by DynUNet only to run the blocks; it repeats every state-dict key.
        del self.skip_layers, self.heads
        self.num_classes = num_classes
        self.regions, self.nested = names, len(names) > 1
        self.window = None if window is None else [int(n) for n in window]
        self.normalization = normalization
        self.input_block: nn.Module = MaskedBlock(self.input_block, normalization)  # type: ignore[has-type]
        self.downsamples = nn.ModuleList(MaskedBlock(b, normalization) for b in self.downsamples)  # type: ignore[has-type]
        self.bottleneck: nn.Module = MaskedBlock(self.bottleneck, normalization)  # type: ignore[has-type]
        self.upsamples = nn.ModuleList(MaskedUpBlock(b, normalization) for b in self.upsamples)  # type: ignore[has-type]

        self.level_strides = [[s] * spatial_dims if isinstance(s, int) else list(s) for s in self.strides]
        self.total_stride = [1] * spatial_dims
        for stride in self.level_strides:
            self.total_stride = [t * s for t, s in zip(self.total_stride, stride, strict=True)]
        levels = len(self.level_strides)
        if head == "average_pool":
            self.evidence_levels = 1
            self.head: nn.Module = AveragePoolHead(
                self.filters[levels - 1], num_classes, evidence_channels, bool(masked_pooling)
            )
        else:
            if not 1 <= evidence_levels <= levels:
                raise ValueError(f"evidence_levels is between 1 and the {levels} encoder levels, got {evidence_levels}")
            self.evidence_levels = evidence_levels
            scales = [[1] * spatial_dims]
            for stride in self.level_strides[levels - evidence_levels + 1 :]:
                scales.append([a * s for a, s in zip(scales[-1], stride, strict=True)])
            self.head = EvidenceHead(
                spatial_dims, list(self.filters[levels - evidence_levels : levels]), scales, evidence_channels,
                num_classes, pooling, sharpness, masked_pooling is not False, evidence,
            )  # fmt: skip
            self.head.apply(self.initialize_weights)
            # Start near "no evidence": log-sum-exp of large random maps would dominate the first logits.
            nn.init.normal_(self.head.evidence.conv.weight, std=0.01)
        if self.nested:
            # Most voxels are in no region: a sigmoid that starts at one half spends the first epochs on saying so.
            nn.init.constant_(self.output_block.conv.conv.bias, RARE_LOGIT)
        # Last of all that is drawn: everything else begins as without them.
        self.deep_heads = deep.deep_heads(self, deep_supervision, RARE_LOGIT if self.nested else 0.0)
        self.has_segmentation, self.has_evidence = True, head == "evidence"
        self.default_cam_layer = "head.features" if self.has_evidence else "bottleneck"
        # Chosen on validation data and kept with the weights: p(tumor) >= threshold, after logits / temperature; in
        # masks p(region) > mask_threshold.
        self.register_buffer("threshold", torch.tensor(0.5))
        self.register_buffer("temperature", torch.tensor(1.0))
        self.register_buffer("mask_threshold", torch.full((len(names),), 0.5))
        # Part of the class logits that the temperature leaves as it is, see `moved`: the head's constant where it was
        # fitted so, 0 before and with weights of version 0.4.0 and earlier.
        self.register_buffer("fixed_part", torch.zeros(num_classes))
        # Of the place where it is used, not of the weights: see `shift_classes`.
        self.register_buffer("class_shift", torch.zeros(num_classes), persistent=False)
        self.shifted = False
        # Likewise: see `scripts.networks.mirroring`.
        self.mirror_axes: tuple[int, ...] = ()
        # Written to air: tumor probability exp(-20) = 2e-9 there.
        self.air_logit = 10.0

    def foreground_of(self, x: torch.Tensor) -> torch.Tensor:
        """Foreground (B, 1, H, W[, D]), 1.0 where any channel of ``x`` is not exactly 0."""
        return (x != 0).any(dim=1, keepdim=True).to(x.dtype)

    def encode(
        self, x: torch.Tensor, foreground: torch.Tensor | None = None
    ) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        """Run the encoder.

        Args:
            x: (B, in_channels, H, W[, D]), spatial size a multiple of ``total_stride``.
            foreground: (B, 1, H, W[, D]), non-zero inside; read from ``x`` if None.

        Returns:
            activations and foreground masks, a pair of lists from the finest level to the bottleneck.

        Raises:
            ValueError: when channels or size do not fit or a sample has no foreground at all.
        """
        if not torch.jit.is_tracing() and x.shape[1] != self.in_channels:
            raise ValueError(
                f"images with {x.shape[1]} channel(s) for a network that takes {self.in_channels}: train with "
                f"network_def#in_channels {x.shape[1]} (configs/multimodal.yaml: 4), or give other images"
            )
        if foreground is None:
            mask = self.foreground_of(x)
        else:
            mask = (foreground != 0).to(x.dtype)
            if self.normalization == "foreground":
                x = x * mask  # a blurred or noisy input bleeds into the air
        if not torch.jit.is_tracing():
            check_size(list(x.shape[2:]), self.total_stride)
            if bool((mask.flatten(1).amax(dim=1) == 0).any()):
                raise ValueError(
                    "an image has no foreground: all its pixels are exactly 0 (air); "
                    "check the file, or give the foreground"
                )
        masks: list[torch.Tensor] = []
        for level in self.level_strides:
            if max(level) > 1:
                if self.spatial_dims == 3:
                    mask = nn.functional.max_pool3d(mask, level)
                else:
                    mask = nn.functional.max_pool2d(mask, level)
            masks.append(mask)
        features = [self.input_block(x, masks[0])]
        for i, block in enumerate(self.downsamples):
            features.append(block(features[-1], masks[i + 1]))
        features.append(self.bottleneck(features[-1], masks[-1]))
        return features, masks

    def decode(
        self, features: list[torch.Tensor], masks: list[torch.Tensor], levels: list[torch.Tensor] | None = None
    ) -> torch.Tensor:
        """Segmentation logits (B, out_channels, H, W[, D]) from `encode`; air is background, without a gradient.

        To ``levels``, if given, the decoder's activations are appended, coarsest first.
        """
        x = features[-1]
        for i, block in enumerate(self.upsamples):
            level = len(masks) - 2 - i
            x = block(x, features[level], masks[level])
            if levels is not None:
                levels.append(x)
        return self.in_head(self.output_block(x).float(), masks[0])

    def in_head(self, seg: torch.Tensor, foreground: torch.Tensor) -> torch.Tensor:
        """Segmentation logits with those of air where there is no foreground (B, 1, H, W[, D])."""
        if self.normalization == "foreground":
            mask = foreground.to(seg.dtype)
            seg = seg * mask + self.air_of(seg) * (1 - mask)
        return seg

    def air_of(self, seg: torch.Tensor) -> torch.Tensor:
        """Segmentation logits of air, of the shape of the given ones."""
        air = torch.full_like(seg, -self.air_logit)
        if seg.shape[1] > 1 and not self.nested:
            air = torch.cat([-air[:, :1], air[:, 1:]], dim=1)
        return air

    def classify(self, features: list[torch.Tensor], masks: list[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        """Class logits (B, K) and evidence (B, K, h, w[, d]) from `encode` (evidence empty without such a head)."""
        first = len(features) - self.evidence_levels
        logits, evidence = self.head(features[first:], masks[first:])
        return self.moved(logits), evidence

    def classify_cells(
        self, features: list[torch.Tensor], masks: list[torch.Tensor]
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """What `classify` gives, and the cell logits (B, K, h, w[, d]) that the evidence is made of (evidence head)."""
        first = len(features) - self.evidence_levels
        head: Any = self.head
        cells = head.cells(features[first:], masks[first:])
        logits, evidence = head.of_cells(cells, masks[first])
        return self.moved(logits), evidence, cells

    def moved(self, logits: torch.Tensor) -> torch.Tensor:
        """Class logits that the temperature is made for, at the prevalence that the network answers for.

        Divided by the temperature they are the evidence divided by it, plus the head's constant as it is: without any
        evidence the probability of a tumor stays what the head fixes, whatever the temperature. In training they are
        the head's own.
        """
        if not self.training:
            logits = logits + self.lift()
        return logits + self.class_shift if self.shifted else logits

    def lift(self) -> torch.Tensor:
        """What the temperature, once divided by, must leave as it is: (K,), added to the class logits."""
        return (self.temperature - 1.0) * (self.fixed_part + self.class_shift)

    @torch.jit.unused
    def constant(self) -> torch.Tensor | None:
        """The fixed constants of the class logits, (K,); None of a head that learns them."""
        head: Any = self.head
        return head.bias.detach() if self.has_evidence and not head.signed else None

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        """Earlier weights have no `fixed_part` (their temperature divides all) and no `mask_threshold` (one half)."""
        state_dict.setdefault(f"{prefix}fixed_part", torch.zeros(self.num_classes))
        state_dict.setdefault(f"{prefix}mask_threshold", torch.full((len(self.regions),), 0.5))
        deep.fit_state(self, state_dict, prefix)
        super()._load_from_state_dict(state_dict, prefix, *rest)

    @torch.jit.export
    def multitask(
        self,
        x: torch.Tensor,
        foreground: torch.Tensor | None = None,
        segmentation: bool = True,
        classification: bool = True,
    ) -> dict[str, torch.Tensor]:
        """All outputs of one forward pass, computing only what is asked.

        Args:
            x: (B, in_channels, H, W[, D]).
            foreground: (B, 1, H, W[, D]), for perturbed inputs, whose zeroed patches must not become air.
            segmentation: run the decoder; key "seg", (B, out_channels, H, W[, D]) logits.
            classification: run the head; keys "cls", (B, K) logits, and "evidence", (B, K, h, w[, d]), if it has one.
        """
        if not torch.jit.is_scripting():
            if not torch.jit.is_tracing() and larger(x.shape[2:], self.window):
                return stitched(self, x, foreground, segmentation, classification)
            if self.mirror_axes:
                return in_one_piece(self, x, foreground, segmentation, classification)
        features, masks = self.encode(x, foreground)
        return self.outputs(features, masks, segmentation, classification)

    def outputs(
        self,
        features: list[torch.Tensor],
        masks: list[torch.Tensor],
        segmentation: bool = True,
        classification: bool = True,
    ) -> dict[str, torch.Tensor]:
        """What `multitask` returns, from what `encode` returned."""
        result: dict[str, torch.Tensor] = {}
        if segmentation:
            result["seg"] = self.decode(features, masks)
        if classification:
            logits, evidence = self.classify(features, masks)
            result["cls"] = logits
            if self.has_evidence:
                result["evidence"] = evidence
        return result

    def forward(self, x: torch.Tensor, foreground: torch.Tensor | None = None, output: str = "seg") -> torch.Tensor:
        """One output as one tensor, as MONAI's tools expect.

        Args:
            x: (B, in_channels, H, W[, D]), air exactly 0.
            foreground: see `multitask`.
            output: "seg", "cls" or "evidence".

        Raises:
            ValueError: when ``output`` is unknown or the network has no evidence head.
        """
        if output != "seg" and output != "cls" and output != "evidence":
            raise ValueError(f"output is 'seg', 'cls' or 'evidence', got '{output}'")
        if output == "evidence" and not self.has_evidence:
            raise ValueError("this network was built with head='average_pool', which has no evidence map")
        return self.multitask(x, foreground, output == "seg", output != "seg")[output]

    @torch.jit.unused
    def in_windows(self, x: torch.Tensor) -> bool:
        """Whether images of this size go through the network in windows."""
        return larger(x.shape[2:], self.window)

    @torch.jit.unused
    def of_windows(
        self,
        x: torch.Tensor,
        window_outputs: WindowOutputs,
        foreground: torch.Tensor | None = None,
        output: str = "seg",
    ) -> torch.Tensor:
        """What `forward` returns of an image in windows, stitched of what another function makes of each window."""
        return stitched(self, x, foreground, output == "seg", output != "seg", window_outputs=window_outputs)[output]

    @torch.jit.unused
    def of_window(self, image: torch.Tensor, mask: torch.Tensor, output: str) -> dict[str, torch.Tensor]:
        """What is stitched for an output of `forward`, of one window and its foreground: "seg" or "evidence"."""
        name = "seg" if output == "seg" else "evidence"
        return {name: self.outputs(*self.encode(image, mask), name == "seg", name != "seg")[name]}

    @torch.jit.unused
    def shift_classes(self, shift: torch.Tensor) -> None:
        """Add (K,) to the calibrated log-probabilities of the classes, see `scripts.measures.prevalence`."""
        self.class_shift.copy_(shift)
        self.shifted = True

    @torch.jit.unused
    def parts(self) -> dict[str, list[nn.Module]]:
        """Top-level modules by part."""
        return {part: [getattr(self, name) for name in names] for part, names in MODULES.items()}
