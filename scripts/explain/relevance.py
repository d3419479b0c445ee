"""Layer-wise relevance propagation: the score is handed back, layer by layer, so that no part of it gets lost.

In the backward pass of a network that runs within `relevance_rules`, gradients are relevances. Every operation has a
rule that hands on as much as it was given, and an operation without one is refused. What the rules are:

- convolutions, transposed ones and linear layers: in proportion to the positive contributions x w (alpha 1, beta 0);
  where there are none, to the negative ones; where there is no contribution at all, evenly. Biases get nothing;
- activations, softmax and normalizations, whose statistics are constants: unchanged, value by value;
- sums of two branches: in proportion to what each has in the direction of the sum; means, pooling by average and
  interpolation likewise;
- a product with a constant: unchanged; with a gate, whose values lie in 0..1: all to the other factor; of two factors
  neither of which is a gate: half to each;
- zeros around an image: to its nearest place;
- maxima, log-sum-exp and everything that moves values: as the gradient does, whose weights sum to 1.

Source: Bach et al., On Pixel-wise Explanations, PLoS ONE 10(7), 2015, doi:10.1371/journal.pone.0130140, equations 56 to
60; gates: Arras et al., Explaining Recurrent Neural Network Predictions, 2017, arXiv:1706.07206, section 3.1. Departs
from the paper: it lets biases take a part, so that the relevances do not add up to the score.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from scripts.explain.layers import LayerError
from scripts.explain.statistics import SLOPES, NormMode, frozen_statistics

__all__ = ["relevance_rules"]

WEIGHTED = {f"conv{kind}{d}d" for kind in ("", "_transpose") for d in (1, 2, 3)} | {"linear"}
AVERAGING = {f"{kind}avg_pool{d}d" for kind in ("", "adaptive_") for d in (1, 2, 3)} | {
    *("mean", "sum", "interpolate", "upsample"),
}
PLACEWISE = {
    *("relu", "leaky_relu", "elu", "selu", "celu", "gelu", "silu", "mish", "hardswish", "hardtanh", "relu6", "prelu"),
    *("softplus", "sigmoid", "hardsigmoid", "logsigmoid", "tanh", "clamp", "neg", "square", "pow", "abs", "exp", "log"),
    *("sqrt", "rsqrt", "log1p", "expm1", "rrelu", "threshold", "softmax", "log_softmax"),
}
ROUTING = {
    *("cat", "concat", "stack", "reshape", "view", "flatten", "unflatten", "permute", "transpose", "movedim", "t"),
    *("getitem", "chunk", "split", "clone", "contiguous", "to", "float", "double", "half", "type", "type_as"),
    *("expand", "expand_as", "unsqueeze", "squeeze", "masked_fill", "where", "dropout", "dropout2d", "dropout3d"),
    *("alpha_dropout", "feature_alpha_dropout", "max", "amax", "logsumexp", "detach", "get", "as_subclass", "unbind"),
    *("max_pool1d", "max_pool2d", "max_pool3d", "boolean_dispatch", "adaptive_max_pool2d", "adaptive_max_pool3d"),
    *("roll", "swapaxes", "select", "narrow", "repeat_interleave", "requires_grad", "view_as", "index_select", "flip"),
    *("repeat", "tile", "as_tensor", "ravel", "moveaxis", "swapdims"),
}
# Contributions below this share of a sample's largest one are rounding of the convolution.
ROUNDING = 1e-7


def _by_shares(
    relevance: Tensor, op: Callable[..., Tensor], parts: Sequence[tuple[Tensor, ...]]
) -> tuple[Tensor, Tensor]:
    """Hand relevance on in proportion to contributions >= 0.

    Args:
        relevance: of each output.
        op: linear in its first argument.
        parts: arguments of `op`, whose results, >= 0, add up to what an output gets.

    Returns:
        relevance of each input, and what is left of the outputs without any contribution.
    """
    with torch.enable_grad():
        inputs = [part[0].detach().requires_grad_() for part in parts]
        total = op(inputs[0], *parts[0][1:])
        for value, part in zip(inputs[1:], parts[1:], strict=True):
            total = total + op(value, *part[1:])
    largest = total.detach().reshape(len(total), -1).amax(1).reshape(-1, *[1] * (total.dim() - 1))
    nonzero = total.detach() > ROUNDING * largest
    ratio = torch.where(nonzero, relevance / total.detach().where(nonzero, torch.ones_like(total)), 0.0)
    gradients = torch.autograd.grad(total, inputs, ratio)
    result = sum((value.detach() * grad for value, grad in zip(inputs, gradients, strict=True)), torch.zeros(()))
    return torch.as_tensor(result), relevance.masked_fill(nonzero, 0.0)


class _Weighted(torch.autograd.Function):
    """A linear operation with weights of both signs."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, op: Callable[..., Tensor], value: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.op = op
        return value.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, relevance: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        up, down = weight.clamp(min=0), -weight.clamp(max=0)
        signed = bool((x < 0).any())
        high, low = x.clamp(min=0), -x.clamp(max=0)
        speaking_for = [(high, up), (low, down)] if signed else [(high, up)]
        result, rest = _by_shares(relevance, ctx.op, speaking_for)
        if bool(rest.any()):
            against = [(high, down), (low, up)] if signed else [(high, down)]
            more, rest = _by_shares(rest, ctx.op, against)
            result = result + more
        if bool(rest.any()):
            more, _ = _by_shares(rest, ctx.op, [(torch.ones_like(x), torch.ones_like(weight))])
            result = result + more
        return result.to(x.dtype), None, None, None


