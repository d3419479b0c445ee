"""The page: its parts as functions, and the whole of it in a real browser where one is installed."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import os
import shutil
import socket
import subprocess
import sys
import time

import nibabel as nib
import numpy as np
import pytest

pytest.importorskip("streamlit", reason="the page's packages are not installed (extra 'page')")
from PIL import Image

from bundle import page_views as views
from bundle.predictor import Explanation, Predictor
from bundle.samples import HEALTHY, HEALTHY_VOLUME, PICTURE, VOLUME, draw_samples
from bundle.service_model import describe_model
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
    prediction.probability, prediction.threshold, prediction.verdict = 0.123, 0.5, "no tumor"
    assert views.verdict(prediction) == "No tumor detected (tumor probability 12.3%, threshold 50.0%)"
    prediction.probability, prediction.verdict, prediction.predicted_class = 0.9, "tumor", "glioma"
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
    outlined, inside = np.asarray(opened(mask["data"]).dataobj) > 0, prediction.mask > 0
    assert not (outlined & ~inside).any()
    assert 0 < outlined.sum() < inside.sum()
    assert [layer["opacity"] for layer in (heat, mask)] == [0.6, 0.3]
    assert views.layers(prediction, None, 0.0, 0.6) == []


def test_the_outline_of_the_mask_is_drawn_slice_by_slice(predictions):
    prediction = predictions["volume"]  # stored as (S, R, A): axial slices lie across the first axis
    box = np.zeros(prediction.mask.shape, np.uint8)
    box[1:4, 10:20, 8:16] = 1
    drawn = views.outline(dataclasses.replace(prediction, mask=box))
    expected = box.astype(bool)
    expected[:, 11:19, 9:15] = False
    assert np.array_equal(drawn, expected)
    flat = dataclasses.replace(predictions["picture"], mask=box[1])
    assert np.array_equal(views.outline(flat), expected[1])


def test_each_target_is_offered_the_methods_and_layers_that_can_explain_it(predictions, overlay):
    predictor = Predictor(overlay=overlay)
    model = describe_model(predictor, {"name": "a", "version": 1, "task": "b"})
    picture = np.asarray(predictions["picture"].evidence * 255, np.uint8)
    for target in ("tumor", "segmentation"):
        methods, layers, usual = views.choices(model, target, True)
        assert ("evidence" in methods) == (target == "tumor")
        assert usual in layers
        for layer in layers:
            predictor.explain(picture, "hirescam", layer, target)
        for method in ("gradcam", "gradcam_frozen", "layercam_frozen", "lrp"):  # no layer of the page ends in no map
            offered, remark = views.layers_for(method, layers, usual)
            assert usual in offered
            assert (offered == [usual]) == (method == "gradcam") == ("cancel" in remark)
            assert ("input" in offered) == (method == "lrp")
            for layer in offered:
                assert predictor.explain(picture, method, layer, target).layer == layer
        assert views.layers_for("saliency", layers, usual) == ([], "")


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
def shipped():
    """The shipped weights: the samples are drawn so that they answer them rightly."""
    return Predictor()


@pytest.fixture(scope="module")
def server(folder):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [
        sys.executable, "-m", "streamlit", "run", str(ROOT / "bundle" / "page.py"), "--server.headless", "true",
        "--server.address", "127.0.0.1", "--server.port", str(port), "--browser.gatherUsageStats", "false",
    ]  # fmt: skip
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(
            command, cwd=folder, stdout=subprocess.PIPE, stderr=log, text=True, env={**os.environ, "HOME": str(folder)}
        )
    assert process.stdout is not None
    if not any("URL:" in line for line in process.stdout):
        process.wait()
        pytest.fail((folder / "log").read_text())
    url = f"http://127.0.0.1:{port}"
    yield url
    process.terminate()
    process.wait(30)


class Driven:
    """The page in a browser: what a user does, and what is on the screen then."""

    def __init__(self, page, timeout):
        self.page, self.timeout = page, timeout

    def choose(self, label, option):
        wanted = self.page.get_by_role("option", name=option, exact=True)
        for _ in range(5):  # a script that runs again closes the list
            self.page.get_by_test_id("stSelectbox").filter(has_text=label).click()
            with contextlib.suppress(self.timeout):
                return wanted.click(timeout=12_000)
            self.page.keyboard.press("Escape")
        raise AssertionError(f"{label} does not offer {option}")

    def says(self, text):
        self.page.get_by_text(text, exact=False).first.wait_for()

    def slide(self, label, key):
        """To an end of a slider, "Home" or "End"."""
        self.page.get_by_test_id("stSlider").filter(has_text=label).get_by_role("slider").press(key)

    def canvas(self, wanted):
        """Colors (H, W, 3) of the viewer, once ``wanted`` says so of them and they have come to rest."""
        end, last = time.monotonic() + 30, None
        while time.monotonic() < end:
            self.page.wait_for_timeout(150)
            frames = self.page.locator("iframe")
            box = frames.first.bounding_box() if frames.count() == 1 else None
            if box is None or box["height"] < 100:  # being replaced, or not drawn yet
                continue
            seen = np.asarray(Image.open(io.BytesIO(self.page.screenshot(clip=box))).convert("RGB")).astype(int)
            if last is not None and np.array_equal(seen, last) and wanted(seen):
                return seen
            last = seen
        pytest.fail(
            "the viewer shows nothing"
            if last is None
            else f"the viewer shows something else: {colored(last)} colored pixels, {lit(last)} lit"
        )

    def download(self, button):
        with self.page.expect_download() as download:
            self.page.get_by_role("button", name=button).click()
        return download.value.path().read_bytes()


def colored(seen) -> int:
    """Pixels of a color; image and background of the viewer are gray."""
    return int((np.ptp(seen, axis=-1) > 50).sum())


def lit(seen) -> int:
    return int((seen.max(axis=-1) > 100).sum())


@pytest.fixture(scope="module")
def browser():
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if BROWSER is None:
        pytest.skip("no Chromium on this machine")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=BROWSER, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def driven(browser, server):
    faults: list[str] = []
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.set_default_timeout(60_000)
    page.goto(server)
    page.get_by_text("Drop a brain MR image").wait_for()
    yield Driven(page, pytest.importorskip("playwright.sync_api").TimeoutError)
    assert "Traceback" not in page.content()
    page.close()
    assert faults == []


def test_a_tumor_is_shown_with_mask_and_heatmap_that_follow_the_sidebar(driven, shipped, folder):
    draw_samples(folder / "samples")
    expected = shipped.predict(folder / "samples" / PICTURE, assess_anyway=True)
    driven.says("Not a medical device")
    driven.choose("or a sample", PICTURE)
    driven.says("Tumor detected, most probably")
    driven.says("Heatmap: evidence")
    both = driven.canvas(lambda seen: colored(seen) > 300)

    driven.slide("Opacity of the heatmap", "Home")
    driven.canvas(lambda seen: 50 < colored(seen) < colored(both))  # the mask alone
    driven.slide("Opacity of the heatmap", "End")
    evidence = driven.canvas(lambda seen: colored(seen) > colored(both))
    result = json.loads(driven.download("Result (JSON)"))
    assert result["tumor_detected"]
    assert result["tumor_probability"] == pytest.approx(expected.probability, abs=1e-6)
    mask, heat = (np.asarray(opened(driven.download(f"{name} (NIfTI)")).dataobj)[:, ::-1, 0].T
                  for name in ("Mask", "Heatmap"))  # fmt: skip
    assert np.array_equal(mask, expected.mask)
    assert np.allclose(heat, np.tanh(expected.evidence / 2), atol=1e-6)
    picture = np.asarray(Image.open(io.BytesIO(driven.download("Picture (PNG)")))).astype(int)
    assert picture.shape == (*expected.mask.shape, 3)
    assert colored(picture) > 100

    driven.choose("Method of the heatmap", "hirescam")
    driven.says("Heatmap: hirescam at head.features")
    driven.choose("Layer", "bottleneck")
    driven.says("Heatmap: hirescam at bottleneck")
    driven.canvas(lambda seen: 300 < colored(seen) != colored(evidence))  # another map
    found = json.loads(driven.download("Result (JSON)"))["explanation"]
    assert (found["method"], found["layer"]) == ("hirescam", "bottleneck")

    driven.choose("Layer", "input_block")
    driven.choose("Method of the heatmap", "gradcam")  # has no map at this layer, and is not offered there
    driven.says("Heatmap: gradcam at head.features")
    driven.says("Grad-CAM with exact gradients is offered at head.features alone")
    driven.choose("Method of the heatmap", "lrp")
    driven.choose("Layer", "bottleneck")
    driven.says("Heatmap: lrp at bottleneck")


def test_below_the_threshold_the_image_is_shown_alone(driven):
    driven.choose("or a sample", PICTURE)  # what was shown before is gone
    driven.canvas(lambda seen: colored(seen) > 300)
    driven.choose("or a sample", HEALTHY)
    driven.says("No tumor detected")
    driven.canvas(lambda seen: colored(seen) == 0 and lit(seen) > 5000)
    assert not json.loads(driven.download("Result (JSON)"))["tumor_detected"]
    for button in ("Mask (NIfTI)", "Heatmap (NIfTI)"):
        assert driven.page.get_by_role("button", name=button).count() == 0
    assert driven.page.get_by_test_id("stSlider").count() == 0


def test_own_files_of_four_axes_and_broken_ones(driven, shipped, folder):
    draw_samples(folder / "samples")
    parts = [nib.load(folder / "samples" / name) for name in (HEALTHY_VOLUME, VOLUME)]
    array = np.stack([part.get_fdata(dtype=np.float32)[:, :, 3:6] for part in parts], axis=-1)
    healthy = array[..., 0]
    array[..., 0] = np.where(healthy > 0.1 * healthy.max(), healthy.max() - healthy, 0)  # a contrast of no scanner
    nib.save(nib.Nifti1Image(array, parts[0].affine), folder / "both.nii.gz")
    driven.page.set_input_files("input[type=file]", str(folder / "both.nii.gz"))
    driven.says("not assessed: the image is unlike those that the network was trained on")
    driven.page.get_by_test_id("stCheckbox").filter(has_text="Assess images unlike").click()
    driven.says("Tumor detected, most probably glioma")
    without = driven.canvas(lambda seen: lit(seen) > 2000)
    driven.choose("Volume of the 4D file", "1")
    driven.says("Tumor detected, most probably meningioma")
    driven.says("Heatmap: evidence")
    driven.canvas(lambda seen: lit(seen) > 2000 and (seen.shape != without.shape or (seen != without).any()))
    result = json.loads(driven.download("Result (JSON)"))
    expected = shipped.predict(folder / "both.nii.gz", channel=1, assess_anyway=True)
    assert result["tumor_probability"] == pytest.approx(expected.probability, abs=1e-6)
    assert result["shape"] == list(expected.mask.shape)
    heat = np.asarray(opened(driven.download("Heatmap (NIfTI)")).dataobj)
    assert np.allclose(heat, shipped.explain(folder / "both.nii.gz", channel=1).map, atol=1e-6)

    (folder / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(40))
    driven.page.set_input_files("input[type=file]", str(folder / "broken.png"))
    driven.says("broken.png cannot be used")
