"""The joined answer: verdict, mask and evidence of one image, which never contradict each other.

The rule, for every consumer (inference, tables, service, page, MONAI Label, evaluation):

- *tumor*: the probability reaches the threshold, the mask and the evidence are not empty, and they overlap.
- *no tumor*: the probability does not reach the threshold, and the mask holds at most `SMALL_SHARE` of the head. Mask
  and evidence of the answer are empty.
- *uncertain*: everything else; the reason says what disagrees. It counts as neither right nor wrong. Mask and evidence
  are those of the network.
- *not assessed*: the image is none that the network should be asked about, or its head was not trained.

What the network said alone stays beside it, as ``raw``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

__all__ = [
    "NOT_ASSESSED",
    "NO_TUMOR",
    "SMALL_SHARE",
    "TUMOR",
    "UNCERTAIN",
    "Answer",
    "Raw",
    "detected",
    "join",
    "overlaps",
]

TUMOR, NO_TUMOR, UNCERTAIN, NOT_ASSESSED = "tumor", "no tumor", "uncertain", "not assessed"
SMALL_SHARE = 0.002  # of the head: a mask below it does not speak against "no tumor"


def detected(verdict: str) -> bool | None:
    """Whether a verdict is a tumor; None where it is neither yes nor no."""
    return {TUMOR: True, NO_TUMOR: False}.get(verdict)


@dataclass(frozen=True)
class Raw:
    """What the network says, before anything is joined.

    Attributes:
        probability: of any tumor, 0 to 1.
        threshold: at which a probability means tumor.
        mask_voxels: voxels of the predicted mask; None where the network segments nothing.
        head_voxels: voxels of the head, on the same grid.
        evidence_maximum: strongest evidence for any tumor, at least 0; None without an evidence map.
        overlap: whether mask and evidence share a voxel; None where one of them is missing.
    """

    probability: float
    threshold: float
    mask_voxels: int | None
    head_voxels: int
    evidence_maximum: float | None
    overlap: bool | None

    @property
    def detected(self) -> bool:
        """Whether the probability alone says tumor."""
        return self.probability >= self.threshold

    @property
    def contradictions(self) -> list[str]:
        """What of the raw outputs disagrees, in words: with a verdict of no tumor any mask at all counts."""
        conflicts = []
        if self.detected:
            if self.mask_voxels == 0:
                conflicts.append("the verdict is tumor, but the mask is empty")
            if self.evidence_maximum is not None and self.evidence_maximum <= 0:
                conflicts.append("the verdict is tumor, but there is no evidence for it anywhere")
            if self.mask_voxels and self.evidence_maximum and self.overlap is False:
                conflicts.append("mask and evidence lie in different places")
        elif self.mask_voxels:
            conflicts.append(f"the verdict is no tumor, but the mask holds {self.mask_share:.2%} of the head")
        return conflicts

    @property
    def mask_share(self) -> float:
        """Share of the head that the mask holds."""
        return (self.mask_voxels or 0) / max(self.head_voxels, 1)


@dataclass(frozen=True)
class Answer:
    """The joined answer.

    Attributes:
        verdict: `TUMOR`, `NO_TUMOR`, `UNCERTAIN` or `NOT_ASSESSED`.
        reasons: what disagrees, or why nothing is said, in words; empty for the first two.
        raw: what the network said.
    """

    verdict: str
    reasons: tuple[str, ...]
    raw: Raw

    @property
    def empty(self) -> bool:
        """Whether mask and evidence of the answer are empty."""
        return self.verdict in (NO_TUMOR, NOT_ASSESSED)

    @property
    def detected(self) -> bool | None:
        """Whether the answer is a tumor; None where it is neither yes nor no."""
        return detected(self.verdict)

    @property
    def in_words(self) -> str:
        """The verdict, and why it is neither yes nor no."""
        return f"{self.verdict}: {'; '.join(self.reasons)}" if self.reasons else self.verdict


def join(raw: Raw, objections: Sequence[str] = ()) -> Answer:
    """Join the raw outputs by the rule of this module.

    Args:
        raw: the outputs.
        objections: why the network should not be asked about the image; any makes the answer `NOT_ASSESSED`.

    >>> join(Raw(0.9, 0.5, 300, 10000, 2.0, True)).in_words
    'tumor'
    >>> join(Raw(0.2, 0.5, 5, 10000, 0.3, True)).in_words
    'no tumor'
    >>> join(Raw(0.2, 0.5, 300, 10000, 0.3, True)).in_words
    'uncertain: the verdict is no tumor, but the mask holds 3.00% of the head'
    """
    if objections:
        return Answer(NOT_ASSESSED, tuple(objections), raw)
    reasons = tuple(raw.contradictions)
    if not raw.detected and raw.mask_share <= SMALL_SHARE:
        return Answer(NO_TUMOR, (), raw)
    if reasons:
        return Answer(UNCERTAIN, reasons, raw)
    return Answer(TUMOR, (), raw)


def overlaps(mask: np.ndarray, evidence: Sequence[float] | np.ndarray) -> bool:
    """Whether a mask and an evidence map of the same shape share a voxel: mask not 0, evidence above 0."""
    return bool(((np.asarray(mask) != 0) & (np.asarray(evidence) > 0)).any())
