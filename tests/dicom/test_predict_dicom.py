"""`python -m scripts predict FOLDER --dicom`, from series to objects."""

from __future__ import annotations

import logging

import nibabel as nib
import numpy as np
import pytest

from tests.dicom.series import GEOMETRIES, write_series
from tests.dicom.test_objects import segment_masks
from tests.inference.test_predict import run
from tests.scans import head, save_picture

hd = pytest.importorskip("highdicom", reason="highdicom (the extra dicom) is not installed")


def drawn(geometry):
    """Slices of a head, (slices, rows, columns)."""
    volume = head()
    count = len(GEOMETRIES[geometry][2])
    return np.stack([volume[:, :, 2 + k].T for k in range(count)]).astype(np.uint16)


def test_objects_equal_the_nifti_results_and_other_images_are_named(tmp_path, overlay, caplog):
    for geometry in GEOMETRIES:
        write_series(tmp_path / "in" / geometry, geometry, drawn(geometry))
    save_picture(tmp_path / "in" / "a.png", head()[:, :, 4])
    with caplog.at_level(logging.INFO):
        status, rows = run(tmp_path / "in", tmp_path / "out", overlay, "--dicom")
    assert status == 1
    assert not [record for record in caplog.records if record.name.startswith("highdicom")]
    assert "a.png is no DICOM, so no object can refer to it" in rows[str(tmp_path / "in" / "a.png")]["error"]
    assert [name for name, row in rows.items() if row["error"]] == [str(tmp_path / "in" / "a.png")]
    for geometry in GEOMETRIES:
        mask = nib.load(tmp_path / "out" / f"{geometry}_mask.nii.gz")
        labels = np.asarray(mask.dataobj)
        assert labels.any()
        seg = tmp_path / "out" / f"{geometry}_segmentation.dcm"
        assert np.array_equal(segment_masks(seg, mask.affine, labels.shape), labels)
        assert (tmp_path / "out" / f"{geometry}_evidence.dcm").is_file()
        assert (tmp_path / "out" / f"{geometry}_report.dcm").is_file()
    assert not any(word in caplog.text for word in ("Doe", "Jane", "4711", "ACC-99"))
    before = (tmp_path / "out" / "axial_report.dcm").stat().st_mtime_ns
    (tmp_path / "out" / "oblique_report.dcm").unlink()
    run(tmp_path / "in", tmp_path / "out", overlay, "--dicom")  # goes on where something is missing, there alone
    assert (tmp_path / "out" / "oblique_report.dcm").is_file()
    assert (tmp_path / "out" / "axial_report.dcm").stat().st_mtime_ns == before


def test_of_a_series_that_no_object_can_refer_to_nothing_is_written(tmp_path, overlay):
    write_series(tmp_path / "in" / "a", "axial", drawn("axial"), FrameOfReferenceUID=None)
    status, rows = run(tmp_path / "in", tmp_path / "out", overlay, "--dicom")
    assert status == 1
    assert "00.dcm has no FrameOfReferenceUID, so nothing can be placed over it; export it again" in rows["a"]["error"]
    assert {path.name for path in (tmp_path / "out").rglob("*")} == {"results.csv", "results.html", "results.json"}


@pytest.mark.parametrize("flag", ["--anonymous", "--evidence_segments"])
def test_flags_of_the_objects_alone_are_refused(tmp_path, overlay, flag):
    write_series(tmp_path / "in", "axial", drawn("axial"))
    with pytest.raises(ValueError, match=f"{flag} is for the objects that --dicom writes; give both"):
        run(tmp_path / "in", tmp_path / "out", overlay, flag)
