"""The page in a real browser: pictures, volumes, DICOM, broken and huge files, ten files; what is seen is saved."""

from __future__ import annotations

import base64
import csv
import io
import json
import os
import re
import shutil
import threading
import time
import zipfile

import nibabel as nib
import numpy as np
import pydicom
import pytest

pytest.importorskip("fastapi", reason="the service's packages are not installed (extra 'serve')")
pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
import uvicorn
from PIL import Image
from playwright import sync_api

from bundle.predictor import Predictor
from bundle.service import create_app
from bundle.uploads import UploadLimits
from scripts.inference.results import verdict_in_words
from tests.data.volume_files import write_series
from tests.dicom.series import write_series as write_placed
from tests.ports import free_port
from tests.scans import head, oblique, save, save_picture, write_overlay
from transforms.limits import ReadLimits

# Here, as other libraries change the locale that it reads its script by.
axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe-playwright-python is not installed")
BROWSER = shutil.which("chromium") or shutil.which("google-chrome")
if BROWSER is None:
    pytest.skip("no Chromium on this machine", allow_module_level=True)
FLAGS = ["--no-sandbox", "--disable-quic", "--no-first-run", "--disable-background-networking", "--disable-sync"]
CANVAS = "document.getElementById('canvas').toDataURL('image/png')"
LIMITS = UploadLimits(4 << 20, 8 << 20, 64, ReadLimits(pixels=1 << 16, voxels=1 << 18, side=512))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("browser")


@pytest.fixture(scope="module")
def predictor(folder):
    return Predictor(overlay=write_overlay(folder))


@pytest.fixture(scope="module")
def files(folder):
    volume = head()
    found = {
        "picture": save_picture(folder / "picture.png", volume[:, :, 4]),
        "volume": save(folder / "volume.nii.gz", volume, oblique(), "SRA"),
        "broken": folder / "my scan.png",
        "huge": folder / "huge.nii.gz",
        "heavy": folder / "heavy.nii",
        "zip": folder / "series.zip",
    }
    found["broken"].write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(40))
    nib.save(nib.Nifti1Image(np.zeros((128, 128, 40), np.uint8), np.eye(4)), found["huge"])
    found["heavy"].write_bytes(bytes(LIMITS.bytes + 1))
    write_series(folder / "series", np.clip(volume, 0, 255), np.diag([1.0, 1.0, 1.0]), "p1")
    with zipfile.ZipFile(found["zip"], "w") as archive:
        for path in sorted((folder / "series").iterdir()):
            archive.write(path, path.name)
    return found


