"""The three stages through the shipped configs: hand-over, freezing, resuming, and what a run leaves behind."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
import yaml
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from scripts import runs
from scripts.networks import MultiTaskDynUNet
from scripts.train import CONFIGS, train, train_stage

SMOKE = CONFIGS / "smoke.yaml"


def scalars(folder, tag):
    events = EventAccumulator(str(folder))
    events.Reload()
    return [(e.step, e.value) for e in events.Scalars(tag)]


def weights(folder):
    return torch.load(folder / "model.pt", weights_only=True)


@pytest.mark.parametrize(
    ("before", "after"), [("stage1_segmentation", "stage2_classification"), ("stage2_classification", "stage3_joint")]
)
def test_first_validation_of_a_stage_equals_the_selected_one_of_the_stage_before(small_run, before, after):
    run = small_run.run("ours")
    selected = json.loads((run / before / "manifest.json").read_text(encoding="utf-8"))["best_epoch"]
    for metric in ("dice", "balanced_accuracy", "auc"):
        last = dict(scalars(run / before, f"validation/{metric}"))[selected]
        assert scalars(run / after, f"validation/{metric}")[0] == (0, last)


@pytest.mark.parametrize("run", ["ours", "baseline"])
def test_stage_2_leaves_encoder_and_decoder_bit_identical_and_trains_the_head(small_run, run):
    before = weights(small_run.run(run) / "stage1_segmentation")
    stage = small_run.run(run) / "stage2_classification"
    after = torch.load(stage / "checkpoint.pt", weights_only=True)["network"]
    head = [k for k in before if k.startswith("head.")]
    rest = [k for k in before if not k.startswith("head.") and k not in ("threshold", "temperature")]
    assert all(torch.equal(before[k], after[k]) for k in rest)
    assert any(not torch.equal(before[k], after[k]) for k in head)


def test_stage_3_changes_every_part(small_run):
    run = small_run.run("ours")
    before = weights(run / "stage2_classification")
    after = torch.load(run / "stage3_joint" / "checkpoint.pt", weights_only=True)["network"]
    for part in ("input_block", "bottleneck", "upsamples", "head."):
        assert any(not torch.equal(before[k], after[k]) for k in before if k.startswith(part)), part


def test_interrupted_stage_continues_to_the_same_weights(small_run, tmp_path, monkeypatch):
    whole = small_run.run("ours") / "stage1_segmentation"
    run = tmp_path / "interrupted"
    values = {"run_dir": str(run), **small_run.paths}

    from scripts.checkpoints import StageCheckpoint

    save = StageCheckpoint.save

    def save_then_stop(self, engine):
        save(self, engine)
        if engine.state.epoch == 1:
            raise KeyboardInterrupt

    monkeypatch.setattr(StageCheckpoint, "save", save_then_stop)
    with pytest.raises(KeyboardInterrupt):
        train_stage("stage1_segmentation", [SMOKE], values)
    assert not json.loads((run / "stage1_segmentation" / "manifest.json").read_text(encoding="utf-8")).get("finished")
    monkeypatch.setattr(StageCheckpoint, "save", save)
    train_stage("stage1_segmentation", [SMOKE], values)

    expected = torch.load(whole / "checkpoint.pt", weights_only=True)
    resumed = torch.load(run / "stage1_segmentation" / "checkpoint.pt", weights_only=True)
    assert resumed["best_metric"] == expected["best_metric"]
    assert all(torch.equal(expected["network"][k], resumed["network"][k]) for k in expected["network"])
    assert all(
        torch.equal(a["exp_avg"], b["exp_avg"])
        for a, b in zip(expected["optimizer"]["state"].values(), resumed["optimizer"]["state"].values(), strict=True)
    )


def test_finished_run_is_left_as_it_is(small_run):
    path = small_run.run("ours") / "stage1_segmentation" / "model.pt"
    before = path.stat().st_mtime_ns
    train(small_run.run("ours"), [SMOKE], **small_run.paths)
    assert path.stat().st_mtime_ns == before


def test_run_folder_of_another_config_is_refused(small_run):
    with pytest.raises(ValueError, match="another config"):
        train(small_run.run("ours"), [SMOKE], **small_run.paths, seed=7)


def test_resolved_config_builds_the_network_without_the_data(small_run, tmp_path):
    stage = tmp_path / "stage3_joint"
    shutil.copytree(small_run.run("ours") / "stage3_joint", stage)
    config = yaml.safe_load((stage / "config.yaml").read_text(encoding="utf-8"))
    assert config["spatial_size"] == [64, 64]
    assert config["stage"] == "stage3_joint"
    config["datalist_file"] = "absent.json"
    (stage / "config.yaml").write_text(yaml.safe_dump(config))
    network, _, folder = runs.load_run(tmp_path)
    assert isinstance(network, MultiTaskDynUNet)
    assert folder == stage
    assert not network.training


def test_tensorboard_holds_losses_learning_rates_metrics_and_images(small_run):
    events = EventAccumulator(str(small_run.run("ours") / "stage3_joint"))
    events.Reload()
    tags = events.Tags()
    for tag in (
        "train/loss/segmentation", "train/loss/classification", "train/loss/evidence", "train/gradient_norm",
        "learning_rate/encoder", "learning_rate/head", "validation/combined",
    ):  # fmt: skip
        assert tag in tags["scalars"]
    assert {"validation/mask", "validation/prediction", "validation/evidence"} <= set(tags["images"])
    rates = {part: scalars(small_run.run("ours") / "stage3_joint", f"learning_rate/{part}")[0][1] for part in
             ("encoder", "head")}  # fmt: skip
    assert rates["encoder"] == pytest.approx(0.5 * rates["head"], rel=1e-6)


def test_manifest_names_seed_versions_commit_and_datalist(small_run):
    manifest = json.loads((small_run.run("ours") / "stage3_joint" / "manifest.json").read_text(encoding="utf-8"))
    assert manifest["seed"] == 0
    assert manifest["versions"]["monai"].startswith("1.6")
    assert len(manifest["datalist_sha256"]) == 64
    assert manifest["finished"]
