"""Causes of a heatmap in the background that lie in the network: normalization, pooling, gradients, class, layer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import StratifiedKFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor, nn

from scripts.explain.baselines import check_foreground
from scripts.explain.cam import MIN_COHERENCE, cam_pass, gradcam, gradient_coherence, hirescam
from scripts.explain.findings import CANNOT_TELL, DOES_NOT_HOLD, HOLDS, Finding, verdict
from scripts.explain.layers import LayerError, evaluating, frozen, record, resolve_layer
from scripts.explain.scores import plain
from scripts.explain.targets import ClassScore, SegmentationRegion, Target

__all__ = [
    "activations_and_gradients",
    "first_normalization",
    "gradient_averaging",
    "lost_gradient",
    "normalization_leak",
    "pooling_over_air",
    "unsuitable_layer",
    "wrong_class",
]


def activations_and_gradients(
    model: nn.Module, x: Tensor, layer: str, target: Target, kwargs: Mapping[str, Any]
) -> tuple[Tensor, Tensor, Tensor]:
    """Score (B,), activations and gradients (B, C, *grid) of a layer.

    Raises:
        LayerError: for a layer that cannot be explained.
    """
    with torch.inference_mode(False), torch.enable_grad(), evaluating(model), frozen(model):
        with record(model, [layer]) as recorder:
            output = model(plain(x).clone(), **kwargs)
        score = target(output)
        gradients = recorder.gradients(score)
    name = recorder.layers[0]
    return score.detach(), recorder.activations[name].detach().float(), gradients[name].float()


def _cells(foreground: Tensor, size: Sequence[int]) -> Tensor:
    """Cells of a layer's grid with any foreground, (B, 1, *size), bool."""
    pool: Any = F.adaptive_max_pool3d if len(size) == 3 else F.adaptive_max_pool2d
    return pool(foreground.float(), tuple(size)) > 0


def _padded(t: Tensor, pad: int) -> Tensor:
    return F.pad(t, [pad] * 2 * (t.dim() - 2))


def _padded_arguments(kwargs: Mapping[str, Any], x: Tensor, pad: int) -> dict[str, Any]:
    """Arguments of `forward`, images among them padded like the input."""
    return {
        k: _padded(v, pad) if isinstance(v, Tensor) and v.shape[2:] == x.shape[2:] and v.dim() == x.dim() else v
        for k, v in kwargs.items()
    }


def first_normalization(model: nn.Module, x: Tensor, kwargs: Mapping[str, Any]) -> str | None:
    """Name of the first layer to run whose class name says that it normalizes, and whose output is spatial."""
    ran: list[str] = []
    handles = []
    try:
        for name, module in model.named_modules():
            if "norm" in type(module).__name__.lower():
                hook = lambda _m, _a, out, name=name: ran.append(name) if _spatial(out, x) else None  # noqa: E731
                handles.append(module.register_forward_hook(hook))
        with torch.no_grad(), evaluating(model):
            model(x.clone(), **kwargs)
    finally:
        for handle in handles:
            handle.remove()
    return ran[0] if ran else None


def _spatial(output: Any, x: Tensor) -> bool:
    return isinstance(output, Tensor) and output.dim() == x.dim()


