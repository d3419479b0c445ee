"""The page in a real browser, on a phone, a screen and paper."""

from __future__ import annotations

import pytest

from tests.report.pages import BROWSER, FLAGS

# What sticks out to the right of the page and does not scroll in a box of its own.
WIDER = """() => [...document.querySelectorAll("body *")].filter(e => {
  const box = e.closest(".wide");
  if (box && box !== e && getComputedStyle(box).overflowX !== "visible") return false;
  return e.getBoundingClientRect().right > document.documentElement.clientWidth + 1;
}).map(e => e.tagName + "." + e.className + ": " + e.textContent.trim().slice(0, 40))"""
OPEN = "() => [...document.querySelectorAll('details.section')].filter(e => e.open).map(e => e.id)"
UNLOADED = "() => [...document.images].filter(i => !i.complete || !i.naturalWidth).map(i => i.alt)"


@pytest.mark.skipif(BROWSER is None, reason="no Chromium on this machine")
@pytest.mark.parametrize(("width", "medium"), [(390, "screen"), (1280, "screen"), (680, "print")])
def test_in_a_browser_nothing_sticks_out_and_every_picture_is_there(demo, width, medium):
    """A phone, a screen, and A4 less its margins."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    faults: list[str] = []
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=BROWSER, args=FLAGS)
        page = browser.new_page(viewport={"width": width, "height": 900})
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.set_default_timeout(120_000)
        page.emulate_media(media=medium)
        page.goto((demo / "report.html").as_uri())
        if (width, medium) == (1280, "screen"):  # the first screen, without scrolling
            assert page.locator("nav").bounding_box()["y"] < 950, "the made run has long findings"
            assert len(page.evaluate("document.body.innerText").split()) < 900
        assert page.evaluate(OPEN) == ["comparison-table"]
        if medium == "print":
            page.evaluate("window.dispatchEvent(new Event('beforeprint'))")
        else:
            page.locator("nav a", has_text="Reproduce").click()
            page.wait_for_function("document.getElementById('reproduce').open")
            assert page.evaluate(OPEN) == ["comparison-table", "reproduce"]
            page.locator("#all").click()
        assert len(page.evaluate(OPEN)) == page.locator("details.section").count() > 12
        assert page.evaluate(UNLOADED) == []
        assert page.evaluate("document.images.length") > 20
        assert page.evaluate(WIDER) == []
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        number = page.locator("[data-source]").first
        assert number.get_attribute("data-source") in number.get_attribute("title")
        browser.close()
    assert faults == []
