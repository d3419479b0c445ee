"""All methods by one function: any of them, at any layers, for any target, with the same conventions for every map."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from scripts.explain import cam
from scripts.explain.attention import ATTENTION, ROLLOUT, attention_rollout
from scripts.explain.evidence import evidence_pass
from scripts.explain.gradients import INPUT, IntegratedGradientsPass, integrated_gradients, saliency, smoothgrad
from scripts.explain.grids import ToMap
from scripts.explain.layers import evaluating
from scripts.explain.lrp import LRP_METHODS, lrp
from scripts.explain.maps import combine_maps, scale_maps, upsample
from scripts.explain.outputs import Classes, selecting, target_of, unwrapped
from scripts.explain.perturbation import occlusion, scorecam
from scripts.explain.scores import one_tensor
from scripts.explain.statistics import FROZEN, STATISTICS, named, without_statistics
from scripts.explain.targets import ClassScore, LogitTarget, SegmentationRegion, Target

__all__ = ["METHODS", "SLOW", "TRANSFORMER_METHODS", "Explanation", "explain"]

GRADIENTS: dict[str, Callable[..., cam.CamPass]] = {
    "integrated_gradients": integrated_gradients,
    "saliency": saliency,
    "smoothgrad": smoothgrad,
}
PIXEL_METHODS: dict[str, Callable[..., cam.CamPass]] = {
    **GRADIENTS,
    "occlusion": occlusion,
    **{named(name, FROZEN): partial(method, statistics=FROZEN) for name, method in GRADIENTS.items()},
}
# "_frozen": the same method with the statistics of normalizations held fixed in the backward pass (`statistics`).
# name: whether it explains layers ("layer"), the input's pixels ("input"), or reads the network's own map ("evidence").
METHODS: dict[str, str] = {
    "evidence": "evidence",
    **dict.fromkeys(cam.METHODS, "layer"),
    "scorecam": "layer",
    **dict.fromkeys(LRP_METHODS, "layer"),
    **dict.fromkeys(PIXEL_METHODS, INPUT),
}
# Of transformers only, and therefore not among the methods for any network.
TRANSFORMER_METHODS: dict[str, str] = {ROLLOUT: ATTENTION}
# Tens to thousands of passes an image, where the others take two or three.
SLOW = (
    "scorecam",
    "occlusion",
    *(named(name, how) for name in ("integrated_gradients", "smoothgrad") for how in STATISTICS),
)


@dataclass
class Explanation:
    """Prediction and maps.

    Attributes:
        output: the network's output, detached.
        score: (B,), the explained number of each sample.
        target: name of the explained score.
        maps: (method, layer): (B, 1, *grid), float32, >= 0 unless signed was asked, larger = stronger. The grid is the
            layer's; the image's for layer "input" and for aggregates, whose layer reads "mean(a, b)".
        figures: name: (B,), what the methods say about themselves: `integrated_gradients_completeness_error`,
            `integrated_gradients_relative_error`; likewise with frozen statistics.
        size: grid of the image.
        cancelled: of the maps of Grad-CAM, with ``cancelled="empty"``: (B,), bool, see `cam.CamPass`; of an aggregate
            where no layer (for the product: not every one) has a map.
    """

    output: Tensor
    score: Tensor
    target: str
    maps: dict[tuple[str, str], Tensor] = field(default_factory=dict)
    figures: dict[str, Tensor] = field(default_factory=dict)
    size: tuple[int, ...] = ()
    cancelled: dict[tuple[str, str], Tensor] = field(default_factory=dict)

    def on_image(self, method: str, layer: str) -> tuple[Tensor, Tensor]:
        """Map on the image grid as it is shown: (B, 1, *size) in [0, 1], and which samples' maps are empty, (B,)."""
        if (method, layer) not in self.maps:
            raise KeyError(f"no map {(method, layer)}; there are {sorted(self.maps)}")
        return scale_maps(upsample(self.maps[method, layer], self.size))


