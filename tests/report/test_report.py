"""The page about runs: its figures, tables and pictures, and where it is written."""

from __future__ import annotations

import csv
import re
import shutil

import pytest
from PIL import Image

from scripts.__main__ import main as command
from scripts.report import report
from scripts.runs.documents import format_number
from tests.report.demo_runs import CLASSES, RUNS
from tests.report.pages import Page, look_up, read


def test_every_number_on_the_page_equals_its_file(demo):
    page = read(demo)
    assert len(page.numbers) > 300
    for number in page.numbers:
        stored = look_up(demo, number["data-source"])
        value = None if number["data-value"] == "" else float(number["data-value"])
        assert value == (None if stored is None else float(stored)), number
        assert number["text"] == format_number(value, number["data-kind"]), number
    files = {number["data-source"].partition("#")[0] for number in page.numbers}
    for run in RUNS:
        for name in ("metrics.json", "cases.csv"):
            assert f"{run}/evaluation/{name}" in files
        for name in ("localization.json", "gallery.json"):
            assert f"{run}/explanations/{name}" in files
    for name in ("uncertainty", "robustness", "scope", "cases"):
        assert f"ours/evaluation/{name}.json" in files


def test_dice_averaged_by_hand_is_the_one_on_the_page(demo):
    with open(demo / "ours" / "evaluation" / "cases.csv", encoding="utf-8", newline="") as file:
        dice = [float(row["dice"]) for row in csv.DictReader(file) if row["dice"]]
    pointer = "ours/evaluation/metrics.json#/test/overall/segmentation/dice/mean"
    shown = [n for n in read(demo).numbers if n["data-source"] == pointer]
    assert len(shown) >= 2, "in the first sentence and in the tables"
    assert all(float(n["data-value"]) == pytest.approx(sum(dice) / len(dice), abs=1e-12) for n in shown)


def test_a_folder_without_the_runs_is_refused_with_those_that_are_there(demo, tmp_path):
    with pytest.raises(FileNotFoundError, match="holds no evaluated run ours nor baseline; evaluate the run first"):
        command(["report", str(tmp_path)])
    with pytest.raises(FileNotFoundError, match="no evaluated run theirs; evaluated runs in it: baseline, ours"):
        command(["report", str(demo), "--run_dir", "theirs"])


def test_one_run_alone_is_reported_into_its_own_folder(demo, capsys):
    command(["report", str(demo / "ours")])
    page = demo / "ours" / "report.html"
    assert str(page) in capsys.readouterr().out
    assert "ours on phantoms" in page.read_text(encoding="utf-8")
    page.unlink()


def test_evaluations_on_other_data_have_a_table(demo, tmp_path):
    folder = demo / "ours" / "evaluation_elsewhere"
    shutil.copytree(demo / "ours" / "evaluation", folder)
    try:
        page = Page(report.write_report(demo, RUNS, out=tmp_path / "x.html").read_text(encoding="utf-8"))
    finally:
        shutil.rmtree(folder)
    assert "TumorLens on other data" in page.text
    pointer = "ours/evaluation_elsewhere/metrics.json#/test/overall/segmentation/dice/mean"
    assert pointer in {n["data-source"] for n in page.numbers}


def test_comparison_shows_value_interval_and_n_of_both_runs(demo):
    shown = {number["data-source"]: number["text"] for number in read(demo).numbers}
    for run in RUNS:
        dice = look_up(demo, f"{run}/evaluation/metrics.json#/test/overall/segmentation/dice")
        base = f"{run}/evaluation/metrics.json#/test/overall/segmentation/dice/"
        assert shown[base + "mean"] == f"{dice['mean']:.3f}"
        assert [shown[base + f"ci95/{i}"] for i in (0, 1)] == [f"{v:.3f}" for v in dice["ci95"]]
        assert shown[base + "n"] == "12"
        rows = look_up(demo, f"{run}/explanations/localization.json#/0/method")
        assert rows == ("evidence" if run == "ours" else "gradcam")
        assert f"{run}/explanations/localization.json#/0/pointing_game_ci95/0" in shown


def test_page_is_self_contained_and_links_lead_somewhere(demo):
    page = read(demo)
    text = (demo / "report.html").read_text(encoding="utf-8")
    assert len([a for a in page.addresses if a.startswith("data:image/webp;base64,")]) > 30
    assert {a[1:] for a in page.addresses if not a.startswith("data:image/webp;base64,")} <= page.ids
    assert all(a.startswith(("data:image/webp;base64,", "#")) for a in page.addresses)
    assert not re.search(r"https?://|url\(|@import", text)
    assert str(demo) not in text
    assert "phantoms &lt;b&gt;" in text
    assert "<b>" not in text


def test_page_names_reproduction_and_limits(demo):
    text = " ".join(read(demo).text.split())
    for words in ("0123456789abcdef", "ab" * 32, "Linux x86_64, 2 cores", "--limit 400", "torch 2.13.0", "17"):
        assert words in text
    assert "not be used for diagnosis" in text
    assert "8765" in text
    assert "@stage" not in text, "epochs as a number, not as train.yaml writes them"
    assert "always naming one class scores 0.500" in text
    assert "Source singles has no masks" in text
    assert "Source patients has images of one class alone (tumor)" in text
    assert "no people" in text


