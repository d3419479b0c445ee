"""The benchmark of training runs as it stands, on a network and images that are small enough for a test."""

from __future__ import annotations

import json

import pytest
import torch

from benchmarks import training
from benchmarks.normalization import lost_digits
from benchmarks.rows import Row, table


def test_one_round_measures_every_line_and_writes_it(tmp_path, capsys):
    out = tmp_path / "training.json"
    status = training.main(["--small", "--size", "32", "--batch", "2", "--rounds", "1", "--out", str(out), "--check"])
    rows = {row["name"]: row for row in json.loads(out.read_text(encoding="utf-8"))["rows"]}
    promised = {name: row["target"] for name, row in rows.items() if row["target"] is not None}
    assert promised == {
        "full step / bare forward, loss, backward, AdamW": 1.05,
        "full step, added to that": 1.0,
        "foreground-aware step / plain norm, float32": 1.05,
        **({"foreground-aware step / plain norm, bfloat16": 1.1} if training.HALF == "bfloat16" else {}),
        "as shipped / stock MONAI float32": 0.4,
        "stage 2 epoch / stage 3 epoch": 0.12,
        "the same with cached features, later epochs": 0.02,
        "half without masks / all with": 0.72,
        "loader's share of an epoch, stage 3": 1.0,
        "loader's share of an epoch, stage 2": 1.0,
        "loader's share of an epoch, stage 2 cached": 1.0,
        "gradients of a batch half without masks, difference": 1e-5,
        "normalization at mean/std = 100, error": 1e-4,
    }
    assert all(row["value"] > 0 for row in rows.values() if row["unit"] == "x")
    whole, encoder, head = (row["value"] for name, row in rows.items() if row["unit"] == "GFLOP/image")
    assert whole > 3 * (encoder + head / 3) > 0, "a step is three passes, and the decoder's besides"
    assert rows["gradients of a batch half without masks, difference"]["met"]
    assert status == int(not all(row["met"] for row in rows.values()))
    printed = capsys.readouterr().out
    assert all(f"| {name} |" in printed for name in rows)


def test_digits_are_lost_by_closed_form_sums_and_kept_by_ours():
    x, mask = torch.randn(1, 2, 32, 32) + 100, torch.ones(1, 1, 32, 32)
    assert lost_digits(x, mask) < 1e-5 < lost_digits(x, mask, closed_form=True)


def test_ratios_are_medians_of_the_rounds():
    names = ["full step", "bare step with the loss", "foreground float32", "foreground bfloat16", "instance float32",
             "instance bfloat16", "stock", "stock untuned", "stage 2", "stage 2 cached", "stage 3",
             "half without masks"]  # fmt: skip
    found = {name: [(1.0, 0.01), (2.0, 0.02), (9.0, 0.09)] for name in names}
    found["half without masks"] = [(0.5, 0.0), (1.2, 0.0), (9.0, 0.0)]
    rows = {row.name: row for row in training.rows_of(found, 4)}
    assert rows["half without masks / all with"].value == pytest.approx(0.6)
    assert rows["full step, added to that"].value == 0
    assert rows["loader's share of an epoch, stage 3"].value == pytest.approx(1.0)
    assert not Row("a", 1.2, target=1.0).met
    assert "MISSED" in table([Row("a", 1.2, target=1.0)])


def test_odd_sizes_are_refused():
    with pytest.raises(ValueError, match="--batch even and 2 or more"):
        training.main(["--batch", "3"])
