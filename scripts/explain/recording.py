"""Record what layers put out in one forward pass, leaving no trace in the network; which layer is the default."""

from __future__ import annotations

import math
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import CheckpointError
from torch.utils.hooks import RemovableHandle

from scripts.explain.grids import as_map
from scripts.explain.layers import LayerError, evaluating, frozen, resolve_layer

__all__ = ["Recorder", "chosen_layers", "default_layer", "nodes_behind", "record"]

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
        self._model, self._kind = model, type(model).__name__
        self._thread = threading.get_ident()
        self._cut: set[str] = set()

    def _keep(self, name: str, output: Any) -> Tensor | None:
        """Forward hook: keep the output and pass a copy on, which in-place operations after the layer may change."""
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
            self._cut.add(name)
            output = output.detach().requires_grad_()
        self.activations[name] = output
        self._versions[name] = output._version
        return output.clone()

    def _again(self, name: str, output: Any) -> Any:
        """Forward hook while a checkpoint runs a part again in the backward pass: the same graph, nothing is kept."""
        if not isinstance(output, Tensor):
            return None
        return (output.detach().requires_grad_() if name in self._cut else output).clone()

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
        leaves = [self.activations[name] for name in self.layers]
        try:
            with _hooked(self._model, self.layers, self._again):
                grads = torch.autograd.grad(score.sum() * scale, leaves, retain_graph=retain_graph, allow_unused=True)
        except CheckpointError as error:
            raise LayerError(
                f"a checkpoint of {self._kind} runs a part again in the backward pass, in which "
                f"{', '.join(map(repr, self.layers))} would differ; switch checkpoints off, or name the checkpointed "
                "block as a whole"
            ) from error
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
def _hooked(model: nn.Module, names: Sequence[str], hook: Callable[[str, Any], Any]) -> Iterator[None]:
    """Let `hook` have name and output of some modules that run; what it returns replaces the output, unless None."""
    handles: list[RemovableHandle] = []
    try:
        for name in names:
            of_module = lambda _m, _a, out, name=name: hook(name, out)  # noqa: E731
            handles.append(model.get_submodule(name).register_forward_hook(of_module))
        yield
    finally:
        for handle in handles:
            handle.remove()


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
    with _hooked(model, recorder.layers, recorder._keep):
        yield recorder


def default_layer(
    model: nn.Module, x: Tensor, forward_kwargs: Mapping[str, Any] | None = None, dense: bool = False
) -> str:
    """Choose the layer to explain: the network's own choice, else the last features that the whole output goes through.

    1. The attribute `default_cam_layer` of the network (or of a network inside it), unless `dense`.
    2. The last module, by one forward pass, that
       - runs once and puts out features of more than one place of the image: a map or tokens, see `grids.as_map`;
       - lies on every way from the image to the output: no layer inside a dense block, no branch beside a skip;
       - for a dense output (segmentation), lies in front of the output layer, the last convolution or linear layer;
       - for tokens, hands on more than the class token.

       Of a block and its last layer, which put out the same, it is the block.
    3. Where there is none (a sum of the image and the output, for example), the last such module on some way.

    Args:
        model: the network.
        x: an input (B, C, *spatial).
        forward_kwargs: further arguments of `forward`.
        dense: the explained output is a segmentation, for which `default_cam_layer` is not meant.

    Raises:
        LayerError: when no layer fits, or no gradient of the output reaches the image.
    """
    if not dense:
        for prefix, module in model.named_modules():
            choice = getattr(module, "default_cam_layer", None)
            if isinstance(choice, str):
                return resolve_layer(model, f"{prefix}.{choice}" if prefix else choice)
    kwargs, kind = dict(forward_kwargs or {}), type(model).__name__
    seen, output, image = _graph_of(model, x, kwargs)
    on_some_way = nodes_behind(output.grad_fn)
    if image not in on_some_way:
        raise LayerError(
            f"no gradient of the output {tuple(output.shape)} ({output.dtype}) of {kind} reaches the image: a part of "
            "it runs without gradients (torch.no_grad, detach, integers), or it does not depend on the image"
        )
    seen = [run for run in seen if run.node in on_some_way]
    if output.dim() == x.dim():
        seen = seen[: max((i for i, run in enumerate(seen) if run.is_weights), default=len(seen))]
    once = _outermost([run for run in seen if run.runs == 1])  # a reused one names no node
    fit = [run for run in reversed(once) if run.places > 1]
    on_every_way = (run for run in fit if image not in nodes_behind(output.grad_fn, run.node))
    for run in chain(on_every_way, fit):
        if not run.is_tokens or _hands_on_places(model, x, kwargs, run.name):
            return run.name
    raise LayerError(
        f"no layer of {kind} puts out spatial features for an input of shape {tuple(x.shape)}; name one; list them "
        "with scripts.explain.layers.list_layers(model)"
    )


