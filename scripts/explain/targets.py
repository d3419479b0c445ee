"""Targets: the number per sample that is explained, as a differentiable function of the network's output."""

from __future__ import annotations

import copy
import re
from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor

__all__ = [
    "ClassMargin",
    "ClassScore",
    "LogitTarget",
    "SegmentationRegion",
    "Target",
    "TumorLogOdds",
    "named_target",
    "precise",
]


@runtime_checkable
class Target(Protocol):
    """A score per sample: anything with these members can be explained."""

    @property
    def name(self) -> str:
        """Name used in result tables and file names."""

    def __call__(self, output: Tensor) -> Tensor:
        """Score (B,), float32 or better, of the network's output; sample b's score depends on output[b] alone."""

    def bind(self, output: Tensor) -> Target:
        """Same target with what depends on the prediction (top class, predicted region) fixed to that of `output`.

        Methods that perturb the input bind first: else they would follow the class as it changes.
        """

    def take(self, index: Tensor) -> Target:
        """Target of the batch that holds the samples `index` (N,), int64, of this one, repeats allowed."""


def precise(output: Tensor) -> Tensor:
    """Plain tensor in at least float32, so that scores of half-precision networks are not rounded again."""
    output = output.as_subclass(Tensor)
    return output.float() if output.dtype in (torch.float16, torch.bfloat16) else output


def _class_logits(output: Tensor, target: str, minimum: int = 1) -> Tensor:
    """Check for logits (B, K) with at least `minimum` classes."""
    if not isinstance(output, Tensor) or output.dim() != 2 or output.shape[1] < minimum:
        shape = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
        raise ValueError(
            f"target {target} expects class logits (B, K) with K >= {minimum}, got {shape}; "
            "SegmentationRegion explains dense outputs, and ClassScore(0) a single logit"
        )
    return precise(output)


class LogitTarget:
    """Base of the targets that are functions of class logits (B, K)."""

    @property
    def name(self) -> str:
        """Name used in result tables and file names."""
        raise NotImplementedError

    def __call__(self, output: Tensor) -> Tensor:
        """Score (B,) of logits (B, K)."""
        raise NotImplementedError

    def weights(self, logits: Tensor) -> Tensor:
        """Gradient of the score with respect to the logits, (B, K), in closed form."""
        raise NotImplementedError

    def bind(self, output: Tensor) -> Target:
        """Return the target itself: nothing in it depends on the prediction."""
        return self

    def take(self, index: Tensor) -> Target:
        """Return the target itself: it is the same for every sample."""
        return self


def _check_class(index: int, classes: int, target: str) -> int:
    if not 0 <= index < classes:
        raise ValueError(f"{target}: class index {index} is not in 0..{classes - 1}: the network has {classes} classes")
    return index


