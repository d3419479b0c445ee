"""The mixed list of all four folders of real images, made by the command line, trains for an epoch."""

from __future__ import annotations

import json
import math
from collections import Counter

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from scripts.__main__ import main as command
from scripts.command.locations import CONFIGS
from scripts.data import datalists
from scripts.runs import folder as runs
from scripts.training.train import train

COMMANDS = {
    "brisc2025": ["image_folder", "--limit", "40"],
    "brats2013": ["nifti_cases", "--classes", "no_tumor", "glioma", "--tumor-slices", "2", "--normal-slices", "1"],
    "openms": ["nifti_volumes", "--normal-slices", "2"],
    "healthy": ["nifti_volumes", "--modality", "T1", "--normal-slices", "2"],
}


@pytest.fixture(scope="module")
def mixed(real_data, tmp_path_factory):
    """The four lists and their mixture, each by its command."""
    missing = [name for name in COMMANDS if not (real_data / name).is_dir()]
    if missing:
        pytest.skip(f"no {', '.join(missing)} in {real_data}")
    out = tmp_path_factory.mktemp("mixed")
    for name, arguments in COMMANDS.items():
        command(["datalist", *arguments, "--folder", str(real_data / name), "--out", str(out / f"{name}.json")])
    lists, folders = [str(out / f"{name}.json") for name in COMMANDS], [str(real_data / name) for name in COMMANDS]
    options = ["--mixed_modality", "--resplit", "--seed", "1", "--out", str(out / "mix.json")]
    command(["datalist", "merge", *lists, "--dataset-dir", *folders, "--root", str(real_data), *options])
    return out


def test_the_mixed_list_of_four_sources_holds_all_that_was_found(mixed, real_data):
    datalist = datalists.read(mixed / "mix.json", real_data)
    assert list(datalist["classes"].values()) == ["no_tumor", "glioma", "meningioma", "pituitary"]
    items = [item for split in datalists.SPLITS for item in datalist[split]]
    count = Counter(item["source"] for item in items)
    assert count == {"brisc2025": 40, "brats2013": 9, "openms": 6, "healthy": 4}
    assert {item["diagnosis"] for item in items if item["source"] == "brats2013"} == {0, 1}
    report = json.loads((mixed / "mix.report.json").read_text(encoding="utf-8"))["figures"]
    assert (report["found"], report["used"], report["refused"]) == (59, 59, 0)
    for name, figures in {"brats2013": (3, 3, 0), "openms": (6, 3, 3), "healthy": (5, 2, 3)}.items():
        own = json.loads((mixed / f"{name}.report.json").read_text(encoding="utf-8"))["figures"]
        assert (own["found"], own["used"], own["refused"]) == figures


def test_the_mixed_list_of_four_sources_trains_for_an_epoch(mixed, real_data, tmp_path):
    paths = {"dataset_dir": str(real_data), "datalist_file": str(mixed / "mix.json")}
    run = train(tmp_path / "run", [CONFIGS / "smoke.yaml"], (runs.JOINT,), stage_epochs={runs.JOINT: 1}, **paths)
    folder = run / runs.JOINT
    events = EventAccumulator(str(folder))
    events.Reload()
    tags = [tag for tag in events.Tags()["scalars"] if "loss" in tag]
    losses = [event.value for tag in tags for event in events.Scalars(tag)]
    assert losses
    assert all(math.isfinite(value) for value in losses)
    weights = torch.load(folder / runs.WEIGHTS, weights_only=True)
    assert all(bool(torch.isfinite(value).all()) for value in weights.values() if value.is_floating_point())
    assert runs.read_manifest(folder)["best_epoch"] in (0, 1)
