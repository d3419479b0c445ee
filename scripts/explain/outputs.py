"""Networks that return several things: a dictionary, a tuple, a list, a dataclass. One of them is explained."""

from __future__ import annotations

import dataclasses
import difflib
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from scripts.explain.targets import Target, named_target

__all__ = ["Classes", "one_of", "selecting", "target_of", "tensors_of", "unwrapped"]

# Names of the classes of the explained output, or of several outputs by their names.
Classes = Sequence[str] | Mapping[str, Sequence[str]]


def unwrapped(model: nn.Module) -> nn.Module:
    """The module inside `DataParallel`, `DistributedDataParallel` and `torch.compile`, with its own layer names.

    It shares the parameters. A part that was compiled in place runs uncompiled within `selecting`.
    """
    while True:
        parallel = isinstance(model, nn.DataParallel | DistributedDataParallel)
        inner = model.module if parallel else getattr(model, "_orig_mod", None)  # the latter by torch.compile
        if not isinstance(inner, nn.Module):
            return model
        model = inner


def tensors_of(output: Any) -> dict[str, Tensor]:
    """Tensors of a network's output by name: keys, fields or positions, with dots between those of nested ones.

    >>> import torch
    >>> list(tensors_of({"seg": torch.zeros(1), "heads": (torch.zeros(1), torch.zeros(1)), "n": 3}))
    ['seg', 'heads.0', 'heads.1']
    """
    if isinstance(output, Tensor):
        return {"": output}
    members: Mapping[Any, Any] = {}
    if isinstance(output, Mapping):
        members = output
    elif dataclasses.is_dataclass(output) and not isinstance(output, type):
        members = {field.name: getattr(output, field.name) for field in dataclasses.fields(output)}
    elif isinstance(output, tuple | list):
        members = dict(zip(getattr(output, "_fields", range(len(output))), output, strict=True))
    tensors: dict[str, Tensor] = {}
    for key, value in members.items():
        tensors |= {f"{key}.{name}" if name else str(key): tensor for name, tensor in tensors_of(value).items()}
    return tensors


def one_of(output: Any, head: str | None, kind: str = "the network") -> Tensor:
    """The tensor of an output that is explained.

    Args:
        output: of a network.
        head: its name, see `tensors_of`; None where there is one only.
        kind: of the network, for errors.

    Raises:
        ValueError: when there is no such tensor, or there are several and none is named.
    """
    tensors = tensors_of(output)
    if head is None and len(tensors) == 1:
        return next(iter(tensors.values()))
    listed = ", ".join(f"{name or 'one tensor'} {tuple(tensor.shape)}" for name, tensor in tensors.items())
    if not tensors:
        raise ValueError(f"{kind} returned {type(output).__name__} without a tensor; nothing in it can be explained")
    if head is None:
        raise ValueError(f"{kind} returned several outputs: {listed}; name one by head, or in the target: 'NAME:class'")
    if head not in tensors:
        nearest = difflib.get_close_matches(head, [name for name in tensors if name], n=1, cutoff=0.0)
        hint = f"nearest: {nearest[0]!r}" if nearest else "leave head out"
        raise ValueError(f"head {head!r} is none of the outputs of {kind}: {listed}; {hint}")
    return tensors[head]


@contextmanager
def selecting(model: nn.Module, head: str | None = None) -> Iterator[nn.Module]:
    """Let `model` return one tensor of its outputs in the forward passes of this thread in this block.

    Args:
        model: the network; it is left as it was, also after an exception.
        head: name of the output, see `tensors_of`; None for the only one.
    """
    thread, kind = threading.get_ident(), type(model).__name__

    def select(_module: nn.Module, _args: tuple, output: Any) -> Tensor | None:
        if threading.get_ident() != thread or (head is None and isinstance(output, Tensor)):
            return None
        return one_of(output, head, kind)

    compiled = any(getattr(module, "_compiled_call_impl", None) is not None for module in model.modules())
    handle = model.register_forward_hook(select)
    try:
        with torch.compiler.set_stance("force_eager") if compiled else nullcontext():
            yield model
    finally:
        handle.remove()


def target_of(text: str, classes: Classes | None = None) -> tuple[str | None, Target | int]:
    """Output and target of a text: "cls:glioma", "seg:1", "cls:tumor_log_odds", or without an output "glioma".

    Args:
        text: the output's name and a colon, where there are several outputs; then a class by name or number, or a name
            of `targets.named_target`.
        classes: see `Classes`.

    Raises:
        ValueError: for a name that is no class and no target; the message gives the nearest class.

    >>> target_of("cls:glioma", ["no tumor", "glioma"])
    ('cls', 1)
    """
    head, colon, name = text.rpartition(":")
    names = classes.get(head, []) if isinstance(classes, Mapping) else classes or []
    chosen = head if colon else None
    if name in names:
        return chosen, list(names).index(name)
    if name.isdecimal():
        return chosen, int(name)
    try:
        return chosen, named_target(name)
    except ValueError as error:
        nearest = difflib.get_close_matches(name, names, n=1, cutoff=0.0)
        hint = f"nearest class: {nearest[0]!r}" if nearest else "the names of the classes are not given (classes=...)"
        raise ValueError(f"target {text!r}: {name!r} is no class; {hint}. Otherwise: {error}") from error
