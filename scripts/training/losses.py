"""The loss of all stages: segmentation, classification and evidence, each on the items that carry its target.

Every part is a function of sums over the batch, such as soft Dice's overlap. The sums, not the losses, are added up
over processes: a batch spread over devices has the loss and the gradients of the same batch on one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from monai.losses import FocalLoss
from torch import nn

from scripts.networks import deep_supervision as deep
from scripts.networks.heads import POOLINGS
from scripts.runs import parallel
from scripts.training.mask_loss import SMOOTH, SegmentationLoss


class ClassificationLoss(nn.Module):
    """Cross-entropy, or focal loss with ``focal_gamma`` > 0: the mean over items, weighted by class.

    Args:
        label_smoothing: in [0, 1), not with focal loss.
        focal_gamma: exponent of the focal loss; 0 is cross-entropy.
        class_weights: one weight a class, or None.

    Raises:
        ValueError: when label smoothing and focal loss are both asked for.
    """

    size = 2

    def __init__(
        self, label_smoothing: float = 0.0, focal_gamma: float = 0.0, class_weights: Sequence[float] | None = None
    ):
        super().__init__()
        if focal_gamma and label_smoothing:
            raise ValueError("focal_gamma and label_smoothing are alternatives; set one of them to 0")
        weight = None if class_weights is None else torch.tensor(list(class_weights), dtype=torch.float32)
        self.register_buffer("weight", weight)
        self.label_smoothing = label_smoothing
        self.focal: Any = None
        if focal_gamma:
            self.focal = FocalLoss(
                gamma=focal_gamma, weight=weight, use_softmax=True, to_onehot_y=True, reduction="none"
            )

    def sums(self, logits: torch.Tensor, classes: torch.Tensor) -> torch.Tensor:
        """Weighted losses and weights of a batch, (2,).

        Args:
            logits: (B, K).
            classes: (B,) int in [0, K).

        Raises:
            ValueError: when there are not as many weights as classes.
        """
        weight: Any = None if self.weight is None else self.weight.to(logits.device)
        if weight is not None and len(weight) != logits.shape[1]:
            raise ValueError(f"class_weights has {len(weight)} values, the network {logits.shape[1]} classes")
        if self.focal is None:
            loss = nn.functional.cross_entropy(
                logits, classes, weight, label_smoothing=self.label_smoothing, reduction="sum"
            )
        else:
            loss = self.focal.to(logits.device)(logits, classes.unsqueeze(1)).sum() if len(classes) else logits.sum()
        count = loss.new_tensor(float(len(classes))) if weight is None else weight[classes].sum()
        return torch.stack([loss, count])

    def of_sums(self, sums: torch.Tensor) -> torch.Tensor | None:
        """The loss, a scalar; None without an item."""
        return None if sums[1] == 0 else sums[0] / sums[1]


def pooling_of(network: nn.Module) -> dict[str, Any]:
    """How a network's head pools its evidence, as arguments of `EvidenceLoss`; empty without an `EvidenceHead`."""
    head = getattr(network, "head", None)
    if not getattr(network, "has_evidence", False) or head is None:
        return {}
    return {name: getattr(head, name) for name in ("pooling", "sharpness", "masked")}


def coarser_levels(network: nn.Module) -> int:
    """How many coarser levels of a network's decoder are supervised; 0 without deep supervision."""
    return len(getattr(network, "deep_heads", ()))


