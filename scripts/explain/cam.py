"""Class activation maps from activations and gradients: Grad-CAM, HiResCAM, Grad-CAM++ and Layer-CAM.

`cam_pass` computes any number of methods and layers with one forward and one backward pass; `GradCAM` and its
relatives have the call signature of `monai.visualize.GradCAM` and drop into MONAI code.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import monai.visualize
import torch
from monai.visualize.class_activation_maps import ModelWithHooks
from monai.visualize.visualizer import default_upsampler
from torch import Tensor, nn

from scripts.explain.cam_formulas import (
    METHODS as FORMULAS,
)
from scripts.explain.cam_formulas import (
    MIN_COHERENCE,
    gradcam,
    gradcam_plus_plus,
    gradient_coherence,
    hirescam,
    layercam,
)
from scripts.explain.grids import ToMap, as_map
from scripts.explain.layers import LayerError, evaluating, frozen, refuse_quantized, resolve_layer
from scripts.explain.maps import max_scaling
from scripts.explain.outputs import selecting, unwrapped
from scripts.explain.recording import chosen_layers, default_layer, record
from scripts.explain.scores import checked_score, one_tensor, plain, plain_values
from scripts.explain.statistics import FOLLOWED, FROZEN, STATISTICS, frozen_statistics, named
from scripts.explain.targets import ClassScore, SegmentationRegion, Target, precise
from scripts.explain.windows import answers_in_windows, window_pass

__all__ = [
    "METHODS",
    "MIN_COHERENCE",
    "CamPass",
    "GradCAM",
    "GradCAMpp",
    "HiResCAM",
    "LayerCAM",
    "cam_pass",
    "gradcam",
    "gradcam_plus_plus",
    "gradient_coherence",
    "hirescam",
    "layercam",
]

# Name of a method: (its formula, what the backward pass does with the statistics of normalizations).
METHODS: dict[str, tuple[str, str]] = {named(name, how): (name, how) for how in STATISTICS for name in FORMULAS}


@dataclass
class CamPass:
    """What one forward and one backward pass gave.

    Attributes:
        output: the network's output, detached: the prediction comes free with the maps.
        score: (B,), the explained number of each sample.
        maps: (method, layer as the caller named it): map (B, 1, *layer grid), float32, >= 0 unless signed was asked.
        cancelled: the same keys, of the maps for which it was checked: (B,), bool, whether the gradients of a sample
            cancel over space, so that its map is all zeros.
    """

    output: Tensor
    score: Tensor
    maps: dict[tuple[str, str], Tensor] = field(default_factory=dict)
    cancelled: dict[tuple[str, str], Tensor] = field(default_factory=dict, kw_only=True)


def cam_pass(
    model: nn.Module,
    x: Tensor,
    layers: str | Sequence[str] | None,
    target: Target,
    methods: str | Sequence[str] = ("gradcam", "hirescam", "gradcam++", "layercam"),
    forward_kwargs: Mapping[str, Any] | None = None,
    aliases: Mapping[str, str] | None = None,
    signed: bool = False,
    retain_graph: bool = False,
    cancelled: str = "error",
    foreground: Tensor | None = None,
    reshape_transform: ToMap | None = None,
) -> CamPass:
    """Maps of several methods at several layers, with one forward and one backward pass in evaluation mode.

    Methods with frozen statistics ("hirescam_frozen", see `statistics.frozen_statistics`) share a pass of their own.

    The network is left as it was: modes, `requires_grad`, `.grad`, buffers, hooks. It may be frozen, and the call may
    stand under `torch.no_grad`, `torch.inference_mode` or `torch.autocast`. Of a network that answers for a volume in
    windows, maps are of the volume, see `windows.window_pass`.

    Args:
        model: network whose `forward(x, **forward_kwargs)` returns one tensor.
        x: input (B, C, *spatial); every sample is explained as if it were alone.
        layers: dotted names or aliases; None chooses one, see `recording.default_layer`, and uses its name as key.
        target: the explained score.
        methods: of `METHODS`.
        forward_kwargs: further arguments of `forward`.
        aliases: further layer aliases.
        signed: leave out the final ReLU: values below 0 speak against the target.
        retain_graph: keep the graph of the forward pass.
        cancelled: what Grad-CAM does at a layer whose gradients cancel over space, see `gradient_coherence`: "error",
            or "empty" for a map of zeros. Told for float32 and float64 gradients only; half precision blurs it.
        foreground: (B, 1, *image grid), non-zero inside; Grad-CAM then averages gradients over the cells with any
            foreground instead of all: that does not cancel before such a norm, and more air does not change it.
        reshape_transform: function of a layer's output that returns (B, C, *grid), in place of the rules of
            `grids.as_map` for tokens and channels-last maps.

    Raises:
        LayerError: for a layer that cannot be explained, see `layers.record`, has no spatial axes, or no Grad-CAM.
        ValueError: for an unknown method, or a target that does not fit the output.
        FloatingPointError: when a gradient or a map is not finite.
    """
    methods = [methods] if isinstance(methods, str) else list(methods)
    for method in methods or [""]:
        if method not in METHODS:
            raise ValueError(f"unknown method {method!r}; expected some of {sorted(METHODS)}")
    if cancelled not in ("error", "empty"):
        raise ValueError(f"cancelled: expected 'error' or 'empty', got {cancelled!r}")
    refuse_quantized(model)
    with torch.inference_mode(False), torch.enable_grad(), evaluating(model), frozen(model):
        x = plain(x)
        kwargs = plain_values(forward_kwargs)
        names = chosen_layers(model, x, layers, kwargs, dense=isinstance(target, SegmentationRegion))
        result: CamPass | None = None
        for how in dict.fromkeys(METHODS[method][1] for method in methods):
            with frozen_statistics(model) if how == FROZEN else nullcontext():
                if answers_in_windows(model, x):
                    output, score, activations, gradients = window_pass(model, x, names, target, kwargs, aliases)
                else:
                    with record(model, names, aliases) as recorder:
                        output = one_tensor(model, model(x.clone(), **kwargs))  # the first layer may work in place
                    score = checked_score(model, target, output)
                    recorder.check()
                    activations, gradients = recorder.activations, recorder.gradients(score, retain_graph)
                to_maps = {
                    name: as_map(model, name, activation, x, reshape_transform)
                    for name, activation in activations.items()
                }
            if result is None:
                result = CamPass(output.detach(), score.detach())
            chosen = [method for method in methods if METHODS[method][1] == how]
            for name in names:
                layer = resolve_layer(model, name, aliases)
                activation, gradient = (to_maps[layer](t.detach()) for t in (activations[layer], gradients[layer]))
                made = _maps(chosen, activation, gradient, name, cancelled, foreground)
                for method, (cam, noise) in made.items():
                    result.maps[method, name] = cam if signed else cam.clamp(min=0)
                    if noise is not None:
                        result.cancelled[method, name] = noise
    assert result is not None  # methods are not empty
    keys = [(method, name) for name in names for method in methods]
    result.maps = {key: result.maps[key] for key in keys}
    return result


def _maps(
    methods: Sequence[str], activation: Tensor, gradient: Tensor, layer: str, cancelled: str, foreground: Tensor | None
) -> dict[str, tuple[Tensor, Tensor | None]]:
    """Signed map of each method at a layer, and which samples of it are cancelled where that was checked."""
    activations, grads = precise(activation), precise(gradient)
    half = activation.dtype in (torch.float16, torch.bfloat16)
    result: dict[str, tuple[Tensor, Tensor | None]] = {}
    for method in methods:
        noise, formula = None, METHODS[method][0]
        if formula == "gradcam" and foreground is not None:
            cam = gradcam(activations, grads, _cells(foreground, grads)).float()
        else:
            cam = FORMULAS[formula](activations, grads).float()
            if formula == "gradcam" and not half:
                cam, noise = _without_cancelled(cam, grads, layer, cancelled)
        if not bool(torch.isfinite(cam).all()):
            raise FloatingPointError(f"{method} at layer {layer!r} gave values that are not finite")
        result[method] = cam, noise
    return result


def _cells(foreground: Tensor, like: Tensor) -> Tensor:
    """Cells of a layer's grid with any foreground, (B, 1, *layer grid)."""
    pool: Any = nn.functional.adaptive_max_pool3d if like.dim() == 5 else nn.functional.adaptive_max_pool2d
    return pool((foreground.as_subclass(Tensor) != 0).to(like.dtype), tuple(like.shape[2:]))


