"""Masks, faded tumors and the realism of each intervention: effects and statements of answers that are known."""

from __future__ import annotations

from dataclasses import replace

import pytest

from scripts.certificate.answers import Answer
from scripts.certificate.effects import Answers
from scripts.certificate.planted import CLASSES
from scripts.certificate.questions import Question
from scripts.certificate.verdicts import statements
from tests.certificate.asking import COUNT, statements_by_property, times


def masked(questions, marks) -> list[Answer]:
    """Answers of a segmenter that marks the place of the question in (share of the place, pixels elsewhere)."""
    found = []
    for question in questions:
        share, elsewhere = marks(question)
        size = 0 if question.place is None else int(question.place.sum())
        both = round(share * size)
        pixels = both + elsewhere
        dice = 2 * both / (pixels + size) if size else None
        probabilities = (0.0, 1.0, 0.0) if pixels else (1.0, 0.0, 0.0)
        found.append(Answer(probabilities, mask_pixels=pixels, mask_in_place=both if size else None, dice=dice))
    return found


def holds_tumor(question: Question) -> bool:
    return (question.test == "transplant") != question.control if question.test in ("removal", "transplant") else True


def test_the_mask_goes_with_the_tumor_and_comes_where_it_was_moved(asked):
    questions = [q for q in asked[1] if q.test in ("as is", "removal", "transplant")]
    honest = statements_by_property(questions, masked(questions, lambda q: (0.9 * holds_tumor(q), 0)))
    for key in (
        ("necessity", "mask (poisson)"), ("necessity", "mask at the tumor's place (poisson)"),
        ("sufficiency", "mask (poisson)"),
    ):  # fmt: skip
        assert honest[key].measured == "holds", key
    assert "(Dice of .5 or more with its place) (control: 0 %); that the mask follows the tumor" in (
        honest["sufficiency", "mask (poisson)"].sentence
    )
    answers = Answers(zip(questions, masked(questions, lambda q: (0.9 * holds_tumor(q), 0)), strict=True), CLASSES, 0.5)
    row = answers.effects("transplant", "poisson", "mask's overlap")
    assert row["difference"] == pytest.approx(2 * 0.9 / 1.9, abs=0.01)
    assert row["difference_ci95"][0] > 0.6

    # Something is marked in every picture, the tumor as well where there is one.
    nervous = statements_by_property(questions, masked(questions, lambda q: (0.9 * holds_tumor(q), 50)))
    assert nervous["necessity", "mask (poisson)"].verdict == "fails"
    assert nervous["necessity", "mask at the tumor's place (poisson)"].measured == "holds"
    # Half of the picture is marked: the place is in it, and the mask does not show where.
    wide = statements_by_property(questions, masked(questions, lambda q: (1.0 * (q.test == "transplant"), 6000)))
    assert wide["sufficiency", "mask (poisson)"].verdict == "fails"
    # The place is marked whatever lies there: the control says so.
    always = statements_by_property(questions, masked(questions, lambda q: (1.0, 0)))
    assert always["sufficiency", "mask (poisson)"].verdict == "withheld"
    assert always["necessity", "mask at the tumor's place (poisson)"].verdict == "fails"


def test_a_faded_tumor_has_effects_like_every_intervention_by_class_and_source_too(asked, cases):
    """The probability is the strength itself, half of it where the tumor is a ring; controls stay as they are."""
    half = {case.name: 1.0 if case.kind == 1 else 0.5 for case in cases}

    def said(question: Question) -> Answer:
        dose = float(question.how) if question.test == "fade" and not question.control else 1.0
        tumor = dose * half[question.case.name] if question.case.kind else 0.0
        return Answer((1 - tumor, tumor, 0.0))

    sources = {case.name: "AB"[k // 2 % 2] for k, case in enumerate(cases)}
    questions = [replace(q, case=replace(q.case, source=sources[q.case.name])) for q in asked[1]]
    answers = Answers([(q, said(q)) for q in questions], CLASSES, 0.4)
    rows = {(r["how"], r["measure"], r["part"]): r for r in answers.rows() if r["test"] == "fade"}
    assert {part for _, _, part in rows} == {"all", "class solid", "class ring", "source A", "source B"}
    row = rows["0.25", "tumor probability", "class ring"]
    assert (row["before"], row["after"], row["control"]) == (0.5, 0.125, 0.5)
    assert (row["effect"], row["control_effect"], row["difference"]) == (0.375, 0.0, 0.375)
    assert rows["0.5", "called tumor", "class ring"]["effect"] == 1.0
    assert rows["0.5", "called tumor", "class solid"]["effect"] == 0.0
    low, high = rows["0.25", "tumor probability", "all"]["difference_ci95"]
    assert 0.3 < low < rows["0.25", "tumor probability", "all"]["difference"] < high < 0.75
    weakest = answers.doses()[0]
    assert weakest["difference"] == pytest.approx(-rows["0.25", "tumor probability", "all"]["difference"])
    low, high = weakest["tumor_probability_ci95"]
    assert low < weakest["tumor_probability"] < high
    assert weakest["control_probability"] == rows["0.25", "tumor probability", "all"]["before"]


def test_the_realism_of_every_intervention_is_judged_and_its_own_statements_are_marked(asked):
    rows = {(row["test"], row["how"]): row for row in asked[2]}
    assert set(rows) == {
        ("removal", "poisson"), ("transplant", "poisson"), ("swap", ""), ("fade", "0.25"), ("fade", "0.5"),
    }  # fmt: skip
    assert all(0 < row["auc"] < 1 and row["n"] == COUNT for row in rows.values())
    answers = Answers(zip(times(asked[1], 25), list(asked[3]) * 25, strict=True), CLASSES, 0.5)
    odd = {"test": "swap", "how": "", "out_of_distribution": True}
    for row, noted in (
        (odd, {("surroundings", "kind")}),
        (odd | {"test": "fade", "how": "0.25"}, {("dose", "verdict")}),
        (odd | {"test": "removal", "how": "poisson"}, {("necessity", "verdict (poisson)")}),
    ):
        marked = {(s.property, s.of): s.sentence for s in statements(answers, [row]) if "recognized" in s.sentence}
        assert set(marked) == noted
        way = f"{row['test']} ({row['how']})" if row["how"] else row["test"]
        assert f"(the control of {way} can be recognized: read with reserve)" in next(iter(marked.values()))
