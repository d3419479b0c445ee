"""What a stage is asked for is checked before its data are read, and shares apply where its items allow them."""

from __future__ import annotations

import json
import logging

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from scripts.command.errors import sentence
from scripts.command.locations import CONFIGS
from scripts.data.samplers import MixedBatchSampler, groups, has_mask
from scripts.runs import folder as runs
from scripts.training import stages
from scripts.training.train import train, train_stage
from tests.networks.nets import tiny

SMOKE = CONFIGS / "smoke.yaml"
GOOD = {
    "batch_size": 8,
    "accumulation_steps": 1,
    "max_epochs": 2,
    "val_interval": 1,
    "warmup_epochs": 0,
    "image_interval": 5,
    "early_stopping": None,
}


def check(spatial_size=(32, 32), precision="bfloat16", key_metric="dice", **counts):
    stages.check_settings(tiny(), "cpu", spatial_size, precision, key_metric, **{**GOOD, **counts})


def test_values_that_can_be_used_pass():
    check()
    check(image_interval=0, early_stopping=3)
    check(image_interval=None, spatial_size=32)
    stages.check_settings(torch.nn.Conv2d(1, 1, 1), "cpu", (60, 60), "float32", "auc", **GOOD)  # no stride to keep to


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"image_interval": -1}, "image_interval is a whole number, 0 or more, or null; got -1"),
        ({"image_interval": 2.5}, "image_interval is a whole number, 0 or more, or null; got 2.5"),
        ({"val_interval": 0}, "val_interval is a whole number, 1 or more; got 0"),
        ({"val_interval": None}, "val_interval is a whole number, 1 or more; got None"),
        ({"batch_size": True}, "batch_size is a whole number, 1 or more; got True"),
        ({"max_epochs": 0}, "max_epochs is a whole number, 1 or more; got 0"),
        ({"warmup_epochs": -1}, "warmup_epochs is a whole number, 0 or more; got -1"),
        ({"early_stopping": 0}, "early_stopping is a whole number, 1 or more, or null; got 0"),
        ({"spatial_size": (30, 32)}, r"spatial_size \[30, 32\] is not a multiple of .*\[4, 4\]; next: \[32, 32\]"),
        ({"spatial_size": (32, 32, 32)}, "has 3 axes, the network has 2"),
        ({"precision": "half"}, "precision is one of auto, float32, bfloat16, float16, got 'half'"),
        ({"precision": "float16"}, "precision float16 needs a GPU"),
        ({"key_metric": "dise"}, "key_metric is one of dice, balanced_accuracy, auc, combined, because, got 'dise'"),
    ],
)
def test_values_that_cannot_be_used_are_named(values, said):
    with pytest.raises(ValueError, match=said):
        check(**values)


@pytest.mark.parametrize(
    "values", [{"val_interval": 0}, {"spatial_size": [60, 60]}, {"image_interval": -1}, {"key_metric": "x"}]
)
def test_a_stage_refuses_before_it_reads_or_writes_anything(small_data, tmp_path, values):
    options = {**small_data.paths, "run_dir": str(tmp_path / "run"), **values}
    with pytest.raises((ValueError, RuntimeError)) as caught:
        train_stage("stage1_segmentation", [SMOKE], options)
    assert next(iter(values)) in sentence(caught.value)
    assert list(tmp_path.rglob("*")) == [], "neither cache nor settings"


@pytest.mark.parametrize("interval", [0, None])
def test_pictures_can_be_switched_off(small_data, tmp_path, interval):
    options = {**small_data.paths, "run_dir": str(tmp_path), "image_interval": interval, "max_epochs": 1}
    folder = train_stage("stage1_segmentation", [SMOKE], options)
    events = EventAccumulator(str(folder))
    events.Reload()
    assert events.Tags()["images"] == []
    assert [e.step for e in events.Scalars("validation/dice")] == [0, 1]


def item(label: bool, diagnosis: int | None, source: str = "a") -> dict:
    found = {"image": "x.png", "source": source}
    return found | ({"label": "m.png"} if label else {}) | ({} if diagnosis is None else {"diagnosis": diagnosis})


EVERY = [item(True, 1), item(True, 1), item(True, 2), item(False, 0, "b"), item(False, 1, "b"), item(False, 2, "b")]
MASKED = EVERY[:3]


@pytest.fixture
def whole(tmp_path) -> dict:
    """A datalist of `EVERY`, as keywords of `stages.mix`."""
    parts = {"training": EVERY, "validation": [{**EVERY[3], "image": "y.png"}], "test": []}
    for name in ("x.png", "y.png", "m.png"):
        (tmp_path / name).touch()
    path = tmp_path / "list.json"
    names = {"0": "no_tumor", "1": "x", "2": "y"}
    path.write_text(json.dumps({"name": "made", "modality": {"0": "T1"}, "classes": names, **parts}), encoding="utf-8")
    return {"datalist_file": str(path), "dataset_dir": str(tmp_path)}


def mixed(items, need, whole, masked_share=None, alternating=False, classes=None, sources=None):
    return stages.mix(items, need, masked_share, alternating, {"class": classes, "source": sources}, **whole)


def test_what_a_stage_can_mix_is_left_as_it_is(whole):
    asked = {
        "masked_share": 0.5,
        "alternating": True,
        "shares": {"class": {0: 0.5, 1: 0.25, 2: 0.25}, "source": "equal"},
    }
    assert mixed(EVERY, "any", whole, 0.5, True, asked["shares"]["class"], "equal") == asked
    assert mixed(EVERY, "diagnosis", whole, masked_share=0.3)["masked_share"] == 0.3


