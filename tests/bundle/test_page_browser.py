"""The page in a real browser: what it takes, DICOM, broken and huge files, ten files, the end of a session."""

from __future__ import annotations

import csv
import io
import zipfile

import numpy as np
import pydicom
import pytest

pytest.importorskip("fastapi", reason="the service's packages are not installed (extra 'serve')")
pytest.importorskip("playwright.sync_api", reason="playwright is not installed")

from scripts.inference.results import verdict_in_words
from tests.dicom.series import write_series as write_placed
from tests.scans import head, save_picture

# Here, as other libraries change the locale that it reads its script by.
axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe-playwright-python is not installed")


def test_at_first_it_says_what_it_takes_with_an_example(driven):
    assert driven.page.locator("#room").is_hidden()
    driven.page.wait_for_function("document.getElementById('example').naturalWidth > 100")
    assert "Not a medical device" in driven.text("notice")
    start = driven.text("start")
    for words in ("What it takes", "Drop files anywhere", "DICOM", "4 MiB", "deletes its copy as soon as it is read"):
        assert words in start


@pytest.mark.parametrize("driven", ["strict"], indirect=True)
def test_the_pages_own_policy_stops_nothing_of_it(driven, scans):
    driven.read(scans["volume"])
    driven.unfold("maps-part")
    assert driven.text("words")  # what the policy stops is an error of the console, see `driven`


def test_a_zipped_series_is_read(driven, predictor, scans, folder):
    expected = predictor.predict(folder / "series")
    driven.read(scans["zip"])
    assert driven.text("words").lower() in verdict_in_words(expected.to_json())
    assert "voxels" in driven.page.locator("#details").text_content()
    assert driven.page.locator("#over-slices").is_visible()


def test_a_series_is_saved_as_dicom_objects_and_a_picture_is_not(driven, scans, folder):
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
    driven.give(scans["picture"])
    driven.page.locator("#items button", has_text="picture").click()
    driven.page.locator("#save-dicom").wait_for(state="hidden")


def test_broken_and_huge_files_are_named_as_the_user_names_them(driven, scans):
    for name, file, reason in (
        ("my scan.png", "broken", "cannot be read as a picture"),
        ("huge.nii.gz", "huge", "128 x 128 x 40"),
    ):
        driven.give(scans[file])
        driven.page.locator("#items button", has_text=name).click()
        driven.page.wait_for_function("document.getElementById('words').textContent === 'This file cannot be read'")
        said = driven.text("numbers")
        assert name in said
        assert reason in said
        assert "/tmp" not in said
        assert "upload" not in said
        assert driven.page.locator("#view").is_hidden()


def test_ten_files_are_a_worklist_with_a_table(driven, predictor, scans, folder):
    paths = [scans["volume"], scans["broken"]]
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


def test_the_session_ends_with_nothing_left(driven, scans):
    driven.read(scans["picture"])
    assert "the service has deleted its copies" in driven.text("kept")
    driven.page.locator("#end").click()
    assert driven.text("problem") == (
        "The session has ended: 1 image was removed from this tab; the service keeps none."
    )
    assert driven.page.locator("#start").is_visible()
    assert driven.page.locator("#items tr").count() == 0
    driven.read(scans["picture"])
    assert driven.page.locator("#items tr").count() == 1


@pytest.mark.parametrize("width", [1280, 390])
def test_it_is_usable_at_every_width(driven, scans, width):
    driven.page.set_viewport_size({"width": width, "height": 800})
    driven.read(scans["volume"])
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
