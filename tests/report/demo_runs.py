"""Two runs as training, evaluation and explanation leave them, of drawn heads."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
import yaml
from scipy.ndimage import gaussian_filter
from torch.utils.tensorboard import SummaryWriter

from scripts.command.files import write_json
from scripts.evaluation import robustness, scope_evaluation, uncertainty_evaluation
from scripts.evaluation.evaluation import write_evaluation
from scripts.evaluation.items import ClassComparison
from scripts.explain.maps import scale_maps, upsample
from scripts.explain.measures import aggregate, case_measures, case_rows, random_baseline, uniform_baseline
from scripts.pictures import overlays
from scripts.report import report
from scripts.runs.folder import write_csv

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
            **{"cluster": case["patient"], "wrong": bool(i % 5 == 0), "mask_disagreement": float(rng.random())},
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
            **{"cluster": case["patient"], "diagnosis": case["diagnosis"], "predicted": case["diagnosis"]},
            **{"tumor_probability": 0.2 + 0.6 * case["diagnosis"], "dice": 0.8, "tumor_energy": float("nan")},
        }
        for case in test
    ]
    level = robustness.summarize(rows, 2, ["no foreground found"])
    kinds = [("noise", "share", 0.1), ("JPEG", "quality", 5.0)]
    corruptions = [{"name": n, "unit": u, "levels": [{"strength": s, **level}]} for n, u, s in kinds]
    content = {"n": 36, "of": 36, "applied": "to the values", "clean": level, "corruptions": corruptions}
    write_json(content, folder / "robustness.json")
    inside, clusters = rng.random(20), [str(i) for i in range(20)]
    outside = [
        {
            "name": "CT (drawn)",
            "kind": "drawn",
            "left_out_of_fit": True,
            **scope_evaluation.compare(inside, clusters, inside + 0.5, clusters, 0),
        },
        {
            "name": "noise",
            "kind": "drawn",
            "left_out_of_fit": False,
            **scope_evaluation.compare(inside, clusters, np.empty(0), [], 16),
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
                **{"cluster": case["patient"], "volume": "", "slice": -1, "pixel_area": 1.0, "head_share": 0.5},
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