def explain(
    model: nn.Module,
    x: Tensor,
    method: str | Sequence[str] = "gradcam",
    layers: str | Sequence[str] | None = None,
    target: Target | str | int | Sequence[int] | Tensor | None = None,
    *,
    head: str | None = None,
    classes: Classes | None = None,
    forward_kwargs: Mapping[str, Any] | None = None,
    foreground: Tensor | None = None,
    foreground_kwarg: str | None = None,
    aliases: Mapping[str, str] | None = None,
    aggregate: str | None = None,
    signed: bool = False,
    cancelled: str = "error",
    batch_size: int | None = None,
    options: Mapping[str, Mapping[str, Any]] | None = None,
    reshape_transform: ToMap | None = None,
) -> Explanation:
    """Explain a batch by one or several methods.

    All class activation maps of all layers share one forward and one backward pass. The network is left as it was.

    Args:
        model: network whose `forward(x, **forward_kwargs)` returns a tensor, or several in a dictionary, tuple, list or
            dataclass, of which `head` or the target names one; for "evidence" see `evidence_pass`.
        x: input (B, C, *spatial), 2D or 3D; every sample is explained as if it were alone.
        method: one or several of `METHODS`, or of `TRANSFORMER_METHODS`.
        layers: dotted names or aliases for the methods that explain layers; None chooses one by `default_layer`.
        target: the explained score. A class index, or one per sample: that class's logit (of a dense output: the
            channel, over the region where it is predicted). None: each sample's top class, or channel 1 of a dense
            output. An index or None costs one forward pass more, to see what the network puts out.
            A text names output and class, "cls:glioma", see `outputs.target_of`.
        head: the explained one of several outputs, see `outputs.tensors_of`.
        classes: names of the classes, for targets by text.
        forward_kwargs: further arguments of `forward`.
        foreground: (B, 1, *spatial), non-zero inside: where the input may be changed, None: everywhere.
        foreground_kwarg: name of the argument by which `forward` takes the foreground; the perturbing methods need it
            for a network that otherwise reads its foreground off the image.
        aliases: further layer aliases.
        aggregate: "mean", "max" or "product": further map per method over all layers, see `combine_maps`.
        signed: keep values that speak against the target.
        cancelled: see `cam_pass`.
        batch_size: perturbed copies in one pass; None: what suits the device.
        options: method: its further arguments, for example {"occlusion": {"window": 32}}; for the methods of
            `cam.METHODS` under "cam", those of `cam_pass`. Those of a method are also for it with frozen statistics.
        reshape_transform: see `cam_pass`.

    Returns:
        prediction and maps, in the order of `method`.

    Raises:
        LayerError: for a layer that does not exist or cannot be explained.
        ValueError: for images that are no floating point (B, C, *spatial), are not finite, or that the network fails
            on; for an unknown method, layers where no method explains any, an aggregate of signed maps or of a
            single layer, or options for a method that is not asked for.
    """
    methods = [method] if isinstance(method, str) else list(method)
    names = layers if layers is None or isinstance(layers, str) else list(layers)
    _check(methods, names, aggregate, signed, options or {})
    _check_images(x)
    extra = dict(options or {})
    kwargs = dict(forward_kwargs or {})
    model = unwrapped(model)
    if isinstance(target, str):
        named_head, target = target_of(target, classes)
        if head is not None and named_head not in (None, head):
            raise ValueError(f"head {head!r} is given, but the target names {named_head!r}; give it once")
        head = named_head if head is None else head
    with selecting(model, head), _one_sentence(model, x):
        arguments = _with_foreground(kwargs, foreground, foreground_kwarg)
        aim = _target(model, x, target, arguments)
        common: dict[str, Any] = {"forward_kwargs": kwargs, "signed": signed}
        reshaping = {"reshape_transform": reshape_transform}
        changing: dict[str, Any] = {
            **common,
            "foreground": foreground,
            "foreground_kwarg": foreground_kwarg,
            "batch_size": batch_size,
        }
        passes: dict[str, cam.CamPass] = {}
        cams = [name for name in methods if name in cam.METHODS]
        if cams:
            at_layers = {**common, **reshaping, "forward_kwargs": arguments, "aliases": aliases, "cancelled": cancelled}
            with_layers = {**at_layers, **extra.get("cam", {})}
            shared = cam.cam_pass(model, x, names, aim, cams, **with_layers)
            passes |= dict.fromkeys(cams, shared)
        relevances = [name for name in methods if name in LRP_METHODS]
        if relevances:
            handed_back = lrp(model, x, names, aim, arguments, aliases, signed, reshape_transform, relevances)
            passes |= dict.fromkeys(relevances, handed_back)
        for name in methods:
            if name == "scorecam":
                passes[name] = scorecam(
                    model, x, names, aim, aliases=aliases, **{**changing, **reshaping, **extra.get(name, {})}
                )
            elif name == ROLLOUT:
                passes[name] = attention_rollout(model, x, aim, arguments, reshape_transform)
            elif name == "evidence":
                if not isinstance(aim, LogitTarget):
                    raise ValueError(f"method 'evidence' explains class logits; the target {aim.name} is none of these")
                passes[name] = evidence_pass(model, x, aim, arguments, signed)
            elif name in PIXEL_METHODS:
                passes[name] = PIXEL_METHODS[name](model, x, aim, **{**changing, **_options_of(name, extra)})
    first = passes[methods[0]]
    result = Explanation(first.output, first.score, aim.name, size=tuple(x.shape[2:]))
    for name in methods:
        maps = {key: value for key, value in passes[name].maps.items() if key[0] == name}
        result.maps |= maps
        noise = {key: value for key, value in passes[name].cancelled.items() if key[0] == name}
        result.cancelled |= noise
        if aggregate is not None and METHODS.get(name) == "layer":
            label = f"{aggregate}({', '.join(layer for _, layer in maps)})"
            result.maps[name, label] = combine_maps(list(maps.values()), result.size, aggregate)
            if noise:
                each = torch.stack(list(noise.values()))
                result.cancelled[name, label] = each.any(0) if aggregate == "product" else each.all(0)
        part = passes[name]
        if isinstance(part, IntegratedGradientsPass):
            result.figures[f"{name}_completeness_error"] = part.completeness_error
            result.figures[f"{name}_relative_error"] = part.relative_error
    return result


