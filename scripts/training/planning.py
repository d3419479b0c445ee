"""Values of a training from its images and the machine: input, network, batch and epochs, each with its reason.

    python -m scripts plan --dataset_dir DIR --datalist_file LIST.json --out runs/mine/plan.yaml --hours 8
    python -m scripts train --overlay runs/mine/plan.yaml --dataset_dir DIR --datalist_file LIST.json ...

The plan is an overlay to read and to change. Heads are measured as the pipeline crops them; what a training step takes
and keeps is measured on this machine, with the shipped network, step and loss on noise.
"""

from __future__ import annotations

import argparse
import logging
import math
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from scripts.command.files import write_text
from scripts.command.locations import CONFIGS
from scripts.command.verbs import Outcome
from scripts.data.preprocessing import Pipeline, make_training_pipeline
from scripts.networks.multitask_dynunet import MultiTaskDynUNet
from scripts.runs import folder as runs
from scripts.runs.provenance import machine
from scripts.runs.regions import stated
from scripts.training.engines import MultiTaskStep, memory
from scripts.training.losses import MultiTaskLoss, pooling_of
from scripts.training.precision import choose_precision
from transforms.cropping import CropToForegroundd
from transforms.describe import Untraced
from transforms.reading import file_kind

__all__ = ["Cost", "Design", "Plan", "cost_of", "make_plan"]

logger = logging.getLogger(__name__)

# The shipped weights saw every training image about so often (docs/decisions/0006); small collections need steps.
PASSES, STEPS = 50, 4000
# What a pass of stage 2 costs beside one of the others, measured: its decoder is not run and its encoder keeps nothing.
STAGE2 = 0.4
# Of the passes of the three stages together.
SHARES = {"stage1_segmentation": 0.35, "stage2_classification": 0.1, "stage3_joint": 0.6}
# Of the hours that are spent on validation and reading, and of the memory that a batch may fill.
OVERHEAD, MEMORY = 0.15, 0.5
# Heads that are measured, and the part of them that the input shows without making them smaller.
HEADS, COVERED = 64, 0.75
# Sides of inputs in pixels, and of patches in voxels.
SIDES = {2: (96, 128, 160, 192, 224, 256, 288, 320), 3: (48, 64, 80, 96, 112, 128)}
# Pixels a side that are left at the bottleneck.
BOTTLENECK = 8


@dataclass(frozen=True)
class Design:
    """Network and input.

    Args:
        size: of the input, by axis.
        filters: of each level.
        channels, num_classes, regions: of images and answers; one region is the tumor.
    """

    size: tuple[int, ...]
    filters: tuple[int, ...]
    channels: int
    num_classes: int
    regions: int = 1

    def values(self) -> dict[str, Any]:
        """By config id."""
        levels = len(self.filters)
        return {
            "spatial_size": list(self.size),
            "network_def#kernel_size": [3] * levels,
            "network_def#strides": [1] + [2] * (levels - 1),
            "network_def#upsample_kernel_size": [2] * (levels - 1),
            "network_def#filters": list(self.filters),
            "network_def#evidence_levels": max(1, levels - 2),
        }

    def network(self) -> MultiTaskDynUNet:
        """With random weights."""
        parts = {
            name.partition("#")[2]: value for name, value in self.values().items() if name.startswith("network_def#")
        }
        out = self.regions if self.regions > 1 else 2
        names = [f"region {k}" for k in range(self.regions)] if self.regions > 1 else None
        return MultiTaskDynUNet(
            len(self.size), self.channels, out, num_classes=self.num_classes, regions=names, **parts
        )


@dataclass(frozen=True)
class Cost:
    """Of a training step, an image: seconds, and bytes that it keeps for its backward pass."""

    seconds: float
    kept: int


