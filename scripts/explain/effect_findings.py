"""What the verdict follows: the tumor, as it should, or the air. Each is exchanged, and the score is looked at."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from scripts.explain.baselines import check_foreground
from scripts.explain.class_findings import separation, untrained_sign, wanted
from scripts.explain.findings import CANNOT_TELL, Finding, verdict
from scripts.explain.gradient_findings import logits_of
from scripts.explain.scores import plain
from scripts.explain.targets import SegmentationRegion, Target

__all__ = ["LEAST_EFFECT", "WITHOUT_TUMOR", "air_effect", "verdict_without_tumor"]

WITHOUT_TUMOR = "verdict without the tumor"
# Of the distance between the scores of images with and without a tumor, what an exchange has to move at least.
LEAST_EFFECT = 0.25


@dataclass(frozen=True)
class _Sides:
    """Images that the score should be high for and others, (B,) bool, and the score of all of them."""

    high: np.ndarray
    others: np.ndarray
    scores: np.ndarray

    def moved(self, which: np.ndarray, after: np.ndarray) -> float:
        """Share of the distance between the two sides by which the median score of some images moved to the other."""
        other = self.others if bool(self.high[which].all()) else self.high
        before = float(np.median(self.scores[which]))
        return (before - float(np.median(after))) / (before - float(np.median(self.scores[other])))


def _sides(
    model: nn.Module, x: Tensor, labels: Sequence[int] | None, target: Target, kwargs: Mapping[str, Any]
) -> _Sides | str:
    """The two sides, or why there are none."""
    if isinstance(target, SegmentationRegion):
        return "the score is that of a region of the segmentation, and no verdict on the image"
    if labels is None:
        return "the labels of the images were not given"
    output = logits_of(model, x, kwargs)
    if (untrained := untrained_sign(model, output)) is not None:
        return f"the network is untrained: {untrained}"
    if output.dim() != 2:
        return "the output is no logits (B, K)"
    truth = np.array([int(k) for k in labels])
    sides = wanted(target, truth, output.shape[1])
    if sides is None:
        return "each image's own top class is explained: there is no one verdict"
    pos, others = sides[0], sides[1] & (truth == 0) if not sides[0][truth == 0].any() else sides[1]
    if not pos.any() or not others.any():
        return "images with and without a tumor are needed"
    scores = target(output).double().cpu().numpy()
    auc, p = separation(scores, pos, others)
    if auc < 0.6 or p > 0.05:
        return f"the score hardly separates the images (AUC {auc:.2f}): there is no verdict to take away"
    return _Sides(pos, others, scores)


def _scores(model: nn.Module, x: Tensor, chosen: np.ndarray, target: Target, kwargs: Mapping[str, Any]) -> np.ndarray:
    index = torch.from_numpy(np.flatnonzero(chosen))
    chosen_kwargs = {k: v[index] if isinstance(v, Tensor) and len(v) == len(x) else v for k, v in kwargs.items()}
    return target.take(index)(logits_of(model, x[index], chosen_kwargs)).double().cpu().numpy()


def verdict_without_tumor(
    model: nn.Module,
    x: Tensor,
    labels: Sequence[int] | None,
    target: Target,
    tumor: Tensor | None,
    without_tumor: Tensor | None,
    forward_kwargs: Mapping[str, Any] | None = None,
) -> Finding:
    """Whether the verdict stays where the tumor is painted out, so that no map of it can lie in the tumor.

    Args:
        model, x, labels, target, forward_kwargs: see `class_findings.wrong_class`.
        tumor: masks (B, 1, *spatial).
        without_tumor: the images (B, C, *spatial) with their tumors painted out.
    """
    kwargs = dict(forward_kwargs or {})
    if tumor is None or without_tumor is None or not bool((tumor != 0).any()):
        return Finding(WITHOUT_TUMOR, CANNOT_TELL, {}, "tumor masks were not given", "give some")
    sides = _sides(model, x, labels, target, kwargs)
    if isinstance(sides, str):
        return Finding(WITHOUT_TUMOR, CANNOT_TELL, {}, sides)
    seen = (tumor != 0).flatten(1).any(1).cpu().numpy()
    which = seen & sides.high if (seen & sides.high).any() else seen & sides.others
    if not which.any():
        return Finding(WITHOUT_TUMOR, CANNOT_TELL, {}, "no image of a known class has a tumor mask", "give some")
    moved = sides.moved(which, _scores(model, without_tumor.to(x), which, target, kwargs))
    return Finding(
        WITHOUT_TUMOR,
        verdict(moved < LEAST_EFFECT),
        {"share_of_the_verdict_that_goes_with_the_tumor": moved, "tumors_painted_out": float(which.sum())},
        f"where {which.sum()} tumors are painted out the score {target.name} goes {moved:.0%} of the way to that of "
        f"images of the other side (limit {LEAST_EFFECT:.0%})",
        "the network reads something else: look for it with python -m scripts certify, and train with pictures in "
        "which the tumor alone decides (docs/training/counterfactual)",
    )


def air_effect(
    model: nn.Module,
    x: Tensor,
    foreground: Tensor,
    labels: Sequence[int] | None,
    target: Target,
    forward_kwargs: Mapping[str, Any] | None = None,
) -> float | None:
    """Share of the verdict that follows the air: images get the air of images of the other side.

    Where a pixel is air in one of the two alone it gets the middle value of the given air.

    Args:
        model, x, labels, target, forward_kwargs: see `class_findings.wrong_class`.
        foreground: (B, 1, *spatial), non-zero in the head.

    Returns:
        0 where the verdict stays, 1 where it goes over to the other side; None where that cannot be tried.
    """
    kwargs, inside = dict(forward_kwargs or {}), check_foreground(foreground, x)
    sides = _sides(model, x, labels, target, kwargs)
    if isinstance(sides, str):
        return None
    moved = []
    for mine, theirs in ((sides.high, sides.others), (sides.others, sides.high)):
        donors = np.resize(np.flatnonzero(theirs), int(mine.sum()))
        changed = plain(x).clone()
        for index, donor in zip(np.flatnonzero(mine), donors, strict=True):
            air, new_air = ~inside[index, 0], ~inside[donor, 0]
            if not bool(new_air.any()):
                return None
            middle = x[donor][:, new_air].median(1).values
            changed[index][:, air] = torch.where(new_air, x[donor], middle.reshape(-1, *[1] * new_air.dim()))[:, air]
        moved.append(sides.moved(mine, _scores(model, changed, mine, target, kwargs)))
    return float(np.mean(moved))
