"""The report in a real browser: the viewer of cases, and what axe-core finds."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
from PIL import Image

from scripts.pictures.overlays import colorize
from scripts.report.case_browser import case_browser
from scripts.runs.reading import Run
from tests.report.pages import BROWSER, FLAGS, look_up

ROWS = "() => [...document.querySelectorAll('#case-table tbody tr')].filter(r => !r.hidden).map(r => r.innerText)"
PIXELS = """() => { const c = document.getElementById('case-canvas');
    return [c.width, c.height, [...c.getContext('2d').getImageData(0, 0, c.width, c.height).data]]; }"""


@pytest.fixture(scope="module")
def page(demo):
    if BROWSER is None:
        pytest.skip("no Chromium on this machine")
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    faults: list[str] = []
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=BROWSER, args=FLAGS)
        page = browser.new_page(viewport={"width": 1280, "height": 900})
        page.set_default_timeout(60_000)
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.goto((demo / "report.html").as_uri())
        page.locator("#all").click()
        yield page
        browser.close()
    assert faults == []


def slide(page, name, value):
    script = "(e, v) => { e.value = v; e.dispatchEvent(new Event('input')); }"
    page.locator(f"#case-{name}").evaluate(script, str(value))


def seen(page):
    width, height, values = page.evaluate(PIXELS)
    return np.array(values, dtype=int).reshape(height, width, 4)[..., :3]


def test_the_viewer_lays_the_map_over_the_image_as_the_sliders_say(demo, page):
    packed = np.asarray(Image.open(demo / "ours/evaluation/cases/p000_layers.png")).astype(float)
    gray, heat = packed[..., :1], packed[..., 1]
    page.wait_for_function("document.getElementById('case-words').textContent.startsWith('p000: truth tumor')")
    for name in ("true", "predicted"):
        page.locator(f"#case-{name}").uncheck()
    for opacity, start in ((0, 0), (100, 0), (60, 50)):
        slide(page, "opacity", opacity)
        slide(page, "from", start)
        alpha = (opacity / 100 * heat / 255 * ((heat > 0) & (heat / 255 >= start / 100)))[..., None]
        expected = (1 - alpha) * gray + alpha * colorize(heat / 255)
        assert np.abs(seen(page) - expected).max() <= 0.5 + 1e-9
    shown = int(((heat / 255 >= 0.5) & (heat > 0)).sum())
    assert f"Map from 0.50: {shown} pixels" in page.locator("#case-words").inner_text()
    plain = seen(page)
    page.locator("#case-true").check()
    cyan = (seen(page) == [0, 229, 255]).all(axis=2)
    inside = packed[..., 2].astype(int) & 64 > 0
    assert cyan.any()
    assert not (cyan & inside).any(), "the line lies outside, so that the mask stays visible"
    assert (seen(page)[~cyan] == plain[~cyan]).all()


def test_cases_are_sorted_filtered_and_opened_by_keyboard(page):
    assert len(page.evaluate(ROWS)) == 36
    dice = page.locator("#case-table th button", has_text="Dice")
    dice.focus()
    page.keyboard.press("Enter")
    values = [row.split("\t")[5] for row in page.evaluate(ROWS)]
    scored = [float(value) for value in values if value != "n/a"]
    assert values[len(scored) :] == ["n/a"] * 24, "what has none stands last"
    assert scored == sorted(scored)
    assert page.locator("th[aria-sort=ascending]").inner_text().startswith("Dice")
    page.locator("#case-kind").select_option("pictured")
    assert [row.split("\t")[0] for row in page.evaluate(ROWS)] != []
    assert page.locator("#case-count").inner_text() == "2 of 36"
    page.locator("button.open", has_text="p003").focus()
    page.keyboard.press("Enter")
    page.wait_for_function("document.getElementById('case-words').textContent.startsWith('p003: ')")
    page.locator("#case-after").focus()
    page.keyboard.press("Space")
    page.wait_for_function("document.getElementById('case-words').textContent.startsWith('p000: ')")
    page.locator("#case-kind").select_option("")
    page.locator("#case-text").fill("s001")
    assert [row.split("\t")[0] for row in page.evaluate(ROWS)] == ["s001"]
    page.locator("#case-text").fill("")


def test_the_slices_of_a_volume_are_gone_through_by_wheel_slider_and_keyboard(demo, page):
    packed = np.asarray(Image.open(demo / "ours/evaluation/cases/p003_layers.png"))
    high = len(packed) // 5
    page.locator("button.open", has_text="p003").click()
    page.wait_for_function("document.getElementById('case-words').textContent.startsWith('p003: ')")
    assert page.locator("#case-slice-value").inner_text() == "15 of 32", "the one that its pictures show"
    for name in ("true", "predicted"):
        page.locator(f"#case-{name}").uncheck()
    slide(page, "opacity", 0)
    assert seen(page).shape == (high, packed.shape[1], 3)

    def shows(k, number):
        assert page.locator("#case-slice-value").inner_text() == f"{number} of 32"
        assert f"axial slice {number} of 32" in page.locator("#case-words").inner_text()
        assert (seen(page)[..., 0] == packed[k * high : (k + 1) * high, :, 0]).all()

    shows(2, 15)
    page.locator("#case-canvas").hover()
    page.mouse.wheel(0, 100)
    page.wait_for_function("document.getElementById('case-slice-value').textContent === '17 of 32'")
    shows(3, 17)
    page.locator("#case-canvas").focus()
    for _ in range(3):
        page.keyboard.press("PageUp")
    shows(4, 19)
    slide(page, "slice", 0)
    shows(0, 11)
    page.locator("button.open", has_text="p000").click()
    page.wait_for_function("document.getElementById('case-words').textContent.startsWith('p000: ')")
    assert page.locator("#case-slices").is_hidden()
    assert "slice" not in page.locator("#case-words").inner_text()
    for name in ("true", "predicted"):
        page.locator(f"#case-{name}").check()
    slide(page, "opacity", 60)


def test_the_image_is_made_larger_and_moved_by_mouse_keyboard_and_buttons(page):
    page.wait_for_function("document.getElementById('case-words').textContent !== ''")
    page.locator(".frame").scroll_into_view_if_needed()
    canvas, frame = page.locator("#case-canvas"), page.locator(".frame").bounding_box()
    whole, colors = canvas.bounding_box(), seen(page)
    spot = (frame["x"] + 0.3 * frame["width"], frame["y"] + 0.6 * frame["height"])

    def share():
        """Where in the image the spot lies."""
        box = canvas.bounding_box()
        return [
            (spot[k] - box[side]) / box[length] for k, (side, length) in enumerate((("x", "width"), ("y", "height")))
        ]

    before = share()
    page.mouse.move(*spot)
    page.keyboard.down("Control")
    page.mouse.wheel(0, -100)
    page.mouse.wheel(0, -100)
    page.keyboard.up("Control")
    page.wait_for_function("document.getElementById('case-zoom').textContent === '2.2 times'")
    assert canvas.bounding_box()["width"] == pytest.approx(whole["width"] * np.exp(0.8), rel=0.01)
    assert share() == pytest.approx(before, abs=0.01), "what is under the mouse stays there"
    start = canvas.bounding_box()
    page.mouse.down()
    page.mouse.move(spot[0] + 30, spot[1] - 20, steps=3)
    page.mouse.up()
    moved = canvas.bounding_box()
    assert (moved["x"] - start["x"], moved["y"] - start["y"]) == pytest.approx((30, -20), abs=1)
    canvas.focus()
    page.keyboard.press("ArrowRight")
    assert canvas.bounding_box()["x"] == pytest.approx(moved["x"] - 40, abs=1)
    for _ in range(20):
        page.keyboard.press("ArrowLeft")
    assert canvas.bounding_box()["x"] == pytest.approx(frame["x"], abs=1), "not out of its frame"
    page.keyboard.press("-")
    assert page.locator("#case-zoom").inner_text() == "1.8 times"
    page.keyboard.press("0")
    assert canvas.bounding_box() == pytest.approx(whole)
    page.locator("#case-nearer").click()
    assert page.locator("#case-zoom").inner_text() == "1.5 times"
    page.locator("#case-whole").click()
    assert canvas.bounding_box() == pytest.approx(whole)
    assert (seen(page) == colors).all(), "its colors are those of the files whatever its size"


def test_in_print_every_case_and_column_has_its_name(page):
    page.emulate_media(media="print")
    names = [row.split("\t")[0] for row in page.evaluate(ROWS)]
    heads = page.locator("#case-table th").all_inner_texts()
    page.emulate_media(media="screen")
    assert {"p000", "p003", "s001"} <= set(names)
    assert "" not in names
    assert [head.partition(" ")[0] for head in heads] == [
        "Case",
        "Source",
        "Truth",
        "Called",
        "Tumor",
        "Dice",
        "Picture",
    ]


# What a reader asks, the clicks (names in the table of contents, then what lies in the section), and what is read then.
READER = {
    "On whom was it trained?": ((), ".lead", r"Trained on 10 patients, 40 single images"),
    "On how many cases do the figures of the maps rest?": ((), ".lead", r"In the 12 test cases with a tumor mask"),
    "How good are its masks, and how sure is that?": ((), "#six", r"Dice\s+0\.\d+ 0\.\d+ to 0\.\d+"),
    "Is it better than the other one?": ((), "#six", r"(better|worse) \(false: .*%\)|not settled"),
    "What must I not rely on?": ((), ".relied", r"No shortcut audit lies in the run"),
    "What should be done next?": ((), ".next", r"python -m scripts certify"),
    "Does the verdict depend on the tumor?": (("Certificate",), "#certificate", r"not measured|painted out"),
    "Which kind of error is more frequent?": (("Classification",), "#classification", r"Sensitivity(.|\n)*Specificity"),
    "Which case is worst, and what does it look like?": (("Cases", "Dice"), "#cases", r"p\d+\s+patients"),
    "Where did it look in a case?": (("Picture",), "#picture", r"in tumor \d"),
    "Does it stand noise?": (("Robustness",), "#robustness", r"Corruption(.|\n)*noise"),
    "How is it run again?": (("Reproduce",), "#reproduce", r"Command\s+scripts/demo"),
}

OPEN = "place => document.querySelector(place).open"


def test_a_reader_finds_each_answer_in_two_clicks(demo, page):
    reader = page.context.browser.new_page(viewport={"width": 1280, "height": 800})
    for question, (clicks, place, answer) in READER.items():
        reader.goto((demo / "report.html").as_uri())
        for name in clicks[:1]:
            reader.locator("nav a", has_text=name).first.click()
            reader.wait_for_function(OPEN, arg=place)  # the page opens it once the address has changed
        for name in clicks[1:]:
            reader.locator(f"{place} thead button", has_text=name).click()
        assert len(clicks) <= 2
        shown = reader.locator(place)
        assert re.search(answer, shown.inner_text(), re.IGNORECASE), question
        top = shown.bounding_box()["y"]
        assert -20 <= top < 800, f"{question} is not on the screen"
    reader.close()


def test_the_first_screen_holds_table_picture_caveats_and_the_next_step(demo, page):
    reader = page.context.browser.new_page(viewport={"width": 1280, "height": 800})
    reader.goto((demo / "report.html").as_uri())
    for place in ("h1", ".lead", "#six", ".glance figure >> nth=0", ".glance figure >> nth=1", ".next"):
        box = reader.locator(place).bounding_box()
        assert box["y"] + box["height"] <= 800, place
    assert reader.locator("#six tbody tr").count() == 6
    assert reader.locator(".relied > ul > li").count() == 3
    reader.set_viewport_size({"width": 390, "height": 844})
    assert reader.evaluate("document.documentElement.scrollWidth") <= 390
    reader.close()


@pytest.mark.parametrize("width", [1280, 390])
def test_axe_finds_nothing_serious(page, width):
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe-playwright-python is not installed")
    page.set_viewport_size({"width": width, "height": 900})
    page.evaluate("new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")
    found = axe.Axe().run(page).response
    assert len(found["passes"]) > 20, "it looked at the page"
    grave = [rule for rule in found["violations"] if rule["impact"] in ("serious", "critical")]
    said = [f"{rule['id']}: {rule['help']}: {rule['nodes'][0]['html'][:200]} ({len(rule['nodes'])})" for rule in grave]
    assert said == []


def test_table_and_pictures_are_those_of_the_files(demo):
    browser = case_browser(Run(demo, "ours", "TumorLens", "test"))
    assert list(browser.pictures) == ["p000", "p003"]
    assert browser.slices == {"p003": {"slices": [10, 12, 14, 16, 18], "first": 2, "of": 32}}
    assert browser.chosen == "lowest Dice 1, wrong diagnosis 1, random 1"
    assert (browser.listed, browser.left_out, len(browser.rows)) == (2, 0, 36)
    for row in browser.rows:
        stored = look_up(demo, f"ours/evaluation/cases.csv#/{row['row']}/dice")
        assert row["dice"] == (None if stored is None else float(stored))
    assert browser.rows[0]["shown"] == "lowest Dice, wrong diagnosis"
    assert json.loads((demo / "report.json").read_text(encoding="utf-8"))["cases"] == browser.rows
    assert (demo / "report.html").stat().st_size < 3_000_000


def test_pictures_stop_where_the_page_would_grow_too_large(demo, monkeypatch):
    whole = case_browser(Run(demo, "ours", "TumorLens", "test"))
    monkeypatch.setattr("scripts.report.case_browser.BYTES", len(whole.pictures["p000"]) + 1)
    monkeypatch.setattr("scripts.report.case_browser.ROWS", 10)
    browser = case_browser(Run(demo, "ours", "TumorLens", "test"))
    assert list(browser.pictures) == ["p000"], "the worst first"
    assert (browser.listed, browser.left_out, len(browser.rows)) == (2, 26, 10)
