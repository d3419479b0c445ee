"""The service: right answers, alone and together, and a reason for everything that is not an image."""

from __future__ import annotations

import base64
import gzip
import io
import os
import re
import sys
import threading
import time
import zipfile
from concurrent.futures import ThreadPoolExecutor

import itk
import nibabel as nib
import numpy as np
import pytest

pytest.importorskip("fastapi", reason="the service's packages are not installed (extra 'service')")
from fastapi.testclient import TestClient
from PIL import Image

from bundle.batching import Batcher, QueueFull, giving_way
from bundle.predictor import Predictor
from bundle.service import create_app, predict_together
from bundle.upload_formats import FormatRefused, whole_metaimage, whole_nrrd
from bundle.uploads import UploadLimits, UploadRefused, stored
from tests.data.volume_files import write_series
from tests.scans import head, oblique, save, save_picture, write_overlay
from transforms.limits import ReadLimits

LIMITS = UploadLimits(1 << 20, 4 << 20, 16, ReadLimits(pixels=1 << 16, voxels=1 << 18, side=512))
HOST = "http://127.0.0.1"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("service")


@pytest.fixture(scope="module")
def predictor(folder):
    return Predictor(overlay=write_overlay(folder))


@pytest.fixture(scope="module")
def client(predictor):
    with TestClient(create_app(predictor, LIMITS), raise_server_exceptions=False, base_url=HOST) as client:
        yield client


@pytest.fixture(scope="module")
def files(folder):
    volume, affine = head(), oblique()
    return {
        "picture": save_picture(folder / "picture.png", volume[:, :, 4]),
        "volume": save(folder / "volume.nii.gz", volume, affine, "SRA"),
    }


def post(client, data, route="/predict_multitask", name="image.png", **form):
    return client.post(route, files={"image": (name, data)}, data=form)


def decoded(array):
    data = base64.b64decode(array["data"])
    if array["format"] == "png":
        return np.asarray(Image.open(io.BytesIO(data)))
    volume = nib.Nifti1Image.from_bytes(gzip.decompress(data))
    return np.asarray(volume.dataobj), volume.affine


def test_a_picture_is_answered_as_the_predictor_predicts_it(client, predictor, files):
    answer = post(client, files["picture"].read_bytes(), name="../../etc/a b.png")
    assert answer.status_code == 200
    expected, body = predictor.predict(files["picture"]), answer.json()
    assert {key: body[key] for key in expected.to_json() if key != "source"} == {
        key: value for key, value in expected.to_json().items() if key != "source"
    }
    assert body["source"] == "a b.png"
    assert np.array_equal(decoded(body["mask"]), expected.mask)
    assert np.array_equal(decoded(body["evidence"]), np.round(np.tanh(expected.evidence / 2) * 255).astype(np.uint8))
    assert "Not a medical device" in body["notice"]


def test_a_volume_comes_back_on_its_own_grid(client, predictor, files):
    answer = post(client, files["volume"].read_bytes(), plane="coronal", uncertainty="true")
    expected = predictor.predict(files["volume"], plane="coronal", uncertainty=True)
    body = answer.json()
    mask, affine = decoded(body["mask"])
    assert np.array_equal(mask, expected.mask)
    assert np.allclose(affine, nib.load(files["volume"]).affine, atol=1e-5)
    # The service computes in threads of its own: with several a sum has another order, and another last digit.
    assert np.allclose(decoded(body["evidence"])[0], expected.evidence, atol=1e-5)
    assert body["plane"] == "coronal"
    assert body["slice_probabilities"] == pytest.approx(expected.slice_probabilities, abs=1e-6)
    assert body["probability_std"] == pytest.approx(expected.uncertainty.probability_std, abs=1e-6)
    assert body["probability_std"] > 0


def test_arrays_are_left_out_on_wish(client, files):
    body = post(client, files["picture"].read_bytes(), arrays="false").json()
    assert body["mask"] is None
    assert body["evidence"] is None
    assert body["tumor_probability"] > 0


def test_explain_gives_the_predictors_map(client, predictor, files):
    answer = post(client, files["volume"].read_bytes(), "/explain", method="hirescam", layer="bottleneck", slice=3)
    expected = predictor.explain(files["volume"], "hirescam", "bottleneck", slice=3)
    body = answer.json()
    assert (body["method"], body["layer"], body["slices"]) == ("hirescam", "bottleneck", [3])
    assert body["target"] == "tumor_log_odds"
    named = post(client, files["picture"].read_bytes(), "/explain", method="saliency", target="glioma")
    assert named.json()["target"] == "glioma"
    assert np.allclose(decoded(body["map"])[0], expected.map, atol=1e-6)


