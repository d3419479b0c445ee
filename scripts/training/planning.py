"""Values of a training from its images and the machine: input, network, batch and epochs, each with its reason.

    python -m scripts plan --dataset_dir DIR --datalist_file LIST.json --out runs/mine/plan.yaml --hours 8
    python -m scripts train --overlay runs/mine/plan.yaml --dataset_dir DIR --datalist_file LIST.json ...

The plan is an overlay to read and to change.
"""

from __future__ import annotations

import argparse
import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from scripts.command.devices import chosen_device
from scripts.command.files import write_text
from scripts.command.locations import CONFIGS
from scripts.command.verbs import Outcome
from scripts.runs import folder as runs
from scripts.runs.provenance import machine
from scripts.runs.regions import stated
from scripts.training.costs import Cost, Design, Images, cost_of, measured_images
from scripts.training.engines import memory
from scripts.training.precision import choose_precision

__all__ = ["Plan", "execute", "make_plan"]

logger = logging.getLogger(__name__)

# The shipped weights saw every training image about so often (docs/decisions/0006); small collections need steps.
PASSES, STEPS = 50, 4000
# Epochs of the stages beside each other, as in configs/weights.yaml, and what one costs beside one of stage 3, by times
# in docs/training/weights/*/manifest.json.
EPOCHS = dict(zip(runs.STAGES, (12, 3, 20), strict=True))
COSTS = dict(zip(runs.STAGES, (0.66, 0.25, 1.0), strict=True))
# Of the hours that validations may take, and how many are enough; of the memory that a batch may fill.
VALIDATION, VALIDATIONS, MEMORY = 0.1, 25, 0.5
# Part of the heads that the input shows without making them smaller.
COVERED = 0.75
# Sides of inputs in pixels, and of patches in voxels.
SIDES = {2: (96, 128, 160, 192, 224, 256, 288, 320), 3: (48, 64, 80, 96, 112, 128)}
# Sides of patches are multiples of it; pixels a side that are left at the bottleneck where there are enough levels.
MULTIPLE, BOTTLENECK = 8, 8
Measure = Callable[[Design, int, torch.device, str], Cost]


@dataclass
class Plan:
    """Values by config id, and why each is so."""

    title: str
    values: dict[str, Any] = field(default_factory=dict)
    reasons: dict[str, str] = field(default_factory=dict)

    def add(self, name: str, value: Any, reason: str = "") -> None:
        """One value."""
        self.values[name] = value
        self.reasons[name] = reason

    def text(self) -> str:
        """The overlay."""
        lines = [f"# {line}" for line in self.title.splitlines()]
        for name, value in self.values.items():
            lines += [f"# {self.reasons[name]}"] if self.reasons[name] else []
            lines.append(f"{name}: {value}")
        return "\n".join(lines) + "\n"


@dataclass(frozen=True)
class Choice:
    """The largest input that fits, and why none larger."""

    design: Design
    cost: Cost
    passes: int
    larger: str


