"""Inference: every output of the network from one forward pass over a picture, a volume or a stack of slices."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from monai.inferers import Inferer
from torch import Tensor

from scripts.inference.backends import OnnxNetwork
from scripts.networks.multitask_dynunet import MultiTaskDynUNet
from scripts.networks.regions import is_nested, mask_threshold, region_probability
from scripts.networks.windows import larger

# What `MultiTaskDynUNet.encode` returns, or that of `OnnxNetwork`.
Encoded = tuple[list[Tensor], list[Tensor]] | tuple[list[Tensor], list[Tensor], Any]
# Scores (N, ...) by name of slices (N, C, *size), which the network has encoded already or not.
SliceScorer = Callable[[Tensor, Any, Encoded | None], dict[str, Tensor]]
# Told of slices done and of all.
Progress = Callable[[int, int], None]


def spatial_dims(network: Any) -> int:
    """2 or 3: how many spatial axes a network takes, read off its convolutions; scripted networks too."""
    return max(parameter.ndim for parameter in network.parameters()) - 2


def input_channels(network: Any) -> int:
    """How many channels a network takes, read off its first convolution."""
    return next(parameter for parameter in network.parameters() if parameter.ndim > 2).shape[1]


def tumor_evidence(logits: Tensor, evidence: Tensor, temperature: Tensor | float) -> Tensor:
    """Evidence for any tumor (B, 1, *grid): of its classes, weighted by their calibrated shares, less that of none.

    Args:
        logits: (B, K) of the classes.
        evidence: (B, K, *grid) by class.
        temperature: of the network.
    """
    share = torch.softmax(logits[:, 1:] / temperature, dim=1)
    share = share.view(*share.shape, *[1] * (evidence.ndim - 2))
    return (share * evidence[:, 1:]).sum(dim=1, keepdim=True) - evidence[:, :1]


class MultiTaskInferer(Inferer):
    """Runs the network once a slice, in batches, and returns segmentation, calibrated probabilities and evidence.

    Args:
        batch_size: slices in one pass.
        scorer: scores of every slice beside the prediction, such as whether it is like the training images.

    Example:
        >>> from scripts.networks.multitask_dynunet import MultiTaskDynUNet
        >>> net = MultiTaskDynUNet(2, 1, 2, [3, 3, 3], [1, 2, 2], [2, 2], filters=[4, 8, 16]).eval()
        >>> result = MultiTaskInferer()(torch.rand(1, 1, 32, 32, 5) + 0.1, net)
        >>> {name: tuple(value.shape) for name, value in sorted(result.items())}
        ... # doctest: +NORMALIZE_WHITESPACE
        {'class_shift': (1, 2), 'evidence': (1, 5, 1, 16, 16), 'mask_threshold': (1, 1), 'probability': (1, 5, 2),
         'seg': (1, 5, 2, 32, 32), 'temperature': (1, 1), 'threshold': (1, 1)}
    """

    def __init__(self, batch_size: int = 8, scorer: SliceScorer | None = None) -> None:
        super().__init__()
        self.scorer = scorer
        if batch_size < 1:
            raise ValueError(f"batch_size is at least 1, got {batch_size}")
        self.batch_size = batch_size

    @torch.no_grad()
    def __call__(
        self, inputs: Tensor, network: Any, *args: Any, progress: Progress | None = None, **kwargs: Any
    ) -> dict[str, Tensor]:
        """Infer.

        Args:
            inputs: (B, C, *size), or (B, C, *size, S) with a stack of slices last, from `scripts.inference.scans`.
            network: a `MultiTaskDynUNet`, or its TorchScript form.
            progress: called before each pass with the slices done and in all.

        Returns:
            "seg" (B, S, 2, *size) probabilities in [0, 1]; "probability" (B, S, K) of each class, class 0 "no tumor";
            "threshold" of tumor probability and "temperature", (B, 1); "evidence" (B, S, 1, *grid), positive where the
            image speaks for a tumor (absent without an evidence head); "class_shift" (B, K), of a prevalence, see
            `scripts.measures.prevalence`, and "mask_threshold" (B, R) of the probability of each region (neither of
            older TorchScript). S is 1 for a picture or a whole volume. Evidence
            of the tumor classes is weighted by their calibrated probability among them, so it is the map of the
            calibrated log-odds of any tumor, times the temperature. Of a network of several regions "regions"
            (B, S, R, *size) holds the probability of each, and "seg" is of the first, the tumor. All float32, on the
            device of the input. The scores stand beside them, (B, S, ...).
        """
        images, (batch, stack) = _images(inputs, network)
        parts: list[dict[str, Tensor]] = []
        for part in images.split(self.batch_size):
            if progress is not None:
                progress(len(parts) * self.batch_size, len(images))
            if self.scorer is None:
                parts.append(self.infer(part, network))
                continue
            can_encode = isinstance(network, (MultiTaskDynUNet, OnnxNetwork))
            once = can_encode and not larger(part.shape[2:], network.window)
            encoded = network.encode(part) if once else None  # for both
            parts.append({**self.infer(part, network, encoded), **self.scorer(part, network, encoded)})
        result = {name: _joined([part[name] for part in parts]).unflatten(0, (batch, stack)) for name in parts[0]}
        result["threshold"] = network.threshold.float().expand(batch, 1)
        result["temperature"] = network.temperature.float().expand(batch, 1)
        if (shift := getattr(network, "class_shift", None)) is not None:
            result["class_shift"] = shift.float().expand(batch, -1)
        if (least := mask_threshold(network)) is not None:
            result["mask_threshold"] = least.float().expand(batch, -1)
        return result

    def infer(self, images: Tensor, network: Any, encoded: Encoded | None = None) -> dict[str, Tensor]:
        """One pass over (N, C, *size): "seg" (N, 2, *size), "probability" (N, K), "evidence" (N, 1, *grid), and of
        several regions "regions" (N, R, *size).
        """
        if encoded is None or bool(getattr(network, "mirror_axes", None)):
            output = network.multitask(images)
        else:
            output = network.outputs(*encoded)
        logits = output["cls"].float()
        nested = is_nested(network)
        regions = region_probability(output["seg"], nested) if nested else None
        tumor = None if regions is None else regions[:, :1]
        result = {
            "seg": torch.softmax(output["seg"].float(), dim=1) if tumor is None else torch.cat([1 - tumor, tumor], 1),
            **({} if regions is None else {"regions": regions}),
            "probability": torch.softmax(logits / network.temperature, dim=1),
        }
        if "evidence" in output:
            result["evidence"] = tumor_evidence(logits, output["evidence"].float(), network.temperature)
        return result

    @torch.no_grad()
    def views(self, inputs: Tensor, network: Any) -> dict[str, Tensor]:
        """How the prediction changes when the image is mirrored, shifted or its contrast changed; see `VIEWS`.

        Args:
            inputs, network: as in `__call__`.

        Returns:
            "probability" (B, S, V, K) of each class in each of the V views, the image itself first; "seg_std"
            (B, S, 1, *size), standard deviation over the views of the probability of any tumor at each place.
        """
        images, shape = _images(inputs, network)
        probabilities, deviations = [], []
        for part in images.split(self.batch_size):
            tumor, classes = [], []
            for change, undo in VIEWS.values():
                output = self.infer(change(part), network)
                classes.append(output["probability"])
                tumor.append(undo(1 - output["seg"][:, :1]))
            probabilities.append(torch.stack(classes, dim=1))
            deviations.append(torch.stack(tumor).std(dim=0, correction=0))
        return {
            "probability": torch.cat(probabilities).unflatten(0, shape),
            "seg_std": torch.cat(deviations).unflatten(0, shape),
        }


def _joined(parts: list[Tensor]) -> Tensor:
    """Parts as one batch; of a single one, which may be a large volume, no copy."""
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def _images(inputs: Tensor, network: Any) -> tuple[Tensor, tuple[int, int]]:
    """(B, C, *size[, S]) as (B * S, C, *size), and (B, S)."""
    plain = inputs.as_tensor() if hasattr(inputs, "as_tensor") else inputs
    stacked = plain.ndim == spatial_dims(network) + 3
    plain = plain.movedim(-1, 1) if stacked else plain.unsqueeze(1)
    return plain.flatten(0, 1).contiguous(), (plain.shape[0], plain.shape[1])


def _mirror(x: Tensor) -> Tensor:
    return x.flip(2)


def _shift(x: Tensor, cells: int) -> Tensor:
    """Move along the first two spatial axes, air coming in: as far as the grid of the evidence is wide, or less."""
    moved = torch.zeros_like(x)
    to = slice(max(cells, 0), x.shape[2] + min(cells, 0)), slice(max(cells, 0), x.shape[3] + min(cells, 0))
    source = slice(max(-cells, 0), x.shape[2] - max(cells, 0)), slice(max(-cells, 0), x.shape[3] - max(cells, 0))
    moved[:, :, to[0], to[1]] = x[:, :, source[0], source[1]]
    return moved


def _contrast(x: Tensor, bend: float) -> Tensor:
    """Bend the gray values of the foreground, whose mean is about 0 and deviation about 1; air stays exactly 0."""
    bent = x + bend * (x * x - 1) / 2
    return torch.where(x != 0, torch.where(bent == 0, torch.full_like(bent, 1e-6), bent), x)


# What a prediction should not depend on: name to the change of the input (N, C, *size) and its undoing on the output.
VIEWS: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]] = {
    "as it is": (lambda x: x, lambda y: y),
    "mirrored": (_mirror, _mirror),
    "shifted": (lambda x: _shift(x, 2), lambda y: _shift(y, -2)),
    "shifted back": (lambda x: _shift(x, -1), lambda y: _shift(y, 1)),
    "mirrored and shifted": (lambda x: _shift(_mirror(x), 1), lambda y: _mirror(_shift(y, -1))),
    "brighter": (lambda x: _contrast(x, 0.15), lambda y: y),
    "darker": (lambda x: _contrast(x, -0.15), lambda y: y),
}