def test_a_mask_of_the_head_is_used(client, predictor, files, folder):
    inside = np.zeros((48, 40), np.uint8)
    inside[10:30, 8:30] = 255
    size = Image.open(files["picture"]).size
    mask = folder / "inside.png"
    Image.fromarray(inside).resize(size, Image.Resampling.NEAREST).save(mask)
    form = {"image": ("a.png", files["picture"].read_bytes()), "foreground": ("b.png", mask.read_bytes())}
    body = client.post("/predict_multitask", files=form).json()
    assert body["tumor_probability"] == predictor.predict(files["picture"], foreground=mask).probability
    assert body["tumor_probability"] != predictor.predict(files["picture"]).probability


def gz(data: bytes) -> bytes:
    return gzip.compress(data, mtime=0)


def nifti(shape=(8, 8, 4)) -> bytes:
    return nib.Nifti1Image(np.ones(shape, np.float32), np.eye(4)).to_bytes()


def png(size, mode="L") -> bytes:
    buffer = io.BytesIO()
    Image.new(mode, size).save(buffer, format="PNG")
    return buffer.getvalue()


def tiff(size=(20, 20), **options) -> bytes:
    buffer = io.BytesIO()
    Image.new("L", size).save(buffer, format="TIFF", **options)
    return buffer.getvalue()


def mpo() -> bytes:
    buffer = io.BytesIO()
    frames = [Image.new("RGB", (20, 20), (k, 0, 0)) for k in range(2)]
    frames[0].save(buffer, format="MPO", save_all=True, append_images=frames[1:])
    return buffer.getvalue()


def zipped(files, **options) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED, **options) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return buffer.getvalue()


MHA = b"ObjectType = Image\nNDims = 2\nDimSize = 4 4\nElementType = MET_UCHAR\n"
NRRD = b"NRRD0004\ntype: uint8\ndimension: 2\nsizes: 4 4\nencoding: raw\n"
BAD = {
    "empty": (b"", 422, "empty"),
    "text": (b"# no image", 415, "no image that is read here"),
    "html": (b"<svg xmlns='http://www.w3.org/2000/svg'/>", 415, "no image"),
    "pdf": (b"%PDF-1.7\n", 415, "no image"),
    "MetaImage of another file": (MHA + b"ElementDataFile = /etc/passwd\n", 415, "lie in another file"),
    "MetaImage of other files by a comment": (
        MHA + b"Comment = ElementDataFile = LOCAL\nElementDataFile = LIST\n/etc/passwd\n",
        415,
        "lie in another file",
    ),
    "MetaImage by an empty comment": (
        MHA + b"Comment = \nElementDataFile = LOCAL\nElementDataFile = /etc/passwd\n",
        422,
        "noise",
    ),
    "NRRD of another file": (NRRD + b"data file: /etc/passwd\n\n", 415, "lie in another file"),
    "NRRD of another file, spelled otherwise": (NRRD + b"DataFile: /etc/passwd\n\n", 415, "lie in another file"),
    "huge MetaImage": (MHA.replace(b"4 4", b"40000 4") + b"ElementDataFile = LOCAL\n", 413, "40000 x 4"),
    "cut png": (png((64, 64))[:40], 422, "cannot be read as a picture"),
    "constant png": (png((64, 64)), 422, "constant"),
    "wide png": (png((513, 4)), 413, "513 x 4"),
    "many pixels": (png((300, 300)), 413, "65,536"),
    "wide BigTIFF": (tiff((600, 4), big_tiff=True), 413, "600 x 4"),
    "pages": (tiff(save_all=True, append_images=[Image.new("L", (20, 20))] * 3), 422, "4 frames"),
    "MPO": (mpo(), 422, "2 frames"),
    "gzip of text": (gz(b"hello"), 415, "no image"),
    "gzip bomb of nothing": (gz(bytes(8 << 20)), 415, "no image"),
    "gzip bomb of many slices": (gz(nifti()[:42] + b"\xff\x01" * 2 + b"\xff\x7f" + nifti()[48:]), 413, "32767"),
    "cut gzip": (gz(nifti())[:60], 422, "cut short"),
    "damaged gzip": (b"\x1f\x8b" + b"\xff" * 50, 422, "cannot be unpacked"),
    "cut nifti": (nifti()[:400], 422, "cut short"),
    "nifti of a pair": (nifti()[:344] + b"ni1\0" + nifti()[348:], 415, "pair"),
    "huge nifti": (nifti()[:42] + b"\xff\x7f" * 3 + nifti()[48:], 413, "32767"),
    "constant nifti": (nifti(), 422, "image"),
    "zip of pictures": (zipped({"a.png": png((20, 20))}), 415, "no DICOM file"),
    "zip bomb": (zipped({"a.dcm": bytes(128) + b"DICM" + bytes(8 << 20)}), 413, "unpacks to more than 4 MiB"),
    "zip of many": (zipped({f"{k}.dcm": b"" for k in range(17)}), 413, "17 files"),
    "cut zip": (zipped({"a.dcm": b"x"})[:-30], 422, "damaged"),
    "zip of a damaged DICOM file": (zipped({"../../a.dcm": bytes(128) + b"DICM" + b"\xff" * 300}), 422, "image"),
    "deflated DICOM": (bytes(128) + b"DICM" + b"1.2.840.10008.1.2.1.99" + bytes(64), 415, "deflated"),
}


