"""Paired phantoms: one head drawn with and without its tumor, so that the honest picture after removal is known.

No infill and no blend lies between the two: what a model says of one and the other is the truth that the answers to
the interventions can be compared with.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scripts.certificate.cases import Case, usable_mask
from scripts.certificate.effects import Answers
from scripts.certificate.questions import EXACT, Question
from scripts.data.preprocessing import foreground_mask
from scripts.measures.intervals import mean_interval
from scripts.phantoms.dataset import phantom_pair, phantom_slice

__all__ = ["Pair", "agreement", "exact_questions", "paired_phantoms"]

# Of a picture's side, in pixels; and heights of the slice above the middle of the head, in mm.
_SIDE, _LEVELS = 256, (-20.0, 48.0)
# No other part of a phantom data set is drawn from this stream.
_STREAM = 4


@dataclass(frozen=True)
class Pair:
    """One head three times.

    Args:
        sick: with its tumor.
        healthy: without it, of the same group.
        again: with a tumor near the same place, scanned again: other noise, zoom and brightness.
    """

    sick: Case
    healthy: Case
    again: Case


def paired_phantoms(seed: int, count: int) -> list[Pair]:
    """So many people, each with and without a tumor that an intervention can take; others are passed over.

    Args:
        seed: 0 or more; the same seed gives the same pictures.
        count: of people.
    """
    pairs: list[Pair] = []
    number = 0
    while len(pairs) < count:
        stream, size = [seed, _STREAM, number], (_SIDE, _SIDE)
        level = float(np.random.default_rng([*stream, 9]).uniform(*_LEVELS))
        image, without, mask = phantom_pair(stream, size, level)
        sick, healthy = _case(number, "with", image, mask), _case(number, "without", without, None)
        again = _case(number, "again", *phantom_slice(stream, True, size, level, again=1))
        if sick is not None and healthy is not None and again is not None:
            pairs.append(Pair(sick, healthy, again))
        number += 1
    return pairs


def _case(number: int, word: str, image: NDArray[np.floating], mask: NDArray[np.uint8] | None) -> Case | None:
    """A drawing as a case; None where its tumor cannot be intervened on."""
    picture = np.rint(image * 255).astype(np.float32)[None]
    head, place = foreground_mask(picture), None
    if mask is not None:
        place, reason = usable_mask(mask != 0, head)
        if reason:
            return None
    kind = int(mask is not None)
    return Case(f"phantom {number} {word}", f"person {number}", "phantoms", kind, picture, head, place, "axial")


def exact_questions(pairs: Sequence[Pair]) -> Iterator[Question]:
    """Removal and transplant of each pair without any intervention: the other picture of the same head.

    Controls: of the removal the head with its tumor scanned again, of the transplant the head without one as it is
    with the tumor's place asked about.
    """
    for pair in pairs:
        sick, healthy, again = pair.sick, pair.healthy, pair.again
        place = sick.mask
        for made, control in ((healthy, False), (again, True)):
            yield Question(
                "removal", EXACT, control, sick, sick.name, int(control), made.image,
                again.mask if control else place,
            )  # fmt: skip
        for made, control in ((sick, False), (healthy, True)):
            yield Question("transplant", EXACT, control, sick, healthy.name, int(not control), made.image, place)


def agreement(answers: Answers) -> list[dict[str, Any]]:
    """How often the verdict on a head whose tumor was painted out is that on the drawing of it without one, by way.

    Of a transplant there is no such drawing: the tumor that is moved in is another person's.

    Returns:
        {test, how, n, groups, agrees, agrees_ci95} of each infill; nothing without paired phantoms.
    """
    rows = []
    truth = answers.asked.get(("removal", EXACT, False), {})
    for how in answers.ways("removal"):
        made = answers.asked.get(("removal", how, False), {})
        names = sorted(set(made) & set(truth)) if how != EXACT else []
        if names:
            same = [answers.called(made[name][1]) == answers.called(truth[name][1]) for name in names]
            groups = [answers.cases[name].group for name in names]
            values = np.array(same, dtype=float)
            row = {"test": "removal", "how": how, "n": len(names), "groups": len({*groups})}
            rows.append(row | {"agrees": float(values.mean()), "agrees_ci95": mean_interval(values, groups)})
    return rows
