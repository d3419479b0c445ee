"""The certificate on classifiers of which it is known what they read, and on inputs that do not carry it."""

from __future__ import annotations

import html
import json
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from scripts.certificate.answers import Answer, CachedModel
from scripts.certificate.cases import draw, hosts_for, usable_mask
from scripts.certificate.certificate import certify, table
from scripts.certificate.effects import Answers
from scripts.certificate.harmless import bordered
from scripts.certificate.planted import CLASSES, TumorReader
from scripts.certificate.questions import Plan, Question
from scripts.certificate.realism import Realism
from scripts.interventions.regions import inner
from tests.certificate.asking import COUNT, statements_by_property, times


class Skull(TumorReader):
    """Reads what lies outside of the brain alone: the mean of skull and scalp, doubled in every tumor picture here."""

    identity = "skull"

    def probabilities(self, image):
        head = image[0] > 30
        ring = head & ~inner(head, 0.17)
        return (0.0, 1.0, 0.0) if image[0][ring].mean() > 125 else (1.0, 0.0, 0.0)


def marked(cases):
    """Tumor pictures with a brighter scalp: a collection of its own."""
    found = []
    for case in cases:
        ring = case.foreground & ~inner(case.foreground, 0.17)
        image = case.image.copy()
        image[0][ring] = image[0][ring] + (150 if case.kind else 0)
        found.append(replace(case, image=image))
    return found


def test_an_honest_classifier_holds_every_property_of_these_pictures(asked):
    found = statements_by_property(asked[1], asked[3])
    assert {key for key, one in found.items() if one.measured != "holds"} == set()
    assert ("necessity", "verdict (poisson)") in found
    assert ("sufficiency", "kind (poisson)") in found
    assert ("surroundings", "kind") in found


def test_what_few_pictures_do_not_settle_is_withheld_with_the_number_that_would(asked):
    found = statements_by_property(asked[1], asked[3])
    necessity = found["necessity", "verdict (poisson)"]
    assert necessity.verdict == "withheld"
    # .9 to the power of 22 is .098, times the claims of the certificate that are no more probable
    assert necessity.false_probability > 0.9**COUNT
    chance = min(100 * necessity.false_probability, 100)
    assert necessity.sentence == (
        f"100 % of {COUNT} tumors are called no tumor once they are painted out (control: 100 %); that the verdict "
        f"needs the tumor is not settled: false with a probability of {chance:.1f} %; {necessity.needed} more "
        "patients like these would settle it"
    )
    claims = sum(bool(one.claimed) for one in found.values())
    assert 0.9 ** (COUNT + necessity.needed) <= 0.05 / claims < 0.9 ** (COUNT + necessity.needed - 1)


def test_enough_patients_settle_every_property_and_beside_each_stands_how_probably_it_is_false(asked):
    found = statements_by_property(times(asked[1], 25), list(asked[3]) * 25)
    assert {(key, one.verdict) for key, one in found.items() if one.verdict != "holds"} == set()
    assert found["necessity", "verdict (poisson)"].sentence.endswith(": the verdict needs the tumor (false: < 0.1 %)")
    assert all(one.false_probability <= 0.05 and one.sentence.rstrip(")")[-1] == "%" for one in found.values())


def test_no_statement_stands_without_its_probability(asked):
    """Also the ones that accuse: whatever is not withheld says with which probability it is false."""
    for answers in (asked[3], Nervous().answer(asked[1]), [replace(a, mask_pixels=9) for a in asked[3]]):
        for questions, given in ((asked[1], answers), (times(asked[1], 3), list(answers) * 3)):
            for one in statements_by_property(questions, given).values():
                if one.verdict != "withheld":
                    assert one.false_probability <= 0.05
                    assert f"{one.conclusion} (false: " in one.sentence
                elif one.measured:
                    assert one.false_probability > 0.05
                    assert f"that {one.conclusion} is not settled: false with a probability of" in one.sentence


def test_a_classifier_that_reads_the_skull_fails_both_ways(cases):
    plan = Plan(marked(cases[:COUNT]), cases[COUNT:], ("poisson",), harmless=0)
    questions = list(plan)
    found = statements_by_property(questions, Skull().answer(questions))
    necessity = found["necessity", "verdict (poisson)"]
    assert necessity.verdict == "fails"
    assert "are still called tumor after the tumor was painted out" in necessity.sentence
    assert necessity.sentence.endswith("the verdict does not depend on it (false: < 0.1 %)")
    assert found["sufficiency", "verdict (poisson)"].verdict == "fails"
    assert found["irrelevance", "control of transplant (poisson)"].measured == "holds"


class Nervous(TumorReader):
    """Says tumor to whatever was touched: its controls do not carry a statement."""

    identity = "nervous"

    def answer(self, questions: Sequence[Question]) -> list[Answer]:
        return [
            Answer((1.0, 0.0, 0.0) if q.region is not None and q.test == "removal" else (0.0, 1.0, 0.0))
            for q in questions
        ]


