"""What is shipped: weights that load from the configs as they are, and how they were made, without the machine."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from bundle import weights_card
from bundle.shipping import EVENTS, keep_curves, ship
from scripts.__main__ import main as command
from scripts.data import datalists
from scripts.inference.pipeline import Inference
from scripts.inference.shipped import NOTE, predict_some, some_items

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def shipped(small_run, tmp_path_factory) -> Path:
    """A checkout whose weights are those of a small run."""
    root = tmp_path_factory.mktemp("checkout")
    shutil.copytree(ROOT / "configs", root / "configs")
    (root / "docs" / "training" / "old").mkdir(parents=True)
    ship([small_run.run("ours")], root, data_source="Phantoms, Apache-2.0.")
    return root


def test_weights_load_from_the_config_as_it_is(shipped, small_run):
    stage = small_run.run("ours") / "stage3_joint"
    inference = Inference(shipped)
    expected = torch.load(stage / "model.pt", weights_only=True)
    assert inference.weights == shipped / "models" / "model.pt"
    assert all(torch.equal(value, expected[key]) for key, value in inference.network.state_dict().items())
    config = yaml.safe_load((shipped / "configs" / "inference.yaml").read_text(encoding="utf-8"))
    trained = yaml.safe_load((stage / "config.yaml").read_text(encoding="utf-8"))
    assert config["spatial_size"] == trained["spatial_size"]
    assert config["network_def"] == trained["network_def"]
    assert "# what MONAI Label lets its user choose" in (shipped / "configs" / "inference.yaml").read_text("utf-8")
    meta = json.loads((shipped / "configs" / "metadata.json").read_text(encoding="utf-8"))
    stride = inference.network.total_stride[0]
    assert meta["data_source"] == "Phantoms, Apache-2.0."
    assert meta["network_data_format"]["inputs"]["image"]["spatial_shape"] == [f"{stride}*n"] * 2


def test_training_is_kept_without_paths_of_the_machine_and_without_pictures(shipped, small_run):
    training = shipped / "docs" / "training"
    run = small_run.run("ours")
    assert [path.name for path in training.iterdir()] == [run.name]  # what was there of other weights is gone
    stages = [stage.name for stage in weights_card.kept_stages(training)]
    assert stages == ["stage1_segmentation", "stage2_classification", "stage3_joint"]
    for stage in stages:
        kept = training / run.name / stage
        text = "".join((kept / name).read_text(encoding="utf-8") for name in ("config.yaml", "manifest.json"))
        assert str(small_run.folder) not in text
        assert str(ROOT) not in text
        assert "DATASET_DIR" in text
        curves, own = (EventAccumulator(str(folder)).Reload() for folder in (kept, run / stage))
        assert curves.Tags()["images"] == []
        assert own.Tags()["images"] != []
        assert curves.Tags()["scalars"] == own.Tags()["scalars"]
        last = [[events.Scalars("validation/dice")[-1] for events in (curves, own)]]
        assert all(a.value == b.value and a.step == b.step and a.wall_time == b.wall_time for a, b in last)
    datalist = training / run.name / "datalist.json"
    assert datalists.read(datalist, small_run.dataset_dir) == datalists.read(small_run.datalist_file)


def test_runs_behind_the_weights_before_are_kept_where_asked(small_run, tmp_path):
    shutil.copytree(ROOT / "configs", tmp_path / "configs")
    old = tmp_path / "docs" / "training" / "old" / "manifest.json"
    old.parent.mkdir(parents=True)
    old.write_text("{}", encoding="utf-8")
    ship([small_run.run("ours")], tmp_path, keep_earlier=True)
    assert old.is_file()
    ship([small_run.run("ours")], tmp_path)
    assert not old.exists()


@pytest.mark.parametrize("keep_earlier", [True, False])
def test_a_run_that_was_trained_on_the_list_that_is_kept_keeps_it(small_run, tmp_path, keep_earlier):
    run = tmp_path / "ours"
    shutil.copytree(small_run.run("ours"), run)
    root = tmp_path / "checkout"
    shutil.copytree(ROOT / "configs", root / "configs")
    kept = root / "docs" / "training" / "ours" / "datalist.json"
    kept.parent.mkdir(parents=True)
    shutil.copyfile(small_run.datalist_file, kept)
    for config in run.glob("*/config.yaml"):
        text = config.read_text(encoding="utf-8").replace(str(small_run.datalist_file), str(kept))
        assert str(kept) in text
        config.write_text(text, encoding="utf-8")
    ship([run], root, keep_earlier=keep_earlier)
    assert kept.read_bytes() == small_run.datalist_file.read_bytes()
    assert (root / "models" / "model.pt").is_file()


@pytest.mark.parametrize(
    ("cache", "kept"),
    [("null", "null"), ("$@run_dir + '/../cache'", "$@run_dir + '/../cache'"), ("/somewhere/else", "runs/cache")],
)
def test_only_the_path_of_a_cache_is_replaced(small_run, tmp_path, cache, kept):
    run = tmp_path / "ours"
    shutil.copytree(small_run.run("ours"), run)
    root = tmp_path / "checkout"
    shutil.copytree(ROOT / "configs", root / "configs")
    for config in run.glob("*/config.yaml"):
        lines = config.read_text(encoding="utf-8").splitlines()
        changed = [f"cache_dir: {cache}" if line.startswith("cache_dir:") else line for line in lines]
        config.write_text("\n".join([*changed, "note: $@seed is not None"]) + "\n", encoding="utf-8")
    ship([run], root)
    for config in (root / "docs" / "training" / "ours").glob("*/config.yaml"):
        lines = config.read_text(encoding="utf-8").splitlines()
        assert f"cache_dir: {kept}" in lines
        assert "note: $@seed is not None" in lines


def test_event_file_is_named_without_the_host(small_run, tmp_path):
    keep_curves(small_run.run("ours") / "stage1_segmentation", tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [EVENTS]


def test_unfinished_run_changes_nothing(shipped, small_run, tmp_path):
    stage = tmp_path / "run" / "stage1_segmentation"
    shutil.copytree(small_run.run("ours") / "stage1_segmentation", stage)
    manifest = json.loads((stage / "manifest.json").read_text(encoding="utf-8"))
    del manifest["finished"]
    (stage / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    before = {path: os.stat(path).st_mtime_ns for path in shipped.rglob("*")}
    with pytest.raises(FileNotFoundError, match="holds no finished stage"):
        ship([small_run.run("ours"), tmp_path / "run"], shipped)
    assert {path: os.stat(path).st_mtime_ns for path in shipped.rglob("*")} == before
    with pytest.raises(FileNotFoundError):
        command(["ship", str(tmp_path / "missing")])


def test_run_of_kept_config_and_shipped_weights_is_a_run(shipped, small_run, tmp_path):
    run = weights_card.assemble_run(
        tmp_path / "run", small_run.dataset_dir, shipped / "docs" / "training", shipped / "models" / "model.pt"
    )
    network, _config, stage = weights_card.runs.load_run(run)
    assert stage.name == "stage3_joint"
    assert not network.training
    with pytest.raises(FileNotFoundError, match="ship weights with python -m scripts ship"):
        weights_card.kept_stages(tmp_path / "none")


def test_few_images_are_taken_in_turn_of_the_classes():
    test = [{"image": f"{k}.png", "diagnosis": int(k > 3)} for k in range(9)]
    test += [{"image": "v.nii.gz", "slice": 3, "diagnosis": 0}, {"image": ["a", "b"], "diagnosis": 0}]
    assert [item["image"] for item in some_items({"test": test}, 5)] == ["0.png", "4.png", "1.png", "5.png", "2.png"]
    assert [item["image"] for item in some_items({"test": test[:2]}, 5)] == ["0.png", "1.png"]


def test_shipped_weights_are_shown_on_the_users_images(shipped, small_run, tmp_path):
    datalist = datalists.read(small_run.datalist_file)
    table = predict_some(datalist, small_run.dataset_dir, tmp_path / "shown", 3, shipped)
    items = some_items(datalist, 3)
    assert table is not None
    assert NOTE in table
    assert all(item["image"] in table for item in items)
    assert len(list((tmp_path / "shown").rglob("*_overlay.png"))) == len(items) > 0
    assert predict_some(datalist, small_run.dataset_dir, tmp_path / "none", 3, tmp_path) is None
    assert not (tmp_path / "none").exists()
