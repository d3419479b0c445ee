"""A predicted mask against the true one: overlap, distance, sizes, and what would be scored without looking."""

from __future__ import annotations

import zlib
from typing import Any

import torch
from monai.metrics import compute_dice, compute_hausdorff_distance, compute_iou

from scripts.measures.lesions import count_lesions

__all__ = ["SEGMENTATION", "mask_measures", "random_mask"]

SEGMENTATION = ("dice", "iou", "hd95", "hd95_mm")
NAN = float("nan")


def mask_measures(
    segmented: torch.Tensor | None, label: torch.Tensor | None, head: torch.Tensor, pixel_mm: torch.Tensor, name: str
) -> dict[str, Any]:
    """Measures of a predicted mask.

    Args:
        segmented: (1, X, Y[, Z]), 0 or 1; None of a network that does not segment: nothing is predicted, not 0.
        label: the same, or None without a mask.
        head: bool, the foreground.
        pixel_mm: (D,) size of a pixel by axis, NaN where unknown.
        name: of the case; seeds its random mask.
    """
    tumor = 0 if label is None else int(label.sum())
    predicted, size = None if segmented is None else int(segmented.sum()), float(pixel_mm.prod())
    mm2, ml = (size, NAN) if len(pixel_mm) == 2 else (NAN, size / 1000)
    row: dict[str, Any] = {
        "has_mask": label is not None,
        "head_pixels": int(head.sum()),
        "tumor_pixels": None if label is None else tumor,
        "predicted_pixels": predicted,
        "shared_pixels": None if label is None or segmented is None else int((segmented * label).sum()),
        "tumor_mm2": NAN if label is None else tumor * mm2,
        "predicted_mm2": NAN if predicted is None else predicted * mm2,
        "tumor_ml": NAN if label is None else tumor * ml,
        "predicted_ml": NAN if predicted is None else predicted * ml,
    }
    row |= dict.fromkeys((*SEGMENTATION, "dice_whole_head", "dice_random"), NAN)
    row |= dict.fromkeys(("lesions", "lesions_found", "false_lesions"), None)
    if label is None:
        return row
    if tumor:
        row["dice_whole_head"] = _dice(head, label)
        row["dice_random"] = _dice(random_mask(head, tumor, name), label)
    if segmented is None:
        return row
    row |= count_lesions(segmented[0].numpy(), label[0].numpy())
    if not tumor:
        return row
    row["dice"], row["iou"] = (float(f(segmented[None], label[None])) for f in (compute_dice, compute_iou))
    if predicted:
        row["hd95"] = _hd95(segmented, label, [1.0] * len(pixel_mm))
        if bool(torch.isfinite(pixel_mm).all()):
            row["hd95_mm"] = _hd95(segmented, label, [float(side) for side in pixel_mm])
    return row


def _dice(mask: torch.Tensor, label: torch.Tensor) -> float:
    return float(compute_dice(mask.float()[None], label[None]))


def _hd95(segmented: torch.Tensor, label: torch.Tensor, spacing: list[float]) -> float:
    return float(
        compute_hausdorff_distance(
            segmented[None], label[None], include_background=True, percentile=95, spacing=spacing
        )
    )


def random_mask(head: torch.Tensor, pixels: int, name: str, cell: int = 4) -> torch.Tensor:
    """The highest pixels of a random map inside the head, as many as asked: what chance scores at a known area.

    Args:
        head: bool (1, X, Y[, Z]).
        pixels: how many.
        name: of the case; seeds the map.
        cell: pixels a side of the map's cells, between which it is interpolated.
    """
    generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
    coarse = torch.rand((1, 1, *(-(-n // cell) for n in head.shape[1:])), generator=generator)
    mode = "bilinear" if coarse.ndim == 4 else "trilinear"
    noise = torch.nn.functional.interpolate(coarse, size=tuple(head.shape[1:]), mode=mode)[0]
    noise[~head] = -1
    chosen = torch.zeros(head.numel(), dtype=torch.bool)
    chosen[noise.flatten().topk(pixels).indices] = True
    return chosen.view(head.shape)
