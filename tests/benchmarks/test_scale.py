"""The benchmark of predictions by manifest runs the real code and counts what became of every row."""

from __future__ import annotations

import numpy as np

from benchmarks import scale
from scripts.inference.pipeline import Inference


def test_every_row_goes_through_the_real_code():
    found = scale.measure_rows(300)
    assert found["rows"] == 300
    assert set(found) == {"rows", "manifest_cpu_s", "cpu_ms_a_row", "merge_cpu_s", "peak_mib"}


def test_the_tiny_network_predicts(tmp_path):
    inference = Inference(overlay=scale.standard_overlay(tmp_path, scale.SIDE, **scale.TINY), device="cpu")
    scale.draw(np.random.default_rng(0)).resize((scale.SIDE, scale.SIDE)).save(tmp_path / "a.png")
    item = inference.prepare({"image": str(tmp_path / "a.png")})
    assert inference.infer(item)["seg"].shape[-2:] == (scale.SIDE, scale.SIDE)
    assert inference.classes == ["no_tumor", "tumor"]
