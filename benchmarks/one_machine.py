"""What one machine's time goes to, as ratios within one run: ours, MONAI's stock way and the goal in one table.

    python -m benchmarks.one_machine [--images DIR] [--count 24] [--rounds 3] [--slices 12] [--training] [--out FILE]

Lines of `benchmarks.data`, `benchmarks.inference` and, with ``--training`` (some minutes more), `benchmarks.training`,
measured as they say: CPU time of one thread, jobs in turn, medians over the rounds. Bare decoding and resizing is
Pillow's, to 256 x 256 float32. MONAI has no verification of data, no overlay and no evidence: its place is empty there.
``--images`` is loaded and verified in place of drawn pictures: a folder images/<class>/*, with masks/<stem>.png or not.
A part is evaluated, and explained by its evidence, once its items are loaded: half of them have a tumor.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from monai.engines import SupervisedEvaluator
from monai.inferers import SimpleInferer
from PIL import Image

from benchmarks import data, inference, training
from benchmarks.timing import CLOCKS, machine, timed
from scripts import phantoms
from scripts.checks.verify_data import verify
from scripts.command import errors
from scripts.command.files import write_json
from scripts.command.locations import ROOT
from scripts.command.machine import tune_process
from scripts.data.preprocessing import collate, make_training_pipeline
from scripts.evaluation.evaluation import CaseResults
from scripts.evaluation.explanation_plan import MAIN_TARGET, make_plan
from scripts.evaluation.items import EvaluationDataset
from scripts.evaluation.localization import measure
from scripts.inference.pipeline import Inference
from scripts.training.engines import MultiTaskStep, lift_of, prepare_batch

BATCH = 8  # of a part
COLD, CACHED = "cold, image", "cached, flips and intensity"
# Rows of the training's benchmark that are goals of one machine.
TRAINED = ("full step / bare", "stage 2 epoch", "the same with cached", "as shipped / stock")


@dataclass
class Line:
    """One line of the table; ``monai`` in the same unit, None where MONAI has no such thing."""

    name: str
    ours: float
    unit: str
    goal: float
    monai: float | None = None


def bare(path: str) -> np.ndarray:
    """A picture decoded and resized, nothing else."""
    with Image.open(path) as opened:
        return np.asarray(opened.convert("L").resize((data.SIZE, data.SIZE), Image.Resampling.BILINEAR), np.float32)


def loading(folder: Path, count: int, rounds: int, images: Path | None = None) -> list[Line]:
    """Cold and cached loading, and verification; of copies of pictures, or of drawn ones."""
    items = data.draw(folder, count) if images is None else data.copies(images, folder, count)
    count = len(items)
    every = data.lines(items, folder)
    chosen = {name: every[name] for name in (COLD, CACHED)}
    chosen["bare"] = {"ours": lambda k: bare(items[k % count]["image"])}
    times = {(row["what"], row["who"]): row["median_ms"] for row in data.measure(chosen, count, rounds, progress=False)}
    listed: dict[str, Any] = {"name": "drawn", "modality": {"0": "T1"}, "classes": {"0": "no_tumor", "1": "tumor"}}
    listed |= {"training": [{**item, "source": "drawn"} for item in items], "validation": [], "test": []}
    verify(listed, folder, data.SIZE, progress=False)
    spent = []
    for _ in range(rounds):
        start = time.process_time()
        verify(listed, folder, data.SIZE, progress=False)
        spent.append(1e3 * (time.process_time() - start) / count)
    base = times["bare", "ours"]
    return [
        Line(
            "cold load / decoding and resizing alone", times[COLD, "ours"] / base, "x", 1.5, times[COLD, "MONAI"] / base
        ),
        Line("cached item", times[CACHED, "ours"], "ms", 0.5, times[CACHED, "MONAI"]),
        Line("verification of an image", statistics.median(spent), "ms", 8.0),
    ]


def parts(folder: Path, count: int, rounds: int) -> list[Line]:
    """Figures of a whole part, and maps and measures of its evidence, in the shipped network's passes over it."""
    network = Inference(device="cpu").network
    size = list(yaml.safe_load((ROOT / "configs" / "inference.yaml").read_text(encoding="utf-8"))["spatial_size"])
    items = [{**item, "source": "drawn", "volume": ""} for item in data.draw(folder, count)]
    dataset = EvaluationDataset(items, make_training_pipeline(size, False, network.num_classes))
    cases = [dataset[k] for k in range(len(dataset))]
    batches = [collate(cases[start : start + BATCH]) for start in range(0, count, BATCH)]
    results = CaseResults(float(network.temperature), lift=lift_of(network))
    evaluator = SupervisedEvaluator(
        torch.device("cpu"), batches, MultiTaskStep(network), inferer=SimpleInferer(), prepare_batch=prepare_batch,
        val_handlers=[results], decollate=False,
    )  # fmt: skip
    plan, classes = (
        make_plan(network, ["evidence"], [MAIN_TARGET]),
        {str(k): str(k) for k in range(network.num_classes)},
    )

    def passes() -> None:
        with torch.no_grad():
            for batch in batches:
                network.multitask(batch["image"])

    jobs = {
        "network": passes,
        "figures": evaluator.run,
        "evidence": lambda: measure(network, batches, plan, classes, set()),
    }
    seconds = timed(jobs, rounds, CLOCKS["cpu"])
    named = {
        "figures": "evaluation of a part / network, shipped",
        "evidence": "evidence and its measures of a part / network, shipped",
    }
    return [
        Line(text, statistics.median(a / b for a, b in zip(seconds[key], seconds["network"], strict=True)), "x", 1.5)
        for key, text in named.items()
    ]


