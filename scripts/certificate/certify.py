"""Certificate of a model: does its answer follow the tumor? Interventions with controls, in words and numbers.

    python -m scripts certify --run_dir runs/mine --dataset_dir DIR --datalist_file LIST.json

paints tumors out, moves them into healthy heads, swaps their surroundings and fades them, each beside the same
operation without a tumor, and writes causal.json, causal.csv, examples.png and certificate.html.
"""

from __future__ import annotations

import argparse
from collections import Counter
from pathlib import Path
from typing import Any

import torch

from scripts.certificate.certificate import certify, table
from scripts.certificate.own import OwnRun
from scripts.command.verbs import Outcome
from scripts.evaluation.items import comparison, evaluated_items
from scripts.runs import folder as runs
from scripts.runs.result_files import weights_sha256

FOLDER = "certificate"


def certify_run(
    run_dir: Path, dataset_dir: Path, datalist_file: Path, out: Path | None = None, part: str = "test", **options: Any
) -> dict[str, Any]:
    """Certificate of a run on a part of a datalist.

    Args:
        run_dir: trained run.
        dataset_dir, datalist_file: pictures with masks.
        out: None: ``run_dir/certificate``.
        part: training, validation, test or all.
        options: of `scripts.certificate.certificate.certify`.

    Raises:
        ValueError: when the run has no trained classifier, or the datalist's classes are not its own.
    """
    network, config, _ = runs.load_run(run_dir)
    if "classification" not in network.trained_tasks:
        raise ValueError(f"{run_dir} was not trained to classify: there is no verdict to certify")
    datalist = runs.read_datalist(str(datalist_file), str(dataset_dir))
    classes = comparison(run_dir, network.num_classes, datalist)
    if classes.binary:
        raise ValueError(f"{datalist_file}: {'; '.join(classes.notes)}; give a datalist of the run's own classes")
    items = evaluated_items(datalist, part, str(dataset_dir))
    for item in items:
        if "diagnosis" in item:
            item["diagnosis"] = classes.diagnosis(int(item["diagnosis"]))
    device = "cuda" if torch.cuda.is_available() else "cpu"
    sha = weights_sha256(run_dir)
    subject = OwnRun(network.to(device), config["spatial_size"], classes.names, sha)
    left_out: Counter[str] = Counter()
    cases = subject.cases(items, left_out)
    content = certify(
        subject, cases, out or run_dir / FOLDER, f"{run_dir.name}, weights {sha[:12]}", runs.bootstrap_unit(datalist),
        left_out=left_out, **options,
    )  # fmt: skip
    return content


def execute(arguments: argparse.Namespace) -> Outcome:
    """The verb ``certify``."""
    out = arguments.out or arguments.run_dir / FOLDER
    content = certify_run(
        arguments.run_dir, arguments.dataset_dir, arguments.datalist_file, out, arguments.part,
        tumors=arguments.tumors, healthy=arguments.healthy, infills=arguments.infills, blends=arguments.blends,
        seed=arguments.seed,
    )  # fmt: skip
    return Outcome(table(content), [out / "certificate.html", out / "causal.json"])
