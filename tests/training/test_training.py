"""The three stages through the shipped configs: hand-over, freezing, resuming, and what a run leaves behind."""

from __future__ import annotations

import json
import math
import shutil

import pytest
import torch
import yaml
from monai.bundle import ConfigWorkflow
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from scripts.command.locations import CONFIGS
from scripts.networks.multitask_dynunet import MultiTaskDynUNet
from scripts.runs import folder as runs
from scripts.training.checkpoints import StageCheckpoint
from scripts.training.train import train, train_stage

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


def workflow(small_run, tmp_path, stage=None, overlays=(), **values):
    """The parsed training graph of a shipped config; nothing is run."""
    files = [CONFIGS / "train.yaml", *([CONFIGS / f"{stage}.yaml"] if stage else []), SMOKE, *overlays]
    flow = ConfigWorkflow(
        workflow_type="train", config_file=[str(f) for f in files], meta_file=str(CONFIGS / "metadata.json"),
        logging_file=False, run_dir=str(tmp_path), **small_run.paths, **values,
    )  # fmt: skip
    flow.parser.parse(reset=True)
    return flow.parser


def loss_of(small_run, tmp_path, **values):
    """The loss of fixed outputs under a config: two items, one with a mask."""
    generator = torch.Generator().manual_seed(0)
    pred = {
        "seg": torch.randn(1, 2, 8, 8, generator=generator),
        "cls": torch.randn(2, 2, generator=generator),
        "cells": torch.randn(2, 2, 4, 4, generator=generator),
    }
    label = (torch.rand(2, 1, 8, 8, generator=generator) > 0.5).to(torch.uint8)
    target = {
        "label": label, "foreground": torch.ones_like(label), "has_mask": torch.tensor([True, False]),
        "diagnosis": torch.tensor([1, 0]),
    }  # fmt: skip
    loss = workflow(small_run, tmp_path, **values).get_parsed_content("train#loss")
    total = float(loss(pred, target))
    return total, {name: float(value) for name, value in loss.parts.items()}


def test_each_weight_of_the_config_weighs_the_part_it_names(small_run, tmp_path):
    total, parts = loss_of(small_run, tmp_path)
    weights = {"seg_weight": "segmentation", "cls_weight": "classification", "evidence_weight": "evidence"}
    assert total == pytest.approx(parts["segmentation"] + 0.5 * parts["classification"] + 0.5 * parts["evidence"])
    for key, part in weights.items():
        default = 1.0 if key == "seg_weight" else 0.5
        found, same = loss_of(small_run, tmp_path, **{key: 3.0})
        assert same == parts
        assert found - total == pytest.approx((3.0 - default) * parts[part], rel=1e-4)


@pytest.mark.parametrize(
    ("key", "value", "part"),
    [
        ("label_smoothing", 0.2, "classification"),
        ("focal_gamma", 2.0, "classification"),
        ("class_weights", [1.0, 5.0], "classification"),
        ("mask_loss#focal_gamma", 2.0, "segmentation"),
        ("mask_loss#tversky_beta", 0.7, "segmentation"),
        ("area_at_zero", 0.5, "evidence"),
        ("background_weight", 0.0, "evidence"),
    ],
)
def test_each_option_of_the_loss_changes_the_part_it_names_alone(small_run, tmp_path, key, value, part):
    _, before = loss_of(small_run, tmp_path)
    _, after = loss_of(small_run, tmp_path, **{key: value})
    assert {name for name in before if before[name] != after[name]} == {part}


def test_what_has_no_weight_is_not_computed(small_run, tmp_path):
    asked = {}
    for stage in (None, *runs.STAGES):
        # The weights of the stage before are not needed for this.
        step = workflow(small_run, tmp_path, stage, initial_weights=None).get_parsed_content("train#step")
        asked[stage] = (step.segmentation, step.classification, step.evidence)
    assert asked == {
        None: (True, True, True),
        "stage1_segmentation": (True, False, False),
        "stage2_classification": (False, True, True),
        "stage3_joint": (True, True, True),
    }
    step = workflow(small_run, tmp_path, cls_weight=0.0).get_parsed_content("train#step")
    assert (step.classification, step.evidence) == (False, True)


