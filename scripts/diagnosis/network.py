"""The network of a diagnosis: any class or bundle config with its checkpoint, and what of it is explained."""

from __future__ import annotations

import importlib
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from monai.bundle import ConfigParser
from torch import Tensor, nn

from scripts.command.config_files import read_config
from scripts.explain.gradient_findings import logits_of
from scripts.explain.layers import evaluating
from scripts.explain.targets import ClassScore, LogitTarget, SegmentationRegion, Target, named_target

__all__ = [
    "build_network",
    "choose_target",
    "config_ids",
    "existing_file",
    "load_checkpoint",
    "named",
    "padding",
    "parse_json",
]

STATE_KEYS = ("state_dict", "model_state_dict", "model", "network", "net")
PREFIXES = ("module.", "model.", "network.", "net.", "_orig_mod.")


def named(path: str | None, what: str) -> Any:
    """Object of a dotted import path, such as "monai.visualize.default_normalizer"; None for None.

    Raises:
        ValueError: when there is no such module or name in it.
    """
    if path is None:
        return None
    module, _, name = str(path).rpartition(".")
    try:
        obj = getattr(importlib.import_module(module), name) if module else None
    except (ImportError, AttributeError) as error:
        raise ValueError(f"{what} {path!r} can not be imported: {error}; give it as module.name") from error
    if obj is None:
        raise ValueError(f"{what} {path!r}: expected a dotted import path, module.name")
    return obj


def build_network(path: str | None, arguments: str | None, config_file: str | None, config_id: str) -> nn.Module:
    """Network from a class (or function) with JSON arguments, or from the `network_def` of a bundle config.

    Raises:
        ValueError: when neither or both are given, or what they give is no network.
    """
    if (path is None) == (config_file is None):
        raise ValueError("give the network either as --network CLASS [--network_args JSON] or as --network_config FILE")
    if config_file is not None:
        parser = read_config(existing_file(config_file, "network_config"))
        if config_id not in parser.get():
            raise ValueError(f"{config_file} has no {config_id!r}; it has {config_ids(parser)}")
        network = parser.get_parsed_content(config_id)
    else:
        kwargs, maker = parse_json(arguments, "network_args"), named(path, "network")
        try:
            network = maker(**kwargs)
        except TypeError as error:
            raise ValueError(f"{path} does not take these arguments: {error}") from error
    if not isinstance(network, nn.Module):
        raise ValueError(f"{config_file or path} gives a {type(network).__name__}, expected a torch.nn.Module")
    return network.eval()


def parse_json(text: str | None, what: str) -> dict[str, Any]:
    """Keyword arguments written as JSON; none for None.

    Raises:
        ValueError: when it is no JSON object.
    """
    try:
        kwargs = json.loads(text or "{}")
    except json.JSONDecodeError as error:
        raise ValueError(f"{what} is not JSON ({error}): {text}") from error
    if not isinstance(kwargs, dict):
        raise ValueError(f'{what}: expected a JSON object, {{"name": value}}, got {text}')
    return kwargs


