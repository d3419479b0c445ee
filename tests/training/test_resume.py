"""Kill -9 at any point and the same command again: everything ends as if nothing had happened, bit for bit."""

from __future__ import annotations

import json
import logging
import os
import random
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from ignite.engine import Events

from scripts.command.locations import CONFIGS
from scripts.runs import checkpoint_files
from scripts.runs import folder as runs
from scripts.runs.checkpoint_files import CHECKPOINT, PREVIOUS, WEIGHTS, read_checkpoint, save_checkpoint
from scripts.training import checkpoints
from scripts.training.checkpoints import StageCheckpoint
from scripts.training.train import train, train_stage
from tests.stages import BATCHES, EPOCHS, Stage, age, assert_same, kill_self, killed, logged

SMOKE = CONFIGS / "smoke.yaml"


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory) -> Stage:
    return Stage(tmp_path_factory.mktemp("unbroken"), ema_decay=0.9).run()


def at_iteration(stage: Stage, number: int) -> None:
    stage.trainer.add_event_handler(Events.ITERATION_COMPLETED(once=number), kill_self)


def in_the_first_validation(stage: Stage) -> None:
    stage.evaluator.add_event_handler(Events.ITERATION_COMPLETED(once=1), kill_self)


def when_all_is_trained(stage: Stage) -> None:
    stage.trainer.add_event_handler(Events.COMPLETED, kill_self)


def before_checkpoint(epoch: int):
    """After the validation, its log and its model.pt."""

    def arm(stage: Stage) -> None:
        save = checkpoints.save_checkpoint

        def save_or_die(state: dict, folder: Path) -> None:
            if state["epoch"] == epoch:
                kill_self()
            save(state, folder)

        checkpoints.save_checkpoint = save_or_die

    return arm


def half_written(name: str, count: int):
    """While a file is written for the n-th time."""

    def arm(stage: Stage) -> None:
        save, calls = torch.save, []

        def save_half(value: dict, file) -> None:
            if ("optimizer" in value) == (name == CHECKPOINT):  # both are written under names of their own
                calls.append(file)
            save(value, file)
            if len(calls) == count:
                file.truncate(1000)
                kill_self()

        torch.save = save_half

    return arm


def between_the_names(target: str, count: int):
    """Before a file gets its name for the n-th time."""

    def arm(stage: Stage) -> None:
        replace, calls = os.replace, []

        def replace_or_die(source: str, name: str) -> None:
            calls.append(Path(name).name == target)
            if calls[-1] and sum(calls) == count:
                kill_self()
            replace(source, name)

        checkpoint_files.os.replace = replace_or_die

    return arm


POINTS = {
    "first validation": in_the_first_validation,
    "before the first checkpoint": before_checkpoint(0),
    "first epoch": lambda stage: at_iteration(stage, 2),
    "end of an epoch": lambda stage: at_iteration(stage, 2 * BATCHES),
    "third epoch": lambda stage: at_iteration(stage, 2 * BATCHES + 1),
    "between model and checkpoint": before_checkpoint(2),
    "model half written": half_written(WEIGHTS, 1),
    "checkpoint half written": half_written(CHECKPOINT, 3),
    "previous one not yet renamed": between_the_names(PREVIOUS, 2),
    "newest one not yet renamed": between_the_names(CHECKPOINT, 3),
    "before the last checkpoint": before_checkpoint(EPOCHS),
    "when all is trained": when_all_is_trained,
}


@pytest.mark.parametrize("point", POINTS)
def test_killed_stage_ends_like_the_unbroken_one(unbroken, tmp_path, point):
    def work() -> None:
        stage = Stage(tmp_path, ema_decay=0.9)
        POINTS[point](stage)
        stage.run()

    assert killed(work)
    age(tmp_path)
    torch.manual_seed(12345)  # the new process starts with another state of the generators
    np.random.seed(12345)
    random.seed(12345)
    stage = Stage(tmp_path, ema_decay=0.9).run()
    assert_same(unbroken.files(), stage.files())
    assert_same(unbroken.optimizer.state_dict(), stage.optimizer.state_dict())
    assert stage.checkpoint.best_metric == unbroken.checkpoint.best_metric
    assert logged(tmp_path) == logged(unbroken.folder)


