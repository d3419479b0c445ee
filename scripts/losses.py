"""The loss of all stages: segmentation, classification and evidence, each on the items that carry its target."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from monai.losses import DiceCELoss, FocalLoss
from torch import nn


class EvidenceLoss(nn.Module):
    """Asks the evidence of a tumor to lie in the tumor, against the area of tumor in each cell.

    Each cell of the evidence grid is a soft classification: ``softmax(evidence)`` over the classes against the target
    ``1 - area`` for no tumor and ``area`` for the tumor's class, as cross-entropy and as soft Dice of the tumor
    classes, over the foreground cells. A max-pooled target would reward cells that localization measures then punish.

    A few hot cells outside the tumor hardly change these means, but log-sum-exp pooling hands the classifier's whole
    gradient to them: a shortcut (a bright rim, contrast agent) then decides. The background term answers in kind: the
    evidence pooled over everything but the tumor, as the classifier pools it, has to say "no tumor".

    Args:
        area_at_zero: share of tumor in a cell at which evidence changes its sign, in (0, 1). Below 0.5, small tumors
            that never fill half a cell still leave positive evidence.
        background_weight: of the background term; 0 leaves it out.
        sharpness: of its log-sum-exp; that of the head.

    Raises:
        ValueError: when ``area_at_zero`` is not in (0, 1).
    """

    def __init__(self, area_at_zero: float = 0.5, background_weight: float = 1.0, sharpness: float = 5.0):
        super().__init__()
        self.background_weight, self.sharpness = background_weight, sharpness
        if not 0 < area_at_zero < 1:
            raise ValueError(f"area_at_zero lies between 0 and 1, got {area_at_zero}")
        self.offset = float(torch.logit(torch.tensor(area_at_zero)))

    def forward(
        self, evidence: torch.Tensor, label: torch.Tensor, foreground: torch.Tensor, diagnosis: torch.Tensor
    ) -> torch.Tensor:
        """Compute the loss.

        Args:
            evidence: (B, K, h, w[, d]), channel 0 the reference "no tumor".
            label: (B, 1, H, W[, D]), 1 in the tumor; H a multiple of h.
            foreground: (B, 1, H, W[, D]), 1 in the head.
            diagnosis: (B,), class of each item; for -1 or 0 with tumor in the label, all tumor classes share the area.

        Returns:
            a scalar.
        """
        cells: Any = tuple(evidence.shape[2:])
        pool: Any = nn.functional.adaptive_avg_pool3d if len(cells) == 3 else nn.functional.adaptive_avg_pool2d
        area = pool(label.float(), cells).flatten(2)
        inside = (pool(foreground.float(), cells) > 0).float().flatten(2)
        flat = evidence.flatten(2)
        logits = torch.cat([flat[:, :1], flat[:, 1:] + self.offset], dim=1)
        log_p = torch.log_softmax(logits, dim=1)
        log_tumor = torch.logsumexp(log_p[:, 1:], dim=1, keepdim=True)
        known = diagnosis.view(-1, 1, 1).expand(-1, 1, flat.shape[2])
        log_class = torch.where(known > 0, torch.gather(log_p, 1, known.clamp(min=0)), log_tumor)
        entropy = -(area * log_class + (1 - area) * log_p[:, :1])
        cross_entropy = (entropy * inside).sum() / inside.sum()
        p_class = log_class.exp() * inside
        p_tumor = log_tumor.exp() * inside
        overlap = 1 - (2 * (p_class * area).sum() + 1e-5) / ((p_tumor + area * inside).sum() + 1e-5)
        loss = cross_entropy + overlap
        if self.background_weight:
            # Weight 0 becomes -inf and takes no part; an item that is all tumor has no background.
            weight = ((1 - area) * inside)[:, 0]
            odds = torch.logsumexp(logits[:, 1:], dim=1) - logits[:, 0]
            present = weight.sum(dim=1) > 0
            if bool(present.any()):
                terms = self.sharpness * odds[present] + torch.log(weight[present])
                pooled = (torch.logsumexp(terms, dim=1) - torch.log(weight[present].sum(dim=1))) / self.sharpness
                loss = loss + self.background_weight * nn.functional.softplus(pooled).mean()
        return loss


class MultiTaskLoss(nn.Module):
    """``seg_weight * L_seg + cls_weight * L_cls + evidence_weight * L_evidence``.

    L_seg (Dice + cross-entropy) and L_evidence are over the items with a mask, L_cls (cross-entropy, focal with
    ``focal_gamma`` > 0) over the items with a diagnosis. A part without items, or with weight 0, is left out, so a
    batch without masks sends exactly no gradient to the decoder. Logits in air are constants (see the network), so air
    takes no part in L_seg.

    Args:
        seg_weight, cls_weight, evidence_weight: the weights; 0 switches a part off.
        label_smoothing: of the classification, in [0, 1).
        focal_gamma: exponent of the focal loss; 0 is cross-entropy.
        class_weights: one weight a class, or None.
        area_at_zero, background_weight: see `EvidenceLoss`.

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
    ):
        super().__init__()
        if focal_gamma and label_smoothing:
            raise ValueError("focal_gamma and label_smoothing are alternatives; set one of them to 0")
        self.seg_weight, self.cls_weight, self.evidence_weight = seg_weight, cls_weight, evidence_weight
        self.segmentation = DiceCELoss(include_background=False, to_onehot_y=True, softmax=True, batch=True)
        weight = None if class_weights is None else torch.tensor(list(class_weights), dtype=torch.float32)
        if focal_gamma:
            self.classification: nn.Module = FocalLoss(
                gamma=focal_gamma, weight=weight, use_softmax=True, to_onehot_y=True, reduction="none"
            )
        else:
            self.classification = nn.CrossEntropyLoss(weight=weight, label_smoothing=label_smoothing)
        self.focal = bool(focal_gamma)
        self.evidence = EvidenceLoss(area_at_zero, background_weight)
        self.parts: dict[str, torch.Tensor] = {}

    def forward(self, pred: Mapping[str, torch.Tensor], target: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Compute the loss.

        Args:
            pred: "seg" logits (M, C, H, W[, D]) of the M items with a mask, in order; "cls" logits (B, K); "evidence"
                (B, K, h, w[, d]). Absent outputs are left out of the loss.
            target: "label" and "foreground" (B, 1, H, W[, D]), "has_mask" (B,) bool, "diagnosis" (B,) int, -1 unknown.

        Raises:
            ValueError: when no part applies to the batch, which would train nothing.
        """
        has_mask, diagnosis = target["has_mask"], target["diagnosis"]
        known = diagnosis >= 0
        total: torch.Tensor | None = None
        self.parts = {}
        if self.seg_weight and "seg" in pred and bool(has_mask.any()):
            label = target["label"][has_mask]
            total = self._add(total, "segmentation", self.seg_weight, self.segmentation(pred["seg"], label))
        if self.cls_weight and "cls" in pred and bool(known.any()):
            part = self._classify(pred["cls"][known], diagnosis[known])
            total = self._add(total, "classification", self.cls_weight, part)
        if self.evidence_weight and "evidence" in pred and bool(has_mask.any()):
            part = self.evidence(
                pred["evidence"][has_mask],
                target["label"][has_mask],
                target["foreground"][has_mask],
                diagnosis[has_mask],
            )
            total = self._add(total, "evidence", self.evidence_weight, part)
        if total is None:
            raise ValueError(
                f"no part of the loss applies to this batch: outputs {sorted(pred)}, {int(has_mask.sum())} items with "
                f"a mask, {int(known.sum())} with a diagnosis, weights seg {self.seg_weight}, cls {self.cls_weight}, "
                f"evidence {self.evidence_weight}"
            )
        return total

    def _classify(self, logits: torch.Tensor, classes: torch.Tensor) -> torch.Tensor:
        if not self.focal:
            return self.classification(logits, classes)
        # MONAI averages over items and classes; as in cross-entropy it is the mean over items, weighted by class.
        total = self.classification(logits, classes.unsqueeze(1)).sum()
        weight: Any = self.classification.class_weight
        return total / (len(classes) if weight is None else weight[classes].sum())

    def _add(self, total: torch.Tensor | None, name: str, weight: float, part: torch.Tensor) -> torch.Tensor:
        self.parts[name] = part.detach()
        return weight * part if total is None else total + weight * part
