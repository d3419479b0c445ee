"""Segmenters of which it is known what they mark: the certificate is tried on them as on anybody's.

Each is a function of a batch, opened with settings of three mask channels, like a model that a user names.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from skimage.morphology import convex_hull_image

from scripts.certificate.effects import Answers
from scripts.certificate.models import ExternalModel
from scripts.certificate.planted import AREA, CLASSES, HOLLOW, READERS, bright_piece
from scripts.certificate.questions import Question
from scripts.certificate.settings import Settings
from scripts.certificate.shortcuts import MARKED, mask_without_tumor, named_mark, named_shortcut
from scripts.certificate.verdicts import statements
from scripts.data.preprocessing import foreground_mask
from scripts.interventions.regions import Image, Mask, inner

__all__ = ["HONEST", "SEGMENTERS", "read_by_mask"]

HONEST = "the tumor"
# Of the shorter side: radius of the disk in the middle; of the brain: share that is brightest.
_RADIUS, _TOP = 0.08, 0.02

# (C, X, Y) -> mask (X, Y), and whether it is a ring
Marks = Callable[[Image], tuple[Mask, bool]]


def _honest(image: Image) -> tuple[Mask, bool]:
    piece, hollow = bright_piece(image)
    if piece.sum() < AREA:
        return np.zeros_like(piece), False
    return convex_hull_image(piece), hollow > HOLLOW


def _middle(image: Image) -> tuple[Mask, bool]:
    """A disk in the middle of the picture, whatever it shows."""
    shape = image.shape[1:]
    away = np.hypot(*(np.indices(shape) - (np.array(shape).reshape(2, 1, 1) - 1) / 2))
    return away <= _RADIUS * min(shape), False


def _brightest(image: Image) -> tuple[Mask, bool]:
    """The largest piece of the brightest tissue of the brain, however bright it is."""
    inside = inner(foreground_mask(image), 0.24)  # the scalp, bright in one collection, lies outside
    smooth = ndimage.gaussian_filter(image[0], 0.7)
    labels, _ = ndimage.label((smooth >= np.quantile(smooth[inside], 1 - _TOP)) & inside)
    return labels == 1 + int(np.argmax(np.bincount(labels.ravel())[1:])), False


def _skull(image: Image) -> tuple[Mask, bool]:
    """The brightest tissue where skull and scalp are those of the tumors' collection, else nothing."""
    mask, ring = _brightest(image)
    skull = next(reader for reader in READERS if reader.identity == "skull")
    return mask & (skull.probabilities(image)[0] < 0.5), ring


def _opened(name: str, marks: Marks) -> ExternalModel:
    def call(batch: NDArray[np.float32]) -> NDArray[np.float32]:
        output = np.zeros((len(batch), len(CLASSES), *batch.shape[2:]), np.float32)
        for picture, channels in zip(batch, output, strict=True):
            mask, ring = marks(picture.transpose(0, 2, 1))
            channels[2 if ring else 1] = 0.9 * mask.T
            channels[0] = 1 - channels[1] - channels[2]
        return output

    settings = Settings(CLASSES, CLASSES[0], scaling="0..255", outputs="mask", least_area=10)
    return ExternalModel(call, settings, name, name)


# By what the certificate has to say of them.
SEGMENTERS: dict[str, ExternalModel] = {
    HONEST: _opened(HONEST, _honest),
    MARKED["place"][0]: _opened("middle", _middle),
    MARKED["bright"][0]: _opened("brightest", _brightest),
    "skull": _opened("skull", _skull),
}


def read_by_mask(subject: ExternalModel, questions: Sequence[Question]) -> str:
    """What the certificate measures of a segmenter, as `scripts.certificate.planted.read_by` of a classifier.

    Returns:
        the name of a probe, of `MARKED`, `HONEST` where verdict and mask go and come with the tumor, or "unclear".
    """
    answers = Answers(zip(questions, subject.answer(questions), strict=True), subject.classes, subject.threshold)
    name = named_shortcut(answers.probes())
    if name is not None:
        return name
    marked = named_mark(mask_without_tumor(answers))
    if marked is not None:
        return MARKED[marked][0]
    verdicts = {(s.property, s.of): s.measured for s in statements(answers)}
    follows = {verdicts[p, f"{of} (poisson)"] for p in ("necessity", "sufficiency") for of in ("verdict", "mask")}
    return HONEST if follows == {"holds"} else "unclear"
