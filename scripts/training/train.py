"""All three stages in one command and one process; continues where it was interrupted.

Example::

    python -m scripts train --dataset_dir DIR --datalist_file LIST.json --run_dir runs/mine
    python -m scripts train ... --overlay configs/baseline.yaml --max_epochs 20
    python -m scripts train ... --stage3_joint "{'max_epochs': 20, 'learning_rate': 0.0005}"
    torchrun --nproc_per_node=2 -m scripts train ... --overlay configs/multi_gpu_train.yaml
"""

from __future__ import annotations

import argparse
import difflib
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from scripts.command.locations import CONFIGS
from scripts.command.overrides import parse_overrides
from scripts.command.verbs import Outcome, compute_values
from scripts.command.workflows import make_workflow
from scripts.runs import folder as runs
from scripts.runs import lock
from scripts.runs.network_overlay import write_overlay_of_stage
from scripts.runs.regions import stated
from scripts.training.handlers.monitoring import check_tracking

logger = logging.getLogger(__name__)


def config_files(stage: str, overlays: Sequence[str | Path] = ()) -> list[str]:
    """The config files of a stage in the order in which they are merged."""
    stage_files = [] if stage == runs.JOINT else [str(CONFIGS / f"{stage}.yaml")]
    return [str(CONFIGS / "train.yaml"), *stage_files, *map(str, overlays)]


def by_stage(
    stages: Sequence[str], overlays: Sequence[str | Path], overrides: Mapping[str, Any]
) -> dict[str, dict[str, Any]]:
    """The overrides of each stage, its own before the common ones, all checked before the first stage begins.

    Args:
        stages: of the run.
        overlays: config files merged after each stage's.
        overrides: values by config id, and those of one stage by its name.

    Raises:
        ValueError: when an id is in no config file, or a stage is named that is not run or without a mapping.
    """
    common = {name: value for name, value in overrides.items() if name not in (*runs.STAGES, runs.JOINT)}
    for stage in (*runs.STAGES, runs.JOINT):
        if stage in overrides and stage not in stages:
            raise ValueError(f"--{stage}: no such stage in this run, its stages: {', '.join(stages)}")
        if not isinstance(overrides.get(stage, {}), Mapping):
            raise ValueError(f"--{stage} takes values by id, \"{{'max_epochs': 20}}\"; got {overrides[stage]!r}")
    for name in common:
        near = difflib.get_close_matches(name, (*runs.STAGES, runs.JOINT), n=1, cutoff=0.8)
        if near and isinstance(common[name], Mapping):
            raise ValueError(f"--{name}: no such stage; nearest: --{near[0]}")
    result = {stage: {**common, **overrides.get(stage, {})} for stage in stages}
    for stage, values in result.items():
        runs.merged_config(config_files(stage, overlays), values)
    return result


def train_stage(
    stage: str, overlays: Sequence[str | Path], overrides: Mapping[str, Any], tracking: str | None = None
) -> Path:
    """Run one stage, or leave it as it is when it is finished.

    Args:
        stage: one of `scripts.runs.folder.STAGES`, an overlay in ``configs/``; or "joint", train.yaml alone.
        overlays: config files merged after the stage's.
        overrides: values by config id; ``run_dir``, ``dataset_dir`` and ``datalist_file`` among them.
        tracking: "mlflow", or a file of MONAI's tracking settings; None: TensorBoard alone.

    Returns:
        the stage's folder.
    """
    files = config_files(stage, overlays)
    folder = Path(overrides["run_dir"]) / stage
    datalist = runs.read_datalist(overrides["datalist_file"], overrides["dataset_dir"])
    config = {**runs.merged_config(files, dict(overrides)), "num_classes": runs.num_classes(datalist)}
    config |= {"regions": stated(datalist)}
    if runs.finished(folder, config, overrides["datalist_file"]):
        logger.info("%s: finished before, kept", folder)
        return folder
    if tracking is not None:
        check_tracking(["--tracking", tracking])
    workflow = make_workflow("train", files, overrides, tracking)
    try:
        workflow.initialize()
        runs.write_config(folder, config)
        workflow.run()
        workflow.finalize()
    finally:
        lock.release(folder)
    return folder


def train(
    run_dir: str | Path,
    overlays: Sequence[str | Path] = (),
    stages: Sequence[str] = runs.STAGES,
    tracking: str | None = None,
    **overrides: Any,
) -> Path:
    """Run the three stages.

    Overrides are checked before the first one begins.

    Args:
        run_dir: folder of the run.
        overlays: config files merged after each stage's.
        stages: others than the three: ``("joint",)`` trains all at once from random weights.
        tracking: as in `train_stage`.
        overrides: values by config id, ``dataset_dir`` and ``datalist_file`` among them. A value for one stage alone
            is given as ``{"stage1_segmentation": {...}}``.

    Returns:
        the run's folder.

    Raises:
        ValueError: when an override is in no config file (names the nearest id), or is of a stage that is not run.
    """
    for stage, values in by_stage(stages, overlays, {**overrides, "run_dir": str(run_dir)}).items():
        train_stage(stage, overlays, values, tracking)
    write_overlay_of_stage(run_dir, overrides["datalist_file"], overrides["dataset_dir"])
    return Path(run_dir)


def execute(arguments: argparse.Namespace) -> Outcome:
    """The verb ``train``."""
    run = train(
        arguments.run_dir,
        arguments.overlay,
        (runs.JOINT,) if arguments.joint else runs.STAGES,
        arguments.tracking,
        dataset_dir=str(arguments.dataset_dir),
        datalist_file=str(arguments.datalist_file),
        **compute_values(arguments),
        **parse_overrides(arguments.overrides),
    )
    text = f"settings and versions lie beside the weights; curves: tensorboard --logdir {run}"
    return Outcome(text, [runs.last_stage(run) / runs.WEIGHTS, run / "network.yaml"])
