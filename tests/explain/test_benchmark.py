from __future__ import annotations

import json

import pytest
import torch

from benchmarks import explain as benchmark


@pytest.fixture(scope="module")
def small():
    return benchmark.make_network((4, 6, 8, 8), 6), benchmark.make_image(32)


def test_one_run_times_everything_and_compares_the_maps(small):
    rows = benchmark.measure(*small, repeats=1)
    assert rows[0].forward_passes == 1.0
    assert all(row.forward_passes > 0 and row.milliseconds > 0 for row in rows)
    assert {row.name: row.target for row in rows if row.target} == {
        "prediction + class map (evidence)": 1.05,
        "class map alone (evidence)": 0.45,
        "prediction + four decoder maps, one pass": 1.8,
    }
    compared = [row for row in rows if row.difference is not None and not row.name.startswith("pytorch-grad-cam")]
    assert [row.name.split(",")[0] for row in compared] == [
        "prediction + four decoder maps",
        "class map by Grad-CAM",
        "Score-CAM",
    ]
    assert max(row.difference for row in compared) < 1e-5


def test_the_comparison_notices_another_map(small):
    network, x = small
    stock = benchmark.stock_maps(network, x, ["head.features"], "cls", 1)
    assert benchmark._difference(stock, stock, (32, 32)) == 0
    other = benchmark.stock_maps(network, x, ["bottleneck"], "seg", 1)
    assert benchmark._difference({"head.features": other["bottleneck"]}, stock, (32, 32)) > 0.1
    with pytest.raises(ValueError, match="is empty: it proves nothing"):
        benchmark._difference(stock, {"head.features": torch.zeros(1, 1, 32, 32)}, (32, 32))


def test_a_volume_in_windows_is_compared_with_its_plain_inference():
    network = benchmark.make_patch_network(16, (4, 6, 8, 8), 6)
    seconds = iter(range(1000))  # each job takes one tick: the ratio is 1
    row = benchmark.measure_windows(network, torch.rand(1, 1, 24, 16, 16), 1, lambda: float(next(seconds)))
    assert (row.forward_passes, row.milliseconds, row.target) == (1.0, 1000.0, 1.3)
    with pytest.raises(ValueError, match="in one piece"):
        benchmark.measure_windows(network, torch.rand(1, 1, 16, 16, 16), 1)


def test_rows_say_what_was_met():
    assert benchmark.Row("a", 1.5, 10.0).met
    assert benchmark.Row("a", 1.5, 10.0, 1.8, 1e-6).met
    assert not benchmark.Row("a", 1.9, 10.0, 1.8).met
    assert not benchmark.Row("a", 1.5, 10.0, 1.8, 1e-3).met
    assert "| a | 1.90 | 10.0 | <= 1.8: MISSED |  |" in benchmark.table([benchmark.Row("a", 1.9, 10.0, 1.8)])


def test_command_line(tmp_path, monkeypatch, capsys, small):
    monkeypatch.setattr(benchmark, "make_network", lambda: small[0])
    monkeypatch.setattr(benchmark, "measure", lambda *_, **__: [benchmark.Row("a", 1.9, 10.0, 1.8)])
    monkeypatch.setattr(benchmark, "measure_windows", lambda *_, **__: benchmark.Row("b", 1.2, 10.0, 1.3))
    out = tmp_path / "explain.json"
    assert benchmark.main(["--size", "32", "--repeats", "1", "--out", str(out)]) == 0
    assert "MISSED" in capsys.readouterr().out
    written = json.loads(out.read_text(encoding="utf-8"))
    assert written["rows"] == [
        {"name": "a", "forward_passes": 1.9, "milliseconds": 10.0, "target": 1.8, "difference": None},
        {"name": "b", "forward_passes": 1.2, "milliseconds": 10.0, "target": 1.3, "difference": None},
    ]
    assert benchmark.main(["--size", "32", "--check"]) == 1
    with pytest.raises(ValueError, match="--repeats: expected 1 or more"):
        benchmark.main(["--repeats", "0"])
