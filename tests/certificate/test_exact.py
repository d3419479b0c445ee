"""Paired phantoms: two drawings of one head, asked beside the interventions."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from scripts.certificate.answers import Answer
from scripts.certificate.arguments import VERBS
from scripts.certificate.certify import certify_phantoms
from scripts.certificate.effects import Answers
from scripts.certificate.exact import Pair, agreement, exact_questions, paired_phantoms
from scripts.certificate.questions import EXACT
from scripts.command.verbs import run_verb


@pytest.fixture(scope="module")
def pairs():
    return paired_phantoms(0, 4)


class Knowing:
    """Answers by the truth of the question, but for what it is told to get wrong."""

    identity = "knowing"
    classes = ("no_tumor", "tumor")
    threshold = 0.5

    def __init__(self, wrong=lambda question: False) -> None:
        self.wrong = wrong

    def answer(self, questions):
        tumor = [float((q.kind > 0) != self.wrong(q)) for q in questions]
        return [Answer((1 - t, t)) for t in tumor]


def test_a_pair_differs_by_its_tumor(pairs):
    for pair in pairs:
        assert pair.sick.group == pair.healthy.group
        assert (pair.sick.kind, pair.healthy.kind, pair.healthy.mask) == (1, 0, None)
        apart = np.abs(pair.sick.image - pair.healthy.image)[0]
        inside, outside = apart[pair.sick.mask].mean(), apart[~pair.sick.mask & pair.sick.foreground].mean()
        assert inside > 4 * outside
        assert np.abs(pair.sick.image - pair.again.image).mean() > 1, "another scan"
        assert pair.again.mask.any()
    same = paired_phantoms(0, 2)
    np.testing.assert_array_equal(same[1].sick.image, pairs[1].sick.image)
    assert not np.array_equal(paired_phantoms(1, 1)[0].sick.image, pairs[0].sick.image)


def test_the_other_drawing_is_asked_as_removal_and_transplant(pairs):
    asked = list(exact_questions(pairs[:1]))
    pair = pairs[0]
    assert [(q.test, q.control, q.before, q.kind) for q in asked] == [
        ("removal", False, pair.sick.name, 0), ("removal", True, pair.sick.name, 1),
        ("transplant", False, pair.healthy.name, 1), ("transplant", True, pair.healthy.name, 0),
    ]  # fmt: skip
    assert {q.how for q in asked} == {EXACT}
    assert asked[0].picture is pair.healthy.image
    assert asked[2].picture is pair.sick.image


def test_the_certificate_has_the_exact_answer_beside_each_way(pairs, tmp_path):
    def wrong(question):
        return question.how == "poisson" and question.test == "removal" and question.case.name.startswith("phantom 0")

    content = certify_phantoms(Knowing(wrong), "knowing", tmp_path, 4, 0, infills=("poisson",), harmless=0, probes=0)
    rows = {(r["test"], r["how"]): r for r in content["rows"] if (r["measure"], r["part"]) == ("called tumor", "all")}
    for test in ("removal", "transplant"):
        exact = rows[test, EXACT]
        assert (exact["n"], exact["effect"], exact["control_effect"]) == (4, 1.0, 0.0)
    agrees = {(row["test"], row["how"]): (row["n"], row["agrees"]) for row in content["exact"]}
    assert agrees["removal", "poisson"] == (4, 0.75)
    assert not [way for way in agrees if way[0] != "removal"]
    page = (tmp_path / "certificate.html").read_text()
    assert "Beside the exact counterfactual" in page
    assert not [s for s in content["statements"] if "(exact)" in s["of"] and s["property"] == "irrelevance"]


def _as(pair: Pair, group: str) -> Pair:
    named = [replace(case, name=f"{group} {case.name}", group=group) for case in (pair.sick, pair.healthy, pair.again)]
    return Pair(*named)


def test_sentences_of_drawings_speak_of_no_intervention():
    from scripts.certificate.verdicts import statements

    few = paired_phantoms(0, 4)
    many = [_as(pair, f"{pair.sick.group} {k}") for k in range(5) for pair in few]
    questions = list(exact_questions(many))
    subject = Knowing()
    answers = Answers(zip(questions, subject.answer(questions), strict=True), subject.classes, 0.5)
    for pair in many:
        for case in (pair.sick, pair.healthy):
            answers.as_is[case.name] = Answer((1.0 - case.kind, float(case.kind)))
            answers.cases[case.name] = case
    said = {(s.property, s.of): s.sentence for s in statements(answers)}
    assert said["necessity", f"verdict ({EXACT})"].startswith(
        "100 % of 20 tumors are called no tumor once they are left out of the drawing (control: 100 %)"
    )
    assert said["sufficiency", f"verdict ({EXACT})"].startswith(
        "100 % of 20 healthy heads are called tumor once a tumor is drawn into them (control: 0 %)"
    )
    assert agreement(answers) == []


def test_several_kinds_of_tumor_are_refused_and_the_verb_takes_phantoms(tmp_path, capsys):
    class Three(Knowing):
        classes = ("no_tumor", "solid", "ring")

    with pytest.raises(ValueError, match=r"one kind of tumor, three knows 2: solid, ring; give --dataset_dir"):
        certify_phantoms(Three(), "three", tmp_path, 2, 0)

    class Bright(torch.nn.Module):
        def forward(self, x):
            top = x.flatten(1).amax(1).clamp(0, 1)
            return torch.stack([1 - top, top], 1)

    torch.jit.trace(Bright(), torch.zeros(1, 1, 8, 8)).save(str(tmp_path / "model.pt"))
    command = ["certify", "--model", str(tmp_path / "model.pt"), "--phantoms", "3", "--infills", "poisson"]
    assert run_verb(VERBS, [*command, "--out", str(tmp_path / "out")]) == 0
    assert "removal (poisson) and drawing called alike: " in capsys.readouterr().out
    with pytest.raises(ValueError, match="or on --phantoms"):
        run_verb(VERBS, ["certify", "--run_dir", str(tmp_path)])