@dataclass
class _Run:
    """A module that ran `runs` times: the places of the image in its output, and its node of the graph."""

    name: str
    places: int
    is_tokens: bool
    is_weights: bool
    node: Any
    runs: int = 1


def _graph_of(model: nn.Module, x: Tensor, kwargs: Mapping[str, Any]) -> tuple[list[_Run], Tensor, Any]:
    """Modules in the order in which they ended, output, and the image's node of a graph that keeps no tensors."""
    seen: list[_Run] = []
    runs: Counter[str] = Counter()
    modules = dict(model.named_modules())

    first: dict[Any, Any] = {}  # of the node of a copy, that of the output

    def see(name: str, out: Any) -> Tensor | None:
        runs[name] += 1
        if not isinstance(out, Tensor):
            return None
        try:
            features = as_map(model, name, out, x)(out.detach())
        except LayerError:  # not features of places
            features = torch.empty(0, 0)
        weight = getattr(modules[name], "weight", None)
        is_weights = isinstance(weight, Tensor) and weight.dim() > 1
        copy, node = out.clone(), first.get(out.grad_fn, out.grad_fn)
        first[copy.grad_fn] = node
        seen.append(_Run(name, math.prod(features.shape[2:]), out.dim() != x.dim(), is_weights, node))
        return copy  # what works in place on a view would take the node off the way

    def no_tensor(_tensor: Any) -> Any:
        return None

    with torch.inference_mode(False), torch.enable_grad(), evaluating(model), frozen(model):
        image = x.as_subclass(Tensor).detach().clone().requires_grad_().clone()  # the first layer may work in place
        node = image.grad_fn
        with (
            torch.autograd.graph.saved_tensors_hooks(no_tensor, no_tensor),
            _hooked(model, [name for name in modules if name], see),
        ):
            output = model(image, **kwargs)
    for run in seen:
        run.runs = runs[run.name]
    return seen, output, node


def _outermost(seen: Sequence[_Run]) -> list[_Run]:
    """Of modules that end with the same node the block that holds the others; none that hands on its own input."""
    made_by: dict[Any, str] = {}
    for run in seen:
        if run.node not in made_by or made_by[run.node].startswith(f"{run.name}."):
            made_by[run.node] = run.name
    return [run for run in seen if made_by[run.node] == run.name]


def nodes_behind(output: Any, without: Any = None) -> set[Any]:
    """Nodes that `output` depends on, itself included, by paths that avoid the node `without`."""
    visited, waiting = set(), [output]
    while waiting:
        node = waiting.pop()
        if node is None or node is without or node in visited:
            continue
        visited.add(node)
        waiting += [following for following, _ in node.next_functions]
    return visited


def _hands_on_places(model: nn.Module, x: Tensor, kwargs: Mapping[str, Any], layer: str) -> bool:
    """Whether the output depends on the places among a layer's tokens, and not on the class token alone."""
    with torch.inference_mode(False), torch.enable_grad(), evaluating(model), frozen(model):
        with record(model, [layer]) as recorder:
            output = model(x.as_subclass(Tensor).detach().clone(), **kwargs)
        weights = torch.rand(output.shape, generator=torch.Generator().manual_seed(0)).to(output)
        gradient = recorder.gradients((output * weights).flatten(1).sum(1))[layer]
    places = as_map(model, layer, gradient, x)(gradient)
    return bool(places.any()) or not bool(gradient.any())


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
