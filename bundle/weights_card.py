"""Model card of the shipped weights: every number of its two pages in ``docs``, measured again by one command.

    python -m scripts card --dataset_dir BRISC [--volumes A.nii.gz B.nii.gz ...]

evaluates and explains ``models/model.pt`` on the test part of its datalist in ``docs/training`` (see
`bundle.shipping`), keeps what the card shows in ``docs/training/results.json`` and writes its pages from it.
``--only certificate`` or ``--only scope`` (with what volumes get) measures that
alone, ``--render`` writes the card from that file and the kept training.
"""

from __future__ import annotations

import argparse
import csv
import json
import logging
import math
import shutil
from collections.abc import Callable, Mapping, Sequence
from datetime import date, datetime
from pathlib import Path
from typing import Any

import jinja2
import yaml
from sklearn.metrics import recall_score

from bundle.model_card import evaluated
from bundle.predictor import Predictor
from bundle.shipping import DATALIST
from bundle.targets import targets
from scripts.certificate.certify import certify_run
from scripts.checks.audit import audit
from scripts.command.files import file_sha256, write_json
from scripts.command.verbs import Outcome
from scripts.command.workflows import run_config
from scripts.data.datalists import schema as datalists
from scripts.data.datalists.schema import PLANES
from scripts.data.planes import plane_of
from scripts.evaluation.answers import answer_lines
from scripts.inference import scope
from scripts.runs import folder as runs
from scripts.runs import provenance
from scripts.runs.network_overlay import write_network_overlay
from scripts.runs.reading import read_scalars

logger = logging.getLogger(__name__)

ROOT = Path(__file__).resolve().parents[1]
TRAINING = ROOT / "docs" / "training"
RESULTS = TRAINING / "results.json"
# Pages in docs, and the template of each.
CARD = {"README.md": "model_card.md.j2", "shipped_weights.md": "shipped_weights.md.j2"}
METADATA = ROOT / "configs" / "metadata.json"
REACHED = ("dice", "balanced_accuracy", "removed", "moved")
MAPS = ("evidence", "gradcam", "hirescam", "uniform", "random", "oracle")


def kept_stages(training: Path = TRAINING) -> list[Path]:
    """Folders of the stages that led to the shipped weights, in the order of training.

    Raises:
        FileNotFoundError: when there is none.
    """
    folders = {path.parent: json.loads(path.read_text(encoding="utf-8")) for path in training.glob("*/*/manifest.json")}
    if not folders:
        raise FileNotFoundError(
            f"no <run>/<stage>/manifest.json in {training}; ship weights with python -m scripts ship"
        )
    return sorted(folders, key=lambda folder: folders[folder]["started"])


def assemble_run(
    folder: Path,
    dataset_dir: Path,
    training: Path = TRAINING,
    weights: Path = ROOT / "models" / runs.WEIGHTS,
) -> Path:
    """A run folder of the last kept config and the shipped weights, for `configs/evaluate.yaml` and its like.

    Args:
        folder: to write to.
        dataset_dir: where the images of the training are.
        training: see `bundle.shipping`.
        weights: the shipped ones.

    Raises:
        FileNotFoundError: when configs or weights are not there.
    """
    stage = kept_stages(training)[-1]
    datalist_file = stage.parent / DATALIST
    target = folder / stage.name
    target.mkdir(parents=True, exist_ok=True)
    config = yaml.safe_load((stage / runs.CONFIG).read_text(encoding="utf-8"))
    config |= {"dataset_dir": str(dataset_dir), "datalist_file": str(datalist_file), "run_dir": str(folder)}
    runs.write_text(yaml.safe_dump(config, sort_keys=False, allow_unicode=True), target / runs.CONFIG)
    shutil.copyfile(stage / runs.MANIFEST, target / runs.MANIFEST)
    shutil.copyfile(weights, target / runs.WEIGHTS)
    write_network_overlay(folder, datalists.read(datalist_file)["classes"])
    return folder


