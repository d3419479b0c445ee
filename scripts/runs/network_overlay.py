"""``network.yaml`` of a run: what ``configs/inference.yaml`` has to know of it, its weights by their place."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import yaml

from scripts.command.config_files import read_mapping
from scripts.command.files import file_sha256, write_text
from scripts.command.overrides import bundle_command
from scripts.runs import parallel
from scripts.runs.checkpoint_files import CONFIG, WEIGHTS
from scripts.runs.folder import last_stage, read_datalist
from scripts.runs.prevalence import training_prevalence
from scripts.runs.tasks import trained_tasks

__all__ = ["FILE", "located", "write_network_overlay", "write_overlay_of_stage"]

FILE = "network.yaml"


def write_network_overlay(run_dir: str | Path, classes: dict[str, str]) -> Path:
    """Write ``network.yaml`` of a run: an overlay of ``configs/inference.yaml`` with its network, size and weights.

    The weights are named relative to the overlay, with their hash: a copied or moved run predicts with its own. Of
    several processes the first one writes.

    Args:
        run_dir: the run (or the stage) whose last trained stage is taken.
        classes: names by index, of the datalist.

    Returns:
        the file.
    """
    run = Path(run_dir).expanduser()
    if not parallel.first():
        return run / FILE
    folder = last_stage(run)
    config = read_mapping(folder / CONFIG)
    overlay = {key: config[key] for key in ("spatial_size", "num_classes", "network_def")}
    overlay |= {key: config[key] for key in ("regions", "spacing_mm") if config.get(key) is not None}
    overlay |= {
        "classes": classes,
        "weights": Path(os.path.relpath(folder / WEIGHTS, run)).as_posix(),
        "weights_sha256": file_sha256(folder / WEIGHTS),
        "weights_origin": str((folder / WEIGHTS).resolve()),
        "trained_tasks": sorted(trained_tasks(folder)),
        "training_prevalence": training_prevalence(folder),
    }
    return write_text(
        "# Overlay of configs/inference.yaml: the network, its input size and its weights (relative to this file) as\n"
        "# this run trained them.\n" + yaml.safe_dump(overlay, sort_keys=False, allow_unicode=True),
        run / FILE,
    )


def write_overlay_of_stage(run_dir: str | Path, datalist_file: str | None, dataset_dir: str | None) -> None:
    """The same with the classes of the run's datalist, after each stage; nothing for MONAI Label, which has none."""
    if datalist_file is not None:
        write_network_overlay(run_dir, read_datalist(datalist_file, dataset_dir)["classes"])


def located(weights: str | Path | None, sha256: str | None = None, origin: str | None = None) -> str | None:
    """File of weights that a config names: a relative path counts from the config file that holds it.

    That file is looked up in the ``monai.bundle run`` command line; where it is not known, as for a program that makes
    the workflow itself, and for a path given on the command line, the path counts from the current folder. If nothing
    lies there, ``origin`` is taken: by its hash it is the same weights.

    Args:
        weights: of the config; None, random weights, is handed on.
        sha256: that the config says the file has; None: not known.
        origin: where the file lay when the config was written; only with ``sha256``.

    Raises:
        FileNotFoundError: when there is no such file.
        ValueError: when it is another file than the config is of.
    """
    if weights is None:
        return None
    path = Path(weights).expanduser()
    command = None if path.is_absolute() else bundle_command(sys.argv)
    if command is not None and "weights" not in command.values:
        for file in map(Path, reversed(command.files)):
            if read_mapping(file).get("weights") == str(weights):
                path = file.parent / path
                break
    if not path.is_file() and sha256 is not None and origin is not None and Path(origin).is_file():
        path = Path(origin)
    if not path.is_file():
        raise FileNotFoundError(
            f"no weights at {path}: train the run first; from Python give the path of an overlay's weights as weights="
        )
    check_sha256(path, sha256)
    return str(path)


def check_sha256(path: Path, sha256: str | None) -> None:
    """See that a file of weights is the one that a config is of.

    Raises:
        ValueError: when it is not.
    """
    if sha256 is not None and (got := file_sha256(path)) != sha256:
        raise ValueError(
            f"{path} has SHA-256 {got[:12]}..., the config (weights_sha256) is of {sha256[:12]}...: the weights were "
            "replaced, or belong to another run; give --weights_sha256 null to take them all the same"
        )