def make_plan(
    images: Images,
    num_classes: int,
    hours: float,
    device: torch.device,
    precision: str = "auto",
    regions: int = 1,
    measure: Measure = cost_of,
) -> Plan:
    """The largest input, up to the size of the heads, at which the training sees each image often enough in the time.

    Args:
        images: of `measured_images`.
        num_classes, regions: of the datalist.
        hours: that the training may take.
        device, precision: that it is trained on and in.
        measure: `cost_of`, or what stands for it.

    Raises:
        ValueError: when hours is not a number above 0 or not enough for one pass, or when the memory is too little.
    """
    if not 0 < hours < math.inf:
        raise ValueError(f"hours is a number above 0, got {hours}")
    dims = images.heads.shape[1]
    spacing = None if images.spacing_mm is None else [round(float(side), 2) for side in images.spacing_mm]
    heads = images.heads if spacing is None else images.heads / np.array(spacing)
    batch = 2 if dims == 3 else 16 if device.type == "cuda" else 8
    batch = max(2, min(batch, images.number // 10))
    wanted = max(PASSES, math.ceil(STEPS * batch / images.number))
    title = (
        f"Plan of a training on {images.number} images, by python -m scripts plan on {machine()}.\n"
        "An overlay of train.yaml and a stage; change what you know better."
    )
    plan = Plan(title)
    chosen = _largest(images, heads, batch, wanted, hours, device, precision, (num_classes, regions), measure)
    _input(plan, chosen, images, heads, spacing)
    plan.add("batch_size", batch, f"{batch * chosen.cost.kept / 2**30:.2f} GiB kept for the backward pass")
    _epochs(plan, chosen, images, heads, wanted, hours, batch)
    counts = images.counts
    if -1 not in counts and len(counts) > 1 and min(counts.values()) < 0.5 * images.number / len(counts):
        rarest = min(counts, key=lambda name: counts[name])
        plan.add("class_shares", "equal", f"class {rarest} is {counts[rarest]} of {images.number} images")
    plan.add("precision", *choose_precision(precision, device))
    return plan


def _largest(
    images: Images, heads: np.ndarray, batch: int, wanted: int, hours: float, device: torch.device, precision: str,
    answers: tuple[int, int], measure: Measure,
) -> Choice:  # fmt: skip
    dims, longest = heads.shape[1], _longest(heads)
    sides = [side for side in SIDES[dims] if side < longest] + [side for side in SIDES[dims] if side >= longest][:1]
    room, budget = _room(device), hours * 3600 * (1 - VALIDATION)
    best: Choice | None = None
    larger = ""
    for side in sides:
        size = _size(side, heads)
        design = Design(size, _filters(size, device.type == "cuda"), images.channels, *answers)
        if best is not None:  # what is kept grows with the pixels: nothing is measured that does not fit
            kept = batch * best.cost.kept * math.prod(size) / math.prod(best.design.size)
            if kept > room:
                larger = f"{_times(size)} would keep about {kept / 2**30:.1f} GiB, {room / 2**30:.1f} may be filled"
                break
        cost = measure(design, batch, device, precision)
        passes = int(budget / (cost.seconds * images.number))
        logger.info("%s: %.3f s an image, %d passes in %g h", _times(size), cost.seconds, passes, hours)
        if best is None and batch * cost.kept > room:
            raise ValueError(
                f"a batch of {batch} at {_times(size)} keeps {batch * cost.kept / 2**30:.1f} GiB, "
                f"{room / 2**30:.1f} GiB may be filled: too little memory to train"
            )
        if best is not None and passes < wanted:
            need = wanted * images.number * cost.seconds / 3600 / (1 - VALIDATION)
            larger = f"{_times(size)} would take {need:.1f} hours for {wanted} passes"
            break
        best = Choice(design, cost, min(passes, wanted), "")
    assert best is not None
    if best.passes < 1:
        need = best.cost.seconds * images.number / 3600 / (1 - VALIDATION)
        raise ValueError(f"one pass over {images.number} images takes {need:.3g} hours, {hours:g} are given")
    return Choice(best.design, best.cost, best.passes, larger)


def _longest(heads: np.ndarray) -> float:
    return float(np.quantile(heads.max(axis=1), COVERED))


def _size(side: int, heads: np.ndarray) -> tuple[int, ...]:
    """A square of the side; of volumes the side, or the median head where that is shorter."""
    if heads.shape[1] == 2:
        return (side, side)
    short = np.ceil(np.median(heads, axis=0) / MULTIPLE).astype(int) * MULTIPLE
    return tuple(int(min(side, n)) for n in short)


def _filters(size: Sequence[int], gpu: bool) -> tuple[int, ...]:
    """Doubled at each level, as many levels as leave `BOTTLENECK` pixels, from three to five (3D: four)."""
    flat = len(size) == 2
    levels = max(3, min(5 if flat else 4, 1 + int(math.log2(min(size) / BOTTLENECK))))
    first = 32 if gpu else 16 if flat else 8
    return tuple(first * 2**level for level in range(levels))


def _room(device: torch.device) -> float:
    """Bytes that a batch may fill; without bound where the system does not say what memory it has."""
    if device.type == "cuda":
        return MEMORY * torch.cuda.get_device_properties(device).total_memory
    size = memory()
    return math.inf if size is None else MEMORY * size


def _times(size: Sequence[int]) -> str:
    return " x ".join(map(str, size))


def _input(plan: Plan, chosen: Choice, images: Images, heads: np.ndarray, spacing: list[float] | None) -> None:
    design, unit = chosen.design, "pixels" if spacing is None else "voxels"
    reason = f"three in four heads are at most {_longest(heads):.0f} {unit} long"
    left = min(design.size) // 2 ** (len(design.filters) - 1)
    levels = f"{len(design.filters)} levels leave {left} {unit} at the bottleneck; evidence at stride 4"
    reasons = {"spatial_size": "; ".join(filter(None, (reason, chosen.larger))), "network_def#kernel_size": levels}
    for name, value in design.values().items():
        plan.add(name, value, reasons.get(name, ""))
    plan.add("network_def#in_channels", images.channels)
    if spacing is not None:
        plan.add("network_def#spatial_dims", 3)
        plan.add("spacing_mm", spacing, "median of the volumes, in millimeters; they go through in patches")
        plan.add("patches_per_epoch", 1, "one of each volume")


def _epochs(
    plan: Plan, chosen: Choice, images: Images, heads: np.ndarray, wanted: int, hours: float, batch: int
) -> None:
    passes, seconds = chosen.passes, chosen.cost.seconds
    scale = passes / sum(EPOCHS[stage] * COSTS[stage] for stage in runs.STAGES)
    epochs = {runs.JOINT: passes} | {stage: max(1, round(scale * count)) for stage, count in EPOCHS.items()}
    taken = passes * images.number * seconds / 3600 / (1 - VALIDATION)
    what = "each is seen" if len(chosen.design.size) == 2 else "a patch of each is seen"
    short = "" if passes >= wanted else f"; {wanted} times would be better: more hours, or a faster machine"
    plan.add(
        "stage_epochs",
        epochs,
        f"{seconds:.3f} s an image: {what} {passes} times in {taken:.1f} of {hours:g} hours{short}",
    )
    plan.add("warmup_epochs", 1 if min(epochs.values()) > 1 else 0)
    # Forward passes alone, a third of a step; of volumes in windows that overlap by half.
    windows = 1
    if chosen.design.size[2:]:
        for side, head in zip(chosen.design.size, np.median(heads, axis=0), strict=True):
            windows *= max(1, math.ceil(2 * head / side) - 1)
    once = max(1, images.validation) * seconds / 3 * windows
    number = min(VALIDATIONS, passes, max(3, int(hours * 3600 * VALIDATION / once)))
    interval = max(1, math.ceil(passes / number))
    plan.add("val_interval", interval, f"{passes // interval} validations, about {once:.0f} s each")
    if passes * math.ceil(images.number / batch) >= 2000:
        plan.add("ema_decay", 0.998, "a moving average of the weights is validated and kept")


def execute(arguments: argparse.Namespace) -> Outcome:
    """The verb ``plan``."""
    datalist = runs.read_datalist(str(arguments.datalist_file), str(arguments.dataset_dir))
    device = chosen_device(arguments.device)
    images = measured_images(datalist, arguments.dataset_dir)
    regions = len(stated(datalist) or ["tumor"])
    precision = arguments.precision or "auto"
    plan = make_plan(images, runs.num_classes(datalist), arguments.hours, device, precision, regions)
    runs.merged_config([str(CONFIGS / "train.yaml")], dict(plan.values))
    write_text(plan.text(), arguments.out)
    return Outcome(plan.text(), [arguments.out])
