"""What may be claimed: a test that has to hold before "better", "worse", "equal", "holds" or "fails" is printed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtr, stdtrit

from scripts.explain.intervals import ROUNDING, cluster_variance, group_index, share_below, with_one_more

__all__ = [
    "ALLOWED",
    "METHOD",
    "Difference",
    "Share",
    "adjusted",
    "difference_of",
    "reservation",
    "sentence",
    "settled",
    "verdict",
    "verdicts",
    "words",
]

ALLOWED = 0.05  # probability that a printed claim is false
MOST = 100_000  # further patients that are looked for: nobody has more
METHOD = (
    "paired by patient (or near-duplicate group), with one more who speaks against the claim as much as any seen, "
    "seeds as draws of their own where there are several; a claim is made where the probability that it is false, "
    "Holm-corrected for all claims of the table, is at most 5 %"
)


@dataclass(frozen=True)
class Difference:
    """A paired difference of two models, and how sure it is.

    Attributes:
        difference: mean of ours minus mean of the reference.
        ci95: 95 % interval; [None, None] where nothing is known of the variance.
        error: standard error over patients; NaN then.
        furthest: how far the furthest patient lies below and above the mean.
        false_if_higher, false_if_lower: probability that the difference is not above, or not below 0: one-sided, with
            one more patient as far on the side that speaks against it as the furthest seen there.
        groups, seeds: how many patients and trainings.
    """

    difference: float
    ci95: list[float | None]
    error: float
    furthest: tuple[float, float]
    false_if_higher: float
    false_if_lower: float
    groups: int
    seeds: int

    def false_of(self, patients: int) -> float:
        """Probability that the side measured is not the true one, of so many patients like these and one seed."""
        side = 1 if self.difference > 0 else -1
        variance = self.error**2 * self.groups / patients
        away = -side * self.furthest[0 if side > 0 else 1]
        center, error = with_one_more(self.difference, variance, patients, away)
        return float(stdtr(patients - 1, -side * center / error))


def difference_of(ours: NDArray, reference: NDArray, groups: Sequence[Any] | NDArray) -> Difference:
    """Difference of two models' means on the same cases.

    The variance over patients and the one over seeds are added: another test part and another training would both
    change the figure. Of one seed nothing is known about trainings.

    Args:
        ours, reference: (S, N) values by seed and case, finite; seeds and cases are paired.
        groups: (N,) the patient or near-duplicate group of each case.

    Raises:
        ValueError: when the shapes differ, or are not (S, N).
    """
    ours, reference = np.asarray(ours, dtype=np.float64), np.asarray(reference, dtype=np.float64)
    if ours.ndim != 2 or ours.shape != reference.shape or ours.shape[1] != len(groups):
        raise ValueError(
            f"two arrays (seeds, cases) with a group a case, got {ours.shape}, {reference.shape} and {len(groups)}"
        )
    change = ours - reference
    mean, seeds = float(change.mean()), len(change)
    residuals = change.mean(axis=0) - mean
    index, count = group_index(groups)
    of_groups, _ = cluster_variance(residuals, len(groups), index)
    # Trainings of two models are independent, also those of one seed.
    apart = (ours.mean(axis=1).var(ddof=1) + reference.mean(axis=1).var(ddof=1)) / seeds if seeds > 1 else 0.0
    sums = np.bincount(index, residuals) * count / len(groups)
    furthest = float(-sums.min()), float(sums.max())
    if count < 2 or of_groups + apart <= ROUNDING * mean**2:
        # Patients that are all changed alike say nothing of others.
        return Difference(mean, [None, None], float("nan"), furthest, 1.0, 1.0, count, seeds)
    ends, false = [], []
    for side, distance in zip((-1, 1), furthest, strict=True):
        center, error = with_one_more(mean, of_groups, count, side * distance)
        parts = [(error**2, count - 1), (float(apart), 2 * (seeds - 1))][: 1 + (seeds > 1)]
        variance = sum(part for part, _ in parts)
        whole = variance**0.5
        # Quantiles weighed by the parts of the variance, as Cochran and Cox do: of two or three seeds one effective
        # number of degrees of freedom (Satterthwaite's) claims too often.
        quantile = sum(part * float(stdtrit(freed, 0.975)) for part, freed in parts) / variance
        ends.append(center + side * quantile * whole)
        false.append(sum(part * float(stdtr(freed, side * center / whole)) for part, freed in parts) / variance)
    return Difference(mean, [*ends], of_groups**0.5, furthest, false[0], false[1], count, seeds)


def adjusted(probabilities: Sequence[float]) -> list[float]:
    """Holm's correction: each at most the probability that any of the claims up to it is false.

    >>> adjusted([0.01, 0.04, 0.03])
    [0.03, 0.06, 0.06]
    """
    corrected, highest, count = [0.0] * len(probabilities), 0.0, len(probabilities)
    for rank, k in enumerate(np.argsort(probabilities, kind="stable")):
        highest = max(highest, min(1.0, (count - rank) * probabilities[k]))
        corrected[k] = highest
    return corrected


def verdict(
    measured: Difference, higher: bool, false: float, claims: int, margin: float | None = None
) -> dict[str, Any]:
    """What may be said of a difference.

    Args:
        measured: of `difference_of`.
        higher: whether more is better.
        false: Holm-corrected probability that the better side is another one than measured.
        claims: how many claims the correction is for.
        margin: difference that counts as none, for the claim "equal"; None: it is not made.

    Returns:
        {claim: "better", "worse", "equal" or "not settled"; false_probability of the direction; needed: how many more
        patients would settle the direction if all went on alike, None where that cannot be said}.
    """
    claim, needed = "not settled", None
    good = (measured.difference > 0) == higher
    low, high = measured.ci95
    if false <= ALLOWED:
        claim = "better" if good else "worse"
    elif margin is not None and low is not None and high is not None and -margin < low and high < margin:
        claim = "equal"
    elif measured.error == measured.error and measured.difference and measured.seeds == 1:
        needed = _further(measured.false_of, measured.groups, ALLOWED / claims)
    return {"claim": claim, "false_probability": false, "needed": needed}


def verdicts(
    measured: Sequence[Difference], higher: Sequence[bool], margins: Sequence[float | None]
) -> list[dict[str, Any]]:
    """`verdict` of each difference of a table, all of whose claims are corrected together.

    Args:
        measured: of `difference_of`.
        higher: of each, whether more is better.
        margins: of each, see `verdict`.
    """
    sides = [
        difference.false_if_higher if difference.difference > 0 else difference.false_if_lower
        for difference in measured
    ]
    return [
        verdict(difference, up, false, len(measured), margin)
        for difference, up, false, margin in zip(measured, higher, adjusted(sides), margins, strict=True)
    ]


def _further(false_of: Callable[[int], float], there: int, allowed: float) -> int | None:
    """Fewest further patients that bring the claim's error probability to `allowed`; None if `MOST` are too few."""
    high = 1
    while false_of(there + high) > allowed:
        if high == MOST:
            return None
        high = min(2 * high, MOST)
    low = 0
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if false_of(there + middle) <= allowed else (middle, high)
    return high


