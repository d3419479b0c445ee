"""Models beside each other, from their runs' own files: a table, a CSV, figures and paired differences.

A run is a folder of `scripts.training.train`; a folder of ``seed<k>`` folders is one model with several seeds. The
first is what the others are compared with. With --dataset_dir and --datalist_file, what was not evaluated yet is
evaluated first::

    python -m scripts compare runs/demo/ours runs/demo/baseline
    python -m scripts compare runs/ablation/ours runs/ablation/densenet121 --dataset_dir DIR --datalist_file LIST.json
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from scripts.command.verbs import Outcome
from scripts.command.workflows import run_config
from scripts.comparison import comparison_files
from scripts.comparison.comparison import compare
from scripts.comparison.trained_models import Model, expand, read_model, stage_folders, stale
from scripts.evaluation.explanation_plan import MAIN_TARGET, main_layers, main_map
from scripts.runs import folder as runs

logger = logging.getLogger(__name__)

STAGE_TITLES = {"stage1_segmentation": "stage 1", "stage2_classification": "stage 2"}


def evaluate_missing(folder: Path, paths: Mapping[str, str], part: str = "test") -> None:
    """Evaluate and explain a run, or a stage of one, where that was not done with the weights that it has now.

    Its main map alone is measured.

    Args:
        folder: of the run or stage.
        paths: dataset_dir and datalist_file.
        part: of the datalist.
    """
    if not (folder / "evaluation" / "metrics.json").is_file() or any(stale(folder, "evaluation/metrics.json")):
        settings = {"run_dir": str(folder), "output_dir": str(folder / "evaluation"), "part": part, "extras": []}
        run_config("evaluate.yaml", **settings, **paths)
    trained = runs.trained_tasks(runs.last_stage(folder))
    old = any(stale(folder, "explanations/localization.json"))
    if "classification" in trained and (old or not (folder / "explanations" / "cases.csv").is_file()):
        network, _, _ = runs.load_run(folder)
        method, _ = main_map(network)
        plan = {"methods": [method], "targets": [MAIN_TARGET], "layers": list(main_layers(network))}
        run_config("explain.yaml", run_dir=str(folder), part=part, gallery_cases=0, tests=[], **plan, **paths)


def read_models(
    folders: Sequence[str | Path], part: str = "test", paths: Mapping[str, str] | None = None, stages: bool = True
) -> list[Model]:
    """Models of runs, and of their stages as far as these were evaluated.

    Args:
        folders: of `expand`.
        part: of the datalist.
        paths: dataset_dir and datalist_file, to evaluate what was not; None: only what is there is read.
        stages: take the stages before the last as models of their own.
    """
    models: list[Model] = []
    for name, folder in expand(folders):
        for stage in stage_folders(folder) if stages else []:
            if paths is not None:
                evaluate_missing(stage, paths, part)
            if (stage / "evaluation" / "metrics.json").is_file():
                models.append(read_model(f"{name}, {STAGE_TITLES[stage.name]}", stage, part))
            else:
                logger.info("%s was not evaluated: no row for it", stage)
        if paths is not None:
            evaluate_missing(folder, paths, part)
        models.append(read_model(name, folder, part))
    return models


def write_comparison(
    folders: Sequence[str | Path],
    out: str | Path,
    reference: str | None = None,
    part: str = "test",
    paths: Mapping[str, str] | None = None,
    stages: bool = True,
) -> dict[str, Any]:
    """Write comparison.json, model_comparison.csv, model_comparison.png and paired_differences.png.

    Args:
        folders: runs, or folders of their seeds.
        out: folder to write to.
        reference: name of a row; None: the first run.
        part, paths, stages: see `read_models`.

    Returns:
        the content of comparison.json.
    """
    models = read_models(folders, part, paths, stages)
    reference = expand(folders)[0][0] if reference is None else reference
    result = compare(models, reference) | {"part": part}
    comparison_files.write(result, out, "comparison")
    return result


def execute(arguments: argparse.Namespace) -> Outcome:
    """The verb ``compare``."""
    data = arguments.dataset_dir, arguments.datalist_file
    if (data[0] is None) != (data[1] is None):
        raise ValueError("give both --dataset_dir and --datalist_file, or neither")
    paths = None if data[0] is None else {"dataset_dir": str(data[0]), "datalist_file": str(data[1])}
    out = arguments.out or arguments.runs[0].resolve().parent / "comparison"
    result = write_comparison(arguments.runs, out, arguments.reference, arguments.part, paths, not arguments.no_stages)
    return Outcome(comparison_files.table(result) + "\n", [out])
