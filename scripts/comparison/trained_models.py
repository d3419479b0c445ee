"""Measures and trained models of a comparison, as the run folders describe them."""

from __future__ import annotations

import csv
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

from scripts.evaluation.explanation_plan import MAIN_TARGET, main_map
from scripts.runs import folder as runs
from scripts.runs.artifacts import EVALUATION, EXPLANATION, marks, weights_sha256

__all__ = ["MEASURES", "Key", "Measure", "Model", "check_comparable", "expand", "read_model", "stage_folders"]

Key = tuple[str, str]  # source and name of a case
SEED_FOLDER = re.compile(r"seed_?\d+$")


@dataclass(frozen=True)
class Measure:
    """A column of the comparison.

    Attributes:
        name, label: in the files and on paper.
        task: what a model has to be trained for, "segmentation" or "classification".
        higher: whether more is better.
        kind: of `scripts.runs.documents.format_number`.
        maps: whether it stands in explanations/cases.csv; otherwise in evaluation/cases.csv.
        margin: difference that counts as none.
    """

    name: str
    label: str
    task: str
    higher: bool
    kind: str
    maps: bool = False
    margin: float | None = 0.02


MEASURES = (
    Measure("dice", "Dice over tumor cases", "segmentation", True, "ratio"),
    Measure("balanced_accuracy", "Balanced accuracy", "classification", True, "ratio"),
    Measure("roc_auc", "ROC-AUC, tumor against none", "classification", True, "ratio"),
    Measure("tumor_energy", "Energy in tumor", "classification", True, "percent", True),
    Measure("pointing_game", "Pointing game", "classification", True, "percent", True),
    Measure("background_energy", "Energy in air", "classification", False, "percent", True),
    Measure("empty", "Empty maps", "classification", False, "percent", True),
)


@dataclass
class Model:
    """One trained network: a run, or the state of it after a stage.

    Attributes:
        name: of its row; runs of one name are seeds of one model.
        seed: of its training.
        folder: of the run or stage.
        tasks: what it was trained for.
        parameters: of the parts that its tasks need.
        seconds: of training, the stages before included, on the clock of the machine that `machine` names.
        method, layer: of its main map; None where its head was not trained.
        cases: evaluated, by source and name.
        maps: rows of its main map against the true masks, of cases with a tumor in them, by source and name.
        datalist: SHA-256 of the datalist that it was trained on; `evaluated`: of the one it was evaluated on.
        size: of its input in pixels.
        notes: what its evaluation says about itself.
    """

    name: str
    seed: int
    folder: Path
    tasks: set[str]
    parameters: int
    seconds: float
    method: str | None
    layer: str | None
    cases: dict[Key, dict[str, str]]
    maps: dict[Key, dict[str, str]]
    datalist: str
    evaluated: str | None
    size: list[int]
    machine: str = ""
    notes: list[str] = field(default_factory=list)

    def has(self, measure: Measure) -> bool:
        """Whether it was trained for what is measured."""
        return measure.task in self.tasks

    def column(self, measure: Measure, keys: Sequence[Key]) -> NDArray[np.float64]:
        """A measure that is a mean over cases, by case; NaN where it is not defined."""
        rows = self.maps if measure.maps else self.cases
        return np.array([_real(rows[key][measure.name]) if key in rows else math.nan for key in keys])


def _real(text: str) -> float:
    return float(text) if text != "" else math.nan


def expand(paths: Sequence[str | Path]) -> list[tuple[str, Path]]:
    """(name, folder) of the runs to compare: a folder of ``seed<k>`` folders stands for all of them.

    Raises:
        FileNotFoundError: when a folder does not exist.
    """
    run_folders = []
    for path in map(Path, paths):
        if not path.is_dir():
            raise FileNotFoundError(f"{path} is not a folder: give trained runs")
        seeds = sorted(p for p in path.iterdir() if p.is_dir() and SEED_FOLDER.match(p.name))
        for folder in seeds or [path]:
            resolved = folder.resolve()
            run_folders.append((resolved.parent.name if SEED_FOLDER.match(resolved.name) else resolved.name, folder))
    return run_folders


