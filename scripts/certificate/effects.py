"""From answers to effects: each test beside its control, paired by case, with intervals by patient or group."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.optimize import linear_sum_assignment

from scripts.certificate.answers import Answer
from scripts.certificate.cases import Case
from scripts.certificate.questions import Question
from scripts.measures.intervals import mean_interval, standard_error

Measure = Callable[[Answer, int], float]
# Tests whose effect is that something is there afterwards; of the others, that it is gone.
APPEARS = ("transplant", "swap")
# Dice with the place of the tumor from which on a mask marks it.
MARKS = 0.5


@dataclass(frozen=True)
class Triple:
    """Answers to the picture before, the changed one, and the control, with the control's own picture before."""

    case: Case
    before: Answer
    after: Answer
    control: Answer
    wanted: int
    host: str


class Answers:
    """All answers of a subject, found by test, way and case.

    Args:
        pairs: questions with answers.
        classes: names, class 0 no tumor.
        threshold: of the tumor's probability.
    """

    def __init__(self, pairs: Iterable[tuple[Question, Answer]], classes: Sequence[str], threshold: float) -> None:
        self.classes, self.threshold = list(classes), threshold
        self.as_is: dict[str, Answer] = {}
        self.cases: dict[str, Case] = {}
        self.asked: dict[tuple[str, str, bool], dict[str, tuple[str, Answer]]] = defaultdict(dict)
        self.refused: Counter[tuple[str, str]] = Counter()
        for question, answer in pairs:
            if answer.refused:
                self.refused[question.test, answer.refused] += 1
                continue
            if question.test == "as is":
                self.as_is[question.before] = answer
                self.cases[question.before] = question.case
            else:
                by_case = self.asked[question.test, question.how, question.control]
                by_case[question.case.name] = question.before, answer

    def ways(self, test: str) -> list[str]:
        """Ways of a test in the order in which they were asked."""
        return list(dict.fromkeys(how for name, how, _ in self.asked if name == test))

    def triples(self, test: str, how: str) -> list[Triple]:
        """Cases of a test whose picture before, after and control were all answered."""
        after, control = (self.asked.get((test, how, c), {}) for c in (False, True))
        matched = []
        for name, (before, answer) in after.items():
            if before in self.as_is and name in control:
                case = self.cases.get(name)
                if case is not None:
                    matched.append(Triple(case, self.as_is[before], answer, control[name][1], case.kind, before))
        return matched

    def called(self, answer: Answer) -> bool:
        """Whether an answer says tumor."""
        return answer.tumor() >= self.threshold

    def measures(self) -> dict[str, Measure]:
        """What is looked at of an answer, by name; NaN where a model does not give it."""
        return {
            "called tumor": lambda answer, wanted: float(self.called(answer)),
            "called that kind": lambda answer, wanted: float(self.called(answer) and kind_of(answer) == wanted),
            "tumor probability": lambda answer, wanted: answer.tumor(),
            "mask not empty": lambda answer, wanted: _truth(answer.mask_pixels),
            "mask at the place": lambda answer, wanted: _mask(answer, float((answer.mask_in_place or 0) > 0)),
            "mask marks it": lambda answer, wanted: _mask(answer, float((answer.dice or 0.0) >= MARKS)),
            "mask's overlap": lambda answer, wanted: _mask(answer, answer.dice or 0.0),
            "evidence anywhere": lambda answer, wanted: _truth(answer.evidence),
            "evidence peaks there": lambda answer, wanted: (
                float("nan") if answer.evidence is None else float(bool(answer.peak_in_place))
            ),
        }

    def effects(self, test: str, how: str, measure: str, triples: Sequence[Triple] | None = None) -> dict[str, Any]:
        """One row of the certificate.

        Args:
            test, how: which.
            measure: of `measures`.
            triples: of these cases alone; None: all.

        Returns:
            {test, how, measure, n, groups, before, after, after_error, after_ci95, control, effect, control_effect,
            difference, difference_ci95}: means over cases; error is the standard error by group; effect is how many
            less (removal, fade) or more (transplant, swap) than before, difference the effect minus the control's.
        """
        triples = self.triples(test, how) if triples is None else triples
        value = self.measures()[measure]
        table = np.array(
            [[value(answer, t.wanted) for answer in (t.before, t.after, t.control)] for t in triples], dtype=float
        ).reshape(-1, 3)
        kept = np.isfinite(table).all(axis=1)
        table = table[kept]
        groups = [t.case.group for t, k in zip(triples, kept, strict=True) if k]
        row: dict[str, Any] = {"test": test, "how": how, "measure": measure, "n": len(table), "groups": len({*groups})}
        if not len(table):
            return row
        sign = 1 if test in APPEARS else -1
        effect, of_control = sign * (table[:, 1] - table[:, 0]), sign * (table[:, 2] - table[:, 0])
        return row | {
            "before": float(table[:, 0].mean()),
            "after": float(table[:, 1].mean()),
            "after_error": standard_error(table[:, 1], groups),
            "after_ci95": mean_interval(table[:, 1], groups),
            "control": float(table[:, 2].mean()),
            "effect": float(effect.mean()),
            "control_effect": float(of_control.mean()),
            "control_changed": float((table[:, 2] != table[:, 0]).mean()),
            "control_changed_error": standard_error(table[:, 2] != table[:, 0], groups),
            "control_changed_ci95": mean_interval((table[:, 2] != table[:, 0]).astype(float), groups),
            "difference": float((effect - of_control).mean()),
            "difference_ci95": mean_interval(effect - of_control, groups, bounds=(-1.0, 1.0)),
        }

    def decisive(self, test: str, how: str, kinds: bool = False) -> list[Triple]:
        """Cases that can show an effect: tumors called tumor as they are, or heads called healthy as they are.

        Args:
            test, how: which.
            kinds: moreover the tumor's kind must be right as it is, and in a swap that of both.
        """
        cases = [t for t in self.triples(test, how) if test == "swap" or self.called(t.before) == (test not in APPEARS)]
        if not kinds:
            return cases
        return [t for t in cases if self._right(t.case.name) and (test != "swap" or self._right(t.host))]

    def _right(self, name: str) -> bool:
        answer = self.as_is.get(name)
        return answer is not None and self.called(answer) and kind_of(answer) == self.cases[name].kind

    def rows(self) -> list[dict[str, Any]]:
        """Every test, way and measure, over all cases; then the verdict by class and by source."""
        table = []
        for test in ("removal", "transplant", "swap", "fade"):
            for how in self.ways(test):
                triples = self.triples(test, how)
                table += [{**self.effects(test, how, name, triples), "part": "all"} for name in self.measures()]
                # A faded tumor may still be called one: what falls is the probability.
                measures = ("called tumor", "tumor probability" if test == "fade" else "called that kind")
                for part, subset in _parts(triples, self.classes):
                    table += [{**self.effects(test, how, name, subset), "part": part} for name in measures]
        return [row for row in table if row["n"]]

    def _faded(self) -> tuple[list[float], list[str]]:
        """Strengths, and the cases that were answered at all of them, with their controls."""
        levels = sorted({float(how) for how in self.ways("fade")})
        every = [set(self.asked.get(("fade", f"{level:g}", c), {})) for level in levels for c in (False, True)]
        return levels, sorted(set.intersection(*every) & set(self.as_is)) if every else []

    def doses(self) -> list[dict[str, Any]]:
        """Mean tumor probability and share called tumor by the tumor's strength, beside the control's, with intervals.

        Returns:
            {strength, n, groups, {tumor, control}_{probability, called}, each with _ci95}, and difference, of the
            tumor's probability minus the control's, with difference_ci95, of each strength; 1 is the picture as it is.
        """
        levels, names = self._faded()
        groups = [self.cases[name].group for name in names]
        rows = []
        for level in (*levels, 1.0) if names else ():
            row: dict[str, Any] = {"strength": level, "n": len(names), "groups": len({*groups})}
            of_both = []
            for label, control in (("tumor", False), ("control", True)):
                if level == 1:
                    answers = [self.as_is[name] for name in names]
                else:
                    answers = [self.asked["fade", f"{level:g}", control][name][1] for name in names]
                of_both.append(np.array([a.tumor() for a in answers]))
                called = np.array([self.called(a) for a in answers], dtype=float)
                for name, values in ((f"{label}_probability", of_both[-1]), (f"{label}_called", called)):
                    row |= {name: float(values.mean()), f"{name}_ci95": mean_interval(values, groups)}
            gap = of_both[0] - of_both[1]
            row |= {"difference": float(gap.mean())}
            rows.append(row | {"difference_ci95": mean_interval(gap, groups, bounds=(-1.0, 1.0))})
        return rows

    def rise(self) -> dict[str, Any]:
        """How much the tumor probability rises from the weakest to the whole tumor: {rise, error, groups}, of some."""
        levels, names = self._faded()
        rises = [
            self.as_is[name].tumor() - self.asked["fade", f"{levels[0]:g}", False][name][1].tumor() for name in names
        ]
        groups = [self.cases[name].group for name in names]
        return {
            "rise": float(np.mean(rises)),
            "error": standard_error(np.array(rises), groups),
            "groups": len({*groups}),
        }

    def harmless(self) -> list[dict[str, Any]]:
        """How many verdicts a harmless change changes: {change, n, changed, largest: of the change of probability}."""
        rows = []
        for how in self.ways("harmless"):
            answers = self.asked["harmless", how, False]
            known = {name: answer for name, (_, answer) in answers.items() if name in self.as_is}
            pairs = [(self.as_is[name], answer) for name, answer in known.items()]
            groups = [self.cases[name].group for name in known]
            if pairs:
                changed = [self.called(a) != self.called(b) or kind_of(a) != kind_of(b) for a, b in pairs]
                rows.append(
                    {
                        "change": how,
                        "n": len(pairs),
                        "groups": len({*groups}),
                        "changed": float(np.mean(changed)),
                        "changed_error": standard_error(np.array(changed), groups),
                        "changed_ci95": mean_interval(np.array(changed, dtype=float), groups),
                        "largest": float(max(abs(a.tumor() - b.tumor()) for a, b in pairs)),
                    }
                )
        return rows

    def probes(self) -> list[dict[str, Any]]:
        """How many verdicts each probe changes between tumor and none, and its control: {probe, n, changed, control}.

        A verdict that is wrong as it is shows nothing: such pictures are left out.
        """
        rows = []
        for name in self.ways("probe"):
            row: dict[str, Any] = {"probe": name}
            for label, control in (("changed", False), ("control", True)):
                answers = self.asked.get(("probe", name, control), {})
                kept = {
                    case: answer
                    for case, (_, answer) in answers.items()
                    if case in self.as_is and self.called(self.as_is[case]) == bool(self.cases[case].kind)
                }
                changed = np.array(
                    [self.called(self.as_is[case]) != self.called(answer) for case, answer in kept.items()], dtype=float
                )
                groups = [self.cases[case].group for case in kept]
                row[f"n_{label}"], row[f"groups_{label}"] = len(kept), len({*groups})
                row[label] = float(changed.mean()) if kept else None
                row[f"{label}_error"] = standard_error(changed, groups) if kept else None
                row[f"{label}_ci95"] = mean_interval(changed, groups) if kept else [None, None]
            rows.append(row)
        return rows

    def order(self) -> dict[str, Any] | None:
        """Accuracy of the pictures as they are, and under the best other order of the classes.

        Returns:
            {accuracy, best, order: of the classes, error: of the difference of both, groups}.
        """
        pairs = [(self.cases[name].kind, int(np.argmax(a.probabilities))) for name, a in self.as_is.items()]
        count = len(self.classes)
        if len({kind for kind, _ in pairs}) < count:
            return None  # a class without pictures says nothing about its place
        kinds, said = np.array(pairs).T
        table = np.zeros((count, count))
        np.add.at(table, (said, kinds), 1)
        best = linear_sum_assignment(-table)[1]
        right, other = said == kinds, best[said] == kinds
        groups = [self.cases[name].group for name in self.as_is]
        return {
            "accuracy": float(right.mean()),
            "best": float(other.mean()),
            "order": [int(k) for k in best],
            "error": standard_error(other.astype(float) - right, groups),
            "groups": len({*groups}),
        }


def kind_of(answer: Answer) -> int:
    """The most probable tumor class."""
    return int(np.argmax(answer.probabilities[1:])) + 1


def _truth(value: float | None) -> float:
    return float("nan") if value is None else float(value > 0)


def _mask(answer: Answer, value: float) -> float:
    """Of a model with masks; a healthy head as it is has no place, so that its mask marks none."""
    return float("nan") if answer.mask_pixels is None else value


def _parts(triples: Sequence[Triple], classes: Sequence[str]) -> list[tuple[str, list[Triple]]]:
    """Cases by class and by source, where there is more than one of either."""
    parts = []
    for title, key in (("class", lambda t: classes[t.case.kind]), ("source", lambda t: t.case.source)):
        names = sorted({key(t) for t in triples})
        if len(names) > 1:
            parts += [(f"{title} {name}", [t for t in triples if key(t) == name]) for name in names]
    return parts
