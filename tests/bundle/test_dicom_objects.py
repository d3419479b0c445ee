"""DICOM objects from `Predictor` and service: those that `predict --dicom` writes, of the same series."""

from __future__ import annotations

import base64
import io
import os
import zipfile

import pydicom
import pytest
from pydicom.uid import generate_uid

pytest.importorskip("fastapi", reason="the service's packages are not installed (extra 'service')")
pytest.importorskip("highdicom", reason="highdicom (the extra dicom) is not installed")
from fastapi.testclient import TestClient

from bundle.predictor import Predictor
from bundle.service import create_app
from scripts.dicom import archive
from scripts.dicom.samples import write_sample
from scripts.dicom.web import Server
from scripts.dicom.writing import ENDINGS
from tests.dicom.series import write_series
from tests.dicom.test_predict_dicom import drawn
from tests.inference.test_predict import run
from tests.scans import head, save_picture

# Where the clock stands, the only thing that differs from one time to the next.
CLOCK = {"InstanceCreationDate", "InstanceCreationTime", "ContentDate", "ContentTime", "ContributionDateTime"}
ALL = [ending.strip("_").removesuffix(".dcm") for ending in ENDINGS]
KINDS = ALL[:3]  # without those that are asked for by a flag of their own
UID = str(generate_uid(entropy_srcs=["one of two"]))


@pytest.fixture(scope="module")
def series(tmp_path_factory):
    return write_series(tmp_path_factory.mktemp("in") / "oblique", "oblique", drawn("oblique"))


@pytest.fixture(scope="module")
def predictor(overlay):
    return Predictor(overlay=overlay)


@pytest.fixture(scope="module")
def client(predictor):
    with TestClient(create_app(predictor), raise_server_exceptions=False, base_url="http://127.0.0.1") as client:
        yield client


def zipped(folder):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archived:
        for path in sorted(folder.iterdir()):
            archived.write(path, path.name)
    return buffer.getvalue()


def content(file):
    """A file's bytes, without when it was written."""
    dataset = pydicom.dcmread(file)
    for element in dataset.iterall():
        if element.keyword in CLOCK:
            element.value = ""
    buffer = io.BytesIO()
    dataset.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


def written(folder, out, overlay, *more):
    """Objects that the verb `predict` writes of the one series of a folder, by kind."""
    status, rows = run(folder, out, overlay, "--dicom", *more)
    assert status == 0
    (name,) = rows
    return {kind: content(path) for kind in ALL if (path := out / f"{name}_{kind}.dcm").is_file()}


def post(client, data, **form):
    return client.post("/predict_multitask", files={"image": ("x.zip", data)}, data={"arrays": "false", **form})


def test_the_service_answers_the_objects_of_a_zipped_series_that_predict_writes(client, series, tmp_path, overlay):
    answer = post(client, zipped(series), dicom="true")
    assert answer.status_code == 200, answer.text
    objects = {kind: base64.b64decode(data) for kind, data in answer.json()["objects"].items() if data is not None}
    expected = written(series, tmp_path / "out", overlay)
    assert list(objects) == list(expected) == KINDS
    for kind, data in objects.items():
        assert content(io.BytesIO(data)) == expected[kind], kind
    assert post(client, zipped(series)).json()["objects"] is None


def test_options_and_anonymity_make_the_objects_that_the_flags_of_predict_make(client, series, tmp_path, overlay):
    asked = {"anonymous": "true", "evidence_segments": "true", "plane": "coronal", "assess_anyway": "true"}
    answer = post(client, zipped(series), dicom="true", **asked)
    flags = ("--anonymous", "--evidence_segments", "--plane", "coronal", "--assess_anyway")
    expected = written(series, tmp_path / "out", overlay, *flags)
    plain = {**written(series, tmp_path / "plain", overlay), "segments": b""}
    assert list(answer.json()["objects"]) == list(expected) == ALL
    for kind, data in answer.json()["objects"].items():
        made = base64.b64decode(data)
        assert content(io.BytesIO(made)) == expected[kind], kind
        assert b"Doe" not in made
        assert pydicom.dcmread(io.BytesIO(made)).SOPInstanceUID.encode() not in plain[kind]


