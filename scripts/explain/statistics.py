"""Frozen statistics: normalizations whose mean and variance are constants in the backward pass.

A normalization that takes its statistics from its own input (instance, group, layer norm) subtracts from the gradient
its mean over space and its projection on the activation. What a layer in front of it says for a class is cancelled by
that: Grad-CAM there is rounding noise, and maps of activation times gradient are thinned out. With the statistics held
fixed each place keeps what it contributes under the mean and variance that this image has.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.hooks import RemovableHandle

from scripts.explain.layers import LayerError

__all__ = ["FOLLOWED", "FROZEN", "STATISTICS", "check_statistics", "frozen_statistics", "named", "without_statistics"]

FOLLOWED, FROZEN = "followed", "frozen"
STATISTICS = (FOLLOWED, FROZEN)


def check_statistics(statistics: str) -> str:
    """Return `statistics`.

    Raises:
        ValueError: for anything but "followed" and "frozen".
    """
    if statistics not in STATISTICS:
        raise ValueError(f"statistics: expected 'followed' or 'frozen', got {statistics!r}")
    return statistics


def named(method: str, statistics: str) -> str:
    """Name of a method with its statistics, as every output has it: "hirescam", "hirescam_frozen"."""
    return f"{method}_frozen" if check_statistics(statistics) == FROZEN else method


def without_statistics(method: str) -> str:
    """The method of a name: "hirescam" of "hirescam_frozen"."""
    return method.removesuffix("_frozen")


def _inverse_deviation(x: Tensor, dims: tuple[int, ...], eps: float, centered: bool = True) -> Tensor:
    x = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
    square = x.var(dims, unbiased=False, keepdim=True) if centered else x.square().mean(dims, keepdim=True)
    return torch.rsqrt(square + eps)


def _by_channel(x: Tensor, weight: Tensor | None) -> Tensor | float:
    return 1.0 if weight is None else weight.reshape(1, -1, *[1] * (x.dim() - 2))


def _instance_norm(
    x, running_mean=None, running_var=None, weight=None, bias=None, use_input_stats=True, momentum=0.1, eps=1e-5
):
    if not use_input_stats:
        return None
    return _inverse_deviation(x, tuple(range(2, x.dim())), eps) * _by_channel(x, weight)


def _batch_norm(x, running_mean=None, running_var=None, weight=None, bias=None, training=False, momentum=0.1, eps=1e-5):
    if not training:
        return None
    return _inverse_deviation(x, (0, *range(2, x.dim())), eps) * _by_channel(x, weight)


def _group_norm(x, num_groups, weight=None, bias=None, eps=1e-5):
    grouped = x.reshape(len(x), num_groups, -1)
    inverse = _inverse_deviation(grouped, (2,), eps).repeat_interleave(x.shape[1] // num_groups, 1)
    return inverse.reshape(*x.shape[:2], *[1] * (x.dim() - 2)) * _by_channel(x, weight)


def _layer_norm(x, normalized_shape, weight=None, bias=None, eps=1e-5):
    dims = tuple(range(x.dim() - len(normalized_shape), x.dim()))
    return _inverse_deviation(x, dims, eps) * (1.0 if weight is None else weight)


def _rms_norm(x, normalized_shape, weight=None, eps=None):
    dims = tuple(range(x.dim() - len(normalized_shape), x.dim()))
    eps = torch.finfo(x.dtype).eps if eps is None else eps
    return _inverse_deviation(x, dims, eps, centered=False) * (1.0 if weight is None else weight)


# Function: its derivative by its first argument with the statistics constant; None where they are constants already.
SLOPES: dict[Callable, Callable[..., Tensor | None]] = {
    F.instance_norm: _instance_norm,
    F.batch_norm: _batch_norm,
    F.group_norm: _group_norm,
    F.layer_norm: _layer_norm,
    F.rms_norm: _rms_norm,
}
# Called by their own name, they take the same arguments in another order.
UNKNOWN = {torch.instance_norm, torch.batch_norm, torch.group_norm, torch.layer_norm, torch.rms_norm}


class NormMode(TorchFunctionMode):
    """Lets `apply` compute each normalization of the functional interface in place of torch, in this thread.

    Attributes:
        handled: number of normalizations met.
    """

    def __init__(self, apply: Callable[[Tensor, Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.apply, self.handled = apply, 0

    def __torch_function__(self, func, types, args=(), kwargs=None):
        """Compute `func`, a normalization by `apply`."""
        kwargs = kwargs or {}
        slope_of = SLOPES.get(func)
        if slope_of is None:
            if func in UNKNOWN:
                raise LayerError(
                    f"the network calls torch.{func.__name__} itself, whose statistics cannot be held fixed; call "
                    f"torch.nn.functional.{func.__name__}"
                )
            return func(*args, **kwargs)
        self.handled += 1
        named_input = {("x" if key == "input" else key): value for key, value in kwargs.items()}
        x = args[0] if args else named_input["x"]
        if not x.requires_grad or not torch.is_grad_enabled():
            return func(*args, **kwargs)
        with torch.no_grad():
            slope = slope_of(*args, **named_input)
        if slope is None:
            return func(*args, **kwargs)
        with torch.no_grad():
            value = func(*args, **kwargs)
        return self.apply(x, value, slope)


def _held(x: Tensor, value: Tensor, slope: Tensor) -> Tensor:
    """`value`, with the gradient `slope` by x."""
    return value + ((x - x.detach()) * slope).to(value.dtype)


def _own_norms(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Modules called a norm that are none of torch's, without the parts of a reparametrized weight."""
    for name, module in model.named_modules():
        kind = type(module)
        if "norm" in kind.__name__.lower() and not list(module.children()) and not kind.__module__.startswith("torch."):
            yield name, module


