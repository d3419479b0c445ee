"""Activations and gradients of a volume that a network answers for in windows, on the volume's grid.

Such a network has ``in_windows(x)``; ``of_window(image, mask, output)``, what it puts out of one window; and
``of_windows(x, window_outputs, ...)``, its output stitched of what a function makes of each window.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from monai.data.utils import compute_importance_map
from torch import Tensor, nn

from scripts.explain.recording import record
from scripts.explain.scores import checked_score
from scripts.explain.targets import Target

__all__ = ["answers_in_windows", "window_pass"]


def answers_in_windows(model: nn.Module, x: Tensor) -> bool:
    """Whether a network is one that answers for images of this size in windows."""
    in_windows = getattr(model, "in_windows", None)
    return in_windows is not None and bool(in_windows(x))


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
    places: list[tuple[slice, ...]] = []
    leaves: list[Tensor] = []

    def keep(image: Tensor, mask: Tensor, place: tuple[slice, ...]) -> dict[str, Tensor]:
        with torch.no_grad():
            ((name, value),) = model.of_window(image, mask, output_name).items()
        leaves.append(value.float().requires_grad_())
        places.append(place)
        return {name: leaves[-1].clone()}  # stitched in place

    output = model.of_windows(x, keep, **kwargs)
    score = checked_score(model, target, output)
    upstream = torch.autograd.grad(score.sum(), leaves)
    leaves.clear()
    window = [side.stop - side.start for side in places[0][1:]]
    volume = [max(place[axis].stop for place in places) for axis in range(1, x.dim() - 1)]
    volume = [max(n, extent) for n, extent in zip(x.shape[2:], volume, strict=True)]
    gathered: dict[str, _OnVolume] = {}
    coming = iter(zip(places, upstream, strict=True))

    def follow(image: Tensor, mask: Tensor, place: tuple[slice, ...]) -> dict[str, Tensor]:
        _, above = next(coming)
        with record(model, layers, aliases) as recorder:
            ((name, value),) = model.of_window(image, mask, output_name).items()
        gradients = recorder.gradients((value.float() * above).flatten(1).sum(1))
        for layer, gradient in gradients.items():
            activation = recorder.activations[layer]
            if layer not in gathered:
                gathered[layer] = _OnVolume(volume, window, activation, len(x))
            gathered[layer].add(place, activation, gradient)
        return {name: value.detach()}

    model.of_windows(x, follow, **kwargs)
    made = {layer: values.finished(x.shape[2:]) for layer, values in gathered.items()}
    activations, gradients = ({layer: pair[k] for layer, pair in made.items()} for k in (0, 1))
    return output.detach(), score.detach(), activations, gradients
