"""Find layers by name, and the modes in which a network is looked at."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from torch import nn

__all__ = ["LayerError", "default_aliases", "evaluating", "frozen", "list_layers", "refuse_quantized", "resolve_layer"]

ALIASES = ("encoder_early", "encoder_mid", "encoder_last", "decoder_last", "seg_head", "evidence")


class LayerError(ValueError):
    """A layer that does not exist, did not run, ran twice, or whose output is no activation to explain."""


def list_layers(model: nn.Module) -> list[str]:
    """Dotted names of all layers of `model`, in the order of their definition, the model itself left out.

    >>> list_layers(nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU()))
    ['0', '1']
    """
    return [name for name, _ in model.named_modules() if name]


def _numbered(model: nn.Module, name: str) -> list[str]:
    """Names of the children of the container `name`, or nothing where there is no such container."""
    container = getattr(model, name, None)
    return [f"{name}.{child}" for child, _ in container.named_children()] if isinstance(container, nn.Module) else []


def default_aliases(model: nn.Module) -> dict[str, str]:
    """Aliases that can be read off a network with the block names of MONAI's DynUNet (or SegResNet).

    `encoder_early` is the first block, `encoder_mid` the middle downsampling block, `encoder_last` the deepest block,
    `decoder_last` the last upsampling block, `seg_head` the output layer, `evidence` the features in front of an
    evidence convolution (`head.features`).

    Returns:
        alias: dotted layer name, only for blocks that the network has. Empty for a network of another build.
    """
    names = set(list_layers(model))
    down, up = _numbered(model, "downsamples"), _numbered(model, "upsamples")
    aliases = {"encoder_early": "input_block", "encoder_last": "bottleneck", "seg_head": "output_block"}
    if not {"input_block", "bottleneck"} <= names:
        down, up = _numbered(model, "down_layers"), _numbered(model, "up_layers")
        aliases = {"encoder_early": "convInit", "seg_head": "conv_final"}
        if down:
            aliases["encoder_last"] = down[-1]
    if down:
        aliases["encoder_mid"] = down[(len(down) - 1) // 2]
    if up:
        aliases["decoder_last"] = up[-1]
    aliases["evidence"] = "head.features"
    return {alias: aliases[alias] for alias in ALIASES if aliases.get(alias) in names}


def resolve_layer(model: nn.Module, name: str, aliases: Mapping[str, str] | None = None) -> str:
    """Turn an alias or a dotted name into the dotted name of a layer that exists.

    Args:
        model: the network.
        name: a dotted name as in `model.named_modules()`, or an alias.
        aliases: further aliases; they come before those of `default_aliases`.

    Raises:
        LayerError: when there is no such layer; the message gives the nearest name.
    """
    known = {**default_aliases(model), **(aliases or {})}
    resolved = known.get(name, name)
    layers = dict(model.named_modules(remove_duplicate=False))
    if resolved and resolved in layers:
        return resolved
    kind = type(model).__name__
    hint = "list them with scripts.explain.layers.list_layers(model)"
    if resolved != name:
        raise LayerError(f"alias {name!r} stands for layer {resolved!r}, which is not in {kind}; {hint}")
    if name in ALIASES:
        raise LayerError(f"{kind} has no default for the alias {name!r}; give aliases={{{name!r}: LAYER}}; {hint}")
    candidates = [*known, *(layer for layer in layers if layer)]
    nearest = difflib.get_close_matches(name, candidates, n=1, cutoff=0.0)
    nearest_text = f"nearest: {nearest[0]!r}; " if nearest else ""
    raise LayerError(f"layer {name!r} not in {kind}; {nearest_text}{hint}")


def refuse_quantized(model: nn.Module) -> None:
    """Make sure that gradients can pass: the integers of quantized layers carry none.

    Raises:
        LayerError: naming the first quantized layer.
    """
    for name, module in model.named_modules():
        if "quantized" in type(module).__module__.split("."):
            raise LayerError(
                f"layer {name!r} of {type(model).__name__} is quantized, and its integers carry no gradient; explain "
                "the network that was quantized, or take occlusion"
            )


@contextmanager
def evaluating(model: nn.Module) -> Iterator[nn.Module]:
    """Put `model` in evaluation mode, and give every module its own former mode back, also after an exception."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield model
    finally:
        for module, mode in modes:
            module.training = mode


@contextmanager
def frozen(model: nn.Module) -> Iterator[nn.Module]:
    """Let no parameter of `model` need a gradient, and restore that afterwards, also after an exception.

    Explanations need none, and a graph that begins at the first recorded layer is cheaper: four decoder maps of a 2D
    DynUNet took 1.66 forward passes instead of 1.84.
    """
    learning = [parameter for parameter in model.parameters() if parameter.requires_grad]
    try:
        for parameter in learning:
            parameter.requires_grad_(False)
        yield model
    finally:
        for parameter in learning:
            parameter.requires_grad_(True)
