"""A run predicts with its own weights wherever it lies, and says which; a config in the wrong place is refused."""

from __future__ import annotations

import logging
import os
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from monai.bundle import ConfigWorkflow

from scripts.command.cli import start
from scripts.command.config_files import note_outside, read_config
from scripts.command.errors import sentence
from scripts.command.files import file_sha256
from scripts.command.locations import CONFIGS
from scripts.inference.pipeline import Inference
from scripts.runs import folder as runs
from scripts.runs.network_overlay import located, write_network_overlay
from tests.made_runs import made_stage

CLASSES = {"0": "no_tumor", "1": "tumor"}
INFERENCE = str(CONFIGS / "inference.yaml")


@pytest.fixture
def run(tmp_path) -> Path:
    folder = tmp_path / "runs" / "mine"
    made_stage(folder / "joint")
    write_network_overlay(folder, CLASSES)
    return folder


def command(monkeypatch, *files: Path | str, **values: str) -> None:
    """This process as ``python -m monai.bundle run``."""
    given = [token for name, value in values.items() for token in (f"--{name}", value)]
    program = str(Path(torch.__file__).parents[1] / "monai" / "bundle" / "__main__.py")
    monkeypatch.setattr("sys.argv", [program, "run", "--config_file", str([str(f) for f in files]), *given])


def other_weights(folder: Path) -> None:
    path = folder / "joint" / "model.pt"
    torch.save({k: v + 1 if v.is_floating_point() else v for k, v in torch.load(path).items()}, path)
    write_network_overlay(folder, CLASSES)


def test_a_copied_run_predicts_with_its_own_weights(run, tmp_path):
    overlay = yaml.safe_load((run / "network.yaml").read_text(encoding="utf-8"))
    assert overlay["weights"] == "joint/model.pt"
    copy = tmp_path / "copy"
    shutil.copytree(run, copy)
    assert Inference(overlay=copy / "network.yaml").weights == copy / "joint" / "model.pt"
    other_weights(copy)
    first, second = (Inference(overlay=folder / "network.yaml").network for folder in (run, copy))
    assert torch.equal(second.head.bias, first.head.bias + 1)
    shutil.rmtree(run)
    assert Inference(overlay=copy / "network.yaml").weights == copy / "joint" / "model.pt"


def test_a_run_made_with_a_relative_path_works_from_every_folder(run, tmp_path, monkeypatch):
    monkeypatch.chdir(run.parent)
    write_network_overlay("mine", CLASSES)
    monkeypatch.chdir(tmp_path)
    assert Inference(overlay="runs/mine/network.yaml").weights == Path("runs/mine/joint/model.pt")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir("/")
    assert Inference(overlay="~/runs/mine/network.yaml").weights == run / "joint" / "model.pt"
    assert runs.load_run("~/runs/mine").folder == run / "joint"


