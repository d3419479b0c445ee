"""What a network was trained for, and what is said of a part of it that was not: it answers all the same."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from scripts.command.config_files import parser_of, read_mapping
from scripts.runs.checkpoint_files import CONFIG

__all__ = [
    "NO_SEGMENTATION",
    "TASKS",
    "UNTRAINED",
    "default_key_metric",
    "is_trained",
    "trained_tasks",
    "untrained_flags",
]

TASKS = ("classification", "segmentation")
UNTRAINED = {
    "classification": "the head of this network was not trained: probability, class and evidence would be those of "
    "random weights",
    "segmentation": "the decoder of this network was not trained: its mask would be that of random weights",
}
NO_SEGMENTATION = "this network segments nothing, or its decoder was not trained"
CODES = {"classification": "untrained_head", "segmentation": "untrained_decoder"}


def is_trained(network: Any, task: str) -> bool:
    """Whether a network of `scripts.runs.folder.load_run` was trained for a task; one from elsewhere counts as trained.

    Args:
        network: with `has_segmentation`, and `trained_tasks` if its run is known.
        task: of `TASKS`.
    """
    if task not in TASKS:
        raise ValueError(f"task is one of {', '.join(TASKS)}, got {task!r}")
    able = bool(network.has_segmentation) if task == "segmentation" else True
    return able and task in getattr(network, "trained_tasks", TASKS)


def trained_tasks(stage_dir: str | Path) -> set[str]:
    """What a stage and the stages before it were trained for: of "segmentation" and "classification".

    Args:
        stage_dir: folder with a config.yaml.
    """
    folder = Path(stage_dir)
    config = parser_of(read_mapping(folder / CONFIG))
    flags = {"segmentation": "seg_weight", "classification": "cls_weight"}
    tasks = {task for task, weight in flags.items() if config.get(f"train_{task}", True) and config.get(weight, 1.0)}
    before = config.get_parsed_content("initial_weights") if config.get("initial_weights") else None
    if before is not None:
        # A run may have been moved: its stages are looked for beside each other first.
        for earlier in (folder.parent / Path(before).parent.name, Path(before).parent):
            # The stage of another run that this one started from may have this one's name.
            if (earlier / CONFIG).is_file() and earlier.resolve() != folder.resolve():
                return tasks | trained_tasks(earlier)
    return tasks


def untrained_flags(trained: Sequence[str]) -> list[dict[str, Any]]:
    """A flag of a result for each task that the network was not trained for.

    Args:
        trained: of `TASKS`.
    """
    return [{"code": CODES[task], "message": UNTRAINED[task]} for task in TASKS if task not in trained]


def default_key_metric(datalist_file: str | None, num_classes: int) -> str:
    """What selects weights: MONAI Label's items tell tumor from none, but not one tumor class from another."""
    return "dice" if datalist_file is None and num_classes > 2 else "combined"
