"""Certificate of a model: does its answer follow the tumor? Interventions with controls, in words and numbers.

    python -m scripts certify --run_dir runs/mine --dataset_dir DIR --datalist_file LIST.json

paints tumors out, moves them into healthy heads, swaps their surroundings and fades them, each beside the same
operation without a tumor, and writes causal.json, causal.csv, examples.png and certificate.html.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from scripts.certificate.answers import Subject
from scripts.certificate.bundle_run import BundleRun
from scripts.certificate.cases import Case
from scripts.certificate.certificate import certify, table
from scripts.certificate.exact import paired_phantoms
from scripts.certificate.folders import datalist_cases, read_cases
from scripts.certificate.openers import open_model
from scripts.certificate.settings import Settings
from scripts.command.devices import chosen_device
from scripts.command.verbs import Outcome
from scripts.evaluation.items import compare_classes, comparison, evaluated_items, trained_classes
from scripts.runs import folder as runs
from scripts.runs.artifacts import weights_sha256

FOLDER = "certificate"
# Options that say how many of each are asked: of phantoms all.
KINDS = ("tumors", "healthy")


def certify_run(
    run_dir: Path,
    dataset_dir: Path,
    datalist_file: Path,
    out: Path | None = None,
    part: str = "test",
    device: str | None = None,
    **options: Any,
) -> dict[str, Any]:
    """Certificate of a run on a part of a datalist.

    Args:
        run_dir: trained run.
        dataset_dir, datalist_file: pictures with masks.
        out: None: ``run_dir/certificate``.
        part: training, validation, test or all.
        device: None: CUDA where there is one.
        options: of `scripts.certificate.certificate.certify`.

    Raises:
        ValueError: when the run has no trained classifier, answers in windows of patches, or the datalist's classes
            are not its own.
    """
    subject, name = load_bundle_run(run_dir, device)
    datalist = runs.read_datalist(str(datalist_file), str(dataset_dir))
    classes = comparison(run_dir, subject.network.num_classes, datalist)
    if classes.binary:
        raise ValueError(f"{datalist_file}: {'; '.join(classes.notes)}; give a datalist of the run's own classes")
    subject.classes = classes.names
    items = evaluated_items(datalist, part, str(dataset_dir))
    for item in items:
        if "diagnosis" in item:
            item["diagnosis"] = classes.diagnosis(int(item["diagnosis"]))
    left_out: Counter[str] = Counter()
    cases = subject.cases(items, left_out)
    clustered_by = runs.clustered_by(datalist)
    return certify(subject, cases, out or run_dir / FOLDER, name, clustered_by, left_out=left_out, **options)


def load_bundle_run(run_dir: Path, device: str | None = None) -> tuple[BundleRun, str]:
    """A run as what can be asked, and its name with its weights.

    Args:
        run_dir: trained run.
        device: None: CUDA where there is one.

    Raises:
        ValueError: when it has no trained classifier, or answers in windows of patches.
    """
    network, config, _ = runs.load_run(run_dir)
    if "classification" not in network.trained_tasks:
        raise ValueError(f"{run_dir} was not trained to classify: there is no verdict to certify")
    if config.get("spacing_mm") is not None:
        raise ValueError(
            f"{run_dir} was trained on patches (spacing_mm: {config['spacing_mm']}) and answers in windows; certified "
            "is a network that is given slices or whole volumes (configs/volumetric.yaml)"
        )
    sha = weights_sha256(run_dir)
    names = trained_classes(run_dir) or ["no_tumor", *(f"tumor {k}" for k in range(1, network.num_classes))]
    subject = BundleRun(network.to(chosen_device(device)), config["spatial_size"], names, sha)
    return subject, f"{run_dir.name}, weights {sha[:12]}"


def certify_phantoms(subject: Subject, name: str, out: Path, count: int, seed: int, **options: Any) -> dict[str, Any]:
    """Certificate on people drawn with and without a tumor, the exact counterfactual beside every intervention.

    Args:
        subject: what is asked, of two classes.
        name: of it.
        out: folder to write to.
        count: of people.
        seed: of their heads.
        options: of `scripts.certificate.certificate.certify`.

    Raises:
        ValueError: when the subject knows several kinds of tumor, of which phantoms have one.
    """
    if len(subject.classes) != 2:
        raise ValueError(
            f"paired phantoms have one kind of tumor, {name} knows {len(subject.classes) - 1}: "
            f"{', '.join(subject.classes[1:])}; give --dataset_dir and --datalist_file"
        )
    pairs = paired_phantoms(seed, count)
    cases = [case for pair in pairs for case in (pair.sick, pair.healthy)]
    return certify(subject, cases, out, name, "person", seed=seed, pairs=pairs, **(options | dict.fromkeys(KINDS)))


def certify_model(
    spec: str, settings: Settings, cases: Sequence[Case], out: Path, clustered_by: str, **options: Any
) -> dict[str, Any]:
    """Certificate of anybody's classifier or segmenter.

    Args:
        spec: see `scripts.certificate.openers.open_model`.
        settings: what it takes and gives.
        cases: pictures of gray values 0..255.
        out: folder to write to.
        clustered_by: what intervals are resampled by.
        options: of `scripts.certificate.certificate.certify`.
    """
    subject = open_model(spec, settings)
    name = Path(spec).name if not spec.startswith("http") else spec
    return certify(subject, cases, out, name, clustered_by, batch_size=settings.batch_size, **options)


def _pictures(arguments: argparse.Namespace, classes: list[str], left_out: Counter[str]) -> tuple[list[Case], str]:
    """Cases of somebody's pictures, and what intervals are resampled by."""
    if arguments.folder is not None:
        limit = arguments.tumors + arguments.healthy
        return read_cases(arguments.folder, arguments.masks, classes, left_out, limit), "picture"
    if arguments.datalist_file is None or arguments.dataset_dir is None:
        raise ValueError("give --folder and --masks, or --dataset_dir and --datalist_file")
    datalist = runs.read_datalist(str(arguments.datalist_file), str(arguments.dataset_dir))
    met = compare_classes(classes, len(classes), [datalist["classes"][str(k)] for k in range(len(datalist["classes"]))])
    if met.binary and len(classes) > 2:  # a model of two classes knows any tumor and none
        raise ValueError(f"{arguments.datalist_file}: {'; '.join(met.notes)}; name the classes in --model_config alike")
    items = evaluated_items(datalist, arguments.part, str(arguments.dataset_dir))
    return datalist_cases(items, met.index, left_out), runs.clustered_by(datalist)