def test_what_the_control_does_not_carry_is_withheld(asked):
    necessity = statements_by_property(asked[1], Nervous().answer(asked[1]))["necessity", "verdict (poisson)"]
    assert (necessity.verdict, necessity.measured) == ("withheld", "")
    assert (
        necessity.sentence == f"the control alone changes 100% of {COUNT} pictures: what the tumor does is not judged"
    )


def test_too_few_pictures_one_class_and_no_healthy_heads_are_said(cases):
    plan = Plan([case for case in cases if case.kind == 1][:4], [], ("poisson",), harmless=0)
    questions = list(plan)
    found = statements_by_property(questions, TumorReader().answer(questions))
    assert {(one.verdict, one.measured) for one in found.values()} == {("withheld", "")}
    assert found["necessity", "verdict (poisson)"].sentence.startswith("only 4 tumors")
    assert found["sufficiency", "verdict"].sentence.startswith("only 0 healthy heads")
    assert plan.left_out["transplant", "no healthy head of another group shows the same view"] == 4
    assert plan.left_out["swap", "no tumor of another class and group shows the same view"] == 4


def test_maps_and_masks_are_judged_like_verdicts(asked):
    """The mask stays whatever happens; the evidence peaks at every place that holds something bright."""
    with_map = [
        replace(answer, mask_pixels=9, evidence=answer.tumor(), peak_in_place=answer.tumor() > 0.5)
        for answer in asked[3]
    ]
    with_map = [replace(a, evidence=0.0) if a.tumor() < 0.5 else a for a in with_map]
    found = statements_by_property(asked[1], with_map)
    assert found["necessity", "mask (poisson)"].verdict == "fails"
    assert found["necessity", "evidence map (poisson)"].measured == "holds"
    assert found["sufficiency", "evidence map (poisson)"].measured == "holds"


def test_effects_are_paired_differences(asked):
    questions = asked[1]
    answers = Answers(zip(questions, asked[3], strict=True), CLASSES, 0.5)
    row = answers.effects("removal", "poisson", "called tumor")
    assert (row["n"], row["groups"]) == (COUNT, COUNT)
    assert (row["before"], row["after"], row["control"]) == (1.0, 0.0, 1.0)
    assert (row["effect"], row["control_effect"], row["difference"]) == (1.0, 0.0, 1.0)
    low, high = row["difference_ci95"]
    assert 0.6 < low < 1 == high, "all alike, of few"
    parts = {row["part"] for row in answers.rows()}
    assert parts == {"all", "class solid", "class ring"}
    dose = answers.doses()
    assert [row["strength"] for row in dose] == [0.25, 0.5, 1.0]
    assert dose[-1]["tumor_called"] == 1.0


def test_realism_names_a_control_that_can_be_recognized(asked, cases):
    rows = {row["test"]: row for row in asked[2]}
    assert rows["removal"]["n"] == COUNT
    assert 0.3 < rows["removal"]["auc"] < 0.9
    gray = Realism()
    questions = []
    for question in asked[1]:
        if question.control and question.test == "removal":
            flat = np.where(question.region, np.float32(90), question.picture)
            question = replace(question, picture=flat)
        questions.append(question)
    list(gray.watch(questions))
    row = next(row for row in gray.rows() if row["test"] == "removal")
    assert row["auc"] > 0.9
    assert row["out_of_distribution"]


def test_certify_writes_everything_and_continues(cases, tmp_path):
    some = [*cases[:6], *cases[COUNT : COUNT + 5]]
    content = certify(TumorReader(), some, tmp_path, "honest", "person", infills=("poisson",), harmless=2)
    assert {path.name for path in tmp_path.iterdir()} == {
        "answers.json", "causal.csv", "causal.json", "certificate.html", "examples.png",
    }  # fmt: skip
    assert json.loads((tmp_path / "causal.json").read_text())["statements"] == content["statements"]
    page = (tmp_path / "certificate.html").read_text()
    assert "only 6 tumors" in page
    assert "://" not in page.replace("http://www.w3.org", "")
    assert 0.8 * content["counts"]["pictures"] < content["counts"]["asked"] <= content["counts"]["pictures"]
    again = certify(TumorReader(), some, tmp_path, "honest", "person", infills=("poisson",), harmless=2)
    assert again["counts"]["asked"] == 0
    assert again["rows"] == content["rows"]
    assert len(table(content).splitlines()) == len(content["statements"])
    with pytest.raises(ValueError, match="no picture can be used for a certificate: 3 times no mask"):
        certify(TumorReader(), [], tmp_path, "honest", "person", left_out={"no mask": 3})


