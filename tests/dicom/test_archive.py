"""A real archive: series stored, found, fetched, predicted, and the objects stored back and read again."""

from __future__ import annotations

import socket

import nibabel as nib
import numpy as np
import pydicom
import pytest

from scripts.dicom import archive
from scripts.dicom.samples import write_sample
from tests.dicom.test_objects import segment_masks
from tests.inference.test_predict import run
from tests.scans import write_overlay

pytest.importorskip("highdicom", reason="highdicom (the extra dicom) is not installed")
dicomweb_client = pytest.importorskip("dicomweb_client", reason="dicomweb-client (the extra dicom) is not installed")


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    if missing := archive.available():
        pytest.skip(missing)
    with archive.running(tmp_path_factory.mktemp("archive")) as address:
        yield address


@pytest.fixture
def client(address, monkeypatch):
    monkeypatch.setenv("NO_PROXY", archive.HOST)
    return dicomweb_client.DICOMwebClient(f"{address}/dicom-web")


def test_objects_stored_back_are_found_in_the_study_and_hold_what_was_predicted(address, client, tmp_path):
    files = write_sample(tmp_path / "sent", 2)
    archive.upload(address, files)
    (study,) = client.search_for_studies(search_filters={"PatientID": "PHANTOM-2"})
    study = study["0020000D"]["Value"][0]
    (series,) = client.search_for_series(study)
    fetched = tmp_path / "in" / "series"
    fetched.mkdir(parents=True)
    for k, dataset in enumerate(client.retrieve_series(study, series["0020000E"]["Value"][0])):
        dataset.save_as(fetched / f"{k}.dcm", enforce_file_format=True)
    assert len(list(fetched.iterdir())) == len(files)
    assert run(tmp_path / "in", tmp_path / "out", write_overlay(tmp_path), "--dicom")[0] == 0
    made = [pydicom.dcmread(tmp_path / "out" / f"series_{kind}.dcm") for kind in ("segmentation", "evidence", "report")]
    client.store_instances(made[:1])  # stopped midway; run again
    client.store_instances(made)
    client.store_instances(made)
    found = client.search_for_series(study)
    assert sorted(item["00080060"]["Value"][0] for item in found) == ["MR", "OT", "SEG", "SR"]
    assert len(client.search_for_instances(study)) == len(files) + 3
    seg = client.retrieve_instance(study, made[0].SeriesInstanceUID, made[0].SOPInstanceUID)
    seg.save_as(tmp_path / "seg.dcm", enforce_file_format=True)
    mask = nib.load(tmp_path / "out" / "series_mask.nii.gz")
    labels = np.asarray(mask.dataobj)
    assert labels.any()
    assert np.array_equal(segment_masks(tmp_path / "seg.dcm", mask.affine, labels.shape), labels)


def test_an_archive_ends_with_its_block(tmp_path):
    if missing := archive.available():
        pytest.skip(missing)
    with archive.running(tmp_path) as address:
        port = int(address.rpartition(":")[2])
    with pytest.raises(OSError, match="refused"):
        socket.create_connection((archive.HOST, port), timeout=1)
