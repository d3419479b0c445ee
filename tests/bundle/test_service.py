"""The service: right answers, alone and together, and to nobody else's pages."""

from __future__ import annotations

import base64
import gzip
import io
import re
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import nibabel as nib
import numpy as np
import pytest

pytest.importorskip("fastapi", reason="the service's packages are not installed (extra 'service')")
from fastapi.testclient import TestClient
from PIL import Image

from bundle.service import create_app, predict_together
from tests.bundle.served import HOST, LIMITS, post
from tests.scans import head, save_picture


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
