"""All three stages in one command and one process; continues where it was interrupted.

Example::

    python -m scripts.train --dataset_dir DIR --datalist_file LIST.json --run_dir runs/mine
    python -m scripts.train ... --overlay configs/baseline.yaml --max_epochs 20
    torchrun --nproc_per_node=2 -m scripts.train ... --overlay configs/multi_gpu_train.yaml
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from monai.bundle import ConfigWorkflow

from scripts import parallel, runs
from scripts.cli import one_sentence_errors, parse_overrides, start_logging
from scripts.handlers import check_tracking

logger = logging.getLogger(__name__)

ROOT = Path(__file__).resolve().parents[1]
CONFIGS = ROOT / "configs"


def train_stage(
    stage: str, overlays: Sequence[str | Path], overrides: Mapping[str, Any], tracking: str | None = None
) -> Path:
    """Run one stage, or leave it as it is when it is finished.

    Args:
        stage: one of `scripts.runs.STAGES`, an overlay in ``configs/``; or "joint", train.yaml alone.
        overlays: config files merged after the stage's.
        overrides: values by config id; ``run_dir``, ``dataset_dir`` and ``datalist_file`` among them.
        tracking: "mlflow", or a file of MONAI's tracking settings; None: TensorBoard alone.

    Returns:
        the stage's folder.
    """
    own = [] if stage == runs.JOINT else [str(CONFIGS / f"{stage}.yaml")]
    files = [str(CONFIGS / "train.yaml"), *own, *map(str, overlays)]
    folder = Path(overrides["run_dir"]) / stage
    datalist = runs.read_datalist(overrides["datalist_file"], overrides["dataset_dir"])
    config = {**runs.merged_config(files, dict(overrides)), "num_classes": runs.num_classes(datalist)}
    if runs.finished(folder, config, overrides["datalist_file"]):
        logger.info("%s: finished before, kept", folder)
        return folder
    if tracking is not None:
        check_tracking(["--tracking", tracking])
    workflow = ConfigWorkflow(
        tracking=tracking,
        workflow_type="train",
        config_file=files,
        meta_file=str(CONFIGS / "metadata.json"),
        logging_file=False,
        bundle_root=str(ROOT),
        **overrides,
    )
    runs.write_config(folder, config)
    workflow.initialize()
    workflow.run()
    workflow.finalize()
    return folder


def train(
    run_dir: str | Path,
    overlays: Sequence[str | Path] = (),
    stages: Sequence[str] = runs.STAGES,
    tracking: str | None = None,
    **overrides: Any,
) -> Path:
    """Run the three stages.

    Args:
        run_dir: folder of the run.
        overlays: config files merged after each stage's.
        stages: others than the three: ``("joint",)`` trains all at once from random weights.
        tracking: as in `train_stage`.
        overrides: values by config id, ``dataset_dir`` and ``datalist_file`` among them. A value for one stage alone
            is given as ``{"stage1_segmentation": {...}}``.

    Returns:
        the run's folder.
    """
    by_stage = {stage: overrides.pop(stage, {}) for stage in stages}
    for stage in stages:
        train_stage(stage, overlays, {**overrides, **by_stage[stage], "run_dir": str(run_dir)}, tracking)
    if parallel.first():
        classes = runs.read_datalist(overrides["datalist_file"], overrides["dataset_dir"])["classes"]
        runs.write_network_overlay(run_dir, classes)
    return Path(run_dir)


def main(argv: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m scripts.train", description=__doc__.split("\n")[0])
    parser.add_argument("--dataset_dir", required=True, help="folder that the datalist's paths are relative to")
    parser.add_argument("--datalist_file", required=True, help="JSON datalist, see python -m scripts.datalists")
    parser.add_argument("--run_dir", required=True, help="folder that the stages are written to")
    parser.add_argument("--joint", action="store_true", help="one stage from random weights instead of the three")
    parser.add_argument("--overlay", action="append", default=[], help="config merged after each stage's; repeatable")
    parser.add_argument("--tracking", help="mlflow, or a file of MONAI's tracking settings")
    known, rest = parser.parse_known_args(argv)
    start_logging()
    train(
        known.run_dir,
        known.overlay,
        (runs.JOINT,) if known.joint else runs.STAGES,
        known.tracking,
        dataset_dir=known.dataset_dir,
        datalist_file=known.datalist_file,
        **parse_overrides(rest),
    )
    run = Path(known.run_dir)
    logger.info(
        "weights %s, settings and versions beside them; overlay for inference %s; curves: tensorboard --logdir %s",
        runs.last_stage(run) / runs.WEIGHTS, run / "network.yaml", run,
    )  # fmt: skip


if __name__ == "__main__":
    with one_sentence_errors():
        main()
