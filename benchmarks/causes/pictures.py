"""Drawn heads for planted causes: phantoms of three classes in a narrow or a wide frame, and faults of pipelines."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as F
from scipy import ndimage
from torch import Tensor

from scripts.certificate.cases import Case
from scripts.certificate.planted import phantom_case

SIZE = 64
CELL = 8  # of the classifiers' last features, in pixels: in a narrow frame none is without a pixel of the head
CLASSES = ("no_tumor", "bright", "dark")
# Share of necrosis, contrast of rim, core and necrosis.
KINDS = ((0.0, 1.1, 1.3, 0.0), (0.0, -0.6, -0.7, 0.0))
MARK = 8  # pixels


@dataclass(frozen=True)
class Heads:
    """Pictures through a right pipeline: the head has mean 0 and deviation 1, the air is exactly 0.

    Attributes:
        images: (B, 1, SIZE, SIZE).
        foreground, tumor: the same shape, bool.
        labels: class of each.
    """

    images: Tensor
    foreground: Tensor
    tumor: Tensor
    labels: tuple[int, ...]


def _framed(case: Case, share: float) -> tuple[Tensor, Tensor, Tensor]:
    """Image, foreground and tumor in a frame that is so many times as wide as the head, (1, SIZE, SIZE) each."""
    coords = np.argwhere(case.foreground)
    low, high = coords.min(0), coords.max(0) + 1
    sides = np.array(case.foreground.shape, float)
    center, half = (low + high) / sides - 1, (high - low) / sides * share
    theta = torch.tensor([[half[1], 0, center[1]], [0, half[0], center[0]]], dtype=torch.float32)[None]
    grid = F.affine_grid(theta, [1, 1, SIZE, SIZE], align_corners=False)
    mask = np.zeros_like(case.foreground) if case.mask is None else case.mask
    planes = [np.asarray(plane, np.float32) for plane in (case.image[0], case.foreground, mask)]
    image, inside, tumor = (
        F.grid_sample(torch.from_numpy(plane)[None, None], grid, mode, align_corners=False)[0]
        for plane, mode in zip(planes, ("bilinear", "nearest", "nearest"), strict=True)
    )
    return image, inside > 0.5, tumor > 0.5


def _narrow(case: Case) -> tuple[Tensor, Tensor, Tensor]:
    """The widest frame in which each cell has some head, and the corners some air."""
    for share in np.arange(0.9, 0.5, -0.02):
        image, inside, tumor = _framed(case, float(share))
        if bool((F.max_pool2d(inside[None].float(), CELL) > 0).all()):
            return image, inside, tumor
    raise ValueError(f"{case.name}: no frame without a cell of air")


@lru_cache(maxsize=4)
def _cases(seed: int, count: int) -> tuple[Case, ...]:
    rng = np.random.default_rng([seed, 11])
    cases: list[Case] = []
    for k in range(count):
        kind = k % 3
        case = phantom_case(100_000 + 1000 * seed + k, kind, KINDS, float(rng.uniform(25, 31)))
        cases.append(replace(case, kind=kind))
    return tuple(cases)


@lru_cache(maxsize=8)
def heads(seed: int, count: int, wide: bool = False) -> Heads:
    """So many heads, the classes in turn; those whose tumor lies outside the narrow frame are left out."""
    images, foreground, tumors, labels = [], [], [], []
    for case in _cases(seed, count):
        narrow = _narrow(case)
        image, inside, tumor = _framed(case, 1.1) if wide else narrow
        if (case.kind > 0) != (int(narrow[2].sum()) > 150):
            continue
        head = image[inside]
        images.append(torch.where(inside, (image - head.mean()) / head.std(), torch.zeros(())))
        foreground.append(inside)
        tumors.append(tumor & inside)
        labels.append(case.kind)
    return Heads(torch.stack(images), torch.stack(foreground), torch.stack(tumors), tuple(labels))


def noisy_air(heads: Heads, seed: int, level: Sequence[float] = (0.5, 0.5, 0.5)) -> Heads:
    """The air is not 0 but noise about a level, one for each class."""
    generator = torch.Generator().manual_seed(seed)
    levels = torch.tensor([level[label] for label in heads.labels]).reshape(-1, 1, 1, 1)
    noise = levels + 0.15 * torch.randn(heads.images.shape, generator=generator)
    return replace(heads, images=torch.where(heads.foreground, heads.images, noise))


def wrong_order(heads: Heads) -> Heads:
    """Masked first and normalized over the whole picture afterwards."""
    raw = torch.where(heads.foreground, heads.images + 4, torch.zeros(()))
    mean, deviation = raw.mean((1, 2, 3), keepdim=True), raw.std((1, 2, 3), keepdim=True)
    return replace(heads, images=(raw - mean) / deviation)


def marked(heads: Heads) -> Heads:
    """A small mark of stripes inside the head, beside the tumor: along one axis or the other, by the class."""
    images = heads.images.clone()
    stripes = torch.tensor([4.0, 4.0, -4.0, -4.0]).repeat(MARK // 4).expand(MARK, MARK)
    for image, inside, tumor, label in zip(images, heads.foreground, heads.tumor, heads.labels, strict=True):
        if label:
            free = ndimage.binary_erosion((inside & ~tumor)[0].numpy(), iterations=MARK // 2 + 3)
            places = np.argwhere(free)
            x, y = places[len(places) // 2] - MARK // 2
            image[0, x : x + MARK, y : y + MARK] = stripes if label == 1 else stripes.T
    return replace(heads, images=images)


def with_labels_by_chance(heads: Heads, seed: int) -> Heads:
    """The same pictures, each with a label that its tumor says nothing of."""
    labels = np.random.default_rng(seed).permutation(heads.labels)
    return replace(heads, labels=tuple(int(label) for label in labels))
