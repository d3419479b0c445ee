"""The viewer of the page in a browser: picture, window, zoom, slices, maps; what is seen is saved."""

from __future__ import annotations

import io
import json

import nibabel as nib
import numpy as np
import pytest

pytest.importorskip("fastapi", reason="the service's packages are not installed (extra 'serve')")
pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
from PIL import Image

from scripts.inference.results import verdict_in_words
from tests.bundle.driven import colored, colors
from tests.scans import oblique


def test_a_picture_is_read_and_the_saved_view_is_the_screen(driven, predictor, scans):
    expected = predictor.predict(scans["picture"], uncertainty=True)
    words = verdict_in_words(expected.to_json())
    driven.read(scans["picture"])
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


def test_opacity_and_threshold_leave_the_brain_as_it_is(driven, predictor, scans):
    expected = predictor.predict(scans["picture"])
    evidence = np.tanh(expected.raw_evidence / 2)
    driven.read(scans["picture"])
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


def test_the_window_follows_mouse_and_presets(driven, scans):
    driven.read(scans["picture"])
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


def test_the_picture_is_made_larger_and_moved_and_what_is_saved_is_still_the_screen(driven, scans):
    driven.read(scans["picture"])
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


def test_a_volume_opens_at_its_finding_and_the_chart_steers(driven, predictor, scans):
    expected = predictor.predict(scans["volume"])
    driven.read(scans["volume"])
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
    assert np.allclose(stored.affine, nib.load(scans["volume"]).affine, atol=1e-5)


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


def test_maps_stand_side_by_side_chosen_by_name_or_in_the_diagram(driven, scans):
    driven.read(scans["picture"])
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


def test_what_is_said_without_the_tumor_stands_beside(driven, predictor, scans):
    driven.read(scans["picture"])
    driven.unfold("without-part")
    if driven.page.locator("#paint").is_disabled():
        assert "No tumor was outlined" in driven.text("painted-words")
        return
    driven.page.locator("#paint").click()
    driven.page.locator("#painted tbody tr").nth(2).wait_for()
    rows = driven.page.locator("#painted tbody tr").all_inner_texts()
    assert [row.split("\t")[0] for row in rows] == ["as it is", "tumor painted over", "control"]
    assert "One image shows one case" in driven.text("painted-words")


def test_nothing_dropped_or_clicked_empties_the_viewer(driven, scans):
    driven.read(scans["picture"])
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
