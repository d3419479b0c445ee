"""Lists in the form of the Decathlon, with their parts."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from scripts.data import datalists
from scripts.data.datalists.decathlon import decathlon
from scripts.data.datalists.slices import SliceRule
from tests.data.lists import items_of
from tests.data.volume_files import save, scan, tumor
from transforms.loading import LoadCased


def test_decathlon_list_with_4d_images(tmp_path):
    for k in range(4):
        save(np.stack([scan(k), scan(k) + 1], axis=-1), tmp_path / "imagesTr" / f"BRATS_{k:03d}.nii.gz")
        save(tumor(3), tmp_path / "labelsTr" / f"BRATS_{k:03d}.nii.gz")
    entries = [
        {"image": f"./imagesTr/BRATS_{k:03d}.nii.gz", "label": f"./labelsTr/BRATS_{k:03d}.nii.gz"} for k in range(4)
    ]
    content = {
        "name": "BRATS", "modality": {"0": "FLAIR", "1": "T1w"}, "labels": {"0": "background", "1": "edema"},
        "training": [*entries, {"image": "./imagesTr/BRATS_999.nii.gz", "label": "./labelsTr/BRATS_999.nii.gz"}],
        "test": ["./imagesTs/BRATS_485.nii.gz"],
    }  # fmt: skip
    (tmp_path / "dataset.json").write_text(json.dumps(content))
    datalist, report = decathlon(tmp_path, rule=SliceRule(tumor_slices=1, normal_slices=1), progress=False)
    assert dict(report.unusable) == {
        "./imagesTs/BRATS_485.nii.gz": "has no mask: nothing to train or to measure on",
        "./imagesTr/BRATS_999.nii.gz": "imagesTr/BRATS_999.nii.gz does not exist",
    }
    assert datalist["modality"] == {"0": "FLAIR", "1": "T1w"}
    items = items_of(datalist)
    assert len(items) == 8
    assert items[0]["image"].startswith("imagesTr/BRATS_")
    loaded = LoadCased()({"image": str(tmp_path / items[0]["image"]), "slice": items[0]["slice"]})["image"]
    assert float((loaded[1] - loaded[0]).min()) == 1
    datalists.validate(datalist, tmp_path)
    (tmp_path / "dataset.json").write_text("[1")
    with pytest.raises(ValueError, match=r"dataset.json is no JSON file"):
        decathlon(tmp_path, progress=False)


def test_decathlon_list_with_validation_keeps_its_parts(tmp_path):
    for k in range(3):
        save(scan(k), tmp_path / f"p{k}.nii.gz")
        save(tumor(), tmp_path / f"m{k}.nii.gz")
    parts = {
        part: [{"image": f"p{k}.nii.gz", "label": f"m{k}.nii.gz"}]
        for k, part in enumerate(("test", "training", "validation"))
    }
    (tmp_path / "list.json").write_text(json.dumps(parts))
    datalist, _ = decathlon(tmp_path / "list.json", progress=False)
    assert {part: {item["patient"] for item in datalist[part]} for part in datalists.SPLITS} == {
        "test": {"p0"}, "training": {"p1"}, "validation": {"p2"}
    }  # fmt: skip


def decathlon_file(folder: Path, parts: dict[str, list[str]]) -> Path:
    """A list with these cases, made where they are not yet."""
    for k, name in enumerate(dict.fromkeys(name for names in parts.values() for name in names)):
        if not (folder / name).exists():
            save(scan(k), folder / name / "flair.nii.gz")
            save(tumor(), folder / name / "seg.nii.gz")
    entries = {
        part: [{"image": f"{name}/flair.nii.gz", "label": f"{name}/seg.nii.gz"} for name in names]
        for part, names in parts.items()
    }
    (folder / "dataset.json").write_text(json.dumps(entries))
    return folder / "dataset.json"


def test_a_patient_in_two_parts_of_a_decathlon_list_goes_whole_to_the_first_and_that_is_said(tmp_path, caplog):
    names = {"training": ["p1_study1", "p2"], "validation": ["p3_study1"], "testing": ["p1_study2", "p3_study2", "p4"]}
    datalist, report = decathlon(decathlon_file(tmp_path, names), progress=False)
    assert {part: {item["patient"] for item in datalist[part]} for part in datalists.SPLITS} == {
        "training": {"p1", "p2"}, "validation": {"p3"}, "test": {"p4"}
    }  # fmt: skip
    assert {item["image"] for item in datalist["training"]} >= {"p1_study1/flair.nii.gz", "p1_study2/flair.nii.gz"}
    assert report.notes == [
        ("p1_study2/flair.nii.gz", "moved from test to training: patient p1 has cases there"),
        ("p3_study2/flair.nii.gz", "moved from test to validation: patient p3 has cases there"),
    ]
    assert report.figures["moved"] == {"test to training": 1, "test to validation": 1}
    assert "cases moved to keep patients in one part" in caplog.text


def test_a_case_that_cannot_be_used_moves_no_patient(tmp_path):
    names = {"training": ["p1_study1", "p2"], "validation": ["p3"], "test": ["p1_study2"]}
    file = decathlon_file(tmp_path, names)
    save(tumor(9), tmp_path / "p1_study1" / "seg.nii.gz")  # refused for its labels
    datalist, report = decathlon(file, progress=False)
    assert [name for name, _ in report.unusable] == ["p1_study1/flair.nii.gz"]
    assert {item["patient"] for item in datalist["test"]} == {"p1"}
    assert report.figures["moved"] == {}
