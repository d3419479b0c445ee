"""The page: its parts as functions, and the whole of it in a real browser where one is installed."""

from __future__ import annotations

import io
import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request

import nibabel as nib
import numpy as np
import pytest

pytest.importorskip("streamlit", reason="the page's packages are not installed (extra 'page')")
from PIL import Image

from bundle import page_views as views
from bundle.predictor import Explanation, Predictor
from tests.scans import ROOT, head, oblique, save, save_picture, write_overlay

BROWSER = shutil.which("chromium") or shutil.which("google-chrome")
FLAGS = [
    "--no-sandbox", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--use-angle=swiftshader", "--enable-unsafe-swiftshader",
]  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("page")


@pytest.fixture(scope="module")
def overlay(folder):
    return write_overlay(folder)


@pytest.fixture(scope="module")
def predictions(folder, overlay):
    predictor, volume = Predictor(overlay=overlay), head()
    picture = save_picture(folder / "picture.png", volume[:, :, 4])
    stack = save(folder / "volume.nii.gz", volume, oblique(), "SRA")
    return {"picture": predictor.predict(picture), "volume": predictor.predict(stack)}


def opened(data: bytes) -> nib.Nifti1Image:
    return nib.Nifti1Image.from_bytes(data)


def test_the_verdict_names_probability_and_threshold(predictions):
    prediction = predictions["picture"]
    prediction.probability, prediction.threshold, prediction.verdict = 0.123, 0.5, False
    assert views.verdict(prediction) == "No tumor detected (tumor probability 12.3%, threshold 50.0%)"
    prediction.probability, prediction.verdict, prediction.predicted_class = 0.9, True, "glioma"
    assert views.verdict(prediction).startswith("Tumor detected, most probably glioma (tumor probability 90.0%")


def test_a_picture_lies_upright_in_the_viewer():
    rows = np.zeros((4, 6), np.float32)
    rows[0, 5] = 1  # top right
    volume = opened(views.as_nifti(rows, np.eye(4), 0, 0))
    assert volume.shape == (6, 4, 1)
    # To the right on the screen is +x and upward is +y.
    assert np.argwhere(np.asarray(volume.dataobj)).tolist() == [[5, 3, 0]]


def test_overlays_have_the_fixed_scale_and_the_images_grid(predictions):
    prediction = predictions["volume"]
    heat, mask = views.layers(prediction, prediction.evidence, 0.3, 0.6)
    image = opened(heat["data"])
    assert (float(image.header["cal_min"]), float(image.header["cal_max"])) == (pytest.approx(0.02), 1.0)
    assert np.array_equal(np.asarray(image.dataobj), prediction.evidence)
    assert np.allclose(image.affine, prediction.affine, atol=1e-5)
    assert np.array_equal(np.asarray(opened(mask["data"]).dataobj), prediction.mask > 0)
    assert [layer["opacity"] for layer in (heat, mask)] == [0.6, 0.3]
    assert views.layers(prediction, None, 0.0, 0.6) == []


def test_the_picture_shows_the_slice_with_most_of_the_mask(predictions):
    prediction = predictions["volume"]
    sums = (prediction.mask > 0).sum(axis=(0, 1))
    assert sums[views.shown_slice(prediction)] == sums.max() > 0
    gray = np.random.default_rng(0).random(prediction.mask.shape)
    picture = np.asarray(Image.open(io.BytesIO(views.overlay_png(gray, prediction, None))))
    assert picture.shape == (prediction.mask.shape[1], prediction.mask.shape[0], 3)
    plain = picture[..., 0] == picture[..., 1]
    assert 0 < (~plain).sum() < plain.size / 2  # the mask's line is colored, the rest is gray


def test_the_result_holds_prediction_and_explanation(predictions):
    prediction = predictions["picture"]
    explanation = Explanation(prediction.evidence, "gradcam", "bottleneck", "tumor_log_odds", False, "shows where")
    result = json.loads(views.result_json(prediction, explanation, "a.png", {"version": "1"}))
    assert result["explanation"]["layer"] == "bottleneck"
    assert result["tumor_probability"] == prediction.probability
    assert "gradcam at bottleneck, target: tumor log odds. Shows where." in views.caption(explanation)


@pytest.fixture(scope="module")
def server(overlay, folder):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [
        sys.executable, "-m", "streamlit", "run", str(ROOT / "bundle" / "page.py"), "--server.headless", "true",
        "--server.address", "127.0.0.1", "--server.port", str(port), "--browser.gatherUsageStats", "false",
        "--", "--overlay", str(overlay),
    ]  # fmt: skip
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(command, cwd=folder, stdout=log, stderr=log, env={**os.environ, "HOME": str(folder)})
    url, end = f"http://127.0.0.1:{port}", time.monotonic() + 120
    while True:
        try:
            urllib.request.urlopen(url, timeout=5).close()
            break
        except OSError:
            if process.poll() is not None or time.monotonic() > end:
                process.kill()
                pytest.fail((folder / "log").read_text())
    yield url
    process.terminate()
    process.wait(30)


@pytest.mark.skipif(BROWSER is None, reason="no Chromium on this machine")
def test_in_a_browser(server, folder, predictions):
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    faults: list[str] = []
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=BROWSER, args=FLAGS)
        page = browser.new_page(viewport={"width": 1280, "height": 900})
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.set_default_timeout(120_000)
        page.goto(server)
        page.get_by_text("Drop a brain MR image").wait_for()
        page.get_by_text("Not a medical device").wait_for()

        page.set_input_files("input[type=file]", str(folder / "volume.nii.gz"))
        page.get_by_text("tumor probability", exact=False).first.wait_for()
        frame = page.frame_locator("iframe").first
        frame.locator("canvas").wait_for()
        page.get_by_text("Result (JSON)").wait_for()
        with page.expect_download() as download:
            page.get_by_role("button", name="Result (JSON)").click()
        result = json.loads(download.value.path().read_text(encoding="utf-8"))
        assert result["tumor_probability"] == pytest.approx(predictions["volume"].probability, abs=1e-6)
        assert result["shape"] == list(predictions["volume"].mask.shape)

        (folder / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(40))
        page.set_input_files("input[type=file]", str(folder / "broken.png"))
        page.get_by_text("broken.png cannot be used").wait_for()
        assert "Traceback" not in page.content()
        browser.close()
    assert faults == []
