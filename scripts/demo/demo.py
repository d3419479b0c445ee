"""The whole way in one command: data, three stages and the stock design beside them, evaluation, explanation, report.

On phantoms made here, or on a folder ``images/<class>/*`` with optional ``masks/<same stem>.png``::

    python -m scripts demo
    python -m scripts demo --folder DIR --limit 400
"""

from __future__ import annotations

import argparse
import logging
import time
from functools import partial
from pathlib import Path
from typing import Any

from scripts.checks.audit import audit, write_audit
from scripts.command import yaml_text
from scripts.command.files import write_json
from scripts.command.locations import CONFIGS, ROOT
from scripts.command.verbs import Outcome
from scripts.command.workflows import run_config
from scripts.data.datalists import schema as datalists
from scripts.data.datalists.folders import image_folder
from scripts.data.datalists.volumes import nifti_cases
from scripts.demo.side_by_side import side_by_side
from scripts.demo.steps import Steps
from scripts.inference import shipped
from scripts.phantoms.dataset import make_phantoms
from scripts.report import report
from scripts.training.train import train

logger = logging.getLogger(__name__)

RUNS = {"ours": "TumorLens", "baseline": "stock design"}
NOTES = {
    "ours": "three stages: segmentation, classification head, both together",
    "baseline": "DynUNet with plain instance normalization and a classification head on the average of the bottleneck, "
    "trained alike",
}
BOTH = "train, evaluate and explain both"
LOG = "demo.log"  # in a run's folder: what its process printed
# Usual shares of the time, in seconds of two CPU cores, for the estimate of what is left.
STEPS: dict[str, float] = {
    "list the images": 20,
    "audit them for shortcuts": 15,
    BOTH: 420,
    "write the report": 10,
}
FIRST_LOOK = "ask the shipped weights about some of the images"
AUDITED = 200  # images
# Cheap settings of configs/evaluate.yaml; its defaults are for figures to rely on.
EXTRAS: dict[str, dict[str, Any]] = {
    "ours": {"uncertainty_cases": 16, "robustness_cases": 16, "scope_cases": 60},
    "baseline": {"extras": []},
}
PHANTOM_PATIENTS, PHANTOM_SINGLES = 80, 160
REAL_EPOCHS = 2.0
COUNTS = {"found": "found", "used": "used", "refused": "refused", "beyond_limit": "beyond --limit"}
PHANTOM_NOTE = (
    "The images are phantoms: drawn by a program, easier than patients. They show that the way works, not how well."
)


def phantom_datalist(folder: Path, seed: int) -> dict[str, Any]:
    """Make the two phantom sources, or find them made, and list them together."""
    make_phantoms(folder, seed=seed, patients=PHANTOM_PATIENTS, singles=PHANTOM_SINGLES)
    volumes, _ = nifti_cases(
        folder / "patients", root=folder, name="patients", seed=seed, tumor_slices=4, normal_slices=2
    )
    slices, _ = image_folder(folder / "singles", root=folder, name="singles", seed=seed, modality="FLAIR")
    return datalists.merge([volumes, slices], name="phantoms")


def _write_report(report: datalists.Report, path: Path) -> str:
    """Write a datalist's report; the line that says how many images were found and used."""
    datalists.write_report(report, path)
    counts = ", ".join(f"{report.figures[key]} {text}" for key, text in COUNTS.items())
    return f"images: {counts}; reasons and notes in {path}"


def demo(
    out: Path,
    data: Path | None = None,
    limit: int | None = None,
    seed: int = 0,
    size: Path = CONFIGS / "demo.yaml",
    epochs: float | None = None,
    precision: str = "auto",
) -> str:
    """Run the demo.

    Args:
        out: folder of runs and report.
        data: the user's folder; None makes phantoms in ``data/phantoms``.
        limit: at most so many images of the user's folder.
        seed: of phantoms, split and training.
        size: overlay of the training config with image size, network and epochs.
        epochs: factor of the overlay's epochs; None: 1 on phantoms, 2 on real images, which are harder.
        precision: of the trainings, of `scripts.training.precision.PRECISIONS`.

    Returns:
        the tables to print.
    """
    start = time.monotonic()
    step = Steps(STEPS if data is None else {**STEPS, FIRST_LOOK: 1})
    images = None
    with step("list the images"):
        if data is None:
            folder = ROOT / "data" / "phantoms"
            datalist = phantom_datalist(folder, seed)
        else:
            folder = data
            datalist, images = image_folder(folder, limit=limit, seed=seed)
        out.mkdir(parents=True, exist_ok=True)
        summaries = [] if images is None else [_write_report(images, out / "datalist.report.json")]
        datalists.assert_no_overlap(datalist)
        datalist_file = out / "datalist.json"
        datalists.write(datalist, datalist_file)
        write_json(report.data_summary(datalist, notes=[PHANTOM_NOTE] if data is None else []), out / "data.json")
    paths = {"dataset_dir": str(folder), "datalist_file": str(datalist_file)}
    settings = yaml_text.load(size.read_text(encoding="utf-8"))
    with step("audit them for shortcuts", "what air, geometry and histogram alone tell about the diagnosis"):
        audited = audit(datalist, folder, max(settings["spatial_size"]), AUDITED, seed)
        write_audit(audited, out / "ours")

    factor = epochs if epochs is not None else (1.0 if data is None else REAL_EPOCHS)
    stage_epochs = {stage: max(1, round(n * factor)) for stage, n in settings["stage_epochs"].items()}
    overlays = {"ours": [size], "baseline": [CONFIGS / "baseline.yaml", size]}
    jobs = {
        title: partial(_one_run, out / name, overlays[name], stage_epochs, EXTRAS[name], paths, seed, precision)
        for name, title in RUNS.items()
    }
    logs = {title: out / name / LOG for name, title in RUNS.items()}
    with step(BOTH, "\n  ".join(f"{RUNS[name]}: {note} ({logs[RUNS[name]]})" for name, note in NOTES.items())):
        side_by_side(jobs, logs)
    with step("write the report"):
        page = report.write_report(out, RUNS)
    tables = [*summaries, f"{report.comparison_table(out, RUNS)}\nstock design: {NOTES['baseline']}"]
    if data is not None:
        with step(FIRST_LOOK):
            first_look = shipped.predict_some(datalist, folder, out / "shipped")
        tables += [first_look] if first_look else []
    minutes = (time.monotonic() - start) / 60
    return "\n\n".join(
        [*tables, f"finished in {minutes:.1f} minutes\ncurves: tensorboard --logdir {out}\nreport: {page}"]
    )


def _one_run(
    run: Path,
    overlays: list[Path],
    stage_epochs: dict[str, int],
    evaluation: dict[str, Any],
    paths: dict[str, str],
    seed: int,
    precision: str,
) -> None:
    """Train a run, evaluate and explain it."""
    train(run, overlays, seed=seed, precision=precision, stage_epochs=stage_epochs, **paths)
    run_config("evaluate.yaml", run_dir=str(run), **evaluation, **paths)
    run_config("explain.yaml", run_dir=str(run), **paths)


def execute(arguments: argparse.Namespace) -> Outcome:
    """The verb ``demo``."""
    out = arguments.out or ROOT / "runs" / ("demo" if arguments.folder is None else f"demo-{arguments.folder.name}")
    text = demo(
        out, arguments.folder, arguments.limit, arguments.seed, epochs=arguments.epochs, precision=arguments.precision
    )
    return Outcome(text, [out / "report.html"])
