"""Maps of a network that reads an image window by window: the gradient of the stitched logits, one window at a time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from monai.inferers import SlidingWindowInferer
from scipy.ndimage import gaussian_filter
from torch import Tensor, nn

from scripts.explain.cam_formulas import hirescam, layercam
from scripts.explain.grids import as_map
from scripts.explain.layers import LayerError, evaluating, frozen, refuse_quantized
from scripts.explain.maps import upsample
from scripts.explain.outputs import selecting, unwrapped
from scripts.explain.recording import default_layer, record
from scripts.explain.scores import one_tensor, plain
from scripts.explain.targets import SegmentationRegion, Target

__all__ = ["LOCAL", "Stitched", "explain_windows", "nnunet_inferer"]

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
    with torch.inference_mode(False), evaluating(network), frozen(network), selecting(network, head):
        leaves: list[Tensor] = []

        def predict(window: Tensor) -> Tensor:
            with torch.no_grad():
                found = [one_tensor(network, network(window.flip(axes))).flip(axes) for axes in flips]
                mean = torch.stack(found).mean(0)
            leaves.append(mean.float().requires_grad_())
            return leaves[-1].clone()  # stitching writes into it

        with torch.enable_grad():
            stitched = inferer(whole, predict)
            if not isinstance(stitched, Tensor):
                raise TypeError(f"the windows were stitched to a {type(stitched).__name__}; expected one tensor")
            output = stitched[crop]
            bound = target.bind(output.detach())
            score = bound(output)
            upstream = torch.autograd.grad(score.sum(), leaves)
        result = Stitched(output.detach(), score.detach())
        sums = _Sums(network, whole, names, layer, upstream, flips)
        sums.slide(inferer)
    if "gradient" in names:
        result.gradient = sums.gradient[crop]
        result.maps["gradient", INPUT] = result.gradient.abs().sum(1, keepdim=True)
    for name in names:
        if name in LOCAL:
            result.maps[name, str(sums.layer)] = sums.maps[name][crop].clamp(min=0)
    return result


class _Sums:
    """Second time through the windows: what each adds to the image's gradient and to the maps."""

    def __init__(
        self,
        network: nn.Module,
        whole: Tensor,
        names: Sequence[str],
        layer: str | None,
        upstream: Sequence[Tensor],
        flips: Sequence[tuple[int, ...]],
    ) -> None:
        self.network, self.whole, self.layer, self.flips = network, whole, layer, flips
        self.upstream, self.count = list(upstream), 0
        self.gradient = torch.zeros_like(whole, dtype=torch.float32)
        self.maps = {name: torch.zeros_like(whole[:, :1], dtype=torch.float32) for name in names if name in LOCAL}

    def slide(self, inferer: SlidingWindowInferer) -> None:
        """Through the same windows in the same order."""
        again = SlidingWindowInferer(
            inferer.roi_size, inferer.sw_batch_size, inferer.overlap, inferer.mode, inferer.sigma_scale, with_coord=True
        )
        with torch.enable_grad():
            again(self.whole, self._add)

    def _add(self, window: Tensor, places: Sequence[Sequence[slice]]) -> Tensor:
        given = self.upstream[self.count]
        self.count += 1
        for axes in self.flips:
            image = window.detach().flip(axes).clone().requires_grad_()
            self.layer = self.layer or (default_layer(self.network, image[:1], dense=True) if self.maps else None)
            with record(self.network, [self.layer] if self.layer and self.maps else [], none=True) as recorder:
                output = one_tensor(self.network, self.network(image.clone()))
            recorder.check()
            inputs = [image, *(recorder.activations[name] for name in recorder.layers)]
            found: Sequence[Any] = torch.autograd.grad(
                output, inputs, (given / len(self.flips)).flip(axes).to(output), allow_unused=True
            )
            self._place(self.gradient, found[0], places, axes)
            for name in recorder.layers:
                if found[1] is None:
                    raise LayerError(f"the stitched score does not depend on layer {name!r}")
                to_map = as_map(self.network, name, recorder.activations[name], image)
                pair = [to_map(t.detach()).float() for t in (recorder.activations[name], found[1])]
                for method, sums in self.maps.items():
                    self._place(sums, upsample(LOCAL[method](*pair), image.shape[2:]), places, axes)
        return given.detach().clone()

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
