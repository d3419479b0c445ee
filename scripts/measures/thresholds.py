"""Thresholds chosen on validation cases: of the tumor probability by balanced accuracy, of a region's mask by Dice."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

__all__ = ["DEFAULT", "LEAST", "THRESHOLDS", "choose_mask_threshold", "choose_threshold", "mask_curve"]

DEFAULT = 0.5
THRESHOLDS = tuple(round(0.05 * k, 2) for k in range(2, 19))  # 0.1 to 0.9
LEAST = 10  # patients with a region that a threshold of its own takes


def choose_threshold(probability: np.ndarray, tumor: np.ndarray, least: float = 0.0) -> float:
    """Threshold of tumor probability with the best balanced accuracy on validation data.

    Candidates lie midway between neighboring probabilities; of equally good ones the nearest to 0.5 is taken.

    Args:
        probability: (N,) in [0, 1].
        tumor: (N,) bool.
        least: below 0.499, that the threshold is above by more than rounding: the probability without any evidence.
    """
    if not 0 < tumor.sum() < len(tumor):
        return 0.5
    values = np.unique(probability)
    candidates = np.concatenate([(values[1:] + values[:-1]) / 2, [0.5]])
    candidates = candidates[candidates > least + 0.001] if least else candidates
    scores = [((probability[tumor] >= c).mean() + (probability[~tumor] < c).mean()) / 2 for c in candidates]
    best = np.flatnonzero(np.isclose(scores, np.max(scores)))
    return float(candidates[best[np.argmin(np.abs(candidates[best] - 0.5))]])


def mask_curve(log_odds: Tensor, truth: Tensor) -> NDArray[np.float64]:
    """Dice of one case's mask at each of `THRESHOLDS`; of a case without the region whether anything is marked, 0 or 1.

    Args:
        log_odds: of the region at each place, any shape.
        truth: the same shape, non-zero in the region.

    Returns:
        (T,).
    """
    values, inside = log_odds.detach().float().flatten(), truth.flatten() != 0
    edges = torch.logit(torch.tensor(THRESHOLDS, device=values.device))
    passed = torch.bucketize(values, edges)  # how many of the thresholds a place is above
    count = len(THRESHOLDS) + 1

    def above(chosen: Tensor) -> NDArray[np.float64]:
        number = torch.bincount(chosen, minlength=count).cpu().numpy()
        return number[::-1].cumsum()[::-1][1:].astype(np.float64)

    marked, shared = above(passed), above(passed[inside])
    size = float(inside.sum())
    return 2 * shared / (marked + size) if size else (marked > 0).astype(np.float64)


def choose_mask_threshold(
    dice: NDArray[np.float64], patients: Sequence[str], marked: NDArray[np.float64]
) -> tuple[float, str]:
    """The threshold with the best mean Dice over the cases that have a region, among those that mark no more others.

    Ties go to the one nearest to `DEFAULT`.

    Args:
        dice: (N, T) of the cases that have the region, at `THRESHOLDS`.
        patients: (N,) of the cases.
        marked: (M, T), 0 or 1, of the cases that do not.

    Returns:
        the threshold, `DEFAULT` where fewer than `LEAST` patients have the region; and why, in words.
    """
    count, middle = len(set(patients)), THRESHOLDS.index(DEFAULT)
    if count < LEAST:
        return DEFAULT, f"{DEFAULT} ({count} of the {LEAST} patients with it that a threshold of its own takes)"
    mean = dice.mean(axis=0)
    harmless = np.ones(len(THRESHOLDS), bool)
    if len(marked):
        false = marked.mean(axis=0)
        harmless = false <= false[middle]
    order = sorted(range(len(THRESHOLDS)), key=lambda k: abs(k - middle))
    best = max((k for k in order if harmless[k]), key=lambda k: round(float(mean[k]), 6))
    return THRESHOLDS[best], (
        f"{THRESHOLDS[best]:g} (mean Dice {mean[best]:.3f}, {mean[middle]:.3f} at {DEFAULT}; {count} patients)"
    )
