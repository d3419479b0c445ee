"""The benchmark of predictions by manifest runs the real code and counts what became of every row."""

from __future__ import annotations

import os

import numpy as np
import pytest
import torch

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


def test_the_cost_is_that_of_the_images_times_the_scans(tmp_path):
    overlay = scale.standard_overlay(tmp_path, scale.SIDE, **scale.TINY)
    for k in range(2):
        scale.draw(np.random.default_rng(k)).resize((scale.SIDE, scale.SIDE)).save(tmp_path / f"{k}.bmp")
    images = [tmp_path / "0.bmp", tmp_path / "1.bmp"]
    found = scale.measure_cost(scale.Recipe(tmp_path / "out", overlays=(overlay,), device="cpu"), images, 2**30)
    assert found["done"] == 2
    assert found["files"] == 2**30 * 4.5  # mask, evidence, overlay and result of each, and the table of all
    assert found["read_gib"] == images[0].stat().st_size
    assert found["cpu_hours"] == pytest.approx(found["cpu_s_a_scan"] * 2**30 / 3600, rel=0.01)


class Link:
    """An end of a pipe that asks for two rounds and keeps what it is told."""

    def __init__(self) -> None:
        self.asked, self.told = [3, 4, None], []

    def recv(self):
        return self.asked.pop(0)

    def send(self, took) -> None:
        self.told.append(took)


def test_a_process_of_one_core_predicts_all_images_each_time(tmp_path):
    overlay = scale.standard_overlay(tmp_path, scale.SIDE, **scale.TINY)
    scale.draw(np.random.default_rng(0)).resize((scale.SIDE, scale.SIDE)).save(tmp_path / "a.bmp")
    link, cores, threads = Link(), os.sched_getaffinity(0), torch.get_num_threads()
    recipe = scale.Recipe(tmp_path / "out", overlays=(overlay,), device="cpu")
    try:
        scale._on_core(link, min(cores), recipe, [tmp_path / "a.bmp"] * 2)
        assert os.sched_getaffinity(0) == {min(cores)}
    finally:
        os.sched_setaffinity(0, cores)
        torch.set_num_threads(threads)
    assert len(link.told) == 2
    assert all(wall > 0 and cpu > 0 for wall, cpu in link.told)
    assert len(list((tmp_path / "out").rglob("*_result.json"))) == 4
