"""Record what layers put out in one forward pass, leaving no trace in the network; which layer is the default."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from scripts.explain.layers import LayerError, evaluating, frozen, resolve_layer

__all__ = ["Recorder", "check_spatial", "chosen_layers", "default_layer", "record"]

# With fp16 activations a gradient of 1 / number of pixels would be rounded to 0; the score is scaled before and the
# gradient after. A power of two: no rounding of its own.
FP16_SCALE = 2.0**10


class Recorder:
    """What the recorded layers put out in one forward pass, and the gradients of a score with respect to it.

    Attributes:
        activations: layer name: its output (B, C, *spatial) as it was when the layer returned it, in the layer's dtype.
    """

    def __init__(self, model: nn.Module, layers: Sequence[str]) -> None:
        self.layers = tuple(dict.fromkeys(layers))
        self.activations: dict[str, Tensor] = {}
        self._versions: dict[str, int] = {}
        self._kind = type(model).__name__
        self._thread = threading.get_ident()

    def _keep(self, name: str, output: Any) -> Tensor | None:
        """Forward hook: keep the output, hand a copy on, so that in-place operations after the layer spare it."""
        if threading.get_ident() != self._thread:  # another thread uses the same network: its pass is not ours
            return None
        if not isinstance(output, Tensor):
            raise LayerError(
                f"layer {name!r} of {self._kind} returns {_describe(output)}; expected one tensor: "
                "name a layer inside it, or behind it, that returns one"
            )
        if name in self.activations:
            around = f"the block around it ({name.rpartition('.')[0]!r})" if "." in name else "a block that runs once"
            raise LayerError(
                f"layer {name!r} of {self._kind} ran more than once in one forward pass, so that its output is not "
                f"one thing that can be explained; name {around}"
            )
        if not output.is_floating_point():
            raise LayerError(f"layer {name!r} of {self._kind} returns {output.dtype}; expected floating point")
        if torch.is_grad_enabled() and not output.requires_grad:  # everything before is frozen
            output = output.detach().requires_grad_()
        self.activations[name] = output
        self._versions[name] = output._version
        return output.clone()

    def check(self) -> None:
        """Make sure that every layer ran, and that nothing wrote into its output afterwards.

        Raises:
            LayerError: naming the layer.
        """
        for name in self.layers:
            if name not in self.activations:
                raise LayerError(
                    f"layer {name!r} of {self._kind} did not run in this forward pass; name a layer that the explained "
                    "output needs (a scripted or compiled network runs none of its layers by name)"
                )
            if self.activations[name]._version != self._versions[name]:
                raise LayerError(
                    f"the input of layer {name!r} of {self._kind} is its output as well, and was overwritten in place "
                    "later on; name the block around it"
                )

    def gradients(self, score: Tensor, retain_graph: bool = False) -> dict[str, Tensor]:
        """Gradients of `score.sum()` with respect to the recorded outputs, one backward pass for all layers.

        The pass ends at the recorded outputs: no parameter's and no input's `.grad` is touched.

        Args:
            score: (B,), each entry a function of its own sample alone.
            retain_graph: keep the graph for another call.

        Returns:
            layer name: gradient, shape and dtype of the activation.

        Raises:
            LayerError: when a layer did not run, or the score does not depend on it.
            FloatingPointError: when a gradient is not finite.
        """
        self.check()
        detached = [n for n in self.layers if not self.activations[n].requires_grad]
        if detached or not score.requires_grad:
            raise LayerError(
                f"no gradient reaches {', '.join(map(repr, detached or self.layers))} of {self._kind}: the forward "
                "pass, or a part of it, ran without gradients (torch.no_grad, detach), or the target does not depend "
                "on these layers"
            )
        scale = FP16_SCALE if any(a.dtype == torch.float16 for a in self.activations.values()) else 1.0
        grads = torch.autograd.grad(
            score.sum() * scale,
            [self.activations[name] for name in self.layers],
            retain_graph=retain_graph,
            allow_unused=True,
        )
        result = {}
        for name, grad in zip(self.layers, grads, strict=True):
            if grad is None:
                raise LayerError(
                    f"the target does not depend on layer {name!r} of {self._kind}; name a layer between the input and "
                    "the explained output"
                )
            grad = grad if scale == 1.0 else grad.float() / scale
            if not bool(torch.isfinite(grad).all()):
                raise FloatingPointError(
                    f"gradient of the target at layer {name!r} of {self._kind} is not finite ({grad.dtype}); "
                    "run the network in float32"
                )
            result[name] = grad
        return result


def _describe(value: Any) -> str:
    """A value's type in words; the types of the members for a tuple or list."""
    if isinstance(value, tuple | list):
        return f"a {type(value).__name__} of {len(value)} ({', '.join(type(v).__name__ for v in value)})"
    return f"a {type(value).__name__}"