def test_the_command_line_finds_weights_beside_the_overlay_that_names_them(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    command(monkeypatch, INFERENCE, "runs/mine/network.yaml")
    assert located("joint/model.pt") == os.path.join("runs", "mine", "joint", "model.pt")
    command(monkeypatch, INFERENCE, "runs/mine/network.yaml", weights="runs/mine/joint/model.pt")
    assert located("runs/mine/joint/model.pt") == "runs/mine/joint/model.pt", "given there: from the current folder"
    monkeypatch.setattr("sys.argv", ["program"])
    with pytest.raises(FileNotFoundError, match=r"no weights at joint/model\.pt: .* from Python give"):
        located("joint/model.pt")


def test_weights_that_were_replaced_are_not_taken_for_those_of_the_config(run):
    sha = file_sha256(run / "joint" / "model.pt")
    assert located(run / "joint" / "model.pt", sha) == str(run / "joint" / "model.pt")
    kept = (run / "network.yaml").read_text(encoding="utf-8")
    other_weights(run)
    (run / "network.yaml").write_text(kept, encoding="utf-8")
    with pytest.raises(ValueError, match=f"has SHA-256 .* is of {sha[:12]}"):
        Inference(overlay=run / "network.yaml")
    assert Inference(weights=run / "joint" / "model.pt", overlay=run / "network.yaml").network.num_classes == 2


def test_a_whole_config_behind_an_overlay_is_refused(run, monkeypatch):
    with pytest.raises(ValueError, match=r"inference\.yaml is a whole config and comes first, .*network\.yaml"):
        read_config([run / "network.yaml", INFERENCE])
    command(monkeypatch, run / "network.yaml", INFERENCE)
    monkeypatch.setattr("sys.excepthook", print)
    with pytest.raises(ValueError, match="comes first, overlays behind it"):
        start()
    with pytest.raises(ValueError, match="is a whole config"):
        read_config([CONFIGS / "train.yaml", CONFIGS / "evaluate.yaml"])


@pytest.mark.parametrize(
    ("files", "values", "said"),
    [
        (["network.yaml", INFERENCE], {}, "the config begins with 'spatial_size', a value of an overlay"),
        ([INFERENCE, "network.yaml"], {"volume_shares": 0.2}, "no 'volume_shares'; nearest: --volume_share"),
        ([INFERENCE, "network.yaml"], {"mine": 0.2, "volume_share": "@mine"}, None),
    ],
)
def test_a_workflow_made_in_python_is_checked_like_a_command_line(run, monkeypatch, files, values, said):
    monkeypatch.chdir(run)
    meta = str(CONFIGS / "metadata.json")
    workflow = ConfigWorkflow(config_file=files, workflow_type="infer", meta_file=meta, logging_file=False, **values)
    workflow.parser["run"] = ["$cli.start()"]
    if said is None:
        workflow.run()
    else:
        with pytest.raises((ValueError, RuntimeError)) as caught:
            workflow.run()
        assert said in sentence(caught.value)


def test_a_config_from_elsewhere_is_said_once_to_be_run_as_code(run, caplog):
    note_outside.cache_clear()
    with caplog.at_level(logging.INFO):
        read_config([INFERENCE, run / "network.yaml"])
        read_config([INFERENCE, run / "network.yaml"])
    lines = [r.getMessage() for r in caplog.records if "run as code" in r.getMessage()]
    assert lines == [
        f"config {run / 'network.yaml'} lies outside the bundle; what it holds is run as code: load only what you trust"
    ]


def test_a_training_workflow_made_in_python_leaves_a_run_that_can_be_read(small_data, tmp_path):
    files = [str(CONFIGS / name) for name in ("train.yaml", "stage1_segmentation.yaml", "smoke.yaml")]
    values = {**small_data.paths, "run_dir": str(tmp_path / "run"), "max_epochs": 1, "cache_dir": None}

    def made(**more) -> ConfigWorkflow:
        return ConfigWorkflow(
            config_file=files, workflow_type="train", meta_file=str(CONFIGS / "metadata.json"), logging_file=False,
            bundle_root=str(CONFIGS.parent), **{**values, "device": torch.device("cpu"), **more},
        )  # fmt: skip

    with pytest.raises((ValueError, RuntimeError)) as caught:
        made(learning_rat=0.1).initialize()
    assert "no 'learning_rat'; nearest: --learning_rate" in sentence(caught.value)
    assert not (tmp_path / "run").exists()
    workflow = made()
    workflow.initialize()
    workflow.run()
    workflow.finalize()
    network, config, stage = runs.load_run(tmp_path / "run")
    assert (config["max_epochs"], config["device"], config["num_classes"]) == (1, "cpu", 2)
    assert stage == tmp_path / "run" / "stage1_segmentation"
    assert network.trained_tasks == ("segmentation",)
    assert (tmp_path / "run" / "network.yaml").is_file()
    with pytest.raises((ValueError, RuntimeError)) as caught:
        made(learning_rate=0.1).initialize()
    assert "trained with another config (learning_rate)" in sentence(caught.value)
