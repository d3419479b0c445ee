"""Phantoms and all questions about them, made once."""

from __future__ import annotations

import pytest

from scripts.certificate.planted import TumorReader, phantom_cases
from scripts.certificate.questions import Plan
from scripts.certificate.realism import Realism
from tests.certificate.asking import COUNT


@pytest.fixture(scope="session")
def cases():
    return phantom_cases(3, COUNT, COUNT)


@pytest.fixture(scope="session")
def asked(cases):
    """Every question about them, made once."""
    plan = Plan(cases[:COUNT], cases[COUNT:], ("poisson",), harmless=10)
    realism = Realism()
    questions = list(realism.watch(plan))
    return plan, questions, realism.rows(), TumorReader().answer(questions)
