from __future__ import annotations

import json

import pytest

from scripts.command.locations import CONFIGS
from scripts.comparison.leave_one_source_out import format_rows, hindrance, leave_one_source_out, without_source


def item(name: str, source: str, **more) -> dict:
    return {"image": f"{name}.png", "diagnosis": 0, "source": source, **more}


DATALIST = {
    "name": "both",
    "classes": {"0": "no_tumor", "1": "tumor"},
    "training": [item("a1", "a", group="g1"), item("b1", "b", group="g1"), item("b2", "b", group="g2")],
    "validation": [item("a2", "a", group="g3"), item("b3", "b", group="g4")],
    "test": [item("a3", "a", group="g5"), item("b4", "b", group="g6")],
}


def test_the_source_is_tested_whole_and_nothing_linked_to_it_is_trained_on():
    found, linked = without_source(DATALIST, "a")
    assert [i["image"] for i in found["test"]] == ["a1.png", "a2.png", "a3.png"]
    assert [i["image"] for i in found["training"]] == ["b2.png"], "b1 is a near-duplicate of a1"
    assert [i["image"] for i in found["validation"]] == ["b3.png"]
    assert linked == 1
    assert found["name"] == "both without a"
    assert len(DATALIST["training"]) == 3


def test_one_source_can_not_be_left_out(tmp_path, small_data):
    content = json.loads(small_data.datalist_file.read_text())
    for part in ("training", "validation", "test"):
        content[part] = [i for i in content[part] if i["source"] == "singles"]
    (tmp_path / "one.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match="one source only"):
        leave_one_source_out(str(small_data.dataset_dir), str(tmp_path / "one.json"), tmp_path)


def test_what_hinders_training_is_said():
    assert hindrance({"training": [], "validation": []}) == "nothing is left in training"
    masked = item("x", "a", label="m.png")
    assert hindrance({"training": [masked], "validation": [item("y", "a")]}) == "no mask is left in validation"
    assert hindrance({"training": [masked], "validation": [masked]}) is None


def test_every_source_is_left_out_once_and_a_second_call_trains_nothing(small_data, tmp_path):
    epochs = {"joint": 1, "stage1_segmentation": 1, "stage2_classification": 1, "stage3_joint": 1}
    arguments = (str(small_data.dataset_dir), str(small_data.datalist_file), tmp_path, [str(CONFIGS / "smoke.yaml")])
    patients, singles = rows = leave_one_source_out(*arguments, stage_epochs=epochs)
    assert json.loads((tmp_path / "leave_one_source_out.json").read_text()) == rows
    assert (patients["source"], patients["hindrance"]) == ("patients", "no mask is left in training")
    assert patients["balanced_accuracy"] is None
    assert (singles["source"], singles["n"], singles["hindrance"]) == ("singles", 16, None)
    assert singles["dice"] is None, "the singles have no masks"
    assert 0 <= singles["balanced_accuracy"] <= 1
    metrics = tmp_path / "without_singles" / "evaluation" / "metrics.json"
    before = metrics.stat().st_mtime_ns
    assert leave_one_source_out(*arguments, stage_epochs=epochs) == rows
    assert metrics.stat().st_mtime_ns == before
    lines = format_rows(rows).splitlines()
    assert lines[0].split() == ["source", "left", "out", "n", "dice", "balanced", "accuracy", "roc", "auc"]
    assert lines[1].endswith("not trained: no mask is left in training")
    assert "n/a" in lines[2]
