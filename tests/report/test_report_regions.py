"""A run of several regions on the page: tables by region, and their lines in the viewer of cases."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
from PIL import Image

from scripts.command.files import write_json
from scripts.explain.localization import REGION_MEASURES
from scripts.measures.region_measures import LESION_MEASURES, MEASURES, column, region_summary
from scripts.pictures import overlays
from scripts.pictures.parts import PART_COLORS
from scripts.report import report
from scripts.runs.documents import format_number
from tests.report.demo_runs import RUNS
from tests.report.pages import BROWSER, FLAGS, look_up, read

NAMES = ["whole_tumor", "tumor_core", "enhancing_tumor"]


@pytest.fixture(scope="module")
def demo_of_regions(demo, tmp_path_factory):
    """The made runs, as if they had segmented and explained three regions."""
    folder = tmp_path_factory.mktemp("regions") / "demo"
    shutil.copytree(demo, folder)
    rng = np.random.default_rng(3)
    for run in RUNS:
        path = folder / run / "evaluation" / "metrics.json"
        metrics = json.loads(path.read_text(encoding="utf-8"))
        rows = []
        for k in range(12):
            row = {"cluster": f"p{k}"}
            for name in NAMES:
                row |= {column(m, name): float(rng.random()) for m in (*MEASURES, *LESION_MEASURES)}
                row |= {column("region", name): float(k % 4 > 0), column("found", name): 1.0}
            rows.append(row)
        metrics["test"]["overall"]["regions"] = region_summary(rows, NAMES)
        metrics["mask_thresholds"] = {"whole_tumor": 0.5, "tumor_core": 0.35, "enhancing_tumor": 0.8}
        write_json(metrics, path)
        path = folder / run / "explanations" / "localization.json"
        table = json.loads(path.read_text(encoding="utf-8"))
        for row in table:
            row["regions"] = {name: {"n": 9} for name in NAMES}
            for region in row["regions"].values():
                for key in REGION_MEASURES:
                    region |= {key: float(rng.random()), f"{key}_ci95": [None, None]}
        write_json(table, path)
    path = folder / "ours" / "evaluation" / "cases.json"
    entries = json.loads(path.read_text(encoding="utf-8"))
    for entry in entries:
        entry["regions"] = NAMES
    write_json(entries, path)
    packed = np.asarray(Image.open(folder / "ours" / "evaluation" / "cases" / "p000_layers.png")).copy()
    packed[10:20, 12:24, 2] |= 1  # the true core
    packed[12:16, 14:20, 2] |= 8  # the enhancing tumor as predicted
    overlays.save(packed, folder / "ours" / "evaluation" / "cases" / "p000_layers.png")
    report.write_report(folder, RUNS)
    return folder


def test_the_page_has_the_figures_of_every_region_by_its_name(demo_of_regions):
    page = read(demo_of_regions)
    for name in NAMES:
        assert name.replace("_", " ") in page.text
    assert 'alt="Mean Dice by region"' in (demo_of_regions / "report.html").read_text(encoding="utf-8")
    sources = {}
    for number in page.numbers:
        stored = look_up(demo_of_regions, number["data-source"])
        value = None if number["data-value"] == "" else float(number["data-value"])
        assert value == (None if stored is None else float(stored)), number
        assert number["text"] == format_number(value, number["data-kind"]), number
        sources[number["data-source"]] = number["text"]
    for run in RUNS:
        of = f"{run}/evaluation/metrics.json#/"
        assert sources[f"{of}mask_thresholds/tumor_core"] == "0.35"
        for name in NAMES:
            for key in ("dice/mean", "hd95_mm/mean", "nsd/mean", "lesion_f1/mean", "missed", "n"):
                assert f"{of}test/overall/regions/{name}/{key}" in sources
            assert f"{run}/explanations/localization.json#/0/regions/{name}/peak_distance_mm" in sources


def test_a_run_of_one_region_has_no_table_of_regions(demo):
    assert "By region" not in read(demo).text


def test_the_viewer_draws_the_regions_and_names_their_colors(demo_of_regions):
    if BROWSER is None:
        pytest.skip("no Chromium on this machine")
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=BROWSER, args=FLAGS)
        page = browser.new_page(viewport={"width": 1280, "height": 900})
        page.goto((demo_of_regions / "report.html").as_uri())
        page.locator("#all").click()
        page.wait_for_function("document.getElementById('case-words').textContent.startsWith('p000: ')")
        names = [page.locator(".viewer .swatch").nth(k).inner_text() for k in range(2)]
        assert names == ["tumor core", "enhancing tumor"]

        def lines() -> list[int]:
            width, height, values = page.evaluate(
                """() => { const c = document.getElementById('case-canvas');
                return [c.width, c.height, [...c.getContext('2d').getImageData(0, 0, c.width, c.height).data]]; }"""
            )
            seen = np.array(values).reshape(height, width, 4)[..., :3]
            return [int((seen == color).all(axis=2).sum()) for color in PART_COLORS[:2]]

        core, enhancing = lines()
        assert core > 30
        assert 0 < enhancing <= 20, "half of a line around 4 x 6 pixels"
        page.locator("#case-predicted").uncheck()
        assert lines()[1] == 0
        page.locator("#case-true").uncheck()
        assert lines() == [0, 0]
        browser.close()
