"""Weights and checkpoints on disk: whole or absent, checked when read, the one before kept."""

from __future__ import annotations

import logging
import os
import zipfile
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import nn

from scripts.command.files import whole
from scripts.runs import parallel

logger = logging.getLogger(__name__)

WEIGHTS, CHECKPOINT, PREVIOUS = "model.pt", "checkpoint.pt", "checkpoint_previous.pt"
CONFIG = "config.yaml"  # of a stage, as it was resolved
LATER = {"fixed_part", "mask_threshold"}  # keys that earlier versions did not write, and that the network fills in
TRAINED_WITH = "deep_heads."  # keys that no output depends on: the network takes or leaves them


def written_state(network: nn.Module) -> list[tuple[int, int]]:
    """Address and count of writes of each parameter and buffer: another list once one is written to or exchanged."""
    return [(value.data_ptr(), value._version) for value in chain(network.parameters(), network.buffers())]


def save_atomic(value: Any, path: str | Path) -> None:
    """``torch.save`` that leaves either the whole new file or the old one, also when the machine goes away."""
    with whole(path) as place:
        _save(value, place)


def _save(value: Any, path: Path) -> None:
    with open(path, "wb") as file:
        torch.save(value, file)
        file.flush()
        os.fsync(file.fileno())


def load_whole(path: str | Path) -> Any:
    """``torch.load`` of plain content that first compares the checksums in the file.

    Raises:
        ValueError: when the file is truncated or otherwise damaged; says how.
        FileNotFoundError: when there is none.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            broken = archive.testzip()
        if broken is None:
            return torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise
    except Exception as error:
        raise ValueError(f"{path} is not readable ({type(error).__name__}); it may be truncated") from error
    raise ValueError(f"{path} is damaged: the content of {broken} differs from its checksum")


def load_weights(network: nn.Module, path: str | Path | None) -> nn.Module:
    """Load a plain state dict strictly; None leaves the network as it is.

    Raises:
        FileNotFoundError: when the file is absent.
        ValueError: when it is not a state dict of this network, with the keys that differ.
    """
    if path is None:
        return network
    if not Path(path).is_file():
        raise FileNotFoundError(f"no weights at {path}; run the stage that writes them first")
    try:
        state = load_whole(path)
    except ValueError as error:
        raise ValueError(f"weights file {error}") from error
    if not isinstance(state, dict):
        raise ValueError(f"weights file {path} holds a {type(state).__name__}, expected a state dict")
    expected = network.state_dict()
    missing, unexpected = (
        sorted(key for key in keys if not key.startswith(TRAINED_WITH))
        for keys in (expected.keys() - state.keys() - LATER, state.keys() - expected.keys())
    )
    shapes = sorted(k for k in expected.keys() & state.keys() if expected[k].shape != state[k].shape)
    if missing or unexpected or shapes:
        raise ValueError(
            f"weights file {path} does not fit {type(network).__name__}: missing keys {missing[:3]}, unexpected keys "
            f"{unexpected[:3]}, other shapes {shapes[:3]}; build the network with the config of that run"
        )
    broken = [k for k, value in state.items() if value.is_floating_point() and not bool(torch.isfinite(value).all())]
    if broken:
        raise ValueError(
            f"weights file {path} holds values that are not finite ({', '.join(broken[:3])}): nothing can be computed "
            "with it; train again, with a lower learning rate"
        )
    network.load_state_dict(state)
    return network


def save_checkpoint(state: dict[str, Any], folder: str | Path) -> None:
    """Write the newest checkpoint of a folder; the one before stays beside it."""
    newest = Path(folder) / CHECKPOINT
    with whole(newest) as place:
        _save(state, place)
        if newest.is_file():
            os.replace(newest, newest.with_name(PREVIOUS))


def read_checkpoint(folder: str | Path) -> dict[str, Any] | None:
    """The newest whole checkpoint of a folder; None if there is none at all.

    A damaged one is named in a warning, put aside as ``<name>.damaged``, and the one before it is taken.

    Raises:
        ValueError: when there are checkpoints and none of them is whole.
    """
    reasons = []
    for name in (CHECKPOINT, PREVIOUS):
        path = Path(folder) / name
        if not path.is_file():
            continue
        try:
            state = load_whole(path)
        except (ValueError, FileNotFoundError) as error:
            reasons.append(str(error))
            continue
        if reasons:
            logger.warning(
                "checkpoint %s: what it held is lost; epoch %d is trained again, from %s after epoch %d",
                reasons[0], state["epoch"] + 1, path, state["epoch"],
            )  # fmt: skip
            if parallel.first():
                damaged = Path(folder) / CHECKPOINT
                os.replace(damaged, damaged.with_name(CHECKPOINT + ".damaged"))
        return state
    if reasons:
        raise ValueError(f"checkpoint {reasons[0]}; there is none before it: delete it to start this stage again")
    return None
