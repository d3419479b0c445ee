"""Test-time mirroring: mask and evidence averaged over mirrored images, each turned back first.

The class logits are the head's pooling of the averaged evidence, so that there is one verdict and one map, as without.
Of a network that takes a volume in windows each window is mirrored, as nnU-Net does, and what is stitched is the means.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import combinations
from typing import Any

import torch
from torch import nn

from scripts.networks.windows import hooked

__all__ = ["applied", "in_one_piece", "notes", "of_mean_probability"]


def applied(network: Any, axes: Sequence[int] | None) -> Any:
    """The network, whose answers are from now on means over mirrored images; as it is where no axis is given.

    Args:
        network: a `MultiTaskDynUNet` with an evidence head.
        axes: spatial axes of the network's input, counted from 0; the mean is over all their combinations, 2, 4 or 8.

    Raises:
        ValueError: when an axis is not there or given twice, or the network has no evidence to average.

    Example:
        >>> from scripts.networks.multitask_dynunet import MultiTaskDynUNet
        >>> net = MultiTaskDynUNet(2, 1, 2, [3, 3, 3], [1, 2, 2], [2, 2], filters=[4, 8, 16]).eval()
        >>> x = torch.rand(1, 1, 32, 32) + 0.1
        >>> evidence = applied(net, [0])(x, output="evidence")
        >>> torch.allclose(net(x.flip(2), output="evidence").flip(2), evidence, atol=1e-5)
        True
    """
    if not axes:
        return network
    if not getattr(network, "has_evidence", False) or not hasattr(network, "mirror_axes"):
        raise ValueError(
            f"mirror_axes needs a network with an evidence head, which {type(network).__name__} here has not"
        )
    dims = network.spatial_dims
    if any(axis not in range(dims) for axis in axes) or len(set(axes)) < len(axes):
        raise ValueError(f"mirror_axes are spatial axes from 0 to {dims - 1}, each once; got {list(axes)}")
    network.mirror_axes = tuple(axes)
    return network


def notes(axes: Sequence[int] | None) -> list[str]:
    """What metrics.json says of figures that are of means over mirrored images."""
    named = ", ".join(map(str, axes or ()))
    text = (
        f"predictions are means over images mirrored along the axes {named} (mirror_axes); threshold, temperature and "
        "uncertainty are those of a network that does not mirror: its mirrored views then agree by construction"
    )
    return [text] if axes else []


def in_one_piece(
    network: Any,
    x: torch.Tensor,
    foreground: torch.Tensor | None = None,
    segmentation: bool = True,
    classification: bool = True,
) -> dict[str, torch.Tensor]:
    """What `MultiTaskDynUNet.multitask` returns of an image that is not larger than its window; arguments as there.

    Raises:
        ValueError: when the network mirrors and hooks are set on its layers: they see mirrored images too.
    """
    if not network.mirror_axes:
        return network.outputs(*network.encode(x, foreground), segmentation, classification)
    if hooked(network):
        raise ValueError(
            "layers of a network with mirror_axes see mirrored images too, and a map made of them would be that of the "
            "last one: explain it without mirror_axes, or by its evidence"
        )
    seg: list[torch.Tensor] = []
    evidence: list[torch.Tensor] = []
    inside = x
    for axes in _flips(network.mirror_axes):
        features, masks = network.encode(x.flip(axes), None if foreground is None else foreground.flip(axes))
        outputs = network.outputs(features, masks, segmentation, classification)
        seg += [outputs["seg"].flip(axes)] if segmentation else []
        evidence += [outputs["evidence"].flip(axes)] if classification else []
        inside = inside if axes else masks[len(features) - network.evidence_levels]
    result = {"seg": of_mean_probability(seg, network.nested)} if segmentation else {}
    if classification:
        mean = torch.stack(evidence).mean(dim=0)
        result |= {"cls": network.moved(network.head.of_evidence(mean, inside)), "evidence": mean}
    return result


def of_mean_probability(logits: Sequence[torch.Tensor], nested: bool) -> torch.Tensor:
    """Logits whose probabilities are the mean of those of several, (B, C, ...) each.

    Args:
        logits: of the same shape.
        nested: each channel has a sigmoid; else a softmax is over all.

    >>> of_mean_probability([torch.tensor([[0.0]]), torch.tensor([[50.0]])], nested=True).sigmoid()
    tensor([[0.7500]])
    """
    several = torch.stack(list(logits))
    if nested:
        log = nn.functional.logsigmoid
        return torch.logsumexp(log(several), dim=0) - torch.logsumexp(log(-several), dim=0)
    return torch.logsumexp(torch.log_softmax(several, dim=2), dim=0) - math.log(len(several))


def _flips(axes: Sequence[int]) -> list[tuple[int, ...]]:
    """Every set of spatial axes as axes of (B, C, *spatial), the empty one first."""
    dims = [axis + 2 for axis in axes]
    return [chosen for count in range(len(dims) + 1) for chosen in combinations(dims, count)]
