"""What the page says first: faults of the data and the runs, what is missing, and what is next."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from pathlib import Path

import pytest

from scripts.command.files import write_json
from scripts.report import report
from scripts.runs.artifacts import EVALUATION, EXPLANATION, KEY, mark
from tests.report.demo_runs import RUNS, make_demo
from tests.report.pages import Page, look_up, read


def text_with(demo: Path, path: Path, content: object, folder: Path) -> str:
    """Text of the report where a file of the demo holds something else, which it does no more afterwards."""
    before = path.read_text(encoding="utf-8")
    path.write_text(json.dumps(content))
    try:
        return Page(report.write_report(demo, RUNS, out=folder / "x.html").read_text(encoding="utf-8")).text
    finally:
        path.write_text(before)


def test_always_tumor_has_balanced_accuracy_one_half_and_the_page_says_so(tmp_path):
    folder = make_demo(tmp_path, logits={"ours": 5.0})
    assert look_up(folder, "ours/evaluation/metrics.json#/test/overall/classification/balanced_accuracy") == 0.5
    accuracy = look_up(folder, "ours/evaluation/metrics.json#/test/overall/classification/accuracy")
    assert accuracy == pytest.approx(2 / 3)
    report.write_report(folder, RUNS)
    text = " ".join(read(folder).text.split())
    assert "TumorLens calls every case “tumor”: its balanced accuracy of 0.500 is what always naming one class" in text
    assert "whatever its accuracy (0.667)" in text
    assert "stock design calls every case" not in text


def test_shortcuts_of_the_audit_stand_on_top_and_their_absence_is_said_too(demo, tmp_path):
    without = " ".join(read(demo).text.split())
    assert "No shortcut audit lies in the run" in without
    row = {"target": "diagnosis", "value": "tumor", "auc_ci95": [0.8, 0.95], "limit": 0.7}
    rows = [
        {**row, "features": "geometry", "stage": "before", "auc": 0.97, "flagged": True},
        {**row, "features": "geometry", "stage": "after", "auc": 0.91, "flagged": True},
        {**row, "features": "air", "stage": "before", "auc": 0.6, "flagged": False},
        {**row, "features": "air", "stage": "after", "auc": 0.5, "flagged": False},
    ]
    write_json({"name": "x", "n": 96, "rows": rows}, demo / "audit" / "audit.json")
    try:
        page = Page(report.write_report(demo, RUNS, out=tmp_path / "x.html").read_text(encoding="utf-8"))
    finally:
        shutil.rmtree(demo / "audit")
    text = " ".join(page.text.split())
    assert "geometry alone, without the brain, tells the diagnosis after the pipeline too: AUC of tumor (0.910)" in text
    assert text.index("geometry alone") < text.index("Where each network looked")
    assert "air alone" not in text.replace("air only", "")
    shown = {n["data-source"]: n["text"] for n in page.numbers}
    assert (shown["audit/audit.json#/rows/0/auc"], shown["audit/audit.json#/rows/2/auc"]) == ("0.970", "0.600")


def test_temperature_at_its_bound_and_images_seen_in_training_are_said(demo, tmp_path):
    path = demo / "ours" / "evaluation" / "metrics.json"
    metrics = json.loads(path.read_text(encoding="utf-8"))
    metrics["test"]["overall"]["classification"]["temperature_at_bound"] = True
    metrics["provenance"] = {"datalist": "other", "own": False, "seen": 7}
    metrics["notes"] = ["the datalist has no class x, which the run may predict"]
    text = text_with(demo, path, metrics, tmp_path)
    assert "TumorLens: the temperature (1.3) stands at a bound of its fit" in text
    assert "TumorLens: 7 of the evaluated images were trained or selected on" in text
    assert "evaluated on a datalist that it was not trained on" in text
    assert "has no class x" in text
    assert "stock design: the temperature" not in text


def marked(folder: Path, digest: str) -> None:
    for name, results in (("evaluation", EVALUATION), ("explanations", EXPLANATION)):
        mark(folder / name, results, digest)


def warnings_of(folder: Path, runs: dict[str, str]) -> list[str]:
    page = report.write_report(folder, runs, out=folder / "x.html").read_text(encoding="utf-8")
    return [re.sub("<[^>]*>", "", text) for text in re.findall(r'<li class="warning">(.*?)</li>', page)]


def test_files_of_different_weights_are_the_first_caveat(tmp_path):
    folder, alone = make_demo(tmp_path), {"ours": "TumorLens"}
    unknown = warnings_of(folder, alone)[0]
    assert unknown.startswith("TumorLens: evaluation/metrics.json, evaluation/cases.json, evaluation/uncertainty.json")
    assert "explanations/localization.json, explanations/gallery.json do not say which weights they are of" in unknown
    marked(folder / "ours", "a" * 64)
    assert not any("weights" in text for text in warnings_of(folder, alone))
    content = json.loads((folder / "ours/evaluation/robustness.json").read_text(encoding="utf-8"))
    write_json({**content, KEY: "b" * 64}, folder / "ours" / "evaluation" / "robustness.json")
    mixed = warnings_of(folder, alone)[0]
    assert "its files are not all of the same weights" in mixed
    assert "of bbbbbbbb: evaluation/robustness.json)" in mixed
    marked_again = {**content, KEY: "a" * 64}
    write_json(marked_again, folder / "ours" / "evaluation" / "robustness.json")
    weights = folder / "ours" / "stage3_joint" / "model.pt"
    weights.write_bytes(b"other weights")
    now = hashlib.sha256(b"other weights").hexdigest()[:8]
    assert f"The run's weights are {now} now." in warnings_of(folder, alone)[0]


def test_a_head_that_was_not_trained_has_no_figures_on_the_page(tmp_path):
    folder = make_demo(tmp_path)
    for stage in ("stage1_segmentation", "stage2_classification", "stage3_joint"):
        path = folder / "ours" / stage / "config.yaml"
        path.write_text(path.read_text(encoding="utf-8") + "train_classification: false\n", encoding="utf-8")
    (folder / "ours" / "explanations" / "gallery.json").unlink()
    report.write_report(folder, RUNS)
    page, text = read(folder), " ".join(read(folder).text.split())
    assert "The head of TumorLens was not trained, so that no map explains its diagnosis; the Grad-CAM" in text
    assert re.search(r"balanced accuracy n/a against 0\.\d{3}\.", text)
    sources = [number["data-source"] for number in page.numbers if number["data-source"].startswith("ours/")]
    assert any("segmentation/dice" in source for source in sources)
    assert not any(re.search("/classification|detected|tumor_probability", source) for source in sources)
    named = json.loads((folder / "ours/explanations/localization.json").read_text(encoding="utf-8"))
    shown = {int(s.split("#/")[1].split("/")[0]) for s in sources if "localization.json" in s}
    assert {named[i]["method"] for i in shown} == {"uniform", "random"}, "and no map of random weights"
    assert re.search(r"Balanced accuracy +n/a +0\.", report.comparison_table(folder, RUNS))
    with pytest.raises(ValueError, match="no comparison picture: no map: its head was not trained"):
        report.write_comparison_picture(folder, tmp_path / "x.png", RUNS)


def test_the_certificate_stands_first_and_decides_what_is_next(demo, tmp_path):
    folder = Path(shutil.copytree(demo, tmp_path / "demo"))
    page = report.write_report(folder, RUNS).read_text(encoding="utf-8")
    assert "python -m scripts certify --run_dir ours" in Page(page).text
    statement = {"property": "necessity", "of": "verdict (poisson)", "n": 117, "value": 0.1, "ci95": [0.0, 0.2]}
    statements = [
        {**statement, "verdict": "fails", "sentence": "78 % of 117 pictures are still called tumor"},
        {**statement, "property": "sufficiency", "verdict": "holds", "sentence": "91 % of healthy heads"},
    ]
    row = {"test": "removal", "how": "poisson", "measure": "called tumor", "part": "all", "n": 117, "before": 1.0}
    row |= {"after": 0.78, "after_ci95": [0.7, 0.85], "control": 0.99}
    row |= {"difference": 0.21, "difference_ci95": [0.1, 0.3]}
    (folder / "ours" / "certificate").mkdir()
    counts = {"tumors": 120, "healthy": 60, "pictures": 2614}
    write_json({"statements": statements, "rows": [row], "counts": counts}, folder / "ours/certificate/causal.json")
    text = " ".join(Page(report.write_report(folder, RUNS).read_text(encoding="utf-8")).text.split())
    first, rest = text.split("Before you rely on it", 1)[1].split("Next:", 1)
    failing = "TumorLens, necessity of the verdict (poisson): 78 % of 117 pictures are still called tumor."
    assert failing in first.split(" more ")[0], "among the first three"
    assert "91 %" not in first
    assert rest.strip().startswith("the answer does not follow the tumor: train with --overlay configs/counterfactual.")
    assert "Necessity, verdict (poisson): fails." in rest
    assert "Sufficiency, verdict (poisson): holds." in rest
    numbers = [n for n in read(folder).numbers if "causal" in n["data-source"]]
    shown = {n["data-source"].partition("#")[2]: n["text"] for n in numbers}
    row = {name: shown[f"/rows/0/{name}"] for name in ("n", "before", "after", "control", "difference")}
    assert row == {"n": "117", "before": "100 %", "after": "78.0 %", "control": "99.0 %", "difference": "0.210"}


def test_what_was_not_measured_is_said(demo):
    page = report.write_report(demo, {"baseline": "stock"}, out="baseline.html")
    text = " ".join(Page(page.read_text(encoding="utf-8")).text.split())
    for name in ("uncertainty", "robustness", "scope"):
        assert f"the runs hold no {name}.json" in text


def test_missing_events_are_said_and_a_missing_run_is_named(demo, tmp_path):
    for stage, name in (("stage3_joint", "hidden3"), ("stage2_classification", "hidden2")):
        next((demo / "ours" / stage).glob("events*")).rename(demo / name)
        try:
            page = Page(report.write_report(demo, RUNS, out=tmp_path / "x.html").read_text(encoding="utf-8"))
        finally:
            (demo / name).rename(demo / "ours" / stage / "events.out.tfevents.1")
        assert f"No training curves of {stage}: no event file lies in it." in page.text
        assert page.text.count("No training curves") == 1
    with pytest.raises(FileNotFoundError, match="nothing"):
        report.write_report(demo, {"nothing": "none"})


def test_interrupted_stage_and_other_datalist_are_said(demo, tmp_path):
    path = demo / "baseline" / "stage3_joint" / "manifest.json"
    manifest = json.loads(path.read_text(encoding="utf-8"))
    del manifest["finished"], manifest["best_metric"], manifest["best_epoch"]
    manifest["datalist_sha256"] = "cd" * 32
    text = text_with(demo, path, manifest, tmp_path)
    assert "stock design: stage stage3_joint did not run to its end" in text
    assert "not all trained on the same datalist" in text