@pytest.mark.parametrize("kind", BAD)
@pytest.mark.parametrize("route", ["/predict_multitask", "/explain"])
def test_bad_uploads_get_the_reason(client, kind, route):
    data, status, reason = BAD[kind]
    answer = post(client, data, route)
    assert answer.status_code == status, answer.text
    assert reason in answer.json()["detail"]
    assert answer.json()["detail"].startswith("image")
    assert "/tmp" not in answer.text
    assert "Traceback" not in answer.text


def test_bad_parameters_get_the_reason(client, files):
    data = files["picture"].read_bytes()
    for route, form, reason in [
        ("/explain", {"method": "magic"}, "magic"),
        ("/explain", {"method": "gradcam", "layer": "bottlenek"}, "bottleneck"),
        ("/explain", {"target": "lymphoma"}, "lymphoma"),
        ("/explain", {"target": "no_tumor"}, "no_tumor_minus_glioma"),
        ("/explain", {"method": "gradcam", "layer": "encoder_early"}, "gradients of every channel cancel"),
        ("/explain", {"layer": "bogus"}, "evidence explains none"),
        ("/explain", {"slice": "0"}, "image is a picture: it has no slice 0"),
        ("/predict_multitask", {"slice": "7"}, "image is a picture: it has no slice 7"),
        ("/predict_multitask", {"plane": "axial"}, "image is a picture: it has no plane"),
        ("/predict_multitask", {"slice": "x"}, "slice"),
        ("/predict_multitask", {"slice": "-1"}, "slice"),
        ("/predict_multitask", {"plane": "diagonal"}, "axial"),
    ]:
        answer = post(client, data, route, **form)
        assert answer.status_code == 422, form
        assert reason in answer.text
    assert client.post("/predict_multitask").status_code == 422
    assert client.get("/predict_multitask").status_code == 405
    answer = post(client, files["volume"].read_bytes(), slice="4000")
    assert answer.status_code == 422
    assert "4000" in answer.text


@pytest.mark.parametrize("announced", [True, False])
def test_a_body_above_the_limit_is_not_read_to_its_end(client, announced):
    data = b"x" * (5 << 20)
    boundary = b'--b\r\nContent-Disposition: form-data; name="image"; filename="a.png"\r\n\r\n'
    body = boundary + data + b"\r\n--b--\r\n"
    read = []

    def pieces():
        for start in range(0, len(body), 1 << 16):
            read.append(start)
            yield body[start : start + (1 << 16)]

    headers = {"content-type": "multipart/form-data; boundary=b"}
    answer = client.post("/predict_multitask", content=body if announced else pieces(), headers=headers)
    assert answer.status_code == 413
    assert "larger than" in answer.json()["detail"]


def test_one_file_above_the_limit_is_refused(client):
    answer = post(client, b"\x89PNG" + bytes((1 << 20) + 10))
    assert (answer.status_code, answer.json()["detail"]) == (413, "image: the file is larger than 1 MiB")


