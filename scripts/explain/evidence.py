"""The explanation in closed form: what a network with an evidence head sums up, without a backward pass.

Such a network computes a spatial evidence map per class, evidence (B, K, *grid), and pools it, class by class, into the
logits. It is recognized by what it offers, not by its class: `forward(x, output="evidence")` and `output="cls"`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from scripts.explain.cam import CamPass
from scripts.explain.layers import evaluating
from scripts.explain.targets import LogitTarget

__all__ = ["evidence_map", "evidence_pass"]


def evidence_map(evidence: Tensor, logits: Tensor, target: LogitTarget, signed: bool = False) -> Tensor:
    """Evidence for the target: each class's evidence map, weighted by the target's derivative by that class's logit.

    For `TumorLogOdds` this is sum over k >= 1 of softmax(logits[1:])_k evidence_k, minus evidence_0; for `ClassScore`
    the class's own map; for `ClassMargin` the difference of two. Where the pooling's derivatives
    add up to 1 over space (mean, log-sum-exp), it is Grad-CAM of the same target at the features under the linear,
    bias-free evidence convolution, times the number of cells.

    Args:
        evidence: (B, K, *grid).
        logits: (B, K) of the same forward pass.
        target: a target of class logits.
        signed: leave out the final ReLU: values below 0 speak against the target.

    Returns:
        (B, 1, *grid), float32, >= 0 unless signed, larger = stronger.

    Raises:
        ValueError: when the shapes do not fit each other.
        FloatingPointError: when a value is not finite.

    >>> from scripts.explain.targets import ClassMargin
    >>> evidence = torch.tensor([[[[1.0, 2.0]], [[4.0, 1.0]]]])
    >>> evidence_map(evidence, torch.zeros(1, 2), ClassMargin(1, 0)).tolist()
    [[[[3.0, 0.0]]]]
    """
    if evidence.dim() < 3 or tuple(evidence.shape[:2]) != tuple(logits.shape):
        raise ValueError(
            f"expected evidence (B, K, *grid) and logits (B, K), got {tuple(evidence.shape)} and {tuple(logits.shape)}"
        )
    evidence = evidence.detach().as_subclass(Tensor).float()
    weights = target.weights(logits.detach()).float()
    result = (weights.reshape(*weights.shape, *[1] * (evidence.dim() - 2)) * evidence).sum(1, keepdim=True)
    if not bool(torch.isfinite(result).all()):
        raise FloatingPointError("evidence map: values that are not finite")
    return result if signed else result.clamp(min=0)


def evidence_pass(
    model: nn.Module,
    x: Tensor,
    target: LogitTarget,
    forward_kwargs: Mapping[str, Any] | None = None,
    signed: bool = False,
) -> CamPass:
    """Prediction and evidence map of a network with an evidence head, without a backward pass.

    Args:
        model: network with `multitask(x, segmentation=..., ...)`, which gives both in one pass, or else with
            `forward(x, output=...)`, which takes two.
        x: input (B, C, *spatial).
        target: a target of class logits.
        forward_kwargs: further arguments of `forward` (not `output`).
        signed: as in `evidence_map`.

    Returns:
        output: class logits (B, K); score: (B,); maps: one entry under ("evidence", "evidence").
    """
    kwargs = {key: value for key, value in (forward_kwargs or {}).items() if key != "output"}
    with torch.no_grad(), evaluating(model):
        multitask = getattr(model, "multitask", None)
        if callable(multitask):
            outputs = multitask(x, segmentation=False, **kwargs)
            logits, evidence = outputs["cls"], outputs["evidence"]
        else:
            logits, evidence = (model(x, output=name, **kwargs) for name in ("cls", "evidence"))
    result = evidence_map(evidence, logits, target, signed)
    return CamPass(logits, target(logits), {("evidence", "evidence"): result})
