"""What may be concluded, in one sentence each, with the probability that it is false.

Withheld is what is false with more than 5 %, and what too few pictures or a control that changes them do not carry.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from scripts.certificate.effects import Answers
from scripts.certificate.questions import EXACT
from scripts.certificate.shortcuts import mask_statements, shortcut_statements
from scripts.certificate.statement import CONTROL, LEAST, LEAST_GROUPS, Statement, at_most, claim, percent
from scripts.measures.claims import Share, reservation, settled

# Share that must follow the tumor for a property to hold.
HOLDS = 0.90
# Verdicts changed by what says nothing about a tumor, at most.
IRRELEVANT = 0.02
# And by what is done to healthy tissue, the controls.
HARMLESS = 0.03
# By so much accuracy must rise under another order of the classes for their order to be doubted.
SWAPPED = 0.2
# What a share of pictures is called, and between what it lies then.
RANGES = {"holds": (HOLDS, 1.0), "in part": (0.5, HOLDS), "fails": (0.0, 0.5)}
# The tumor probability rises by so much with the tumor, or by so much more than the control changes it.
RISES, RISES_IN_PART = 0.3, 0.05

# What an intervention is called where the head was drawn with and without its tumor instead.
_DRAWN = (("painted out", "left out of the drawing"), ("moved", "drawn"))

# property, test, what it is of, measure, share that is wanted afterwards, (holds, in part, fails)
_TESTS = (
    (
        "necessity", "removal", "verdict", "called tumor",
        "{gone} of {n} tumors are called no tumor once they are painted out",
        "{kept} of {n} pictures are still called tumor after the tumor was painted out",
        ("the verdict needs the tumor", "the verdict rests on the tumor in part", "the verdict does not depend on it"),
    ),
    (
        "necessity", "removal", "mask", "mask not empty",
        "the mask of {gone} of {n} pictures is empty once the tumor is painted out",
        "the mask of {kept} of {n} pictures is not empty after the tumor was painted out",
        ("the mask needs the tumor", "the mask rests on the tumor in part", "the mask does not depend on it"),
    ),
    (
        "necessity", "removal", "mask at the tumor's place", "mask at the place",
        "the mask of {gone} of {n} pictures marks no pixel at the place of the tumor once it is painted out",
        "the mask of {kept} of {n} pictures marks the place of the tumor after the tumor was painted out",
        ("what is marked there is the tumor", "what is marked there is the tumor in part",
         "the place is marked whatever is there"),
    ),
    (
        "necessity", "removal", "evidence map", "evidence anywhere",
        "the evidence of {gone} of {n} pictures vanishes with the tumor",
        "the evidence of {kept} of {n} pictures remains after the tumor was painted out",
        ("the map needs the tumor", "the map rests on the tumor in part", "the map does not depend on it"),
    ),
    (
        "sufficiency", "transplant", "verdict", "called tumor",
        "{kept} of {n} healthy heads are called tumor once a tumor is moved into them",
        "{kept} of {n} healthy heads are called tumor after a tumor was moved into them",
        ("the tumor alone is enough", "the tumor alone is enough in part", "the tumor alone is not enough"),
    ),
    (
        "sufficiency", "transplant", "kind", "called that kind",
        "{kept} of {n} healthy heads are called the moved tumor's kind",
        "{kept} of {n} healthy heads are called the moved tumor's kind",
        ("the kind follows the tumor", "the kind follows the tumor in part", "the kind does not follow the tumor"),
    ),
    (
        "sufficiency", "transplant", "mask", "mask marks it",
        "the mask of {kept} of {n} healthy heads marks the moved tumor (Dice of .5 or more with its place)",
        "the mask of {kept} of {n} healthy heads marks the moved tumor (Dice of .5 or more with its place)",
        ("the mask follows the tumor", "the mask follows the tumor in part", "the mask does not follow the tumor"),
    ),
    (
        "sufficiency", "transplant", "evidence map", "evidence peaks there",
        "the evidence of {kept} of {n} healthy heads peaks at the moved tumor",
        "the evidence of {kept} of {n} healthy heads peaks at the moved tumor",
        ("the map follows the tumor", "the map follows the tumor in part", "the map does not follow the tumor"),
    ),
    (
        "surroundings", "swap", "kind", "called that kind",
        "{kept} of {n} tumors keep their kind in the healed head of another tumor's patient",
        "{kept} of {n} tumors keep their kind in the healed head of another tumor's patient",
        ("the kind is read from the tumor", "the kind is read from the tumor in part",
         "the kind is read from elsewhere"),
    ),
)  # fmt: skip


def statements(answers: Answers, realism: Sequence[Mapping[str, Any]] = ()) -> list[Statement]:
    """A statement on every property that the answers settle, and of the others why not.

    Args:
        answers: of the subject.
        realism: rows of `scripts.certificate.realism`; what is out of distribution is said beside the sentence.
    """
    odd = {(row["test"], row["how"]) for row in realism if row.get("out_of_distribution")}
    drafts: list[Statement] = []
    ways_of: dict[int, str] = {}
    for name, test, of, measure, good, bad, words in _TESTS:
        ways = answers.ways(test) or [""]
        for how in ways:
            statement = _statement(answers, name, test, how, of, measure, good, bad, words)
            if statement is not None:
                if (test, how) in odd:
                    ways_of[len(drafts)] = f"{test} ({how})" if how else test
                drafts.append(statement)
    faded = [how for test, how in sorted(odd) if test == "fade"]
    if faded:
        ways_of[len(drafts)] = f"fade ({', '.join(faded)})"
    drafts.append(_dose(answers))
    drafts += shortcut_statements(answers)
    drafts += mask_statements(answers)
    drafts += _irrelevance(answers)
    drafts += _order(answers)
    concluded = _concluded(drafts)
    for k, way in ways_of.items():
        if concluded[k].verdict != "withheld":
            note = f" (the control of {way} can be recognized: read with reserve)"
            concluded[k] = replace(concluded[k], sentence=concluded[k].sentence + note)
    return concluded


def _concluded(drafts: Sequence[Statement]) -> list[Statement]:
    """The same with what follows from each where it may be claimed, all of them corrected together; else withheld."""
    results = iter(settled([one.claimed for one in drafts if one.claimed]))
    concluded = []
    for one in drafts:
        if one.claimed:
            result = next(results)
            verdict = one.verdict if result["settled"] else "withheld"
            words = reservation(result)
            sentence = (
                f"{one.sentence}: {one.conclusion} ({words})"
                if result["settled"]
                else f"{one.sentence}; that {one.conclusion} is {words}"
            )
            one = replace(
                one, verdict=verdict, sentence=sentence, false_probability=result["false_probability"],
                needed=result["needed"],
            )  # fmt: skip
        concluded.append(one)
    return concluded


def _order(answers: Answers) -> list[Statement]:
    """Whether the outputs are in the order in which the classes are named; said only where they are not."""
    order = answers.order()
    if order is None or len(answers.as_is) < LEAST or order["best"] < order["accuracy"] + SWAPPED:
        return []
    names = [answers.classes[k] for k in order["order"]]
    sentence = (
        f"accuracy is {percent(order['accuracy'])} with the classes as named, {percent(order['best'])} with the "
        f"outputs read as {', '.join(names)}: check their order"
    )
    n = len(answers.as_is)
    gain = _between(order["best"] - order["accuracy"], order["error"], order["groups"], least=0.0)
    conclusion = "the outputs are in another order than named"
    return [claim("class order", "outputs", "fails", sentence, order["accuracy"], n, conclusion, gain)]


def _between(
    difference: float, error: float | None, groups: int, least: float | None = None, most: float | None = None
) -> Share:
    """A claim of a difference of two shares, between -1 and 1."""
    low, high = 0.0 if least is None else (least + 1) / 2, 1.0 if most is None else (most + 1) / 2
    return Share((difference + 1) / 2, None if error is None else error / 2, groups, low, high)


def _statement(
    answers: Answers, name: str, test: str, how: str, of: str, measure: str, good: str, bad: str, words: Sequence[str]
) -> Statement | None:
    triples = answers.triples(test, how)
    row = answers.effects(test, how, measure, triples)
    label = f"{of} ({how})" if how else of
    if triples and not row["n"]:
        return None  # the model has no such output
    decisive = answers.decisive(test, how, of == "kind") if of in ("verdict", "kind") else triples
    if of not in ("verdict", "kind") and test == "removal":
        value = answers.measures()[measure]
        decisive = [t for t in triples if value(t.before, t.wanted) > 0]
    chosen = answers.effects(test, how, measure, decisive)
    reason = _too_few(chosen, test)
    if reason:
        return Statement(name, label, "withheld", reason, n=chosen["n"])
    control = abs(chosen["control_effect"])
    if control > CONTROL:
        return Statement(
            name, label, "withheld",
            f"the control alone changes {control:.0%} of {chosen['n']} pictures: what the tumor does is not judged",
            n=chosen["n"],
        )  # fmt: skip
    appears = test != "removal"
    share = chosen["after"] if appears else 1 - chosen["after"]
    low, high = chosen["after_ci95"]
    bounds = (low, high) if appears else (_less(high), _less(low))
    verdict = next(name for name, (least, _) in RANGES.items() if share >= least)
    rank = list(RANGES).index(verdict)
    text = good if rank == 0 else bad
    sentence = text.format(gone=percent(1 - chosen["after"]), kept=percent(chosen["after"]), n=chosen["n"])
    sentence += f" (control: {percent(chosen['control'])})"
    for of_interventions, of_drawings in _DRAWN if how == EXACT else ():
        sentence = sentence.replace(of_interventions, of_drawings)
    claimed = Share(share, chosen["after_error"], chosen["groups"], *RANGES[verdict])
    return claim(name, label, verdict, sentence, share, chosen["n"], words[rank], claimed, ci95=bounds)


def _too_few(row: Mapping[str, Any], test: str) -> str:
    """Why there are too few pictures for a statement; "" where there are enough."""
    if row["n"] >= LEAST and row["groups"] >= LEAST_GROUPS:
        return ""
    what = {
        "removal": "tumors with the output as they are, a place for the control and a mask",
        "transplant": "healthy heads that are called so and hold a tumor and its control",
        "swap": "tumors of two classes, both called right, that fit into each other's heads",
    }[test]
    return f"only {row['n']} {what} ({row['groups']} patients or groups; {LEAST} and {LEAST_GROUPS} are needed)"


def _dose(answers: Answers) -> Statement:
    rows = answers.doses()
    if not rows or rows[0]["n"] < LEAST:
        count = rows[0]["n"] if rows else 0
        return Statement("dose", "verdict", "withheld", f"only {count} tumors could be faded; {LEAST} are needed")
    curve = [row["tumor_probability"] for row in rows]
    control = [row["control_probability"] for row in rows]
    of_control = max(control) - min(control)
    monotone = all(b >= a - 0.01 for a, b in itertools.pairwise(curve))
    trend = answers.rise()
    limit = min(2 * of_control + RISES_IN_PART, RISES)
    holds = monotone and trend["rise"] >= RISES
    verdict = "holds" if holds else "in part" if trend["rise"] >= limit else "fails"
    sentence = (
        f"with the tumor at {rows[0]['strength']:.0%} to 100 % of its strength the mean tumor probability goes from "
        f"{curve[0]:.2f} to {curve[-1]:.2f}{'' if monotone else ', not at every step,'} (control: within "
        f"{of_control:.2f}), n = {rows[0]['n']}"
    )
    least, most = {"holds": (RISES, None), "in part": (limit, None), "fails": (None, limit)}[verdict]
    more = f"more than {limit:.2f}"
    conclusion = {
        "holds": f"it rises by {RISES} or more",
        "in part": f"it rises by {more}",
        "fails": f"it does not rise by {more}",
    }[verdict]
    claimed = _between(trend["rise"], trend["error"], trend["groups"], least, most)
    return claim("dose", "verdict", verdict, sentence, trend["rise"], rows[0]["n"], conclusion, claimed)


def _irrelevance(answers: Answers) -> list[Statement]:
    changes = []
    for row in answers.harmless():
        sentence = (
            f"{row['change']} changes {percent(row['changed'])} of {row['n']} verdicts, the tumor probability by up "
            f"to {row['largest']:.2f}"
        )
        changes.append((row["change"], sentence, row["changed"], row["changed_error"], row, IRRELEVANT))
    for test, what in (("removal", "healthy tissue painted out"), ("transplant", "healthy tissue moved in")):
        for how in answers.ways(test):
            row = answers.effects(test, how, "called tumor")
            if row["n"] and how != EXACT:
                share, error = row["control_changed"], row["control_changed_error"]
                sentence = f"{what} ({how}) changes {percent(share)} of {row['n']} verdicts"
                changes.append((f"control of {test} ({how})", sentence, share, error, row, HARMLESS))
    statements = []
    for of, sentence, share, error, row, limit in changes:
        if row["n"] >= LEAST:
            stays = share <= limit
            claimed = at_most(share, error, row["groups"], limit, stays)
            conclusion = f"{'at most' if stays else 'more than'} {percent(limit)} change"
            verdict = "holds" if stays else "fails"
            statements.append(claim("irrelevance", of, verdict, sentence, share, row["n"], conclusion, claimed))
    return statements


def _less(value: float | None) -> float | None:
    return None if value is None else 1 - value
