"""Questions about two dozen phantoms, and what is judged of the answers to them."""

from __future__ import annotations

from dataclasses import replace

from scripts.certificate.effects import Answers
from scripts.certificate.planted import CLASSES
from scripts.certificate.questions import Question
from scripts.certificate.statement import Statement
from scripts.certificate.verdicts import statements

COUNT = 22


def statements_by_property(questions, answers) -> dict[tuple[str, str], Statement]:
    found = statements(Answers(zip(questions, answers, strict=True), CLASSES, 0.5))
    return {(s.property, s.of): s for s in found}


def times(questions, count: int) -> list[Question]:
    """So many patients like each."""
    return [
        replace(
            q, case=replace(q.case, name=f"{q.case.name} {k}", group=f"{q.case.group} {k}"), before=f"{q.before} {k}"
        )
        for k in range(count)
        for q in questions
    ]
