"""MONAI Label's training of train.yaml alone, as ``monailabel.tasks.train.bundle.BundleTrainTask`` of 0.8.5 does it."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path

import monai.bundle
import nibabel as nib
import numpy as np
import pytest
import torch
import yaml
from ignite.engine import Events
from monai.bundle import ConfigParser
from monai.data import partition_dataset
from PIL import Image

from scripts.command.locations import CONFIGS
from scripts.data.datalists.slices import SliceRule
from scripts.runs import folder as runs
from scripts.runs import tasks
from scripts.training import monai_label
from scripts.training.checkpoints import StageCheckpoint
from tests.stages import age, assert_same, kill_self, killed, logged
from tests.transforms.images import nrrd
from transforms.loading import LoadCased


@pytest.fixture(scope="module")
def records(small_data) -> list[dict[str, str]]:
    """What Label's datastore lists: whole volumes with their labels."""
    found = []
    for image in sorted((small_data.dataset_dir / "patients").rglob("*flair.nii.gz")):
        label = next(image.parent.glob("*seg.nii.gz"))
        found.append({"image": str(image), "label": str(label)})
    return found


@pytest.fixture
def bundle(tmp_path) -> Path:
    """A bundle's folder with a small network; Label reads nothing but these two files."""
    root = tmp_path / "bundle"
    (root / "configs").mkdir(parents=True)
    (root / "models").mkdir()
    config = runs.merged_config([str(CONFIGS / "train.yaml"), str(CONFIGS / "smoke.yaml")])
    config["label_slices"] = {"tumor_slices": 2, "normal_slices": 1}
    (root / "configs" / "train.yaml").write_text(yaml.safe_dump(config, sort_keys=False), encoding="utf-8")
    shutil.copy(CONFIGS / "metadata.json", root / "configs")
    return root


def label_trains(root: Path, records: list[dict[str, str]], max_epochs: int = 2, val_split: float = 0.3) -> None:
    """`BundleTrainTask.__call__` and `run_single_gpu` with a request's defaults, on a CPU."""
    config = ConfigParser()
    config.read_config(str(root / "configs" / "train.yaml"))
    config.config.update({"bundle_root": str(root)})
    train_ds, val_ds = partition_dataset(records, ratios=[1 - val_split, val_split], shuffle=False)
    handlers = config.get("train#handlers", [])
    weights = root / "models" / "model.pt"
    if weights.exists() and not [h for h in handlers if h.get("_target_") == "CheckpointLoader"]:
        loader = {
            "_target_": "CheckpointLoader",
            "load_path": str(weights),
            "load_dict": {"model": "$@network"},
            "strict": False,
        }
        handlers.insert(0, loader)
    overrides = {
        "bundle_root": str(root),
        "train#trainer#max_epochs": max_epochs,
        "train#dataset#data": train_ds,
        "device": "cpu",
        "train#handlers": handlers,
        "validate#dataset#data": val_ds,
    }
    monai.bundle.run(
        run_id="run",
        init_id=None,
        final_id=None,
        meta_file=str(root / "configs" / "metadata.json"),
        config_file=str(root / "configs" / "train.yaml"),
        **overrides,
    )


def weights_of(path: Path) -> dict[str, torch.Tensor]:
    return torch.load(path, weights_only=True)


def stage_folders(root: Path) -> list[Path]:
    return sorted((root / "runs").glob("label-*/joint"), key=lambda p: p.stat().st_mtime_ns)


def test_weights_arrive_where_label_reads_them_and_the_old_ones_are_kept(bundle, records):
    models = bundle / "models"
    label_trains(bundle, records)
    (first,) = stage_folders(bundle)
    assert_same(weights_of(models / "model.pt"), weights_of(first / "model.pt"))
    assert not (models / "model_previous.pt").exists()
    manifest = json.loads((first / "manifest.json").read_text(encoding="utf-8"))
    assert manifest["datalist"] == "7 items given"
    about = json.loads((models / "model.json").read_text(encoding="utf-8"))
    assert about["calibration"].startswith("fitted on ")
    assert about["from"] == str(first / "model.pt")
    network, config, _ = runs.load_run(first)
    assert (network.num_classes, config["spatial_size"]) == (2, [64, 64])
    log = {tag: [step for step, _ in values] for tag, values in logged(first).items()}
    assert log["train/loss/segmentation"] == log["train/loss/classification"] == log["train/loss/evidence"] == [1, 2]

    # Another request starts from these weights, in a folder of its own.
    label_trains(bundle, records, max_epochs=1)
    second = stage_folders(bundle)[1]
    assert_same(weights_of(models / "model_previous.pt"), weights_of(first / "model.pt"))
    assert_same(weights_of(models / "model.pt"), weights_of(second / "model.pt"))
    before, after = logged(first)["validation/combined"], logged(second)["validation/combined"]
    assert after[0] == (0, dict(before)[manifest["best_epoch"]]), "the loaded weights are validated first"
    assert [p.name for p in models.glob("*.partial")] == []


def test_interrupted_training_is_continued_by_the_same_request(bundle, records):
    label_trains(bundle, records, max_epochs=1)  # so that there are weights, which Label's handler loads at each start
    model = (bundle / "models" / "model.pt").read_bytes()
    label_trains(bundle, records, max_epochs=3)
    unbroken = stage_folders(bundle)[1]
    whole = bundle / "whole"
    shutil.move(str(unbroken.parent), whole)
    (bundle / "models" / "model.pt").write_bytes(model)

    def work() -> None:
        save = StageCheckpoint.save

        def save_then_die(self, engine) -> None:
            save(self, engine)
            if engine.state.epoch == 2:
                engine.add_event_handler(Events.ITERATION_COMPLETED, kill_self)

        StageCheckpoint.save = save_then_die
        label_trains(bundle, records, max_epochs=3)

    assert killed(work)
    assert (bundle / "models" / "model.pt").read_bytes() == model, "nothing half done is published"
    age(unbroken)
    label_trains(bundle, records, max_epochs=3)
    for name in ("model.pt", "checkpoint.pt"):
        assert_same(weights_of(whole / "joint" / name), weights_of(unbroken / name), name)
    assert logged(whole / "joint") == logged(unbroken)


