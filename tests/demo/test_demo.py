"""The whole way in one call, on a user's folder with and without masks."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
from PIL import Image

from scripts.command.locations import CONFIGS
from scripts.demo.demo import demo
from scripts.phantoms.dataset import phantom_slice


def check(out, table):
    assert (out / "report.html").stat().st_size > 50_000
    for line in ("Dice over tumor cases", "Balanced accuracy", "Pointing game", "Energy in tumor", "Energy in air"):
        assert line in table
    for run in ("ours", "baseline"):
        metrics = json.loads((out / run / "evaluation" / "metrics.json").read_text(encoding="utf-8"))["test"]["overall"]
        assert f"{metrics['segmentation']['dice']['mean']:.3f}" in table
        assert f"{metrics['classification']['balanced_accuracy']:.3f}" in table
    return metrics


def test_demo_on_a_folder_of_three_classes_with_masks_for_the_tumors(tmp_path):
    data = tmp_path / "mine"
    (data / "masks").mkdir(parents=True)
    for index in range(36):
        kind = ("healthy", "glioma", "meningioma")[index % 3]
        (data / "images" / kind).mkdir(parents=True, exist_ok=True)
        image, mask = phantom_slice([9, index], tumor=index % 3 > 0, size=(120, 128), level_mm=float(index % 12))
        picture = Image.fromarray((255 * image.T).astype(np.uint8))
        picture.save(data / "images" / kind / f"c{index:02d}.jpg", quality=92)
        if index % 3:
            Image.fromarray((255 * mask.T).astype(np.uint8)).save(data / "masks" / f"c{index:02d}.png")
    (data / "images" / "glioma" / "torn.png").write_text("no picture")
    table = demo(tmp_path / "out", data, size=CONFIGS / "smoke.yaml")
    metrics = check(tmp_path / "out", table)
    assert len(metrics["classification"]["confusion_matrix"]) == 3
    datalist = json.loads((tmp_path / "out" / "datalist.json").read_text(encoding="utf-8"))
    assert datalist["classes"]["0"] == "healthy"
    # The stray file is in the report beside the list, and counted in what is printed.
    report = json.loads((tmp_path / "out" / "datalist.report.json").read_text(encoding="utf-8"))
    assert report["unusable"] == [{"file": "images/glioma/torn.png", "reason": report["unusable"][0]["reason"]}]
    counts = [report["figures"][key] for key in ("found", "used", "refused")]
    assert counts == [37, 36, 1]
    assert table.startswith("images: 37 found, 36 used, 1 refused, 0 beyond --limit; reasons and notes in ")
    # Run again, it finds everything done and says the same.
    again = demo(tmp_path / "out", data, size=CONFIGS / "smoke.yaml")
    timeless = [re.sub(r"in [\d.]+ minutes", "in some minutes", text) for text in (again, table)]
    assert timeless[0] == timeless[1]


def test_demo_on_real_images(real_data, tmp_path):
    if not (real_data / "brisc2025").is_dir():
        pytest.skip(f"no brisc2025 in {real_data}")
    table = demo(tmp_path / "out", real_data / "brisc2025", limit=60, size=CONFIGS / "smoke.yaml")
    metrics = check(tmp_path / "out", table)
    assert len(metrics["classification"]["confusion_matrix"]) == 4
    # The foreground mask of real images cuts no tumor off.
    assert metrics["segmentation"]["label_coverage"]["mean"] == 1.0