def test_what_no_object_can_refer_to_is_refused_in_a_sentence(client, series, tmp_path):
    picture = save_picture(tmp_path / "a.png", head()[:, :, 4]).read_bytes()
    write_series(tmp_path / "nowhere", "axial", drawn("axial"), FrameOfReferenceUID=None)
    asked = {"dicom": "true"}
    for data, form, reason in (
        (picture, asked, "image is no DICOM, so no object can refer to it; leave out dicom for it"),
        (zipped(series), {"anonymous": "true"}, "anonymous is for the objects that dicom asks for; give both"),
        (zipped(series), {"evidence_segments": "true"}, "evidence_segments is for the objects that dicom asks for"),
        (zipped(series), {**asked, "slice": "2"}, "dicom asks for objects of a whole series; leave out slice"),
        (zipped(tmp_path / "nowhere"), asked, "has no FrameOfReferenceUID, so nothing can be placed over it"),
    ):
        answer = post(client, data, **form)
        assert answer.status_code == 422, answer.text
        assert reason in answer.json()["detail"]
        assert "/tmp" not in answer.json()["detail"]


def test_the_service_describes_the_fields_and_the_objects(client):
    text = client.get("/docs").text
    assert "objects in the answer, those of predict --dicom" in text
    schemas = client.get("/openapi.json").json()["components"]["schemas"]
    assert list(schemas["DicomObjects"]["properties"]) == ALL


def test_the_predictor_takes_one_series_of_several_and_writes_its_objects(predictor, tmp_path, overlay):
    for name, uid in (("a", UID), ("b", "1.2.3")):
        for path in write_series(tmp_path / name, "axial", drawn("axial"), SeriesInstanceUID=uid).iterdir():
            (tmp_path / "mixed").mkdir(exist_ok=True)
            path.rename(tmp_path / "mixed" / f"{name}_{path.name}")
    with pytest.raises(ValueError, match="2 DICOM series"):
        predictor.predict(tmp_path / "mixed")
    (tmp_path / "made").mkdir()
    found = predictor.predict(tmp_path / "mixed", series=UID, dicom=tmp_path / "made" / "case")
    assert found.source == f"series {UID}"
    assert found.objects == [tmp_path / "made" / f"case_{kind}.dcm" for kind in KINDS]
    expected = written(tmp_path / "mixed", tmp_path / "out", overlay, "--series", UID)
    assert {kind: content(path) for kind, path in zip(KINDS, found.objects, strict=True)} == expected
    (together,) = predictor.predict_batch([{"image": tmp_path / "mixed", "series": UID}])
    assert together.probability == pytest.approx(found.probability, abs=1e-5)
    assert predictor.explain(tmp_path / "mixed", series=UID).map.shape == found.mask.shape
    with pytest.raises(ValueError, match=r"no file is of series 1.2.4; found: 5 files of series"):
        predictor.predict(tmp_path / "mixed", series="1.2.4")
    with pytest.raises(ValueError, match="series is the UID of a series"):
        predictor.predict(tmp_path / "mixed", series="a")


def test_the_predictor_takes_the_address_that_predict_takes(predictor, tmp_path, overlay, monkeypatch):
    pytest.importorskip("dicomweb_client", reason="dicomweb-client (the extra dicom) is not installed")
    if missing := archive.available():
        pytest.skip(missing)
    monkeypatch.setitem(os.environ, "NO_PROXY", archive.HOST)
    with archive.running(tmp_path / "archive") as address:
        archive.upload(address, files := write_sample(tmp_path / "sent", 2))
        uids = pydicom.dcmread(files[0])
        study = f"{address}/dicom-web/studies/{uids.StudyInstanceUID}"
        (tmp_path / "made").mkdir()
        found = predictor.predict(study, dicom=tmp_path / "made" / "case")
        expected = written(study, tmp_path / "out", overlay)
        with pytest.raises(ValueError, match=r"holds no series 1.2.3; choose one with"):
            predictor.predict(study, series="1.2.3")
        assert found.source == f"{study}/series/{uids.SeriesInstanceUID}" == Server(study).choose()
    assert {kind: content(path) for kind, path in zip(KINDS, found.objects, strict=True)} == expected


def test_errors_of_a_chosen_series_speak_of_it_and_not_of_where_it_lies_for_a_while(predictor, tmp_path):
    folder = write_series(tmp_path / "in", "axial", drawn("axial"), FrameOfReferenceUID=None, SeriesInstanceUID=UID)
    asked = {"image": folder, "series": UID, "dicom": tmp_path / "case"}
    with pytest.raises(ValueError, match=rf"file series {UID}/00.dcm has no FrameOfReferenceUID"):
        predictor.predict(**asked)
    (error,) = predictor.predict_batch([asked], errors="return")
    assert str(error).startswith(f"file series {UID}/00.dcm has no FrameOfReferenceUID")
    assert not list(tmp_path.glob("case*"))
