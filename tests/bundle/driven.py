"""The page in a browser: what a reader does, and what is on the screen then."""

from __future__ import annotations

import base64
import io
import shutil

import numpy as np
from PIL import Image

BROWSER = shutil.which("chromium") or shutil.which("google-chrome")
FLAGS = ["--no-sandbox", "--disable-quic", "--no-first-run", "--disable-background-networking", "--disable-sync"]
CANVAS = "document.getElementById('canvas').toDataURL('image/png')"


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


def colors(png) -> np.ndarray:
    """Of a PNG file, (H, W, 3)."""
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB")).astype(int)


def colored(seen) -> int:
    """Pixels of a color; image and ground are gray, letters nearly so."""
    return int((np.ptp(seen, axis=-1) > 50).sum())