def by_plane(cases_file: Path) -> list[dict[str, Any]]:
    """Dice and accuracy of each plane, which BRISC writes into the file names.

    Args:
        cases_file: ``cases.csv`` of the evaluation.

    Returns:
        rows of plane, n images, n_tumor, dice (mean over tumor cases), balanced_accuracy.
    """
    with cases_file.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    entries = []
    for plane in PLANES:
        plane_rows = [row for row in rows if plane_of({"image": row["name"]}) == plane]
        if not plane_rows:
            continue
        dice = [float(row["dice"]) for row in plane_rows if row["dice"] != ""]
        true, predicted = ([int(row[key]) for row in plane_rows] for key in ("diagnosis", "predicted"))
        balanced = float(recall_score(true, predicted, average="macro", zero_division=0, labels=sorted(set(true))))
        entry = {"plane": plane, "n": len(plane_rows), "n_tumor": len(dice), "balanced_accuracy": balanced}
        entries.append({**entry, "dice": sum(dice) / len(dice) if dice else None})
    return entries


def failures(cases_file: Path, classes: Mapping[str, str], count: int = 6) -> list[dict[str, Any]]:
    """The masks with the lowest Dice, then the wrong diagnoses with the least probability of the truth.

    Args:
        cases_file: ``cases.csv`` of the evaluation.
        classes: names by index.
        count: at most so many of each kind; a case that is both stands once.
    """
    with cases_file.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    masks = sorted((row for row in rows if row["dice"] != ""), key=lambda row: float(row["dice"]))[:count]
    wrong = [row for row in rows if row["diagnosis"] != row["predicted"]]
    wrong.sort(key=lambda row: float(row[f"probability_{row['diagnosis']}"]))
    chosen = {row["name"]: row for row in [*masks, *wrong[:count]]}
    return [
        {
            "name": row["name"],
            "truth": classes[row["diagnosis"]],
            "said": classes[row["predicted"]],
            "tumor_probability": float(row["tumor_probability"]),
            "dice": float(row["dice"]) if row["dice"] != "" else None,
            "area": int(row["tumor_pixels"]) / int(row["head_pixels"]) if row["dice"] != "" else None,
        }
        for row in chosen.values()
    ]


