"""The plan of a training: values that follow images, time and memory, and an overlay that trains."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import yaml

from scripts.__main__ import main
from scripts.runs import folder as runs
from scripts.training import planning
from scripts.training.costs import Cost, Design, Images, cost_of, measured_images
from scripts.training.planning import make_plan
from scripts.training.train import config_files, train

CPU = torch.device("cpu")
COUNTS = {0: 500, 1: 500}


def images(longest=150.0, counts=COUNTS, spacing=None, number=20):
    heads = np.full((number, 2 if spacing is None else 3), float(longest))
    heads[:, 0] *= 0.8
    return Images(heads, spacing, counts, 1, 100)


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
    # 1000 images, 50 passes, a tenth kept for validation: 160 pixels a side take 0.40 hours, 128 take 0.25, 96 0.14.
    found = plan(hours=0.3)
    assert found.values["spatial_size"] == [128, 128]
    assert "160 x 160 would take 0.4 hours for 50 passes" in found.reasons["spatial_size"]


def test_with_too_little_time_the_passes_that_fit_are_planned_and_it_is_said():
    found = plan(hours=0.05)
    assert found.values["spatial_size"] == [96, 96]
    assert found.values["stage_epochs"]["joint"] == int(0.05 * 3600 * 0.9 / (9.216e-3 * 1000)) == 17
    assert "50 times would be better" in found.reasons["stage_epochs"]


def test_time_for_no_pass_is_refused_with_what_one_takes():
    with pytest.raises(ValueError, match=r"one pass over 1000 images takes 0\.00284 hours, 0\.002 are given"):
        plan(hours=0.002)


def test_small_collections_get_more_passes_and_no_average_of_a_few_steps():
    found = plan(counts={0: 40, 1: 40})
    assert found.values["batch_size"] == 8
    assert found.values["stage_epochs"]["joint"] * 10 == 4000
    assert found.values["ema_decay"] == 0.998
    assert "ema_decay" not in plan(counts={0: 40, 1: 40}, hours=0.01).values


def test_the_three_stages_take_as_long_as_the_joint_one():
    epochs = plan().values["stage_epochs"]
    cost = sum(epochs[stage] * planning.COSTS[stage] for stage in runs.STAGES)
    assert cost == pytest.approx(epochs["joint"], rel=0.05)


def test_memory_bounds_the_input_and_too_little_is_refused(monkeypatch):
    monkeypatch.setattr(planning, "memory", lambda: 2 * 8 * 128 * 128 * 1024)
    found = plan()
    assert found.values["spatial_size"] == [128, 128]
    assert found.reasons["spatial_size"].endswith("160 x 160 would keep about 0.2 GiB, 0.1 may be filled")
    monkeypatch.setattr(planning, "memory", lambda: 1000)
    with pytest.raises(ValueError, match=r"a batch of 8 at 96 x 96 keeps 0\.1 GiB, .* too little memory"):
        plan()


def test_few_passes_are_validated_after_each_and_costly_validations_seldom():
    assert plan(hours=0.02).values["val_interval"] == 1
    often, seldom = (
        plan(),
        make_plan(Images(images().heads, None, COUNTS, 1, 10**6), 2, 1, CPU, "float32", 1, by_pixels),
    )
    assert often.values["val_interval"] == 2
    assert seldom.values["val_interval"] == 17


def test_rare_classes_are_drawn_as_often_as_others():
    assert plan(counts={0: 900, 1: 100}).values["class_shares"] == "equal"
    assert "class_shares" not in plan(counts={0: 600, 1: 400}).values


def test_unknown_classes_leave_the_shares_as_they_are():
    assert "class_shares" not in plan(counts={-1: 50, 0: 900, 1: 50}).values


def test_volumes_are_planned_in_patches_no_larger_than_the_head():
    found = plan(longest=150, spacing=np.array([1.0, 1.0, 3.0]))
    assert found.values["spacing_mm"] == [1.0, 1.0, 3.0]
    assert found.values["spatial_size"] == [120, 128, 56]
    assert found.values["network_def#spatial_dims"] == 3
    assert found.values["batch_size"] == 2


def test_a_few_thick_slices_leave_three_levels():
    found = plan(longest=150, spacing=np.array([1.0, 1.0, 8.0]))
    assert found.values["spatial_size"] == [120, 128, 24]
    assert len(found.values["network_def#filters"]) == 3
    network = Design((16, 16, 8), (4, 8, 16), 1, 2).network()
    assert network.multitask(torch.ones(1, 1, 16, 16, 8))["seg"].shape == (1, 2, 16, 16, 8)


@pytest.mark.parametrize("hours", [0, -1, float("nan"), float("inf")])
def test_no_time_is_refused(hours):
    with pytest.raises(ValueError, match="hours is a number above 0"):
        plan(hours=hours)


def test_a_step_is_measured_and_twice_the_side_keeps_four_times_as_much():
    small, large = (cost_of(Design((side, side), (8, 16, 32), 1, 3), 2, CPU, "float32") for side in (32, 64))
    assert small.seconds > 0
    assert large.kept == pytest.approx(4 * small.kept, rel=0.2)


def test_three_dimensions_channels_and_regions_can_be_measured():
    assert cost_of(Design((16, 16, 16), (4, 8, 16), 4, 2, 3), 2, CPU, "float32").kept > 0


def test_heads_are_measured_as_the_pipeline_crops_them(small_data):
    datalist = runs.read_datalist(str(small_data.datalist_file), str(small_data.dataset_dir))
    found = measured_images(datalist, small_data.dataset_dir)
    assert found.number == len(datalist["training"])
    assert (found.spacing_mm, found.channels, found.validation) == (None, 1, len(datalist["validation"]))
    assert found.heads.shape[1] == 2
    assert (found.heads > 20).all()


def test_the_verb_writes_what_it_prints_and_the_training_config_takes_it(small_data, tmp_path, capsys):
    out = tmp_path / "plan.yaml"
    data = ["--dataset_dir", str(small_data.dataset_dir), "--datalist_file", str(small_data.datalist_file)]
    assert main(["plan", *data, "--out", str(out), "--hours", "0.05", "--precision", "float32"]) == 0
    text = out.read_text(encoding="utf-8")
    assert text in capsys.readouterr().out
    values = yaml.safe_load(text)
    config = runs.merged_config(config_files(runs.JOINT, [out]), {})
    assert config["spatial_size"] == values["spatial_size"]
    assert config["network_def"]["filters"] == values["network_def#filters"]


def test_the_three_stages_train_by_a_plan(small_data, tmp_path):
    datalist = runs.read_datalist(str(small_data.datalist_file), str(small_data.dataset_dir))
    found = make_plan(measured_images(datalist, small_data.dataset_dir), 2, 0.01, CPU, "float32", measure=by_pixels)
    overlay = tmp_path / "plan.yaml"
    overlay.write_text(found.text(), encoding="utf-8")
    run = train(tmp_path / "run", [overlay], **small_data.paths, max_epochs=1, image_interval=0)
    network, config, _ = runs.load_run(run)
    assert config["spatial_size"] == found.values["spatial_size"]
    assert list(network.filters) == found.values["network_def#filters"]
    assert sorted(network.trained_tasks) == ["classification", "segmentation"]


def test_volumes_train_by_a_plan(small_data, tmp_path):
    datalist_file = tmp_path / "volumes.json"
    folder, out = str(small_data.dataset_dir / "patients"), str(datalist_file)
    verb = ["datalist", "nifti_cases", "--folder", folder, "--root", str(small_data.dataset_dir), "--out", out]
    assert main([*verb, "--whole_volumes"]) == 0
    datalist = runs.read_datalist(str(datalist_file), str(small_data.dataset_dir))
    measured = measured_images(datalist, small_data.dataset_dir)
    assert measured.spacing_mm is not None
    found = make_plan(measured, 2, 0.01, CPU, "float32", measure=lambda *_: Cost(0.01, 10**9))
    overlay = tmp_path / "plan.yaml"
    overlay.write_text(found.text(), encoding="utf-8")
    paths = {"dataset_dir": str(small_data.dataset_dir), "datalist_file": str(datalist_file)}
    # As deep as planned, and on the planned patches; as wide as planned it would take minutes.
    narrow = {"network_def#filters": [4] * len(found.values["network_def#filters"])}
    run = train(tmp_path / "run", [overlay], (runs.JOINT,), **paths, **narrow, max_epochs=1, image_interval=0)
    config = runs.load_run(run).config
    assert {key: config[key] for key in ("spacing_mm", "spatial_size")} == {
        key: found.values[key] for key in ("spacing_mm", "spatial_size")
    }
