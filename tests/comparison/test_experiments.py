from __future__ import annotations

import json
import re
import shutil

import pytest

from scripts.__main__ import main as command
from scripts.command.errors import one_sentence_errors
from scripts.command.files import write_json
from scripts.comparison import comparison_files
from scripts.comparison.comparison import compare
from scripts.report import report
from scripts.runs.documents import format_number
from tests.made_runs import made_model
from tests.report.demo_runs import RUNS, make_demo
from tests.report.pages import Page, look_up

LEFT_OUT = [
    {
        "source": "clinic", "n": 7, "training": 30, "linked": 2, "hindrance": None, "dice": 0.61,
        "dice_ci95": [0.5, 0.7], "balanced_accuracy": 0.72, "balanced_accuracy_ci95": [0.6, 0.8], "roc_auc": None,
        "roc_auc_ci95": [None, None],
    },
    {
        "source": "atlas", "n": 3, "training": 0, "linked": 0, "hindrance": "no mask is left in training",
        "dice": None, "dice_ci95": [None, None], "balanced_accuracy": None, "balanced_accuracy_ci95": [None, None],
        "roc_auc": None, "roc_auc_ci95": [None, None],
    },
]  # fmt: skip


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    return make_demo(tmp_path_factory.mktemp("experiments"), count=6, size=32)


def compared(folder, datalist="f" * 64, name="comparison"):
    models = [made_model(datalist=datalist), made_model("other", datalist=datalist, dice=[0.7, 0.5, 0.4])]
    comparison_files.write(compare(models), folder, name)
    return folder


def page_of(demo, *experiments):
    folders = [str(folder) for folder in experiments] or None
    return report.write_report(demo, RUNS, "page.html", experiments=folders).read_text(encoding="utf-8")


def test_experiments_beside_the_runs_stand_on_the_page_and_every_number_equals_its_file(demo):
    assert "experiment-comparison" not in page_of(demo)
    compared(demo / "comparison")
    write_json(LEFT_OUT, demo / "sources" / "leave_one_source_out.json")
    try:
        text = page_of(demo)
        page = Page(text)
        own = [n for n in page.numbers if n["data-source"].startswith(("comparison/", "sources/"))]
        assert len({n["data-source"] for n in own}) > 20
        for number in own:
            stored = look_up(demo, number["data-source"])
            value = None if number["data-value"] == "" else float(number["data-value"])
            assert value == stored, number
            assert number["text"] == format_number(stored, number["data-kind"]), number
    finally:
        shutil.rmtree(demo / "comparison")
        shutil.rmtree(demo / "sources")
    shown = {n["data-source"]: n["text"] for n in own}
    assert shown["comparison/comparison.json#/rows/1/difference/dice/difference"] == "-0.100"
    assert shown["sources/leave_one_source_out.json#/0/dice"] == "0.610"
    assert "not trained: no mask is left in training" in page.text
    assert {"experiment-comparison", "sources"} <= page.ids
    assert {"#experiment-comparison", "#sources"} <= set(page.addresses)
    assert not re.search(r"https?://|url\(|@import", text)


def test_an_experiment_on_another_datalist_is_said_to_be_on_one(demo, tmp_path):
    (trained,) = {json.loads(p.read_text(encoding="utf-8"))["datalist_sha256"] for p in demo.glob("*/*/manifest.json")}
    note = "These models were trained on another datalist"
    assert note not in page_of(demo, compared(tmp_path / "same", trained))
    assert note in page_of(demo, compared(tmp_path / "other", "e" * 64))


def test_named_folders_are_taken_and_one_without_an_experiment_is_refused(demo, tmp_path, capsys):
    made = compared(tmp_path / "made", name="ablation")
    command(["report", str(demo), "--experiment", str(made), "--out", "named.html"])
    assert "experiment-ablation" in Page((demo / "named.html").read_text(encoding="utf-8")).ids
    with pytest.raises(SystemExit), one_sentence_errors():
        command(["report", str(demo), "--study", str(tmp_path)])
    said = capsys.readouterr().err
    assert (
        f"{tmp_path} holds no experiment: expected comparison.json, ablation.json or leave_one_source_out.json" in said
    )