@dataclass(frozen=True)
class Share:
    """A share of patients, or a bounded mean scaled to 0..1, with the range that is claimed for it.

    Attributes:
        share: measured, 0..1.
        error: its standard error, by patient or group; None: not known.
        groups: patients or near-duplicate groups.
        least, most: ends of the claimed range; 0 and 1 claim nothing.
    """

    share: float
    error: float | None
    groups: int
    least: float = 0.0
    most: float = 1.0

    @property
    def false(self) -> float:
        """Probability that it lies elsewhere in truth; of a rate that of the exact binomial test."""
        return self.false_of(self.groups)

    def false_of(self, patients: int) -> float:
        """The same of so many patients like these."""
        if self.error is None or self.groups < 2:
            return 1.0
        variance = self.error**2 * self.groups / patients
        low = share_below(self.share, variance, patients, self.least) if self.least > 0 else 0.0
        high = share_below(1 - self.share, variance, patients, 1 - self.most) if self.most < 1 else 0.0
        return max(low, high)


def settled(claimed: Sequence[Sequence[Share]]) -> list[dict[str, Any]]:
    """Whether claims of shares may be made, Holm-corrected together.

    Args:
        claimed: of each claim the shares that all have to lie where it says.

    Returns:
        of each {settled, false_probability, needed: further patients that would settle it if all went on alike, None
        where no number would}.

    >>> (claim,) = settled([[Share(1.0, 0.0, 20, 0.9)]])
    >>> claim["settled"], round(claim["false_probability"], 6), claim["needed"]
    (False, 0.121577, 9)
    """
    results = []
    for shares, false in zip(claimed, adjusted([max(one.false for one in shares) for shares in claimed]), strict=True):
        needed = None
        if false > ALLOWED:
            further = [_further(one.false_of, one.groups, ALLOWED / len(claimed)) for one in shares if one.groups > 1]
            known = [more for more in further if more is not None]
            needed = max(known) if len(known) == len(shares) else None
        results.append({"settled": false <= ALLOWED, "false_probability": false, "needed": needed})
    return results