def stage_folders(run_dir: str | Path) -> list[Path]:
    """Trained stages of a run before its last."""
    last = runs.last_stage(run_dir)
    stages = [Path(run_dir) / stage for stage in runs.STAGES]
    return [s for s in stages if s != last and last in stages and (s / runs.CONFIG).is_file()]


def training_seconds(stage_dir: Path) -> float:
    """Seconds of a stage: from the first to the last event of each of its TensorBoard files, interruptions left out."""
    manifest = runs.read_manifest(stage_dir)
    if "training_seconds" in manifest:
        return float(manifest["training_seconds"])
    total = 0.0
    for path in stage_dir.glob("events.out.tfevents.*"):
        times = [event.wall_time for event in EventFileLoader(str(path)).Load()]
        total += max(times) - min(times) if times else 0.0
    return total


def read_model(name: str, folder: str | Path, part: str = "test") -> Model:
    """Read a trained model from the files of a run, or of one of its stages.

    Args:
        name: of its row.
        folder: the run's or the stage's.
        part: of the datalist that was evaluated.

    Raises:
        FileNotFoundError: when it was not trained, evaluated or explained.
        ValueError: when another part was evaluated, or the files are of other weights than the model has now, or of
            an older version that left out what is compared.
    """
    folder = Path(folder)
    network, config, last = runs.load_run(folder)
    manifest = runs.read_manifest(last)
    tasks = runs.trained_tasks(last)
    metrics = _read_json(folder / "evaluation" / "metrics.json")
    if part not in metrics:
        known = [key for key, value in metrics.items() if isinstance(value, dict) and "overall" in value]
        raise ValueError(f"{folder}/evaluation is of the part {', '.join(known)}, not {part!r}; evaluate that part")
    unmarked = _check_weights(folder)
    cases = _by_case(_read_csv(folder / "evaluation" / "cases.csv"), folder)
    method, layer = main_map(network) if "classification" in tasks else (None, None)
    maps = {}
    if method is not None:
        rows = _read_csv(folder / "explanations" / "cases.csv")
        wanted = {"method": method, "layer": layer, "target": MAIN_TARGET, "mask": "true"}
        lacking = [name for name in (*wanted, *(m.name for m in MEASURES if m.maps)) if rows and name not in rows[0]]
        if lacking:
            raise ValueError(
                f"{folder}/explanations/cases.csv has no column {', '.join(lacking)}: written by an older version; run "
                "explain again"
            )
        matches = [row for row in rows if all(row.get(k) == v for k, v in wanted.items())]
        # Where there is no tumor an empty map is right: those cases are not for these measures.
        maps = _by_case([row for row in matches if float(row["tumor_area"]) > 0], folder)
        if not maps:
            raise ValueError(f"{folder}/explanations/cases.csv holds no map {method} at {layer}; explain the run again")
    before = [s for s in (last.parent / stage for stage in runs.STAGES) if (s / runs.CONFIG).is_file()]
    stages = before[: before.index(last) + 1] if last in before else [last]
    parts = ["encoder"] + ["decoder"] * ("segmentation" in tasks) + ["head"] * ("classification" in tasks)
    return Model(
        name=name,
        seed=int(manifest["seed"]),
        folder=folder,
        tasks=tasks,
        parameters=sum(p.numel() for part_ in parts for p in network.parameters_of(part_)),
        seconds=sum(training_seconds(stage) for stage in stages),
        method=method,
        layer=layer,
        cases=cases,
        maps=maps,
        datalist=manifest["datalist_sha256"],
        evaluated=metrics.get("provenance", {}).get("datalist_sha256"),
        size=list(config["spatial_size"]),
        machine=manifest["machine"],
        notes=[*metrics.get("notes", []), *unmarked],
    )


