"""OHIF beside the archive: files and DICOMweb under one address, a mask on the side where it belongs."""

from __future__ import annotations

import http.server
import json
import os
import re
import shutil
import threading
import urllib.error
import urllib.request
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from scripts.dicom import archive, viewer
from scripts.dicom.samples import write_sample
from scripts.dicom.viewer import serving
from tests.dicom.test_objects import prediction, write

FLAGS = ["--no-sandbox", "--no-first-run", "--disable-background-networking", "--disable-sync"]
DRAWING = ["--use-gl=angle", "--use-angle=swiftshader", "--enable-unsafe-swiftshader", "--ignore-gpu-blocklist"]


def study_page(address, study):
    return f"{address}/viewer?StudyInstanceUIDs={study}"


@pytest.fixture
def dist(tmp_path):
    folder = tmp_path / "dist"
    folder.mkdir()
    (tmp_path / "secret.txt").write_text("secret")
    for name in ("index.html", "app-config.js", "part.js"):
        (folder / name).write_text(name)
    return folder


@pytest.fixture
def answering():
    """An archive that says what it was asked."""

    class Echo(http.server.BaseHTTPRequestHandler):
        def log_message(self, format, *args):
            pass

        def do_GET(self):
            body = json.dumps([self.path, self.headers["Accept"]]).encode()
            self.send_response(404 if "missing" in self.path else 200)
            self.send_header("Content-Type", "application/dicom+json")
            self.end_headers()
            self.wfile.write(body)

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Echo)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()


def get(url, **headers):
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(urllib.request.Request(url, headers=headers), timeout=10) as answer:
            return answer.status, answer.read().decode(), answer.headers["Content-Type"]
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode(), error.headers["Content-Type"]


def test_files_and_dicomweb_have_one_address(dist, answering):
    with serving(answering, dist) as page:
        assert get(f"{page}/part.js")[:2] == (200, "part.js")
        assert get(study_page(page, "1.2.3"))[:2] == (200, "index.html")
        status, text, kind = get(f"{page}/app-config.js")
        config = json.loads(text.removeprefix("window.config = ").removesuffix(";"))
        roots = {value for key, value in config["dataSources"][0]["configuration"].items() if key.endswith("Root")}
        assert (status, kind, roots) == (200, "text/javascript", {f"{page}/dicom-web"})
        asked = get(f"{page}/dicom-web/studies?limit=2", Accept="application/dicom+json")
        assert asked == (200, '["/dicom-web/studies?limit=2", "application/dicom+json"]', "application/dicom+json")
        assert get(f"{page}/dicom-web/missing")[0] == 404
    with pytest.raises(urllib.error.URLError):
        get(page)


def test_nothing_outside_of_the_viewer_is_served_and_nothing_to_other_names(dist, answering):
    with serving(answering, dist) as page:
        for path in ("/../secret.txt", "/%2e%2e/secret.txt", "//etc/passwd", "/instances"):
            assert get(page + path)[:2] == (200, "index.html"), path
        status, text, _ = get(f"{page}/part.js", Host="elsewhere.org")
        assert (status, text) == (403, "ask for it by the address that it was started with")


def test_an_archive_that_is_gone_and_a_viewer_that_is_not_there_are_one_sentence(dist, tmp_path):
    with serving("http://127.0.0.1:9", dist) as page:
        status, text, _ = get(f"{page}/dicom-web/studies")
        assert status == 502
        assert text.startswith("the archive does not answer")
    with pytest.raises(ValueError, match="holds no OHIF viewer; make viewer fetches it"), serving("x", tmp_path):
        pass


