"""Dice and F1 by lesion, as BraTS 2023 scores a region of a volume."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

__all__ = ["LEAST_MM3", "NEAR_MM", "lesion_scores"]

NEAR_MM = 3.0  # by which true lesions are dilated: those that touch then are one, and a prediction that does is of it
LEAST_MM3 = 50.0  # true lesions that are not larger take no part
_STEP = ndimage.generate_binary_structure(3, 2)
_TOUCHING = np.ones((3, 3, 3), dtype=int)


def lesion_scores(predicted: NDArray, truth: NDArray, pixel_mm: Sequence[float]) -> dict[str, float]:
    """Lesion-wise scores of one region of one volume.

    A lesion is what hangs together of the true mask dilated by `NEAR_MM`; to it belong all predicted components (26
    neighbors) that touch its own dilation. Predicted components of no lesion are false ones. Lesions of `LEAST_MM3` or
    less count neither as found nor as missed.

    Args:
        predicted, truth: (X, Y, Z), non-zero in the region.
        pixel_mm: size of a voxel by axis.

    Returns:
        "lesion_dice": Dice of each lesion and 0 for each false component, averaged; "lesion_f1": 2 found / (2 found +
        missed + false). Both 1 where there is neither a lesion nor a false component.

    Source: Saluja et al., BraTS 2023 metrics, github.com/rachitsaluja/BraTS-2023-Metrics, challenge "BraTS-GLI".
    Departs from it: the dilation is of `NEAR_MM`, rounded to whole voxels by axis and at least one, not of three
    voxels; at 1 mm they are the same.
    """
    said, true = predicted != 0, truth != 0
    components, count = ndimage.label(said, structure=_TOUCHING)
    groups, _ = ndimage.label(_dilated(true, pixel_mm), structure=_TOUCHING)
    owned: set[int] = set()
    dice, missed = [], 0
    for k, box in enumerate(ndimage.find_objects(groups), start=1):
        near = groups[box] == k  # the lesion and its dilation
        lesion = true[box] & near
        matched = np.setdiff1d(components[box][near], [0])
        owned |= set(matched.tolist())
        size = int(lesion.sum())
        if size * float(np.prod(pixel_mm)) <= LEAST_MM3:
            continue
        overlap = int(np.isin(components[box][lesion], matched).sum()) if len(matched) else 0
        dice.append(2 * overlap / (size + int(np.isin(components, matched).sum())) if len(matched) else 0.0)
        missed += not len(matched)
    false = count - len(owned)
    detected = len(dice) - missed
    return {
        "lesion_dice": sum(dice) / (len(dice) + false) if dice or false else 1.0,
        "lesion_f1": 2 * detected / (2 * detected + missed + false) if dice or false else 1.0,
    }


def _dilated(mask: NDArray, pixel_mm: Sequence[float]) -> NDArray:
    """A mask dilated by `NEAR_MM` along every axis, in whole voxels and at least one.

    An axis of larger voxels takes part in fewer of the steps.
    """
    reach = [max(1, round(NEAR_MM / side)) for side in pixel_mm]
    steps = max(reach)
    for k in range(1, steps + 1):
        still = (slice(None) if k * n // steps > (k - 1) * n // steps else slice(1, 2) for n in reach)
        mask = ndimage.binary_dilation(mask, _STEP[tuple(still)])
    return mask
