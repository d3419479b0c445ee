"""Run folders with known numbers, and models read from none, for the tests of the comparison."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from pathlib import Path

import torch
import yaml
from monai.bundle import ConfigParser

from scripts.comparison.trained_models import Model
from tests import scans

NETWORK = {**scans.NETWORK, "filters": [2, 2, 4], "evidence_channels": 2}
# Four patients, two of them with a tumor; patient a has two slices.
PATIENTS = ["a", "a", "b", "c", "d"]
DIAGNOSIS = [1, 1, 1, 0, 0]
DICE = [0.8, 0.6, 0.5]
PROBABILITY = [0.9, 0.8, 0.4, 0.3, 0.2]
ENERGY = [0.9, 0.7, 0.5]


def case_rows(
    dice: Sequence[float | None] = DICE, probability: Sequence[float] = PROBABILITY, names: str = "12345"
) -> list[dict[str, str]]:
    """Rows of evaluation/cases.csv; threshold 0.5."""
    padded = [*dice, None, None]
    return [
        {
            "name": names[i],
            "source": "s",
            "patient": PATIENTS[i],
            "diagnosis": str(DIAGNOSIS[i]),
            "predicted": str(int(probability[i] >= 0.5)),
            "tumor_probability": str(probability[i]),
            "dice": "" if padded[i] is None else str(padded[i]),
        }
        for i in range(len(PATIENTS))
    ]


def map_rows(
    energy: Sequence[float] = ENERGY, method: str = "evidence", layer: str = "evidence", names: str = "12345"
) -> list[dict[str, str]]:
    """Rows of explanations/cases.csv: pointing right where the energy is 0.6 or more, nothing in air."""
    return [
        {
            "method": method,
            "layer": layer,
            "target": "tumor_log_odds",
            "mask": "true",
            "name": names[i],
            "source": "s",
            "tumor_area": "0.1",
            "tumor_energy": str(value),
            "pointing_game": str(float(value >= 0.6)),
            "background_energy": "0.0",
            "empty": "0.0",
        }
        for i, value in enumerate(energy)
    ]


def made_model(name: str = "ours", seed: int = 0, tasks: Sequence[str] = ("segmentation", "classification"), **given):
    """A `Model` without a folder; ``dice``, ``probability`` and ``energy`` as in `case_rows` and `map_rows`."""
    cases = case_rows(
        given.pop("dice", DICE), given.pop("probability", PROBABILITY), names := given.pop("names", "12345")
    )
    maps = map_rows(given.pop("energy", ENERGY), names=names)
    values = {
        "folder": Path(f"runs/{name}/seed{seed}"),
        "parameters": 100,
        "seconds": 60.0,
        "method": "evidence",
        "layer": "evidence",
        "cases": {("s", row["name"]): row for row in cases},
        "maps": {("s", row["name"]): row for row in maps} if "classification" in tasks else {},
        "datalist": "f" * 64,
        "evaluated": "f" * 64,
        "size": [64, 64],
        **given,
    }
    return Model(name=name, seed=seed, tasks=set(tasks), **values)


def write_rows(rows: Sequence[dict[str, str]], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def made_stage(folder: Path, seed: int = 0, datalist: str = "f" * 64, **config) -> Path:
    """config.yaml, manifest.json and model.pt of a trained stage; 30 seconds of training."""
    folder.mkdir(parents=True, exist_ok=True)
    config = {"spatial_size": [64, 64], "seed": seed, "num_classes": 2, "network_def": NETWORK, **config}
    (folder / "config.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    manifest = {"seed": seed, "datalist_sha256": datalist, "machine": "a machine", "training_seconds": 30.0}
    (folder / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    network = ConfigParser(config).get_parsed_content("network_def")
    torch.save(network.state_dict(), folder / "model.pt")
    return folder


def made_evaluation(
    folder: Path, cases: Sequence[dict[str, str]], maps: Sequence[dict[str, str]] | None = None, part: str = "test"
) -> None:
    """evaluation/ and explanations/ of a run or stage."""
    write_rows(cases, folder / "evaluation" / "cases.csv")
    (folder / "evaluation" / "metrics.json").write_text(json.dumps({part: {"overall": {}}}), encoding="utf-8")
    if maps is not None:
        write_rows(maps, folder / "explanations" / "cases.csv")


def made_certificate(folder: Path, painted_out: float, identity: str = "sha", probed: int = 20) -> None:
    """certificate/causal.json of a run, and the answers of its evaluation: two infills, nothing moved."""

    def row(how: str, measure: str, after: float, part: str = "all") -> dict[str, object]:
        own = {"test": "removal", "how": how, "measure": measure, "part": part}
        return {**own, "before": 0.95, "after": after, "control": 0.94}

    rows = [
        row("telea", "called tumor", painted_out - 0.1),
        row("poisson", "called tumor", painted_out + 0.1),
        row("telea", "called that kind", 0.0),
        row("telea", "called tumor", 0.0, "class glioma"),
    ]
    (folder / "certificate").mkdir(parents=True, exist_ok=True)
    probes = [
        {"probe": "corner", "changed": 0.1, "control": 0.0},
        {"probe": "skull", "changed": painted_out, "control": 0.05},
        {"probe": "air", "changed": None, "control": None},
    ]
    content = {"identity": identity, "rows": rows, "probes": probes if probed else [], "options": {"probes": probed}}
    (folder / "certificate" / "causal.json").write_text(json.dumps(content), "utf-8")
    answers = {"contradictions": {"raw": {"mean": 0.05}}, "both_right": {"raw": {"mean": 0.8}}}
    answers["uncertain_rate"] = {"mean": 0.02}
    metrics = {"test": {"overall": {"answers": answers}}}
    (folder / "evaluation").mkdir(parents=True, exist_ok=True)
    (folder / "evaluation" / "metrics.json").write_text(json.dumps(metrics), "utf-8")
