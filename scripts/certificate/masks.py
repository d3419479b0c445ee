"""Masks of a segmenter: checked, made into a verdict, and what a certificate looks at of one.

The verdict of a mask: a picture is called tumor where at least ``least_area`` pixels reach the threshold. Its tumor
probability is that of its ``least_area``-th most probable pixel, so that the two always agree; its kind is the tumor
class that most of the mask's probability is of.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image as Pictures
from scipy.special import expit, softmax

from scripts.certificate.answers import Answer
from scripts.certificate.cases import Case
from scripts.certificate.settings import Settings
from scripts.interventions.regions import Mask, inner

__all__ = ["checked_masks", "mask_answer", "mask_fields", "on_grid"]

# Channels with a background sum to 1 at each pixel within this; values leave 0..1 by no more than the second.
_SUM, _RANGE = 0.01, 1e-4


def checked_masks(output: Any, settings: Settings, count: int, plane: tuple[int, int]) -> NDArray[np.float64]:
    """What a segmenter gave as tumor probabilities (N, C, H, W), a channel each of `Settings.channel_names`.

    Args:
        output: array of numbers, (N, H, W), or (N, C, H, W) in the layout of the settings.
        settings: what the model gives.
        count: pictures asked.
        plane: (H, W) of what it was given.

    Raises:
        ValueError: when shape or values are none of masks; begins with "answered".
    """
    names = settings.channel_names
    values = np.asarray(output, dtype=np.float64)
    shape = values.shape
    if values.ndim == 3:
        values = values[:, None]
    elif values.ndim == 4 and settings.layout == "nhwc":
        values = np.moveaxis(values, -1, 1)
    allowed = [1, len(names)] if len(settings.classes) == 2 and not settings.mask_channels else [len(names)]
    if values.ndim != 4 or values.shape[0] != count or values.shape[1] not in allowed or values.shape[2:] != plane:
        axes = "(N, H, W, C)" if settings.layout == "nhwc" else "(N, C, H, W)"
        raise ValueError(
            f"answered in shape {shape}; expected masks (N, H, W) or {axes} with N = {count}, H, W = "
            f"{plane[0]}, {plane[1]} and C = {' or '.join(map(str, allowed))} ({', '.join(names)})"
        )
    if not np.isfinite(values).all():
        raise ValueError("answered with a mask of values that are not finite (NaN or infinite)")
    whole = values.shape[1] == len(names) and settings.no_tumor in names
    if settings.outputs == "mask_logits":
        return softmax(values, axis=1) if whole else expit(values)
    if values.min() < -_RANGE or values.max() > 1 + _RANGE:
        raise ValueError(
            f"answered with a mask of values from {values.min():.3g} to {values.max():.3g}, not of probabilities 0 to "
            "1; if they are logits, set outputs: mask_logits"
        )
    off = float(np.abs(values.sum(axis=1) - 1).max()) if whole else 0.0
    if off > _SUM:
        raise ValueError(
            f"answered with channels {', '.join(names)} that sum to 1 at no better than {off:.3g}; leave "
            f"{settings.no_tumor} out of mask_channels where they are independent"
        )
    return np.clip(values, 0.0, 1.0)


def mask_answer(
    channels: NDArray[np.float64], settings: Settings, order: list[int], place: Mask | None, gray: Any, head: Any
) -> Answer:
    """The verdict of one mask, with what a certificate looks at of the mask.

    Args:
        channels: (C, H, W) of `checked_masks`.
        settings: what the model gives.
        order: of the classes in the answer.
        place, gray, head: see `mask_fields`.

    Raises:
        ValueError: when the mask has fewer pixels than `Settings.least_area`.
    """
    names = settings.channel_names if len(channels) > 1 else settings.tumor_classes[:1]
    tumors = [k for k, name in enumerate(names) if name != settings.no_tumor]
    if settings.no_tumor in names:
        none = channels[names.index(settings.no_tumor)]
    else:
        none = 1.0 - channels[tumors].max(axis=0)
    if settings.least_area > none.size:
        raise ValueError(f"answered with masks of {none.size} pixels; least_area is {settings.least_area}")
    mask = 1.0 - none >= settings.threshold
    least = float(np.partition(none, settings.least_area - 1, axis=None)[settings.least_area - 1])
    kinds = np.zeros(len(settings.classes))
    for k in tumors:
        # A part of the tumor that is no class is of the one tumor class there is.
        name = names[k] if names[k] in settings.classes else settings.tumor_classes[0]
        kinds[settings.classes.index(name)] += channels[k][mask].sum() if mask.any() else channels[k].max()
    if kinds.sum() <= 0:
        kinds[[settings.classes.index(name) for name in settings.tumor_classes]] = 1.0
    probabilities = kinds / kinds.sum() * (1.0 - least)
    probabilities[settings.classes.index(settings.no_tumor)] = least
    return Answer(tuple(float(probabilities[k]) for k in order), **mask_fields(mask, place, gray, head))


def mask_fields(mask: Mask, place: Mask | None, gray: NDArray[np.floating], head: Mask | None) -> dict[str, Any]:
    """What `Answer` holds of a mask.

    Args:
        mask: bool (H, W[, D]), predicted.
        place: bool, of the same grid; None: there is none.
        gray: float, the picture on it.
        head: bool, on it; None: how bright the mask lies in the head is not asked.
    """
    values: dict[str, Any] = {"mask_pixels": int(mask.sum())}
    if place is not None and place.any():
        both = int((mask & place).sum())
        values |= {"mask_in_place": both, "dice": 2 * both / int(mask.sum() + place.sum())}
    if mask.any():
        middle = [(float(at.mean()) + 0.5) / size for at, size in zip(np.nonzero(mask), mask.shape, strict=True)]
        values["mask_center"] = tuple(middle)
        inside = None if head is None else inner(head)
        if inside is not None and inside.any():
            values["mask_brighter_than"] = float((gray[inside] < np.median(gray[mask])).mean())
    return values


def on_grid(mask: Mask, plane: tuple[int, int]) -> Mask:
    """A mask (X, Y) of a picture on the grid (H, W) of what a model was given."""
    turned = mask.T
    if turned.shape == plane:
        return turned
    height, width = plane
    small = Pictures.fromarray(turned.astype(np.uint8)).resize((width, height), Pictures.Resampling.NEAREST)
    return np.asarray(small) != 0


def head_of(case: Case, shape: tuple[int, ...], plane: tuple[int, int]) -> Mask | None:
    """The head of a case on a model's grid; None where the picture asked has another shape than the case's."""
    return on_grid(case.foreground, plane) if case.foreground.shape == shape else None