class ClassScore(LogitTarget):
    """The logit of a class.

    Args:
        class_idx: one class for all samples; or one class per sample, (B,) integers; or None, which is each sample's
            own top class.

    Raises:
        TypeError: for indices that are not integers.

    >>> ClassScore(1)(torch.tensor([[0.0, 2.0], [0.0, 3.0]]))
    tensor([2., 3.])
    >>> ClassScore()(torch.tensor([[5.0, 2.0], [0.0, 3.0]]))
    tensor([5., 3.])
    """

    def __init__(self, class_idx: int | Tensor | Sequence[int] | None = None) -> None:
        self.class_idx: int | Tensor | None
        if class_idx is None or (isinstance(class_idx, int) and not isinstance(class_idx, bool)):
            self.class_idx = class_idx
            return
        index = torch.as_tensor(np.asarray(class_idx) if not isinstance(class_idx, Tensor) else class_idx)
        index = index.as_subclass(Tensor)
        if index.is_floating_point() or index.is_complex() or index.dtype == torch.bool or index.dim() > 1:
            raise TypeError(f"class_idx: expected an integer or integers (B,), got {class_idx!r}")
        self.class_idx = int(index) if index.numel() == 1 else index.long()

    @property
    def name(self) -> str:
        """`class_2`, `top_class` or `given_class`."""
        if self.class_idx is None:
            return "top_class"
        return f"class_{self.class_idx}" if isinstance(self.class_idx, int) else "given_class"

    def classes(self, logits: Tensor) -> Tensor:
        """Class of each sample, (B,), int64.

        Raises:
            ValueError: for an index that is no class of the network, or another number of indices than samples.
        """
        batch, classes = logits.shape
        if self.class_idx is None:
            return logits.detach().argmax(1)
        if isinstance(self.class_idx, int):
            index = _check_class(self.class_idx, classes, self.name)
            return torch.full((batch,), index, dtype=torch.long, device=logits.device)
        if len(self.class_idx) != batch:
            raise ValueError(f"{self.name}: {len(self.class_idx)} class indices for a batch of {batch}")
        for index in (int(self.class_idx.min()), int(self.class_idx.max())):
            _check_class(index, classes, self.name)
        return self.class_idx.to(logits.device)

    def __call__(self, output: Tensor) -> Tensor:
        """Logit of each sample's class, (B,)."""
        logits = _class_logits(output, self.name)
        return logits.gather(1, self.classes(logits)[:, None])[:, 0]

    def weights(self, logits: Tensor) -> Tensor:
        """1 at each sample's class, 0 elsewhere, (B, K)."""
        logits = _class_logits(logits, self.name)
        return torch.zeros_like(logits).scatter_(1, self.classes(logits)[:, None], 1.0)

    def bind(self, output: Tensor) -> Target:
        """Fix the top class to that of `output`."""
        bound = ClassScore(self.classes(_class_logits(output, self.name)))
        return _Named(bound, self.name)

    def take(self, index: Tensor) -> ClassScore:
        """Classes of the samples `index`."""
        if isinstance(self.class_idx, Tensor):
            return ClassScore(self.class_idx[index.to(self.class_idx.device)])
        return self


class _Named(LogitTarget):
    """A target under another's name: a bound target keeps the name it was asked for by."""

    def __init__(self, target: LogitTarget, name: str) -> None:
        self.target, self._name = target, name

    @property
    def name(self) -> str:
        return self._name

    def __call__(self, output: Tensor) -> Tensor:
        return self.target(output)

    def weights(self, logits: Tensor) -> Tensor:
        return self.target.weights(logits)

    def take(self, index: Tensor) -> Target:
        taken = self.target.take(index)
        return _Named(taken, self._name) if isinstance(taken, LogitTarget) else taken


class ClassMargin(LogitTarget):
    """Logit of one class minus that of another: with softmax logits, evidence for one can lie, negated, in the other.

    Args:
        positive: the class argued for, one for all samples or one a sample, (B,) integers.
        negative: the class argued against, likewise.

    Raises:
        ValueError: when the two are the same class.

    >>> ClassMargin(1, 0)(torch.tensor([[0.5, 2.0]]))
    tensor([1.5000])
    >>> ClassMargin([1, 2], 0)(torch.tensor([[0.5, 2.0, 9.0], [0.5, 9.0, 3.0]]))
    tensor([1.5000, 2.5000])
    """

    def __init__(self, positive: int | Tensor | Sequence[int], negative: int | Tensor | Sequence[int]) -> None:
        if positive is None or negative is None:
            raise TypeError(f"expected two classes, got {positive!r} and {negative!r}")
        self.positive, self.negative = ClassScore(positive), ClassScore(negative)
        same = torch.as_tensor(self.positive.class_idx) == torch.as_tensor(self.negative.class_idx)
        if bool(same.any()):
            raise ValueError(
                f"the margin of a class to itself is always 0, got {positive!r} and {negative!r}; give two different "
                "classes"
            )

    @property
    def name(self) -> str:
        """`class_1_minus_class_0`; `given_class` for one class a sample."""
        return f"{self.positive.name}_minus_{self.negative.name}"

    def __call__(self, output: Tensor) -> Tensor:
        """Difference of the two logits, (B,)."""
        logits = _class_logits(output, self.name, minimum=2)
        return self.positive(logits) - self.negative(logits)

    def weights(self, logits: Tensor) -> Tensor:
        """+1 and -1 at the two classes, (B, K)."""
        logits = _class_logits(logits, self.name, minimum=2)
        return self.positive.weights(logits) - self.negative.weights(logits)

    def take(self, index: Tensor) -> Target:
        """Classes of the samples `index`."""
        result = copy.copy(self)
        result.positive, result.negative = self.positive.take(index), self.negative.take(index)
        return result


