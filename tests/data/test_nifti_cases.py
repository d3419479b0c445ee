"""Volumes with masks, as BraTS has them: names of every year, channels, labels, time points, shifted air."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from scripts.data import datalists
from scripts.data.datalists.decathlon import decathlon
from scripts.data.datalists.naming import role
from scripts.data.datalists.slices import SliceRule
from scripts.data.datalists.volumes import load_oriented
from scripts.data.preprocessing import make_preprocessing
from tests.data.lists import items_of
from tests.data.volume_files import SHAPE, save, scan, tumor
from tests.transforms.images import head
from transforms.loading import LoadCased


@pytest.mark.parametrize(
    ("name", "patient", "expected"),
    [
        ("BraTS2021_00000_t1ce.nii.gz", "BraTS2021_00000", "T1ce"),
        ("Brats18_2013_2_1_t1.nii.gz", "Brats18_2013_2_1", "T1"),
        ("BraTS-GLI-00000-000-t2w.nii.gz", "BraTS-GLI-00000-000", "T2"),
        ("BraTS-GLI-00000-000-t2f.nii.gz", "BraTS-GLI-00000-000", "FLAIR"),
        ("BraTS-GLI-00000-000-t1n.nii.gz", "BraTS-GLI-00000-000", "T1"),
        ("VSD.Brain.XX.O.MR_Flair.54512.mha", "", "FLAIR"),
        ("VSD.Brain_3more.XX.O.OT.54517.mha", "", "label"),
        ("Flair_subtrMeanDivStd.nii.gz", "brats_2013_pat0003_1", "FLAIR"),
        ("W39_1998.09.19_Segm.nii", "BraTS20_Training_355", "label"),
        ("brainmask.nii.gz", "", "foreground"),
        ("seg_flair.nii.gz", "seg", "FLAIR"),  # a patient called seg
        ("sub-01_T2_FLAIR.nii.gz", "", "FLAIR"),
        ("x_t1_gd.nii.gz", "", "T1ce"),
        ("x_t1_t2.nii.gz", "", None),
        ("notes_flair.txt", "", None),
    ],
)
def test_names_of_every_year_are_understood(name, patient, expected):
    assert role(Path(name), patient) == expected


def test_three_styles_channels_labels_and_time_points(tmp_path):
    styles = {
        "HGG/BraTS20_001": ("BraTS20_001_flair.nii.gz", "BraTS20_001_t1ce.nii.gz", "BraTS20_001_seg.nii.gz", 4),
        "BraTS-GLI-00007-000": ("BraTS-GLI-00007-000-t2f.nii.gz", "BraTS-GLI-00007-000-t1c.nii.gz", "x-seg.nii.gz", 3),
        "BraTS-GLI-00007-001": ("BraTS-GLI-00007-001-t2f.nii.gz", "BraTS-GLI-00007-001-t1c.nii.gz", "x-seg.nii.gz", 2),
        "old": ("VSD.Brain.XX.O.MR_Flair.1.mha", "VSD.Brain.XX.O.MR_T1c.2.mha", "VSD.Brain.XX.O.OT.3.mha", 1),
    }
    for seed, (case, (flair, contrast, label, value)) in enumerate(styles.items()):
        save(scan(seed), tmp_path / case / flair)
        save(scan(seed) * 2, tmp_path / case / contrast)
        save(tumor(value), tmp_path / case / label)
    datalist, report = datalists.nifti_cases(
        tmp_path, channels=("T1ce", "FLAIR"), rule=SliceRule(tumor_slices=2, normal_slices=1), progress=False
    )
    assert report.unusable == []
    assert report.figures["labels"] == [0, 1, 2, 3, 4]
    assert datalist["modality"] == {"0": "T1ce", "1": "FLAIR"}
    items = items_of(datalist)
    # Per patient, not per case: the two time points of one patient give two and one together.
    count = Counter((item["patient"], item["diagnosis"]) for item in items)
    assert count == {
        (patient, k): n for patient in ("BraTS20_001", "BraTS-GLI-00007", "old") for k, n in ((1, 2), (0, 1))
    }
    assert {item["patient"] for item in items} == {"BraTS20_001", "BraTS-GLI-00007", "old"}
    first = next(item for item in items if item["patient"] == "BraTS20_001" and item["diagnosis"] == 1)
    assert first["image"] == ["HGG/BraTS20_001/BraTS20_001_t1ce.nii.gz", "HGG/BraTS20_001/BraTS20_001_flair.nii.gz"]
    loaded = LoadCased()(
        {**first, "image": [str(tmp_path / p) for p in first["image"]], "label": str(tmp_path / first["label"])}
    )
    assert loaded["image"].shape == (2, 48, 48)
    assert (loaded["image"][0] == 2 * loaded["image"][1]).all()
    assert int(loaded["label"].sum()) == int((tumor()[:, :, first["slice"]] > 0).sum())


def test_labels_beyond_four_and_fractions_are_refused(tmp_path):
    for k in range(3):
        save(scan(k), tmp_path / f"ok{k}" / "flair.nii.gz")
        save(tumor(0.99999997), tmp_path / f"ok{k}" / "seg.nii.gz")
    for name, value in (("five", 5), ("half", 0.5), ("minus", -1)):
        save(scan(ord(name[0])), tmp_path / name / "flair.nii.gz")
        save(tumor(value), tmp_path / name / "seg.nii.gz")
    _, report = datalists.nifti_cases(tmp_path, progress=False)
    reasons = dict(report.unusable)
    assert set(reasons) == {"five", "half", "minus"}
    assert reasons["half"].startswith("seg.nii.gz holds the labels 0.5; expected some of (0, 1, 2, 3, 4)")
    assert [report.figures[key] for key in ("found", "used", "refused")] == [6, 3, 3]


def test_shifted_air_needs_a_brain_mask_or_the_users_word(tmp_path):
    for k in range(3):
        image, inside = head(SHAPE, 20, k)
        z = (image - image[inside].mean()) / image[inside].std() - 3 * ~inside
        save(z, tmp_path / f"p{k}" / "flair.nii.gz")
        save(tumor(), tmp_path / f"p{k}" / "seg.nii.gz")
        if k:
            save(inside * 0.99999997, tmp_path / f"p{k}" / "brainmask.nii.gz")
    datalist, report = datalists.nifti_cases(tmp_path, progress=False)
    assert [name for name, _ in report.unusable] == ["p0"]
    assert "not 0: it was normalized before; take the original file, put a brain mask" in report.unusable[0][1]
    item = items_of(datalist)[0]
    assert item["foreground"] == f"{item['patient']}/brainmask.nii.gz"
    keys = ("image", "label", "foreground")
    ready = make_preprocessing(64)({**item, **{key: str(tmp_path / item[key]) for key in keys}})
    inside = ready["foreground"][0] != 0
    assert (ready["image"][0][~inside] == 0).all()
    assert abs(float(ready["image"][0][inside].mean())) < 0.2
    taken, report = datalists.nifti_cases(tmp_path, rule=SliceRule(shifted_air=True), progress=False)
    assert report.unusable == []
    assert report.figures["normalized_before"] == 3
    assert len({item["patient"] for item in items_of(taken)}) == 3


def test_cases_that_give_no_slice_are_counted_with_their_files(tmp_path):
    for k, name in enumerate(("p1_study1", "p1_study2", "p1_study3", "p2", "p3")):
        save(scan(k), tmp_path / name / "flair.nii.gz")
        save(tumor(), tmp_path / name / "seg.nii.gz")
    rule = SliceRule(tumor_slices=1, normal_slices=1)
    _, report = datalists.nifti_cases(tmp_path, rule=rule, progress=False)
    assert report.figures["beyond_limit"] == len(report.notes) > 0
    assert report.figures["used"] + report.figures["beyond_limit"] == report.figures["found"] == 5
    files = report.figures["files"]
    assert files["in_cases_beyond_limit"] == 2 * report.figures["beyond_limit"]
    assert files["used"] == 2 * report.figures["used"]
    assert sum(value for key, value in files.items() if key != "found") == files["found"] == 10


def test_files_of_one_name_are_told_apart_by_their_folders_and_visits_stay_together(tmp_path):
    cases = ("p0/visit1", "p0/visit2", "p1/visit1", "p2/visit3", "p3")
    for k, case in enumerate(cases):
        save(scan(k), tmp_path / case / "flair.nii.gz")
        save(tumor(), tmp_path / case / "seg.nii.gz")
    entries = [{"image": f"{case}/flair.nii.gz", "label": f"{case}/seg.nii.gz"} for case in cases]
    (tmp_path / "dataset.json").write_text(json.dumps({"training": entries}))
    listed, _ = decathlon(tmp_path, progress=False)
    (tmp_path / "dataset.json").unlink()
    found, _ = datalists.nifti_cases(tmp_path, progress=False)
    for datalist in (listed, found):
        patients = {str(item["image"]).rsplit("/", 1)[0]: item["patient"] for item in items_of(datalist)}
        assert patients == {"p0/visit1": "p0", "p0/visit2": "p0", "p1/visit1": "p1", "p2/visit3": "p2", "p3": "p3"}
        assert {len({i["patient"] for i in datalist[split]}) > 0 for split in datalists.SPLITS} == {True}


def test_nifti_cases_split_patients_and_tell_each_slice(phantoms):
    datalist, report = datalists.nifti_cases(phantoms / "patients", root=phantoms, progress=False)
    datalists.validate(datalist, phantoms)
    assert report.unusable == []
    assert report.figures["patients"] == 10
    assert report.figures["healthy_patients"] == 4
    items = [item for split in datalists.SPLITS for item in datalist[split]]
    assert report.figures["tumor_slices"] == sum(item["diagnosis"] for item in items)
    for patient, own in ((p, [i for i in items if i["patient"] == p]) for p in {i["patient"] for i in items}):
        mask, _ = load_oriented(phantoms / "patients" / patient / f"{patient}_seg.nii.gz")
        share = {item["slice"]: mask[..., item["slice"]].mean() for item in own}
        assert all(share[i["slice"]] >= 0.003 if i["diagnosis"] else share[i["slice"]] == 0 for i in own)
        assert sum(item["diagnosis"] for item in own) <= 5
        assert sum(item["diagnosis"] == 0 for item in own) <= 3
    healthy = {f"p{k:03d}" for k in range(10) if k % 5 in (1, 3)}
    assert all(any(item["patient"] in healthy for item in datalist[split]) for split in datalists.SPLITS)
    assert datalists.nifti_cases(phantoms / "patients", root=phantoms, progress=False)[0] == datalist


def test_unusable_patients_are_reported(tmp_path):
    rng = np.random.default_rng(0)
    scan = np.zeros((40, 40, 12), dtype=np.int16)
    scan[8:32, 8:32] = rng.integers(300, 400, (24, 24, 12))
    mask = np.zeros(scan.shape, dtype=np.float64)
    mask[14:20, 14:20, 4:8] = 0.99999997
    affine = np.diag([-1.0, -1.0, 5.0, 1.0])

    def save(patient: str, **volumes: tuple[np.ndarray, np.ndarray]) -> None:
        (tmp_path / patient).mkdir()
        for name, (array, matrix) in volumes.items():
            nib.save(nib.Nifti1Image(array, matrix), tmp_path / patient / f"{patient}_{name}.nii.gz")

    for k in range(3):
        save(f"ok{k}", FLAIR=(scan + np.int16(k) * (scan > 0), affine), seg=(mask, affine))
    save("noseg", flair=(scan, affine))
    save("two", flair=(scan, affine), t2f=(scan, affine), seg=(mask, affine))
    save("twin", flair=(scan + np.int16(1) * (scan > 0), affine), seg=(mask, affine))
    save("grid", flair=(scan, affine), seg=(mask[:30], affine))
    save("moved", flair=(scan, affine), seg=(mask, np.diag([-1.0, -1.0, 4.0, 1.0])))
    save("flat", flair=(scan * 0, affine), seg=(mask, affine))
    save("torn", seg=(mask, affine))
    (tmp_path / "torn" / "torn_flair.nii.gz").write_bytes(b"no gzip")
    (tmp_path / "readme.txt").write_text("x")
    datalist, report = datalists.nifti_cases(tmp_path, progress=False)
    reasons = dict(report.unusable)
    assert set(reasons) == {"noseg", "two", "twin", "grid", "moved", "flat", "torn", "readme.txt"}
    assert "expected one mask (seg) file, found 0" in reasons["noseg"]
    assert reasons["twin"] == "the same voxels as ok1/ok1_FLAIR.nii.gz"
    assert "found 2" in reasons["two"]
    assert "(40, 40, 12) and grid_seg.nii.gz (30, 40, 12) are not on the same grid" in reasons["grid"]
    assert "same grid" in reasons["moved"]
    assert "constant" in reasons["flat"]
    assert {item["patient"] for split in datalists.SPLITS for item in datalist[split]} == {"ok0", "ok1", "ok2"}
    assert [report.figures[key] for key in ("found", "used", "refused")] == [11, 3, 8]
    assert report.figures["files"] == {"found": 21, "used": 6, "beside_used_ones": 0, "in_cases_beyond_limit": 0,
                                      "in_refused_cases": 15}  # fmt: skip
    assert {(i["slice"], i["diagnosis"]) for i in datalist["test"]} == {
        (4, 1), (5, 1), (6, 1), (7, 1), (1, 0), (9, 0), (11, 0)
    }  # fmt: skip
