"""What a release is checked with: phantoms of its own sequences, regions and number of axes."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import yaml

from bundle import monai_checks
from scripts.data import datalists
from scripts.data.datalists.regions import SCHEMES


@pytest.mark.parametrize(
    ("axes", "channels", "regions"),
    [
        (2, 1, None),
        (2, 4, None),
        (3, 1, None),
        (3, 2, "brats2012"),
        (3, 4, "brats2017"),
        (2, 4, "msd_task01"),
        (2, 1, "brats2023"),
    ],
)
def test_phantoms_are_of_the_networks_sequences_regions_and_axes(axes, channels, regions, tmp_path, monkeypatch):
    (tmp_path / "configs").mkdir()
    config = {
        "spatial_size": [32] * axes,
        "regions": None if regions is None else SCHEMES[regions],
        "network_def": {"in_channels": channels},
    }
    (tmp_path / "configs" / "inference.yaml").write_text(yaml.safe_dump(config, sort_keys=False), encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    values = monai_checks.drawn(tmp_path / "drawn")
    assert values is not None
    images = values["infer"]["input"]
    images = [images] if isinstance(images, str) else images
    assert len(images) == channels
    assert all(Path(image).is_file() for image in images)
    train = values["train"]
    datalist = datalists.read(train["datalist_file"], train["dataset_dir"])
    items = [item for part in ("training", "validation", "test") for item in datalist[part]]
    assert {item["diagnosis"] for item in items} == {0, 1}
    assert all(("slice" in item) == (axes == 2 and (channels > 1 or regions is not None)) for item in items)
    if regions is None:
        return
    assert datalist["regions"] == SCHEMES[regions]
    masks = {Path(train["dataset_dir"], item["label"]) for item in items if item.get("label")}
    found = {int(v) for mask in masks for v in np.unique(nib.load(mask).dataobj)}
    allowed = {v for own in SCHEMES[regions].values() for v in own}
    assert found - {0} <= allowed
    assert len(found) == 4


def test_more_sequences_than_phantoms_have_are_said_to_be_unchecked(tmp_path, monkeypatch):
    (tmp_path / "configs").mkdir()
    config = {"spatial_size": [32] * 3, "regions": None, "network_def": {"in_channels": 5}}
    (tmp_path / "configs" / "inference.yaml").write_text(yaml.safe_dump(config, sort_keys=False), encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    assert monai_checks.drawn(tmp_path) is None
    assert monai_checks.workflows() == "NOT CHECKED: the network takes more sequences than phantoms have"
