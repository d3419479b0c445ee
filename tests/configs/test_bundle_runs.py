"""A stage started again by ``python -m monai.bundle run``: what its folder claims stays what its weights are."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path

import pytest
import torch
import yaml

from scripts.command.errors import sentence
from scripts.command.locations import CONFIGS, ROOT
from scripts.runs import folder as runs
from scripts.training.checkpoints import StageCheckpoint
from tests.bundle_command import bundle_run
from tests.stages import age, assert_same

STAGE = "stage1_segmentation"
FILES = ("model.pt", "checkpoint.pt", "config.yaml", "manifest.json")


def bundle(data, run_dir: Path, *arguments: str) -> None:
    """Stage 1 as the command line runs it, in this process."""
    files = [str(CONFIGS / f"{name}.yaml") for name in ("train", STAGE, "smoke")]
    paths = {"run_dir": str(run_dir), "bundle_root": str(ROOT), **data.paths}
    bundle_run(files, *arguments, **paths)


def refused(data, run_dir: Path, *arguments: str) -> str:
    with pytest.raises((ValueError, RuntimeError)) as caught:
        bundle(data, run_dir, *arguments)
    return str(sentence(caught.value))


def content(stage: Path) -> dict[str, bytes]:
    return {name: (stage / name).read_bytes() for name in FILES}


@pytest.fixture(scope="module")
def trained(small_data, tmp_path_factory) -> Path:
    run = tmp_path_factory.mktemp("bundle_run")
    bundle(small_data, run)
    return run


@pytest.fixture
def run(trained, tmp_path) -> Path:
    """A copy that may be spoiled."""
    shutil.copytree(trained / STAGE, tmp_path / "run" / STAGE)
    age(tmp_path)
    return tmp_path / "run"


def unfinish(run: Path) -> None:
    path = run / STAGE / "manifest.json"
    manifest = json.loads(path.read_text(encoding="utf-8"))
    del manifest["finished"]
    path.write_text(json.dumps(manifest), encoding="utf-8")


def test_a_finished_stage_of_the_same_settings_is_kept(small_data, run, caplog):
    before = content(run / STAGE)
    with caplog.at_level(logging.INFO):
        bundle(small_data, run, "--image_interval", "0", "--train#dataset#progress", "False")
    assert content(run / STAGE) == before
    assert f"{run / STAGE}: finished before, kept" in caplog.text


def test_a_finished_stage_is_kept_without_its_checkpoints(small_data, run, monkeypatch):
    before = content(run / STAGE)
    for path in (run / STAGE).glob("checkpoint*.pt"):
        path.unlink()
    monkeypatch.setattr(StageCheckpoint, "begin", lambda *_: pytest.fail("it is trained again"))
    bundle(small_data, run)
    assert {name: (run / STAGE / name).read_bytes() for name in ("model.pt", "config.yaml", "manifest.json")} == {
        name: value for name, value in before.items() if name != "checkpoint.pt"
    }


@pytest.mark.parametrize("finished", [True, False])
def test_other_settings_are_refused_by_name_and_nothing_is_written(small_data, run, finished):
    if not finished:
        unfinish(run)
    before = content(run / STAGE)
    text = refused(small_data, run, "--learning_rate", "0.5", "--seed", "7", "--seg_weight", "9")
    assert text.startswith(f"{run / STAGE} holds a stage trained with another config (learning_rate, seed, seg_weight)")
    assert "(network_def#dropout)" in refused(small_data, run, "--network_def#dropout", "0.1")
    assert content(run / STAGE) == before


@pytest.mark.parametrize("finished", [True, False])
def test_another_datalist_of_as_many_epochs_is_refused(small_data, run, tmp_path, finished):
    if not finished:
        unfinish(run)
    before = content(run / STAGE)
    datalist = json.loads(small_data.datalist_file.read_text(encoding="utf-8"))
    datalist["training"] = datalist["training"][:-1]
    other = tmp_path / "other.json"
    other.write_text(json.dumps(datalist), encoding="utf-8")
    assert "(the datalist)" in refused(small_data, run, "--datalist_file", str(other))
    assert content(run / STAGE) == before
    same = tmp_path / "same.json"
    shutil.copy(small_data.datalist_file, same)
    bundle(small_data, run, "--datalist_file", str(same))  # the same content elsewhere


def test_an_unfinished_stage_of_the_same_settings_continues(small_data, run, trained):
    unfinish(run)
    shutil.copy(run / STAGE / "checkpoint_previous.pt", run / STAGE / "checkpoint.pt")  # one epoch less
    bundle(small_data, run, "--train#dataset#num_workers", "2")
    manifest = json.loads((run / STAGE / "manifest.json").read_text(encoding="utf-8"))
    assert len(manifest["continued"]) == 1
    assert manifest["finished"]
    whole, again = (torch.load(r / STAGE / "checkpoint.pt", weights_only=True) for r in (trained, run))
    assert_same(whole, again)


def test_a_stage_that_ended_before_training_takes_other_settings(small_data, run):
    unfinish(run)
    for path in (run / STAGE).glob("*.pt"):
        path.unlink()
    bundle(small_data, run, "--seed", "7", "--max_epochs", "1")
    assert yaml.safe_load((run / STAGE / "config.yaml").read_text(encoding="utf-8"))["seed"] == 7


def test_weights_without_their_settings_are_refused(small_data, run):
    (run / STAGE / "config.yaml").unlink()
    assert "holds trained weights, and config.yaml or manifest.json" in refused(small_data, run)


def test_a_misspelled_value_is_refused_before_anything_is_written(small_data, tmp_path):
    assert refused(small_data, tmp_path / "new", "--learnin_rate", "0.5").endswith("nearest: --learning_rate")
    assert list(tmp_path.iterdir()) == []


def test_the_saved_config_holds_the_values_of_the_command_alone(trained):
    config = yaml.safe_load((trained / STAGE / "config.yaml").read_text(encoding="utf-8"))
    assert config.keys() == runs.merged_config([CONFIGS / "train.yaml"]).keys()
    assert (config["stage"], config["run_dir"], config["num_classes"]) == (STAGE, str(trained), 2)
