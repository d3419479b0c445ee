from __future__ import annotations

import csv
import hashlib
import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import yaml
from PIL import Image
from scipy.ndimage import gaussian_filter
from torch.utils.tensorboard import SummaryWriter

from scripts.__main__ import main as command
from scripts.evaluation import robustness, scope_evaluation, uncertainty_evaluation
from scripts.evaluation.evaluation import write_evaluation
from scripts.evaluation.items import ClassComparison
from scripts.explain.maps import scale_maps, upsample
from scripts.explain.measures import aggregate, case_measures, case_rows, random_baseline, uniform_baseline
from scripts.pictures import overlays
from scripts.report import report
from scripts.runs.documents import Document, format_number
from scripts.runs.folder import write_csv, write_json
from scripts.runs.result_files import EVALUATION, EXPLANATION, KEY, mark

RUNS = {"ours": "TumorLens", "baseline": "stock design"}
CLASSES = {"0": "no_tumor", "1": "tumor"}
TARGET = "tumor_log_odds"


def head(rng: np.random.Generator, size: int, tumor: bool) -> dict[str, np.ndarray]:
    """A phantom of an oval head: image (1, X, Y) with air 0, foreground and tumor mask."""
    x, y = np.meshgrid(*[np.linspace(-1, 1, size)] * 2, indexing="ij")
    foreground = (x / 0.7) ** 2 + (y / 0.85) ** 2 < 1
    texture = gaussian_filter(rng.standard_normal((size, size)), size / 30) * 3
    brain = (x / 0.6) ** 2 + (y / 0.75) ** 2 < 1
    mask = np.zeros((size, size), dtype=bool)
    if tumor:
        a, b, r = rng.uniform(-0.3, 0.3), rng.uniform(-0.4, 0.4), rng.uniform(0.08, 0.25)
        mask = (x - a) ** 2 + (y - b) ** 2 < r**2
    image = np.where(brain, texture, 1.6) + 1.5 * mask
    image = np.where(foreground, np.where(image == 0, 1e-6, image), 0)
    return {k: v[None].astype(np.float32) for k, v in (("image", image), ("foreground", foreground), ("label", mask))}


def cases(count: int, size: int) -> list[dict]:
    """Of each three: a patient's tumor with mask, a single tumor image without mask, a tumor-free single image."""
    rng = np.random.default_rng(0)
    result = []
    for i in range(count):
        kind = i % 3
        source = "patients" if kind == 0 else "singles"
        case = {"name": f"{source[0]}{i:03d}", "patient": f"u{i // 2}", "source": source, "diagnosis": int(kind < 2)}
        result.append({**case, "has_mask": kind == 0, **head(rng, size, kind < 2)})
    return result