@contextmanager
def record(
    model: nn.Module, layers: Sequence[str], aliases: Mapping[str, str] | None = None, none: bool = False
) -> Iterator[Recorder]:
    """Record the outputs of several layers during one forward pass, and their gradients afterwards.

    Forward hooks keep each output and hand on a copy of it, so in-place operations behind a layer do no harm. Frozen
    parameters do no harm either: a recorded output that needs no gradient is made to need one. The hooks are gone when
    the block is left, also by an exception. Passes of other threads through the same network are not recorded.

    Args:
        model: the network; its mode, parameters, buffers and `.grad` are left alone.
        layers: dotted names or aliases, each a layer that runs exactly once and returns one tensor.
        aliases: further aliases, as in `resolve_layer`.
        none: no layer at all is no mistake.

    Raises:
        LayerError: for an unknown layer, and, inside the block, for one that runs twice or returns no tensor.

    >>> net = nn.Sequential(nn.Conv2d(1, 1, 1, bias=False), nn.ReLU(inplace=True))
    >>> with record(net, ["0"]) as recorder:
    ...     score = net(torch.ones(1, 1, 2, 2)).abs().sum((1, 2, 3))
    >>> recorder.activations["0"].shape
    torch.Size([1, 1, 2, 2])
    """
    names = [resolve_layer(model, layer, aliases) for layer in layers]
    if not names and not none:
        raise LayerError("no layer given; expected at least one dotted name")
    recorder = Recorder(model, names)
    handles: list[RemovableHandle] = []
    try:
        for name in recorder.layers:
            hook = lambda _module, _args, output, name=name: recorder._keep(name, output)  # noqa: E731
            handles.append(model.get_submodule(name).register_forward_hook(hook))
        yield recorder
    finally:
        for handle in handles:
            handle.remove()


def default_layer(
    model: nn.Module, x: Tensor, forward_kwargs: Mapping[str, Any] | None = None, dense: bool = False
) -> str:
    """Choose the layer to explain: the network's own choice, else the last spatial features, found by one forward pass.

    1. The attribute `default_cam_layer` of the network (or of a network inside it), unless `dense`.
    2. For an output without spatial axes: the last module whose output still has them, in front of the pooling.
    3. For a dense output (segmentation): the last module whose output has another number of channels than the result,
       that is the features in front of the output layer.

    Modules that run more than once, and those that the output does not depend on (the decoder of a multi-task network
    whose classifier is explained), are passed over.

    Args:
        model: the network.
        x: an input (B, C, *spatial).
        forward_kwargs: further arguments of `forward`.
        dense: the explained output is a segmentation, for which `default_cam_layer` is not meant.

    Raises:
        LayerError: when no layer fits, or the spatial features become tokens (transformers): name a layer then.
    """
    if not dense:
        for prefix, module in model.named_modules():
            choice = getattr(module, "default_cam_layer", None)
            if isinstance(choice, str):
                return resolve_layer(model, f"{prefix}.{choice}" if prefix else choice)
    seen: list[tuple[str, torch.Size]] = []
    with torch.no_grad(), evaluating(model), _watching(model, lambda name, out: seen.append((name, _shape(out)))):
        output = model(x.clone(), **(forward_kwargs or {}))  # the first layer may work in place
    runs = [name for name, _ in seen]
    is_dense = isinstance(output, Tensor) and output.dim() == x.dim()
    fit = [
        index
        for index, (name, shape) in enumerate(seen)
        if len(shape) == x.dim() and math.prod(shape[2:]) > 1 and runs.count(name) == 1
        if not (is_dense and shape[1] == output.shape[1])
    ]
    if fit and not _matters(model, x, forward_kwargs or {}, seen[fit[-1]][0], output):
        needed = _needed(model, x, forward_kwargs or {})
        fit = [index for index in fit if seen[index][0] in needed]
    chosen = fit[-1] if fit else -1
    kind = type(model).__name__
    hint = "name one; list them with scripts.explain.layers.list_layers(model)"
    if chosen < 0:
        raise LayerError(f"no layer of {kind} puts out spatial features for an input of shape {tuple(x.shape)}; {hint}")
    tokens = [name for name, shape in seen[chosen + 1 :] if len(shape) == 3 != x.dim() and math.prod(shape[1:]) > 1]
    if tokens and not is_dense:
        raise LayerError(f"behind layer {seen[chosen][0]!r}, {kind} works on tokens ({tokens[0]!r}); {hint}")
    return seen[chosen][0]


