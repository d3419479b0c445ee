"""How a volume of slices is scored: by its strongest run of neighboring slices whose evidence lies at one place."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

__all__ = ["REACH", "VolumeRule", "evidence_places", "strongest_run", "volume_probability"]

REACH = (
    0.15  # of the side of the network's grid: how far evidence of neighboring slices may lie apart to be of one place
)


def evidence_places(evidence: Tensor) -> Tensor:
    """Where the evidence of each slice lies: the center of all that is at least half of its maximum.

    Args:
        evidence: (S, 1, *grid) of any tumor.

    Returns:
        (S, dims), each axis from 0 to 1 along the grid; NaN without evidence above 0.
    """
    flat = evidence.flatten(1).double()
    strongest = flat.amax(dim=1, keepdim=True)
    near = (flat >= strongest / 2) & (strongest > 0)
    axes = [(torch.arange(n, dtype=torch.float64, device=evidence.device) + 0.5) / n for n in evidence.shape[2:]]
    grid = torch.stack([axis.flatten() for axis in torch.meshgrid(*axes, indexing="ij")], dim=1)
    return (near.double() @ grid) / near.sum(dim=1, keepdim=True)


def strongest_run(
    probability: Tensor, votes: Tensor, share: float, places: Tensor | None = None, reach: float = REACH
) -> tuple[Tensor, list[int]]:
    """Class probabilities of a volume, and the slices that they are of.

    The run is as long as ``share`` of the slices that count, and of all such runs the one with the largest mean tumor
    probability. Within it, a slice whose evidence continues in none of its two neighbors counts as one without a tumor:
    what shows in a single slice of many is mostly noise. A run of one slice, of ten or fewer, asks for no neighbor.

    Args:
        probability: (S, K) of each slice along the axis, class 0 "no tumor".
        votes: (S,) bool, slices that count; if none does, all do.
        share: of the counting slices, more than 0, at most 1; at least one slice is taken.
        places: (S, dims) of `evidence_places`; None: not known, every slice counts as it is.
        reach: how far places of neighbors may lie apart.

    Returns:
        (K,), sums to 1, and the indices of the run's slices.
    """
    every = torch.arange(len(probability))
    counting = every[votes] if bool(votes.any()) else every
    known = probability[counting].double()
    # Rounded first: 0.1 * 70 is a little more than 7, and its ceiling 8.
    length = max(1, math.ceil(round(share * len(counting), 9)))
    if places is not None and length > 1:
        # A comparison with NaN, no evidence, is False.
        near = (places[counting][1:] - places[counting][:-1]).norm(dim=1) <= reach
        alone = torch.nn.functional.pad(near, (0, 1)) | torch.nn.functional.pad(near, (1, 0))
        known[~alone] = torch.eye(known.shape[1], dtype=known.dtype)[0]
    means = known.unfold(0, length, 1).mean(dim=2)
    first = int((1 - means[:, 0]).argmax())
    return means[first].to(probability.dtype), counting[first : first + length].tolist()


def volume_probability(
    probability: Tensor, votes: Tensor, share: float, places: Tensor | None = None, reach: float = REACH
) -> Tensor:
    """Class probabilities (K,) of a volume, see `strongest_run`."""
    return strongest_run(probability, votes, share, places, reach)[0]


@dataclass(frozen=True)
class VolumeRule:
    """How a volume is diagnosed from its slices, at inference and in evaluation.

    Attributes:
        share: of its slices, the length of a run.
        min_foreground: a slice with less of head does not count, unless all are so.
        threshold: of a volume's tumor probability; None: that of a slice.
    """

    share: float = 0.1
    min_foreground: float = 0.1
    threshold: float | None = None

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1:
            raise ValueError(f"volume_share is more than 0 and at most 1, got {self.share}")
        if self.threshold is not None and not 0 < self.threshold < 1:
            raise ValueError(f"volume_threshold lies between 0 and 1, got {self.threshold}")

    def probability(self, slices: Sequence[Mapping[str, Any]]) -> list[float]:
        """Probability by class (K,) of the evaluated slices of one volume, or of the cases of one patient.

        Args:
            slices: rows with ``probability`` (K,) and ``head_share``. Those of one volume, with ``slice`` and
                ``evidence_place`` each, are put in order and have to agree on the place.
        """
        volume = {row.get("volume") for row in slices}
        ordered = len(volume) == 1 and all(volume) and all(row.get("slice") is not None for row in slices)
        rows = sorted(slices, key=lambda row: row["slice"]) if ordered else list(slices)
        places = [row.get("evidence_place") for row in rows]
        known = torch.tensor(places, dtype=torch.float64) if ordered and None not in places else None
        votes = torch.tensor([row["head_share"] >= self.min_foreground for row in rows])
        per_slice = torch.tensor([row["probability"] for row in rows], dtype=torch.float64)
        return [float(p) for p in volume_probability(per_slice, votes, self.share, known)]

    def threshold_of(self, of_slice: float) -> float:
        """Threshold of a volume, where that of a slice is ``of_slice``."""
        return of_slice if self.threshold is None else self.threshold

    def __str__(self) -> str:
        at = "the threshold of a slice" if self.threshold is None else f"{self.threshold:g}"
        return (
            f"its probabilities are the mean over the run of neighboring slices, {self.share:.0%} of its evaluated "
            f"slices (at least one; those with less than {self.min_foreground:.0%} head do not count), with the "
            "largest mean tumor probability; a slice whose evidence lies elsewhere than that of both neighbors counts "
            f"as without a tumor; tumor if the mean reaches {at}, then the most probable tumor class; truly the most "
            "frequent tumor class of its slices, no tumor if none has any"
        )