def predicting(folder: Path, slices: int, rounds: int) -> list[Line]:
    """A volume from file to results, by the standard and the shipped network, in its passes."""
    volume = folder / "volume.nii.gz"
    phantoms.phantom_volume([0, 1], True, (256, 256), slices).save(volume)
    lines = []
    for label, overlay in (("standard", inference.standard_overlay(folder, 256)), ("shipped", None)):
        jobs = inference.jobs_of(Inference(overlay=overlay, device="cpu"), volume, folder / label)
        kept = {name: job for name, job in jobs.items() if name in ("network", "whole volume", inference.WITHOUT)}
        seconds = timed(kept, rounds, CLOCKS["cpu"])

        def ratio(name: str, seconds: dict[str, list[float]] = seconds) -> float:
            return statistics.median(a / b for a, b in zip(seconds[name], seconds["network"], strict=True))

        lines += [
            Line(f"prediction with overlay / network, {label}", ratio("whole volume"), "x", 1.15),
            Line(f"prediction without overlay / network, {label}", ratio(inference.WITHOUT), "x", 1 / 0.85),
        ]
    return lines


def trained(rounds: int) -> list[Line]:
    """Steps and stages of training."""
    with tempfile.TemporaryDirectory() as scratch:
        setting = training.Setting(scratch, 256, 4, False)
        training.write_data(Path(scratch), training.STEPS * 4)
        rows = training.rows_of(training.measure(setting, rounds), training.STEPS * 4)
    lines = [Line(row.name, row.value, row.unit, row.target) for row in rows
             if row.name.startswith(TRAINED) and row.target is not None]  # fmt: skip
    for line in lines:
        line.monai = 1.0 if line.name.startswith("as shipped") else None
    return lines


def table(lines: Sequence[Line]) -> str:
    """Lines as a Markdown table."""
    rows = ["| | ours | MONAI | goal |", "|---|---|---|---|"]
    for line in lines:
        other = "" if line.monai is None else f"{line.monai:.3f} {line.unit}"
        met = "met" if line.ours <= line.goal else "MISSED"
        rows.append(f"| {line.name} | {line.ours:.3f} {line.unit} | {other} | <= {line.goal:.3g}: {met} |")
    return "\n".join(rows)


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.one_machine", description="One machine, in one table.")
    parser.add_argument("--images", type=Path, help="folder of pictures to load and verify (default: drawn)")
    parser.add_argument("--count", type=int, default=24, help="images (default: 24)")
    parser.add_argument("--rounds", type=int, default=3, help="after one that is thrown away (default: 3)")
    parser.add_argument("--slices", type=int, default=12, help="of the volume (default: 12)")
    parser.add_argument("--training", action="store_true", help="steps and stages of training too")
    parser.add_argument("--out", type=Path, help="JSON to write")
    options = parser.parse_args(arguments)
    tune_process()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        lines = loading(folder, options.count, options.rounds, options.images)
        lines += parts(folder, options.count, options.rounds)
        lines += predicting(folder, options.slices, options.rounds)
    if options.training:
        lines += trained(options.rounds)
    print(table(lines))
    print(
        f"{options.count} images of 256 x 256, {options.slices} slices, {options.rounds} rounds, CPU time; {machine()}"
    )
    if options.out:
        write_json({"machine": machine(), "lines": [asdict(line) for line in lines]}, options.out)


if __name__ == "__main__":
    errors.start_logging()
    with errors.one_sentence_errors():
        main()
