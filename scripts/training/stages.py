"""What a stage is asked to do, checked before its data are read, and which shares apply to the items it has."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from scripts.data.preprocessing import spatial_sizes
from scripts.data.samplers import Shares, groups, has_mask
from scripts.runs.folder import read_datalist
from scripts.training.handlers.validation import KEY_METRICS
from scripts.training.precision import check_precision

__all__ = ["check_settings", "mix"]

logger = logging.getLogger(__name__)

LEAST = {
    "batch_size": 1,
    "accumulation_steps": 1,
    "max_epochs": 1,
    "val_interval": 1,
    "warmup_epochs": 0,
    "image_interval": 0,
    "early_stopping": 1,
}
OPTIONAL = ("image_interval", "early_stopping", "ema_decay", "masked_share", "class_weights")
# Least and most of each number, and whether the bounds themselves can be used.
AMOUNTS: dict[str, tuple[float, float, bool]] = {
    "learning_rate": (0.0, math.inf, False),
    "encoder_factor": (0.0, math.inf, True),
    "weight_decay": (0.0, math.inf, True),
    "gradient_clip": (0.0, math.inf, False),
    "seg_weight": (0.0, math.inf, True),
    "cls_weight": (0.0, math.inf, True),
    "evidence_weight": (0.0, math.inf, True),
    "label_smoothing": (0.0, 1.0, True),
    "focal_gamma": (0.0, math.inf, True),
    "area_at_zero": (0.0, 1.0, False),
    "background_weight": (0.0, math.inf, True),
    "ema_decay": (0.0, 1.0, False),
    "masked_share": (0.0, 1.0, True),
    "class_weights": (0.0, math.inf, True),
}


def check_settings(
    network: nn.Module,
    device: torch.device | str,
    spatial_size: Sequence[int] | int,
    precision: str,
    key_metric: str,
    amounts: Mapping[str, Any] | None = None,
    **counts: Any,
) -> None:
    """Refuse what would stop a training part-way, before its data are read.

    Args:
        network: of the stage; its ``total_stride``, if it has one, has to divide the size.
        device: that it is trained on.
        spatial_size: of its input.
        precision: see `scripts.training.engines.MultiTaskStep`.
        key_metric: that selects the weights.
        amounts: numbers, or lists of them, by config id, of `AMOUNTS`.
        counts: whole numbers by config id, of `LEAST`.

    Raises:
        ValueError: when one cannot be used; names its id.
    """
    for name, value in counts.items():
        if value is None and name in OPTIONAL:
            continue
        if isinstance(value, bool) or not isinstance(value, int) or value < LEAST[name]:
            also = ", or null" if name in OPTIONAL else ""
            raise ValueError(f"{name} is a whole number, {LEAST[name]} or more{also}; got {value!r}")
    for name, value in (amounts or {}).items():
        for number in value if isinstance(value, (list, tuple)) else [value]:
            _check_amount(name, number)
    sizes = spatial_sizes(spatial_size)
    stride = list(getattr(network, "total_stride", []))
    if stride and len(stride) != len(sizes):
        raise ValueError(f"spatial_size {list(sizes)} has {len(sizes)} axes, the network has {len(stride)}")
    if any(size % step for size, step in zip(sizes, stride, strict=False)):
        fitting = [-(-size // step) * step for size, step in zip(sizes, stride, strict=True)]
        raise ValueError(
            f"spatial_size {list(sizes)} is not a multiple of the network's total stride {stride}; next: {fitting}"
        )
    check_precision(precision, torch.device(device))
    if key_metric not in KEY_METRICS:
        raise ValueError(f"key_metric is one of {', '.join(KEY_METRICS)}, got {key_metric!r}")


def _check_amount(name: str, value: Any) -> None:
    if value is None and name in OPTIONAL:
        return
    least, most, closed = AMOUNTS[name]
    plain = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    if not plain or not (least <= value <= most if closed else least < value < most):
        words = f"{least:g} or more" if closed else f"more than {least:g}"
        upper = "" if most == math.inf else f", at most {most:g}" if closed else f" and less than {most:g}"
        also = ", or null" if name in OPTIONAL else ""
        raise ValueError(f"{name} is a finite number, {words}{upper}{also}; got {value!r}")


def mix(
    items: Sequence[dict[str, Any]],
    need: str,
    masked_share: float | None,
    alternating: bool,
    shares: Mapping[str, Shares | None],
    datalist_file: str | None = None,
    dataset_dir: str | None = None,
) -> dict[str, Any]:
    """The shares of `scripts.data.samplers.MixedBatchSampler` that a stage's items allow; the others are named in
    the log.

    One command trains all stages, and stage 1 has items with a mask alone. What the datalist's training part does not
    have either is left to the sampler to refuse.

    Args:
        items: of the stage, in its training.
        need: "items" of the config. Where it is not "any" the stage learns one task only and nothing alternates.
        masked_share, alternating, shares: as asked for in the config.
        datalist_file, dataset_dir: of the run; None: there are no other items.

    Returns:
        {"masked_share", "alternating", "shares"}; of a mapping of shares those of values that the items have, scaled to
        sum to 1.
    """
    every = list(items) if datalist_file is None else read_datalist(datalist_file, dataset_dir)["training"]
    kinds, in_all = set(has_mask(items)), set(has_mask(every))
    if len(kinds) == 1 < len(in_all) and (masked_share is not None or alternating):
        have = "with" if kinds == {True} else "without"
        names = [*(["masked_share"] if masked_share is not None else []), *(["alternating"] if alternating else [])]
        logger.info("%s not applied: all items of this stage are %s a mask (items: %s)", _and(names), have, need)
        masked_share, alternating = None, False
    if alternating and need != "any":
        logger.info("alternating not applied: this stage learns one task only (items: %s)", need)
        alternating = False
    overall, present = groups(every), groups(items)
    kept = {
        name: _available(name, stated, {str(v) for v in present[name]}, {str(v) for v in overall[name]}, need)
        for name, stated in shares.items()
    }
    return {"masked_share": masked_share, "alternating": alternating, "shares": kept}


def _available(name: str, stated: Shares | None, here: set[str], everywhere: set[str], need: str) -> Shares | None:
    """Shares without those of values that only other stages' items have."""
    if not isinstance(stated, Mapping):
        return stated
    asked = {str(value): float(share) for value, share in stated.items()}
    absent = [value for value, share in asked.items() if share > 0 and value not in here and value in everywhere]
    if not absent:
        return stated
    rest = {value: share for value, share in asked.items() if value not in absent}
    total = sum(rest.values())
    logger.info(
        "%s_shares: no item of this stage (items: %s) is of %s %s; the other shares are %s",
        name, need, name, _and(absent), "scaled to sum to 1" if total > 0 else "none, so that none applies",
    )  # fmt: skip
    # Shares that did not sum to 1 before do not now either: the sampler says so.
    return {value: share / (1 - sum(asked[v] for v in absent)) for value, share in rest.items()} if total > 0 else None


def _and(names: Sequence[str]) -> str:
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)
