"""What the tests of the service and its page share: a small predictor, files, and the page in a browser."""

from __future__ import annotations

import os
import re
import threading
import time
import zipfile

import nibabel as nib
import numpy as np
import pytest

from bundle.predictor import Predictor
from bundle.uploads import UploadLimits
from tests.bundle.driven import BROWSER, FLAGS, Driven
from tests.bundle.served import HOST, LIMITS
from tests.data.volume_files import write_series
from tests.ports import free_port
from tests.scans import head, oblique, save, save_picture, write_overlay
from transforms.limits import ReadLimits

PAGE_LIMITS = UploadLimits(4 << 20, 8 << 20, 64, ReadLimits(pixels=1 << 16, voxels=1 << 18, side=512))
NO_SERVICE = "the service's packages are not installed (extra 'serve')"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("bundle")


@pytest.fixture(scope="module")
def predictor(folder):
    return Predictor(overlay=write_overlay(folder))


@pytest.fixture(scope="module")
def files(folder):
    """A picture, and a volume that is stored in another order of axes."""
    volume = head()
    return {
        "picture": save_picture(folder / "picture.png", volume[:, :, 4]),
        "volume": save(folder / "volume.nii.gz", volume, oblique(), "SRA"),
    }


@pytest.fixture(scope="module")
def client(predictor):
    pytest.importorskip("fastapi", reason=NO_SERVICE)
    from fastapi.testclient import TestClient

    from bundle.service import create_app

    with TestClient(create_app(predictor, LIMITS), raise_server_exceptions=False, base_url=HOST) as client:
        yield client


@pytest.fixture(scope="module")
def scans(folder, files):
    """What a reader gives the page: `files`, a zipped DICOM series, and two that cannot be read."""
    found = {
        **files,
        "broken": folder / "my scan.png",
        "huge": folder / "huge.nii.gz",
        "zip": folder / "series.zip",
    }
    found["broken"].write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(40))
    nib.save(nib.Nifti1Image(np.zeros((128, 128, 40), np.uint8), np.eye(4)), found["huge"])
    write_series(folder / "series", np.clip(head(), 0, 255), np.diag([1.0, 1.0, 1.0]), "p1")
    with zipfile.ZipFile(found["zip"], "w") as archive:
        for path in sorted((folder / "series").iterdir()):
            archive.write(path, path.name)
    return found


@pytest.fixture(scope="module")
def address(predictor):
    """Of the page, served by a thread."""
    pytest.importorskip("fastapi", reason=NO_SERVICE)
    import uvicorn

    from bundle.service import create_app

    port = free_port()
    server = uvicorn.Server(uvicorn.Config(create_app(predictor, PAGE_LIMITS), port=port, log_level="warning"))
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
    if BROWSER is None:
        pytest.skip("no Chromium on this machine")
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=BROWSER, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def driven(browser, address, request):
    """The page as opened; no fault may be left in its console. A parameter keeps the page's own policy."""
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
