"""Maps of a network that reads an image window by window: the gradient of the stitched output, one window at a time.

All go through the windows twice (`_twice`): first for the stitched output and the gradient of the score with respect to
what each window puts out, then from there to the layers, so that the graph of one window alone is in memory.

- `explain_windows`: any dense network and an inferer of MONAI; what each window adds to the maps is summed.
- `window_pass`: a network that stitches by itself, evidence as well as logits. It has ``in_windows(x)``;
  ``of_window(image, mask, output)``, what it puts out of one window; and ``of_windows(x, window_outputs, ...)``, its
  output stitched of what a function makes of each window. Activations and gradients are those of the whole volume.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from monai.data.utils import compute_importance_map
from monai.inferers import SlidingWindowInferer
from scipy.ndimage import gaussian_filter
from torch import Tensor, nn

from scripts.explain.cam_formulas import hirescam, layercam
from scripts.explain.grids import as_map
from scripts.explain.layers import LayerError, evaluating, frozen, refuse_quantized
from scripts.explain.maps import upsample
from scripts.explain.outputs import selecting, unwrapped
from scripts.explain.recording import default_layer, record
from scripts.explain.scores import checked_score, one_tensor, plain
from scripts.explain.targets import SegmentationRegion, Target

__all__ = ["LOCAL", "Stitched", "answers_in_windows", "explain_windows", "nnunet_inferer", "window_pass"]

# Formulas that weigh each place by its own gradient: sums of those of the windows. An average over space is none.
LOCAL = {"hirescam": hirescam, "layercam": layercam}
INPUT = "input"


@dataclass
class Stitched:
    """What the windows gave together.

    Attributes:
        output: stitched logits (B, K, *spatial), detached.
        score: (B,), the explained number.
        maps: (method, layer): (B, 1, *spatial), float32, >= 0, on the image's grid. For "gradient" of "input" the sum
            over channels of the gradient's size.
        gradient: of the score by the image, (B, C, *spatial); None unless "gradient" was asked.
    """

    output: Tensor
    score: Tensor
    maps: dict[tuple[str, str], Tensor] = field(default_factory=dict)
    gradient: Tensor | None = None


def nnunet_inferer(patch_size: Sequence[int], step: float = 0.5, windows: int = 1) -> SlidingWindowInferer:
    """MONAI's sliding windows, weighted by nnU-Net's Gaussian of an eighth of the window.

    nnU-Net puts its middle on a pixel, MONAI between two. Where the image is no multiple of the step, MONAI moves the
    last window alone and nnU-Net all of them, so that the logits between windows differ a little.
    """
    size = tuple(patch_size)
    inferer = SlidingWindowInferer(size, sw_batch_size=windows, overlap=1 - step, mode="gaussian", sigma_scale=0.125)
    middle = np.zeros(size)
    middle[tuple(n // 2 for n in size)] = 1
    weight = gaussian_filter(middle, [n / 8 for n in size], mode="constant")
    weight = np.maximum(weight / weight.max(), np.min(weight[weight > 0]) / weight.max())
    inferer.roi_weight_map = torch.from_numpy(weight.astype(np.float32)).clamp(min=1e-6)
    return inferer


def _twice(
    slide: Callable[[Callable[..., Tensor]], Tensor],
    predict: Callable[..., Tensor],
    score_of: Callable[[Tensor], Tensor],
    follow: Callable[..., Tensor],
) -> tuple[Tensor, Tensor]:
    """Send an image through its windows twice.

    Args:
        slide: stitches what a function makes of each window, in the same order each time; the function has what `slide`
            cuts out.
        predict: what a window puts out, without a graph.
        score_of: (B,), of the stitched output.
        follow: has what `predict` has, and the gradient of the scores' sum with respect to what the window puts out;
            returns that again, or anything of its shape.

    Returns:
        stitched output and score, detached.
    """
    leaves: list[Tensor] = []

    def keep(*window: Any) -> Tensor:
        with torch.no_grad():
            value = predict(*window)
        leaves.append(value.float().requires_grad_())
        return leaves[-1].clone()  # stitching writes into it

    with torch.enable_grad():
        output = slide(keep)
        score = score_of(output)
        upstream = list(torch.autograd.grad(score.sum(), leaves))[::-1]
        leaves.clear()
        slide(lambda *window: follow(*window, upstream.pop()))  # each is let go with its window
    return output.detach(), score.detach()


def _flips(axes: Sequence[int]) -> list[tuple[int, ...]]:
    """Every set of spatial axes to mirror, as axes of (B, C, *spatial); the first is none."""
    return [tuple(axis + 2 for axis in chosen) for n in range(len(axes) + 1) for chosen in combinations(axes, n)]


def explain_windows(
    network: nn.Module,
    x: Tensor,
    inferer: SlidingWindowInferer,
    target: Target | int = 1,
    methods: str | Sequence[str] = "hirescam",
    layer: str | None = None,
    mirror_axes: Sequence[int] = (),
    head: str | None = None,
) -> Stitched:
    """Explain a score of the logits that a sliding window stitches together.

    The windows go through the network twice. After the first time the stitched logits, the region and the gradient of
    the score by every window's logits are known; the second time each window hands that gradient on by itself. So no
    more than one window's graph is in memory, and the maps are those of the whole computation in one piece.

    Args:
        network: whose output is dense, (B, K, *spatial).
        x: image (B, C, *spatial) as the network expects it.
        inferer: of MONAI; its predictions are weighted and stitched by itself.
        target: the explained score of the stitched logits; a number: a channel, over its predicted region.
        methods: "gradient" (by the image), and those of `LOCAL` at the layer.
        layer: dotted name; None: `default_layer` of one window.
        mirror_axes: spatial axes over which predictions are averaged as nnU-Net does: over all their combinations.
        head: the explained one of several outputs, see `outputs.tensors_of`.

    Raises:
        LayerError: for a layer that cannot be explained.
        ValueError: for an unknown method, or an axis that the image does not have.
    """
    names = [methods] if isinstance(methods, str) else list(methods)
    for name in names or [""]:
        if name not in (*LOCAL, "gradient"):
            raise ValueError(
                f"method {name!r}: expected some of {['gradient', *LOCAL]}; an average over the whole image is unknown "
                "window by window"
            )
    if any(not 0 <= axis < x.dim() - 2 for axis in mirror_axes):
        raise ValueError(f"mirror_axes {list(mirror_axes)}: the image has the spatial axes 0 to {x.dim() - 3}")
    refuse_quantized(network)
    network, flips = unwrapped(network), _flips(mirror_axes)
    target = SegmentationRegion(channel=target) if isinstance(target, int) else target
    whole = _padded(plain(x), inferer.roi_size)
    size, (before, _) = x.shape[2:], _margins(x.shape[2:], inferer.roi_size)
    crop = (slice(None), slice(None), *(slice(b, b + n) for b, n in zip(before, size, strict=True)))
    sums = _Sums(network, whole, names, layer, flips)

    def predict(window: Tensor, _places: Any) -> Tensor:
        predictions = [one_tensor(network, network(window.flip(axes))).flip(axes) for axes in flips]
        return torch.stack(predictions).mean(0)

    def slide(of_window: Callable[..., Tensor]) -> Tensor:
        stitched = placed(whole, of_window)
        if not isinstance(stitched, Tensor):
            raise TypeError(f"the windows were stitched to a {type(stitched).__name__}; expected one tensor")
        return stitched[crop]

    placed = _with_places(inferer)
    with torch.inference_mode(False), evaluating(network), frozen(network), selecting(network, head):
        output, score = _twice(slide, predict, lambda out: target.bind(out.detach())(out), sums.add)
    result = Stitched(output, score)
    if "gradient" in names:
        result.gradient = sums.gradient[crop]
        result.maps["gradient", INPUT] = result.gradient.abs().sum(1, keepdim=True)
    for name in names:
        if name in LOCAL:
            result.maps[name, str(sums.layer)] = sums.maps[name][crop].clamp(min=0)
    return result


def _with_places(inferer: SlidingWindowInferer) -> SlidingWindowInferer:
    """An inferer that slides and weighs like the given one, and tells where each window lies."""
    again = SlidingWindowInferer(
        inferer.roi_size, inferer.sw_batch_size, inferer.overlap, inferer.mode, inferer.sigma_scale, with_coord=True
    )
    again.roi_weight_map = inferer.roi_weight_map
    return again


class _Sums:
    """What each window adds to the image's gradient and to the maps."""

    def __init__(
        self,
        network: nn.Module,
        whole: Tensor,
        names: Sequence[str],
        layer: str | None,
        flips: Sequence[tuple[int, ...]],
    ) -> None:
        self.network, self.layer, self.flips = network, layer, flips
        self.gradient = torch.zeros_like(whole, dtype=torch.float32)
        self.maps = {name: torch.zeros_like(whole[:, :1], dtype=torch.float32) for name in names if name in LOCAL}

    def add(self, window: Tensor, places: Sequence[Sequence[slice]], values: Tensor) -> Tensor:
        """Add the part of one window, or of several in one batch."""
        for axes in self.flips:
            image = window.detach().flip(axes).clone().requires_grad_()
            self.layer = self.layer or (default_layer(self.network, image[:1], dense=True) if self.maps else None)
            with record(self.network, [self.layer] if self.layer and self.maps else [], none=True) as recorder:
                output = one_tensor(self.network, self.network(image.clone()))
            recorder.check()
            inputs = [image, *(recorder.activations[name] for name in recorder.layers)]
            gradients: Sequence[Any] = torch.autograd.grad(
                output, inputs, (values / len(self.flips)).flip(axes).to(output), allow_unused=True
            )
            self._place(self.gradient, gradients[0], places, axes)
            for name in recorder.layers:
                if gradients[1] is None:
                    raise LayerError(f"the stitched score does not depend on layer {name!r}")
                to_map = as_map(self.network, name, recorder.activations[name], image)
                pair = [to_map(t.detach()).float() for t in (recorder.activations[name], gradients[1])]
                for method, sums in self.maps.items():
                    self._place(sums, upsample(LOCAL[method](*pair), image.shape[2:]), places, axes)
        return values.detach().clone()

    def _place(self, sums: Tensor, part: Tensor, places: Sequence[Sequence[slice]], axes: tuple[int, ...]) -> None:
        for one, place in zip(part.detach().float().flip(axes), places, strict=True):
            sums[(place[0], slice(None), *place[2:])] += one[None]


