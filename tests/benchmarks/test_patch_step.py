"""The benchmark of a patch's training step, on a small patch and a narrow network."""

from __future__ import annotations

import json

from benchmarks import patch_step


def test_both_ways_are_measured_in_processes_of_their_own_and_written(tmp_path, capsys):
    out = tmp_path / "step.json"
    status = patch_step.main(["--size", "96", "--filters", "16", "16", "16", "16", "--out", str(out), "--check"])
    rows = {row["name"]: row for row in json.loads(out.read_text(encoding="utf-8"))["rows"]}
    ratio = rows["memory of the step, with / without checkpointing"]["value"]
    without, with_it = (rows[f"of it the step's, {words}"]["value"] for words in patch_step.WAYS.values())
    assert 0.01 < with_it < without < rows["peak memory, as it is"]["value"]
    assert ratio == with_it / without
    assert status == 0
    assert all(rows[f"step, {words}"]["value"] > 0 for words in patch_step.WAYS.values())
    assert "| peak memory, with gradient checkpointing |" in capsys.readouterr().out
