"""What the page is told by the service: answers as streams, files on the image's grid, errors with the user's names."""

from __future__ import annotations

import gzip
import json
import tempfile
from pathlib import Path

import itk
import nibabel as nib
import numpy as np
import pytest

pytest.importorskip("fastapi", reason="the service's packages are not installed (extra 'serve')")

from bundle.page import read_gray
from bundle.page_answers import windows
from bundle.page_setup import choices, layers_for, page_setup
from bundle.predictor import Predictor
from bundle.removal import painted
from bundle.samples import SAMPLES
from bundle.service_model import read_metadata
from bundle.uploads import UploadLimits, UploadRefused
from tests.bundle.served import LIMITS
from tests.scans import ROOT, head, oblique
from transforms.reading import is_located

VOLUME = nib.Nifti1Image(np.ones((40, 40, 40), np.float32), np.eye(4)).to_bytes()


def asked(client, route, path, **fields):
    """The messages of a stream, the arrays of each by name."""
    answer = client.post(f"/page/{route}", files={"image": (path.name, path.read_bytes())}, data=fields)
    assert answer.status_code == 200, answer.text
    found, data = [], answer.content
    while data:
        size = int.from_bytes(data[:4], "little")
        message, data = json.loads(data[4 : 4 + size]), data[4 + size :]
        message["files"] = {}
        for array in message["arrays"]:
            content, data = data[: array["bytes"]], data[array["bytes"] :]
            file = gzip.decompress(content) if array["gzip"] else content
            message["files"][array["name"]] = nib.Nifti1Image.from_bytes(file)
        found.append(message)
    return found


def values(image):
    return np.asarray(image.dataobj)


def test_a_volume_is_answered_as_predicted_on_its_grid_with_progress(client, predictor, files):
    *told, last = asked(client, "predict", files["volume"])
    expected = predictor.predict(files["volume"])
    assert told[0]["stage"] == "reading"
    assert {message["stage"] for message in told} <= {"reading", "waiting", "preparing", "predicting"}
    assert all(message["of"] == 8 for message in told if message["stage"] == "predicting")
    assert last["stage"] == "done"
    assert last["result"]["tumor_probability"] == expected.probability
    assert last["result"]["source"] == "volume.nii.gz"
    assert (last["picture"], last["located"], last["channels"]) == (False, True, 1)
    assert np.array_equal(values(last["files"]["mask"]), expected.mask)
    assert np.allclose(values(last["files"]["evidence"]), np.tanh(expected.evidence / 2), atol=1e-6)
    assert np.array_equal(values(last["files"]["image"]), nib.load(files["volume"]).get_fdata(dtype=np.float32))
    for name in ("image", "mask", "raw_evidence"):
        assert np.allclose(last["files"][name].affine, expected.affine, atol=1e-5)


def test_a_picture_has_columns_and_rows_and_no_place_in_space(client, predictor, files):
    last = asked(client, "predict", files["picture"], uncertainty="true")[-1]
    expected = predictor.predict(files["picture"], uncertainty=True)
    assert np.array_equal(values(last["files"]["mask"])[..., 0].T, expected.mask)
    assert (last["picture"], last["located"], last["views"]) == (True, False, 7)
    assert last["result"]["probability_std"] == pytest.approx(expected.uncertainty.probability_std)
    header = last["files"]["mask"].header
    assert (int(header["sform_code"]), int(header["qform_code"])) == (0, 0)


def test_progress_counts_the_slices_before_each_pass(predictor, files):
    told = []
    predictor.predict(files["volume"], progress=lambda done, of: told.append((done, of)))
    assert told == [(0, 0), (0, 8), (4, 8)]


def test_maps_are_those_of_the_predictor(client, predictor, files):
    last = asked(client, "explain", files["volume"], method="hirescam", layer="bottleneck", slice=4)[-1]
    expected = predictor.explain(files["volume"], "hirescam", "bottleneck", "tumor", slice=4)
    assert (last["layer"], last["slices"]) == ("bottleneck", [4])
    assert np.array_equal(values(last["files"]["map"]), expected.map)
    assert last["message"][0].isupper()
    refused = asked(client, "explain", files["volume"], method="no_method")[-1]
    assert refused["stage"] == "refused"
    assert "no_method" in refused["detail"]