@dataclass(frozen=True)
class Images:
    """What is trained on.

    Args:
        heads: (N, D), sizes of cropped heads, pixels or, of volumes, millimeters.
        spacing_mm: (D,), of volumes; None for slices and pictures.
        counts: training images of each class, -1 unknown.
        channels: of an image.
    """

    heads: np.ndarray
    spacing_mm: np.ndarray | None
    counts: Mapping[int, int]
    channels: int

    @property
    def number(self) -> int:
        """Of the training images."""
        return sum(self.counts.values())


@dataclass(frozen=True)
class Plan:
    """Values by config id, and why each is so."""

    values: Mapping[str, Any]
    reasons: Mapping[str, str]
    title: str

    def text(self) -> str:
        """The overlay."""
        lines = [f"# {line}" for line in self.title.splitlines()]
        for name, value in self.values.items():
            reason = self.reasons.get(name)
            lines += ([f"# {reason}"] if reason else []) + [f"{name}: {value}"]
        return "\n".join(lines) + "\n"


def measured_images(datalist: Mapping[str, Any], dataset_dir: str | Path) -> Images:
    """Heads and classes of the training images; heads of at most `HEADS` of them, evenly over the list.

    Raises:
        ValueError: when an image cannot be read, or some are volumes and others slices.
    """
    items = runs.stage_items(dict(datalist), "training", str(dataset_dir))
    chosen = [items[round(k)] for k in np.linspace(0, len(items) - 1, min(HEADS, len(items)))]
    dims = {_dims(item) for item in chosen}
    if len(dims) > 1:
        raise ValueError("some training images are whole volumes and others slices or pictures; plan for one of them")
    flat = dims == {2}
    pipeline: Pipeline = make_training_pipeline([256, 256] if flat else [64, 64, 64], False)
    steps = [type(step) for step in pipeline.transforms]
    read, end = steps.index(Untraced), steps.index(CropToForegroundd) + 1
    heads, spacings, channels = [], [], set()
    for item in tqdm(chosen, desc="heads", leave=False):
        loaded = pipeline(item, end=read)
        spacing = np.linalg.norm(np.asarray(loaded["image"].affine, float)[:3, :3], axis=0)
        image = pipeline(loaded, start=read, end=end)["image"]
        heads.append(np.array(image.shape[1:]) * (1 if flat else spacing))
        spacings.append(spacing)
        channels.add(int(image.shape[0]))
    if len(channels) > 1:
        raise ValueError(f"the training images have {' and '.join(map(str, sorted(channels)))} channels")
    counts = Counter(int(item.get("diagnosis", -1)) for item in items)
    return Images(np.array(heads), None if flat else np.median(spacings, axis=0), counts, channels.pop())


def _dims(item: Mapping[str, Any]) -> int:
    files = item["image"] if isinstance(item["image"], list) else [item["image"]]
    return 2 if "slice" in item or file_kind(files[0]) == "picture" else 3