def test_options_of_the_config_reach_what_they_name(small_run, tmp_path):
    parser = workflow(
        small_run, tmp_path, ema_decay=0.9, early_stopping=3, accumulation_steps=2, precision="bfloat16",
        masked_share=0.5, gradient_clip=3.0, learning_rate=0.01, encoder_factor=0.1, image_interval=7,
    )  # fmt: skip
    step = parser.get_parsed_content("train#step")
    assert (step.accumulation_steps, step.precision) == (2, "bfloat16")
    checkpoint = parser.get_parsed_content("checkpoint")
    assert checkpoint.early_stopping == 3
    assert checkpoint.average.averaged is not None
    assert parser.get_parsed_content("validate#step").network is checkpoint.average.selected
    sampler = parser.get_parsed_content("train#sampler")
    masked = sum(sampler.counts["mask"].values())
    assert sampler.counts["mask"]["with"] == masked / 2
    groups = parser.get_parsed_content("train#optimizer").param_groups
    assert {g["name"]: g["initial_lr"] for g in groups} == pytest.approx(
        {"encoder": 0.001, "decoder": 0.01, "head": 0.01}
    )
    handlers = {type(h).__name__: h for h in parser.get_parsed_content("train#handlers")}
    assert handlers["GradientClip"].max_norm == 3.0
    images = [h for h in parser.get_parsed_content("validate#handlers") if type(h).__name__ == "ValidationImages"]
    assert images[0].every == 7


@pytest.mark.parametrize("stage", runs.STAGES)
def test_overlay_of_kept_features_changes_stage_2_alone(small_run, tmp_path, stage):
    parser = workflow(small_run, tmp_path, stage, [CONFIGS / "cached_features.yaml"], initial_weights=None)
    step, items = (parser.get_parsed_content(f"train#{name}") for name in ("step", "items"))
    images = []
    for epoch in (1, 2):
        items.set_epoch(epoch)
        images.append(torch.stack([items[k]["image"] for k in range(8)]))
    keeps = stage == "stage2_classification"
    assert torch.equal(*images) == keeps, "without augmentation"
    assert (step.kept is not None) == keeps
    if keeps:
        assert step.kept.items == len(items)


def test_schedule_warms_up_and_falls_as_a_cosine_for_each_group(small_run, tmp_path):
    parser = workflow(
        small_run, tmp_path, warmup_epochs=1, learning_rate=0.01, encoder_factor=0.1, **{"train#trainer#max_epochs": 4}
    )
    optimizer, scheduler = (parser.get_parsed_content(f"train#{name}") for name in ("optimizer", "scheduler"))
    batches = len(parser.get_parsed_content("train#dataloader"))
    assert [g["name"] for g in optimizer.param_groups] == ["encoder", "decoder", "head"]
    rates = []
    for _ in range(4 * batches + 1):
        rates.append([g["lr"] for g in optimizer.param_groups])
        optimizer.step()
        scheduler.step()
    for k, (encoder, decoder, head) in enumerate(rates):
        if k < batches:
            expected = 0.05 + 0.95 * k / batches
        else:
            expected = 0.5 * (1 + math.cos(math.pi * (k - batches) / (3 * batches)))
        assert decoder == head == pytest.approx(0.01 * expected, abs=1e-9)
        assert encoder == pytest.approx(0.1 * decoder, abs=1e-9)


def test_an_average_and_accumulation_train_through_the_shipped_configs(small_run, tmp_path):
    overrides = {"run_dir": str(tmp_path), **small_run.paths, "ema_decay": 0.9, "accumulation_steps": 3}
    stage = train_stage("stage1_segmentation", [SMOKE], {**overrides, "max_epochs": 1})
    kept, state = weights(stage), torch.load(stage / "checkpoint.pt", weights_only=True)
    assert state["average"]["module.bottleneck.conv1.conv.weight"].shape == kept["bottleneck.conv1.conv.weight"].shape
    losses = dict(scalars(stage, "train/loss/segmentation"))
    plain = dict(scalars(small_run.run("ours") / "stage1_segmentation", "train/loss/segmentation"))
    assert losses[1] == pytest.approx(plain[1], rel=1e-4), "in parts as whole"
    rates = dict(scalars(stage, "learning_rate/head"))
    assert rates[1] == pytest.approx(0.0, abs=1e-9), "the schedule ends with the stage"