def test_threshold_that_cannot_be_fitted_is_marked_stale(bundle, records, caplog):
    path = bundle / "configs" / "train.yaml"
    config = yaml.safe_load(path.read_text(encoding="utf-8"))
    config["label_slices"] = {"tumor_slices": 2, "normal_slices": 0}
    path.write_text(yaml.safe_dump(config, sort_keys=False), encoding="utf-8")
    tumors = [r for r in records if np.any(monai.transforms.LoadImage(image_only=True)(r["label"]).numpy())]
    with caplog.at_level(logging.WARNING):
        label_trains(bundle, tumors, max_epochs=1)
    about = json.loads((bundle / "models" / "model.json").read_text(encoding="utf-8"))
    assert about["calibration"].startswith("stale: the validation has ")
    assert about["calibration"].endswith("threshold and temperature are those that the weights came with")
    assert any("stale" in record.getMessage() for record in caplog.records)
    state = weights_of(bundle / "models" / "model.pt")
    assert (float(state["threshold"]), float(state["temperature"])) == (0.5, 1.0)


def test_class_is_unknown_with_more_than_two_classes_and_dice_selects(bundle, records, small_data):
    assert tasks.default_key_metric(None, 4) == "dice"
    assert tasks.default_key_metric(None, 2) == tasks.default_key_metric("list.json", 4) == "combined"
    path = bundle / "configs" / "train.yaml"
    config = yaml.safe_load(path.read_text(encoding="utf-8"))
    config["classes"] = {"0": "no_tumor", "1": "glioma", "2": "meningioma"}
    path.write_text(yaml.safe_dump(config, sort_keys=False), encoding="utf-8")
    label_trains(bundle, records, max_epochs=1)
    (stage,) = stage_folders(bundle)
    log = logged(stage)
    assert "train/loss/classification" not in log, "'no tumor' alone would be learned"
    assert {"train/loss/segmentation", "train/loss/evidence"} <= set(log)
    assert weights_of(bundle / "models" / "model.pt")["head.bias"].shape == (3,)


def test_weights_of_another_network_are_refused_before_label_loads_half_of_them(bundle, records):
    torch.save({"conv.weight": torch.zeros(1)}, bundle / "models" / "model.pt")
    with pytest.raises(RuntimeError) as info:
        label_trains(bundle, records, max_epochs=1)
    assert "does not fit MultiTaskDynUNet: missing keys" in str(info.value.__cause__)


def test_no_images_for_validation_is_an_error_that_says_so(bundle, records):
    with pytest.raises(RuntimeError) as info:
        label_trains(bundle, records[:2], max_epochs=1, val_split=0.0001)
    cause: BaseException | None = info.value
    while cause is not None and not isinstance(cause, ValueError):
        cause = cause.__cause__
    assert "val_split gives validation too few" in str(cause)


def test_volumes_become_slices_and_pictures_stay(records, tmp_path, caplog):
    picture = tmp_path / "a.png"
    Image.fromarray(np.zeros((4, 4), np.uint8)).save(picture)
    broken = tmp_path / "b.nii.gz"
    broken.write_bytes(b"\x1f\x8b broken")
    data = [records[0], {"image": str(picture)}, {"image": str(broken), "label": records[0]["label"]}]
    with caplog.at_level(logging.WARNING):
        items = monai_label.expand_volumes(data, SliceRule(tumor_slices=2, normal_slices=1))
    assert {item["image"] for item in items} == {records[0]["image"], str(picture)}
    slices = [item for item in items if "slice" in item]
    assert len(slices) >= 1
    assert all(item["label"] == records[0]["label"] and "diagnosis" not in item for item in slices)
    assert any(f"not used: {broken}" in record.getMessage() for record in caplog.records)
    with pytest.raises(ValueError, match=r"none of 1 items can be used; .*b\.nii\.gz"):
        monai_label.expand_volumes(data[2:], SliceRule())


def test_a_label_that_is_cropped_to_what_it_marks_gives_the_slices_of_the_whole_label(records, tmp_path):
    """As MONAI Label reads a Segmentation of an archive: the slices that hold something."""
    label = nib.load(records[0]["label"])
    marked = np.asarray(label.dataobj) > 0
    box = tuple(slice(axis.min(), axis.max() + 1) for axis in np.nonzero(marked))
    part = label.slicer[box]
    cropped = nrrd(np.asarray(part.dataobj).astype(np.uint8), part.affine, tmp_path / "label.nrrd")
    assert part.shape != label.shape
    rule = SliceRule(tumor_slices=2, normal_slices=1)
    whole = monai_label.expand_volumes(records[:1], rule)
    made = monai_label.expand_volumes([{**records[0], "label": cropped}], rule)
    assert [item["slice"] for item in made] == [item["slice"] for item in whole]
    for one, other in zip(whole, made, strict=True):
        assert np.array_equal(LoadCased()(one)["label"], LoadCased()(other)["label"])


def test_handlers_are_a_literal_list_of_dicts_as_label_needs_them():
    config = yaml.safe_load((CONFIGS / "train.yaml").read_text(encoding="utf-8"))
    handlers = config["train"]["handlers"]
    assert handlers
    assert all(isinstance(handler, dict) and "_target_" in handler for handler in handlers)
