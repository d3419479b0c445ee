"""Phantom pictures and classifiers of which it is known what they read: the certificate is tried on them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from scipy import ndimage
from skimage.morphology import convex_hull_image

from scripts.certificate.answers import Answer
from scripts.certificate.cases import Case
from scripts.certificate.questions import Question
from scripts.data.preprocessing import foreground_mask
from scripts.interventions.regions import Image, inner
from scripts.phantoms.head import draw_head, render, with_tumor

SIZE = 128
CLASSES = ("no_tumor", "solid", "ring")
_PIXEL_MM = 1.8
# Share of necrosis, and contrast of rim, core and necrosis of the two kinds.
_KINDS = {"solid": (0.0, 1.1, 1.3, 0.0), "ring": (0.85, 1.2, 1.2, -0.7)}


def phantom_case(seed: int, kind: int) -> Case:
    """One head in the gray values of an 8-bit picture; the same seed gives the same head, whatever the kind."""
    head = draw_head(np.random.default_rng([seed, 0]))
    # Bright things that are no tumor would make the honest classifier's task harder than this suite is about.
    head = replace(head, lesions=tuple(blob for blob in head.lesions if blob.contrast < 0.3))
    rng = np.random.default_rng([seed, 2])
    level = float(rng.uniform(0, 30))
    if kind:
        share, edema, core, necrosis = _KINDS[CLASSES[kind]]
        head = with_tumor(head, np.random.default_rng([seed, 1]), level, radius_mm=float(rng.uniform(15, 20)))
        tumor = replace(
            head.tumors[0], core_share=0.85, necrosis_share=share, edema_contrast=edema, core_contrast=core,
            necrosis_contrast=necrosis, raggedness=0.08,
        )  # fmt: skip
        head = replace(head, tumors=(tumor,))
    else:
        rng.uniform()
    axis = ((np.arange(SIZE) - (SIZE - 1) / 2) * _PIXEL_MM).astype(np.float32)
    picture = render(head, axis, axis, np.array([level], np.float32))
    noise = np.random.default_rng([seed, 3]).normal(0, 0.02, picture.signal.shape)
    signal = np.where(picture.head, picture.signal + noise, np.abs(noise) * 0.2)[..., 0]
    image = np.rint(np.clip(signal * 85, 0, 255)).astype(np.float32)[None]
    mask = picture.tumor[..., 0] if kind else None
    return Case(f"phantom {seed}", f"person {seed}", "phantoms", kind, image, foreground_mask(image), mask)


def phantom_cases(seed: int, tumors: int, healthy: int) -> list[Case]:
    """So many tumors of either kind in turn, and healthy heads of other people."""
    found = [phantom_case(1000 * seed + k, 1 + k % 2) for k in range(tumors)]
    found = [case for case in found if case.mask is not None and case.mask.sum() > 30]
    return found + [phantom_case(1000 * seed + 500 + k, 0) for k in range(healthy)]


def brightest(image: Image) -> tuple[int, float]:
    """Size in pixels of the largest bright piece of the brain, and the share of it that is hollow."""
    inside = inner(foreground_mask(image), 0.17)
    smooth = ndimage.gaussian_filter(image[0], 0.7)
    labels, count = ndimage.label((smooth > 1.5 * np.median(image[0][inside])) & inside)
    if not count:
        return 0, 0.0
    sizes = np.bincount(labels.ravel())
    sizes[0] = 0
    piece = labels == int(np.argmax(sizes))
    hull = convex_hull_image(piece)
    dark = smooth < 1.2 * np.median(image[0][inside])
    return int(piece.sum()), float((hull & dark).sum() / hull.sum())


class Honest:
    """Says tumor where something bright and large stands out inside the head, and ring where it is hollow."""

    identity = "honest"
    classes = CLASSES
    threshold = 0.5

    def probabilities(self, image: Image) -> tuple[float, ...]:
        """Of each class."""
        found, hollow = brightest(image)
        tumor = float(1 / (1 + np.exp(np.clip(-0.2 * (found - 35), -30, 30))))
        ring = float(1 / (1 + np.exp(-30 * (hollow - 0.32))))
        return 1 - tumor, tumor * (1 - ring), tumor * ring

    def answer(self, questions: Sequence[Question]) -> list[Answer]:
        """One answer a question."""
        return [Answer(self.probabilities(question.picture)) for question in questions]