def test_masks_are_not_mixed_where_all_items_have_one(whole, caplog):
    with caplog.at_level(logging.INFO):
        found = mixed(MASKED, "mask", whole, 0.5, True)
    assert (found["masked_share"], found["alternating"]) == (None, False)
    said = "masked_share and alternating not applied: all items of this stage are with a mask (items: mask)"
    assert said in caplog.text


def test_a_stage_of_one_task_does_not_alternate(whole, caplog):
    with caplog.at_level(logging.INFO):
        assert not mixed(EVERY, "diagnosis", whole, alternating=True)["alternating"]
    assert "alternating not applied" in caplog.text


def test_shares_of_values_that_other_stages_have_are_dealt_to_the_rest(whole, caplog):
    with caplog.at_level(logging.INFO):
        found = mixed(MASKED, "mask", whole, classes={0: 0.5, 1: 0.1, 2: 0.4}, sources={"b": 1.0, "a": 0.0})
    assert found["shares"]["class"] == pytest.approx({"1": 0.2, "2": 0.8})
    assert found["shares"]["source"] is None
    assert "class_shares: no item of this stage (items: mask) is of class 0; the other shares are scaled" in caplog.text
    sampler = MixedBatchSampler(has_mask(MASKED), 5, groups=groups(MASKED), shares=found["shares"])
    assert sampler.counts["class"] == {"1": 1, "2": 4}


@pytest.mark.parametrize("given", [{7: 0.5, 1: 0.25, 2: 0.25}, {0: 0.5, 1: 0.1, 2: 0.1}])
def test_a_share_of_what_no_stage_has_or_that_does_not_sum_up_is_still_refused(whole, given):
    found = mixed(MASKED, "mask", whole, classes=given)
    with pytest.raises(ValueError, match=r"ask for|sum to 1"):
        MixedBatchSampler(has_mask(MASKED), 3, groups=groups(MASKED), shares=found["shares"])
    bare = mixed(MASKED, "any", {}, masked_share=0.5)  # no datalist: these are all items there are
    with pytest.raises(ValueError, match="asks for items without a mask, and there are none"):
        MixedBatchSampler(has_mask(MASKED), 3, masked_share=bare["masked_share"])


def test_one_command_with_shares_trains_all_three_stages(small_data, tmp_path, caplog):
    shares = {"masked_share": 0.5, "alternating": True, "class_shares": {0: 0.5, 1: 0.5}}
    with caplog.at_level(logging.INFO):
        train(tmp_path, [SMOKE], **small_data.paths, **shares, max_epochs=1, image_interval=0)
    for stage in runs.STAGES:
        assert "finished" in json.loads((tmp_path / stage / "manifest.json").read_text(encoding="utf-8")), stage
    said = [r.getMessage() for r in caplog.records if r.name == "scripts.training.stages"]
    assert [text.split(":")[0] for text in said] == [
        "masked_share and alternating not applied",
        "alternating not applied",
    ]
    counts = [r.getMessage() for r in caplog.records if "items an epoch" in r.getMessage()]
    assert ["'mask'" in text for text in counts] == [False, True, True]


def unknown(source, path, only_unlabeled: bool = False) -> tuple[str, int, int]:
    """A copy of a datalist in which items have no known class; also its items, and those among them with a mask."""
    content = json.loads(source.read_text(encoding="utf-8"))
    for each in content["training"]:
        if not (only_unlabeled and "label" in each):
            each["diagnosis"] = -1
    path.write_text(json.dumps(content), encoding="utf-8")
    return str(path), len(content["training"]), sum("label" in each for each in content["training"])


def test_items_without_any_target_are_left_out_and_counted(small_data, tmp_path, caplog):
    datalist_file, count, masked = unknown(small_data.datalist_file, tmp_path / "list.json", only_unlabeled=True)
    options = {**small_data.paths, "datalist_file": datalist_file, "batch_size": 2, "max_epochs": 1, "warmup_epochs": 0}
    with caplog.at_level(logging.INFO):
        train_stage(runs.JOINT, [SMOKE], {**options, "run_dir": str(tmp_path / "run")})
    left_out = f"left out: 0 by items: any, {count - masked} that have not a mask or a known class"
    assert f"training: {masked} of {count} items; {left_out}" in caplog.text
    assert count > masked > 0


def test_a_class_of_minus_one_is_a_missing_one(small_data, tmp_path):
    datalist_file, _, masked = unknown(small_data.datalist_file, tmp_path / "list.json")
    datalist = runs.read_datalist(datalist_file, str(small_data.dataset_dir))
    folder = str(small_data.dataset_dir)
    assert len(runs.stage_items(datalist, "training", folder, "diagnosis")) == masked
    both = {"mask": True, "diagnosis": True}
    assert len(runs.stage_items(datalist, "training", folder, "any", both)) == masked
    with pytest.raises(ValueError, match=r"no item in the 'training' part .* is trained on \(a known class\)"):
        runs.stage_items(datalist, "training", folder, "diagnosis", {"mask": False, "diagnosis": True})
    for each in datalist["training"]:
        each.pop("diagnosis")
    follows = runs.stage_items(datalist, "training", folder, "any", {"mask": False, "diagnosis": True})
    assert len(follows) == masked, "of two classes it follows from the mask"
    datalist["classes"]["2"] = "another"
    with pytest.raises(ValueError, match="a known class"):
        runs.stage_items(datalist, "training", folder, "any", {"mask": False, "diagnosis": True})
