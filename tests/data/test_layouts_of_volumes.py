"""What is read of recognized volumes: the better mask, channels, links, and names that cannot be used."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest

from scripts.__main__ import main as command
from scripts.data import datalists
from scripts.data.datalists.recognition import recognized
from scripts.data.datalists.schema import Report
from scripts.data.datalists.walking import walk
from tests.data.lists import built, items_of
from tests.data.trees import LISTS
from tests.data.volume_files import save, scan, tumor
from transforms.loading import LoadCased


def real(path: Path, seed: int, value: float | None = None) -> Path:
    """A scan, or with a value a mask of it, at a path."""
    return save(scan(seed) if value is None else tumor(value), path)


def test_the_better_mask_of_two_is_read_and_the_plain_image_of_two(tmp_path):
    folder = tmp_path / "UPENN"
    for k in (1, 2, 3):
        case = f"UPENN-GBM-0000{k}_11"
        real(folder / "images_structural" / case / f"{case}_FLAIR.nii.gz", k)
        real(folder / "automated_segm" / f"{case}_automated_approx_segm.nii.gz", k, 4)
    real(folder / "images_segm" / "UPENN-GBM-00002_11_segm.nii.gz", 2, 1)
    items, _ = built(folder)
    assert {item["label"] for item in items} == {
        "automated_segm/UPENN-GBM-00001_11_automated_approx_segm.nii.gz",
        "images_segm/UPENN-GBM-00002_11_segm.nii.gz",
        "automated_segm/UPENN-GBM-00003_11_automated_approx_segm.nii.gz",
    }
    folder = tmp_path / "UCSF"
    for k in (4, 5, 6):
        case = folder / f"UCSF-PDGM-000{k}_nifti" / f"UCSF-PDGM-000{k}"
        for what in ("FLAIR", "FLAIR_bias"):
            real(case.with_name(f"{case.name}_{what}.nii.gz"), k + (10 if "bias" in what else 0))
        real(case.with_name(f"{case.name}_tumor_segmentation.nii.gz"), k, 4)
        save((scan(k) > 50).astype(np.float32), case.with_name(f"{case.name}_brain_segmentation.nii.gz"))
    (folder / "UCSF-PDGM-0006_nifti" / "UCSF-PDGM-0006_FLAIR.nii.gz").unlink()
    items, _ = built(folder)
    assert {item["image"] for item in items} == {
        "UCSF-PDGM-0004_nifti/UCSF-PDGM-0004_FLAIR.nii.gz",
        "UCSF-PDGM-0005_nifti/UCSF-PDGM-0005_FLAIR.nii.gz",
        "UCSF-PDGM-0006_nifti/UCSF-PDGM-0006_FLAIR_bias.nii.gz",
    }
    assert all(f"{item['label'][:36]}brain_segmentation.nii.gz" == item["foreground"] for item in items)


def test_folders_of_single_files_are_one_case_and_its_values_are_kept(tmp_path):
    for k, case in enumerate(("HGG/brats_2013_pat0001_1", "HGG/brats_tcia_pat117_0001", "LGG/brats_tcia_pat130_0002")):
        for what, value in (("MR_Flair", None), ("MR_T1c", None), ("OT", 3)):
            stem = f"VSD.Brain.XX.O.{what}.5451{k}"
            real(tmp_path / case / stem / f"{stem}.mha", 20 + k + 5 * (what == "MR_T1c"), value)
    items, report = built(tmp_path, channels=["T1ce", "FLAIR"])
    assert report.figures["labels"] == [0, 3]
    first = next(item for item in items if "pat0001" in item["label"])
    stem = "HGG/brats_2013_pat0001_1/VSD.Brain.XX.O.{0}.54510/VSD.Brain.XX.O.{0}.54510.mha"
    assert first["image"] == [stem.format("MR_T1c"), stem.format("MR_Flair")]
    assert first["label"] == stem.format("OT")


def test_channels_of_nnunet_are_files_that_can_be_chosen(tmp_path):
    for k in (1, 2, 3):
        for channel in (0, 1):
            real(tmp_path / "imagesTr" / f"gbm_00{k}_000{channel}.nii.gz", 30 + 2 * k + channel)
        real(tmp_path / "labelsTr" / f"gbm_00{k}.nii.gz", k, 2)
    about = {"channel_names": {"0": "T1ce", "1": "FLAIR"}, "labels": {"background": 0}, "file_ending": ".nii.gz"}
    (tmp_path / "dataset.json").write_text(json.dumps({**about, "numTraining": 3}), encoding="utf-8")
    items, _ = built(tmp_path)
    names = {f"gbm_00{k}": [f"imagesTr/gbm_00{k}_000{channel}.nii.gz" for channel in (0, 1)] for k in (1, 2, 3)}
    assert all(item["image"] == names[item["label"][9:16]] for item in items)
    items, _ = built(tmp_path, channels=["FLAIR"])
    assert {item["image"] for item in items} == {f"imagesTr/gbm_00{k}_0001.nii.gz" for k in (1, 2, 3)}
    assert len({item["patient"] for item in items}) == 3
    with pytest.raises(ValueError, match="0 channels are T2; the list names T1ce, FLAIR"):
        recognized.plan(tmp_path, channels=["T2"])
    (tmp_path / "imagesTr" / "gbm_002_0001.nii.gz").unlink()
    plan = recognized.plan(tmp_path, channels=["FLAIR"])
    assert plan.report.unusable == [("imagesTr/gbm_002_0000.nii.gz", "has 1 of the list's 2 channels")]


def test_a_brain_mask_taken_for_a_tumor_is_refused(tmp_path):
    for k in (1, 2, 3, 4):
        anat = tmp_path / f"sub-0{k}" / "anat"
        real(anat / f"sub-0{k}_FLAIR.nii.gz", 40 + k)
        mask = tmp_path / "derivatives" / "bet" / f"sub-0{k}" / "anat" / f"sub-0{k}_mask.nii.gz"
        save((scan(40 + k) > 50).astype(np.float32), mask) if k == 4 else real(mask, k, 1)
    _, report = built(tmp_path)
    assert len(report.unusable) == 1
    assert report.unusable[0][0] == "sub-04"
    assert "of the head: a mask of the brain, or inverted, no tumor" in report.unusable[0][1]


def test_links_to_folders_are_followed_once_and_the_rest_is_named(tmp_path):
    store = tmp_path / "store"
    for k in (1, 2, 3):
        real(store / f"p{k}" / "flair.nii.gz", 50 + k)
        real(store / f"p{k}" / "seg.nii.gz", k, 1)
    folder = tmp_path / "study"
    (folder / "site").mkdir(parents=True)
    (folder / "p1").symlink_to(store / "p1")
    (folder / "site" / "linked").symlink_to(store)
    (folder / "site" / "back").symlink_to(folder)
    (folder / "gone").symlink_to(tmp_path / "nowhere")
    files = walk(folder, report := Report())
    assert [path.relative_to(folder).as_posix() for path in files if path.name == "flair.nii.gz"] == [
        "p1/flair.nii.gz", "site/linked/p2/flair.nii.gz", "site/linked/p3/flair.nii.gz"
    ]  # fmt: skip
    assert dict(report.unusable) == {
        "site/back": "a link to ., which is listed already",
        "site/linked/p1": "a link to p1, which is listed already",
    }
    items, report = built(folder)
    assert {item["image"] for item in items} == {
        "p1/flair.nii.gz", "site/linked/p2/flair.nii.gz", "site/linked/p3/flair.nii.gz"
    }  # fmt: skip
    assert dict(report.unusable)["gone"] == "a symbolic link that leads nowhere"


def test_names_that_cannot_stand_in_a_list_are_refused_and_the_rest_is_used(tmp_path):
    for k in (1, 2, 3):
        real(tmp_path / f"p{k}" / "flair.nii.gz", 60 + k)
        real(tmp_path / f"p{k}" / "seg.nii.gz", k, 1)
    long = "x" * 248 + ".nii.gz"
    (tmp_path / "p1" / long).write_bytes(b"x")
    (tmp_path / "p2" / "a\\b.nii.gz").write_bytes(b"x")
    os.makedirs(os.fsencode(tmp_path) + b"/caf\xe9")
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9/flair.nii.gz")).write_bytes(b"x")
    items, report = built(tmp_path)
    assert {item["image"] for item in items} == {f"p{k}/flair.nii.gz" for k in (1, 2, 3)}
    reasons = dict(report.unusable)
    assert reasons["caf\\xe9"] == "its name is not UTF-8; rename it"
    assert reasons[f"p1/{long}"].startswith("its name is 255 bytes long, at most 200 leave room")
    assert "holds a backslash" in reasons["p2/a\\b.nii.gz"]
    datalists.write_report(report, tmp_path / "report.json")
    assert "caf\\xe9" in {entry["file"] for entry in json.loads((tmp_path / "report.json").read_text())["unusable"]}


def test_a_channel_of_a_file_of_all_is_written_and_listed(tmp_path):
    folder, given = tmp_path / "Task01", {}
    for k in (1, 2, 3):
        channels = [scan(70 + 4 * k + c) for c in range(4)]
        given[f"BRATS_00{k}"] = channels
        save(np.stack(channels, axis=-1), folder / "imagesTr" / f"BRATS_00{k}.nii.gz")
        save(tumor(2), folder / "labelsTr" / f"BRATS_00{k}.nii.gz")
    save(np.stack(channels[:2], axis=-1), folder / "imagesTr" / "BRATS_004.nii.gz")
    save(tumor(2), folder / "labelsTr" / "BRATS_004.nii.gz")
    listed = [
        {"image": f"./imagesTr/BRATS_00{k}.nii.gz", "label": f"./labelsTr/BRATS_00{k}.nii.gz"} for k in range(1, 5)
    ]
    (folder / "dataset.json").write_text(json.dumps({**LISTS["Task01"], "training": listed}), encoding="utf-8")
    with pytest.raises(ValueError, match="give the folder for them as unpack"):
        recognized.plan(folder, channels=["FLAIR"])
    out = tmp_path / "msd.json"
    arguments = ["datalist", "build", "--folder", str(folder), "--out", str(out), "--channels", "T1ce"]
    command([*arguments, "--dry_run"])
    assert [path.name for path in tmp_path.iterdir()] == ["Task01"]
    command(arguments)
    datalist = datalists.read(out, tmp_path / "msd_pictures")
    assert datalist["modality"] == {"0": "t1gd"}
    items = items_of(datalist)
    assert {item["image"] for item in items} == {f"imagesTr/BRATS_00{k}_t1gd.nii.gz" for k in (1, 2, 3)}
    assert len({item["patient"] for item in items}) == 3
    for item in items:
        root = tmp_path / "msd_pictures"
        case = LoadCased(spatial_dims=3)({key: str(root / item[key]) for key in ("image", "label")})
        assert np.array_equal(case["image"][0].numpy(), given[item["label"][9:18]][2])
        assert np.array_equal(case["label"][0].numpy() > 0, tumor() > 0)
    report = json.loads((tmp_path / "msd.report.json").read_text(encoding="utf-8"))
    assert "expected 4 dimensions, the last of 4 channels" in json.dumps(report["unusable"])
