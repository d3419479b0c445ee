"""What turns the network into MONAI trainers and evaluators: one step module, parameter groups, batches."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from monai.utils import convert_to_tensor
from torch import nn
from torch.utils.checkpoint import checkpoint

from scripts.networks.blocks import recompute_blocks
from scripts.networks.deep_supervision import decode_levels
from scripts.networks.multitask_dynunet import MultiTaskDynUNet
from scripts.networks.windows import larger
from scripts.runs import parallel
from scripts.training.precision import autocast_dtype
from transforms.labels import MASKS_KEY

logger = logging.getLogger(__name__)

TARGETS = ("label", "foreground", "has_mask", "diagnosis")


class MultiTaskStep(nn.Module):
    """The network as training and evaluation call it; what is not asked is not computed.

    Its ``forward`` is what distributed training wraps: calling a method of a wrapped network would leave its gradients
    unsynchronized. In training mode the decoder runs for the items with a mask only.

    With ``accumulation_steps`` > 1 a training batch goes through the network in so many parts, one after the other,
    and only one part's activations are kept at a time: those of the others are computed again for the backward pass
    (one forward pass more). The loss sees the outputs of the whole batch, so loss and gradients are those of the whole
    batch, also where it is not a mean over items (soft Dice, means over the items with a mask).

    ``gradient_checkpointing`` does the same within a part, block by block of the network: of each block its input is
    kept. It lowers the memory of the one part that accumulation cannot divide, a patch or a whole volume.

    Args:
        network: the network that checkpoints hold.
        segmentation, classification, evidence: outputs to compute; the last, if not given, with the one before it.
        frozen: parts ("encoder", "decoder", "head") without gradients, kept in evaluation mode.
        precision: "float32", or "bfloat16" or, on a GPU, "float16" for autocast; "auto": the fastest of the device
            (`scripts.training.precision`). float16 needs scaled gradients: give the trainer ``amp``.
        accumulation_steps: parts that a training batch is computed in.
        cache_features: keep the frozen encoder's features of each training item and compute them once. The items must
            not be augmented then.
        items: number of training items, for ``cache_features``.
        calibrated: in evaluation mode, "cls" is what the network's temperature is made for; else as the head gives it,
            for a validation that fits the temperature.
        gradient_checkpointing: compute the activations within each block again for the backward pass.

    Raises:
        ValueError: when precision is another word or does not fit the device, accumulation_steps is less than 1,
            cache_features is asked for an encoder that is not frozen or beside the segmentation, or a
            network has no blocks for gradient_checkpointing.
    """

    def __init__(
        self,
        network: MultiTaskDynUNet,
        segmentation: bool = True,
        classification: bool = True,
        frozen: Sequence[str] = (),
        precision: str = "float32",
        accumulation_steps: int = 1,
        evidence: bool | None = None,
        cache_features: bool = False,
        items: int = 0,
        calibrated: bool = True,
        gradient_checkpointing: bool = False,
    ):
        super().__init__()
        if accumulation_steps < 1:
            raise ValueError(f"accumulation_steps is 1 or more, got {accumulation_steps}")
        self.network = network
        self.segmentation = segmentation and network.has_segmentation
        self.classification = classification
        self.evidence = (classification if evidence is None else evidence) and network.has_evidence
        self.frozen, self.accumulation_steps, self.calibrated = tuple(frozen), accumulation_steps, calibrated
        if cache_features and ("encoder" not in self.frozen or self.segmentation):
            raise ValueError(
                "cache_features needs a frozen encoder and no segmentation, as in stage 2: features of weights that "
                "change cannot be kept"
            )
        self.window: list[int] | None = getattr(network, "window", None)  # classifiers take whole images
        if cache_features and self.window is not None:
            raise ValueError("cache_features needs whole images; patches are drawn again in every epoch")
        self.kept = KeptFeatures(items) if cache_features else None
        self.precision, self.dtype = precision, autocast_dtype(precision, next(network.parameters()).device)
        for part in self.frozen:
            for parameter in network.parameters_of(part):
                parameter.requires_grad_(False)
        if gradient_checkpointing:
            recompute_blocks(network)

    def train(self, mode: bool = True) -> MultiTaskStep:
        """Switch the mode; frozen parts stay in evaluation mode (dropout off, no state updated)."""
        super().train(mode)
        for part in self.frozen:
            for module in self.network.modules_of(part):
                module.eval()
        return self

    def forward(
        self, image: torch.Tensor, has_mask: torch.Tensor | None = None, index: torch.Tensor | None = None
    ) -> dict[str, torch.Tensor]:
        """Run.

        Args:
            image: (B, C, H, W[, D]).
            has_mask: (B,) bool; in training mode "seg" is computed for these items alone, in order.
            index: (B,) int, the items' places in their dataset; for ``cache_features``.

        Returns:
            "seg" (M, 2, H, W[, D]), "cls" (B, K), "evidence" and the cell logits "cells" that it is made of
            (B, K, h, w[, d]), as far as asked, float32; in training "seg_1", ... of `decode_levels` too. In that of
            several processes also "anchor", a 0 that ties the loss to a parameter: a process whose items have no target
            must send gradients of 0, or the others wait for it.
        """
        masked, index = (has_mask, index) if self.training else (None, None)
        parts = min(self.accumulation_steps, len(image)) if self.training else 1
        if parts == 1:
            result = self._outputs(image, masked, index)
        else:
            images = image.chunk(parts)
            chunked = ([None] * len(images) if t is None else t.chunk(parts) for t in (masked, index))
            chunks = list(zip(images, *chunked, strict=True))
            # The last part's activations are freed first in the backward pass, so they may stay.
            outputs = [checkpoint(self._outputs, *chunk, use_reentrant=False) for chunk in chunks[:-1]]
            outputs.append(self._outputs(*chunks[-1]))
            names = dict.fromkeys(name for output in outputs for name in output)
            result = {name: torch.cat([o[name] for o in outputs if name in o]) for name in names}
        if not self.calibrated and not self.training and "cls" in result:
            result["cls"] = result["cls"] - lift_of(self.network)
        if self.training and parallel.world() > 1:
            trained = next(p for p in self.network.parameters() if p.requires_grad)
            result["anchor"] = 0.0 * trained.flatten()[0].float()
        return result

    def _outputs(
        self, image: torch.Tensor, masked: torch.Tensor | None, index: torch.Tensor | None
    ) -> dict[str, torch.Tensor]:
        with torch.autocast(image.device.type, dtype=self.dtype, enabled=self.dtype is not None):
            several = larger(image.shape[2:], self.window) or bool(getattr(self.network, "mirror_axes", None))
            if not self.training and several:  # passes of one image
                return self.network.multitask(image, None, self.segmentation, self.classification)
            if self.kept is None or index is None:
                features, masks = self.network.encode(image)
            else:
                features, masks = self.kept.of(self.network, image, index.tolist())
            result: dict[str, torch.Tensor] = {}
            if self.segmentation:
                if masked is None or bool(masked.all()):
                    result |= self._decoded(features, masks)
                elif bool(masked.any()):
                    result |= self._decoded([f[masked] for f in features], [m[masked] for m in masks])
            if self.evidence:
                logits, result["evidence"], result["cells"] = self.network.classify_cells(features, masks)
            elif self.classification:
                logits, _ = self.network.classify(features, masks)
            if self.classification:
                result["cls"] = logits
        return result

    def _decoded(self, features: list[torch.Tensor], masks: list[torch.Tensor]) -> dict[str, torch.Tensor]:
        if self.training:
            return decode_levels(self.network, features, masks)
        return {"seg": self.network.decode(features, masks)}


def lift_of(network: Any) -> torch.Tensor:
    """What a network in evaluation mode adds to its class logits for its temperature, (K,): `MultiTaskDynUNet.lift`."""
    return network.lift() if hasattr(network, "lift") else torch.zeros(network.num_classes)


class KeptFeatures:
    """What the head reads of the frozen encoder, by item, in the memory of the CPU and as precise as computed.

    Every item goes through the encoder alone, so that its features do not depend on the batch in which it comes first:
    an interrupted run, which begins with an empty cache, continues to the same weights.

    Args:
        items: how many there will be.
    """

    def __init__(self, items: int):
        self.items = items
        self.found: dict[int, list[torch.Tensor]] = {}

    def of(
        self, network: MultiTaskDynUNet, image: torch.Tensor, index: Sequence[int]
    ) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        """Features and foreground masks of a batch, the levels that the head fuses; computed where they are not kept.

        Raises:
            ValueError: when all items' features would not fit into this machine's memory.
        """
        levels = network.evidence_levels
        for place, item in enumerate(index):
            if item not in self.found:
                with torch.no_grad():
                    features, masks = network.encode(image[place : place + 1])
                kept = [tensor.cpu() for tensor in (*features[-levels:], *masks[-levels:])]
                if not self.found:
                    self._check(sum(tensor.nbytes for tensor in kept))
                self.found[item] = kept
        joined = [
            torch.cat(tensors).to(image.device) for tensors in zip(*(self.found[item] for item in index), strict=True)
        ]
        return joined[:levels], joined[levels:]

    def _check(self, size: int) -> None:
        needed = size * self.items
        logger.info("features of %d items: %.2f GB of memory, computed in the first epoch", self.items, needed / 1e9)
        limit = memory()
        if limit is not None and needed > 0.8 * limit:
            raise ValueError(
                f"cache_features needs {needed / 1e9:.1f} GB for {self.items} items, this machine has "
                f"{limit / 1e9:.1f} GB of memory; set cache_features to false"
            )


def memory() -> int | None:
    """Bytes of physical memory; None on systems that do not report it (Windows)."""
    if not hasattr(os, "sysconf"):
        return None
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def prepare_batch(
    batch: Mapping[str, Any], device: torch.device | str | None = None, non_blocking: bool = False, **_: Any
) -> tuple[torch.Tensor, dict[str, torch.Tensor], tuple, dict[str, Any]]:
    """Split a collated batch for MONAI's engines: image, targets, and the step's keyword arguments, plain tensors."""

    def moved(key: str) -> torch.Tensor:
        return convert_to_tensor(torch.as_tensor(batch[key]), track_meta=False).to(device, non_blocking=non_blocking)

    target = {key: moved(key) for key in (*TARGETS, *([MASKS_KEY] if MASKS_KEY in batch else []))}
    named = {"index": torch.as_tensor(batch["index"])} if "index" in batch else {}
    return moved("image"), target, (), {"has_mask": target["has_mask"], **named}


def check_outputs(pred: Mapping[str, torch.Tensor], names: Sequence[str] | None = None) -> None:
    """Raise if any output is NaN or infinite.

    Args:
        pred: outputs (B, ...) by name.
        names: of the B cases.

    Raises:
        ValueError: when an output is not finite; names it and the first case.
    """
    for name, value in pred.items():
        finite = torch.isfinite(value.flatten(1)).all(dim=1) if value.ndim > 1 else torch.isfinite(value)
        if not bool(finite.all()):
            first = int((~finite).nonzero()[0])
            case = f" of {names[first]}" if names is not None and len(names) == len(finite) else ""
            raise ValueError(
                f"the network's output {name!r}{case} is not finite ({int((~finite).sum())} of {len(finite)} cases of "
                "the batch): its weights or the image hold values that are no numbers"
            )


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
