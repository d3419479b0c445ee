"""What interventions say about several models: a row a model, means over infills and seeds."""

from __future__ import annotations

import json

import pytest

from scripts.comparison import certified
from tests.made_runs import made_certificate


def test_a_figure_is_the_mean_over_the_infills_of_all_tumors(tmp_path):
    made_certificate(tmp_path, painted_out=0.3)
    found = certified.figures(tmp_path)
    expected = {"as they are": 0.95, "painted out": 0.3, "its control": 0.94, "contradict": 0.05, "both right": 0.8}
    assert {name: found[name] for name in expected} == pytest.approx(expected)
    assert found["uncertain"] == 0.02
    assert found["moved in"] is None
    assert (found["worst probe"], found["probe, control"]) == (0.3, 0.05)


def test_where_no_probe_was_asked_none_is_the_worst(tmp_path):
    made_certificate(tmp_path / "seed0", 0.3, probed=0)
    assert certified.figures(tmp_path / "seed0")["worst probe"] is None
    assert certified.write({"ours": [tmp_path / "seed0"]}, tmp_path).endswith("worst probe of ours: none asked")


def test_seeds_are_a_mean_with_the_lowest_and_highest_and_what_was_not_possible_is_na(tmp_path):
    for seed, painted_out in enumerate((0.3, 0.5)):
        made_certificate(tmp_path / "ours" / f"seed{seed}", painted_out)
    folders = {"ours": sorted((tmp_path / "ours").iterdir()), "not run": []}
    text = certified.write(folders, tmp_path)
    head, _, row, _, probes = text.splitlines()
    assert probes == "worst probe of ours: skull 0.30, skull 0.50"
    cells = dict(zip(head.split(" | "), row.split(" | "), strict=True))
    assert (cells["painted out"], cells["moved in"], cells["seeds"]) == ("0.40 (0.30 to 0.50)", "n/a", "2")
    assert (tmp_path / "interventions.md").read_text(encoding="utf-8") == text + "\n"
    written = json.loads((tmp_path / "interventions.json").read_text(encoding="utf-8"))
    assert list(written) == ["ours"]
    assert written["ours"]["seed1"]["painted out"] == pytest.approx(0.5)
    assert written["ours"]["seed1"]["moved in"] is None


def test_a_run_is_certified_once_for_its_weights(tmp_path, monkeypatch):
    asked = []

    def certify_run(run_dir, dataset_dir, datalist_file, part, **options):
        asked.append((part, options))
        made_certificate(run_dir, 0.3, identity="new")

    monkeypatch.setattr(certified, "certify_run", certify_run)
    monkeypatch.setattr(certified, "weights_sha256", lambda folder: "new")
    once = [("test", {"tumors": 60, "harmless": 0, "probes": certified.PROBED})]
    for before in ({"identity": "old"}, {"identity": "new", "probed": 0}):
        asked.clear()
        made_certificate(tmp_path, 0.9, **before)
        for _ in range(2):
            path = certified.certify_missing(tmp_path, {"dataset_dir": "d", "datalist_file": "l"}, tumors=60)
        assert asked == once
    assert json.loads(path.read_text(encoding="utf-8"))["identity"] == "new"