@pytest.mark.parametrize(
    ("name", "data", "reason"),
    [
        ("head scan.png", b"\x89PNG\r\n\x1a\n" + bytes(40), "cannot be read as a picture"),
        ("notes.txt", b"hello", "is no image that is read here"),
        ("empty.nii", b"", "is empty"),
        ("large.nii.gz", bytes(LIMITS.bytes + 1), "larger than 1 MiB"),
        ("cut.nii.gz", gzip.compress(VOLUME[:9000], mtime=0), ""),
        ("huge.nii", VOLUME.replace((40).to_bytes(2, "little") * 3, (20000).to_bytes(2, "little") * 3, 1), ""),
        ("series.zip", b"PK\x03\x04" + bytes(60), "is damaged"),
    ],
)  # fmt: skip
def test_errors_name_the_users_file_and_no_other(client, tmp_path, name, data, reason):
    path = tmp_path / "sent"
    path.mkdir()
    (path / name).write_bytes(data)
    last = asked(client, "predict", path / name)[-1]
    assert last["stage"] == "refused"
    assert name in last["detail"]
    assert reason in last["detail"]
    assert tempfile.gettempdir() not in last["detail"]
    assert "upload" not in last["detail"]


def test_nothing_of_an_upload_stays_on_disk(client, files, monkeypatch, tmp_path):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with pytest.raises(UploadRefused, match=r"^notes\.txt: "):
        read_gray(b"hello", "notes.txt", LIMITS)
    gray = read_gray(files["volume"].read_bytes(), "volume.nii.gz", LIMITS)
    assert gray.array.shape == nib.load(files["volume"]).shape
    asked(client, "predict", files["volume"])
    assert list(tmp_path.iterdir()) == []


def test_only_files_that_say_so_have_sides(tmp_path, files):
    assert is_located(files["volume"])
    image = nib.Nifti1Image(head(), None)
    for name in ("unknown.nii", "unknown.nii.gz"):
        nib.save(image, tmp_path / name)
        assert not is_located(tmp_path / name)
    nib.save(nib.Nifti2Image(head(), oblique()), tmp_path / "two.nii")
    assert is_located(tmp_path / "two.nii")
    itk.imwrite(itk.image_from_array(head()), str(tmp_path / "v.nrrd"))
    assert is_located(tmp_path / "v.nrrd")
    (tmp_path / "plain.nrrd").write_bytes(
        b"NRRD0004\ntype: uchar\ndimension: 3\nsizes: 2 2 2\nencoding: raw\n\n" + bytes(8)
    )
    assert not is_located(tmp_path / "plain.nrrd")


def test_of_a_4d_file_one_volume_is_shown_and_predicted(client, predictor, tmp_path):
    volume = head()
    nib.save(nib.Nifti1Image(np.stack([volume, volume[::-1]], axis=-1), oblique()), tmp_path / "both.nii.gz")
    last = asked(client, "predict", tmp_path / "both.nii.gz", channel=1)[-1]
    assert (last["channels"], last["channel"]) == (2, 1)
    assert np.array_equal(values(last["files"]["image"]), volume[::-1])
    assert last["result"]["tumor_probability"] == predictor.predict(tmp_path / "both.nii.gz", channel=1).probability


def test_windows_are_percentiles_of_what_is_not_air():
    air, tissue = np.zeros(900), np.linspace(100, 200, 1001)
    found = {one["name"]: (one["low"], one["high"]) for one in windows(np.concatenate([air, tissue]))}
    assert next(iter(found)) == "head"
    assert found["head"] == (pytest.approx(0.02 * 199.5), pytest.approx(199.5))
    assert found["brain, more contrast"] == (pytest.approx(125), pytest.approx(199.5))
    assert found["whole range"] == (0, 200)
    assert [one["name"] for one in windows(np.full(9, 3.0))] == ["whole range"]


def disk(shape, center, radius):
    rows, columns = np.indices(shape)
    return (rows - center[0]) ** 2 + (columns - center[1]) ** 2 < radius**2