def test_the_page_says_each_statement_with_its_probability_and_withholds_the_rest(asked, cases, tmp_path):
    """What stands on the page is what the statements say, word by word, accusations too."""

    class Again(Skull):
        identity = "again"

        def answer(self, questions):
            return [replace(one, mask_pixels=9) for one in super().answer(questions)]

    content = certify(Again(), cases, tmp_path, "again", "person", infills=("poisson",), harmless=10)
    page = html.unescape((tmp_path / "certificate.html").read_text())
    said = {one["verdict"] for one in content["statements"]}
    assert {"fails", "withheld"} <= said
    for one in content["statements"]:
        row = f'<td class="text verdict {one["verdict"].replace(" ", "-")}">{one["verdict"]}</td>'
        assert f'<tr><td>{one["property"]}</td><td class="text">{one["of"]}</td>{row}' in page
        assert f'<td class="text">{one["sentence"]}</td>' in page
        if one["verdict"] != "withheld":
            assert "(false: " in one["sentence"]
            assert one["false_probability"] <= 0.05
    assert "the mask does not depend on it (false: " in page
    assert "by person and\ncorrected for all claims of this page; above 5 % it is withheld" in page
    lines = table(content).splitlines()
    assert [line.partition("  ")[0] for line in lines] == [one["verdict"] for one in content["statements"]]


def test_refused_pictures_are_counted_with_their_reason(cases, asked):
    class Refusing(TumorReader):
        def answer(self, questions):
            return [Answer(refused="no head") for _ in questions]

    answers = Answers(zip(asked[1], Refusing().answer(asked[1]), strict=True), CLASSES, 0.5)
    assert answers.refused["removal", "no head"] == 2 * COUNT
    assert answers.rows() == []


def test_answers_of_another_model_are_not_taken(cases, tmp_path):
    questions = [Question("as is", "", False, case, case.name, case.kind, case.image, None) for case in cases[:3]]
    first = CachedModel(TumorReader(), tmp_path / "answers.json", 2)
    list(first.ask(questions))
    same, other = CachedModel(TumorReader(), tmp_path / "answers.json"), CachedModel(Skull(), tmp_path / "answers.json")
    content = json.loads((tmp_path / "answers.json").read_text())
    for answer in content["answers"].values():
        answer.pop("mask_in_place")
    content["fields"].remove("mask_in_place")
    (tmp_path / "before.json").write_text(json.dumps(content))
    earlier = CachedModel(TumorReader(), tmp_path / "before.json")
    for kept, asked in ((same, 0), (other, 3), (earlier, 3)):
        list(kept.ask(questions))
        assert kept.asked == asked


def test_masks_that_carry_no_intervention_are_named():
    head = np.zeros((40, 40), bool)
    head[5:35, 5:35] = True
    mask = np.zeros_like(head)
    assert usable_mask(mask, head) == (None, "its mask is empty")
    mask[10:14, 10:14] = True
    assert usable_mask(mask, head)[1] == ""
    assert usable_mask(head, head)[1] == "its mask covers 100% of the head"
    outside = np.roll(mask, -10, axis=0)
    assert usable_mask(outside, head)[1] == "most of its mask lies outside of the head"
    edge = np.zeros_like(head)
    edge[0:6, 10:16] = True
    assert usable_mask(edge, np.ones_like(head))[1] == "its tumor touches the edge of the picture"
    thin = np.zeros_like(head)
    thin[10, 10:20] = True
    assert usable_mask(thin, head)[1] == "its mask is less than 3 pixels wide"


def test_cases_are_drawn_in_turn_of_the_classes_and_groups(cases):
    twins = [replace(case, name=f"{case.name}b", kind=1, group="one") for case in cases[:8]]
    chosen = draw([*twins, *cases[:COUNT]], 6, 0)
    assert sorted(case.kind for case in chosen) == [1, 1, 1, 2, 2, 2]
    assert sum(case.group == "one" for case in chosen) <= 1
    assert draw(cases, None, 0) == cases


def test_a_host_is_of_another_group_and_none_is_used_much_more_than_others(cases):
    tumors, heads = cases[:8], cases[COUNT : COUNT + 4]
    hosts = hosts_for(tumors, heads)
    names = [host.case.name for host in hosts if host]
    assert len(names) >= 6
    assert max(names.count(name) for name in names) <= 3
    own = replace(heads[0], group=tumors[0].group)
    assert hosts_for(tumors[:1], [own]) == [None]
    assert hosts_for(tumors, []) == [None] * 8


def test_borders_add_what_they_say():
    image = np.arange(24, dtype=np.float32).reshape(1, 4, 6)
    framed = bordered(image, 0.5, "all", 1.0)
    assert framed.shape == (1, 8, 12)
    np.testing.assert_array_equal(framed[:, 2:-2, 3:-3], image)
    assert framed[0, 0, 0] == 23
    assert bordered(image, 0.5, "one", 0.0).shape == (1, 6, 6)


def test_colors_are_exchanged_where_there_are_any(cases):
    gray, color = cases[0], replace(cases[1], image=np.concatenate([cases[1].image * k for k in (1, 0.5, 0.25)]))
    plan = Plan([gray, color], [], harmless=2, probes=0)
    asked = [q for q in plan if q.how == "red and blue exchanged"]
    assert [q.case.name for q in asked] == [color.name]
    np.testing.assert_array_equal(asked[0].picture, color.image[::-1])
    assert plan.left_out["harmless", "red and blue exchanged: nothing changes in this picture"] == 1