def raw_map(case: dict, run: str, rng: np.random.Generator, grid: int) -> torch.Tensor:
    """Ours: the tumor, a little off at times; the baseline: the air. (1, 1, grid, grid)."""
    label, foreground = torch.tensor(case["label"])[None], torch.tensor(case["foreground"])[None]
    if run == "baseline":
        cells = F.adaptive_avg_pool2d(1 - foreground, grid // 2) ** 2
        return cells + 0.1 * torch.tensor(rng.random(cells.shape), dtype=torch.float32)
    cells = F.adaptive_avg_pool2d(label, grid)
    return torch.roll(cells, 2, dims=2) if rng.random() < 0.2 else cells


def write_checks(folder: Path, test: list[dict]) -> None:
    """What the costlier parts of the evaluation leave of a run; one of its figures is not defined."""
    rng = np.random.default_rng(1)
    uncertain = [
        {
            **{k: case[k] for k in ("name", "source")},
            **{"unit": case["patient"], "wrong": bool(i % 5 == 0), "mask_disagreement": float(rng.random())},
            **{k: float(rng.random()) for k in ("probability_std", "entropy", "single_entropy", "mean_std")},
            **{k: float(rng.random()) if i % 3 == 0 else float("nan") for k in ("pixel_auroc", "single_pixel_auroc")},
            "dice": 0.5 + 0.4 * rng.random() if i % 3 == 0 else float("nan"),
        }
        for i, case in enumerate(test)
    ]
    shutil.copytree(folder.parent / "explanations" / "overlays", folder / "uncertainty")
    shown = [{k: test[0][k] for k in ("name",)} | {"mask_disagreement": 0.31, "probability_std": 0.1, "dice": None}]
    files = {"image": f"uncertainty/{test[0]['name']}_image.png", "std": f"uncertainty/{test[0]['name']}_overlay.png"}
    write_json(
        {
            **{"n": 36, "of": 36, "views": ["as it is", "mirrored"], "samples": 16, "poor_dice": 0.7},
            "methods": {"test_time_augmentation": uncertainty_evaluation.summarize(uncertain)},
            "unavailable": {"mc_dropout": "the network was trained without dropout"},
            "pictures": [entry | files for entry in shown],
        },
        folder / "uncertainty.json",
    )
    rows = [
        {
            **{"unit": case["patient"], "diagnosis": case["diagnosis"], "predicted": case["diagnosis"]},
            **{"tumor_probability": 0.2 + 0.6 * case["diagnosis"], "dice": 0.8, "tumor_energy": float("nan")},
        }
        for case in test
    ]
    level = robustness.summarize(rows, 2, ["no foreground found"])
    kinds = [("noise", "share", 0.1), ("JPEG", "quality", 5.0)]
    corruptions = [{"name": n, "unit": u, "levels": [{"strength": s, **level}]} for n, u, s in kinds]
    content = {"n": 36, "of": 36, "applied": "to the values", "clean": level, "corruptions": corruptions}
    write_json(content, folder / "robustness.json")
    inside, units = rng.random(20), [str(i) for i in range(20)]
    outside = [
        {
            "name": "CT (drawn)",
            "kind": "drawn",
            "left_out_of_fit": True,
            **scope_evaluation.compare(inside, units, inside + 0.5, units, 0),
        },
        {
            "name": "noise",
            "kind": "drawn",
            "left_out_of_fit": False,
            **scope_evaluation.compare(inside, units, np.empty(0), [], 16),
        },
    ]
    write_json(
        {
            **{"limit_quantile": 0.95, "training": 60, "validation": 15, "outside": outside},
            "inside": {"n": 36, "refused": 0, "flagged": 0.0625},
        },
        folder / "scope.json",
    )
    for case in (test[0], test[3]):
        label = case["label"]
        packed = overlays.layers(case["image"], gaussian_filter(label, 2) / 1.0, label, np.roll(label, 2, axis=1))
        if case is test[3]:  # as of a volume: five slices below each other, each moved by a pixel more
            packed = np.concatenate([np.roll(packed, k, axis=1) for k in range(5)])
        overlays.save(packed, folder / "cases" / f"{case['name']}_layers.png")
    random = {**shown[0], **files, **{k: test[3][k] for k in ("name", "source", "diagnosis")}, "kind": "random"}
    random |= {
        "layers": f"cases/{test[3]['name']}_layers.png",
        "predicted": 1,
        "tumor_probability": 0.9,
        "evidence": None,
        **{"slices": [10, 12, 14, 16, 18], "slice": 14, "of": 32},
    }
    write_json(
        [
            {
                "layers": f"cases/{test[0]['name']}_layers.png",
                **{"kind": kind, "name": test[0]["name"], "source": "patients", "dice": 0.123, "diagnosis": 1},
                **{"predicted": 0, "tumor_probability": 0.321, "image": files["image"], "evidence": files["std"]},
            }
            for kind in ("worst", "misdiagnosed")
        ]
        + [random],
        folder / "cases.json",
    )


def write_run(folder: Path, run: str, test: list[dict], quality: float, logit: float | None = None) -> None:
    """What training, evaluation and explanation leave of a run; `logit`: of every case, if given."""
    rng = np.random.default_rng(len(run))
    for i, stage in enumerate(("stage1_segmentation", "stage2_classification", "stage3_joint")):
        stage_dir = folder / stage
        with SummaryWriter(str(stage_dir)) as writer:
            for epoch in range(1, 9):
                t = 1 - 0.8 ** (epoch + 8 * i)
                for name, value in (("total", 1.2 - t), ("segmentation", 0.8 - 0.7 * t), ("evidence", 0.3 - 0.2 * t)):
                    writer.add_scalar(f"train/loss/{name}", value + 0.05 * rng.random(), epoch)
                writer.add_scalar("train/gradient_norm", 3 * (1 - t) + 0.5 * rng.random(), epoch)
                for j, group in enumerate(("encoder", "decoder", "head")):
                    writer.add_scalar(f"learning_rate/{group}", 1e-3 * (1 + j) * (9 - epoch) / 8, epoch)
                for name in ("dice", "balanced_accuracy", "auc", "combined"):
                    writer.add_scalar(f"validation/{name}", quality * t + 0.02 * rng.random(), epoch)
        manifest = {
            "started": f"2026-01-02T03:0{i}:00",
            "finished": f"2026-01-02T03:0{i}:59",
            "seed": 17,
            "command": "scripts/demo/demo.py --limit 400",
            "commit": "0123456789abcdef",
            "datalist": "datalist.json",
            "datalist_sha256": "ab" * 32,
            "versions": {"torch": "2.13.0", "monai": "1.6.1"},
            "python": "3.11.2",
            "machine": "Linux x86_64, 2 cores, no GPU",
            "best_metric": quality - 0.01234 * (2 - i),
            "best_epoch": 5 + i,
        }
        write_json(manifest, stage_dir / "manifest.json")
        config = {"batch_size": 16, "spatial_size": [128, 128], "frozen": [], "key_metric": "dice"}
        config |= {"max_epochs": "$@stage_epochs[@stage]", "stage_epochs": {stage_dir.name: 8765}}
        (stage_dir / "config.yaml").write_text(yaml.safe_dump(config))

    rows = []
    for case in test:
        dice = float(np.clip(quality - 0.2 * rng.random() ** 3 - 0.3 * (rng.random() < 0.1), 0, 1))
        scored = case["has_mask"]
        margin = (2 * case["diagnosis"] - 1) * 2 + rng.normal(0, 1.4)
        rows.append(
            {
                **{k: case[k] for k in ("name", "patient", "source", "diagnosis", "has_mask")},
                **{"unit": case["patient"], "volume": "", "slice": -1, "pixel_area": 1.0, "head_share": 0.5},
                **dict.fromkeys(("pixel_mm2", "slice_mm", "tumor_mm2", "predicted_mm2", "hd95_mm"), float("nan")),
                "tumor_ml": float("nan"),
                "predicted_ml": float("nan"),
                "logits": [0.0, float(margin) if logit is None else logit],
                "head_pixels": int(case["foreground"].sum()),
                "tumor_pixels": int(case["label"].sum()) if scored else None,
                "predicted_pixels": int(case["label"].sum() * rng.uniform(0.7, 1.3)),
                "shared_pixels": int(case["label"].sum() * dice) if scored else None,
                "lesions": int(scored),
                "lesions_found": int(scored and dice > 0.6),
                "false_lesions": 1,
                "label_coverage": 1.0,
                "dice": dice if scored else float("nan"),
                "iou": dice / (2 - dice) if scored else float("nan"),
                "hd95": float(rng.uniform(1, 9)) if scored else float("nan"),
                "dice_whole_head": 0.1 if scored else float("nan"),
                "dice_random": 0.05 if scored else float("nan"),
            }
        )
    names = ClassComparison(["no_tumor", "tumor"], [0, 1])
    write_evaluation(rows, folder / "evaluation", threshold=0.47, temperature=1.3, classes=names)

    method, layer = ("evidence", "evidence") if run == "ours" else ("gradcam", "bottleneck")
    explained, gallery = [], []
    for case in test:
        grid = case["image"].shape[1] // 4
        raw = raw_map(case, run, rng, grid)
        label, foreground = torch.tensor(case["label"])[None], torch.tensor(case["foreground"])[None]
        known = [{k: case[k] for k in ("name", "patient", "source")}]
        measures = case_measures(raw, label, foreground)
        if case["has_mask"]:
            other = case_measures(raw + 0.2 * torch.tensor(rng.random(raw.shape)), label, foreground)
            explained += case_rows(measures, known, method=method, layer=layer, target=TARGET)
            explained += case_rows(other, known, method="hirescam", layer="downsamples.1", target=TARGET)
            uniform = uniform_baseline(label, foreground, raw.shape[2:])
            noise = random_baseline(label, foreground, raw.shape[2:], [case["name"]])
            explained += case_rows(uniform, known, method="uniform", layer="none", target=TARGET)
            explained += case_rows(noise, known, method="random", layer="none", target=TARGET)
        if len(gallery) < 9:
            scaled, empty = scale_maps(upsample(raw, case["image"].shape[1:]))
            mask = case["label"] if case["has_mask"] else None
            scale, zero = overlays.legible_scale(case["image"].shape), np.zeros_like(case["image"])
            pictures = folder / "explanations" / "overlays"
            heat = overlays.overlay(case["image"], scaled[0].numpy(), mask, scale=scale)
            plain = overlays.overlay(case["image"], zero, mask, np.roll(case["label"], 2, axis=1), scale=scale)
            overlays.save(heat, pictures / f"{case['name']}_overlay.png")
            overlays.save(plain, pictures / f"{case['name']}_image.png")
            number = {k: float(measures[k][0]) for k in ("tumor_energy", "background_energy")}
            gallery.append(
                {
                    **{k: case[k] for k in ("name", "source", "diagnosis")},
                    **{"method": method, "layer": layer, "target": TARGET},
                    "tumor_probability": float(rng.uniform(0.4, 1) if case["diagnosis"] else rng.uniform(0, 0.6)),
                    "threshold": 0.47,
                    "empty": bool(empty[0]),
                    "tumor_energy": number["tumor_energy"] if case["has_mask"] else None,
                    "background_energy": None if np.isnan(number["background_energy"]) else number["background_energy"],
                    "overlay": f"overlays/{case['name']}_overlay.png",
                    "image": f"overlays/{case['name']}_image.png",
                }
            )
    table = [{**row, "mask": "true", "class": "all"} for row in aggregate(explained)]
    # Further strata, which the page leaves out.
    table += [{**row, "class": "tumor", "pointing_game": 0.123} for row in table if row["source"] == "all"]
    table += [{**row, "mask": "predicted", "pointing_game": 0.123} for row in table]
    write_json(table, folder / "explanations" / "localization.json")
    write_csv(explained, folder / "explanations" / "cases.csv")
    write_json(gallery, folder / "explanations" / "gallery.json")
    if run == "ours":
        write_checks(folder / "evaluation", test)


def make_demo(folder: Path, count: int = 36, size: int = 48, logits: dict[str, float] | None = None) -> Path:
    """A folder as `make demo` leaves it, with ours and baseline."""
    datalist = {"name": "phantoms <b>", "classes": CLASSES, "training": [], "validation": [], "test": []}
    for part, n in (("training", 60), ("validation", 15), ("test", count)):
        for i in range(n):
            item = {"image": f"{part}{i}.png", "diagnosis": int(i % 3 < 2), "source": "singles"}
            if i % 3 == 0:
                item |= {"label": f"{part}{i}_mask.png", "patient": f"{part}{i // 6}", "source": "patients"}
            datalist[part].append(item)
    write_json(
        report.data_summary(datalist, ["Phantoms are drawn by a program; they are no people."]), folder / "data.json"
    )
    test = cases(count, size)
    given = logits or {}
    write_run(folder / "ours", "ours", test, 0.88, given.get("ours"))
    write_run(folder / "baseline", "baseline", test, 0.9, given.get("baseline"))
    return folder


class Page(HTMLParser):
    """Numbers, pictures, links and text of the page; checks that tags are closed in order."""

    VOID = ("meta", "img", "br", "link", "input", "hr")

    def __init__(self, text: str):
        super().__init__()
        self.numbers: list[dict[str, str]] = []
        self.addresses: list[str] = []
        self.ids: set[str] = set()
        self.open: list[str] = []
        self.text = ""
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        if tag not in self.VOID:
            self.open.append(tag)
        if "data-source" in attrs:
            self.numbers.append({**attrs, "text": ""})
        self.addresses += [attrs[k] for k in ("src", "href") if k in attrs]
        self.ids |= {attrs["id"]} if "id" in attrs else set()

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] == "span" and self.numbers and not self.numbers[-1]["text"]:
            self.numbers[-1]["text"] = data
        if self.open and self.open[-1] not in ("style", "script"):
            self.text += data


