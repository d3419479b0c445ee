"""Causes of a heatmap in the background that lie in the network's forward pass: normalization and pooling."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor, nn

from scripts.explain.baselines import check_foreground
from scripts.explain.findings import CANNOT_TELL, DOES_NOT_HOLD, Finding, verdict
from scripts.explain.gradient_findings import activations_and_gradients, cells_with_head, normalizations
from scripts.explain.grids import as_map
from scripts.explain.intervals import auc
from scripts.explain.layers import LayerError, evaluating
from scripts.explain.recording import default_layer, record
from scripts.explain.scores import plain
from scripts.explain.targets import SegmentationRegion, Target

__all__ = ["first_normalization", "normalization_leak", "pad_with_air", "pooling_over_air", "with_more_air"]

# Images looked at for a property of the network that does not depend on the image.
SAMPLES = 8


def _air_value(x: Tensor, inside: Tensor) -> Tensor:
    """Median of each sample's and channel's air, (B, C, 1, ...); 0 without air."""
    values = torch.zeros(x.shape[:2])
    for b, (image, mask) in enumerate(zip(x.float(), inside, strict=True)):
        if not bool(mask.all()):
            values[b] = image[:, ~mask[0]].median(1).values
    return values.reshape(*values.shape, *[1] * (x.dim() - 2)).to(x)


def pad_with_air(x: Tensor, foreground: Tensor, pad: int) -> Tensor:
    """Images (B, C, *spatial) with `pad` pixels more of their own air on every side."""
    value = _air_value(x, check_foreground(foreground, x))
    return _padded(x - value, pad) + value


def _padded(t: Tensor, pad: int) -> Tensor:
    return F.pad(t, [pad] * 2 * (t.dim() - 2))


def _arguments(kwargs: Mapping[str, Any], x: Tensor, pad: int = 0, count: int | None = None) -> dict[str, Any]:
    """Arguments of `forward` of the first `count` samples, images among them padded like the input."""
    taken = {k: v[:count] if isinstance(v, Tensor) and v.dim() and len(v) == len(x) else v for k, v in kwargs.items()}
    images = {k: v for k, v in taken.items() if isinstance(v, Tensor) and v.shape[2:] == x.shape[2:]}
    return {**taken, **{k: _padded(v, pad) for k, v in images.items()}}


def first_normalization(model: nn.Module, x: Tensor, kwargs: Mapping[str, Any]) -> str | None:
    """Name of the first of `normalizations` to run with a spatial output."""
    ran: list[str] = []
    handles = []
    try:
        for name, module in normalizations(model):
            hook = lambda _m, _a, out, name=name: ran.append(name) if _spatial(out, x) else None  # noqa: E731
            handles.append(module.register_forward_hook(hook))
        with torch.no_grad(), evaluating(model):
            model(x[:1].clone(), **_arguments(kwargs, x, count=1))
    finally:
        for handle in handles:
            handle.remove()
    return ran[0] if ran else None


def _spatial(output: Any, x: Tensor) -> bool:
    return isinstance(output, Tensor) and output.dim() == x.dim()


def with_more_air(
    model: nn.Module, x: Tensor, foreground: Tensor, layer: str, kwargs: Mapping[str, Any], pad: int
) -> tuple[Tensor, Tensor, list[Any]]:
    """Features of a layer, those of the padded input at the same places, and the two outputs.

    Raises:
        ValueError: for a network that takes no larger input.
    """
    features, outputs = [], []
    for image, arguments in (
        (plain(x).clone(), kwargs),
        (pad_with_air(plain(x), foreground, pad), _arguments(kwargs, x, pad)),
    ):
        try:
            with torch.no_grad(), evaluating(model), record(model, [layer]) as recorder:
                outputs.append(model(image, **arguments))
        except (RuntimeError, AssertionError) as error:
            if not outputs:
                raise
            grid = "x".join(map(str, image.shape[2:]))
            raise ValueError(f"the network takes no input of {grid}: {str(error).splitlines()[0]}") from error
        recorder.check()
        activation = recorder.activations[recorder.layers[0]].float()
        features.append(as_map(model, recorder.layers[0], activation, image)(activation))
    plain_size, more = features[0].shape[2:], features[1]
    for axis, size in enumerate(plain_size):
        more = more.narrow(2 + axis, (more.shape[2 + axis] - size) // 2, size)
    return features[0], more, outputs


def _relative_change(features: Tensor, more: Tensor, cells: Tensor) -> float:
    """Largest change in the head, as a share of the largest feature there."""
    return float(((more - features).abs() * cells).max() / (features.abs() * cells).max().clamp(min=1e-12))


def _mixing(model: nn.Module, x: Tensor, inside: Tensor, kwargs: Mapping[str, Any]) -> dict[str, float]:
    """For each normalization layer, how much its output in the head changes with its input in the air.

    The air cells of the layer's own input are moved by one deviation of that input, everything else is left; the change
    is the largest in the head, as a share of the largest output there. Exactly 0 for a layer that works cell by cell
    (batch norm in evaluation mode) or knows the foreground. Layers without a cell of air are left out.
    """
    changes: dict[str, float] = {}

    def look(name: str, module: nn.Module, args: tuple, kw: dict, output: Any) -> None:
        if not args or not _spatial(args[0], x) or not _spatial(output, x) or args[0].shape[2:] != output.shape[2:]:
            return
        head = cells_with_head(inside, output.shape[2:])
        air = ~head.expand_as(args[0])
        if bool(air.any()):
            moved = args[0] + air * args[0].float().std().to(args[0])
            again = module.forward(moved, *args[1:], **kw)  # not by call: no hook, and no second look
            changes[name] = max(changes.get(name, 0.0), _relative_change(output.float(), again.float(), head))

    handles = []
    try:
        for name, module in normalizations(model):
            hook = lambda m, a, kw, out, name=name: look(name, m, a, kw, out)  # noqa: E731
            handles.append(module.register_forward_hook(hook, with_kwargs=True))
        with torch.no_grad(), evaluating(model):
            model(x.clone(), **kwargs)
    finally:
        for handle in handles:
            handle.remove()
    return changes


def normalization_leak(
    model: nn.Module,
    x: Tensor,
    foreground: Tensor,
    labels: Sequence[int] | None = None,
    forward_kwargs: Mapping[str, Any] | None = None,
    pad: int = 16,
) -> Finding:
    """Whether a normalization mixes the air into the statistics of the head, and writes them into the air.

    Every normalization layer is tried alone: its air is moved by one deviation, and its output in the head must stay
    (instance, group and layer norm over space: it does not; batch norm in evaluation mode and foreground-aware norms:
    it does, exactly). Beside it: what more air around the image does to the features behind the first normalization;
    and, with 20 images or more of two classes, how much of the label a linear probe reads from the features of one
    corner cell (cross-validated ROC AUC).

    Args:
        model: the network.
        x: (B, C, *spatial).
        foreground: (B, 1, *spatial), non-zero inside.
        labels: class of each image, for the probe.
        forward_kwargs: arguments of `forward`; images among them are padded too.
        pad: pixels of air added on every side, a multiple of the network's total stride.
    """
    cause, kwargs = "normalization leak", dict(forward_kwargs or {})
    inside = check_foreground(foreground, x)
    layer = first_normalization(model, x, kwargs)
    if layer is None:
        return Finding(cause, DOES_NOT_HOLD, {}, "the network has no normalization layer (by the names of its classes)")
    few_images, few_inside, few_kwargs = x[:SAMPLES], inside[:SAMPLES], _arguments(kwargs, x, count=SAMPLES)
    mixing = _mixing(model, few_images, few_inside, few_kwargs)
    if not mixing:
        return Finding(cause, CANNOT_TELL, {}, "no normalization layer has a cell without any foreground")
    leaking = [name for name, change in mixing.items() if change > 1e-3]
    worst = max(mixing, key=lambda name: mixing[name])
    figures = {
        "normalization_layers": float(len(mixing)),
        "layers_that_mix_air": float(len(leaking)),
        "largest_change_by_air": mixing[worst],
    }
    reason = (
        f"{len(leaking)} of {len(mixing)} normalization layers mix the air into the head: air moved by one deviation "
        f"changes the head's features behind {worst!r} by {mixing[worst]:.1%} of the largest (limit 0.1 %)"
    )
    try:
        features, more, _ = with_more_air(model, few_images, few_inside, layer, few_kwargs, pad)
        cells = cells_with_head(few_inside, features.shape[2:])
        change = _relative_change(features, more, cells)
        figures["change_of_features_with_more_air"] = change
        reason += f"; {pad} pixels more air change those behind {layer!r} by {change:.1%}"
    except ValueError as error:
        reason += f"; more air could not be tried: {error}"
    figures |= _in_the_air(model, x, inside, layer, kwargs, labels)
    if "corner_auc" in figures:
        reason += (
            f"; a probe on a corner pixel tells the class with an AUC of {figures['corner_auc']:.2f} (chance 0.50)"
        )
    return Finding(
        cause,
        verdict(bool(leaking)),
        figures,
        reason,
        "normalize with the statistics of the foreground alone and write 0 to the air behind every normalization "
        "(scripts.networks.normalization.ForegroundInstanceNorm); batch norm does not leak in evaluation mode",
    )


def _in_the_air(
    model: nn.Module,
    x: Tensor,
    inside: Tensor,
    layer: str,
    kwargs: Mapping[str, Any],
    labels: Sequence[int] | None,
) -> dict[str, float]:
    """What stands in the air behind a layer: its size as a share of the head's, and what a corner says of the class."""
    corners, air_size, head_size = [], [], []
    in_head = False
    for start in range(0, len(x), SAMPLES):
        part = slice(start, start + SAMPLES)
        batch_kwargs = {k: v[part] if isinstance(v, Tensor) and len(v) == len(x) else v for k, v in kwargs.items()}
        with torch.no_grad(), evaluating(model), record(model, [layer]) as recorder:
            model(plain(x)[part].clone(), **batch_kwargs)
        features = recorder.activations[recorder.layers[0]].float()
        features = as_map(model, recorder.layers[0], features, plain(x)[part])(features)
        head = cells_with_head(inside[part], features.shape[2:])
        in_head |= bool(head.flatten(2)[:, 0, 0].any())  # the first cell is the corner, in 2D and 3D
        air = (~head).expand_as(features)
        air_size.append(features.abs()[air])
        head_size.append(features.abs()[~air].mean())
        corners.append(features.flatten(2)[:, :, 0])
    figures = {}
    if any(len(size) for size in air_size):
        figures["air_to_head_magnitude"] = float(torch.cat(air_size).mean() / torch.stack(head_size).mean())
    if not in_head:
        figures |= _probe(torch.cat(corners), labels)
    return figures


