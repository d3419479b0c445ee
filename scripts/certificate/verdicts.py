"""What may be concluded, in one sentence each; withheld where the pictures are too few or the control changes them."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from scripts.certificate.effects import Answers
from scripts.measures.claims import Share, reservations

# A statement rests on at least so many pictures of so many patients or groups.
LEAST, LEAST_GROUPS = 20, 10
# Share that must follow the tumor for a property to hold, and share of changed controls above which it is not judged.
HOLDS, CONTROL = 0.90, 0.10
# Verdicts changed by what says nothing about a tumor, at most.
IRRELEVANT = 0.02
# And by what is done to healthy tissue, the controls.
HARMLESS = 0.03
# Verdicts that a probe must change for it to be named as what is read.
READ = 0.5
# By so much accuracy must rise under another order of the classes for their order to be doubted.
SWAPPED = 0.2


@dataclass(frozen=True)
class Statement:
    """A property with its verdict ("holds", "in part", "fails" or "withheld") and the sentence that says why.

    Where it holds, ``claimed`` is the share that the sentence claims of all patients.
    """

    property: str
    of: str
    verdict: str
    sentence: str
    value: float | None = None
    ci95: tuple[float | None, float | None] = (None, None)
    n: int = 0
    claimed: Share | None = None

    def as_dict(self) -> dict[str, Any]:
        """For causal.json."""
        found = {**asdict(self), "ci95": list(self.ci95)}
        claimed = found.pop("claimed")
        return {**found, "claimed_share": None if claimed is None else claimed["wanted"]}


def _kept(changed: float, ci95: Sequence[float | None], groups: int, most: float) -> Share:
    """The claim that at most so many verdicts change, as one of those that stay."""
    high = ci95[1]
    return Share(1 - changed, None if high is None else 1 - high, groups, 1 - most)


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


def named(rows: Sequence[Mapping[str, Any]]) -> str | None:
    """What the verdict reads instead of the tumor, the most particular of what changes it; None: none of the probes.

    Args:
        rows: of `Answers.probes`, the most particular first.
    """
    for row in rows:
        reads = row["n_changed"] >= LEAST and row["changed"] >= READ
        if reads and (row["control"] is None or row["control"] <= CONTROL):
            return str(row["probe"])
    return None


def _reads(answers: Answers) -> list[Statement]:
    rows = answers.probes()
    if not rows or max(row["n_changed"] for row in rows) < LEAST:
        return []
    n = max(row["n_changed"] for row in rows)
    name = named(rows)
    if name is None:
        largest = max(row["changed"] or 0.0 for row in rows)
        sentence = (
            f"none of {', '.join(row['probe'] for row in rows)}, taken from a picture of the other side, changes more "
            f"than {_percent(largest)} of {n} verdicts"
        )
        worst = max(rows, key=lambda row: row["changed"] or 0.0)
        claimed = _kept(largest, worst["changed_ci95"], worst["groups_changed"], CONTROL)
        holds = largest <= CONTROL
        verdict = "holds" if holds else "in part"
        return [Statement("shortcut", "verdict", verdict, sentence, largest, n=n, claimed=claimed if holds else None)]
    row = next(row for row in rows if row["probe"] == name)
    sentence = (
        f"the {name} of a picture of the other side changes {_percent(row['changed'])} of {row['n_changed']} verdicts "
        f"(of the same side: {_percent(row['control'] or 0)}): the verdict reads the {name}"
    )
    return [Statement("shortcut", name, "fails", sentence, row["changed"], n=row["n_changed"])]


def statements(answers: Answers, realism: Sequence[Mapping[str, Any]] = ()) -> list[Statement]:
    """Every property that can be judged, and of the others why not.

    Args:
        answers: of the subject.
        realism: rows of `scripts.certificate.realism`; what is out of distribution is said beside the sentence.
    """
    odd = {row["how"] for row in realism if row.get("out_of_distribution")}
    found = []
    for name, test, of, measure, good, bad, words in _TESTS:
        ways = answers.ways(test) or [""]
        for how in ways:
            statement = _judged(answers, name, test, how, of, measure, good, bad, words)
            if statement is not None:
                if how in odd and statement.verdict != "withheld":
                    note = f" (the control of {how} can be recognized: read with reserve)"
                    statement = replace(statement, sentence=statement.sentence + note)
                found.append(statement)
    found.append(_dose(answers))
    found += _reads(answers)
    found += _irrelevance(answers)
    found += _order(answers)
    return _reserved(found)


def _reserved(found: Sequence[Statement]) -> list[Statement]:
    """The same, and beside each that holds with which probability it does not, corrected for all of them together."""
    claimed = [statement.claimed for statement in found if statement.claimed is not None]
    words = iter(reservations(claimed))
    return [one if one.claimed is None else replace(one, sentence=_beside(one.sentence, next(words))) for one in found]


def _beside(sentence: str, words: str) -> str:
    return f"{sentence} ({words})" if words.startswith("false") else f"{sentence} in this sample; {words}"


def _order(answers: Answers) -> list[Statement]:
    """Whether the outputs are in the order in which the classes are named; said only where they are not."""
    found = answers.order()
    if found is None or len(answers.as_is) < LEAST or found[1] < found[0] + SWAPPED:
        return []
    names = [answers.classes[k] for k in found[2]]
    sentence = (
        f"accuracy is {_percent(found[0])} with the classes as named, {_percent(found[1])} with the outputs read as "
        f"{', '.join(names)}: check their order"
    )
    return [Statement("class order", "outputs", "fails", sentence, found[0], n=len(answers.as_is))]


def _judged(
    answers: Answers, name: str, test: str, how: str, of: str, measure: str, good: str, bad: str, words: Sequence[str]
) -> Statement | None:
    triples = answers.triples(test, how)
    row = answers.effects(test, how, measure, triples)
    label = f"{of} ({how})" if how else of
    if triples and not row["n"]:
        return None  # the model has no such output
    decisive = answers.decisive(test, how, of == "kind") if of in ("verdict", "kind") else triples
    if of in ("mask", "evidence map") and test == "removal":
        value = answers.measures()[measure]
        decisive = [t for t in triples if value(t.before, t.wanted) > 0]
    chosen = answers.effects(test, how, measure, decisive)
    reason = _too_few(chosen, test, of)
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
    lower = chosen["difference_ci95"][0]
    rank = 0 if share >= HOLDS else 2 if share < 0.5 or lower is None or lower <= 0 else 1
    text = good if rank == 0 else bad
    sentence = text.format(gone=_percent(1 - chosen["after"]), kept=_percent(chosen["after"]), n=chosen["n"])
    verdict = ("holds", "in part", "fails")[rank]
    sentence += f" (control: {_percent(chosen['control'])}): {words[rank]}"
    claimed = Share(share, bounds[0], chosen["groups"], HOLDS) if rank == 0 else None
    return Statement(name, label, verdict, sentence, share, bounds, chosen["n"], claimed)


def _too_few(row: Mapping[str, Any], test: str, of: str) -> str:
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
    rise, of_control = curve[-1] - curve[0], max(control) - min(control)
    monotone = all(b >= a - 0.01 for a, b in itertools.pairwise(curve))
    verdict = (
        "holds" if monotone and rise > 0.3 else "in part" if monotone and rise > 2 * of_control + 0.05 else "fails"
    )
    sentence = (
        f"with the tumor at {rows[0]['strength']:.0%} to 100 % of its strength the mean tumor probability goes from "
        f"{curve[0]:.2f} to {curve[-1]:.2f} (control: within {of_control:.2f}), n = {rows[0]['n']}"
    )
    return Statement("dose", "verdict", verdict, sentence, rise, n=rows[0]["n"])


def _irrelevance(answers: Answers) -> list[Statement]:
    found = []
    for row in answers.harmless():
        if row["n"] < LEAST:
            continue
        verdict = "holds" if row["changed"] <= IRRELEVANT else "fails"
        sentence = (
            f"{row['change']} changes {_percent(row['changed'])} of {row['n']} verdicts, the tumor probability by up "
            f"to {row['largest']:.2f}"
        )
        claimed = _kept(row["changed"], row["changed_ci95"], row["groups"], IRRELEVANT) if verdict == "holds" else None
        found.append(
            Statement("irrelevance", row["change"], verdict, sentence, row["changed"], n=row["n"], claimed=claimed)
        )
    for test, what in (("removal", "healthy tissue painted out"), ("transplant", "healthy tissue moved in")):
        for how in answers.ways(test):
            row = answers.effects(test, how, "called tumor")
            if row["n"] < LEAST:
                continue
            holds = row["control_changed"] <= HARMLESS
            verdict = "holds" if holds else "fails"
            claimed = _kept(row["control_changed"], row["control_changed_ci95"], row["groups"], HARMLESS)
            sentence = f"{what} ({how}) changes {_percent(row['control_changed'])} of {row['n']} verdicts"
            found.append(
                Statement("irrelevance", f"control of {test} ({how})", verdict, sentence, row["control_changed"],
                          n=row["n"], claimed=claimed if holds else None)
            )  # fmt: skip
    return found


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"


def _less(value: float | None) -> float | None:
    return None if value is None else 1 - value