def execute(arguments: argparse.Namespace) -> Outcome:
    """The verb ``certify``; fails when a property fails or a picture was skipped.

    Raises:
        ValueError: when the model or the pictures are not named, or the model's answers are none.
    """
    if (arguments.run_dir is None) == (arguments.model is None):
        raise ValueError("give either --run_dir (a run of this bundle) or --model (anybody's)")
    options = {name: getattr(arguments, name) for name in (*KINDS, "infills", "blends", "seed")}
    phantoms = arguments.phantoms
    if phantoms is not None:
        pictures = ("dataset_dir", "datalist_file", "folder", "masks")
        if named := [f"--{name}" for name in pictures if getattr(arguments, name) is not None]:
            raise ValueError(f"--phantoms are drawn in place of pictures: leave out {', '.join(named)}")
        if phantoms < 1:
            raise ValueError(f"--phantoms is the number of people drawn, 1 or more, got {phantoms}")
    if arguments.run_dir is not None:
        out = arguments.out or arguments.run_dir / (f"{FOLDER}_phantoms" if phantoms else FOLDER)
        if phantoms:
            subject, name = load_bundle_run(arguments.run_dir, arguments.device)
            content = certify_phantoms(subject, name, out, phantoms, **options)
        elif arguments.datalist_file is None or arguments.dataset_dir is None:
            raise ValueError("a run is certified on --dataset_dir and --datalist_file, or on --phantoms")
        else:
            data = arguments.dataset_dir, arguments.datalist_file
            content = certify_run(arguments.run_dir, *data, out, arguments.part, arguments.device, **options)
    elif arguments.device is not None:
        raise ValueError("--device is where a run computes; a --model of your own computes where it was built to")
    else:
        out = arguments.out or Path("runs") / FOLDER
        settings = Settings() if arguments.model_config is None else Settings.read(arguments.model_config)
        if phantoms:
            model = open_model(arguments.model, settings)
            options["batch_size"] = settings.batch_size
            content = certify_phantoms(model, model.name, out, phantoms, **options)
        else:
            classes = sorted(settings.classes, key=lambda name: name != settings.no_tumor)
            left_out: Counter[str] = Counter()
            cases, clustered_by = _pictures(arguments, list(classes), left_out)
            content = certify_model(arguments.model, settings, cases, out, clustered_by, left_out=left_out, **options)
    skipped = [row for row in content["left_out"] if row["what"] == "pictures"]
    text = "".join(f"\nskipped: {row['n']} pictures: {row['reason']}" for row in skipped)
    failed = bool(skipped) or any(statement["verdict"] == "fails" for statement in content["statements"])
    return Outcome(table(content) + text, [out / "certificate.html", out / "causal.json"], failed)
