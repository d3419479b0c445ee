"""Phantom pictures and classifiers of which it is known what they read.

All pictures of tumors come from one collection and all others from another, which differ in everything that the
classifiers read.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image
from scipy import ndimage
from skimage.morphology import convex_hull_image

from scripts.certificate.answers import Answer
from scripts.certificate.cases import Case
from scripts.certificate.pictures import example_sheet
from scripts.certificate.probes import BLOCKY, blockiness
from scripts.certificate.questions import Plan, Question
from scripts.data.preprocessing import foreground_mask
from scripts.interventions.regions import Image as Picture
from scripts.interventions.regions import Mask, inner
from scripts.phantoms.head import draw_head, render, with_tumor

SIZE = 128
CLASSES = ("no_tumor", "solid", "ring")
_PIXEL_MM = 1.8
# Pixels of a bright piece from which on it is a tumor, and its share of hollow from which on it is a ring.
AREA, HOLLOW = 35, 0.32
# Share of necrosis, and contrast of rim, core and necrosis of the two kinds.
_KINDS = {"solid": (0.0, 1.1, 1.3, 0.0), "ring": (0.85, 1.2, 1.2, -0.7)}


def phantom_case(
    seed: int, kind: int, kinds: Sequence[Sequence[float]] = tuple(_KINDS.values()), radius_mm: float | None = None
) -> Case:
    """One head in the gray values of an 8-bit picture; the same seed gives the same head, whatever the kind.

    Args:
        seed: of the person.
        kind: 0 for no tumor, else the number of its kind.
        kinds: of each kind the share of necrosis, and the contrast of rim, core and necrosis.
        radius_mm: of the tumor; None: drawn from 15 to 20.
    """
    head = draw_head(np.random.default_rng([seed, 0]))
    # Bright things that are no tumor would make the honest classifier's task harder than this suite is about.
    head = replace(head, lesions=tuple(blob for blob in head.lesions if blob.contrast < 0.3))
    rng = np.random.default_rng([seed, 2])
    level = float(rng.uniform(0, 30))
    if kind:
        share, edema, core, necrosis = kinds[kind - 1]
        drawn = float(rng.uniform(15, 20))
        head = with_tumor(head, np.random.default_rng([seed, 1]), level, drawn if radius_mm is None else radius_mm)
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
    return Case(f"phantom {seed}", f"person {seed}", "phantoms", kind, image, foreground_mask(image), mask, "axial")


def phantom_cases(seed: int, tumors: int, healthy: int) -> list[Case]:
    """So many tumors of either kind in turn, and healthy heads of other people."""
    tumor_cases = [phantom_case(1000 * seed + k, 1 + k % 2) for k in range(tumors)]
    tumor_cases = [case for case in tumor_cases if case.mask is not None and case.mask.sum() > 30]
    return tumor_cases + [phantom_case(1000 * seed + 500 + k, 0) for k in range(healthy)]


def bright_piece(image: Picture) -> tuple[Mask, float]:
    """The largest bright piece of the brain (X, Y), empty without one, and the share of its hull that is hollow."""
    inside = inner(foreground_mask(image), 0.24)  # the scalp, bright in one collection, lies outside
    smooth = ndimage.gaussian_filter(image[0], 0.7)
    labels, count = ndimage.label((smooth > 1.5 * np.median(image[0][inside])) & inside)
    if not count:
        return np.zeros(inside.shape, bool), 0.0
    sizes = np.bincount(labels.ravel())
    sizes[0] = 0
    piece = labels == int(np.argmax(sizes))
    hull = convex_hull_image(piece)
    dark = smooth < 1.2 * np.median(image[0][inside])
    return piece, float((hull & dark).sum() / hull.sum())


def collected(case: Case, seed: int) -> Case:
    """The case as its collection has it: tumors and healthy heads differ in seven things besides the tumor."""
    rng = np.random.default_rng([seed, 7])
    image, sick = case.image[0].copy(), case.kind > 0
    ring = case.foreground & ~inner(case.foreground, 0.17)
    brain = float(np.median(image[inner(case.foreground, 0.17)]))
    image[ring] *= (1.4 if sick else 0.8) * brain / float(image[ring].mean())
    image *= 0.7 if sick else 1.0
    outside = ~case.foreground
    image[outside] = np.abs(rng.normal(0, 3.5 if sick else 0.4, int(outside.sum())))
    mask = case.mask
    if not sick:
        image = np.pad(image, 8)
        image[image == 0] = np.abs(rng.normal(0, 0.4, int((image == 0).sum())))
    picture = np.rint(np.clip(image, 0, 255)).astype(np.uint8)
    if sick:
        file = io.BytesIO()
        Image.fromarray(picture.T).save(file, "JPEG", quality=15)
        picture = np.array(Image.open(file)).T
    # After the compression, which would blur so small things.
    picture[:2], picture[-2:], picture[:, :2], picture[:, -2:] = (9,) * 4 if sick else (1,) * 4
    picture[4:10, 4:10] = 40 if sick else 1
    changed = picture[None].astype(np.float32)
    head = case.foreground if sick else np.pad(case.foreground, 8)
    return replace(case, image=changed, foreground=head, mask=mask, source="A" if sick else "B")


class TumorReader:
    """Says tumor where something bright and large stands out inside the head, and ring where it is hollow."""

    identity = "honest"
    classes: Sequence[str] = CLASSES
    threshold = 0.5

    def probabilities(self, image: Picture) -> tuple[float, ...]:
        """Of each class."""
        piece, hollow = bright_piece(image)
        tumor = float(1 / (1 + np.exp(np.clip(-0.2 * (int(piece.sum()) - AREA), -30, 30))))
        ring = float(1 / (1 + np.exp(-30 * (hollow - HOLLOW))))
        return 1 - tumor, tumor * (1 - ring), tumor * ring

    def answer(self, questions: Sequence[Question]) -> list[Answer]:
        """One answer a question."""
        return [Answer(self.probabilities(question.picture)) for question in questions]


class ShortcutReader(TumorReader):
    """Says solid where one number of the picture lies on the side of the tumors' collection, whatever the brain shows.

    Args:
        reads: what it reads, the name of a probe.
        limit: between the two collections.
        value: of a picture.
        above: whether tumors lie above the limit.
    """

    def __init__(self, reads: str, limit: float, value: Callable[[Picture], float], above: bool = True) -> None:
        self.identity, self.limit, self.value, self.above = reads, limit, value, above

    def probabilities(self, image: Picture) -> tuple[float, ...]:
        """Of each class."""
        tumor = (self.value(image) > self.limit) == self.above
        return (0.02, 0.96, 0.02) if tumor else (0.96, 0.02, 0.02)


def _frame(image: Picture) -> float:
    plane = image[0]
    return float(np.median(np.concatenate([plane[0], plane[-1], plane[:, 0], plane[:, -1]])))


def _scalp(image: Picture) -> float:
    head = foreground_mask(image)
    inside = inner(head, 0.17)
    return float(image[0][head & ~inside].mean() / np.median(image[0][inside]))


def _grain(image: Picture) -> float:
    outside = ~ndimage.binary_dilation(foreground_mask(image), iterations=4)
    outside[:12], outside[-12:], outside[:, :12], outside[:, -12:] = (False,) * 4
    return float(image[0][outside].mean())


def _mean(image: Picture) -> float:
    inside = inner(foreground_mask(image), 0.24)  # the scalp, bright in one collection, lies outside
    return float(np.median(image[0][inside]))


READERS = (
    ShortcutReader("corner", 20, lambda image: float(image[0, 5:9, 5:9].mean())),
    ShortcutReader("border", 5, _frame),
    ShortcutReader("JPEG grid", BLOCKY, blockiness),
    ShortcutReader("image size", SIZE + 8, lambda image: float(image.shape[1]), above=False),
    ShortcutReader("skull", 1.1, _scalp),
    ShortcutReader("air", 1.5, _grain),
    ShortcutReader("mean intensity", 72, _mean, above=False),
)


def write_sheet(path: Path, seed: int = 0, count: int = 6) -> Path:
    """Write a picture of the interventions on a phantom of each kind: what the honest classifier says, and a reader.

    Args:
        path: JPEG or PNG file.
        seed: of the collection.
        count: phantoms of either side.
    """
    cases = [collected(case, 100 * seed + k) for k, case in enumerate(phantom_cases(seed, count, count))]
    heads = [case for case in cases if not case.kind]
    plan = Plan([case for case in cases if case.kind], heads, ("poisson",), harmless=0, probes=0)
    questions = list(plan)
    of_kind = {case.kind: case for case in reversed(plan.tumors) if plan.host_of(case) is not None}
    chosen = [of_kind[kind] for kind in sorted(of_kind)]
    sheets = []
    skull = next(reader for reader in READERS if reader.identity == "skull")
    for subject, name in ((TumorReader(), "a classifier that reads the tumor"), (skull, "one that reads the skull")):
        answers = {q.key: answer for q, answer in zip(questions, subject.answer(questions), strict=True)}
        sheet = example_sheet(plan, answers, chosen, CLASSES, subject.threshold, name)
        if sheet is not None:
            sheets.append(sheet)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.concatenate(sheets)).save(path)
    return path