def _without_cancelled(cam: Tensor, gradients: Tensor, layer: str, cancelled: str) -> tuple[Tensor, Tensor]:
    coherence = gradient_coherence(gradients)
    noise = coherence < MIN_COHERENCE
    if bool(noise.any()) and cancelled == "error":
        raise LayerError(
            f"no Grad-CAM at layer {layer!r}: the gradients of every channel cancel over space (coherence "
            f"{float(coherence[noise].max()):.1e}), so that their mean is rounding noise; a normalization behind the "
            "layer does this. Use hirescam or layercam there, gradcam with frozen statistics, or the layer behind it"
        )
    return cam.masked_fill(noise.reshape(-1, *[1] * (cam.dim() - 1)), 0.0), noise.flatten()


class _StockScore(ClassScore):
    """What `monai.visualize.GradCAM` differentiates: a class logit, or a dense output's channel summed over space."""

    def __call__(self, output: Tensor) -> Tensor:
        if output.dim() == 2:
            return super().__call__(output)
        if self.class_idx is None:
            raise ValueError(
                f"class_idx is None, which has no meaning for a dense output {tuple(output.shape)}: give a channel, or "
                "a scripts.explain.targets.SegmentationRegion"
            )
        return super().__call__(precise(output).flatten(2).sum(2))


