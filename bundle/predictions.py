"""What the predictor answers: a prediction, how uncertain it is, and a heatmap."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from scripts.inference.answer import detected

__all__ = ["Heatmap", "Prediction", "Uncertainty"]


@dataclass
class Uncertainty:
    """How far predictions of the same image in other views (mirrored, shifted, other contrast) lie apart.

    Attributes:
        probability_std: standard deviation of the tumor probability.
        map: standard deviation of each voxel's tumor probability, float32 on the input grid.
        views: how many predictions were compared.
    """

    probability_std: float
    map: np.ndarray
    views: int


@dataclass
class Prediction:
    """What one forward pass says about an image.

    Grids: of a picture (rows, columns), as ``np.asarray(PIL.Image)``; of a volume (X, Y, Z) in the file's own order.

    Attributes:
        source: the file, or "the array".
        probability: of any tumor, 0 to 1, calibrated.
        probabilities: of each class by name, sum 1.
        slice_probabilities: of any tumor, one a slice of ``plane`` (None: slice not read); None for a picture.
        plane: in which a volume was cut, or None.
        verdict: "tumor", "no tumor", "uncertain" or "not assessed", by the rule of `scripts.inference.answer`.
        reasons: why it is neither yes nor no.
        threshold: chosen in training, kept in the weights.
        prevalence: of each class, that the probabilities are for, see `Predictor`; None: that of the training.
        predicted_class: class 0 if the verdict is no tumor, the most probable tumor class if it is tumor, else None.
        mask: uint8 on the input grid, 0 background; of the joined answer: empty where there is no tumor.
        evidence: float32 on the input grid, calibrated log-odds, 0 and up, which localization is measured on
            (`scripts.inference.postprocessing.shown_evidence` for pictures); empty as the mask is; None without an
            evidence head.
        affine: 4x4, voxel indices to RAS+ millimeters; the identity for a picture.
        flags: {"code", "message"[, "slices"]}, what speaks against trusting the result.
        raw: what the network says before anything is joined: tumor_detected, predicted_class, tumor_voxels,
            evidence_maximum, contradictions.
        raw_mask, raw_evidence: its maps.
        scores: further scores of the input, by name.
        uncertainty: where it was asked for.
        objects: DICOM objects that were written.
    """

    source: str
    probability: float
    probabilities: dict[str, float]
    slice_probabilities: list[float | None] | None
    plane: str | None
    verdict: str
    reasons: list[str]
    threshold: float
    predicted_class: str | None
    mask: np.ndarray
    evidence: np.ndarray | None
    affine: np.ndarray
    raw: dict[str, Any]
    raw_mask: np.ndarray
    raw_evidence: np.ndarray | None
    flags: list[dict[str, Any]] = field(default_factory=list)
    scores: dict[str, float] = field(default_factory=dict)
    uncertainty: Uncertainty | None = None
    prevalence: dict[str, float] | None = None
    objects: list[Path] = field(default_factory=list)

    @property
    def detected(self) -> bool | None:
        """Whether the answer is a tumor; None where it is neither yes nor no."""
        return detected(self.verdict)

    def to_json(self) -> dict[str, Any]:
        """Everything but the arrays, as values that `json.dumps` takes; sizes and maxima in place of the arrays."""
        return {
            "source": self.source,
            "verdict": self.verdict,
            "reasons": self.reasons,
            "tumor_detected": self.detected,
            "tumor_probability": self.probability,
            "threshold": self.threshold,
            "prevalence": self.prevalence,
            "predicted_class": self.predicted_class,
            "class_probabilities": self.probabilities,
            "slice_probabilities": self.slice_probabilities,
            "plane": self.plane,
            "shape": list(self.mask.shape),
            "affine": self.affine.tolist(),
            "tumor_voxels": int((self.mask > 0).sum()),
            "evidence_maximum": None if self.evidence is None else float(self.evidence.max()),
            "probability_std": None if self.uncertainty is None else self.uncertainty.probability_std,
            "raw": self.raw,
            "scores": self.scores,
            "flags": self.flags,
        }


@dataclass
class Heatmap:
    """A heatmap of an image.

    Attributes:
        map: float32 in [0, 1] on the input grid, 1 = strongest. Of the method "evidence" as
            `scripts.inference.postprocessing.shown_evidence` shows it; of the others divided by the
            largest value in the image, or in the volume.
        method, layer, target: what was explained, where and by which method; classes by name.
        empty: nothing speaks for the target: the map is 0 everywhere. A map that cannot be made is an error instead.
        message: one sentence on the map, to be shown with it.
        slices: of a volume, those that were explained; None for a picture.
        affine: 4x4, voxel indices to RAS+ millimeters; the identity for a picture.
    """

    map: np.ndarray
    method: str
    layer: str
    target: str
    empty: bool
    message: str
    slices: list[int] | None = None
    affine: np.ndarray = field(default_factory=lambda: np.eye(4))