def reservation(verdict: Mapping[str, Any]) -> str:
    """What has to stand beside a claim of `settled`.

    >>> reservation({"settled": True, "false_probability": 0.012, "needed": None})
    'false: 1.2 %'
    >>> reservation({"settled": False, "false_probability": 0.068, "needed": 15})
    'not settled: false with a probability of 6.8 %; 15 more patients like these would settle it'
    """
    if verdict["settled"]:
        return f"false: {_percent(verdict['false_probability'])}"
    more = verdict["needed"]
    known = f"{more:,d} more patients like these would settle it" if more else "more patients like these would not"
    return f"not settled: false with a probability of {_percent(verdict['false_probability'])}; {known}"


def _percent(probability: float) -> str:
    return f"{'< 0.1' if probability < 0.0005 else format(100 * probability, '.1f')} %"


def words(claim: Mapping[str, Any]) -> str:
    """What may be said of a difference, in words; no page, table or card says it otherwise.

    Args:
        claim: with claim, false_probability and needed, of `verdict`.

    >>> words({"claim": "better", "false_probability": 0.012, "needed": None})
    'better (false: 1.2 %)'
    >>> words({"claim": "not settled", "false_probability": 0.4, "needed": 120})
    'not settled (120 more patients)'
    """
    if claim["claim"] in ("better", "worse"):
        return f"{claim['claim']} (false: {_percent(claim['false_probability'])})"
    if claim["claim"] == "not settled" and claim["needed"] is not None:
        return f"not settled ({claim['needed']:,d} more patients)"
    return str(claim["claim"])


def sentence(measure: str, ours: str, reference: str, claim: Mapping[str, Any]) -> str:
    """`words` as a whole sentence.

    Args:
        measure, ours, reference: in words.
        claim: with claim, false_probability, needed and, for the claim "equal", margin.

    >>> equal = {"claim": "equal", "false_probability": 0.3, "needed": None, "margin": 0.02}
    >>> sentence("Dice", "A", "B", equal)
    'Dice of A and B is equal within 0.02.'
    """
    said = claim["claim"]
    if said == "equal":
        return f"{measure} of {ours} and {reference} is equal within {claim['margin']:g}."
    if said == "not settled":
        more = claim["needed"]
        known = f"{more:,d} more patients like these would settle it" if more else "these patients do not tell"
        return f"{measure}: which of {ours} and {reference} is better is not settled; {known}."
    chance = words(claim).partition("false: ")[2].rstrip(")")
    return f"{measure} of {ours} is {said} than that of {reference}; the probability that this is false is {chance}."