def localization(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Of ``localization.json``: tumor log-odds, all sources, true masks; one row a method, its best layer."""
    chosen: dict[str, dict[str, Any]] = {}
    for row in rows:
        kind = (row["source"], row.get("class", "all"), row.get("mask", "true"), row["target"])
        if row["method"] not in MAPS or kind != ("all", "all", "true", "tumor_log_odds"):
            continue
        best = chosen.get(row["method"])
        if best is None or (row["tumor_energy"] or 0) > (best["tumor_energy"] or 0):
            chosen[row["method"]] = dict(row)
    return [chosen[name] for name in MAPS if name in chosen]


def on_volumes(files: Sequence[Path], predictor: Predictor) -> list[dict[str, Any]]:
    """What the weights say to volumes of other sequences, none of which they were trained on."""
    results: list[dict[str, Any]] = []
    for file in files:
        try:
            prediction = predictor.predict(file)
        except ValueError as error:
            results.append(
                {"volume": f"{file.parent.name}/{file.name}", "refused": str(error).replace(f"{file.parent}/", "")}
            )
            continue
        scores = [p for p in prediction.slice_probabilities or [] if p is not None]
        results.append(
            {
                "volume": f"{file.parent.name}/{file.name}",
                "refused": None,
                "plane": prediction.plane,
                "tumor_probability": prediction.probability,
                "verdict": prediction.raw["tumor_detected"],
                "predicted_class": prediction.raw["predicted_class"],
                "slices_above": sum(
                    p is not None and p >= prediction.threshold for p in prediction.slice_probabilities or []
                ),
                "slices": len(scores),
                "tumor_voxels": prediction.raw["tumor_voxels"],
                "flags": sorted({flag["code"] for flag in prediction.flags}),
            }
        )
    return results


def certificate(run: Path, dataset_dir: Path) -> dict[str, Any]:
    """What the card shows of the certificate of a run made by `assemble_run`."""
    content = certify_run(run, dataset_dir, kept_stages()[-1].parent / DATALIST)
    shown = ("called tumor", "called that kind", "mask not empty", "evidence anywhere", "evidence peaks there")
    rows = [row for row in content["rows"] if row["measure"] in shown]
    kept = ("identity", "counts", "statements", "dose", "checks", "probes", "realism", "left_out")
    return {"date": date.today().isoformat(), "rows": rows, **{key: content[key] for key in kept}}


def scope_again(run: Path, dataset_dir: Path, volumes: Sequence[Path]) -> dict[str, Any]:
    """The scope of a run made by `assemble_run`, fitted again and put beside the weights; what volumes get with it."""
    folders = {"run_dir": str(run), "dataset_dir": str(dataset_dir), "output_dir": str(run / "scope")}
    (runs.last_stage(run) / scope.FILE).unlink(missing_ok=True)
    run_config("evaluate.yaml", **folders, datalist_file=str(kept_stages()[-1].parent / DATALIST), extras=["scope"])
    shutil.copyfile(runs.last_stage(run) / scope.FILE, ROOT / "models" / scope.FILE)
    result = {"scope": json.loads((run / "scope" / "scope.json").read_text(encoding="utf-8"))}
    return {**result, "volumes": on_volumes(volumes, Predictor())}


PARTS: dict[str, Callable[[Path, Path, Sequence[Path]], dict[str, Any]]] = {
    "certificate": lambda run, dataset_dir, _: {"certificate": certificate(run, dataset_dir)},
    "scope": scope_again,
}


def measure(dataset_dir: Path, volumes: Sequence[Path], folder: Path) -> dict[str, Any]:
    """Everything that the card shows, from the shipped weights and the images."""
    run = assemble_run(folder, dataset_dir)
    datalist_file = kept_stages()[-1].parent / DATALIST
    paths = {"run_dir": str(run), "dataset_dir": str(dataset_dir), "datalist_file": str(datalist_file)}
    evaluation, explanations = run / "evaluation", run / "explanations"
    run_config("evaluate.yaml", **paths, output_dir=str(evaluation))
    # Beside the weights it flags, at inference, what is unlike the training images.
    shutil.copyfile(runs.last_stage(run) / scope.FILE, ROOT / "models" / scope.FILE)
    run_config("explain.yaml", **paths, output_dir=str(explanations), tests=[])
    metrics = json.loads((evaluation / "metrics.json").read_text(encoding="utf-8"))["test"]
    rows = json.loads((explanations / "localization.json").read_text(encoding="utf-8"))
    datalist = datalists.read(datalist_file)
    network, config, _ = runs.load_run(run)
    extras = {}
    for name in ("robustness", "uncertainty", "scope"):
        path = evaluation / f"{name}.json"
        extras[name] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None
    return {
        "date": date.today().isoformat(),
        "weights_sha256": file_sha256(ROOT / "models" / runs.WEIGHTS),
        "parameters": sum(p.numel() for p in network.parameters()),
        "spatial_size": config["spatial_size"],
        "classes": datalist["classes"],
        "counts": {part: len(datalist[part]) for part in datalists.SPLITS},
        "machine": provenance.machine(),
        **training(),
        "overall": metrics["overall"],
        "by_class": metrics["by_class"],
        "by_plane": by_plane(evaluation / "cases.csv"),
        "by_area": metrics.get("by_area"),
        "failures": failures(evaluation / "cases.csv", datalist["classes"]),
        "localization": localization(rows),
        **extras,
        "audit": [
            row
            for row in audit(datalist, dataset_dir, spatial_size=max(config["spatial_size"]))["rows"]
            if row["target"] == "diagnosis" and row["value"] == "tumor"
        ],
        "volumes": on_volumes(volumes, Predictor()),
        "certificate": certificate(run, dataset_dir),
    }


def stages() -> list[dict[str, Any]]:
    """What each stage was and reached on validation, from the kept manifests, configs, datalists and curves."""
    entries = []
    for folder in kept_stages():
        manifest = json.loads((folder / runs.MANIFEST).read_text(encoding="utf-8"))
        config = yaml.safe_load((folder / runs.CONFIG).read_text(encoding="utf-8"))
        datalist = datalists.read(folder.parent / DATALIST)
        epochs = config["max_epochs"]
        epochs = epochs if isinstance(epochs, int) else config["stage_epochs"][config["stage"]]
        # An expression stands for the default where masks and classes are given: mean of Dice and balanced accuracy.
        metric = "combined" if config["key_metric"].startswith("$") else config["key_metric"]
        entry = {
            "run": folder.parent.name,
            "key_metric": metric,
            "stage": config["stage"],
            "images": len(datalist["training"]),
        }
        entry |= {"validation_images": len(datalist["validation"]), "epochs": epochs}
        entry |= {key: manifest[key] for key in ("started", "finished", "command", "commit", "machine")}
        entry["command"] = entry["command"].replace(
            "python -m scripts.train ", "python -m scripts train "
        )  # before verbs
        entry["clean"] = not manifest["commit"].endswith(provenance.CHANGES)
        entry["calibration"] = manifest.get("calibration", "none")
        entry |= {"best_metric": manifest["best_metric"], "best_epoch": manifest["best_epoch"]}
        curves = read_scalars(folder)
        reached = {name: dict(curves.get(f"validation/{name}", ())) for name in REACHED}
        entries.append({**entry, **{name: values.get(manifest["best_epoch"]) for name, values in reached.items()}})
    return entries


def training() -> dict[str, Any]:
    """The stages, and the hours from start to end of each together."""
    entries = stages()
    spans = (datetime.fromisoformat(stage["finished"]) - datetime.fromisoformat(stage["started"]) for stage in entries)
    return {"stages": entries, "training_hours": sum(span.total_seconds() / 3600 for span in spans)}


def number(value: float | None, digits: int = 3) -> str:
    """A number for the card; "n/a" for none."""
    return "n/a" if value is None or math.isnan(value) else f"{value:.{digits}f}"


def interval(bounds: Sequence[float | None] | None) -> str:
    """An interval for the card, empty for none."""
    if not bounds or bounds[0] is None or bounds[1] is None:
        return ""
    return f"[{bounds[0]:.3f}, {bounds[1]:.3f}]"


def render(results: Mapping[str, Any], page: str = "README.md") -> str:
    """Text of a page of the card, one of `CARD`."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
        undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True,
        autoescape=False,
    )  # fmt: skip
    environment.filters.update(number=number, interval=interval)
    return environment.get_template(CARD[page]).render(**results, targets=targets(results), answer_lines=answer_lines)