def read(folder: Path, name: str = "report.html") -> Page:
    return Page((folder / name).read_text(encoding="utf-8"))


def look_up(root: Path, source: str):
    """What stands at "file#/a/b" of a JSON or CSV file."""
    name, _, pointer = source.partition("#")
    text = (root / name).read_text(encoding="utf-8")
    found = json.loads(text) if name.endswith(".json") else list(csv.DictReader(text.splitlines()))
    for key in pointer[1:].split("/"):
        key = key.replace("~1", "/").replace("~0", "~")
        found = found[int(key)] if isinstance(found, list) else found[key]
    return None if found == "" else found


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
    before = path.read_text(encoding="utf-8")
    metrics = json.loads(before)
    metrics["test"]["overall"]["classification"]["temperature_at_bound"] = True
    metrics["provenance"] = {"datalist": "other", "own": False, "seen": 7}
    metrics["notes"] = ["the datalist has no class x, which the run may predict"]
    path.write_text(json.dumps(metrics))
    try:
        text = Page(report.write_report(demo, RUNS, out=tmp_path / "x.html").read_text(encoding="utf-8")).text
    finally:
        path.write_text(before)
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


BROWSER = shutil.which("chromium") or shutil.which("google-chrome")
FLAGS = ["--no-sandbox", "--disable-quic", "--no-first-run", "--disable-background-networking", "--disable-gpu"]
# What sticks out to the right of the page and does not scroll in a box of its own.
WIDER = """() => [...document.querySelectorAll("body *")].filter(e => {
  const box = e.closest(".wide");
  if (box && box !== e && getComputedStyle(box).overflowX !== "visible") return false;
  return e.getBoundingClientRect().right > document.documentElement.clientWidth + 1;
}).map(e => e.tagName + "." + e.className + ": " + e.textContent.trim().slice(0, 40))"""
OPEN = "() => [...document.querySelectorAll('details.section')].filter(e => e.open).map(e => e.id)"
UNLOADED = "() => [...document.images].filter(i => !i.complete || !i.naturalWidth).map(i => i.alt)"