@contextmanager
def frozen_statistics(model: nn.Module, mode: NormMode | None = None) -> Iterator[nn.Module]:
    """Hold the statistics of every normalization fixed in the backward passes of the forward passes in this block.

    Outputs are unchanged. torch's normalizations are met wherever they are called, by module or function. A module
    that computes its own statistics takes part when it has a method `slope(*arguments of forward)`, which returns the
    derivative of its output by its first argument with the statistics constant, in a shape that broadcasts to it.

    Args:
        model: the network.
        mode: what is done instead with the normalizations met, and with other functions.

    Raises:
        LayerError: for a network with scripted parts, and, inside the block, for a module called a norm that is
            neither of torch's nor has a `slope`, where a gradient goes through it.
    """
    for name, module in model.named_modules():
        if isinstance(module, torch.jit.ScriptModule):
            raise LayerError(
                f"{name or type(model).__name__!r} is scripted or traced, so that the statistics of its normalizations "
                "cannot be held fixed; give the network as it was before torch.jit"
            )
    thread, mode, kind = threading.get_ident(), mode or NormMode(_held), type(model).__name__
    met: dict[nn.Module, int] = {}

    def of_slope(module: nn.Module, args: tuple, kwargs: dict, output: Tensor) -> Tensor | None:
        x = args[0] if args else next(iter(kwargs.values()))
        if threading.get_ident() != thread or not (torch.is_grad_enabled() and x.requires_grad):
            return None
        mode.handled += 1
        slope_of: Any = module.slope
        with torch.no_grad():
            slope = slope_of(*args, **kwargs)
        return mode.apply(x, output.detach(), slope)

    def before(module: nn.Module, args: tuple) -> None:
        met[module] = mode.handled

    def after(module: nn.Module, args: tuple, output: Any, name: str) -> None:
        gradient = any(isinstance(a, Tensor) and a.requires_grad for a in args) and torch.is_grad_enabled()
        if threading.get_ident() == thread and gradient and mode.handled == met[module]:
            raise LayerError(
                f"{name!r} of {kind}, {type(module).__name__}, computes its own statistics, so that they cannot be "
                "held fixed; give it a method slope, see scripts.explain.statistics.frozen_statistics"
            )

    handles: list[RemovableHandle] = []
    try:
        for name, module in _own_norms(model):
            if callable(getattr(module, "slope", None)):
                handles.append(module.register_forward_hook(of_slope, with_kwargs=True))
            else:
                handles.append(module.register_forward_pre_hook(before))
                hook = lambda m, a, out, name=name: after(m, a, out, name)  # noqa: E731
                handles.append(module.register_forward_hook(hook))
        with mode:
            yield model
    finally:
        for handle in handles:
            handle.remove()
