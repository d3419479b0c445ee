"""The benchmark of inference runs as it stands, on a narrow network and a small volume."""

from __future__ import annotations

import json

import pytest

from benchmarks import inference


def test_one_round_measures_every_line_and_writes_it(tmp_path, capsys):
    out = tmp_path / "inference.json"
    sizes = ["--side", "64", "--slices", "3", "--rounds", "1"]
    status = inference.main(["--small", *sizes, "--out", str(out), "--check"])
    rows = {row["name"]: row for row in json.loads(out.read_text(encoding="utf-8"))["rows"]}
    promised = {name: row["target"] for name, row in rows.items() if row["target"] is not None}
    plain = "standard: whole volume without overlay / network"
    assert promised == {"standard: whole volume / network": 1.10, plain: pytest.approx(1 / 0.85)}
    assert all(row["value"] > 0 for row in rows.values())
    # The whole is more than any of its parts, and holds the network's passes.
    parts = [row["value"] for name, row in rows.items() if row["unit"] == "x" and "whole" not in name]
    assert rows["standard: whole volume / network"]["value"] > max(parts)
    assert status == int(not all(row["met"] for row in rows.values()))
    printed = capsys.readouterr().out
    assert all(f"| {name} |" in printed for name in rows)


def test_ratios_are_medians_of_the_rounds():
    seconds = {"network": [1.0, 2.0, 4.0], "whole volume": [1.1, 2.4, 40.0], "overlay": [0.1, 0.2, 0.8]}
    whole, overlay, network = inference.rows_of("shipped", seconds, slices=10)
    assert whole.value == pytest.approx(1.2)
    assert not whole.met
    assert overlay.value == pytest.approx(0.1)
    assert (network.value, network.unit) == (200.0, "ms/slice")


def test_no_rounds_are_refused():
    with pytest.raises(ValueError, match="--rounds and --slices: expected 1 or more"):
        inference.main(["--rounds", "0"])
