"""The benchmark of volumes as it stands, on a small grid and a narrow network."""

from __future__ import annotations

import json

from benchmarks import volumes


def test_a_small_case_is_measured_and_written(tmp_path, capsys):
    out = tmp_path / "volumes.json"
    sizes = ["--size", "96", "96", "48", "--window", "32", "--filters", "2", "4", "4", "4"]
    status = volumes.main([*sizes, "--threads", "0", "--clock", "cpu", "--out", str(out), "--check"])
    rows = {row["name"]: row for row in json.loads(out.read_text(encoding="utf-8"))["rows"]}
    passes = next(row for name, row in rows.items() if name.startswith("forward passes of"))
    ratio, memory = rows["files to results / forward passes of the windows"], rows["peak memory"]
    assert ratio["value"] == rows["files to results"]["value"] / passes["value"]
    assert (ratio["target"], memory["target"]) == (1.10, 6.0)
    assert 0.1 < memory["value"] < 64
    assert status == int(ratio["value"] > 1.10 or memory["value"] > 6.0)
    assert "| peak memory |" in capsys.readouterr().out