def test_200_broken_files_get_a_reason_and_no_5xx(client, files):
    random = np.random.default_rng(0)
    sources = [files["picture"].read_bytes(), gz(nifti((12, 12, 2))), nifti((12, 12, 2)), files["volume"].read_bytes()]
    buffer = io.BytesIO()
    Image.open(files["picture"]).save(buffer, format="JPEG")
    sources.append(buffer.getvalue())
    answered: dict[int, int] = {}
    for number in range(200):
        data = bytearray(sources[number % len(sources)])
        if number % 3 == 0:
            data = data[: random.integers(1, len(data))]
        header = min(len(data), 400)
        for place in random.integers(0, header if number % 2 else len(data), random.integers(1, 12)):
            data[place] = random.integers(256)
        status = post(client, bytes(data), arrays="false").status_code
        answered[status] = answered.get(status, 0) + 1
    assert set(answered) <= {200, 413, 415, 422}, answered
    assert answered[422] > 50


def test_200_concurrent_requests_all_get_their_own_answer(client, predictor, folder):
    volume = head()
    pictures = [save_picture(folder / f"many{k}.png", volume[:, :, k]) for k in range(2, 7)]
    expected = [predictor.predict(path).probability for path in pictures]
    assert len(set(expected)) == len(expected)
    data = [path.read_bytes() for path in pictures]
    with ThreadPoolExecutor(32) as pool:
        answers = list(pool.map(lambda k: post(client, data[k % 5], arrays="false"), range(200)))
    assert {answer.status_code for answer in answers} == {200}
    got = np.array([answer.json()["tumor_probability"] for answer in answers])
    assert np.abs(got - np.tile(expected, 40)).max() < 1e-5


def test_health_model_and_description(client, predictor):
    assert client.get("/health").json() == {
        "status": "ok",
        "waiting": {"pictures": 0, "volumes": 0, "explanations": 0},
    }
    model = client.get("/model").json()
    assert model["classes"] == predictor.classes
    assert model["backend"] == "torch"
    assert model["threshold"] == pytest.approx(float(predictor.network.threshold))
    assert set(model["layers"]) <= set(dict(predictor.network.named_modules()))
    described = client.get("/openapi.json").json()
    assert set(described["paths"]) == {"/health", "/model", "/predict_multitask", "/explain"}
    answer = described["components"]["schemas"]["MultitaskAnswer"]["properties"]
    assert "0 to 1" in answer["tumor_probability"]["description"]
    assert "millimeters" in answer["affine"]["description"]


def test_an_unexpected_failure_is_answered_without_a_traceback(predictor, files, monkeypatch):
    monkeypatch.setattr(predictor, "predict_batch", lambda *_, **__: 1 / 0)
    monkeypatch.setattr(predictor, "predict", lambda **_: 1 / 0)
    with TestClient(create_app(predictor, LIMITS), raise_server_exceptions=False, base_url=HOST) as client:
        answer = post(client, files["picture"].read_bytes())
    assert (answer.status_code, answer.json()) == (500, {"detail": "the service failed; its log says why"})


def test_one_item_cannot_take_its_batch_along(predictor, files, monkeypatch):
    whole = predictor.predict_batch

    def brittle(items, errors):
        if len(items) > 1:
            raise RuntimeError("a bad one among them")
        return whole(items, errors=errors)

    monkeypatch.setattr(predictor, "predict_batch", brittle)
    good, bad = predict_together(predictor, [{"image": files["picture"]}, {"image": "absent.png"}])
    assert good.probability == predictor.predict(files["picture"]).probability
    assert isinstance(bad, ValueError)


def test_uploads_are_deleted_after_use(files):
    with stored(files["volume"].read_bytes(), LIMITS) as path:
        assert path.name == "image.nii"
        assert path.is_file()
    assert not path.parent.exists()
    with pytest.raises(UploadRefused, match="empty"), stored(b"", LIMITS):
        pass


def test_one_users_explanations_do_not_hold_up_anothers_predictions(predictor, files, monkeypatch):
    go, started = threading.Event(), threading.Event()

    def slow(**_):
        started.set()
        go.wait(5)
        raise ValueError("explained at last")

    monkeypatch.setattr(predictor, "explain", slow)
    data = files["picture"].read_bytes()
    app = create_app(predictor, LIMITS, waiting={"pictures": 8, "volumes": 8, "explanations": 20})
    with TestClient(app, base_url=HOST) as client, ThreadPoolExecutor(21) as pool:
        first = pool.submit(post, client, data, "/explain")
        started.wait(60)
        others = [pool.submit(post, client, data, "/explain") for _ in range(20)]
        while client.get("/health").json()["waiting"]["explanations"] < 20:
            time.sleep(0.02)
        assert post(client, data).status_code == 200
        assert post(client, files["volume"].read_bytes()).status_code == 200
        full = post(client, data, "/explain")
        assert (full.status_code, full.headers["retry-after"]) == (503, "1")
        assert full.json() == {"detail": "20 requests wait already; try again later"}
        go.set()
        answers = [future.result(60) for future in (first, *others)]
    assert {answer.status_code for answer in answers} == {422}
    assert answers[0].json()["detail"] == "explained at last"