class TumorLogOdds(LogitTarget):
    """Log-odds of "any tumor": logsumexp of the logits of all classes but 0, minus the logit of class 0 (no tumor).

    Args:
        temperature: T of a calibrated network, whose probabilities are softmax(logits / T). The score is T times the
            calibrated log-odds: in units of the logits, with the tumor classes weighted as the probabilities say.

    >>> TumorLogOdds()(torch.tensor([[0.5, 2.0]]))
    tensor([1.5000])
    >>> logits = torch.tensor([[0.5, 2.0, 1.0]])
    >>> odds = (logits / 3).softmax(1)
    >>> bool(torch.isclose(TumorLogOdds(3.0)(logits) / 3, torch.log((1 - odds[:, 0]) / odds[:, 0])))
    True
    """

    def __init__(self, temperature: float = 1.0) -> None:
        if not temperature > 0:
            raise ValueError(f"temperature is more than 0, got {temperature}")
        self.temperature = float(temperature)

    @classmethod
    def of(cls, network: Any) -> TumorLogOdds:
        """With the temperature that a network carries; 1 of a network that carries none."""
        return cls(float(getattr(network, "temperature", 1.0)))

    @property
    def name(self) -> str:
        """`tumor_log_odds`."""
        return "tumor_log_odds"

    def __call__(self, output: Tensor) -> Tensor:
        """Log-odds, (B,)."""
        logits = _class_logits(output, self.name, minimum=2)
        return self.temperature * (logits[:, 1:] / self.temperature).logsumexp(1) - logits[:, 0]

    def weights(self, logits: Tensor) -> Tensor:
        """Calibrated softmax among the tumor classes, and -1 at class 0, (B, K)."""
        logits = _class_logits(logits, self.name, minimum=2)
        return torch.cat([-torch.ones_like(logits[:, :1]), (logits[:, 1:] / self.temperature).softmax(1)], 1)