def _with_more_air(
    model: nn.Module, x: Tensor, layer: str, kwargs: Mapping[str, Any], pad: int
) -> tuple[Tensor, Tensor, list[Any]]:
    """Features of a layer, those of the padded input at the same places, and the two outputs."""
    features, outputs = [], []
    for image, arguments in ((x, kwargs), (_padded(x, pad), _padded_arguments(kwargs, x, pad))):
        with torch.no_grad(), evaluating(model), record(model, [layer]) as recorder:
            outputs.append(model(image.clone(), **arguments))
        recorder.check()
        features.append(recorder.activations[recorder.layers[0]].float())
    plain_size, more = features[0].shape[2:], features[1]
    for axis, size in enumerate(plain_size):
        more = more.narrow(2 + axis, (more.shape[2 + axis] - size) // 2, size)
    return features[0], more, outputs


def _relative_change(features: Tensor, more: Tensor, cells: Tensor) -> float:
    """Largest change in the head, as a share of the largest feature there."""
    return float(((more - features).abs() * cells).max() / (features.abs() * cells).max().clamp(min=1e-12))


def normalization_leak(
    model: nn.Module,
    x: Tensor,
    foreground: Tensor,
    labels: Sequence[int] | None = None,
    forward_kwargs: Mapping[str, Any] | None = None,
    pad: int = 16,
) -> Finding:
    """Whether a normalization mixes the air into the statistics of the head, and writes them into the air.

    Looks behind the first normalization: adding air around the image must not change the features of the head there
    (instance, group and layer norm: their statistics include the air; batch norm in evaluation mode: they do not). With
    20 images or more of two classes, a linear probe on the features of one corner cell says how much of the label
    stands in the air (cross-validated ROC AUC).

    Args:
        model: the network.
        x: (B, C, *spatial), with air of 0.
        foreground: (B, 1, *spatial), non-zero inside.
        labels: class of each image, for the probe.
        forward_kwargs: arguments of `forward`; images among them are padded too.
        pad: pixels of air added on every side, a multiple of the network's total stride.
    """
    cause, kwargs = "normalization leak", dict(forward_kwargs or {})
    inside = check_foreground(foreground, x)
    layer = first_normalization(model, x, kwargs)
    if layer is None:
        return Finding(cause, DOES_NOT_HOLD, {}, "the network has no normalization layer")
    features, more, _ = _with_more_air(model, x, layer, kwargs, pad)
    cells = _cells(inside, features.shape[2:])
    change = _relative_change(features, more, cells)
    figures = {"change_of_features_with_more_air": change}
    air = (~cells).expand_as(features)
    if bool(air.any()):
        size = features.abs()
        figures["air_to_head_magnitude"] = float(size[air].mean() / size[~air].mean().clamp(min=1e-12))
    figures |= _probe(features, cells, labels)
    probe = (
        f"; a corner pixel tells the class with an AUC of {figures['corner_auc']:.2f}"
        if "corner_auc" in figures
        else ""
    )
    return Finding(
        cause,
        verdict(change > 0.01),
        figures,
        f"{pad} pixels more air change the head's features behind {layer!r} by {change:.1%} of the largest (limit 1 %)"
        f"{probe}",
        "normalize with the statistics of the foreground alone, and write 0 to the air behind every normalization",
    )


def _probe(features: Tensor, cells: Tensor, labels: Sequence[int] | None) -> dict[str, float]:
    """Cross-validated ROC AUC of a linear probe on the corner cell, for class 0 against the others."""
    in_head = bool(cells.flatten(2)[:, 0, 0].any())  # the first cell is the corner, in 2D and 3D
    if labels is None or in_head:
        return {}
    truth = np.array([int(label) > 0 for label in labels])
    if len(truth) < 20 or min(truth.sum(), (~truth).sum()) < 5:
        return {}
    values = features.flatten(2)[:, :, 0].cpu().numpy()
    if bool((values == values[:1]).all()):  # as in air that is exactly 0: there is nothing to read
        return {"corner_auc": 0.5}
    folds = StratifiedKFold(5, shuffle=True, random_state=0)
    probe = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
    predicted = cross_val_predict(probe, values, truth, cv=folds, method="decision_function")
    return {"corner_auc": float(roc_auc_score(truth, predicted))}


def pooling_over_air(
    model: nn.Module,
    x: Tensor,
    foreground: Tensor,
    target: Target,
    layer: str,
    forward_kwargs: Mapping[str, Any] | None = None,
    pad: int = 16,
) -> Finding:
    """Whether the score is pooled over air as well.

    Two signs: a share of the score's gradient by the last features lies in the air; or more air around the image
    changes the score while the head's features stay the same (a log-sum-exp over air has next to no gradient there).

    Args:
        model, x, foreground, forward_kwargs, pad: see `normalization_leak`.
        target: the explained score.
        layer: the last spatial features in front of the pooling.
    """
    cause, kwargs = "pooling over air", dict(forward_kwargs or {})
    inside = check_foreground(foreground, x)
    score, _, gradients = activations_and_gradients(model, x, layer, target, kwargs)
    cells = _cells(inside, gradients.shape[2:])
    figures: dict[str, float] = {"share_of_air": float((~cells).double().mean())}
    if not bool((~cells).any()):
        return Finding(cause, CANNOT_TELL, figures, f"layer {layer!r} has no cell without foreground")
    total = gradients.abs().sum()
    if float(total) == 0:
        return Finding(cause, CANNOT_TELL, figures, "the gradient is 0 everywhere")
    share = float((gradients.abs() * ~cells).sum() / total)
    figures["share_of_gradient_in_air"] = share
    reason = f"{share:.1%} of the score's gradient at {layer!r} lies in cells without foreground (limit 1 %)"
    diluted = False
    if not isinstance(target, SegmentationRegion):
        features, more, outputs = _with_more_air(model, x, layer, kwargs, pad)
        change = float((target.bind(outputs[0])(outputs[1]) - score).abs().max())
        figures["score_change_with_more_air"] = change
        same = _relative_change(features, more, cells) < 1e-3
        diluted = same and change > 1e-3 * max(1.0, float(score.abs().max()))
        if diluted and share <= 0.01:
            reason = (
                f"{pad} pixels more air change the score by {change:.3f}, though not the head's features at {layer!r}"
            )
    return Finding(cause, verdict(share > 0.01 or diluted), figures, reason, "pool over the foreground only")


def gradient_averaging(
    model: nn.Module,
    x: Tensor,
    foreground: Tensor,
    target: Target,
    layer: str,
    forward_kwargs: Mapping[str, Any] | None = None,
) -> Finding:
    """Whether Grad-CAM paints the air because it averages gradients over space, or the average is rounding noise.

    HiResCAM is the same product without the average: what Grad-CAM has in the air beyond it is the average's doing.
    That Grad-CAM also paints tissue without gradient is told as a figure, and is no fault by itself: behind a
    log-sum-exp pooling it makes Grad-CAM the evidence.

    Args:
        model, x, foreground, target, layer, forward_kwargs: see `pooling_over_air`.
    """
    cause, kwargs = "gradient averaging", dict(forward_kwargs or {})
    inside = check_foreground(foreground, x)
    _, activations, gradients = activations_and_gradients(model, x, layer, target, kwargs)
    coherence = gradient_coherence(gradients)
    maps = {
        "gradcam": gradcam(activations, gradients).clamp(min=0),
        "hirescam": hirescam(activations, gradients).clamp(min=0),
    }
    size = gradients.abs().sum(1, keepdim=True)
    silent = size < 1e-3 * size.flatten(1).amax(1).reshape(-1, *[1] * (size.dim() - 1))
    cells = _cells(inside, gradients.shape[2:])
    figures = {"coherence": float(coherence.nan_to_num(0).mean())}
    for name, value in maps.items():
        total = float(value.sum())
        if total > 0:
            figures[f"{name}_energy_in_air"] = float((value * ~cells).sum()) / total
    cam_total = float(maps["gradcam"].sum())
    if cam_total == 0:
        return Finding(cause, CANNOT_TELL, figures, "Grad-CAM is empty for every image")
    painted = float((maps["gradcam"] * silent).sum()) / cam_total
    figures["gradcam_energy_without_gradient"] = painted
    beyond = figures["gradcam_energy_in_air"] - figures.get("hirescam_energy_in_air", 0.0)
    cancelled = bool((coherence < MIN_COHERENCE).any())
    if cancelled:
        least = float(coherence.min())
        reason = f"the gradients at {layer!r} cancel over space (coherence {least:.1e}): their mean is rounding"
    else:
        reason = f"Grad-CAM at {layer!r} has {beyond:+.1%} more of its energy in air than HiResCAM (limit 5 %)"
    return Finding(
        cause,
        verdict(cancelled or beyond > 0.05),
        figures,
        reason,
        "use HiResCAM, or a layer with nothing but a linear map and the pooling behind it",
    )


def wrong_class(
    model: nn.Module,
    x: Tensor,
    labels: Sequence[int],
    class_idx: int,
    layer: str,
    forward_kwargs: Mapping[str, Any] | None = None,
) -> Finding:
    """Whether the explained class is another than meant, or its evidence lies in another class's logit.

    Args:
        model, x, layer, forward_kwargs: see `pooling_over_air`.
        labels: true class of each image, below 0 for unknown.
        class_idx: the class whose logit is explained.
    """
    cause, kwargs = "wrong class index", dict(forward_kwargs or {})
    with torch.no_grad(), evaluating(model):
        logits = model(x.clone(), **kwargs)
    if not isinstance(logits, Tensor) or logits.dim() != 2 or not 0 <= class_idx < logits.shape[1]:
        return Finding(cause, CANNOT_TELL, {}, f"the output is no logits (B, K) with a class {class_idx}")
    truth = np.array([int(k) for k in labels])
    known = truth >= 0
    positive = truth[known] == class_idx
    figures: dict[str, float] = {}
    others = [k for k in range(logits.shape[1]) if k != class_idx]
    if others:
        rival = others[int(logits[:, others].mean(0).argmax())]
        own, other = (
            activations_and_gradients(model, x, layer, ClassScore(k), kwargs)[2].norm() for k in (class_idx, rival)
        )
        figures["share_of_margin_in_its_own_logit"] = float(own / (own + other).clamp(min=1e-30))
    if positive.any() and not positive.all():
        margin = logits[:, class_idx] - (logits[:, others].amax(1) if others else 0)
        figures["auc_for_its_own_label"] = float(roc_auc_score(positive, margin.float().cpu().numpy()[known]))
    elif not figures:
        return Finding(cause, CANNOT_TELL, figures, f"images with and without class {class_idx} are needed")
    auc, share = figures.get("auc_for_its_own_label"), figures.get("share_of_margin_in_its_own_logit", 1.0)
    swapped, elsewhere = auc is not None and auc < 0.4, share < 0.2
    if not swapped and not elsewhere and auc is None:
        return Finding(cause, CANNOT_TELL, figures, f"images with and without class {class_idx} are needed")
    reason = (
        f"class {class_idx} separates its own images with an AUC of {auc:.2f} (limit 0.40)"
        if swapped
        else (f"{share:.0%} of the margin's gradient lies in the logit of class {class_idx} (limit 20 %)")
    )
    return Finding(
        cause,
        verdict(swapped or elsewhere),
        figures,
        reason,
        "explain the margin to the other class, and check the index",
    )


def lost_gradient(
    model: nn.Module,
    x: Tensor,
    target: Target,
    layer: str,
    forward_kwargs: Mapping[str, Any] | None = None,
) -> Finding:
    """Whether the gradient is dead or saturated: too small to say anything.

    Args:
        model, x, target, layer, forward_kwargs: see `pooling_over_air`.
    """
    score, activations, gradients = activations_and_gradients(model, x, layer, target, dict(forward_kwargs or {}))
    effect = (activations * gradients).abs().flatten(1).sum(1)
    dead = effect < 1e-6 * score.abs().clamp(min=1.0)
    silent = (gradients.flatten(2).abs().amax(2) == 0).double().mean()
    figures = {
        "share_of_images_without_gradient": float(dead.double().mean()),
        "share_of_channels_without_gradient": float(silent),
        "smallest_effect": float(effect.min()),
    }
    return Finding(
        "dead or saturated gradient",
        verdict(bool(dead.any())),
        figures,
        f"in {figures['share_of_images_without_gradient']:.0%} of the images activations times gradients at {layer!r} "
        "are below one millionth of the score",
        "explain the logit or the margin, not a probability; look for activations that never open at this layer",
    )


def unsuitable_layer(
    model: nn.Module,
    x: Tensor,
    target: Target,
    layer: str,
    forward_kwargs: Mapping[str, Any] | None = None,
) -> Finding:
    """Whether the layer cannot carry a Grad-CAM: absent, run twice, no spatial output, cancelling, or a normalization.

    Args:
        model, x, target, layer, forward_kwargs: see `pooling_over_air`.
    """
    cause, advice = (
        "unsuitable layer",
        "name a whole block, or leave the choice to scripts.explain.layers.default_layer",
    )
    try:
        cam_pass(model, x, layer, target, "gradcam", forward_kwargs)
    except LayerError as error:
        return Finding(cause, HOLDS, {}, str(error), advice)
    module = model.get_submodule(resolve_layer(model, layer))
    kind = type(module).__name__
    _, activations, _ = activations_and_gradients(model, x, layer, target, dict(forward_kwargs or {}))
    figures = {"share_of_negative_activations": float((activations < 0).double().mean())}
    normalizes = "norm" in kind.lower()
    reason = f"{layer!r} is a {kind}" + (": its output is not what the layers behind it read" if normalizes else "")
    return Finding(cause, verdict(normalizes), figures, reason, advice)
