"""What a training works on and what a step of it costs: heads as the pipeline crops them, seconds, memory."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch
from tqdm import tqdm

from scripts.data.planes import is_flat
from scripts.data.preprocessing import make_augmentation, make_training_pipeline
from scripts.networks.multitask_dynunet import MultiTaskDynUNet
from scripts.runs import folder as runs
from scripts.training.engines import MultiTaskStep
from scripts.training.losses import MultiTaskLoss, pooling_of
from transforms.cropping import CropToForegroundd
from transforms.describe import Untraced

__all__ = ["Cost", "Design", "Images", "cost_of", "measured_images"]

# Heads that are measured.
HEADS = 64


@dataclass(frozen=True)
class Design:
    """Network and input.

    Args:
        size: of the input, by axis.
        filters: of each level, three or more.
        channels, num_classes: of images and answers.
        regions: number of them; 1: the tumor.
    """

    size: tuple[int, ...]
    filters: tuple[int, ...]
    channels: int
    num_classes: int
    regions: int = 1

    def values(self) -> dict[str, Any]:
        """By config id; evidence at stride 4."""
        levels = len(self.filters)
        return {
            "spatial_size": list(self.size),
            "network_def#kernel_size": [3] * levels,
            "network_def#strides": [1] + [2] * (levels - 1),
            "network_def#upsample_kernel_size": [2] * (levels - 1),
            "network_def#filters": list(self.filters),
            "network_def#evidence_levels": levels - 2,
        }

    def network(self) -> MultiTaskDynUNet:
        """With random weights."""
        parts = {
            name.partition("#")[2]: value for name, value in self.values().items() if name.startswith("network_def#")
        }
        names = [f"region {k}" for k in range(self.regions)] if self.regions > 1 else None
        out = self.regions if names else 2
        return MultiTaskDynUNet(
            len(self.size), self.channels, out, num_classes=self.num_classes, regions=names, **parts
        )


@dataclass(frozen=True)
class Cost:
    """Of a training step, an image: seconds with its augmentation, and bytes kept for its backward pass."""

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
        validation: number of validation images.
    """

    heads: np.ndarray
    spacing_mm: np.ndarray | None
    counts: Mapping[int, int]
    channels: int
    validation: int

    @property
    def number(self) -> int:
        """Of the training images."""
        return sum(self.counts.values())


def measured_images(datalist: Mapping[str, Any], dataset_dir: str | Path) -> Images:
    """Heads and classes of the training images; heads of at most `HEADS` of them, evenly over the list.

    Raises:
        ValueError: when an image cannot be read, or some are volumes and others slices, or of other channels.
    """
    items = runs.stage_items(dict(datalist), "training", str(dataset_dir))
    chosen = [items[round(k)] for k in np.linspace(0, len(items) - 1, min(HEADS, len(items)))]
    flat = is_flat(chosen[0])
    if any(is_flat(item) != flat for item in chosen[1:]):
        raise ValueError("some training images are whole volumes and others slices or pictures; plan for one of them")
    pipeline = make_training_pipeline([256, 256] if flat else [64, 64, 64], False)
    steps = [type(step) for step in pipeline.transforms]
    read, end = steps.index(Untraced), steps.index(CropToForegroundd) + 1
    heads, spacings, channels = [], [], set()
    for item in tqdm(chosen, desc="heads", leave=False):
        loaded = pipeline(item, end=read)
        spacing = nib.affines.voxel_sizes(np.asarray(loaded["image"].affine, float))
        image = pipeline(loaded, start=read, end=end)["image"]
        heads.append(np.array(image.shape[1:]) * (1 if flat else spacing))
        spacings.append(spacing)
        channels.add(int(image.shape[0]))
    if len(channels) > 1:
        raise ValueError(f"the training images have {' and '.join(map(str, sorted(channels)))} channels")
    counts = Counter(int(item.get("diagnosis", -1)) for item in items)
    validation = len(datalist.get("validation", []))
    return Images(np.array(heads), None if flat else np.median(spacings, axis=0), counts, channels.pop(), validation)


def cost_of(design: Design, batch: int, device: torch.device, precision: str) -> Cost:
    """Of a step of all tasks on noise, measured: the faster of two after a first."""
    network = design.network().to(device)
    step = MultiTaskStep(network, precision=precision).train()
    loss = MultiTaskLoss(out_channels=network.out_channels, pooling=pooling_of(network), nested=network.nested)
    augment = make_augmentation(design.size)
    tumor: Any = (..., *[slice(n // 3, n // 2) for n in design.size])
    label = torch.zeros((1, *design.size), dtype=torch.uint8)
    label[tumor] = 1
    item = {"image": torch.randn(design.channels, *design.size), "label": label, "foreground": torch.ones_like(label)}
    target = {
        "label": label.expand(batch, *label.shape).to(device),
        "region_masks": label.expand(batch, design.regions, *design.size).to(device),
        "foreground": torch.ones((batch, *label.shape), dtype=torch.uint8, device=device),
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
        image = torch.stack([augment(dict(item))["image"] for _ in range(batch)]).to(device)
        with torch.autograd.graph.saved_tensors_hooks(keep if number == 0 else _as_it_is, _as_it_is):
            total = loss(step(image, target["has_mask"]), target)
        total.backward()
        total.item()  # waits for a GPU
        network.zero_grad()
        seconds.append(time.perf_counter() - start)
    return Cost(min(seconds[1:]) / batch, kept // batch)


def _as_it_is(tensor: torch.Tensor) -> torch.Tensor:
    return tensor