class _Averaging(torch.autograd.Function):
    """A linear operation whose weights are not negative."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, op: Callable[..., Tensor], value: Tensor) -> Tensor:
        ctx.save_for_backward(x, value)
        ctx.op = op
        return value.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, relevance: Tensor) -> tuple[Tensor | None, ...]:
        x, value = ctx.saved_tensors
        result, rest = torch.zeros_like(x), torch.zeros_like(relevance)
        for side, part in ((value > 0, x.clamp(min=0)), (value < 0, -x.clamp(max=0)), (value == 0, x.abs())):
            share, left = _by_shares(relevance * side, ctx.op, [(part,)])
            result, rest = result + share, rest + left
        if bool(rest.any()):
            result = result + _by_shares(rest, ctx.op, [(torch.ones_like(x),)])[0]
        return result, None, None


class _Sum(torch.autograd.Function):
    """The sum of two branches."""

    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor, value: Tensor) -> Tensor:
        ctx.save_for_backward(a, b, value)
        return value.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, relevance: Tensor) -> tuple[Tensor | None, ...]:
        a, b, value = ctx.saved_tensors
        side = torch.where(value < 0, -1.0, 1.0).to(value.dtype)
        of_a, of_b = (side * a).clamp(min=0), (side * b).clamp(min=0)
        total = of_a + of_b
        share = torch.where(total > 0, of_a / total.where(total > 0, torch.ones_like(total)), 0.5)
        return (relevance * share).sum_to_size(a.shape), (relevance * (1 - share)).sum_to_size(b.shape), None


class _Padded(torch.autograd.Function):
    """Zeros around an image: what they got goes to the nearest place of the image."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, pad: Sequence[int], value: Tensor) -> Tensor:
        ctx.shape, ctx.pad = x.shape, [*pad, *[0] * (2 * (x.dim() - 2) - len(pad))]
        return value.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, relevance: Tensor) -> tuple[Tensor | None, ...]:
        with torch.enable_grad():
            like = relevance.new_zeros(ctx.shape).requires_grad_()
            repeated = nn.functional.pad(like, ctx.pad, mode="replicate")
        return torch.autograd.grad(repeated, like, relevance)[0], None, None


def _handed_on(x: Tensor, value: Tensor, slope: Tensor | None = None) -> Tensor:
    """`value`, whose relevance is that of x, place by place."""
    return value.detach() + (x - x.detach()).to(value.dtype)


def _learning(value: Any) -> bool:
    if isinstance(value, Tensor):
        return value.requires_grad
    return isinstance(value, list | tuple) and any(_learning(v) for v in value)


