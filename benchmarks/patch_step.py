"""Memory and seconds of one training step of a patch, with and without gradient checkpointing.

    python -m benchmarks.patch_step [--size 128] [--filters 32 64 128 256] [--precision float32] [--threads 1] [--check]

One patch of noise with four sequences and three regions goes through the network of
``configs/volumetric_patches.yaml`` with all its losses: forward, backward, AdamW. Each way runs in a process of its
own, whose memory is the largest that it has held, the interpreter and its libraries in it; what it held before the step
is taken off for the step's part.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

import torch
from monai.bundle import ConfigParser

from benchmarks.rows import Row, reported
from benchmarks.timing import CLOCKS, add_options, peak_bytes, set_threads
from benchmarks.volumes import network_values
from scripts.command import errors
from scripts.command.locations import ROOT
from scripts.training.engines import MultiTaskStep, parameter_groups
from scripts.training.losses import MultiTaskLoss, coarser_levels, pooling_of

WAYS = {"off": "as it is", "on": "with gradient checkpointing"}


def one_step(options: argparse.Namespace) -> dict[str, float]:
    """Seconds of a step, the largest memory of this process in GB, and what the step added to it."""
    set_threads(options.threads)
    torch.manual_seed(0)
    network: Any = ConfigParser(network_values(options.size, options.filters)).get_parsed_content("network_def")
    step = MultiTaskStep(network, precision=options.precision, gradient_checkpointing=options.one == "on").train()
    loss = MultiTaskLoss(
        out_channels=3, nested=True, pooling=pooling_of(network), coarser_levels=coarser_levels(network)
    )
    optimizer = torch.optim.AdamW(parameter_groups(network, 1e-4), lr=1e-4)
    size, third = [options.size] * 3, slice(options.size // 3, options.size // 2)
    masks = torch.zeros(1, 3, *size)
    masks[..., third, third, third] = 1
    target = {
        "label": masks[:, :1], "region_masks": masks, "foreground": torch.ones(1, 1, *size),
        "has_mask": torch.tensor([True]), "diagnosis": torch.tensor([1]),
    }  # fmt: skip
    image = torch.randn(1, 4, *size)
    before, clock = peak_bytes(), CLOCKS[options.clock]
    start = clock()
    loss(step(image, target["has_mask"]), target).backward()
    optimizer.step()
    seconds = clock() - start
    return {"seconds": seconds, "peak": peak_bytes() / 1e9, "added": (peak_bytes() - before) / 1e9}


def child(options: argparse.Namespace, way: str) -> dict[str, float]:
    """`one_step` in a process of its own."""
    values = ("size", "precision", "threads", "clock")
    command = [sys.executable, "-m", "benchmarks.patch_step", "--one", way]
    command += [part for name in values for part in (f"--{name}", str(getattr(options, name)))]
    command += ["--filters", *map(str, options.filters)]
    done = subprocess.run(command, cwd=ROOT, env=dict(os.environ), stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; returns 1 with ``--check`` when checkpointing does not lower the memory, else 0."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.patch_step", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument("--size", type=int, default=128, help="voxels a side (default: 128)")
    parser.add_argument("--filters", type=int, nargs=4, default=[32, 64, 128, 256], help="of the network")
    parser.add_argument("--precision", default="float32", help="of the step: float32 or bfloat16")
    parser.add_argument("--one", choices=list(WAYS), help="run this way here and print its figures as JSON")
    add_options(parser, threads=1, clock="cpu")
    options = parser.parse_args(arguments)
    errors.start_logging()
    if options.one:
        print(json.dumps(one_step(options)))
        return 0
    measured = {way: child(options, way) for way in WAYS}
    if not all(figures["added"] > 0 for figures in measured.values()):
        raise ValueError("the step takes no more memory than its process held before: take a larger --size")
    rows = [
        Row(
            "memory of the step, with / without checkpointing",
            measured["on"]["added"] / measured["off"]["added"],
            target=1.0,
        ),
        Row("time of the step, with / without checkpointing", measured["on"]["seconds"] / measured["off"]["seconds"]),
    ]
    for way, words in WAYS.items():
        rows += [
            Row(f"peak memory, {words}", measured[way]["peak"], "GB"),
            Row(f"of it the step's, {words}", measured[way]["added"], "GB"),
            Row(f"step, {words}", measured[way]["seconds"], "s"),
        ]
    return reported(rows, options)


if __name__ == "__main__":
    with errors.one_sentence_errors():
        raise SystemExit(main())
