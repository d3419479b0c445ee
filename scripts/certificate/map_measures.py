"""Whether a measure of maps ranks them right: maps that are made worse step by step, and what each measure says.

    python -m scripts rank-measures [--n_cases 40]

A map that marks the tumor of a phantom is shifted, blurred, mixed with noise or faded into the map of another picture.
A measure that orders the steps as they were made has a Spearman correlation of 1 with them.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from scipy.stats import spearmanr

from scripts.certificate.planted import phantom_case
from scripts.command.verbs import Outcome
from scripts.explain.measures import case_measures

# Measures and whether more is better.
MEASURES = {
    "tumor_energy": 1, "pointing_game": 1, "attention_mean": 1, "attention_ratio": 1, "attention_std": -1,
    "background_energy": -1,
}  # fmt: skip
STEPS = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
RECOMMENDED = 0.9
_LAYER = 32  # cells a side of the maps, as of a layer of a network


def degraded(kind: str, heat: NDArray, other: NDArray, step: float, rng: np.random.Generator) -> NDArray:
    """A map made worse.

    Args:
        kind: "shifted" (by up to a third of the side), "blurred", "mixed with noise" or "of another picture".
        heat, other: maps (H, W) with a maximum of 1.
        step: 0 as it is, 1 the worst.
        rng: of noise and direction.

    Raises:
        ValueError: when the kind is unknown.
    """
    if kind == "shifted":
        angle, length = rng.uniform(0, 2 * np.pi), step * len(heat) / 3
        return ndimage.shift(heat, (length * np.cos(angle), length * np.sin(angle)), order=1, mode="constant")
    if kind == "blurred":
        return ndimage.gaussian_filter(heat, step * len(heat) / 4, mode="constant")
    if kind == "mixed with noise":
        return (1 - step) * heat + step * rng.random(heat.shape)
    if kind == "of another picture":
        return (1 - step) * heat + step * other
    raise ValueError(f"a map is shifted, blurred, mixed with noise or of another picture, got {kind!r}")


KINDS = ("shifted", "blurred", "mixed with noise", "of another picture")


def rank_measures(
    maps: Sequence[NDArray], tumors: Sequence[NDArray], heads: Sequence[NDArray], seed: int = 0
) -> dict[str, dict[str, float]]:
    """Spearman correlation of each measure's mean over cases with the steps, by kind of degradation.

    Args:
        maps: (H, W) each, of a layer.
        tumors, heads: bool masks of the pictures.
        seed: of noise and directions.

    Returns:
        {kind: {measure: correlation}}, 1 where the measure is worse at every step; 0 where it never changes.
    """
    tumor, head = (torch.from_numpy(np.stack(masks)[:, None].astype(np.float32)) for masks in (tumors, heads))
    correlations: dict[str, dict[str, float]] = {}
    for kind in KINDS:
        means: dict[str, list[float]] = {name: [] for name in MEASURES}
        for step in STEPS:
            rng = np.random.default_rng(seed)  # the same direction and noise at every step
            worse = [degraded(kind, heat, maps[k - 1], step, rng) for k, heat in enumerate(maps)]
            values = case_measures(torch.from_numpy(np.stack(worse)[:, None]).float(), tumor, head)
            for name in MEASURES:
                means[name].append(float(np.nanmean(values[name].numpy())))
        correlations[kind] = {name: _rank(means[name], sign) for name, sign in MEASURES.items()}
    return correlations


def _rank(means: Sequence[float], sign: int) -> float:
    return 0.0 if np.ptp(means) < 1e-9 else float(-sign * spearmanr(STEPS, means).statistic)


def phantom_maps(count: int) -> tuple[list[NDArray], list[NDArray], list[NDArray]]:
    """Maps that mark the tumors of phantoms on a layer's grid, with the masks of tumors and heads."""
    cases = [phantom_case(7000 + k, 1 + k % 2) for k in range(count)]
    cases = [case for case in cases if case.mask is not None and case.mask.sum() > 30]
    tumors = [case.donor().mask for case in cases]
    cells = [np.asarray(mask, np.float32).reshape(_LAYER, -1, _LAYER, mask.shape[1] // _LAYER) for mask in tumors]
    maps = [cell.mean(axis=(1, 3)) for cell in cells]
    return [one / one.max() for one in maps], tumors, [case.foreground for case in cases]


def table(correlations: Mapping[str, Mapping[str, float]]) -> str:
    """One line a measure; which ones to recommend follows from the worst of each."""
    width = max(map(len, MEASURES))
    lines = [" " * width + "  " + "  ".join(kind.rjust(18) for kind in correlations) + "  recommended"]
    for name in MEASURES:
        values = [correlations[kind][name] for kind in correlations]
        said = "yes" if min(values) >= RECOMMENDED else "no"
        lines.append(name.ljust(width) + "  " + "  ".join(f"{v:18.2f}" for v in values) + f"  {said}")
    return "\n".join(lines)


def execute(arguments: argparse.Namespace) -> Outcome:
    """The verb ``rank-measures``."""
    return Outcome(table(rank_measures(*phantom_maps(arguments.n_cases))))