def _probe(corners: Tensor, labels: Sequence[int] | None) -> dict[str, float]:
    """Cross-validated ROC AUC of a linear probe on the corner cells (B, C), for class 0 against the others."""
    if labels is None:
        return {}
    known = np.array([int(label) >= 0 for label in labels])
    truth = np.array([int(label) > 0 for label in labels])[known]
    if len(truth) < 20 or min(truth.sum(), (~truth).sum()) < 5:
        return {}
    values = corners.cpu().numpy()[known]
    if bool((values == values[:1]).all()):  # as in air that is exactly 0: there is nothing to read
        return {"corner_auc": 0.5}
    folds = StratifiedKFold(5, shuffle=True, random_state=0)
    probe = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
    predicted = cross_val_predict(probe, values, truth, cv=folds, method="decision_function")
    return {"corner_auc": auc(truth, predicted)}


def pooling_over_air(
    model: nn.Module,
    x: Tensor,
    foreground: Tensor,
    target: Target,
    layer: str | None = None,
    forward_kwargs: Mapping[str, Any] | None = None,
    pad: int = 16,
) -> Finding:
    """Whether the score is pooled over air as well.

    Two signs: a share of the score's gradient by the last features lies in the air; or more air around the image
    changes the score while the head's features stay the same (a log-sum-exp over air has next to no gradient there).

    Args:
        model, x, foreground, forward_kwargs, pad: see `normalization_leak`.
        target: the explained score.
        layer: the last spatial features in front of the pooling, whatever layer is explained; None:
            `recording.default_layer`.
    """
    cause, kwargs = "pooling over air", dict(forward_kwargs or {})
    inside = check_foreground(foreground, x)
    if isinstance(target, SegmentationRegion):
        return Finding(
            cause, DOES_NOT_HOLD, {}, "the network puts out a segmentation, and the score is its mean over a region"
        )
    try:
        layer = layer or default_layer(model, x[:1], _arguments(kwargs, x, count=1))
        score, _, gradients = activations_and_gradients(model, x, layer, target, kwargs)
    except LayerError as error:
        return Finding(cause, CANNOT_TELL, {}, f"the features in front of the pooling were not found: {error}")
    cells = cells_with_head(inside, gradients.shape[2:])
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
    few_images, few_inside, few_kwargs = x[:SAMPLES], inside[:SAMPLES], _arguments(kwargs, x, count=SAMPLES)
    try:
        features, more, outputs = with_more_air(model, few_images, few_inside, layer, few_kwargs, pad)
    except ValueError as error:
        reason += f"; more air could not be tried: {error}"
    else:
        taken = target.take(torch.arange(len(few_images)))
        bound = taken.bind(outputs[0])
        change = float((bound(outputs[1]) - bound(outputs[0])).abs().max())
        figures["score_change_with_more_air"] = change
        same = _relative_change(features, more, cells[:SAMPLES]) < 1e-3
        diluted = same and change > 1e-3 * max(1.0, float(score.abs().max()))
        reason += f"; {pad} pixels more air change the score by up to {change:.3g}" + (
            f", though not the head's features at {layer!r}" if diluted else ""
        )
    return Finding(
        cause,
        verdict(share > 0.01 or diluted),
        figures,
        reason,
        "pool over the foreground only (head: evidence with masked pooling), or crop the images to the head",
    )
