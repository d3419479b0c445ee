"""What a whole volume costs beside the network: file to mask, evidence and overlay on disk, as multiples of its passes.

    python -m benchmarks.inference [--slices 20] [--rounds 5] [--threads 1] [--clock cpu] [--out FILE] [--check]

A phantom volume of 256 x 256 pixels a slice is predicted as ``python -m scripts predict`` does it: read, cut, prepared,
inferred, brought back to the file's grid, and mask, evidence, overlay and result are written. It is compared with the
forward passes of the same network over the same prepared slices in the same batches. Two networks: the standard size of
``configs/train.yaml`` (256 x 256, random weights whose mask is small, as a tumor's is) and the shipped one.

In every round each job runs once, one after another; a figure is the median over the rounds of a job's time divided by
that of the network in the same round. The first round is thrown away. CPU time counts all threads: what runs beside the
network is not hidden behind it, as it is on the wall clock of a machine with idle cores.
"""

from __future__ import annotations

import argparse
import json
import logging
import statistics
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import yaml
from monai.bundle import ConfigParser

from benchmarks.rows import Row, table
from benchmarks.timing import CLOCKS, add_options, machine, set_threads, timed
from scripts import phantoms
from scripts.command import errors
from scripts.command.files import write_json
from scripts.command.locations import ROOT
from scripts.inference.batches import BatchPrediction, study_overlay
from scripts.inference.pipeline import Inference, slices_first

logger = logging.getLogger(__name__)

# Of the whole volume; without an overlay the network is to take 85 % of the CPU time.
WITHOUT = "whole volume without overlay"
TARGETS = {"whole volume": 1.10, WITHOUT: 1 / 0.85}
STANDARD, SHIPPED = "standard", "shipped"
# Of the standard network's random weights: logit of the background above what they give, so that little is tumor.
BACKGROUND = 3.0
Job = Callable[[], Any]


def standard_overlay(folder: Path, side: int, **changes: Any) -> Path:
    """Overlay of ``inference.yaml`` with the network of ``train.yaml`` and random weights, written into a folder."""
    train = yaml.safe_load((ROOT / "configs" / "train.yaml").read_text(encoding="utf-8"))
    values: dict[str, Any] = {
        "spatial_size": [side, side],
        "regions": None,
        "spacing_mm": None,
        "num_classes": 2,
        "classes": {"0": "no_tumor", "1": "tumor"},
        "network_def": {**train["network_def"], **changes},
        "weights": str(folder / "model.pt"),
    }
    torch.manual_seed(0)
    network = ConfigParser(dict(values)).get_parsed_content("network_def")
    with torch.no_grad():
        network.output_block.conv.conv.bias[0] += BACKGROUND
    torch.save(network.state_dict(), folder / "model.pt")
    path = folder / "network.yaml"
    path.write_text(yaml.safe_dump(values), encoding="utf-8")
    return path


def jobs_of(inference: Inference, volume: Path, out: Path) -> dict[str, Job]:
    """The network's passes, the whole volume, and its parts."""
    item = inference.prepare({"image": str(volume)})
    stack = slices_first(item["image"]).contiguous().to(inference.device)
    output = {key: value.cpu() for key, value in inference.infer(item).items()}
    batches = stack.split(inference.inferer.batch_size)
    whole, plain = BatchPrediction(inference, out, {}), BatchPrediction(inference, out / "plain", {}, overlay=False)
    numbers = iter(range(1 << 30))

    def passes() -> None:
        with torch.no_grad():
            for batch in batches:
                inference.network.multitask(batch)

    def predict(job: BatchPrediction) -> None:
        (row,) = job.run([volume], [f"volume{next(numbers)}"])
        if row["error"]:
            raise ValueError(row["error"])

    return {
        "network": passes,
        "whole volume": lambda: predict(whole),
        WITHOUT: lambda: predict(plain),
        "reading and preparing": lambda: inference.prepare({"image": str(volume)}),
        "inference with evidence": lambda: inference.infer(item),
        "back to the file's grid": lambda: inference.finish(item, output),
        "overlay": lambda: study_overlay(item, output),
    }


def rows_of(label: str, seconds: Mapping[str, Sequence[float]], slices: int) -> list[Row]:
    """Medians of the ratios to the network."""
    network = seconds["network"]
    rows = [
        Row(
            f"{label}: {name} / network",
            statistics.median(a / b for a, b in zip(times, network, strict=True)),
            target=TARGETS.get(name),
        )
        for name, times in seconds.items()
        if name != "network"
    ]
    return [*rows, Row(f"{label}: network", 1000 * statistics.median(network) / slices, "ms/slice")]


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; returns 1 with ``--check`` when the target is missed, else 0."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.inference", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument("--side", type=int, default=256, help="pixels of a slice, and of the standard network's input")
    parser.add_argument("--slices", type=int, default=20, help="of the volume")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--small", action="store_true", help="a narrow standard network alone: for tests")
    add_options(parser, threads=1, clock="cpu")
    options = parser.parse_args(arguments)
    errors.start_logging()
    if options.rounds < 1 or options.slices < 1:
        raise ValueError(f"--rounds and --slices: expected 1 or more, got {options.rounds} and {options.slices}")
    set_threads(options.threads)
    about = f"{machine()}, {options.clock} time"
    logger.info("%d slices of %d px, %d rounds, %s", options.slices, options.side, options.rounds, about)
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        volume = folder / "volume.nii.gz"
        phantoms.phantom_volume([0, 1], True, (options.side, options.side), options.slices).save(volume)
        narrow = {"filters": [4, 8, 8, 8], "evidence_channels": 8} if options.small else {}
        overlays: dict[str, Path | None] = {STANDARD: standard_overlay(folder, options.side, **narrow)}
        if not options.small:
            overlays[SHIPPED] = None
        for label, overlay in overlays.items():
            inference = Inference(overlay=overlay, device="cpu")
            seconds = timed(jobs_of(inference, volume, folder / label), options.rounds, CLOCKS[options.clock])
            rows += rows_of(label, seconds, options.slices)
    print(table(rows))
    if options.out:
        content = {"machine": about, "options": vars(options), "rows": [{**asdict(r), "met": r.met} for r in rows]}
        write_json(json.loads(json.dumps(content)), options.out)
    return int(options.check and not all(row.met for row in rows))


if __name__ == "__main__":
    with errors.one_sentence_errors():
        raise SystemExit(main())