class GradCAM(monai.visualize.GradCAM):
    """Grad-CAM with the call signature of `monai.visualize.GradCAM`, and without its faults.

    Batches equal one sample at a time; no hook outlives a call; `.grad`, modes and `requires_grad` are left alone;
    frozen networks work; no gradient of an earlier call is reused; a wrong layer raises; maps are detached; and the
    default postprocessing keeps 1 = strongest, where MONAI's `default_normalizer` maps the strongest to 0.

    Source: Selvaraju et al., Grad-CAM, ICCV 2017, arXiv:1610.02391.

    Args:
        nn_module: network, or MONAI's `ModelWithHooks` around one, of which the network is taken.
        target_layers: a layer or several, dotted names or aliases; None chooses one at the first call.
        upsampler: function of the image's spatial size that returns a function of the map.
        postprocessing: function of the upsampled map (B, 1, *spatial).
        register_backward: accepted because MONAI's class has it; a Grad-CAM without gradients is an error.
        cancelled: "error" or "empty" at a layer whose gradients cancel over space, see `cam_pass`.
        statistics: "followed" for the exact gradient, or "frozen", see `statistics.frozen_statistics`.
        head: the explained one of several outputs, see `outputs.tensors_of`.
        reshape_transform: see `cam_pass`.

    Raises:
        LayerError: for an unknown layer.

    >>> net = monai.networks.nets.DenseNet121(spatial_dims=2, in_channels=1, out_channels=3)
    >>> cam = GradCAM(net, target_layers="class_layers.relu")
    >>> cam(torch.rand(2, 1, 64, 64), class_idx=torch.tensor([0, 2])).shape
    torch.Size([2, 1, 64, 64])
    """

    method = "gradcam"

    def __init__(
        self,
        nn_module: nn.Module | ModelWithHooks,
        target_layers: str | Sequence[str] | None = None,
        upsampler: Callable = default_upsampler,
        postprocessing: Callable = max_scaling,
        register_backward: bool = True,
        cancelled: str = "error",
        statistics: str = FOLLOWED,
        head: str | None = None,
        reshape_transform: ToMap | None = None,
    ) -> None:
        if not register_backward:
            raise ValueError("register_backward=False: there is no Grad-CAM without gradients")
        model = unwrapped(nn_module.model if isinstance(nn_module, ModelWithHooks) else nn_module)
        names = [target_layers] if isinstance(target_layers, str) else list(target_layers or [])
        self.target_layers = tuple(resolve_layer(model, name) for name in names)
        hooked = ModelWithHooks(model, self.target_layers)  # registers no hook: neither forward nor backward is asked
        super().__init__(hooked, self.target_layers, upsampler, postprocessing)
        self.cancelled = cancelled
        self.head = head
        self.reshape_transform = reshape_transform
        self.method_name = named(self.method, statistics)

    def feature_map_size(self, input_size, device="cpu", layer_idx=-1, **kwargs):
        """Shape (B, 1, *layer grid) of the map for an input of shape `input_size`, by one forward pass.

        The input is made of ones: a network that reads its foreground off the image refuses one of zeros.
        """
        model, x = self.nn_module.model, torch.ones(*input_size, device=device)
        with torch.no_grad(), evaluating(model), selecting(model, self.head):
            layer = self.target_layers[layer_idx] if self.target_layers else default_layer(model, x, kwargs)
            with record(model, [layer]) as recorder:
                model(x, **kwargs)
            recorder.check()
        activation = recorder.activations[layer]
        shape = as_map(model, layer, activation, x, self.reshape_transform)(activation).shape
        return torch.Size((shape[0], 1, *shape[2:]))

    def compute_map(self, x, class_idx=None, retain_graph=False, layer_idx=-1, **kwargs):
        """Raw maps on the layer's own grid, neither upsampled nor scaled.

        Args:
            x: input (B, C, *spatial).
            class_idx: a class, a class per sample (B,), None for each sample's top class, or a target of
                `scripts.explain.targets`. For a dense output, the channel whose sum over space is explained.
            retain_graph: keep the graph of the forward pass.
            layer_idx: which of `target_layers`.
            kwargs: further arguments of the network's `forward`.

        Returns:
            (B, 1, *layer grid), float32, >= 0, larger = stronger.
        """
        target = class_idx if isinstance(class_idx, Target) else _StockScore(class_idx)
        model = self.nn_module.model
        options: dict[str, Any] = {"retain_graph": retain_graph, "cancelled": self.cancelled}
        options["reshape_transform"] = self.reshape_transform
        layer = self.target_layers[layer_idx] if self.target_layers else None
        with selecting(model, self.head):
            result = cam_pass(model, x, layer, target, self.method_name, kwargs, **options)
        ((_, layer),) = result.maps
        self.target_layers = self.target_layers or (layer,)
        return result.maps[self.method_name, layer]


class GradCAMpp(GradCAM):
    """Grad-CAM++; arguments and call as `GradCAM`, the method as `gradcam_plus_plus`.

    Source: Chattopadhyay et al., Grad-CAM++, WACV 2018, arXiv:1710.11063.
    """

    method = "gradcam++"


class HiResCAM(GradCAM):
    """HiResCAM; arguments and call as `GradCAM`, the method as `hirescam`.

    Source: Draelos and Carin, 2020, arXiv:2011.08891.
    """

    method = "hirescam"


class LayerCAM(GradCAM):
    """Layer-CAM; arguments and call as `GradCAM`, the method as `layercam`.

    Source: Jiang et al., LayerCAM, IEEE TIP 30, 2021.
    """

    method = "layercam"
