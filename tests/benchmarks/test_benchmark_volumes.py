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


def test_memory_is_compared_with_the_files_and_the_windows_are_counted(tmp_path):
    out = tmp_path / "memory.json"
    small = ["--size", "96", "96", "48", "--enlarge", "2", "--window", "32", "--filters", "2", "2", "2", "2"]
    status = volumes.main([*small, "--memory", "--threads", "0", "--clock", "cpu", "--out", str(out), "--check"])
    rows = {row["name"]: row for row in json.loads(out.read_text(encoding="utf-8"))["rows"]}
    share, peak = rows["peak memory / files as float32"], rows["peak memory"]["value"]
    assert share["value"] == peak / (4 * 96 * 96 * 48 * 4 / 1e9)
    # Not less: the tests before may have held more in this process than this volume takes.
    assert 0 < rows["of it held before the files were read"]["value"] <= peak
    assert any(name.startswith("files to results, ") and name.endswith(" windows") for name in rows)
    assert (share["target"], status) == (3.0, int(share["value"] > 3.0))
