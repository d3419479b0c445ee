"""The plan of a training: values that follow images, time and memory, and an overlay that trains."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
import yaml

from scripts.__main__ import main
from scripts.command.locations import CONFIGS
from scripts.runs import folder as runs
from scripts.training import planning
from scripts.training.planning import Cost, Images, cost_of, make_plan, measured_images
from scripts.training.train import config_files

CPU = torch.device("cpu")
COUNTS = {0: 500, 1: 500}


def images(longest=150.0, counts=COUNTS, spacing=None, number=20):
    heads = np.full((number, 2 if spacing is None else 3), float(longest))
    heads[:, 0] *= 0.8
    return Images(heads, spacing, counts, 1)


def by_pixels(design, batch, device, precision):
    """One millisecond a thousand pixels, 1 KiB a pixel."""
    pixels = int(np.prod(design.size))
    return Cost(pixels * 1e-6, pixels * 1024)


def plan(hours=100.0, **settings):
    return make_plan(images(**settings), 2, hours, CPU, "float32", measure=by_pixels)


def test_with_time_enough_the_input_covers_three_in_four_heads():
    found = plan(longest=150)
    assert found.values["spatial_size"] == [160, 160]
    assert found.values["network_def#filters"] == [16, 32, 64, 128, 256]
    assert found.values["stage_epochs"]["joint"] == 50
    assert "at most 150 pixels long" in found.reasons["spatial_size"]


@pytest.mark.parametrize(("longest", "side"), [(60, 96), (97, 128), (256, 256), (900, 320)])
def test_sides_are_those_of_the_list(longest, side):
    assert plan(longest=longest).values["spatial_size"] == [side, side]


def test_with_less_time_the_input_is_the_largest_that_is_seen_often_enough():
    # 1000 images, 50 passes, 15 % kept back: 160 pixels a side take 0.42 hours, 128 take 0.27, 96 0.15.
    found = plan(hours=0.3)
    assert found.values["spatial_size"] == [128, 128]
    assert "160 x 160 would take 0.4 hours for 50 passes" in found.reasons["spatial_size"]


def test_with_too_little_time_the_passes_that_fit_are_planned_and_it_is_said():
    found = plan(hours=0.05)
    assert found.values["spatial_size"] == [96, 96]
    assert found.values["stage_epochs"]["joint"] == int(0.05 * 3600 * 0.85 / (9.216e-3 * 1000)) == 16
    assert "50 would be better" in found.reasons["stage_epochs"]


def test_small_collections_get_more_passes_and_no_average_of_a_few_steps():
    found = plan(counts={0: 40, 1: 40})
    steps = found.values["stage_epochs"]["joint"] * 10
    assert found.values["batch_size"] == 8
    assert 4000 <= steps < 4020
    assert plan(counts={0: 40, 1: 40}, hours=0.01).values.get("ema_decay") is None


def test_the_three_stages_take_as_long_as_the_joint_one():
    epochs = plan().values["stage_epochs"]
    cost = epochs["stage1_segmentation"] + planning.STAGE2 * epochs["stage2_classification"] + epochs["stage3_joint"]
    assert cost == pytest.approx(epochs["joint"], rel=0.05)


def test_memory_bounds_the_input_and_too_little_is_refused(monkeypatch):
    monkeypatch.setattr(planning, "memory", lambda: 2 * 8 * 128 * 128 * 1024)
    assert plan().values["spatial_size"] == [128, 128]
    monkeypatch.setattr(planning, "memory", lambda: 1000)
    with pytest.raises(ValueError, match=r"a batch of 8 at 96 x 96 keeps 0\.1 GiB, .* too little memory"):
        plan()


def test_rare_classes_are_drawn_as_often_as_others():
    assert plan(counts={0: 900, 1: 100}).values["class_shares"] == "equal"
    assert "class_shares" not in plan(counts={0: 600, 1: 400}).values


def test_volumes_are_planned_in_patches_no_larger_than_the_head():
    found = plan(longest=150, spacing=np.array([1.0, 1.0, 3.0]))
    assert found.values["spacing_mm"] == [1.0, 1.0, 3.0]
    assert found.values["spatial_size"] == [120, 128, 56]
    assert found.values["network_def#spatial_dims"] == 3
    assert found.values["batch_size"] == 2


@pytest.mark.parametrize("hours", [0, -1, float("nan")])
def test_no_time_is_refused(hours):
    with pytest.raises(ValueError, match="hours is above 0"):
        plan(hours=hours)


def test_a_step_is_measured_and_twice_the_side_keeps_four_times_as_much():
    small, large = (cost_of(planning.Design((side, side), (8, 16, 32), 1, 3), 2, CPU, "float32") for side in (32, 64))
    assert small.seconds > 0
    assert large.kept == pytest.approx(4 * small.kept, rel=0.2)


def test_three_dimensions_and_regions_can_be_measured():
    assert cost_of(planning.Design((16, 16, 16), (4, 8, 16), 4, 2, 3), 2, CPU, "float32").kept > 0


def test_heads_are_measured_as_the_pipeline_crops_them(small_data):
    datalist = runs.read_datalist(str(small_data.datalist_file), str(small_data.dataset_dir))
    found = measured_images(datalist, small_data.dataset_dir)
    assert found.number == len(datalist["training"])
    assert found.spacing_mm is None
    assert found.channels == 1
    assert found.heads.shape[1] == 2
    assert (found.heads > 20).all()


def test_the_verb_writes_an_overlay_that_the_training_config_takes(small_data, tmp_path, capsys):
    out = tmp_path / "plan.yaml"
    data = ["--dataset_dir", str(small_data.dataset_dir), "--datalist_file", str(small_data.datalist_file)]
    assert main(["plan", *data, "--out", str(out), "--hours", "0.002"]) == 0
    assert out.read_text(encoding="utf-8") in capsys.readouterr().out
    values = yaml.safe_load(out.read_text(encoding="utf-8"))
    config = runs.merged_config(config_files(runs.JOINT, [out]), {})
    assert config["spatial_size"] == values["spatial_size"]
    assert config["network_def"]["filters"] == values["network_def#filters"]
    assert config["stage_epochs"] == values["stage_epochs"]
    assert json.dumps(values)
    assert set(values) - {"network_def#" + key for key in config["network_def"]} <= set(config)
    assert str(CONFIGS) not in out.read_text(encoding="utf-8")