def cost_of(design: Design, batch: int, device: torch.device, precision: str) -> Cost:
    """Of a step of stage 3, measured: the faster of two after a first."""
    network = design.network().to(device)
    step = MultiTaskStep(network, precision=precision).train()
    loss = MultiTaskLoss(out_channels=network.out_channels, pooling=pooling_of(network), nested=network.nested)
    shape = (batch, 1, *design.size)
    image = torch.randn(batch, design.channels, *design.size, device=device)
    mask = torch.zeros(shape, dtype=torch.uint8, device=device)
    tumor: Any = (..., *[slice(n // 3, n // 2) for n in design.size])
    mask[tumor] = 1
    target = {
        "label": mask,
        "region_masks": mask.expand(batch, design.regions, *design.size),
        "foreground": torch.ones_like(mask),
        "has_mask": torch.ones(batch, dtype=torch.bool, device=device),
        "diagnosis": torch.ones(batch, dtype=torch.long, device=device),
    }
    kept = 0

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        nonlocal kept
        kept += tensor.nbytes
        return tensor

    seconds = []
    for number in range(3):
        start = time.perf_counter()
        if number == 0:
            with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
                total = loss(step(image, target["has_mask"]), target)
        else:
            total = loss(step(image, target["has_mask"]), target)
        total.backward()
        network.zero_grad()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds.append(time.perf_counter() - start)
    return Cost(min(seconds[1:]) / batch, kept // batch)


def _filters(side: int, dims: int, gpu: bool) -> tuple[int, ...]:
    """Doubled at each level, as many levels as leave `BOTTLENECK` pixels, at most five (of volumes four)."""
    levels = min(5 if dims == 2 else 4, 1 + int(math.log2(side / BOTTLENECK)))
    first = (32 if gpu else 16) if dims == 2 else (32 if gpu else 8)
    return tuple(first * 2**level for level in range(levels))


def _multiple(dims: int) -> int:
    return 16 if dims == 2 else 8


def make_plan(
    images: Images,
    num_classes: int,
    hours: float,
    device: torch.device,
    precision: str = "auto",
    regions: int = 1,
    measure: Any = cost_of,
) -> Plan:
    """The largest input, up to the size of the heads, at which the training sees each image often enough in the time.

    Args:
        images: of `measured_images`.
        num_classes, regions: of the datalist.
        hours: that the training may take.
        device, precision: that it is trained on and in.
        measure: `cost_of`, or what stands for it.

    Raises:
        ValueError: when hours is not above 0, or not even the smallest input's batch of two fits into the memory.
    """
    if not hours > 0:
        raise ValueError(f"hours is above 0, got {hours}")
    dims, gpu = images.heads.shape[1], device.type == "cuda"
    spacing = None if images.spacing_mm is None else [round(float(side), 2) for side in images.spacing_mm]
    sizes = images.heads if spacing is None else images.heads / np.array(spacing)
    longest = float(np.quantile(sizes.max(axis=1), COVERED))
    sides = [side for side in SIDES[dims] if side < longest] + [side for side in SIDES[dims] if side >= longest][:1]
    room = MEMORY * memory_of(device)
    batch = 16 if gpu and dims == 2 else 8 if dims == 2 else 2
    batch = max(2, min(batch, images.number // 10))
    budget = hours * 3600 * (1 - OVERHEAD)
    wanted = max(PASSES, math.ceil(STEPS * batch / images.number))
    tried: list[tuple[Design, Cost, int]] = []
    for side in reversed(sides):
        size = _size(side, sizes, dims)
        design = Design(size, _filters(min(size), dims, gpu), images.channels, num_classes, regions)
        cost = measure(design, batch, device, precision)
        passes = int(budget / (cost.seconds * images.number))
        logger.info("%s: %.3f s an image, %d passes in %g h", _times(size), cost.seconds, passes, hours)
        tried.append((design, cost, passes))
        if passes >= wanted and batch * cost.kept <= room:
            break
    fitting = [entry for entry in tried if batch * entry[1].kept <= room]
    if not fitting:
        raise ValueError(
            f"a batch of {batch} at {_times(tried[-1][0].size)} keeps {batch * tried[-1][1].kept / 2**30:.1f} GiB, "
            f"{room / 2**30:.1f} GiB may be filled: too little memory to train"
        )
    design, cost, passes = fitting[-1]
    return _written(images, design, cost, min(passes, wanted), tried, wanted, batch, longest, spacing, hours, device,
                    choose_precision(precision, device))  # fmt: skip


def _size(side: int, heads: np.ndarray, dims: int) -> tuple[int, ...]:
    """A square of the side; of volumes the side, or the median head where that is shorter."""
    if dims == 2:
        return (side, side)
    step = _multiple(dims)
    short = np.ceil(np.median(heads, axis=0) / step).astype(int) * step
    return tuple(int(min(side, n)) for n in short)


def _times(size: Sequence[int]) -> str:
    return " x ".join(map(str, size))


def _written(
    images: Images, design: Design, cost: Cost, passes: int, tried: list, wanted: int, batch: int, longest: float,
    spacing: list[float] | None, hours: float, device: torch.device, precision: tuple[str, str],
) -> Plan:  # fmt: skip
    unit = "pixels" if spacing is None else "voxels"
    values, reasons = dict(design.values()), {}
    largest = tried[0]
    reason = f"three in four heads are at most {longest:.0f} {unit} long"
    if largest[0] is not design:
        need = wanted * images.number * largest[1].seconds / 3600 / (1 - OVERHEAD)
        reason += f"; {_times(largest[0].size)} would take {need:.1f} hours for {wanted} passes"
    reasons["spatial_size"] = reason
    kernels = "network_def#kernel_size"
    reasons[kernels] = (
        f"{len(design.filters)} levels leave {min(design.size) // 2 ** (len(design.filters) - 1)} {unit} at the "
        f"bottleneck; evidence at stride 4"
    )
    if spacing is not None:
        values["spacing_mm"] = spacing
        reasons["spacing_mm"] = "median of the volumes, in millimeters; images go through in patches of spatial_size"
        values["network_def#spatial_dims"] = len(spacing)
        values["patches_per_epoch"] = images.number
    values["network_def#in_channels"] = images.channels
    values["batch_size"] = batch
    reasons["batch_size"] = (
        f"{batch * cost.kept / 2**30:.2f} GiB kept for the backward pass; {math.ceil(images.number / batch)} steps "
        "an epoch"
    )
    three = sum(share * (STAGE2 if "2" in name[:6] else 1) for name, share in SHARES.items())
    epochs = {"joint": max(1, passes)} | {name: max(1, round(passes * share / three)) for name, share in SHARES.items()}
    values["stage_epochs"] = epochs
    taken = passes * images.number * cost.seconds / 3600 / (1 - OVERHEAD)
    enough = "" if passes >= wanted else f", {wanted} would be better: give more hours, or a faster machine"
    reasons["stage_epochs"] = (
        f"{cost.seconds:.3f} s an image: each is seen {passes} times in {taken:.1f} of {hours:g} hours{enough}"
    )
    steps = passes * math.ceil(images.number / batch)
    values["warmup_epochs"] = 1 if passes > 4 else 0
    values["val_interval"] = max(1, passes // 25)
    reasons["val_interval"] = "about 25 validations"
    if steps >= 2000:
        values["ema_decay"] = 0.998
        reasons["ema_decay"] = f"{steps} steps: the mean of the last 500 or so is validated and kept"
    known = {name: count for name, count in images.counts.items() if name >= 0}
    if len(known) > 1 and min(known.values()) < 0.5 * sum(known.values()) / len(known):
        values["class_shares"] = "equal"
        rarest = min(known, key=lambda name: known[name])
        reasons["class_shares"] = f"class {rarest} is {known[rarest]} of {sum(known.values())} images"
    values["precision"] = precision[0]
    reasons["precision"] = precision[1]
    title = (
        f"Plan of a training on {images.number} images, by python -m scripts plan on {machine()}.\n"
        "An overlay of train.yaml and a stage; change what you know better.\n"
        "Where masks and tumor-free images are at hand, a run from these weights with configs/counterfactual.yaml\n"
        "makes the answer follow the tumor (docs/data.md)."
    )
    return Plan(values, reasons, title)


def memory_of(device: torch.device) -> float:
    """Bytes of a device's memory; of a system that does not say, 8 GiB."""
    if device.type == "cuda":
        return float(torch.cuda.get_device_properties(device).total_memory)
    return float(memory() or 8 * 2**30)


def execute(arguments: argparse.Namespace) -> Outcome:
    """The verb ``plan``."""
    datalist = runs.read_datalist(str(arguments.datalist_file), str(arguments.dataset_dir))
    device = torch.device(arguments.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    found = measured_images(datalist, arguments.dataset_dir)
    plan = make_plan(
        found, runs.num_classes(datalist), arguments.hours, device, arguments.precision or "auto",
        len(stated(datalist) or ["tumor"]),
    )  # fmt: skip
    runs.merged_config([str(CONFIGS / "train.yaml")], dict(plan.values))
    write_text(plan.text(), arguments.out)
    return Outcome(plan.text(), [arguments.out])
