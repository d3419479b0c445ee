"""How a map lies in one region: shares of it inside, and distances in millimeters."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.ndimage import distance_transform_edt
from scipy.spatial import cKDTree
from torch import Tensor

__all__ = ["DISTANCES", "REGION_MEASURES", "energy", "localized", "ratio"]

DISTANCES = ("peak_distance_mm", "centroid_distance_mm")
REGION_MEASURES = ("energy", "area", "pointing_game", "rank_accuracy", *DISTANCES)
# From so many places on that share the maximum outside the region, one distance map of the whole grid is quicker.
_MANY = 4096


def ratio(numerator: Tensor, denominator: Tensor) -> Tensor:
    """Quotient, NaN where the denominator is 0."""
    safe = torch.where(denominator == 0, torch.ones_like(denominator), denominator)
    return torch.where(denominator == 0, torch.full_like(numerator, torch.nan), numerator / safe)


def energy(maps: Tensor, region: Tensor) -> Tensor:
    """Share of each map's sum that lies in the region, (B,), NaN for an empty map."""
    maps = maps.flatten(1)
    return ratio((maps * region.flatten(1)).sum(1), maps.sum(1))


def localized(maps: Tensor, region: Tensor, pixel_mm: Tensor | None = None) -> dict[str, Tensor]:
    """Where each map lies against a region of its image.

    - `energy`: share of the map's sum in the region; `area`: the region's share of all pixels.
    - `pointing_game`: 1 if the map's maximum is in the region; of several places that share it, the share of them.
    - `rank_accuracy`: of the N strongest pixels, N being those of the region, the share in it; of equal ones at the
      end of the ranks the share that a random choice of them would have.
    - `peak_distance_mm`: from the maximum to the nearest pixel of the region, between centers; 0 inside. Of several
      places that share it, the mean.
    - `centroid_distance_mm`: between the centers of mass of map and region.

    A case without the region has NaN in all but `area`. An empty map is a miss, 0 in the shares, and has no distance.

    Source: relevance rank accuracy: Arras, Osman, Samek, CLEVR-XAI, Information Fusion 2022, arXiv:2003.07258; the
    others see `scripts.explain.measures.case_measures`.

    Args:
        maps: (B, 1, *spatial) on the image's grid, at least 0, float64.
        region: the same shape, bool.
        pixel_mm: (B, D) size of a pixel by axis, NaN where unknown; None: not known. Distances are NaN then.

    Returns:
        `REGION_MEASURES` by name, (B,), float64.
    """
    m, r = maps.flatten(1), region.flatten(1)
    there, peak = r.any(1), m.amax(1, keepdim=True)
    empty = peak[:, 0] <= 0
    at_peak = (m == peak).double()
    inside = {
        "energy": energy(m, r),
        "pointing_game": (at_peak * r).sum(1) / at_peak.sum(1),
        "rank_accuracy": torch.stack([_rank_accuracy(*pair) for pair in zip(m, r, strict=True)]),
    }
    nan = torch.full_like(peak[:, 0], torch.nan)
    measures = {
        name: torch.where(there, torch.where(empty, torch.zeros_like(nan), value), nan)
        for name, value in inside.items()
    }
    measures |= {"area": r.double().mean(1), **{name: nan.clone() for name in DISTANCES}}
    known = torch.full((len(maps), 1), torch.nan) if pixel_mm is None else pixel_mm
    for i in torch.nonzero(there & ~empty).flatten().tolist():
        sides = known[i].double().cpu().numpy()
        if np.isfinite(sides).all():
            mask = region[i, 0].cpu().numpy()
            peaks = (maps[i, 0] == peak[i]).cpu().numpy()
            measures["peak_distance_mm"][i] = _distance(peaks, mask, sides)
            apart = _center(maps[i, 0].cpu().numpy(), sides) - _center(mask.astype(np.float64), sides)
            measures["centroid_distance_mm"][i] = float(np.linalg.norm(apart))
    return {name: measures[name] for name in REGION_MEASURES}


def _rank_accuracy(values: Tensor, region: Tensor) -> Tensor:
    """Share of the strongest values (N,) in a region of as many, float64."""
    count = int(region.sum())
    if count == 0:
        return values.new_full((), torch.nan)
    least = values.kthvalue(len(values) - count + 1).values
    above, equal = values > least, values == least
    chosen = (count - above.sum()) / equal.sum()  # of the equal ones, as many as still fit
    return ((above & region).sum() + chosen * (equal & region).sum()) / count


def _distance(places: NDArray, region: NDArray, sides: NDArray) -> float:
    """Mean distance in mm of places, bool, to the nearest pixel of a region, bool."""
    outside = np.argwhere(places & ~region)
    if len(outside) > _MANY:
        apart = distance_transform_edt(~region, sampling=sides)[tuple(outside.T)]
    else:
        apart, _ = cKDTree(np.argwhere(region) * sides).query(outside * sides)
    return float(np.sum(apart) / places.sum())


def _center(weights: NDArray, sides: NDArray) -> NDArray:
    """Center of mass in mm from the first pixel's center, (D,)."""
    axes = range(weights.ndim)
    along = [weights.sum(axis=tuple(other for other in axes if other != axis)) for axis in axes]
    return np.array([np.arange(len(sums)) @ sums for sums in along]) / weights.sum() * sides