@pytest.fixture(scope="module")
def address(predictor):
    port = free_port()
    server = uvicorn.Server(uvicorn.Config(create_app(predictor, LIMITS), port=port, log_level="warning"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    end = time.monotonic() + 60
    while not server.started and time.monotonic() < end:
        time.sleep(0.05)
    yield f"http://127.0.0.1:{port}"
    server.should_exit = True
    thread.join(30)


@pytest.fixture(scope="module")
def browser():
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=BROWSER, args=FLAGS)
        yield browser
        browser.close()


class Driven:
    """The page: what a reader does, and what is on the screen then."""

    def __init__(self, page):
        self.page = page

    def give(self, *paths):
        self.page.locator("input.files").first.set_input_files([str(path) for path in paths])

    def read(self, *paths):
        """Give files, and wait until the first of them is shown."""
        self.give(*paths)
        self.page.locator("#tools").wait_for()

    def text(self, name):
        return self.page.locator(f"#{name}").inner_text()

    def slide(self, name, value):
        script = "(e, v) => { e.value = v; e.dispatchEvent(new Event('input')); }"
        self.page.locator(f"#{name}").evaluate(script, str(value))

    def unfold(self, name):
        self.page.locator(f"#{name}").evaluate("e => { e.open = true; }")

    def canvas(self):
        """Colors (H, W, 3) of the viewer."""
        return colors(base64.b64decode(self.page.evaluate(CANVAS).partition(",")[2]))

    def saved(self, name):
        with self.page.expect_download() as download:
            self.page.locator(f"#{name}").click()
        return download.value.suggested_filename, download.value.path().read_bytes()


@pytest.fixture
def driven(browser, address, request):
    faults: list[str] = []
    # The page's policy forbids what the tests put into it.
    lenient = not hasattr(request, "param")
    page = browser.new_page(viewport={"width": 1280, "height": 800}, bypass_csp=lenient)
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.on("console", lambda message: faults.append(message.text) if message.type == "error" else None)
    page.set_default_timeout(30_000)
    page.goto(address)
    page.wait_for_selector("html[data-ready]", state="attached")
    yield Driven(page)
    if kept := os.environ.get("TUMORLENS_SCREENSHOTS"):  # a folder, for those who want to look
        name = re.sub(r"\W+", "_", request.node.name).strip("_")
        page.screenshot(path=f"{kept}/{name}.png", full_page=True)
    page.close()
    assert faults == []


def colors(png) -> np.ndarray:
    """Of a PNG file, (H, W, 3)."""
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB")).astype(int)


def colored(seen) -> int:
    """Pixels of a color; image and ground are gray, letters nearly so."""
    return int((np.ptp(seen, axis=-1) > 50).sum())


def test_at_first_it_says_what_it_takes_with_an_example(driven):
    assert driven.page.locator("#room").is_hidden()
    driven.page.wait_for_function("document.getElementById('example').naturalWidth > 100")
    assert "Not a medical device" in driven.text("notice")
    start = driven.text("start")
    for words in ("What it takes", "Drop files anywhere", "DICOM", "4 MiB", "deletes its copy as soon as it is read"):
        assert words in start


@pytest.mark.parametrize("driven", ["strict"], indirect=True)
def test_the_pages_own_policy_stops_nothing_of_it(driven, files):
    driven.read(files["volume"])
    driven.unfold("maps-part")
    assert driven.text("words")  # what the policy stops is an error of the console, see `driven`


def test_a_picture_is_read_and_the_saved_view_is_the_screen(driven, predictor, files):
    expected = predictor.predict(files["picture"], uncertainty=True)
    words = verdict_in_words(expected.to_json())
    driven.read(files["picture"])
    assert driven.text("words").lower() in words
    assert "± " in driven.text("numbers")
    assert driven.page.locator("#over-slices").is_hidden()
    assert "does not say which side" in driven.page.locator("#details").text_content()
    if not expected.mask.any():
        driven.page.locator("#raw").check()
    both = driven.canvas()
    assert colored(both) > 100
    name, content = driven.saved("save-png")
    shown = colors(content)
    screen = driven.page.locator("#canvas").screenshot()
    assert name == "picture_view.png"
    assert np.array_equal(shown, both)
    corner = (slice(8, -8), slice(8, -8))  # the frame's round corners cover those of the canvas
    assert np.array_equal(colors(screen)[corner], shown[corner])
    name, content = driven.saved("save-mask")
    mask = np.asarray(Image.open(io.BytesIO(content)).convert("L"))
    assert name == "picture_mask.png"
    assert np.array_equal(mask > 0, expected.raw_mask > 0)
    result = json.loads(driven.saved("save-json")[1])
    assert result["tumor_probability"] == expected.probability


def test_opacity_and_threshold_leave_the_brain_as_it_is(driven, predictor, files):
    expected = predictor.predict(files["picture"])
    evidence = np.tanh(expected.raw_evidence / 2)
    driven.read(files["picture"])
    if driven.page.locator("#raw-line").is_visible():
        driven.page.locator("#raw").check()
    driven.page.locator("#mask-on").uncheck()
    driven.slide("threshold", 0.4)
    assert f"evidence from 0.40: {int((evidence >= 0.4).sum())} pixels" in driven.text("volumes")
    assert f"mask: {int((expected.raw_mask > 0).sum())} pixels" in driven.text("volumes")
    driven.slide("map-opacity", 1)
    full = driven.canvas()
    driven.slide("map-opacity", 0.5)
    half = driven.canvas()
    driven.page.locator("#map-on").uncheck()
    plain = driven.canvas()
    image = (slice(0, -46), slice(None))  # above the legend
    changed = (full != plain).any(axis=-1)[image]
    assert 0 < changed.sum() < changed.size / 2
    assert np.array_equal(half[image][~changed], plain[image][~changed])
    assert colored(plain[image]) == 0


def test_the_window_follows_mouse_and_presets(driven, files):
    driven.read(files["picture"])
    driven.page.locator("#map-on").uncheck()
    driven.page.locator("#mask-on").uncheck()
    before, box = driven.canvas(), driven.page.locator("#canvas").bounding_box()
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    driven.page.mouse.move(x, y)
    driven.page.mouse.down()
    driven.page.mouse.move(x, y - 60, steps=3)
    driven.page.mouse.up()
    assert driven.page.locator("#window").input_value() == "by hand"
    assert driven.canvas()[:-46].mean() > before[:-46].mean() + 2, "up is brighter"
    driven.page.locator("#window").select_option("bright parts")
    assert driven.canvas()[:-46].mean() < before[:-46].mean() - 2
    driven.page.mouse.dblclick(x, y)
    assert driven.page.locator("#window").input_value() == "head"
    assert np.array_equal(driven.canvas(), before)


def test_the_picture_is_made_larger_and_moved_and_what_is_saved_is_still_the_screen(driven, files):
    driven.read(files["picture"])
    page, whole = driven.page, driven.canvas()
    box = page.locator("#canvas").bounding_box()
    spot = (box["width"] * 0.4, box["height"] * 0.45)
    page.mouse.move(box["x"] + spot[0], box["y"] + spot[1])
    page.keyboard.down("Control")
    for _ in range(4):
        page.mouse.wheel(0, -100)
    page.keyboard.up("Control")
    page.wait_for_function("document.getElementById('zoom-value').textContent === '5.0 times'")
    near = driven.canvas()
    ratio = near.shape[1] / box["width"]
    column, row = (int(at * ratio) for at in spot)
    around = np.s_[row - 1 : row + 2, column - 1 : column + 2]
    assert np.abs(near[around].astype(int).mean() - whole[around].astype(int).mean()) < 40, "what is under it stays"
    assert np.abs(near.astype(int) - whole).mean() > 3
    name, png = driven.saved("save-png")
    assert name == "picture_view.png"
    assert np.array_equal(colors(png), near), "the saved view is the screen, pixel for pixel"
    page.mouse.move(box["x"] + spot[0], box["y"] + spot[1])
    page.keyboard.down("Shift")
    page.mouse.down()
    page.mouse.move(box["x"] + spot[0] + 50, box["y"] + spot[1] + 20, steps=4)
    page.mouse.up()
    page.keyboard.up("Shift")
    moved, (dx, dy) = driven.canvas(), (round(50 * ratio), round(20 * ratio))
    inner = near[100:300, 150:400].astype(int)
    assert np.abs(moved[100 + dy : 300 + dy, 150 + dx : 400 + dx] - inner).mean() < 2, "it goes along with the mouse"
    assert "5.0 times as large" in page.locator("#canvas").get_attribute("aria-label")
    driven.page.locator("#canvas").focus()
    before = driven.canvas()
    page.keyboard.press("Shift+ArrowRight")
    assert np.abs(driven.canvas()[100:300, 100:300] - before[100:300, 100 + 40 : 300 + 40].astype(int)).mean() < 2
    page.keyboard.press("-")
    assert driven.text("zoom-value") == "4.0 times"
    page.keyboard.press("0")
    assert driven.text("zoom-value") == ""
    assert np.array_equal(driven.canvas(), whole)
    page.locator("#nearer").click()
    assert driven.text("zoom-value") == "1.5 times"
    page.locator("#whole").click()
    assert np.array_equal(driven.canvas(), whole)


def test_a_volume_opens_at_its_finding_and_the_chart_steers(driven, predictor, files):
    expected = predictor.predict(files["volume"])
    driven.read(files["volume"])
    mask = expected.mask if expected.mask.any() else expected.raw_mask
    axes = nib.orientations.io_orientation(expected.affine)
    across, ascending = int(np.flatnonzero(axes[:, 0] == 2)[0]), axes[axes[:, 0] == 2][0, 1] > 0
    areas = np.moveaxis(mask, across, 0).reshape(mask.shape[across], -1).sum(axis=1)[:: 1 if ascending else -1]
    count = len(areas)
    assert driven.text("slice-words") == f"axial slice {int(areas.argmax()) + 1} of {count}"
    milliliters = (expected.mask > 0).sum() * abs(np.linalg.det(expected.affine[:3, :3])) / 1000
    assert f"mask: {milliliters:.2f} ml" in driven.text("volumes")
    chart = driven.page.locator("#chart").bounding_box()
    driven.page.mouse.click(chart["x"] + 30 + (chart["width"] - 38) * 1.5 / count, chart["y"] + 40)
    assert driven.text("slice-words") == f"axial slice 2 of {count}"
    driven.page.locator("#canvas").hover()
    driven.page.mouse.wheel(0, 100)
    assert driven.text("slice-words") == f"axial slice 3 of {count}"
    driven.page.locator("#canvas").press("ArrowDown")
    assert driven.text("slice-words") == f"axial slice 2 of {count}"
    one = driven.canvas()
    driven.page.locator("#layout").select_option("three")
    assert not np.array_equal(driven.canvas(), one)
    name, content = driven.saved("save-mask")
    stored = nib.Nifti1Image.from_bytes(content)
    assert name == "volume_mask.nii"
    assert np.array_equal(np.asarray(stored.dataobj), expected.mask)
    assert np.allclose(stored.affine, nib.load(files["volume"]).affine, atol=1e-5)


@pytest.mark.parametrize("axcodes", ["LPS", "RAS", "SRA", "AIL", "PSR"])
def test_letters_and_slices_are_those_of_the_anatomy(driven, axcodes):
    volume = np.arange(2 * 3 * 4, dtype=np.float32).reshape(2, 3, 4)  # (L, P, S)
    affine = np.diag([-1.0, -1.0, 2.0, 1.0])
    turn = nib.orientations.ornt_transform(
        nib.orientations.io_orientation(affine), nib.orientations.axcodes2ornt(tuple(axcodes))
    )
    image = nib.Nifti1Image(volume, affine).as_reoriented(turn)
    script = """async ([shape, affine, data]) => {
        const {planesOf, walk} = await import('/page/geometry.js');
        const planes = planesOf({shape, affine, picture: false, located: true});
        return Object.fromEntries(Object.entries(planes).map(([name, plane]) => {
            const {start, right, down, columns, rows} = walk(shape, plane, 1);
            const row = r => [...Array(columns).keys()].map(c => data[start + r * down + c * right]);
            const seen = [...Array(rows).keys()].map(row);
            return [name, {letters: plane.letters, seen, mm: plane.mm}];
        })); }"""
    data = image.get_fdata().ravel(order="F").tolist()
    found = driven.page.evaluate(script, [list(image.shape), image.affine.tolist(), data])
    # The right of the patient is on the left of the screen, front and top are upward.
    assert np.array_equal(found["axial"]["seen"], volume[:, :, 1].T)
    assert np.array_equal(found["coronal"]["seen"], volume[:, 1, ::-1].T)
    assert np.array_equal(found["sagittal"]["seen"], volume[1, :, ::-1].T)
    sides = ("left", "right", "top", "bottom")
    letters = {name: "".join(plane["letters"][side] for side in sides) for name, plane in found.items()}
    assert letters == {"axial": "RLAP", "coronal": "RLSI", "sagittal": "APSI"}
    assert found["coronal"]["mm"] == [1, 2]
    tilted = oblique(degrees=30.0).tolist()
    script = """async affine => {
        const {planesOf} = await import('/page/geometry.js');
        return planesOf({shape: [4, 4, 4], affine, picture: false, located: true}); }"""
    both = driven.page.evaluate(script, tilted)["axial"]["letters"]
    assert {both["left"], both["right"]} == {"R", "L"}
    ends = {"".join(sorted(both["top"])), "".join(sorted(both["bottom"]))}
    assert ends in ({"AI", "PS"}, {"AS", "IP"})


def test_a_zipped_series_is_read(driven, predictor, files, folder):
    expected = predictor.predict(folder / "series")
    driven.read(files["zip"])
    assert driven.text("words").lower() in verdict_in_words(expected.to_json())
    assert "voxels" in driven.page.locator("#details").text_content()
    assert driven.page.locator("#over-slices").is_visible()


def test_a_series_is_saved_as_dicom_objects_and_a_picture_is_not(driven, files, folder):
    pytest.importorskip("highdicom", reason="highdicom (the extra dicom) is not installed")
    slices = np.stack([head()[:, :, 2 + k].T for k in range(5)]).astype(np.uint16)
    with zipfile.ZipFile(folder / "placed.zip", "w") as archive:
        for path in write_placed(folder / "placed", "axial", slices).iterdir():
            archive.write(path, path.name)
    driven.read(folder / "placed.zip")
    given = []
    driven.page.on("download", lambda download: given.append(download))
    with driven.page.expect_event("download", lambda one: one.suggested_filename.endswith("_report.dcm")):
        driven.page.locator("#save-dicom").click()
    objects = {one.suggested_filename: pydicom.dcmread(one.path()) for one in given}
    assert {name: made.Modality for name, made in objects.items()} == {
        "placed_segmentation.dcm": "SEG", "placed_evidence.dcm": "OT", "placed_report.dcm": "SR"
    }  # fmt: skip
    assert driven.page.locator("#problem").is_hidden()
    driven.give(files["picture"])
    driven.page.locator("#items button", has_text="picture").click()
    driven.page.locator("#save-dicom").wait_for(state="hidden")


def test_broken_and_huge_files_are_named_as_the_user_names_them(driven, files):
    for name, file, reason in (
        ("my scan.png", "broken", "cannot be read as a picture"),
        ("huge.nii.gz", "huge", "128 x 128 x 40"),
    ):
        driven.give(files[file])
        driven.page.locator("#items button", has_text=name).click()
        driven.page.wait_for_function("document.getElementById('words').textContent === 'This file cannot be read'")
        said = driven.text("numbers")
        assert name in said
        assert reason in said
        assert "/tmp" not in said
        assert "upload" not in said
        assert driven.page.locator("#view").is_hidden()


def test_ten_files_are_a_worklist_with_a_table(driven, predictor, files, folder):
    paths = [files["volume"], files["broken"]]
    for number in range(8):
        paths.append(save_picture(folder / f"{'=' if number == 0 else ''}slice {number}.png", head()[:, :, number + 1]))
    driven.read(*paths)
    driven.page.wait_for_function("document.getElementById('kept').textContent.startsWith('10 of 10 read')")
    rows = driven.page.locator("#items tr").all_inner_texts()
    assert len(rows) == 10
    assert "cannot be read" in rows[1]
    name, content = driven.saved("csv")
    table = list(csv.DictReader(io.StringIO(content.decode())))
    assert name == "tumorlens.csv"
    assert [row["file"] for row in table[:3]] == ["volume.nii.gz", "my scan.png", "'=slice 0.png"]
    for row, path in zip(table[3:], paths[3:], strict=True):
        expected = predictor.predict(path, uncertainty=True)
        assert float(row["tumor_probability"]) == pytest.approx(expected.probability, abs=1e-5)
        assert row["verdict"] == expected.verdict
    assert "my scan.png cannot be read" in table[1]["error"]
    driven.page.locator("#items button", has_text="slice 5.png").click()
    assert driven.page.locator("#items tr.open").inner_text().startswith("slice 5.png")


def test_maps_stand_side_by_side_chosen_by_name_or_in_the_diagram(driven, files):
    driven.read(files["picture"])
    driven.unfold("maps-part")
    driven.page.locator("#method").select_option("hirescam")
    driven.page.locator("#network .able[aria-label='layer bottleneck']").click()
    assert driven.page.locator("#layer").input_value() == "bottleneck"
    driven.page.locator("#replace").click()
    driven.page.locator("#shown li", has_text="hirescam at bottleneck").wait_for()
    one = driven.canvas()
    driven.page.locator("#method").select_option("saliency")
    assert driven.page.locator("#layer-part").is_hidden()
    driven.page.locator("#beside").click()
    driven.page.locator("#shown li", has_text="saliency").wait_for()
    assert driven.page.locator("#shown li").count() == 2
    label = driven.page.locator("#canvas").get_attribute("aria-label")
    assert "hirescam at bottleneck and saliency" in label
    assert not np.array_equal(driven.canvas(), one)
    driven.page.locator("#method").select_option("gradcam")
    assert "offered at head.features alone" in driven.text("remark")
    for method in ("saliency", "gradcam"):  # neither has a map at a layer of the encoder: the page changes the method
        driven.page.locator("#method").select_option(method)
        driven.page.locator("#network .able[aria-label='layer input_block']").click()
        chosen = [driven.page.locator(name).input_value() for name in ("#method", "#layer")]
        assert chosen == ["lrp_places", "input_block"]
        said = driven.page.locator("#remark").inner_text()
        assert said.startswith(f"The method is now lrp places: {method} has no map at input_block.")
    without = driven.page.locator("#network [aria-disabled='true']").evaluate_all("all => all.map(n => n.ariaLabel)")
    assert without  # the decoder, which the classes do not depend on
    assert all(name.startswith("layer upsamples.") for name in without)


def test_what_is_said_without_the_tumor_stands_beside(driven, predictor, files):
    driven.read(files["picture"])
    driven.unfold("without-part")
    if driven.page.locator("#paint").is_disabled():
        assert "No tumor was outlined" in driven.text("painted-words")
        return
    driven.page.locator("#paint").click()
    driven.page.locator("#painted tbody tr").nth(2).wait_for()
    rows = driven.page.locator("#painted tbody tr").all_inner_texts()
    assert [row.split("\t")[0] for row in rows] == ["as it is", "tumor painted over", "control"]
    assert "One image shows one case" in driven.text("painted-words")


def test_nothing_dropped_or_clicked_empties_the_viewer(driven, files):
    driven.read(files["picture"])
    before, box = driven.canvas(), driven.page.locator("#canvas").bounding_box()
    for button in ("left", "right", "middle"):
        driven.page.mouse.click(box["x"] + 20, box["y"] + 40, button=button)
        driven.page.mouse.click(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2, button=button)
    driven.page.keyboard.press("Delete")
    driven.page.keyboard.press("Escape")
    stopped = driven.page.evaluate(
        """() => { const data = new DataTransfer(); data.setData('text/plain', 'words');
        return ['dragover', 'drop'].map(name => !document.getElementById('canvas').dispatchEvent(
            new DragEvent(name, {bubbles: true, cancelable: true, dataTransfer: data}))); }"""
    )
    assert stopped == [True, True]
    assert np.array_equal(driven.canvas(), before)
    driven.page.evaluate(
        """() => { const data = new DataTransfer(); data.items.add(new File(['x'], 'dropped.txt'));
        document.body.dispatchEvent(new DragEvent('drop', {bubbles: true, cancelable: true, dataTransfer: data})); }"""
    )
    driven.page.wait_for_function("document.getElementById('kept').textContent.startsWith('2 of 2 read')")
    assert np.array_equal(driven.canvas(), before), "what is looked at stays"


def test_the_session_ends_with_nothing_left(driven, files):
    driven.read(files["picture"])
    assert "the service has deleted its copies" in driven.text("kept")
    driven.page.locator("#end").click()
    assert driven.text("problem") == (
        "The session has ended: 1 image was removed from this tab; the service keeps none."
    )
    assert driven.page.locator("#start").is_visible()
    assert driven.page.locator("#items tr").count() == 0
    driven.read(files["picture"])
    assert driven.page.locator("#items tr").count() == 1


@pytest.mark.parametrize("width", [1280, 390])
def test_it_is_usable_at_every_width(driven, files, width):
    driven.page.set_viewport_size({"width": width, "height": 800})
    driven.read(files["volume"])
    for part in ("maps-part", "without-part", "reading-part"):
        driven.unfold(part)
    assert driven.page.evaluate("document.documentElement.scrollWidth") <= width
    order = [driven.page.locator(f"#{name}").bounding_box()["y"] for name in ("verdict", "view", "chart")]
    assert order == sorted(order)
    if width == 1280:
        assert driven.page.evaluate("document.documentElement.scrollHeight") <= 800, "one screen"
    found = axe.Axe().run(driven.page).response
    grave = [rule for rule in found["violations"] if rule["impact"] in ("serious", "critical")]
    said = [f"{rule['id']}: {rule['help']}: {rule['nodes'][0]['html'][:200]} ({len(rule['nodes'])})" for rule in grave]
    assert said == []
    assert len(found["passes"]) > 15, "it looked at the page"