def execute(arguments: argparse.Namespace) -> Outcome:
    """The verb ``card``.

    Raises:
        ValueError: when there is neither a folder to measure on nor ``--render``.
    """
    pages, written = {ROOT / "docs" / page: page for page in CARD}, [RESULTS]
    if not arguments.render and arguments.dataset_dir is None:
        raise ValueError("--dataset_dir is required: the folder of BRISC 2025; or give --render")
    if arguments.only:
        results = json.loads(RESULTS.read_text(encoding="utf-8"))
        if results["weights_sha256"] != file_sha256(ROOT / "models" / runs.WEIGHTS):
            raise ValueError(
                f"{RESULTS} is of other weights than models/{runs.WEIGHTS}: measure all of it, without --only"
            )
        run = assemble_run(arguments.out, arguments.dataset_dir)
        part = PARTS[arguments.only](run, arguments.dataset_dir, arguments.volumes)
        write_json({**results, **part}, RESULTS)
    elif not arguments.render:
        write_json(measure(arguments.dataset_dir, arguments.volumes, arguments.out), RESULTS)
        meta = json.loads(METADATA.read_text(encoding="utf-8"))
        meta["eval_metrics"] = evaluated(arguments.out)
        METADATA.write_text(json.dumps(meta, indent=4, ensure_ascii=False) + "\n", encoding="utf-8")
        written += [METADATA, arguments.out]
    results = {**json.loads(RESULTS.read_text(encoding="utf-8")), **training()}
    write_json(results, RESULTS)
    for path, page in pages.items():
        path.write_text(render(results, page), encoding="utf-8")
    lines = [f"{row['title']}: {row['value']:.4f} (target {row['goal']})" for row in targets(results)]
    return Outcome("\n".join(lines), [*pages, *written])