def test_volumes_and_pictures_wait_apart(predictor, files, monkeypatch):
    go, started = threading.Event(), threading.Event()
    whole = predictor.predict  # of volumes; pictures are predicted in common passes

    def slow(**item):
        started.set()
        go.wait(5)
        return whole(**item)

    monkeypatch.setattr(predictor, "predict", slow)
    with TestClient(create_app(predictor, LIMITS), base_url=HOST) as client, ThreadPoolExecutor(1) as pool:
        volume = pool.submit(post, client, files["volume"].read_bytes())
        started.wait(60)
        assert post(client, files["picture"].read_bytes()).status_code == 200
        assert not volume.done()
        go.set()
        assert volume.result(60).status_code == 200


def test_fields_that_no_one_reads_are_refused(client, files):
    data = files["picture"].read_bytes()
    answer = post(client, data, foregruond="x", threshold="0.3")
    assert answer.status_code == 422
    assert answer.json()["detail"].startswith("there is no field 'foregruond', 'threshold'; the form takes image, ")
    assert "method" in post(client, data, method="gradcam").json()["detail"]
    answer = client.post("/predict_multitask?plane=axial", files={"image": data})
    assert "plane belongs into the form" in answer.json()["detail"]
    twice = client.post("/predict_multitask", files=[("image", ("a.png", data)), ("image", ("b.png", data))])
    assert (twice.status_code, twice.json()["detail"]) == (422, "image is given more than once")


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("127.0.0.1:8000", 200), ("localhost", 200), ("192.168.1.7:80", 200), ("[::1]:8000", 200), ("Scanner:80", 200),
        ("evil.example", 400), ("localhost.evil.example", 400), ("127.0.0.1.evil.example", 400), ("", 400),
        ("[", 400), ("evil.example/localhost", 400),
    ],
)  # fmt: skip
def test_only_its_own_names_are_answered(predictor, host, status):
    app = create_app(predictor, LIMITS, hosts=["scanner"])
    answer = TestClient(app, base_url=HOST).get("/model", headers={"host": host})
    assert answer.status_code == status
    assert status == 200 or "--allowed_host" in answer.json()["detail"]


def test_pages_of_other_sites_are_not_answered(client, files):
    data = files["picture"].read_bytes()
    for origin, status in ((HOST, 200), ("https://evil.example", 403), ("null", 403), ("http://127.0.0.1:9", 403)):
        answer = client.post("/predict_multitask", files={"image": data}, headers={"origin": origin})
        assert answer.status_code == status, origin


def test_description_and_page_need_no_other_site(client):
    said = {
        "/docs": ("/predict_multitask", "/explain", "uncertainty", "Not a medical device", "NRRD"),
        "/": ("What it takes", "page/page.js"),
    }
    for path, words in said.items():
        answer = client.get(path)
        assert answer.status_code == 200
        assert "default-src 'none'" in answer.headers["content-security-policy"]
        assert not re.search(r"(src|href)=.?(https?:)?//", answer.text)
        for word in words:
            assert word in answer.text
    assert client.get("/redoc").status_code == 404


def test_volumes_of_every_kind_give_what_their_files_give(client, predictor, folder):
    image = itk.image_from_array(np.ascontiguousarray(head().T))
    image.SetSpacing([1.0, 1.1, 5.0])
    names = ("v.mha", "v.nrrd", "packed.mha", "packed.nrrd")
    for name in names:
        itk.imwrite(image, str(folder / name), compression=name.startswith("packed"))
    expected = predictor.predict(folder / "v.mha").probability
    for name in names:
        answer = post(client, (folder / name).read_bytes(), arrays="false")
        assert (answer.status_code, answer.json().get("tumor_probability")) == (200, expected), answer.text
    write_series(folder / "series", 10 * head(), np.eye(3), "p1")
    slices = {f"{path.parent.name}/{path.name}": path.read_bytes() for path in (folder / "series").iterdir()}
    others = {"notes.txt": b"not a slice", "DICOMDIR": bytes(128) + b"DICM"}
    answer = post(client, zipped({**slices, **others}), name="series.zip", arrays="false")
    assert answer.status_code == 200, answer.text
    assert answer.json()["tumor_probability"] == predictor.predict(folder / "series").probability
    assert answer.json()["shape"] == [40, 46, 9]
    one = post(client, next(iter(slices.values())), arrays="false")
    assert one.json().get("shape", one.text) == [40, 46, 1]


