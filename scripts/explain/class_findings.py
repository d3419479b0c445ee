"""Causes of a heatmap in the background that lie in the explained class: its index, its channel, its reference."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy.stats import mannwhitneyu
from torch import Tensor, nn

from scripts.explain import intervals
from scripts.explain.findings import CANNOT_TELL, HOLDS, Finding, verdict
from scripts.explain.gradient_findings import NoGradientError, activations_and_gradients, logits_of
from scripts.explain.targets import ClassMargin, ClassScore, LogitTarget, SegmentationRegion, Target

__all__ = ["separation", "untrained_sign", "wanted", "wrong_class"]


def wanted(target: Target, labels: np.ndarray, classes: int) -> tuple[np.ndarray, np.ndarray] | None:
    """Which images the target speaks for and which it has to be compared with, (B,) bool; None for no such target."""
    if isinstance(target, ClassMargin):
        positive, negative = target.positive.class_idx, target.negative.class_idx
        if not isinstance(positive, int) or not isinstance(negative, int):
            return None
        return labels == positive, labels == negative
    if isinstance(target, ClassScore):
        if not isinstance(target.class_idx, int):
            return None
        in_class = labels > 0 if classes == 1 else labels == target.class_idx
        return in_class, (labels >= 0) & ~in_class
    return (labels > 0, labels == 0) if isinstance(target, LogitTarget) else None


def separation(score: np.ndarray, positive: np.ndarray, others: np.ndarray) -> tuple[float, float]:
    """ROC AUC, and how probable one as far from chance is by chance (Mann-Whitney).

    Args:
        score: (N,).
        positive, others: bool (N,), the images that should score high and those that should not.

    Raises:
        ValueError: when a score is not finite.
    """
    if not np.isfinite(score).all():
        raise ValueError("the network gives scores that are not finite: nothing can be said of its classes")
    chosen = positive | others
    return intervals.auc(positive[chosen], score[chosen]), float(mannwhitneyu(score[positive], score[others]).pvalue)


def _against_others(logits: np.ndarray, k: int) -> np.ndarray:
    others = np.delete(logits, k, axis=1)
    return logits[:, k] - (others.max(1) if others.size else 0)


def wrong_class(
    model: nn.Module,
    x: Tensor,
    labels: Sequence[int] | None,
    target: Target,
    layer: str,
    forward_kwargs: Mapping[str, Any] | None = None,
    tumor: Tensor | None = None,
) -> Finding:
    """Whether the explained score is another class's than meant, or its evidence lies in another class's logit.

    Signs: the score is lower where it should be higher; another class's logit picks the images of this label far
    better (classes in another order); most of the margin's gradient lies in the rival's logit.

    Args:
        model, x, layer, forward_kwargs: see `gradient_averaging`.
        labels: true class of each image, below 0 for unknown.
        target: the explained score; the images that it should be high for follow from it.
        tumor: masks (B, 1, *spatial): for a segmentation, the explained channel has to be high in them.
    """
    cause, kwargs = "wrong class index", dict(forward_kwargs or {})
    advice = "check the order of the classes and the index, and explain the margin to the other class"
    output = logits_of(model, x, kwargs)
    if (untrained := untrained_sign(model, output)) is not None:
        return Finding(cause, CANNOT_TELL, {}, f"the network is untrained: {untrained}", "give trained weights")
    if isinstance(target, SegmentationRegion):
        return _wrong_channel(output, target.channel, tumor)
    if output.dim() != 2 or labels is None:
        what = "the output is no logits (B, K)" if labels is not None else "the labels of the images were not given"
        return Finding(cause, CANNOT_TELL, {}, what, "give labels by a datalist or by folders of classes")
    logits, truth = output.cpu().numpy(), np.array([int(k) for k in labels])
    sides = wanted(target, truth, logits.shape[1])
    if sides is None:
        known = truth >= 0
        figures = {"accuracy": float((logits.argmax(1) == truth)[known].mean())} if known.any() else {}
        return Finding(
            cause,
            CANNOT_TELL,
            figures,
            "each image's own top class is explained: there is no index to be wrong",
            "name the class that you mean",
        )
    pos, others = sides
    if not pos.any() or not others.any():
        reason = f"{target.name}: images that it should be high for, and others, are needed; got {pos.sum()} and "
        return Finding(cause, CANNOT_TELL, {}, reason + str(others.sum()), "give images of both kinds")
    score = target(output).cpu().numpy()
    if isinstance(target, ClassScore):
        score = _against_others(logits, int(target.class_idx or 0))  # type: ignore[arg-type]
    auc, p = separation(score, pos, others)
    figures = {"auc_for_its_own_label": auc, "p_by_chance": p}
    reason = (
        f"the score {target.name} separates the {pos.sum()} images that it should be high for from {others.sum()} "
        f"others with an AUC of {auc:.2f} (limit 0.40)"
    )
    if auc < 0.4 and p < 0.01:
        return Finding(cause, HOLDS, figures, reason, advice)
    if isinstance(target, ClassScore) and logits.shape[1] > 1:
        index = int(target.class_idx or 0)  # type: ignore[arg-type]
        best, best_auc = _best_class(logits, pos, others)
        figures["auc_of_the_best_class"] = best_auc
        if best != index and best_auc > 0.7 and best_auc - auc > 0.2:
            reason = (
                f"the logit of class {best} picks the {pos.sum()} images of this label with an AUC of {best_auc:.2f}, "
                f"that of class {index} with {auc:.2f} (limit 0.20 less): the classes stand in another order"
            )
            return Finding(cause, HOLDS, figures, reason, advice)
        share = _share_in_own_logit(model, x, logits, index, layer, kwargs)
        if share is not None:
            figures["share_of_margin_in_its_own_logit"] = share
            reason += f"; {share:.0%} of the margin's gradient lies in its own logit (limit 20 %)"
            if share < 0.2:
                return Finding(cause, HOLDS, figures, reason, advice, signs=("margin",))
    if auc < 0.6 or p > 0.05:
        note = f"; the network hardly separates these {len(logits)} images (by chance in {p:.0%} of cases)"
        return Finding(cause, CANNOT_TELL, figures, reason + note, "give more images, or a trained network")
    return Finding(cause, verdict(False), figures, reason, advice)


SAME = 0.005  # spread of the probabilities over images, below which they are all the same


def untrained_sign(model: nn.Module, output: Tensor) -> str | None:
    """What shows that a network was not trained, in words; None where nothing does.

    Its scores then follow from random numbers: they may well be lower where they should be higher.

    Args:
        model: whose normalization layers are looked at.
        output: logits (B, K, ...) of several images.
    """
    norms: list[Any] = [
        module
        for module in model.modules()
        if "norm" in type(module).__name__.lower() and isinstance(getattr(module, "weight", None), Tensor)
    ]
    biases = [getattr(norm, "bias", None) for norm in norms]  # an RMS norm has none
    as_made = all(bool((norm.weight == 1).all()) for norm in norms) and not any(
        bool((bias != 0).any()) for bias in biases if bias is not None
    )
    if norms and as_made:
        return f"all {len(norms)} normalization layers are as they were made, with weights 1 and biases 0"
    if output.dim() == 2 and len(output) > 1:
        p = output.softmax(1) if output.shape[1] > 1 else output.sigmoid()
        spread = float(p.std(0).max())
        if spread < SAME:
            return f"the probabilities of all {len(output)} images are the same within {spread:.1g}"
    return None


def _best_class(logits: np.ndarray, positive: np.ndarray, others: np.ndarray) -> tuple[int, float]:
    aucs = [separation(_against_others(logits, k), positive, others)[0] for k in range(logits.shape[1])]
    return int(np.argmax(aucs)), float(np.max(aucs))


def _share_in_own_logit(
    model: nn.Module, x: Tensor, logits: np.ndarray, index: int, layer: str, kwargs: Mapping[str, Any]
) -> float | None:
    """Norm of the class's gradient at the layer, as a share of that and the strongest rival's; None if both are 0."""
    rival = int(np.argmax(np.where(np.arange(logits.shape[1]) == index, -np.inf, logits.mean(0))))
    norms = []
    for k in (index, rival):
        try:
            norms.append(float(activations_and_gradients(model, x, layer, ClassScore(k), kwargs)[2].norm()))
        except NoGradientError:  # a reference class whose logit is fixed
            norms.append(0.0)
    return norms[0] / sum(norms) if sum(norms) > 0 else None


def _wrong_channel(output: Tensor, channel: int, tumor: Tensor | None) -> Finding:
    """Whether the explained channel of a segmentation is low where the tumor is."""
    cause, advice = "wrong class index", "explain the tumor's channel: channel 0 is the background in most networks"
    if tumor is None or not bool((tumor != 0).any()) or output.shape[2:] != tumor.shape[2:]:
        reason = "the channel of a segmentation is checked by tumor masks on the output's grid, and there are none"
        return Finding(cause, CANNOT_TELL, {}, reason, "give masks of some tumors")
    truth = (tumor != 0).flatten().cpu().numpy()
    others = [k for k in range(output.shape[1]) if k != channel]
    margin = output[:, channel] - (output[:, others].amax(1) if others else 0)
    auc = intervals.auc(truth, margin.flatten().cpu().numpy())
    reason = f"channel {channel} separates tumor pixels from all others with an AUC of {auc:.2f} (holds below 0.40)"
    figures = {"auc_for_tumor_pixels": auc}
    if not 0 <= auc <= 1:
        reason = "the channel of a segmentation is checked against pixels without a tumor and finite outputs"
        return Finding(cause, CANNOT_TELL, {}, reason, "give masks that leave out a part of the picture")
    if 0.4 <= auc < 0.6:
        return Finding(cause, CANNOT_TELL, figures, reason + ": the network hardly separates them", advice)
    return Finding(cause, verdict(auc < 0.4), figures, reason, advice)
