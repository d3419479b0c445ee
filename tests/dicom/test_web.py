"""Series chosen by UID, of a folder or of a real DICOMweb server; objects stored; results without names."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys

import nibabel as nib
import numpy as np
import pytest
from pydicom.uid import generate_uid

from scripts.command.locations import ROOT
from scripts.dicom import archive
from scripts.dicom.samples import write_sample
from scripts.dicom.web import Server
from tests.dicom.series import write_series
from tests.dicom.test_objects import segment_masks
from tests.dicom.test_predict_dicom import drawn
from tests.inference.test_predict import run

pytest.importorskip("highdicom", reason="highdicom (the extra dicom) is not installed")
pytest.importorskip("dicomweb_client", reason="dicomweb-client (the extra dicom) is not installed")
FIRST, SECOND = (str(generate_uid(entropy_srcs=[name])) for name in ("first", "second"))


@pytest.fixture
def mixed(tmp_path):
    """Two series in one folder, named by their patient."""
    folder = tmp_path / "DOE_JANE"
    for uid, name in ((FIRST, "a"), (SECOND, "b")):
        part = write_series(tmp_path / name, "axial", drawn("axial"), SeriesInstanceUID=uid)
        folder.mkdir(exist_ok=True)
        for path in part.iterdir():
            path.rename(folder / f"JANE_{name}_{path.name}")
    return folder


def test_of_a_mixed_folder_the_series_is_taken_that_is_asked_for(mixed, tmp_path, overlay):
    status, rows = run(mixed, tmp_path / "none", overlay)
    assert status == 1
    assert all(uid in rows["DOE_JANE"]["error"] for uid in (FIRST, SECOND))
    status, rows = run(mixed, tmp_path / "out", overlay, "--series", SECOND, "--dicom")
    assert (status, list(rows)) == (0, [SECOND])
    mask = nib.load(tmp_path / "out" / f"{SECOND}_mask.nii.gz")
    seg = tmp_path / "out" / f"{SECOND}_segmentation.dcm"
    assert np.array_equal(segment_masks(seg, mask.affine, mask.shape), np.asarray(mask.dataobj))
    with pytest.raises(ValueError, match=rf"no file is of series 1.2.3; found: 5 files of series {FIRST}"):
        run(mixed, tmp_path / "out", overlay, "--series", "1.2.3")
    with pytest.raises(ValueError, match="holds the table of other images"):
        run(mixed, tmp_path / "out", overlay, "--series", FIRST, "--dicom")


def test_anonymous_results_and_logs_hold_no_name_of_patient_file_or_folder(mixed, tmp_path, overlay, caplog, capfd):
    (mixed / "JANE.txt").write_text("Doe")
    source = tmp_path / "IN_DOE"
    source.mkdir()
    mixed.rename(source / "DOE_TWO_SERIES")
    write_series(source / "DOE_ONE", "oblique", drawn("oblique"))
    write_series(source / "DOE_NO_FRAME", "axial", drawn("axial"), FrameOfReferenceUID=None, SeriesInstanceUID="1.2.9")
    (source / "DOE.png").write_bytes(b"\x89PNG\r\n\x1a\nno")
    (source / "JANE.nii").symlink_to(tmp_path / "DOE_GONE")
    with caplog.at_level(logging.DEBUG):
        status, rows = run(source, tmp_path / "out", overlay, "--dicom", "--anonymous")
    assert status == 1
    assert sorted(bool(row["error"]) for row in rows.values()) == [False, True, True, True, True]
    out, err = capfd.readouterr()
    texts = [
        caplog.text,
        out,
        err,
        *(str(path.relative_to(tmp_path / "out")) for path in (tmp_path / "out").rglob("*")),
    ]
    texts += [path.read_bytes().decode("latin-1") for path in (tmp_path / "out").rglob("*") if path.is_file()]
    for word in ("doe", "jane", "4711", "acc-99"):
        assert not [text[:200] for text in texts if word in text.lower()], word
    assert run(source, tmp_path / "out", overlay, "--dicom", "--anonymous")[1] == rows


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """Address of a study in a running archive, and the number of its slices."""
    if missing := archive.available():
        pytest.skip(missing)
    folder = tmp_path_factory.mktemp("archive")
    os.environ.setdefault("NO_PROXY", archive.HOST)
    with archive.running(folder) as address:
        files = write_sample(folder / "sent", 2)
        archive.upload(address, files)
        server = Server(f"{address}/dicom-web")
        (found,) = server._client.search_for_studies(search_filters={"PatientID": "PHANTOM-2"})
        yield f"{address}/dicom-web/studies/{found['0020000D']['Value'][0]}", len(files)


def instances(address):
    server = Server(address)
    return [one["00080018"]["Value"][0] for one in server._client.search_for_instances(server.study)]


KILLED = """
import os, signal, sys
from dicomweb_client import DICOMwebClient
from scripts.__main__ import main
store, sent = DICOMwebClient.store_instances, []
def second_kills(self, datasets, *args, **options):
    sent.append(datasets)
    if len(sent) == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    return store(self, datasets, *args, **options)
DICOMwebClient.store_instances = second_kills
main(sys.argv[1:])
"""


def test_one_that_is_killed_while_it_stores_is_completed_by_the_next_and_nothing_is_there_twice(
    study, tmp_path, overlay
):
    address, slices = study
    arguments = ["predict", address, "--out", str(tmp_path / "out"), "--overlay", str(overlay), "--dicom", "--store"]
    killed = subprocess.run([sys.executable, "-c", KILLED, *arguments], cwd=ROOT, capture_output=True, timeout=300)
    assert killed.returncode == -signal.SIGKILL
    assert len(instances(address)) == slices + 1
    status, _ = run(address, tmp_path / "out", overlay, "--dicom", "--store")
    assert status == 0
    assert len(instances(address)) == len(set(instances(address))) == slices + 3


def test_objects_are_stored_where_the_series_came_from_each_once(study, tmp_path, overlay):
    address, slices = study
    status, rows = run(address, tmp_path / "out", overlay, "--dicom", "--store")
    assert (status, [row["image"].startswith(address) for row in rows.values()]) == (0, [True])
    assert len(instances(address)) == len(set(instances(address))) == slices + 3
    (name,) = rows
    files = [tmp_path / "out" / f"{name}_{kind}.dcm" for kind in ("segmentation", "evidence", "report")]
    assert Server(address).store(files) == (0, 3)
    assert len(instances(address)) == slices + 3


def test_a_study_or_series_that_is_not_there_or_no_address_is_one_sentence(study, tmp_path, overlay):
    address, _ = study
    with pytest.raises(
        ValueError, match=r"holds no series 1.2.3; choose one with --series UID; found: 17 of MR, series"
    ):
        run(address, tmp_path, overlay, "--series", "1.2.3")
    with pytest.raises(ValueError, match=r"is the address of a server; add that of a study: /studies/UID"):
        run(address.split("/studies")[0], tmp_path, overlay)
    with pytest.raises(ValueError, match=r"holds 0 series of slices, expected one"):
        run(address.rsplit("/", 1)[0] + "/1.2.3", tmp_path, overlay)
    with pytest.raises(OSError, match=r"http://127.0.0.1:9/dicom-web does not answer"):
        run("http://127.0.0.1:9/dicom-web/studies/1.2.3", tmp_path, overlay)
    with pytest.raises(ValueError, match=r"keep them in ~/.netrc"):
        run("http://a:b@127.0.0.1:9/dicom-web/studies/1.2.3", tmp_path, overlay)