def test_headers_keep_what_describes_the_values_alone():
    header = MHA + b"Comment = x\nHeaderSize = 4\nElementDataFile = LOCAL\n"
    assert whole_metaimage(header + b"\n1234") == MHA + b"ElementDataFile = LOCAL\n\n1234"
    assert whole_nrrd(NRRD + b"# c\nbyte skip: -1\nkey:=/etc/passwd\n\n12") == NRRD + b"\n12"
    with pytest.raises(FormatRefused, match="ascii"):
        whole_nrrd(NRRD.replace(b"raw", b"ascii") + b"\n")
    with pytest.raises(FormatRefused, match="does not end"):
        whole_metaimage(MHA)


class TestBatcher:
    def test_what_waits_together_is_answered_together(self):
        sizes, go = [], threading.Event()

        def work(items):
            go.wait(10)
            sizes.append(len(items))
            return [item * 2 for item in items]

        batcher = Batcher(work, max_items=3)
        futures = [batcher.submit(k) for k in range(7)]
        go.set()
        assert [future.result(10) for future in futures] == [0, 2, 4, 6, 8, 10, 12]
        batcher.close()
        assert sum(sizes) == 7
        assert max(sizes) == 3

    def test_a_full_queue_refuses(self):
        go = threading.Event()
        batcher = Batcher(lambda items: [go.wait(10) for _ in items], max_items=1, max_waiting=2)
        accepted = []
        with pytest.raises(QueueFull, match="wait already"):
            accepted.extend(batcher.submit(0) for _ in range(4))
        go.set()
        batcher.close()

    def test_closing_answers_what_waits_and_refuses_more(self):
        batcher = Batcher(lambda items: items, max_items=2)
        futures = [batcher.submit(k) for k in range(5)]
        batcher.close()
        assert [future.result(0) for future in futures] == [0, 1, 2, 3, 4]
        with pytest.raises(QueueFull, match="shutting down"):
            batcher.submit(1)

    def test_closing_without_answers_cancels_what_waits(self):
        go, started = threading.Event(), threading.Event()

        def work(items):
            started.set()
            go.wait(10)
            return items

        batcher = Batcher(work, max_items=1)
        futures = [batcher.submit(k) for k in range(4)]
        started.wait(10)
        closing = threading.Thread(target=batcher.close, args=(False,))
        closing.start()
        while not all(future.cancelled() for future in futures[1:]):
            time.sleep(0.01)
        go.set()
        closing.join()
        assert futures[0].result(10) == 0

    def test_how_long_to_wait_follows_from_how_long_it_takes(self):
        go, started = threading.Event(), threading.Event()

        def work(items):
            started.set()
            return [go.wait(10) for _ in items]

        batcher = Batcher(work, max_items=1, max_waiting=3)
        batcher.submit(0)
        started.wait(10)
        batcher.seconds = 7.0
        for _ in range(3):
            batcher.submit(0)
        with pytest.raises(QueueFull) as refused:
            batcher.submit(0)
        assert refused.value.retry_after_s == 21
        go.set()
        batcher.close()

    @pytest.mark.skipif(sys.platform != "linux", reason="priorities of threads are Linux's")
    def test_a_worker_gives_way(self):
        def priority(_):
            return os.getpriority(os.PRIO_PROCESS, threading.get_native_id())

        batcher = Batcher(lambda items: [priority(item) for item in items], start=giving_way(19, 1))
        assert batcher.submit(0).result(10) == 19 > priority(0) or priority(0) == 19
        batcher.close()

    def test_errors_go_to_whom_they_belong(self):
        batcher = Batcher(lambda items: [ValueError("odd") if item % 2 else item for item in items])
        futures = [batcher.submit(k) for k in range(2)]
        assert futures[0].result(10) == 0
        with pytest.raises(ValueError, match="odd"):
            futures[1].result(10)
        batcher.close()