def test_localization_table_is_sorted_by_pointing_game_and_holds_the_baselines(demo):
    page = read(demo)
    table = [
        n
        for n in page.numbers
        if n["data-source"].endswith("/oracle_tumor_energy")  # one a row
    ]
    rows = [look_up(demo, n["data-source"].rpartition("/")[0]) for n in table]
    assert {r["method"] for r in rows} == {"evidence", "gradcam", "hirescam", "uniform", "random"}
    assert len(rows) == 8
    games = [r["pointing_game"] for r in rows]
    assert games == sorted(games, reverse=True)
    assert games[0] > games[-1]


def test_worst_cases_are_the_lowest_dice(demo):
    with open(demo / "ours" / "evaluation" / "cases.csv", encoding="utf-8", newline="") as file:
        dice = sorted(float(row["dice"]) for row in csv.DictReader(file) if row["dice"])
    pattern = re.compile(r"ours/evaluation/cases.csv#/\d+/dice")
    shown = [float(n["data-value"]) for n in read(demo).numbers if pattern.fullmatch(n["data-source"])]
    assert shown == dice[:8]


def test_single_run_without_baseline(demo):
    path = report.write_report(demo, {"ours": "TumorLens"}, out="single.html")
    assert path == demo / "single.html"
    page = read(demo, "single.html")
    assert page.numbers
    assert not any(n["data-source"].startswith("baseline") for n in page.numbers)
    assert "stock design" not in page.text
    assert not list(demo.glob("*.partial"))


def test_printed_table_has_both_columns(demo):
    lines = report.comparison_table(demo, RUNS).splitlines()
    assert re.split("  +", lines[0]) == ["", "TumorLens", "stock design"]
    assert re.split("  +", lines[1])[1:] == ["evidence map", "Grad-CAM at bottleneck"]
    labels = [line.split("   ")[0] for line in lines[3:9]]
    assert labels == [
        "Dice over tumor cases",
        "Balanced accuracy",
        "Pointing game",
        "Energy in tumor",
        "Energy in air, layer's grid",
        "Energy in air, image grid",
    ]
    for run in RUNS:
        dice = look_up(demo, f"{run}/evaluation/metrics.json#/test/overall/segmentation/dice/mean")
        assert f"{dice:.3f}" in lines[3]


def test_comparison_picture_is_written(demo, tmp_path):
    path = report.write_comparison_picture(demo, tmp_path / "picture.png", RUNS, cases=2)
    assert path.read_bytes().startswith(b"\x89PNG")
    command(
        [
            "report",
            str(demo),
            "--out",
            str(tmp_path / "x.html"),
            "--picture",
            str(tmp_path / "picture.jpg"),
            "--checklist",
            "claim2024",
        ]
    )
    assert (tmp_path / "claim2024.md").read_text(encoding="utf-8").startswith("# CLAIM 2024 checklist: TumorLens on ")
    with Image.open(tmp_path / "picture.jpg") as picture:
        assert picture.format == "JPEG"
        assert picture.width > 600


@pytest.mark.parametrize(
    "name",
    [
        "data.json",
        "ours/evaluation/metrics.json",
        "ours/evaluation/cases.csv",
        "baseline/explanations/localization.json",
        "baseline/explanations/gallery.json",
        "ours/stage2_classification/config.yaml",
        "ours/explanations/overlays/p000_overlay.png",
    ],
)
def test_missing_file_is_named_and_nothing_is_written(demo, name):
    hidden = (demo / name).rename(demo / "hidden")
    try:
        with pytest.raises(FileNotFoundError, match=name):
            report.write_report(demo, RUNS, out="broken.html")
    finally:
        hidden.rename(demo / name)
    assert not (demo / "broken.html").exists()


def test_data_summary_counts_units_once():
    items = [
        {"image": "a", "label": "m", "diagnosis": 1, "patient": "p", "source": "x"},
        {"image": "b", "diagnosis": 1, "patient": "p", "source": "x"},
        {"image": "c", "diagnosis": 0, "group": "g", "source": "y"},
        {"image": "d", "diagnosis": 0, "source": "y"},
    ]
    datalist = {"name": "d", "classes": CLASSES, "training": items, "validation": items[:1], "test": []}
    datalist["left_out"] = {"slices without head": 3}
    summary = report.data_summary(datalist)
    assert summary["counts"]["training"] == {
        "x": {"tumor": {"n": 2, "with_mask": 1}},
        "y": {"no_tumor": {"n": 2, "with_mask": 0}},
    }
    assert summary["left_out"] == {"slices without head": 3}
    assert summary["patients"] == {"training": 1, "validation": 1, "test": 0}
    assert summary["groups"] == {"training": 1, "validation": 0, "test": 0}
    assert summary["images"] == {"training": 1, "validation": 0, "test": 0}