class SegmentationRegion:
    """A channel's logit in a dense output, averaged (or summed) over a region of each sample.

    Args:
        mask: region, (B, 1, *spatial) or (B, *spatial) on the output's grid, above 0 = inside. None: where the network
            itself predicts the channel (the largest logit; above 0 for an output of one channel).
        channel: the explained channel.
        reduction: "mean" or "sum" over the region.
        mask_name: says in `name` which mask was given, for example "true_mask".

    A sample whose region is empty has the score 0 and therefore an empty map.

    Raises:
        ValueError: when called, for an output without spatial axes, an unknown channel, or a mask on another grid.
    """

    def __init__(
        self, mask: Tensor | None = None, channel: int = 1, reduction: str = "mean", mask_name: str = "given_mask"
    ) -> None:
        if reduction not in ("mean", "sum"):
            raise ValueError(f"reduction: expected 'mean' or 'sum', got {reduction!r}")
        self.mask = None if mask is None else torch.as_tensor(mask).as_subclass(Tensor)
        self.channel, self.reduction, self.mask_name = channel, reduction, mask_name

    @property
    def name(self) -> str:
        """`segmentation_1_predicted`, or the name of the mask in place of `predicted`."""
        return f"segmentation_{self.channel}_{'predicted' if self.mask is None else self.mask_name}"

    def region(self, output: Tensor) -> Tensor:
        """Region of each sample, (B, *spatial), bool."""
        if not isinstance(output, Tensor) or output.dim() < 3:
            shape = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
            raise ValueError(f"target {self.name} expects a dense output (B, C, *spatial), got {shape}")
        _check_class(self.channel, output.shape[1], self.name)
        if self.mask is None:
            detached = output.detach().as_subclass(Tensor)
            return detached[:, 0] > 0 if output.shape[1] == 1 else detached.argmax(1) == self.channel
        expected = (output.shape[0], *output.shape[2:])
        mask = self.mask[:, 0] if self.mask.dim() == output.dim() and self.mask.shape[1] == 1 else self.mask
        if tuple(mask.shape) != expected:
            raise ValueError(
                f"{self.name}: mask {tuple(self.mask.shape)} does not fit the output {tuple(output.shape)}; expected "
                f"{(expected[0], 1, *expected[1:])}"
            )
        return mask.to(output.device) > 0

    def __call__(self, output: Tensor) -> Tensor:
        """Mean or sum of the channel's logit over each sample's region, (B,)."""
        region = self.region(output).flatten(1)
        inside = precise(output)[:, self.channel].flatten(1).masked_fill(~region, 0.0)
        total = inside.sum(1)
        return total if self.reduction == "sum" else total / region.sum(1).clamp(min=1)

    def bind(self, output: Tensor) -> Target:
        """Fix the predicted region to that of `output`."""
        name = "predicted" if self.mask is None else self.mask_name
        return SegmentationRegion(self.region(output), self.channel, self.reduction, name)

    def take(self, index: Tensor) -> Target:
        """Regions of the samples `index`."""
        mask = None if self.mask is None else self.mask[index.to(self.mask.device)]
        return SegmentationRegion(mask, self.channel, self.reduction, self.mask_name)


NAMED_CLASS = re.compile(r"(true_class|class_\d+)(?:_minus_(class_\d+))?")
NAMED_REGION = re.compile(r"segmentation_(\d+)_(predicted|true_mask)")


def named_target(
    name: str, true_class: Tensor | None = None, true_mask: Tensor | None = None, temperature: float = 1.0
) -> Target:
    """Target of a name, as it stands in a config and in the rows of localization.json.

    Args:
        name: "tumor_log_odds", "top_class", "true_class", "class_2", "class_2_minus_class_0",
            "true_class_minus_class_0", "segmentation_1_predicted" or "segmentation_1_true_mask", with any class or
            channel in place of the numbers.
        true_class: (B,) integers, for the names that begin with "true_class".
        true_mask: (B, 1, *spatial), for those that end in "true_mask".
        temperature: of the network, for "tumor_log_odds".

    Returns:
        a target whose `name` is the given one.

    Raises:
        ValueError: for another name, or when the classes or the mask that it needs are not given.

    >>> named_target("class_2_minus_class_0")(torch.tensor([[0.5, 9.0, 3.0]]))
    tensor([2.5000])
    """
    if name == "tumor_log_odds":
        return TumorLogOdds(temperature)
    if name == "top_class":
        return ClassScore()
    region = NAMED_REGION.fullmatch(name)
    if region is not None:
        if region[2] == "predicted":
            return SegmentationRegion(channel=int(region[1]))
        if true_mask is None:
            raise ValueError(f"target {name} needs the true masks of the cases; none are given")
        return SegmentationRegion(true_mask, int(region[1]), mask_name="true_mask")
    classes = NAMED_CLASS.fullmatch(name)
    if classes is None:
        raise ValueError(
            f"unknown target {name!r}; expected tumor_log_odds, top_class, true_class, class_2, class_2_minus_class_0, "
            "true_class_minus_class_0, segmentation_1_predicted or segmentation_1_true_mask, with any numbers"
        )
    positive, negative = classes[1], classes[2]
    if positive == "true_class" and true_class is None:
        raise ValueError(f"target {name} needs the true classes of the cases; none are given")
    index = true_class if positive == "true_class" else int(positive.removeprefix("class_"))
    if negative is None:
        return _Named(ClassScore(index), name)
    return _Named(ClassMargin(index, int(negative.removeprefix("class_"))), name)  # type: ignore[arg-type]