def stale(folder: Path, name: str) -> list[str | None]:
    """Hashes of weights, other than the run's, that a results file is of; None among them where it names none.

    Args:
        folder: of the run or stage.
        name: the file in it; where there is none, nothing is stale.
    """
    path = folder / name
    if not path.is_file():
        return []
    now = weights_sha256(folder)
    return [digest for digest in marks(_read_json(path)) if digest != now]


def _check_weights(folder: Path) -> list[str]:
    """Refuse results of other weights than the run has now; note where a file does not say."""
    notes = []
    for name in (f"evaluation/{EVALUATION.main}", f"explanations/{EXPLANATION.main}"):
        for digest in stale(folder, name):
            if digest is not None:
                raise ValueError(
                    f"{folder}/{name} is of other weights ({digest[:8]}) than the run has now "
                    f"({weights_sha256(folder)[:8]}); evaluate and explain it again"
                )
            notes.append(f"{name} does not say which weights it is of: written by an older version")
    return notes


def _read_json(path: Path) -> Any:
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing: evaluate the run first, or give --dataset_dir and --datalist_file")
    return json.loads(path.read_text(encoding="utf-8"))


def _read_csv(path: Path) -> list[dict[str, str]]:
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} is missing: evaluate and explain the run first, or give --dataset_dir and --datalist_file"
        )
    with open(path, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def _by_case(rows: Sequence[dict[str, str]], folder: Path) -> dict[Key, dict[str, str]]:
    by_case = {(row["source"], row["name"]): row for row in rows}
    if len(by_case) < len(rows):
        raise ValueError(f"{folder}: cases of one source and name stand twice in its tables")
    return by_case


def check_comparable(models: Sequence[Model]) -> None:
    """Refuse models that were not trained on one split and measured on the same cases.

    Raises:
        ValueError: saying what differs.
    """
    first = models[0]
    seen: dict[tuple[str, int], Path] = {}
    for model in models:
        twice = seen.setdefault((model.name, model.seed), model.folder)
        if twice != model.folder:
            raise ValueError(
                f"{twice} and {model.folder} are both {model.name!r} with seed {model.seed}; leave one out"
            )
        both = f"{first.folder} and {model.folder}"
        if model.datalist != first.datalist:
            raise ValueError(
                f"{both} were trained on different datalists ({first.datalist[:8]} and {model.datalist[:8]}): test "
                "cases of the one may be training cases of the other; train both on one datalist"
            )
        if None not in (model.evaluated, first.evaluated) and model.evaluated != first.evaluated:
            raise ValueError(f"{both} were evaluated on different datalists; evaluate both on one")
        if model.size != first.size:
            raise ValueError(
                f"{both} work on images of {first.size} and {model.size} pixels; Dice is not the same there"
            )
        _same_cases(first.cases, model.cases, f"{both} were evaluated on different cases")
        wrong = [key for key in first.cases if first.cases[key]["diagnosis"] != model.cases[key]["diagnosis"]]
        if wrong:
            raise ValueError(f"{both} disagree on the true diagnosis of {len(wrong)} cases, first {wrong[0][1]!r}")
    explained = [model for model in models if model.maps]
    for model in explained:
        both = f"the maps of {explained[0].folder} and {model.folder} were measured on different cases"
        _same_cases(explained[0].maps, model.maps, both)


def _same_cases(first: Mapping[Key, Any], other: Mapping[Key, Any], what: str) -> None:
    only, more = sorted(first.keys() - other.keys()), sorted(other.keys() - first.keys())
    if only or more:
        example = (only or more)[0]
        raise ValueError(
            f"{what}: {len(only)} stand only in the first, {len(more)} only in the second (one is {example[1]!r} of "
            f"source {example[0]!r}); differences are taken case by case, so evaluate both on the same"
        )
