"""DICOM series as a source of a datalist."""

from __future__ import annotations

import hashlib
import json

import numpy as np
import pytest

from scripts.data import datalists
from scripts.data.datalists.slices import SliceRule
from tests.data.lists import items_of
from tests.data.volume_files import save, scan, tilted, tumor, write_series
from transforms.loading import LoadCased


def test_oblique_dicom_series_with_mask(tmp_path):
    direction = tilted()
    for k in range(3):
        write_series(tmp_path / f"visit{k}" / f"s{k}", scan(k), direction, patient=f"MRN-77-{min(k, 1)}")
    affine = np.eye(4)
    affine[:3, :3] = direction * [1, 1.5, 4]
    affine[:3, 3] = [-10, 20, 30]
    affine = np.diag([-1.0, -1, 1, 1]) @ affine
    save(tumor(), tmp_path / "masks" / "s0.nii.gz", affine)
    save(tumor(), tmp_path / "masks" / "nobody.nii.gz", affine)
    write_series(tmp_path / "ct", scan(8), np.eye(3), patient="c", kind="CT")
    write_series(tmp_path / "gap", scan(7), np.eye(3), patient="g")
    (tmp_path / "gap" / "007.dcm").unlink()
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "readme.txt").write_text("x")
    (tmp_path / "visit0" / "s0" / "notes.txt").write_text("x")
    datalist, report = datalists.dicom_series(
        tmp_path, masks=tmp_path / "masks", rule=SliceRule(tumor_slices=1, normal_slices=1), progress=False
    )
    reasons = dict(report.unusable)
    assert set(reasons) == {"ct", "gap", "empty", "masks/nobody.nii.gz"}
    assert reasons["ct"] == "modality 'CT', expected MR"
    assert "a slice is missing or doubled: distances differ by 4 mm at 15 slices" in reasons["gap"]
    assert "empty holds 0 DICOM series" in reasons["empty"]
    assert ("visit0/s0/notes.txt", "lies beside a series and is no part of it") in report.notes
    assert [report.figures[key] for key in ("found", "used", "refused", "beyond_limit")] == [7, 2, 4, 1]
    idle = [name for name, text in report.notes if text.startswith("no slice taken: at most 1 with and")]
    assert idle == ["visit1/s1"]
    items = items_of(datalist)
    assert len({item["patient"] for item in items}) == 2  # the second and third series are of one patient
    assert "MRN" not in json.dumps(datalist)
    masked = [item for item in items if "label" in item]
    assert sorted(item["diagnosis"] for item in masked) == [0, 1]
    assert {item["diagnosis"] for item in items if "label" not in item} == {-1}
    item = next(item for item in masked if item["diagnosis"] == 1)
    loaded = LoadCased()({**item, "image": str(tmp_path / item["image"]), "label": str(tmp_path / item["label"])})
    assert np.array_equal(loaded["image"][0].numpy(), scan(0)[:, :, item["slice"]].astype(np.int16))
    assert np.allclose(loaded["image"].affine.numpy() @ [3, 4, 0, 1], affine @ [3, 4, item["slice"], 1], atol=1e-4)
    assert int(loaded["label"].sum()) == int((tumor()[:, :, item["slice"]] > 0).sum())


def test_a_plan_says_the_series_their_masks_and_what_they_are_taken_for(tmp_path):
    for k, patient in enumerate(("MRN-1", "")):
        write_series(tmp_path / f"visit{k}" / f"s{k}", scan(k)[:, :, :3], np.eye(3), patient=patient)
    save(tumor(), tmp_path / "masks" / "s1.nii.gz")
    plan = datalists.dicom_series.plan(tmp_path, masks=tmp_path / "masks", progress=False)
    assert plan.taken[-1] == "2 folders of one DICOM series each, 1 with a mask; all taken for MRI"
    assert plan.taken[0].startswith("1 series of 1 patients, whom header or list names; 1 series of 1 patients")
    assert plan.report.unusable == []
    overruled = datalists.dicom_series.plan(tmp_path, masks=tmp_path / "masks", patient_pattern=r"visit\d")
    assert overruled.taken[0].startswith("2 series of 2 patients; patient = 'visit0'"), "not the header's"
    assert (
        datalists.dicom_series.plan(tmp_path / "visit0").taken[-1].startswith("1 folders of one DICOM series each, 0 ")
    )
    with pytest.raises(ValueError, match=r"class 0 \(no tumor\) or -1 \(unknown\), got 1"):
        datalists.dicom_series.plan(tmp_path, diagnosis=1)
    rule = SliceRule(planes=())
    for kind in (0, -1):
        datalist, _ = datalists.dicom_series(
            tmp_path / "visit0",
            root=tmp_path,
            diagnosis=kind,
            rule=rule,
            modality="T2",
            fractions=(0, 0, 1),
            progress=False,
        )
        (item,) = datalist["test"]
        assert (item["diagnosis"], item["image"], item["source"]) == (kind, "visit0/s0", "visit0")
        assert item["patient"] == hashlib.sha256(b"MRN-1").hexdigest()[:12]
        assert datalist["modality"] == {"0": "T2"}
