"""A network of patches on a volume of any size: windows, stitched maps, and the class logit of the stitched evidence.

Each window goes through the network as a patch of training does, with the statistics of its own head in every
normalization. Segmentation logits and evidence are averaged with Gaussian weights; the class logit is the head's
pooling of the *stitched* evidence over all cells of the head, so that a volume has one verdict and one map, which agree
by construction. Windows without a head are not computed. What is kept at once is the outputs on the volume's grid and
one window's activations.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from monai.inferers import sliding_window_inference
from torch import nn

__all__ = ["OVERLAP", "WindowOutputs", "larger", "stitched"]

OVERLAP = 0.5  # of neighboring windows
# Outputs by name of a window's image (1, C, *window) and head (1, 1, *window), and where in the batch it was cut out.
Place = tuple[slice, ...]
WindowOutputs = Callable[[torch.Tensor, torch.Tensor, Place], Mapping[str, torch.Tensor]]


def larger(size: Sequence[int], window: Sequence[int] | None) -> bool:
    """Whether an image of a spatial size does not go through a network of patches in one piece."""
    return bool(window) and any(n > w for n, w in zip(size, window or (), strict=True))


def evidence_stride(network: Any) -> list[int]:
    """Voxels of the image a cell of the evidence, by axis."""
    first = len(network.level_strides) - network.evidence_levels
    return [math.prod(axis) for axis in zip(*network.level_strides[: first + 1], strict=True)]


def window_words(network: Any) -> str:
    """The size of a network's window in words: "128 x 128 x 128"."""
    return " x ".join(map(str, network.window))


def overlaps(window: Sequence[int], stride: Sequence[int], overlap: float) -> list[float]:
    """The overlap of windows by axis for which they start on multiples of the network's total stride.

    >>> [int(w * (1 - o)) for w, o in zip([32, 48], overlaps([32, 48], [8, 16], 0.5))]
    [16, 16]
    """
    if not 0 <= overlap < 1:
        raise ValueError(f"overlap of windows is 0 or more and less than 1, got {overlap}")
    steps = [max(s, int(w * (1 - overlap)) // s * s) for w, s in zip(window, stride, strict=True)]
    return [max(0.0, 1 - (step + 0.5) / w) for step, w in zip(steps, window, strict=True)]  # MONAI rounds the step down


def hooked(network: nn.Module) -> bool:
    """Whether hooks are set on a network's layers, which see each of several passes of one image."""
    return any(module._forward_hooks for name, module in network.named_modules() if name)


def check_size(size: list[int], total_stride: list[int]) -> None:
    """Refuse an image (H, W[, D]) that the network's strides do not divide; in TorchScript as well.

    Raises:
        ValueError: names the size and the stride.
    """
    for axis, stride in enumerate(total_stride):
        if size[axis] % stride != 0:
            raise ValueError(
                f"spatial size {size} is not a multiple of the total stride {total_stride}; pad the image with zeros"
            )


def stitched(
    network: Any,
    x: torch.Tensor,
    foreground: torch.Tensor | None = None,
    segmentation: bool = True,
    classification: bool = True,
    overlap: float = OVERLAP,
    window_outputs: WindowOutputs | None = None,
) -> dict[str, torch.Tensor]:
    """What `MultiTaskDynUNet.multitask` returns, of a volume that is larger than the network's window.

    Args:
        network: with a ``window`` and an evidence head.
        x: (B, C, X, Y[, Z]), air exactly 0, of any size that is a multiple of the total stride.
        foreground, segmentation, classification: see `MultiTaskDynUNet.multitask`.
        overlap: of neighboring windows, 0 or more and less than 1.
        window_outputs: what a window with a head puts out, in place of the network's own outputs of it; hooks are its
            own matter.

    Raises:
        ValueError: when the size is no multiple of the stride, the volume has no head, or hooks are set on layers: what
            they see is a window, and a map made of it would be that of the last one.
    """
    if window_outputs is None and hooked(network):
        raise ValueError(
            f"layers of a network of patches ({window_words(network)}) see one window at a time, not the volume: "
            "explain it by its evidence map or by class activation maps of layers named, or give one patch"
        )
    window = list(network.window)
    check_size(list(x.shape[2:]), network.total_stride)
    size = x.shape[2:]
    inside = network.foreground_of(x) if foreground is None else (foreground != 0).to(x.dtype)
    if bool((inside.flatten(1).amax(dim=1) == 0).any()):
        raise ValueError("an image has no foreground: all its pixels are exactly 0 (air); check the file")
    outputs = [*(["seg"] if segmentation else []), *(["evidence"] if classification else [])]
    cells = [w // s for w, s in zip(window, evidence_stride(network), strict=True)]

    def own_outputs(image: torch.Tensor, mask: torch.Tensor, _place: Place) -> Mapping[str, torch.Tensor]:
        return network.multitask(image, mask, segmentation, classification)

    outputs_of = window_outputs or own_outputs

    def predict(windows: torch.Tensor, places: list[list[slice]]) -> tuple[torch.Tensor, ...]:
        """Outputs of a window; of one without a head those of air."""
        masked = foreground is not None
        image, mask = (windows[:, :-1], windows[:, -1:]) if masked else (windows, network.foreground_of(windows))
        if bool(mask.any()):
            predictions = outputs_of(image, mask, (places[0][0], *places[0][2:]))
            return tuple(predictions[name].float() for name in outputs)
        result = {}
        if segmentation:
            result["seg"] = network.air_of(image.new_zeros((len(image), network.out_channels, *window)).float())
        if classification:
            result["evidence"] = image.new_zeros((len(image), network.num_classes, *cells)).float()
        return tuple(result[name] for name in outputs)

    whole = x if foreground is None else torch.cat([x, inside], dim=1)  # not copied without need
    # Air behind the end of an axis that is shorter than the window: MONAI would put it on both sides, off the stride.
    missing = [max(0, w - n) for w, n in zip(window, size, strict=True)]
    if any(missing):
        whole = nn.functional.pad(whole, [width for extra in reversed(missing) for width in (0, extra)])
    merged: Any = sliding_window_inference(
        whole,
        window,
        1,
        predict,
        overlap=overlaps(window, network.total_stride, overlap),
        mode="gaussian",
        with_coord=True,
    )
    result = dict(zip(outputs, merged if isinstance(merged, (tuple, list)) else [merged], strict=True))
    for name, stride in (("seg", [1] * len(window)), ("evidence", evidence_stride(network))):
        if name in result and any(missing):
            box = (slice(0, n // s) for n, s in zip(size, stride, strict=True))
            result[name] = result[name][(slice(None), slice(None), *box)]
    if classification:
        pool: Any = nn.functional.max_pool3d if x.ndim == 5 else nn.functional.max_pool2d
        mask = pool(inside, evidence_stride(network))
        evidence = result["evidence"] * mask
        result |= {"cls": network.moved(network.head.of_evidence(evidence, mask)), "evidence": evidence}
    return result
