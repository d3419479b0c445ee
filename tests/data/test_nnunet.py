"""A datalist written as nnU-Net's raw dataset and read back."""

from __future__ import annotations

import json

import nibabel as nib
import numpy as np
import pytest

from scripts.data.datalists import nifti_cases
from scripts.data.datalists.decathlon import decathlon
from scripts.data.datalists.nnunet import write_raw
from scripts.data.datalists.regions import SCHEMES
from scripts.data.datalists.slices import SliceRule

CHANNELS = ("FLAIR", "T1", "T1ce", "T2")
RULE = SliceRule(planes=(), regions=SCHEMES["brats2017"])


def voxels(path) -> np.ndarray:
    return np.asarray(nib.load(path).dataobj)


@pytest.fixture(scope="module")
def listed(pairs):
    rule = SliceRule(planes=(), regions=SCHEMES["brats2012"])
    datalist, _ = nifti_cases(pairs, rule=rule, channels=CHANNELS, patient_pattern=r"v\d+", progress=False)
    return datalist


def test_every_case_comes_back_with_its_sequences_and_regions(listed, pairs, tmp_path):
    counts = write_raw(listed, pairs, tmp_path / "Dataset007_Phantoms")
    assert counts == {part: len(listed[part]) for part in ("training", "validation", "test")}
    content = json.loads((tmp_path / "Dataset007_Phantoms" / "dataset.json").read_text(encoding="utf-8"))
    assert content["labels"] == {
        "background": 0, "whole_tumor": [1, 2, 3, 4], "tumor_core": [1, 3, 4], "enhancing_tumor": [4]
    }  # fmt: skip
    assert content["regions_class_order"] == [2, 1, 4]
    assert content["channel_names"] == {"0": "FLAIR", "1": "T1", "2": "T1ce", "3": "T2"}
    back, report = decathlon(
        tmp_path / "Dataset007_Phantoms", rule=SliceRule(planes=(), regions=SCHEMES["brats2012"]), progress=False,
        patient_pattern=r"v\d+",
    )  # fmt: skip
    assert report.unusable == []
    given = {item["label"]: item for part in ("training", "validation", "test") for item in listed[part]}
    found = [item for part in ("training", "validation", "test") for item in back[part]]
    assert len(found) == len(given) == 6
    for item in found:
        name = item["label"].rpartition("/")[2].removesuffix(".nii.gz")
        own = next(one for label, one in given.items() if f"/{name}_seg" in f"/{label}")
        assert np.array_equal(voxels(tmp_path / "Dataset007_Phantoms" / item["label"]), voxels(pairs / own["label"]))
        assert [voxels(tmp_path / "Dataset007_Phantoms" / path).sum() for path in item["image"]] == [
            voxels(pairs / path).sum() for path in own["image"]
        ]


def test_the_split_is_the_datalists(listed, pairs, tmp_path):
    write_raw(listed, pairs, tmp_path / "Dataset007_Phantoms")
    (split,) = json.loads((tmp_path / "Dataset007_Phantoms" / "splits_final.json").read_text(encoding="utf-8"))
    assert [len(split[side]) for side in ("train", "val")] == [len(listed["training"]), len(listed["validation"])]
    assert not set(split["train"]) & set(split["val"])
    assert len(list((tmp_path / "Dataset007_Phantoms" / "imagesTs").iterdir())) == 4 * len(listed["test"])


def test_values_with_a_gap_are_numbered_without_one(pairs, tmp_path):
    label = tmp_path / "data" / "a_seg.nii.gz"
    label.parent.mkdir()
    nib.save(nib.Nifti1Image(np.array([[[0, 1, 2, 4]]], np.uint8), np.eye(4)), label)
    nib.save(nib.Nifti1Image(np.ones((1, 1, 4), np.int16), np.eye(4)), tmp_path / "data" / "a_flair.nii.gz")
    item = {"image": "a_flair.nii.gz", "label": "a_seg.nii.gz", "diagnosis": 1}
    listed = {"regions": SCHEMES["brats2017"], "training": [item], "validation": [], "test": []}
    write_raw(listed, tmp_path / "data", tmp_path / "Dataset001_Gap")
    assert voxels(tmp_path / "Dataset001_Gap" / "labelsTr" / "a.nii.gz").ravel().tolist() == [0, 1, 2, 3]
    content = json.loads((tmp_path / "Dataset001_Gap" / "dataset.json").read_text(encoding="utf-8"))
    assert (content["labels"]["enhancing_tumor"], content["regions_class_order"]) == ([3], [2, 1, 3])


def test_what_nnunet_cannot_take_is_refused_and_nothing_is_written(listed, pairs, tmp_path):
    with pytest.raises(ValueError, match="as in Dataset007_Phantoms, got 'mine'"):
        write_raw(listed, pairs, tmp_path / "mine")
    slice_ = {**listed["test"][0], "slice": 3}
    with pytest.raises(ValueError, match="is a slice: nnU-Net is given whole volumes with masks"):
        write_raw({**listed, "test": [slice_]}, pairs, tmp_path / "Dataset007_Phantoms")
    assert list(tmp_path.iterdir()) == []