def test_a_tumor_is_painted_over_in_its_slices_alone_and_the_control_elsewhere(predictor):
    rng = np.random.default_rng(0)
    inside, tumor = disk((96, 96), (48, 48), 40), disk((96, 96), (40, 60), 7)
    plane = np.where(inside, 100 + 5 * rng.standard_normal((96, 96)), 0) + np.where(tumor, 80, 0)
    volume = np.stack([plane] * 4, axis=2).astype(np.float32)
    prediction = predictor.predict(volume, np.diag([-1.0, -1.0, 4.0, 1.0]), plane="axial")
    prediction.raw_mask = np.zeros(volume.shape, np.uint8)
    prediction.raw_mask[..., 1:3] = tumor[..., None]
    for control in (False, True):
        changed, count, left = painted(prediction, volume, control)
        assert (count, left) == (2, {})
        assert np.array_equal(changed[..., [0, 3]], volume[..., [0, 3]])
        bright = changed[..., 1][tumor].mean() > 150
        assert bright == control
        assert (changed[..., 1] != volume[..., 1]).any()
    flat = predictor.predict(volume[..., 1])
    flat.raw_mask = tumor.astype(np.uint8)
    assert painted(flat, volume[..., 1], False)[0][tumor].mean() < 130
    flat.raw_mask = np.ones_like(flat.raw_mask)
    _, count, left = painted(flat, volume[..., 1], False)
    assert count == 0
    assert "too little healthy tissue" in next(iter(left))


def test_what_is_said_without_the_tumor_is_the_prediction_of_the_painted_image(client, predictor, files):
    last = asked(client, "without", files["picture"])[-1]
    assert last["stage"] == "done"
    painted_image = values(last["files"]["image"])[..., 0].T if "image" in last["files"] else None
    if painted_image is None:  # random weights may outline too much
        assert last["changed"] == 0
        assert last["left"]
    else:
        assert last["result"]["tumor_probability"] == predictor.predict(painted_image, assess_anyway=True).probability


def test_the_page_says_what_the_shipped_weights_take():
    metadata = read_metadata(ROOT)
    setup = page_setup(Predictor(), metadata, UploadLimits())
    assert setup["takes"] == metadata["input_description"]
    for word in ("T1", "Contrast", "adult", "brain", "skull"):
        assert word in setup["takes"]
    assert set(setup["samples"]) == set(SAMPLES)
    assert len(setup["colors"]) == 256


def test_other_weights_do_not_borrow_these_words(predictor):
    setup = page_setup(predictor, read_metadata(ROOT), LIMITS)
    assert "like those of its training" in setup["takes"]


def test_each_target_is_offered_the_methods_and_layers_that_can_explain_it(predictor, files):
    model = page_setup(predictor, {"name": "a", "version": 1, "task": "b"}, LIMITS)["model"]
    for target in ("tumor", "segmentation"):
        methods, layers, usual = choices(model, target, True)
        assert ("evidence" in methods) == (target == "tumor")
        assert usual in layers
        for method in ("gradcam", "gradcam_frozen", "layercam_frozen", "lrp", "lrp_places"):  # none ends in no map
            offered, remark = layers_for(method, layers, usual)
            assert usual in offered
            assert (offered == [usual]) == (method == "gradcam") == ("cancel" in remark)
            assert ("input" in offered) == method.startswith("lrp")
            assert ("recommended" in remark) == (method == "lrp_places")
            for layer in offered:
                assert predictor.explain(files["picture"], method, layer, target).layer == layer
        assert layers_for("saliency", layers, usual) == ([], "")


def test_parts_of_the_page_are_served_and_nothing_beside(client):
    assert client.get("/page/viewer.js").headers["content-type"].startswith("text/javascript")
    for name in ("../page.py", "page.py", "%2e%2e/service.py", "nothing.js", "samples/nothing.png"):
        assert client.get(f"/page/{name}").status_code == 404
    sample = client.get("/page/samples/phantom_tumor.png")
    assert sample.content.startswith(b"\x89PNG")
    assert client.post("/page/predict", files={"image": b"x"}, data={"unknown": "1"}).status_code == 422
    assert Path(ROOT / "bundle" / "page_files" / "page.html").read_text(encoding="utf-8") == client.get("/").text