@contextmanager
def _watching(model: nn.Module, see: Callable[[str, Any], Any]) -> Iterator[None]:
    """Let `see` have name and output of every module that runs; what it returns replaces the output, unless None."""
    handles: list[RemovableHandle] = []
    try:
        for name, module in model.named_modules():
            if name:
                hook = lambda _m, _a, out, name=name: see(name, out)  # noqa: E731
                handles.append(module.register_forward_hook(hook))
        yield
    finally:
        for handle in handles:
            handle.remove()


def _matters(model: nn.Module, x: Tensor, kwargs: Mapping[str, Any], layer: str, output: Tensor) -> bool:
    """Whether other values of a layer change the output."""
    generator = torch.Generator().manual_seed(0)

    def other(name: str, out: Any) -> Tensor | None:
        return out * torch.rand(out.shape, generator=generator).to(out) if name == layer else None

    with torch.no_grad(), evaluating(model), _watching(model, other):
        return not torch.equal(model(x.clone(), **kwargs), output)


def _needed(model: nn.Module, x: Tensor, kwargs: Mapping[str, Any]) -> set[str]:
    """Names of the modules whose outputs the network's output depends on."""
    outputs: dict[str, Tensor] = {}

    def keep(name: str, out: Any) -> None:
        if isinstance(out, Tensor) and out.requires_grad:
            outputs[name] = out

    with torch.inference_mode(False), torch.enable_grad(), evaluating(model), frozen(model):
        leaf = x.as_subclass(Tensor).detach().clone().requires_grad_()
        with _watching(model, keep):
            total = model(leaf.clone(), **kwargs).sum()
        gradients = torch.autograd.grad(total, list(outputs.values()), allow_unused=True)
    return {name for name, gradient in zip(outputs, gradients, strict=True) if gradient is not None}


def _shape(output: Any) -> torch.Size:
    return output.shape if isinstance(output, Tensor) else torch.Size()


def chosen_layers(
    model: nn.Module,
    x: Tensor,
    layers: str | Sequence[str] | None,
    forward_kwargs: Mapping[str, Any] | None = None,
    dense: bool = False,
) -> list[str]:
    """Names of the layers to explain as they were given, or the one of `default_layer` for None."""
    if layers is None:
        return [default_layer(model, x, forward_kwargs, dense)]
    return [layers] if isinstance(layers, str) else list(layers)


def check_spatial(model: nn.Module, name: str, activation: Tensor, x: Tensor) -> None:
    """Make sure that a layer's output is (B, C, *spatial) with the batch and the spatial axes of the input.

    Raises:
        LayerError: naming the layer.
    """
    if activation.dim() != x.dim() or len(activation) != len(x):
        raise LayerError(
            f"layer {name!r} of {type(model).__name__} puts out {tuple(activation.shape)}; expected "
            f"({len(x)}, C, *spatial) with {x.dim() - 2} spatial axes"
        )