class _RelevanceMode(NormMode):
    """Gives every operation its rule."""

    def __init__(self) -> None:
        super().__init__(_handed_on)

    def __torch_function__(self, func, types, args=(), kwargs=None):
        """Run `func` with its rule in the backward pass."""
        kwargs = kwargs or {}
        if not torch.is_grad_enabled() or not any(_learning(value) for value in (*args, *kwargs.values())):
            return super().__torch_function__(func, types, args, kwargs)
        name = getattr(func, "__name__", str(func)).strip("_")
        if func in SLOPES:
            self.handled += 1
            return self._placewise(func, args, kwargs)
        if name in WEIGHTED:
            return self._weighted(func, *args, **kwargs)
        if name in AVERAGING:
            op = lambda x: func(x, *args[1:], **kwargs)  # noqa: E731
            return _Averaging.apply(args[0], op, op(args[0].detach()))
        operation = name if name in ("add", "sub", "mul", "div") else name[1:] if name[:1] in "ir" else name
        operation = {"truediv": "div", "true_divide": "div", "subtract": "sub", "multiply": "mul"}.get(
            operation, operation
        )
        if operation in ("add", "sub", "mul", "div") and not kwargs and len(args) == 2:
            return self._of_two(operation, *(args[::-1] if name[:1] == "r" else args))
        if name == "pad":
            return self._padded(*args, **kwargs)
        if name in PLACEWISE:
            return self._placewise(func, args, kwargs)
        result = func(*args, **kwargs)
        if name not in ROUTING and _learning(result):
            raise LayerError(
                f"no relevance: there is no rule for {name!r}, which this network uses; take a gradient method"
            )
        return result

    @staticmethod
    def _weighted(func: Callable, x: Tensor, weight: Tensor, bias: Tensor | None = None, *args: Any, **kwargs: Any):
        if not x.requires_grad or weight.requires_grad:
            raise LayerError("no relevance: weights that are computed from the image; take a gradient method")
        value = func(x.detach(), weight, bias, *args, **kwargs)
        return _Weighted.apply(x, weight, lambda a, w: func(a, w, None, *args, **kwargs), value)

    @staticmethod
    def _padded(x: Tensor, pad: Sequence[int], mode: str = "constant", value: float | None = None) -> Tensor:
        result = nn.functional.pad(x, pad, mode, value)
        if mode != "constant" or len(pad) > 2 * (x.dim() - 2) or min(pad) < 0:  # others take their values from x
            return result
        return _Padded.apply(x, list(pad), result.detach())

    @staticmethod
    def _placewise(func: Callable, args: tuple, kwargs: Mapping[str, Any]) -> Tensor:
        named = "input" in kwargs
        x = kwargs["input"] if named else args[0]
        copy = x.detach().clone()  # it may be overwritten
        value = func(*args, **{**kwargs, "input": copy}) if named else func(copy, *args[1:], **kwargs)
        return _handed_on(x, value)

    @staticmethod
    def _of_two(operation: str, a: Any, b: Any) -> Tensor:
        both = _learning(a) and _learning(b)
        plain = [v.detach() if isinstance(v, Tensor) else v for v in (a, b)]
        value = torch.as_tensor(getattr(torch, operation)(*plain)) if isinstance(plain[0], Tensor) else None
        if value is None:  # a number before a tensor
            value = {"add": b + a, "sub": a - b, "mul": b * a, "div": a / b}[operation].detach()
        if not both:
            return _handed_on(a if _learning(a) else b, value)
        if operation in ("add", "sub"):
            return _Sum.apply(a, b if operation == "add" else -b.detach() + _handed_on(b, torch.zeros_like(b)), value)
        gate_a, gate_b = (bool(((v >= 0) & (v <= 1)).all()) for v in plain)
        if operation == "div" or gate_b:
            return _handed_on(a, value)
        if gate_a:
            return _handed_on(b, value)
        return _handed_on(a, value) / 2 + _handed_on(b, value) / 2


@contextmanager
def relevance_rules(model: nn.Module) -> Iterator[nn.Module]:
    """Within this block forward passes carry relevance in place of gradients in their backward passes.

    Raises:
        LayerError: for operations without a rule, and as `statistics.frozen_statistics` does.
    """
    with frozen_statistics(model, mode=_RelevanceMode()):
        yield model
