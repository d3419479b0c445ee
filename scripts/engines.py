"""What turns the network into MONAI trainers and evaluators: one step module, parameter groups, batches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from scripts.networks import MultiTaskDynUNet

TARGETS = ("label", "foreground", "has_mask", "diagnosis")


class MultiTaskStep(nn.Module):
    """The network as training and evaluation call it; what is not asked is not computed.

    Its ``forward`` is what distributed training wraps: calling a method of a wrapped network would leave its gradients
    unsynchronized. In training mode the decoder runs for the items with a mask only.

    Args:
        network: the network that checkpoints hold.
        segmentation, classification: outputs to compute.
        frozen: parts ("encoder", "decoder", "head") without gradients, kept in evaluation mode.
        precision: "float32", or "bfloat16" for autocast, on CPU as on GPU.

    Raises:
        ValueError: when precision is another word.
    """

    def __init__(
        self,
        network: MultiTaskDynUNet,
        segmentation: bool = True,
        classification: bool = True,
        frozen: Sequence[str] = (),
        precision: str = "float32",
    ):
        super().__init__()
        dtypes = {"float32": None, "bfloat16": torch.bfloat16}
        if precision not in dtypes:
            raise ValueError(f"precision is one of {', '.join(dtypes)}, got {precision!r}")
        self.network = network
        self.segmentation, self.classification = segmentation, classification
        self.frozen, self.dtype = tuple(frozen), dtypes[precision]
        for part in self.frozen:
            for parameter in network.parameters_of(part):
                parameter.requires_grad_(False)

    def train(self, mode: bool = True) -> MultiTaskStep:
        """Switch the mode; frozen parts stay in evaluation mode (dropout off, no state updated)."""
        super().train(mode)
        for part in self.frozen:
            for module in self.network.modules_of(part):
                module.eval()
        return self

    def forward(self, image: torch.Tensor, has_mask: torch.Tensor | None = None) -> dict[str, torch.Tensor]:
        """Run.

        Args:
            image: (B, C, H, W[, D]).
            has_mask: (B,) bool; in training mode "seg" is computed for these items alone, in order.

        Returns:
            "seg" (M, 2, H, W[, D]), "cls" (B, K), "evidence" (B, K, h, w[, d]), as far as asked, float32 logits.
        """
        with torch.autocast(image.device.type, dtype=self.dtype, enabled=self.dtype is not None):
            features, masks = self.network.encode(image)
            result: dict[str, torch.Tensor] = {}
            if self.segmentation:
                chosen = has_mask if self.training and has_mask is not None else None
                if chosen is None or bool(chosen.all()):
                    result["seg"] = self.network.decode(features, masks)
                elif bool(chosen.any()):
                    result["seg"] = self.network.decode([f[chosen] for f in features], [m[chosen] for m in masks])
            if self.classification:
                logits, evidence = self.network.classify(features, masks)
                result["cls"] = logits
                if self.network.has_evidence:
                    result["evidence"] = evidence
        return result


def prepare_batch(
    batch: Mapping[str, Any], device: torch.device | str | None = None, non_blocking: bool = False, **_: Any
) -> tuple[torch.Tensor, dict[str, torch.Tensor], tuple, dict[str, Any]]:
    """Split a collated batch for MONAI's engines: image, targets, and the step's keyword arguments."""
    target = {key: torch.as_tensor(batch[key]).to(device, non_blocking=non_blocking) for key in TARGETS}
    image = torch.as_tensor(batch["image"]).to(device, non_blocking=non_blocking)
    return image, target, (), {"has_mask": target["has_mask"]}


def parameter_groups(
    network: MultiTaskDynUNet, learning_rate: float, encoder_factor: float = 1.0
) -> list[dict[str, Any]]:
    """Optimizer groups "encoder", "decoder" and "head", without the frozen parameters.

    Args:
        network: after freezing.
        learning_rate: of decoder and head.
        encoder_factor: the encoder learns at ``learning_rate * encoder_factor``.

    Raises:
        ValueError: when everything is frozen.
    """
    rates = {"encoder": learning_rate * encoder_factor, "decoder": learning_rate, "head": learning_rate}
    groups = [
        {"name": part, "lr": rate, "params": [p for p in network.parameters_of(part) if p.requires_grad]}
        for part, rate in rates.items()
    ]
    groups = [group for group in groups if group["params"]]
    if not groups:
        raise ValueError("all parameters are frozen; nothing to train")
    return groups
