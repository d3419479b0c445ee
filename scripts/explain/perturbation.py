"""Maps from changed inputs: occlusion and Score-CAM. Larger = more important; the foreground is held fixed."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from scripts.explain.baselines import Baseline, baseline_image
from scripts.explain.cam import CamPass
from scripts.explain.gradients import INPUT
from scripts.explain.grids import ToMap, as_map
from scripts.explain.layers import LayerError, resolve_layer
from scripts.explain.maps import upsample
from scripts.explain.recording import chosen_layers
from scripts.explain.scores import Scorer
from scripts.explain.targets import SegmentationRegion, Target

__all__ = ["occlusion", "scorecam"]


def _windows(size: Sequence[int], window: Sequence[int], stride: Sequence[int]) -> list[tuple[slice, ...]]:
    """Windows that cover a grid; the last of an axis is cut off at the border."""
    axes = []
    for n, w, s in zip(size, window, stride, strict=True):
        count = 1 + max(0, math.ceil((n - w) / s))
        axes.append([slice(i * s, min(i * s + w, n)) for i in range(count)])
    grids = torch.cartesian_prod(*[torch.arange(len(a)) for a in axes]).reshape(-1, len(axes)).tolist()
    return [tuple(axis[i] for axis, i in zip(axes, cell, strict=True)) for cell in grids]


def _part(t: Tensor, window: tuple[slice, ...]) -> Tensor:
    """View of a window of t (B, C, *spatial)."""
    index = (slice(None), slice(None), *window)
    return t[index]


def _per_axis(value: int | Sequence[int], dims: int, name: str) -> tuple[int, ...]:
    values = (value,) * dims if isinstance(value, int) else tuple(int(v) for v in value)
    if len(values) != dims or min(values) < 1:
        raise ValueError(f"{name}: expected a positive integer, or one for each of {dims} axes, got {value!r}")
    return values


def occlusion(
    model: nn.Module,
    x: Tensor,
    target: Target,
    forward_kwargs: Mapping[str, Any] | None = None,
    foreground: Tensor | None = None,
    foreground_kwarg: str | None = None,
    signed: bool = False,
    window: int | Sequence[int] | None = None,
    stride: int | Sequence[int] | None = None,
    baseline: Baseline = "mean",
    sigma_pixels: float | None = None,
    batch_size: int | None = None,
) -> CamPass:
    """How far the score falls when a window of tissue is replaced: the mean over all windows that cover a pixel.

    Source: Zeiler and Fergus, ECCV 2014, arXiv:1311.2901, section 4.2; the same windows and mean as
    captum.attr.Occlusion. Only tissue is replaced: windows without foreground are not run, and air is never painted.

    Args:
        model, x, target, forward_kwargs, foreground, foreground_kwarg: see `scores.Scorer`.
        signed: keep what speaks against the target; else values below 0 become 0.
        window: side of the window in pixels, one number or one an axis; None: an eighth of each axis.
        stride: step of the window; None: half a window. At most the window, so that no tissue is left out.
        baseline: what replaces the tissue, see `baselines.baseline_image`.
        sigma_pixels: of the blur, for baseline "blur".
        batch_size: occluded copies in one forward pass; None: what suits the device.

    Returns:
        maps: ("occlusion", "input"): (B, 1, *spatial), float32, in units of the score, 0 in air.

    Raises:
        ValueError: when the windows leave gaps.
    """
    scorer = Scorer(model, x, target, forward_kwargs, foreground, foreground_kwarg)
    x, inside = scorer.x, scorer.foreground
    size, dims = tuple(x.shape[2:]), x.dim() - 2
    window = _per_axis(window if window is not None else [max(1, n // 8) for n in size], dims, "window")
    stride = _per_axis(stride if stride is not None else [max(1, w // 2) for w in window], dims, "stride")
    if any(s > w for s, w in zip(stride, window, strict=True)):
        raise ValueError(f"stride {stride} is larger than the window {window}: some tissue would never be occluded")
    filled = baseline_image(x, inside, baseline, sigma_pixels)
    windows = _windows(size, window, stride)
    touched = torch.stack([_part(inside, w).flatten(1).any(1) for w in windows], 1)
    pairs = touched.nonzero()  # (N, 2): sample, window

    def occluded(positions: Tensor) -> Tensor:
        sample = pairs[positions, 0]
        copies, replaced = x[sample].clone(), filled[sample]
        for i, w in enumerate(pairs[positions, 1].tolist()):
            _part(copies, windows[w])[i] = _part(replaced, windows[w])[i]
        return copies

    drop = (scorer.score[pairs[:, 0]] - scorer.of_many(pairs[:, 0], occluded, batch_size)).double()
    total = torch.zeros(len(x), 1, *size, dtype=torch.double, device=x.device)
    count = torch.zeros_like(total)
    for (b, w), value in zip(pairs.tolist(), drop.tolist(), strict=True):
        _part(total, windows[w])[b] += value
        _part(count, windows[w])[b] += 1
    result = (total / count.clamp(min=1)).masked_fill(~inside, 0.0).float()
    maps = {("occlusion", INPUT): result if signed else result.clamp(min=0)}
    return CamPass(scorer.output, scorer.score, maps)


def scorecam(
    model: nn.Module,
    x: Tensor,
    layers: str | Sequence[str] | None,
    target: Target,
    forward_kwargs: Mapping[str, Any] | None = None,
    foreground: Tensor | None = None,
    foreground_kwarg: str | None = None,
    signed: bool = False,
    aliases: Mapping[str, str] | None = None,
    baseline: Baseline = 0.0,
    sigma_pixels: float | None = None,
    weighting: str = "softmax",
    batch_size: int | None = None,
    reshape_transform: ToMap | None = None,
) -> CamPass:
    """Score-CAM: channels weighted by the score of the image seen through them, all channels in batches.

    Source: Wang et al., Score-CAM, CVPRW 2020, arXiv:1910.01279. With H_k the channel brought to the image grid and
    stretched to [0, 1], and X_b the baseline image, C_k = f(X H_k + X_b (1 - H_k)) - f(X_b). "softmax" is algorithm 1:
    weights softmax(C) over the channels; "increase" is equation 3 (definition 3): weights C. A channel that is constant
    is no mask and gets the weight 0. Departs from the paper: the score may be any target, and the baseline any image
    (the paper: black, as here by default, which for images normalized over the foreground is their mean).

    Args:
        model, x, target, forward_kwargs, foreground, foreground_kwarg: see `scores.Scorer`.
        layers: dotted names or aliases; None chooses one, see `recording.default_layer`.
        signed: leave out the final ReLU.
        aliases: further layer aliases.
        baseline: what shows where a channel is dark, see `baselines.baseline_image`.
        sigma_pixels: of the blur, for baseline "blur".
        weighting: "softmax" or "increase".
        batch_size: masked copies in one forward pass; None: what suits the device.
        reshape_transform: see `cam.cam_pass`.

    Returns:
        maps: ("scorecam", layer as the caller named it): (B, 1, *layer grid), float32, >= 0 unless signed.

    Raises:
        LayerError: for a layer that cannot be explained or whose channels are all constant.
        ValueError: for another weighting.
    """
    if weighting not in ("softmax", "increase"):
        raise ValueError(f"weighting: expected 'softmax' or 'increase', got {weighting!r}")
    kwargs = {**(forward_kwargs or {}), **({foreground_kwarg: foreground} if foreground_kwarg else {})}
    names = chosen_layers(model, x, layers, kwargs, dense=isinstance(target, SegmentationRegion))
    scorer = Scorer(model, x, target, forward_kwargs, foreground, foreground_kwarg, names, aliases)
    start = baseline_image(scorer.x, scorer.foreground, baseline, sigma_pixels)
    samples = torch.arange(len(scorer.x), device=scorer.x.device)
    base = scorer.of_many(samples, lambda i: start[i], batch_size)
    result = CamPass(scorer.output, scorer.score)
    for name in names:
        layer = resolve_layer(model, name, aliases)
        activations = scorer.activations[layer]
        activations = as_map(model, layer, activations, scorer.x, reshape_transform)(activations).float()
        weights = _channel_weights(scorer, activations, start, base, weighting, batch_size, name)
        cam = (weights.reshape(*weights.shape, *[1] * (activations.dim() - 2)) * activations).sum(1, keepdim=True)
        if not bool(torch.isfinite(cam).all()):
            raise FloatingPointError(f"scorecam at layer {name!r} gave values that are not finite")
        result.maps["scorecam", name] = cam if signed else cam.clamp(min=0)
    return result


def _channel_weights(
    scorer: Scorer, activations: Tensor, start: Tensor, base: Tensor, weighting: str, batch_size: int | None, name: str
) -> Tensor:
    """Weight of each channel, (B, C), float32."""
    batch, channels = activations.shape[:2]
    size = tuple(scorer.x.shape[2:])
    varies = activations.flatten(2).amax(2) > activations.flatten(2).amin(2)
    if not bool(varies.any(1).all()):
        raise LayerError(
            f"no Score-CAM at layer {name!r}: all its channels are constant in sample(s) "
            f"{(~varies.any(1)).nonzero().flatten().tolist()}, so that none is a mask; name another layer"
        )
    pairs = varies.nonzero()  # (N, 2): sample, channel

    def masked(positions: Tensor) -> Tensor:
        sample, channel = pairs[positions, 0], pairs[positions, 1]
        mask = upsample(activations[sample, channel][:, None], size)
        low, high = (op(mask.flatten(1), 1).reshape(-1, *[1] * (mask.dim() - 1)) for op in (torch.amin, torch.amax))
        mask = ((mask - low) / (high - low)).to(scorer.x.dtype)
        return scorer.x[sample] * mask + start[sample] * (1 - mask)

    increase = scorer.of_many(pairs[:, 0], masked, batch_size) - base[pairs[:, 0]]
    if weighting == "increase":
        weights = torch.zeros(batch, channels, dtype=increase.dtype, device=increase.device)
        weights[pairs[:, 0], pairs[:, 1]] = increase
        return weights.float()
    scores = torch.full((batch, channels), -torch.inf, dtype=increase.dtype, device=increase.device)
    scores[pairs[:, 0], pairs[:, 1]] = increase
    return scores.softmax(1).float()