def _check(
    methods: Sequence[str],
    layers: str | Sequence[str] | None,
    aggregate: str | None,
    signed: bool,
    options: Mapping[str, Any],
) -> None:
    known_methods = {**METHODS, **TRANSFORMER_METHODS}
    unknown = [name for name in methods if name not in known_methods]
    if unknown or not methods:
        raise ValueError(f"unknown method(s) {unknown}; expected one or several of {sorted(known_methods)}")
    if layers is not None and not any(known_methods[name] == "layer" for name in methods):
        explaining = [name for name, kind in METHODS.items() if kind == "layer"]
        raise ValueError(
            f"layers {layers!r} are given, but {', '.join(methods)} explains none; leave them out, or ask for one of "
            f"{', '.join(explaining)}"
        )
    without = ("evidence", *LRP_METHODS, ROLLOUT)
    known = {"cam" if name in cam.METHODS else name for name in methods if name not in without}
    known |= {without_statistics(name) for name in known}
    stray = sorted(set(options) - known)
    if stray:
        raise ValueError(f"options for {stray}, but of the methods asked for only {sorted(known)} take options")
    if aggregate is not None:
        if aggregate not in ("mean", "max", "product"):
            raise ValueError(f"aggregate: expected 'mean', 'max' or 'product', got {aggregate!r}")
        if signed:
            raise ValueError("aggregate: maps are scaled to their maxima first, which signed maps cannot be")
        if layers is None or isinstance(layers, str) or len(layers) < 2:
            raise ValueError(f"aggregate: expected several layers, got {layers!r}")


@contextmanager
def _one_sentence(model: nn.Module, x: Tensor) -> Iterator[None]:
    """Say of a forward pass that fails what was put in, as for images of other channels than the network's."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        raise ValueError(
            f"{type(model).__name__} failed on images {tuple(x.shape)} of {x.dtype}: {str(error).splitlines()[0]}"
        ) from error


def _check_images(x: Tensor) -> None:
    if not isinstance(x, Tensor) or x.dim() < 3 or not x.is_floating_point():
        actual = f"{tuple(x.shape)} of {x.dtype}" if isinstance(x, Tensor) else type(x).__name__
        raise ValueError(f"images: expected floating point (B, C, *spatial), got {actual}")
    if not bool(torch.isfinite(x).all()):
        bad = (~torch.isfinite(x)).flatten(1).any(1).nonzero().flatten().tolist()
        raise ValueError(f"images: NaN or infinite values in sample(s) {bad}")


def _options_of(method: str, options: Mapping[str, Mapping[str, Any]]) -> Mapping[str, Any]:
    return {**options.get(without_statistics(method), {}), **options.get(method, {})}


def _with_foreground(
    kwargs: Mapping[str, Any], foreground: Tensor | None, foreground_kwarg: str | None
) -> dict[str, Any]:
    """Arguments of `forward` with the foreground among them, if it takes one."""
    if foreground_kwarg is None:
        return dict(kwargs)
    if foreground is None:
        raise ValueError(f"foreground_kwarg={foreground_kwarg!r} is given, but no foreground")
    return {**kwargs, foreground_kwarg: foreground}


def _target(
    model: nn.Module,
    x: Tensor,
    target: Target | int | Sequence[int] | Tensor | None,
    kwargs: Mapping[str, Any],
) -> Target:
    if isinstance(target, Target):
        return target
    with torch.no_grad(), evaluating(model):
        output = one_tensor(model, model(x.clone(), **kwargs))
    if output.dim() == 2:
        return ClassScore(target)
    if target is not None and not isinstance(target, int):
        raise ValueError(f"target: expected one channel for a dense output {tuple(output.shape)}, got {target!r}")
    channel = min(1, output.shape[1] - 1) if target is None else target
    return SegmentationRegion(channel=channel)