@pytest.fixture(scope="module")
def seen(tmp_path_factory):
    """Viewport of OHIF with a mask in the left half of a head, hosts that it asked, and its own."""
    pydicom = pytest.importorskip("pydicom")
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    browser_file = shutil.which("chromium") or shutil.which("google-chrome")
    if missing := archive.available() or viewer.available() or ("" if browser_file else "no Chromium on this machine"):
        pytest.skip(missing)
    folder = tmp_path_factory.mktemp("viewer")
    files = write_sample(folder / "sent", 2)
    mask, evidence, affine = prediction(folder / "sent")
    mask[:], evidence[:] = 0, 0
    # Where x runs to the patient's right; the left half is where its place in mm (RAS) is below 0.
    left = np.arange(mask.shape[0])[np.linspace(affine[0, 3], affine[0, 3] + affine[0, 0] * 127, 128) < -30][:25]
    # Of 17 slices, which the viewer calls by their instance numbers, 9 to 14; it begins at one of both ends.
    mask[left[0] : left[-1], 50:80, 8:14] = 1
    evidence[left[0] : left[-1], 50:80, 8:14] = np.log(10)
    evidence[left[5] : left[-6], 60:70, 8:14] = np.log(30)
    with archive.running(folder / "archive") as address:
        made = write(folder / "sent", folder / "made", mask, evidence, affine, in_segments=True)
        archive.upload(address, [*files, *made])
        with serving(address) as page, sync_api.sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=browser_file, args=[*FLAGS, *DRAWING])
            tab = browser.new_page(viewport={"width": 1280, "height": 800})
            asked = []
            tab.on("request", lambda request: asked.append(request.url))
            tab.goto(study_page(page, pydicom.dcmread(files[0]).StudyInstanceUID), timeout=120_000)
            tab.get_by_text("Skip all").click(timeout=120_000)
            shown = {}
            for title in ("TumorLens mask", "TumorLens evidence, in steps"):
                tab.get_by_text(title).dblclick(timeout=60_000)
                tab.get_by_text("Do you want to open this Segmentation?").wait_for(timeout=120_000)
                tab.get_by_role("button", name="Yes").click()
                tab.wait_for_timeout(3_000)  # it is drawn a few frames after it is there
                shown[title] = _viewport(tab, folder / f"ohif_{title.split()[1].strip(',')}.png")
                tab.mouse.move(700, 450)
                tab.mouse.wheel(0, -100)  # to the next slice, toward the top of the head
                tab.wait_for_timeout(1_500)
                shown[f"{title}, above"] = _viewport(tab, folder / "ohif_above.png")
            browser.close()
    if kept := os.environ.get("TUMORLENS_SCREENSHOTS"):
        Path(kept).mkdir(parents=True, exist_ok=True)
        for picture in folder.glob("ohif_*.png"):
            shutil.copy(picture, kept)
    return shown, {url.split("/")[2] for url in asked if url.startswith("http")}, page.removeprefix("http://")


def _viewport(tab, picture):
    """Number of the slice that is shown, and its colors (H, W, 3) without the words in the corners."""
    tab.screenshot(path=picture)
    number = int(re.search(r"I:\s*(\d+)", tab.locator("body").inner_text())[1])
    return number, np.array(Image.open(picture).convert("RGB"))[160:740, 300:1220].astype(int)


def colored(shown):
    return np.ptp(shown, axis=2) > 40


@pytest.mark.parametrize("title", ["TumorLens mask", "TumorLens evidence, in steps"])
def test_ohif_shows_mask_and_evidence_on_the_patients_left_which_is_the_screens_right(seen, title):
    number, shown = seen[0][title]
    found = colored(shown)
    assert number == 14
    assert found.sum() > 5_000
    columns = np.flatnonzero(found.any(axis=0))
    assert columns.min() > found.shape[1] / 2, "nothing on the patient's right"
    gray = shown[~found]
    assert (gray.max(axis=1) > 60).mean() > 0.1, "the head is shown too"
    number, above = seen[0][f"{title}, above"]
    assert (number, colored(above).sum()) == (15, 0), "no slice of the mirrored stack shows it"


def test_ohif_shows_the_steps_of_the_evidence_in_their_colors(seen):
    _, shown = seen[0]["TumorLens evidence, in steps"]
    red, green, _ = np.moveaxis(shown, -1, 0)
    weak, strong = (red > 1.5 * green) & colored(shown), (green > 0.7 * red) & colored(shown)
    assert strong.sum() > 500
    assert weak.sum() > 4 * strong.sum()
    middles = [np.argwhere(part).mean(axis=0) for part in (weak, strong)]
    assert np.abs(middles[0] - middles[1]).max() < 15, "the strong lies inside of the weak"


def test_ohif_asks_nobody_but_this_machine(seen):
    _, asked, own = seen
    assert asked == {own}