class EvidenceLoss(nn.Module):
    """Asks the evidence of a tumor to lie in the tumor, against the area of tumor in each cell.

    Each cell of the evidence grid is a soft classification: ``softmax(cells)`` over the classes against the target
    ``1 - area`` for no tumor and ``area`` for the tumor's class, as cross-entropy and as soft Dice of the tumor
    classes, over the foreground cells. A max-pooled target would reward cells that localization measures then punish.

    A few hot cells outside the tumor hardly change these means, but log-sum-exp pooling hands the classifier's whole
    gradient to them: a shortcut (a bright rim, contrast agent) then decides. The background term answers in kind: the
    evidence pooled over everything but the tumor, as the classifier pools it, has to say "no tumor".

    Args:
        area_at_zero: share of tumor in a cell at which evidence changes its sign, in (0, 1). Below 0.5, small tumors
            that never fill half a cell still leave positive evidence.
        background_weight: of the background term; 0 leaves it out.
        pooling, sharpness, masked: of the background term; those of the head, see `pooling_of`.

    Raises:
        ValueError: when ``area_at_zero`` is not in (0, 1) or there is no such pooling.
    """

    size = 6

    def __init__(
        self,
        area_at_zero: float = 0.5,
        background_weight: float = 1.0,
        pooling: str = "logsumexp",
        sharpness: float = 5.0,
        masked: bool = True,
    ):
        super().__init__()
        self.background_weight = background_weight
        self.pooling, self.sharpness, self.masked = pooling, sharpness, masked
        if pooling not in POOLINGS:
            raise ValueError(f"pooling is one of {', '.join(POOLINGS)}, got {pooling!r}")
        if not 0 < area_at_zero < 1:
            raise ValueError(f"area_at_zero lies between 0 and 1, got {area_at_zero}")
        self.offset = float(torch.logit(torch.tensor(area_at_zero)))

    def sums(
        self, cells: torch.Tensor, label: torch.Tensor, foreground: torch.Tensor, diagnosis: torch.Tensor
    ) -> torch.Tensor:
        """Sums of a batch.

        Args:
            cells: cell logits (B, K, h, w[, d]), channel 0 the reference "no tumor".
            label: (B, 1, H, W[, D]), 1 in the tumor; H a multiple of h.
            foreground: (B, 1, H, W[, D]), 1 in the head.
            diagnosis: (B,), class of each item; for -1 or 0 with tumor in the label, all tumor classes share the area.

        Returns:
            (6,): cross-entropy, cells, overlap, prediction plus truth, background terms, their number.
        """
        grid: Any = tuple(cells.shape[2:])
        pool: Any = nn.functional.adaptive_avg_pool3d if len(grid) == 3 else nn.functional.adaptive_avg_pool2d
        area = pool(label.float(), grid).flatten(2)
        inside = (pool(foreground.float(), grid) > 0).float().flatten(2)
        flat = cells.flatten(2)
        logits = torch.cat([flat[:, :1], flat[:, 1:] + self.offset], dim=1)
        log_p = torch.log_softmax(logits, dim=1)
        log_tumor = torch.logsumexp(log_p[:, 1:], dim=1, keepdim=True)
        known = diagnosis.view(-1, 1, 1).expand(-1, 1, flat.shape[2])
        log_class = torch.where(known > 0, torch.gather(log_p, 1, known.clamp(min=0)), log_tumor)
        entropy = -(area * log_class + (1 - area) * log_p[:, :1])
        p_class = log_class.exp() * inside
        p_tumor = log_tumor.exp() * inside
        # An item that is all tumor has no background.
        weight = ((1 - area) * inside)[:, 0] if self.masked else (1 - area)[:, 0]
        odds = torch.logsumexp(logits[:, 1:], dim=1) - logits[:, 0]
        present = weight.sum(dim=1) > 0
        pooled = self.pool(odds[present], weight[present])
        return torch.stack(
            [
                (entropy * inside).sum(),
                inside.sum(),
                (p_class * area).sum(),
                (p_tumor + area * inside).sum(),
                nn.functional.softplus(pooled).sum(),
                present.sum().to(flat.dtype),
            ]
        )

    def pool(self, values: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        """The head's pooling of (B, cells) with a weight a cell, which is not 0 in all of them: (B,)."""
        if self.pooling == "mean":
            return (values * weight).sum(dim=1) / weight.sum(dim=1)
        # Weight 0 becomes -inf and takes no part.
        terms = self.sharpness * values + torch.log(weight)
        return (torch.logsumexp(terms, dim=1) - torch.log(weight.sum(dim=1))) / self.sharpness

    def of_sums(self, sums: torch.Tensor) -> torch.Tensor | None:
        """The loss, a scalar; None without a cell."""
        entropy, cells, overlap, both, background, items = sums
        if cells == 0:
            return None
        loss = entropy / cells + 1 - (2 * overlap + SMOOTH) / (both + SMOOTH)
        if self.background_weight and items > 0:
            loss = loss + self.background_weight * background / items
        return loss

    def forward(
        self, cells: torch.Tensor, label: torch.Tensor, foreground: torch.Tensor, diagnosis: torch.Tensor
    ) -> torch.Tensor:
        """The loss of one batch, a scalar; arguments as of `sums`."""
        loss = self.of_sums(self.sums(cells, label, foreground, diagnosis))
        if loss is None:
            raise ValueError("no cell of the evidence lies in the foreground")
        return loss


def at_level(masks: torch.Tensor, seg: torch.Tensor) -> torch.Tensor:
    """Masks (M, C, H, W[, D]) on the grid of logits (M, K, h, w[, d]): the value in the middle of each cell."""
    if masks.shape[2:] == seg.shape[2:]:
        return masks
    return nn.functional.interpolate(masks.float(), size=tuple(seg.shape[2:]), mode="nearest-exact")


class MultiTaskLoss(nn.Module):
    """``seg_weight * L_seg + cls_weight * L_cls + evidence_weight * L_evidence``.

    L_seg (Dice + cross-entropy) and L_evidence are over the items with a mask, L_cls over the items with a diagnosis;
    of all processes, where there are several. A part without items, or with weight 0, is left out, so a batch without
    masks sends exactly no gradient to the decoder. Logits in air are constants (see the network), so air takes no part
    in L_seg.

    Args:
        seg_weight, cls_weight, evidence_weight: the weights; 0 switches a part off.
        label_smoothing, focal_gamma, class_weights: see `ClassificationLoss`.
        area_at_zero, background_weight: see `EvidenceLoss`.
        pooling: of the head, see `pooling_of`; None: `EvidenceLoss`'s defaults.
        out_channels, nested, mask_loss: see `SegmentationLoss`; the last is its other arguments.
        coarser_levels: of the decoder, which are supervised too, see `coarser_levels`. The weight is shared by all
            levels as `scripts.networks.deep_supervision.level_weights` says.

    ``parts`` holds the parts of the last call, unweighted and detached, by name, for logging.
    """

    def __init__(
        self,
        seg_weight: float = 1.0,
        cls_weight: float = 1.0,
        evidence_weight: float = 1.0,
        label_smoothing: float = 0.0,
        focal_gamma: float = 0.0,
        class_weights: Sequence[float] | None = None,
        area_at_zero: float = 0.5,
        background_weight: float = 1.0,
        out_channels: int = 2,
        pooling: Mapping[str, Any] | None = None,
        nested: bool = False,
        mask_loss: Mapping[str, Any] | None = None,
        coarser_levels: int = 0,
    ):
        super().__init__()
        self.weights = {"segmentation": seg_weight, "classification": cls_weight, "evidence": evidence_weight}
        # Part of the loss to output of the network.
        self.levels = {f"segmentation_{k}": name for k, name in enumerate(deep.names(coarser_levels), 1)}
        if self.levels:
            shares = deep.level_weights(coarser_levels)
            self.weights |= {
                part: seg_weight * w for part, w in zip(("segmentation", *self.levels), shares, strict=True)
            }
        self.segmentation = SegmentationLoss(out_channels, nested, **(mask_loss or {}))
        self.classification = ClassificationLoss(label_smoothing, focal_gamma, class_weights)
        self.evidence = EvidenceLoss(area_at_zero, background_weight, **(pooling or {}))
        self.parts: dict[str, torch.Tensor] = {}

    def forward(self, pred: Mapping[str, torch.Tensor], target: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Compute the loss.

        Args:
            pred: "seg" logits (M, C, H, W[, D]) of the M items with a mask, in order, "seg_1", ... (M, C, h, w[, d]) of
                coarser levels; "cls" logits (B, K); "cells", the cell logits of the evidence (B, K, h, w[, d]). Absent
                outputs are left out of the loss. "anchor": see `scripts.training.engines`.
            target: "label" and "foreground" (B, 1, H, W[, D]), "has_mask" (B,) bool, "diagnosis" (B,) int, -1 unknown.

        Raises:
            ValueError: when no part applies to the batch, which would train nothing.
        """
        local = self._sums(pred, target)
        sizes = [self._part(name).size for name in local]
        present = [sums for sums in local.values() if sums is not None]
        total: torch.Tensor | None = None
        self.parts = {}
        if present or parallel.world() > 1:
            # A part that this process has nothing of counts as zeros, so that the vector is the same in all of them.
            like = present[0] if present else pred["anchor"]
            vector = torch.cat(
                [like.new_zeros(n) if s is None else s for s, n in zip(local.values(), sizes, strict=True)]
            )
            for name, sums in zip(local, parallel.summed(vector).split(sizes), strict=True):
                part = self._part(name).of_sums(sums)
                if part is not None:
                    self.parts[name] = part.detach()
                    total = self.weights[name] * part if total is None else total + self.weights[name] * part
        if total is None:
            has_mask, known = target["has_mask"], target["diagnosis"] >= 0
            raise ValueError(
                f"no part of the loss applies to this batch: outputs {sorted(pred)}, {int(has_mask.sum())} items with "
                f"a mask, {int(known.sum())} with a diagnosis, weights "
                + ", ".join(f"{name} {weight}" for name, weight in self.weights.items())
            )
        if parallel.world() > 1:
            # Every output takes part in every process, be it with gradient 0: the others wait for its gradients.
            total = total + pred["anchor"] + 0.0 * sum(sums.sum() for sums in present)
        return total

    def _part(self, name: str) -> Any:
        return self.segmentation if name in self.levels else getattr(self, name)

    def _sums(
        self, pred: Mapping[str, torch.Tensor], target: Mapping[str, torch.Tensor]
    ) -> dict[str, torch.Tensor | None]:
        """Sums by part of those with a weight; None where this batch has no such output or target."""
        has_mask, diagnosis = target["has_mask"], target["diagnosis"]
        known = diagnosis >= 0
        several = parallel.world() > 1
        result: dict[str, torch.Tensor | None] = {name: None for name, weight in self.weights.items() if weight}
        for part, output in {"segmentation": "seg", **self.levels}.items():
            if part in result and output in pred and bool(has_mask.any()):
                masks = target["region_masks"] if self.segmentation.nested else target["label"]
                result[part] = self.segmentation.sums(pred[output], at_level(masks[has_mask], pred[output]))
        if "classification" in result and "cls" in pred and (several or bool(known.any())):
            result["classification"] = self.classification.sums(pred["cls"][known], diagnosis[known])
        if "evidence" in result and "cells" in pred and (several or bool(has_mask.any())):
            masked = (target[key][has_mask] for key in ("label", "foreground", "diagnosis"))
            result["evidence"] = self.evidence.sums(pred["cells"][has_mask], *masked)
        return result
