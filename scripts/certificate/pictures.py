"""Pictures of a certificate: what was changed in a few cases, and what the model said to each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from scripts.certificate.answers import Answer
from scripts.certificate.cases import Case
from scripts.certificate.effects import kind_of
from scripts.certificate.questions import Plan
from scripts.interventions.regions import Image, Mask
from scripts.pictures import overlays, sheets

_SIDE = 200  # longest side of a tile, in pixels


def example_sheet(
    plan: Plan,
    answers: Mapping[tuple[str, str, bool, str], Answer],
    cases: Sequence[Case],
    classes: Sequence[str],
    threshold: float,
    subject: str = "the model",
) -> overlays.RGB | None:
    """One row a case: as it is, painted out, control, the healthy head, the tumor moved into it, control.

    Args:
        plan: of the certificate; its questions are made again.
        answers: by `Question.key`.
        cases: tumors to show.
        classes: names, class 0 no tumor.
        threshold: of the probability of a tumor, from which on the kind is shown too.
        subject: who answers, in words.

    Returns:
        RGB picture, or None where no case can be shown.
    """
    heal, blend = plan.infills[0], plan.blends[0]
    columns = (
        ("painted out", ("removal", heal, False)),
        ("control: elsewhere", ("removal", heal, True)),
        ("tumor moved in", ("transplant", blend, False)),
        ("control: healthy", ("transplant", blend, True)),
    )
    rows = []

    def said(key: tuple[str, str, bool, str]) -> str:
        return _said(answers.get(key), classes, threshold)

    for case in cases:
        made = {question.key: question for question in plan.about(case)}
        host = plan.host_of(case)
        cells: list[sheets.Cell] = [_cell("as it is", case.image, case.mask, case.mask, said(_as_is(case)))]
        for title, (test, how, control) in columns:
            if test == "transplant" and not control and host is not None:
                cells.append(_cell("healthy head", host.image, None, None, said(_as_is(host))))
            question = made.get((test, how, control, case.name))
            if question is None:
                cells.append((None, title, ""))
                continue
            cells.append(_cell(title, question.picture, question.region, question.place, said(question.key)))
        rows.append((f"{classes[case.kind]}", cells))
    return sheets.tile_grid(f"Changed region outlined; below, what {subject} says", rows) if rows else None


def _as_is(case: Case) -> tuple[str, str, bool, str]:
    return "as is", "", False, case.name


def _cell(title: str, image: Image, outline: Mask | None, place: Mask | None, said: str) -> sheets.Cell:
    plane, edge = image[:1], outline
    if image.ndim == 4:  # the slice that shows most of the place
        region = place if place is not None else image[0] > image[0].mean()
        k = int(np.argmax(region.sum(axis=(0, 1))))
        plane, edge = plane[..., k], None if edge is None else edge[..., k]
    step = max(1, -(-max(plane.shape[1:]) // _SIDE))
    scale = max(1, _SIDE // max(plane.shape[1:]))
    small = plane[:, ::step, ::step]
    picture = overlays.gray_image(small, scale)
    if edge is not None and edge.any():
        overlays.draw_contour(picture, edge[::step, ::step].T, overlays.MASK_COLOR)
    return picture, title, said


def _said(answer: Answer | None, classes: Sequence[str], threshold: float) -> str:
    if answer is None:
        return ""
    if answer.refused:
        return "refused"
    kind, tumor = kind_of(answer), answer.tumor()
    if tumor < threshold:
        return f"tumor {tumor:.2f}: none"
    return f"tumor {tumor:.2f}: {classes[kind] if kind < len(classes) else kind}"
