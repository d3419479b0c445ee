"""The verb datalist: each source, joining, checking, and what it does with files that cannot be used."""

from __future__ import annotations

import json
import os
from collections import Counter
from pathlib import Path

import pytest

from scripts.__main__ import main as command
from scripts.data import datalists
from tests.data.lists import items_of
from tests.data.picture_folders import fill
from tests.data.volume_files import save, scan, tilted, tumor, write_series


def test_sources_merge_without_overlap_by_the_command_line(phantoms, tmp_path):
    root = ["--root", str(phantoms)]
    command(
        ["datalist", "nifti_cases", "--folder", str(phantoms / "patients"), *root, "--out", str(tmp_path / "a.json")]
    )
    command(
        ["datalist", "image_folder", "--folder", str(phantoms / "singles"), *root, "--out", str(tmp_path / "b.json")]
        + ["--modality", "FLAIR"]
    )
    command(
        ["datalist", "merge", str(tmp_path / "a.json"), str(tmp_path / "b.json"), "--out", str(tmp_path / "c.json")]
    )
    command(["datalist", "check", "--datalist_file", str(tmp_path / "c.json"), "--dataset-dir", str(phantoms)])
    merged = datalists.read(tmp_path / "c.json", phantoms)
    assert {row["source"] for row in datalists.summary(merged)} == {"patients", "singles"}
    assert json.loads((tmp_path / "b.report.json").read_text(encoding="utf-8"))["figures"]["images"] == 12
    with pytest.raises(FileNotFoundError, match=r"^c.json: training\[0\] names 'patients/"):
        command(["datalist", "check", "--datalist_file", str(tmp_path / "c.json"), "--dataset_dir", str(tmp_path)])


@pytest.mark.parametrize("spelling", ["--dataset-dir", "--dataset_dir"])
def test_the_verbs_take_both_spellings_of_the_folder_and_name_a_missing_list(tmp_path, spelling):
    gone = ["--datalist_file", str(tmp_path / "gone.json"), spelling, str(tmp_path)]
    for verb in (["datalist", "check"], ["audit", "--out", str(tmp_path)], ["verify"]):
        with pytest.raises(FileNotFoundError, match=r"^no datalist at .*gone\.json"):
            command([*verb, *gone])
    with pytest.raises(FileNotFoundError, match=r"gone\.json"):
        command(["train", *gone, "--run_dir", str(tmp_path / "run")])


def test_strict_makes_an_unusable_file_an_error_and_writes_no_list(tmp_path, pool):
    folder = fill(tmp_path / "set", {"no": pool[:6], "tumor": pool[6:12]})
    (folder / "images" / "no" / "torn.png").write_text("x")
    arguments = ["datalist", "image_folder", "--folder", str(folder), "--out", str(tmp_path / "x.json")]
    with pytest.raises(ValueError, match=r"1 files cannot be used, first: images/no/torn\.png"):
        command([*arguments, "--strict"])
    assert not (tmp_path / "x.json").exists()
    command(arguments)
    assert (tmp_path / "x.json").exists()


@pytest.mark.skipif("TUMORLENS_DATA" not in os.environ, reason="TUMORLENS_DATA names no folder of real images")
def test_real_images_give_a_stratified_list_without_overlap():
    folder = Path(os.environ["TUMORLENS_DATA"]) / "brisc2025"
    datalist, report = datalists.image_folder(folder, limit=400, progress=False)
    datalists.validate(datalist, folder)
    assert list(datalist["classes"].values()) == ["no_tumor", "glioma", "meningioma", "pituitary"]
    assert sum(len(datalist[split]) for split in datalists.SPLITS) + report.figures["unusable"] == 400
    assert report.figures["largest_group"] <= 20
    total = Counter(item["diagnosis"] for split in datalists.SPLITS for item in datalist[split])
    test = Counter(item["diagnosis"] for item in datalist["test"])
    assert all(0.2 < test[k] / total[k] < 0.3 for k in range(4))
    assert all("label" in item for item in datalist["test"] if item["diagnosis"] > 0)


def test_each_source_by_one_command(tmp_path):
    for k in range(3):
        save(scan(k), tmp_path / "cases" / f"p{k}" / "flair.nii.gz")
        save(tumor(), tmp_path / "cases" / f"p{k}" / "seg.nii.gz")
        save(scan(10 + k), tmp_path / "healthy" / f"h{k}.nii.gz")
        write_series(tmp_path / "dicom" / f"d{k}", scan(20 + k), tilted(), f"d{k}")
    (tmp_path / "cases" / "dataset.json").write_text(
        json.dumps({"training": [{"image": f"p{k}/flair.nii.gz", "label": f"p{k}/seg.nii.gz"} for k in range(3)]})
    )
    commands = {
        "nifti_cases": ["--folder", "cases", "--tumor-slices", "1", "--classes", "no_tumor", "glioma"],
        "nifti_volumes": ["--folder", "healthy"],
        "dicom_series": ["--folder", "dicom", "--diagnosis", "no_tumor", "--normal-slices", "2"],
        "decathlon": ["--file", "cases/dataset.json", "--whole-volumes"],
    }
    counts = {}
    for name, (flag, where, *rest) in commands.items():
        out = tmp_path / f"{name}.json"
        command(["datalist", name, flag, str(tmp_path / where), "--root", str(tmp_path), *rest, "--out", str(out)])
        counts[name] = len(items_of(datalists.read(out, tmp_path)))
        assert json.loads((tmp_path / f"{name}.report.json").read_text(encoding="utf-8"))["figures"]["used"] == 3
    assert counts == {"nifti_cases": 12, "nifti_volumes": 9, "dicom_series": 6, "decathlon": 3}
    merged = ["nifti_cases.json", "nifti_volumes.json"]
    arguments = ["datalist", "merge", *(str(tmp_path / name) for name in merged), "--out", str(tmp_path / "mix.json")]
    command([*arguments, "--dataset-dir", str(tmp_path)])
    mix = datalists.read(tmp_path / "mix.json", tmp_path)
    assert list(mix["classes"].values()) == ["no_tumor", "glioma"]
    assert len(items_of(mix)) == 21
    for option in ("--resplit", "--same_patients"):
        with pytest.raises(ValueError, match=f"^--{option[2:].replace('-', '_')} needs --dataset_dir"):
            command([*arguments, option])