@pytest.mark.skipif(BROWSER is None, reason="no Chromium on this machine")
@pytest.mark.parametrize(("width", "medium"), [(390, "screen"), (1280, "screen"), (680, "print")])
def test_in_a_browser_nothing_sticks_out_and_every_picture_is_there(demo, width, medium):
    """A phone, a screen, and A4 less its margins."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    faults: list[str] = []
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=BROWSER, args=FLAGS)
        page = browser.new_page(viewport={"width": width, "height": 900})
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.set_default_timeout(120_000)
        page.emulate_media(media=medium)
        page.goto((demo / "report.html").as_uri())
        if (width, medium) == (1280, "screen"):  # the first screen, without scrolling
            assert page.locator("nav").bounding_box()["y"] < 950, "the made run has long findings"
            assert len(page.evaluate("document.body.innerText").split()) < 900
        assert page.evaluate(OPEN) == ["comparison-table"]
        if medium == "print":
            page.evaluate("window.dispatchEvent(new Event('beforeprint'))")
        else:
            page.locator("nav a", has_text="Reproduce").click()
            page.wait_for_function("document.getElementById('reproduce').open")
            assert page.evaluate(OPEN) == ["comparison-table", "reproduce"]
            page.locator("#all").click()
        assert len(page.evaluate(OPEN)) == page.locator("details.section").count() > 12
        assert page.evaluate(UNLOADED) == []
        assert page.evaluate("document.images.length") > 20
        assert page.evaluate(WIDER) == []
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        number = page.locator("[data-source]").first
        assert number.get_attribute("data-source") in number.get_attribute("title")
        browser.close()
    assert faults == []


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


def test_broken_json_and_missing_key_are_named(tmp_path):
    (tmp_path / "a.json").write_text("{")
    with pytest.raises(ValueError, match=r"a\.json can not be read"):
        Document(tmp_path, "a.json")
    (tmp_path / "b.json").write_text('{"a/b": [1, "x"]}')
    document = Document(tmp_path, "b.json")
    assert document.number("/a~1b/0", "count") == (
        '<span class="num" data-source="b.json#/a~1b/0" data-value="1" data-kind="count">1</span>'
    )
    with pytest.raises(ValueError, match=r"b\.json has no '/a~1b/2'"):
        document.number("/a~1b/2", "count")
    with pytest.raises(ValueError, match="expected a number, got 'x'"):
        document.number("/a~1b/1", "count")


def test_interrupted_stage_and_other_datalist_are_said(demo, tmp_path):
    path = demo / "baseline" / "stage3_joint" / "manifest.json"
    before = path.read_text(encoding="utf-8")
    manifest = json.loads(before)
    del manifest["finished"], manifest["best_metric"], manifest["best_epoch"]
    manifest["datalist_sha256"] = "cd" * 32
    path.write_text(json.dumps(manifest))
    try:
        text = Page(report.write_report(demo, RUNS, out=tmp_path / "x.html").read_text(encoding="utf-8")).text
    finally:
        path.write_text(before)
    assert "stock design: stage stage3_joint did not run to its end" in text
    assert "not all trained on the same datalist" in text


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


@pytest.mark.parametrize(
    ("value", "kind", "text"),
    [
        (None, "ratio", "n/a"),
        (0.84449, "ratio", "0.844"),
        (0.99999, "ratio", "> 0.999"),
        (1.0, "ratio", "1.000"),
        (0, "percent", "0 %"),
        (0.0004, "percent", "< 0.1 %"),
        (0.0005, "percent", "0.1 %"),
        (0.99949, "percent", "99.9 %"),
        (0.9996, "percent", "> 99.9 %"),
        (1, "percent", "100 %"),
        (12345, "count", "12,345"),
        (3.14159, "decimal", "3.1"),
        (0.00012345, "plain", "0.0001234"),
    ],
)
def test_numbers_are_written_without_pretending(value, kind, text):
    assert format_number(value, kind) == text
    with pytest.raises(ValueError, match="kind is one of"):
        format_number(1, "other")