def existing_file(path: str | Path, what: str) -> str:
    """The path as text.

    Raises:
        FileNotFoundError: when there is no such file.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"{what} {path} does not exist")
    return str(path)


def config_ids(parser: ConfigParser) -> str:
    """What a config holds, for messages."""
    return ", ".join(sorted(name for name in parser.get() if not name.startswith("_")))


def load_checkpoint(network: nn.Module, path: str | Path) -> nn.Module:
    """Load weights from a state dict, or from a training checkpoint that holds one.

    Raises:
        ValueError: when the file holds none, or one that does not fit; names the keys that differ.
    """
    file = existing_file(path, "checkpoint")
    try:
        state: Any = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:
        raise ValueError(
            f"checkpoint {path} can not be read as weights ({type(error).__name__}); save network.state_dict(). A "
            "scripted or whole pickled network has no layers that can be looked at safely"
        ) from error
    for key in STATE_KEYS:
        if isinstance(state, Mapping) and isinstance(state.get(key), Mapping):
            state = state[key]
    if not isinstance(state, Mapping) or not all(isinstance(value, Tensor) for value in state.values()):
        raise ValueError(f"checkpoint {path} holds no state dict; expected one, or one under {', '.join(STATE_KEYS)}")
    expected, loaded = network.state_dict(), dict(state)
    for prefix in PREFIXES:
        if loaded and not expected.keys() & loaded.keys() and all(key.startswith(prefix) for key in loaded):
            loaded = {key.removeprefix(prefix): value for key, value in loaded.items()}
    missing, extra = sorted(expected.keys() - loaded.keys()), sorted(loaded.keys() - expected.keys())
    shapes = sorted(k for k in expected.keys() & loaded.keys() if expected[k].shape != loaded[k].shape)
    if missing or extra or shapes:
        raise ValueError(
            f"checkpoint {path} does not fit {type(network).__name__}: missing {missing[:3]}, unexpected {extra[:3]}, "
            f"other shapes {shapes[:3]} ({len(missing)}, {len(extra)}, {len(shapes)} in all); check the arguments"
        )
    network.load_state_dict(loaded)
    return network


def choose_target(
    network: nn.Module,
    images: Tensor,
    forward_kwargs: Mapping[str, Any],
    target: str | None,
    class_index: int | None,
    num_classes: int | None,
    default: Target | None = None,
) -> tuple[Target, str]:
    """The explained score, and a sentence on how it was chosen.

    Args:
        network, images, forward_kwargs: for one forward pass that shows the output's shape.
        target: a name of `scripts.explain.targets.named_target`; None: by `class_index`.
        class_index: class (or channel of a segmentation); None: `default`, else 1, or 0 where there is no class 1.
        num_classes: number of classes that the output has to have; None: any.
        default: of the caller.

    Raises:
        ValueError: when the output does not fit.
    """
    try:
        output = logits_of(network, images[:1], _first(forward_kwargs, len(images)))
    except (RuntimeError, TypeError) as error:
        shape = tuple(images[:1].shape)
        raise ValueError(
            f"{type(network).__name__} does not work on images {shape}: {str(error).splitlines()[0]}; check its "
            "arguments, those of forward (--forward_args) and the preprocessing"
        ) from error
    dense = output.dim() == images.dim()
    if not dense and output.dim() != 2:
        raise ValueError(
            f"{type(network).__name__} gives {tuple(output.shape)}; expected logits (B, K) or a segmentation"
        )
    if num_classes is not None and output.shape[1] != num_classes:
        raise ValueError(
            f"{type(network).__name__} has {output.shape[1]} outputs, but {num_classes} classes were given"
        )
    if target is not None and class_index is not None:
        raise ValueError("give either a target or a class index")
    if target is not None:
        chosen = named_target(target)
        if isinstance(chosen, LogitTarget) == dense:
            kind = "a segmentation" if dense else "class logits"
            raise ValueError(f"target {target} does not fit the network's output, {kind} {tuple(output.shape)}")
        return chosen, f"target {chosen.name}, as given"
    if class_index is None and default is not None:
        return default, f"target {default.name}, the default"
    index = min(1, output.shape[1] - 1) if class_index is None else class_index
    if not 0 <= index < output.shape[1]:
        raise ValueError(
            f"class index {index} is not in 0..{output.shape[1] - 1}: the network has {output.shape[1]} outputs"
        )
    how = "as given" if class_index is not None else "since no class index was given"
    if dense:
        return SegmentationRegion(channel=index), f"channel {index} of the segmentation, {how}"
    return ClassScore(index), f"logit of class {index} of {output.shape[1]}, {how}"


def _first(kwargs: Mapping[str, Any], count: int) -> dict[str, Any]:
    return {k: v[:1] if isinstance(v, Tensor) and len(v) == count else v for k, v in kwargs.items()}


def padding(network: nn.Module, images: Tensor, forward_kwargs: Mapping[str, Any], least: int = 16) -> int:
    """Pixels of air that can be added on a side without shifting the grid: a multiple of the network's total stride."""
    grids: list[int] = []

    def look(_module: nn.Module, _args: Any, output: Any) -> None:
        if isinstance(output, Tensor) and output.dim() == images.dim() and math.prod(output.shape[2:]) > 1:
            grids.append(min(output.shape[2:]))

    handles = [module.register_forward_hook(look) for module in network.modules()]
    try:
        with torch.no_grad(), evaluating(network):
            network(images[:1].clone(), **_first(forward_kwargs, len(images)))
    finally:
        for handle in handles:
            handle.remove()
    stride = 2 ** max(0, round(math.log2(min(images.shape[2:]) / min(grids or [1]))))
    return stride * max(1, math.ceil(least / stride))
