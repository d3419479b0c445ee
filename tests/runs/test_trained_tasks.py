"""What a run was trained for, over the stages and runs that it started from."""

from __future__ import annotations

from pathlib import Path

import yaml

from scripts.runs.checkpoint_files import CONFIG
from scripts.runs.tasks import trained_tasks


def stage(folder: Path, initial: Path | None = None, **values: object) -> Path:
    folder.mkdir(parents=True)
    config = {"initial_weights": None if initial is None else str(initial / "model.pt"), **values}
    (folder / CONFIG).write_text(yaml.safe_dump(config), encoding="utf-8")
    return folder


def test_stage_of_another_run_may_have_the_same_name(tmp_path):
    first = stage(tmp_path / "first" / "joint", train_classification=False)
    second = stage(tmp_path / "second" / "joint", first, train_segmentation=False)
    third = stage(tmp_path / "third" / "joint", second, train_segmentation=False)
    assert trained_tasks(first) == {"segmentation"}
    assert trained_tasks(third) == {"segmentation", "classification"}


def test_stages_of_a_moved_run_are_found_beside_each_other(tmp_path):
    first = stage(tmp_path / "run" / "stage1_segmentation", train_classification=False)
    second = stage(tmp_path / "run" / "stage2_classification", first, train_segmentation=False)
    moved = (tmp_path / "run").rename(tmp_path / "moved") / second.name
    assert trained_tasks(moved) == {"segmentation", "classification"}
