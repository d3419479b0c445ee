"""The explained score as a function of the input, for methods that change the input: one target, one foreground."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from scripts.explain.baselines import check_foreground
from scripts.explain.layers import evaluating, frozen
from scripts.explain.recording import FP16_SCALE, record
from scripts.explain.statistics import FOLLOWED, FROZEN, check_statistics, frozen_statistics
from scripts.explain.targets import Target

__all__ = ["Scorer", "checked_score", "copies_at_once", "one_tensor", "plain", "plain_values"]

# A CPU gains nothing from larger batches and pays for fresh memory: a DynUNet encoder at 256 x 256 took 86 ms an image
# alone, 90 in pairs and 193 in a batch of 16 (97 where glibc keeps its memory, see the Makefile).
COPIES = {"cpu": 2}
COPIES_ELSEWHERE = 16


def copies_at_once(x: Tensor, batch_size: int | None) -> int:
    """Number of changed copies in one pass: `batch_size`, or what suits the device of `x` for None.

    Raises:
        ValueError: for a number below 1.
    """
    if batch_size is None:
        return COPIES.get(x.device.type, COPIES_ELSEWHERE)
    if batch_size < 1:
        raise ValueError(f"batch_size: expected 1 or more, or None, got {batch_size}")
    return batch_size


def plain(t: Tensor) -> Tensor:
    """Detached plain tensor that autograd can work with, also if it was made under `torch.inference_mode`."""
    t = t.as_subclass(Tensor).detach()
    return t.clone() if t.is_inference() else t


def plain_values(values: Mapping[str, Any] | None) -> dict[str, Any]:
    """Further arguments of a forward pass, their tensors by `plain`."""
    return {key: plain(value) if isinstance(value, Tensor) else value for key, value in (values or {}).items()}


def one_tensor(model: nn.Module, output: Any) -> Tensor:
    """The output of a network as a plain tensor.

    Raises:
        TypeError: when it is anything else.
    """
    if not isinstance(output, Tensor):
        raise TypeError(
            f"{type(model).__name__} returned {type(output).__name__}; expected one tensor: ask for it by "
            "forward_kwargs, or name one of several by explain(..., head=NAME), see scripts.explain.outputs"
        )
    return output.as_subclass(Tensor)


def checked_score(model: nn.Module, target: Target, output: Tensor) -> Tensor:
    """Score (B,) of an output whose first axis is the batch.

    Raises:
        ValueError: when the target does not give one number a sample.
        FloatingPointError: when one of them is not finite.
    """
    score = target(output)
    if score.shape != (len(output),):
        raise ValueError(f"target {target.name} gave {tuple(score.shape)}; expected ({len(output)},)")
    if not bool(torch.isfinite(score).all()):
        raise FloatingPointError(f"target {target.name}: a score of {type(model).__name__} is not finite")
    return score


class Scorer:
    """Score of changed copies of a batch's samples, with everything but the image held fixed.

    One forward pass of the unchanged input comes first. It fixes what the target reads off the prediction (top class,
    predicted region), so that the score does not change its meaning when the prediction does. The network runs in
    evaluation mode, its parameters need no gradient meanwhile, and it is left as it was, also after an exception.

    Args:
        model: network whose `forward(x, **forward_kwargs)` returns one tensor.
        x: input (B, C, *spatial).
        target: the explained score.
        forward_kwargs: further arguments of `forward`. Tensors whose first axis is the batch follow their sample.
        foreground: (B, 1, *spatial), non-zero inside: where the input may be changed. None: everywhere.
        foreground_kwarg: name of the argument by which `forward` takes the foreground. A network that otherwise reads
            its foreground off the image would take a patch that is replaced by 0 for air.
        layers: dotted names or aliases of layers whose outputs are kept from the unchanged input's pass.
        aliases: further layer aliases.
        statistics: "followed", or "frozen" in the backward pass, see `statistics.frozen_statistics`.

    Attributes:
        x: the plain input.
        foreground: (B, 1, *spatial), bool.
        output: the network's output for the unchanged input.
        score: (B,), its score.
        activations: dotted layer name: output (B, C, *grid).
        scale: power of two by which a score is multiplied before its gradient is taken, so that it survives float16.

    Raises:
        ValueError: when the foreground does not fit, or `forward` takes one that is not handed on.
        TypeError: when the network does not return one tensor.
    """

    def __init__(
        self,
        model: nn.Module,
        x: Tensor,
        target: Target,
        forward_kwargs: Mapping[str, Any] | None = None,
        foreground: Tensor | None = None,
        foreground_kwarg: str | None = None,
        layers: Sequence[str] = (),
        aliases: Mapping[str, str] | None = None,
        statistics: str = FOLLOWED,
    ) -> None:
        self.model = model
        self._frozen_statistics = check_statistics(statistics) == FROZEN
        with torch.inference_mode(False):
            self.x = plain(x)
            self.foreground = check_foreground(foreground, self.x)
            self._kwargs = plain_values(forward_kwargs)
        self._hand_on(foreground, foreground_kwarg)
        self._target = target
        self.activations: dict[str, Tensor] = {}
        everything = torch.arange(len(self.x), device=self.x.device)
        with torch.inference_mode(False), torch.no_grad():
            if layers:
                with record(model, layers, aliases) as recorder:
                    self.output = self._forward(self.x, everything)
                recorder.check()
                self.activations = {k: v.as_subclass(Tensor) for k, v in recorder.activations.items()}
            else:
                self.output = self._forward(self.x, everything)
            self._target = target.bind(self.output)
            self.score = checked_score(model, target, self.output)
        half = (*[p.dtype for p in model.parameters()], self.x.dtype)
        amp = torch.is_autocast_enabled(self.x.device.type) and torch.get_autocast_dtype(self.x.device.type)
        self.scale = FP16_SCALE if torch.float16 in (*half, amp) else 1.0

    def _hand_on(self, foreground: Tensor | None, name: str | None) -> None:
        if name is not None:
            if foreground is None:
                raise ValueError(f"foreground_kwarg={name!r} is given, but no foreground")
            if name in self._kwargs:
                raise ValueError(f"{name!r} is given in forward_kwargs and as foreground_kwarg; give it once")
            self._kwargs[name] = self.foreground.to(self.x.dtype)
            return
        takes_one = "foreground" in inspect.signature(self.model.forward).parameters
        if foreground is not None and takes_one and "foreground" not in self._kwargs:
            raise ValueError(
                f"{type(self.model).__name__}.forward takes a foreground, and one is given, but not handed on: a "
                "replaced patch could be read as air; pass foreground_kwarg='foreground'"
            )

    def _forward(self, inputs: Tensor, index: Tensor) -> Tensor:
        batch = len(self.x)
        kwargs = {
            k: v[index.to(v.device)] if isinstance(v, Tensor) and v.dim() and len(v) == batch else v
            for k, v in self._kwargs.items()
        }
        statistics = frozen_statistics(self.model) if self._frozen_statistics else nullcontext()
        with evaluating(self.model), frozen(self.model), statistics:
            return one_tensor(self.model, self.model(inputs.clone(), **kwargs))  # the first layer may work in place

    def __call__(self, inputs: Tensor, index: Tensor) -> Tensor:
        """Scores of changed samples.

        Args:
            inputs: (N, C, *spatial), changed copies of samples of the batch.
            index: (N,), int64, which sample each is a copy of.

        Returns:
            (N,), float32 or better, differentiable by `inputs` where gradients are switched on.

        Raises:
            ValueError: when the input needs a gradient and none reaches it.
            FloatingPointError: when a score is not finite.
        """
        score = checked_score(self.model, self._target.take(index), self._forward(inputs, index))
        if torch.is_grad_enabled() and inputs.requires_grad and not score.requires_grad:
            raise ValueError(
                f"no gradient of {self._target.name} reaches the input of {type(self.model).__name__}: a part of it "
                "runs without gradients (torch.no_grad, detach, rounding), or the target does not depend on the input"
            )
        return score

    def of_many(self, index: Tensor, make: Callable[[Tensor], Tensor], batch_size: int | None = None) -> Tensor:
        """Scores of many changed copies, made and run `batch_size` at a time, without gradients.

        Args:
            index: (N,), the sample of each copy, N >= 1.
            make: of positions (n,) within `index` to their inputs (n, C, *spatial).
            batch_size: copies in one forward pass; None: what suits the device.

        Returns:
            (N,), in the target's precision.
        """
        batch_size = copies_at_once(self.x, batch_size)
        index = index.to(self.x.device)
        positions = torch.arange(len(index), device=self.x.device)
        with torch.inference_mode(False), torch.no_grad():
            parts = [self(make(part), index[part]) for part in positions.split(batch_size)]
        return torch.cat(parts)