def _margins(size: Sequence[int], window: Any) -> tuple[list[int], list[int]]:
    """Pixels to add on either side so that one window fits."""
    windows = [window] * len(size) if isinstance(window, int) else list(window)
    missing = [max(w - n, 0) for n, w in zip(size, windows, strict=True)]
    return [m // 2 for m in missing], [m - m // 2 for m in missing]


def _padded(x: Tensor, window: Any) -> Tensor:
    """Image with zeros around it where it is smaller than one window."""
    before, after = _margins(x.shape[2:], window)
    pairs = [n for b, a in zip(reversed(before), reversed(after), strict=True) for n in (b, a)]
    return F.pad(x, pairs)


def answers_in_windows(model: nn.Module, x: Tensor) -> bool:
    """Whether a network is one that answers for images of this size in windows."""
    in_windows = getattr(model, "in_windows", None)
    return in_windows is not None and bool(in_windows(x))


def window_around(inside: Tensor, size: Sequence[int]) -> tuple[slice, ...]:
    """Where a window lies around the middle of a mask, as far as the image goes.

    Args:
        inside: (*spatial), non-zero in what the window is to show.
        size: of the window.

    >>> window_around(torch.eye(10)[:, :3], [4, 8])
    (slice(0, 4, None), slice(0, 3, None))
    """
    boxes = []
    for axis, (room, wide) in enumerate(zip(inside.shape, size, strict=True)):
        hit = (inside != 0).movedim(axis, 0).flatten(1).any(dim=1).nonzero()
        middle = (int(hit[0]) + int(hit[-1]) + 1) // 2 if len(hit) else room // 2
        start = max(0, min(middle - wide // 2, room - wide))
        boxes.append(slice(start, min(room, start + wide)))
    return tuple(boxes)


class _OnVolume:
    """A layer's values in windows, gathered on the volume's grid: summed, or averaged with the stitching's weights."""

    def __init__(self, volume: Sequence[int], window: Sequence[int], like: Tensor, batch: int):
        self.strides = [w // n for w, n in zip(window, like.shape[2:], strict=True)]
        grid = [n // s for n, s in zip(volume, self.strides, strict=True)]
        weight = compute_importance_map(tuple(window), mode="gaussian", device=like.device, dtype=torch.float32)
        self.weight = nn.functional.interpolate(weight[None, None], tuple(like.shape[2:]), mode="nearest-exact")
        self.activation = torch.zeros(batch, like.shape[1], *grid, device=like.device)
        self.gradient = torch.zeros_like(self.activation)
        self.total = torch.zeros(batch, 1, *grid, device=like.device)

    def add(self, place: Sequence[slice], activation: Tensor, gradient: Tensor) -> None:
        """Add one window's values."""
        cells = (slice(p.start // s, p.stop // s) for p, s in zip(place[1:], self.strides, strict=True))
        box = (place[0], slice(None), *cells)
        self.activation[box] += self.weight * activation.detach().float()
        self.gradient[box] += gradient.float()
        self.total[box] += self.weight

    def finished(self, size: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Activation and gradient on the grid of an image of this size; 0 where there is no window with a head."""
        grid = (slice(0, n // s) for n, s in zip(size, self.strides, strict=True))
        box = (slice(None), slice(None), *grid)
        mean = torch.where(self.total > 0, self.activation / self.total, torch.zeros_like(self.activation))
        return mean[box], self.gradient[box]


def window_pass(
    model: Any,
    x: Tensor,
    layers: Sequence[str],
    target: Target,
    forward_kwargs: Mapping[str, Any],
    aliases: Mapping[str, str] | None = None,
) -> tuple[Tensor, Tensor, dict[str, Tensor], dict[str, Tensor]]:
    """Output, score, activations and gradients of layers of the whole volume, with the graph of one window at a time.

    The first pass stitches the output and takes the gradient of the score with respect to what each window puts out;
    the second goes from there to the layers, window by window. The gradient at a place is that of the score with
    respect to a change of the layer there in all windows that see it; the activation is their average with the weights
    of the stitching. Call it with gradients enabled.

    Args:
        model: network that answers in windows, in evaluation mode.
        x: (B, C, *spatial).
        layers: dotted names or aliases.
        target: the explained score of the stitched output.
        forward_kwargs: ``output`` and ``foreground`` of the network's `forward`.
        aliases: further layer aliases.

    Returns:
        output and score (B,), detached; activations and gradients by layer name, (B, C, *layer grid of the volume),
        float32.

    Raises:
        LayerError: for a layer that cannot be explained, see `recording.record`.
    """
    kwargs = {key: value for key, value in forward_kwargs.items() if key in ("output", "foreground")}
    output_name = kwargs.get("output", "seg")
    stitched_name = "seg" if output_name == "seg" else "evidence"
    gathered: dict[str, _OnVolume] = {}
    whole = list(x.shape[2:])  # and what the network fills it up to

    def predict(image: Tensor, mask: Tensor, place: tuple[slice, ...]) -> Tensor:
        whole[:] = [max(n, side.stop) for n, side in zip(whole, place[1:], strict=True)]
        ((_, value),) = model.of_window(image, mask, output_name).items()
        return value

    def follow(image: Tensor, mask: Tensor, place: tuple[slice, ...], above: Tensor) -> Tensor:
        with record(model, layers, aliases) as recorder:
            value = predict(image, mask, place)
        gradients = recorder.gradients((value.float() * above).flatten(1).sum(1))
        window = [side.stop - side.start for side in place[1:]]
        for layer, gradient in gradients.items():
            activation = recorder.activations[layer]
            if layer not in gathered:
                gathered[layer] = _OnVolume(whole, window, activation, len(x))
            gathered[layer].add(place, activation, gradient)
        return value.detach()

    def slide(of_window: Callable[..., Tensor]) -> Tensor:
        return model.of_windows(x, lambda *window: {stitched_name: of_window(*window)}, **kwargs)

    output, score = _twice(slide, predict, lambda out: checked_score(model, target, out), follow)
    made = {layer: values.finished(x.shape[2:]) for layer, values in gathered.items()}
    activations, gradients = ({layer: pair[k] for layer, pair in made.items()} for k in (0, 1))
    return output, score, activations, gradients