def test_log_of_the_unbroken_stage_is_whole(unbroken):
    log = logged(unbroken.folder)
    assert [step for step, _ in log["train/loss/total"]] == [1, 2, 3, 4]
    assert [step for step, _ in log["validation/combined"]] == [0, 1, 2, 3, 4]
    assert [step for step, _ in log["validation_by_source/a/dice"]] == [0, 1, 2, 3, 4]
    assert [step for step, _ in log["validation/evidence"]] == [0, 2, 4]
    assert [step for step, _ in log["validation/reliability"]] == [0, 2, 4]
    assert [step for step, _ in log["validation/tumor"]] == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("damage", ["truncated", "empty", "one byte"])
def test_damaged_checkpoint_costs_one_epoch(unbroken, tmp_path, caplog, damage):
    def work() -> None:
        stage = Stage(tmp_path, ema_decay=0.9)
        at_iteration(stage, 3 * BATCHES + 1)
        stage.run()

    assert killed(work)
    age(tmp_path)
    content = bytearray((tmp_path / CHECKPOINT).read_bytes())
    if damage == "one byte":
        content[len(content) // 2] ^= 255
    keep = {"truncated": len(content) // 2, "empty": 0, "one byte": len(content)}[damage]
    (tmp_path / CHECKPOINT).write_bytes(content[:keep])
    with caplog.at_level(logging.WARNING):
        stage = Stage(tmp_path, ema_decay=0.9).run()
    (message,) = [r.getMessage() for r in caplog.records if "checkpoint" in r.getMessage()]
    assert "epoch 3 is trained again, from" in message
    assert str(tmp_path / PREVIOUS) in message
    assert_same(unbroken.files(), stage.files())
    assert logged(tmp_path) == logged(unbroken.folder)
    assert (tmp_path / (CHECKPOINT + ".damaged")).read_bytes() == content[:keep]


def test_two_damaged_checkpoints_are_an_error_and_none_is_a_start(tmp_path):
    assert read_checkpoint(tmp_path) is None
    for epoch in range(3):
        save_checkpoint({"epoch": epoch}, tmp_path)
    assert read_checkpoint(tmp_path) == {"epoch": 2}
    assert checkpoint_files.load_whole(tmp_path / PREVIOUS) == {"epoch": 1}
    for name in (CHECKPOINT, PREVIOUS):
        (tmp_path / name).write_bytes(b"PK")
    with pytest.raises(ValueError, match=r"checkpoint .*checkpoint\.pt is not readable .* to start this stage again"):
        read_checkpoint(tmp_path)


def test_checkpoint_written_by_an_earlier_version_is_continued(unbroken, tmp_path):
    """Those have no average, no scaler and no note on calibration."""

    def work() -> None:
        stage = Stage(tmp_path)
        at_iteration(stage, 2 * BATCHES + 1)
        stage.run()

    assert killed(work)
    state = torch.load(tmp_path / CHECKPOINT, weights_only=True)
    for key in ("average", "scaler", "calibration"):
        del state[key]
    torch.save(state, tmp_path / CHECKPOINT)
    age(tmp_path)
    whole = Stage(tmp_path / "whole").run()
    assert_same(whole.files()[CHECKPOINT]["network"], Stage(tmp_path).run().files()[CHECKPOINT]["network"])


def test_stage_that_stands_still_stops_and_stays_stopped(tmp_path):
    whole = Stage(tmp_path / "whole", max_epochs=9, early_stopping=2).run()
    state = whole.files()[CHECKPOINT]
    assert state["epoch"] == state["best_epoch"] + 2 < 9
    assert whole.trainer.state.epoch == state["epoch"]
    assert whole.values[state["best_epoch"]] == max(whole.values.values())

    def work() -> None:
        stage = Stage(tmp_path / "killed", max_epochs=9, early_stopping=2)
        at_iteration(stage, state["epoch"] * BATCHES)
        stage.run()

    assert killed(work)
    age(tmp_path / "killed")
    again = Stage(tmp_path / "killed", max_epochs=9, early_stopping=2).run()
    assert_same(whole.files(), again.files())
    assert logged(tmp_path / "killed") == logged(tmp_path / "whole")
    assert Stage(tmp_path / "killed", max_epochs=9, early_stopping=2).run().values == {}, "it is not taken up again"
    longer = Stage(tmp_path / "longer", max_epochs=9).run()
    assert longer.files()[CHECKPOINT]["epoch"] == 9


def test_run_with_an_average_is_not_continued_without(unbroken):
    with pytest.raises(ValueError, match="the checkpoint has an average of the weights, this run none"):
        Stage(unbroken.folder).run()


def test_killed_stage_with_kept_features_ends_like_the_unbroken_one(small_run, tmp_path):
    """The features are in memory only: a killed run computes them again, in other batches."""
    options = {**small_run.paths, "precision": "bfloat16", "max_epochs": 3}
    options["initial_weights"] = str(small_run.run("ours") / "stage1_segmentation" / WEIGHTS)

    def work(name: str, kill: bool = False) -> Path:
        save = StageCheckpoint.save

        def save_then_die(self, engine) -> None:
            save(self, engine)
            if engine.state.epoch == 1:
                engine.add_event_handler(Events.ITERATION_COMPLETED, kill_self)

        if kill:
            StageCheckpoint.save = save_then_die
        return train_stage(
            "stage2_classification",
            [SMOKE, CONFIGS / "cached_features.yaml"],
            {**options, "run_dir": str(tmp_path / name)},
        )

    assert killed(lambda: work("killed", kill=True))
    age(tmp_path / "killed")
    found, expected = work("killed"), work("whole")
    for name in (WEIGHTS, CHECKPOINT):
        assert_same(*(torch.load(folder / name, weights_only=True) for folder in (expected, found)))
    assert logged(found) == logged(expected)
    state = torch.load(expected / CHECKPOINT, weights_only=True)["network"]
    before = torch.load(options["initial_weights"], weights_only=True)
    assert any(not torch.equal(before[k], state[k]) for k in before if k.startswith("head."))
    assert all(torch.equal(before[k], state[k]) for k in before if k.startswith(("input_block", "downsamples")))


def test_killed_run_of_three_stages_ends_like_the_unbroken_one(small_run, tmp_path, monkeypatch):
    """Killed in every stage within its second epoch, and after every stage before it is marked as finished."""
    run, whole = tmp_path / "killed", small_run.run("ours")
    save, finish, done = StageCheckpoint.save, runs.finish_stage, []

    def save_then_die(self, engine) -> None:
        save(self, engine)
        if engine.state.epoch == 1 and ("epoch", self.stage_dir.name) not in done:
            engine.add_event_handler(Events.ITERATION_COMPLETED, kill_self)

    def finish_or_die(stage_dir, *args, **kwargs) -> None:
        if ("end", Path(stage_dir).name) not in done:
            kill_self()
        finish(stage_dir, *args, **kwargs)

    monkeypatch.setattr(StageCheckpoint, "save", save_then_die)
    monkeypatch.setattr(runs, "finish_stage", finish_or_die)
    for stage in runs.STAGES:
        for point in ("epoch", "end"):
            assert killed(lambda: train(run, [SMOKE], **small_run.paths)), (stage, point)
            age(run)
            assert "finished" not in json.loads((run / stage / "manifest.json").read_text(encoding="utf-8"))
            done.append((point, stage))
    assert not killed(lambda: train(run, [SMOKE], **small_run.paths))
    for stage in runs.STAGES:
        for name in (WEIGHTS, CHECKPOINT):
            expected, found = (torch.load(r / stage / name, weights_only=True) for r in (whole, run))
            assert_same(expected, found, stage)
        assert logged(whole / stage) == logged(run / stage)
        manifests = [json.loads((r / stage / "manifest.json").read_text(encoding="utf-8")) for r in (whole, run)]
        assert manifests[0]["best_metric"] == manifests[1]["best_metric"]
        assert manifests[0]["best_epoch"] == manifests[1]["best_epoch"]
        assert len(manifests[1]["continued"]) == 2
        assert "continued" not in manifests[0]
        configs = [yaml.safe_load((r / stage / "config.yaml").read_text(encoding="utf-8")) for r in (whole, run)]
        assert {k for k in configs[0] if configs[0][k] != configs[1][k]} == {"run_dir"}
