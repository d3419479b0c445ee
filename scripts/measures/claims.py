"""Whether a difference may be called one: a test that has to hold before "better", "worse" or "equal" is printed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import norm, t

from scripts.explain.intervals import ROUNDING, cluster_variance

__all__ = [
    "ALLOWED",
    "METHOD",
    "Difference",
    "Share",
    "adjusted",
    "difference_of",
    "reservations",
    "sentence",
    "verdict",
    "verdicts",
    "words",
]

ALLOWED = 0.05  # probability that a printed claim is false
_TWO_SIDED = float(norm.isf(0.025))  # of a 95 % interval
METHOD = (
    "paired by patient (or near-duplicate group), seeds as draws of their own where there are several; a claim is made "
    "where the probability that it is false, Holm-corrected for all claims of the table, is at most 5 %"
)


@dataclass(frozen=True)
class Difference:
    """A paired difference of two models, and how sure it is.

    Attributes:
        difference: mean of ours minus mean of the reference.
        ci95: 95 % interval; [None, None] where nothing is known of the variance.
        error: standard error; NaN then.
        false_if_higher, false_if_lower: probability that the difference is not above, or not below 0: the one-sided
            p-value, and the posterior under a flat prior.
        groups, seeds: how many patients and trainings.
    """

    difference: float
    ci95: list[float | None]
    error: float
    false_if_higher: float
    false_if_lower: float
    groups: int
    seeds: int


def difference_of(ours: NDArray, reference: NDArray, groups: Sequence[Any]) -> Difference:
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
    of_groups, count = cluster_variance(change.mean(axis=0) - mean, len(groups), groups)
    parts = [(of_groups, count - 1)]
    if seeds > 1:
        # Trainings of two models are independent, also those of one seed.
        apart = ours.mean(axis=1).var(ddof=1) + reference.mean(axis=1).var(ddof=1)
        parts.append((float(apart / seeds), 2 * (seeds - 1)))
    variance = sum(part for part, _ in parts)
    if count < 2 or variance <= ROUNDING * mean**2:
        # Patients that are all changed alike say nothing of others.
        return Difference(mean, [None, None], float("nan"), 1.0, 1.0, count, seeds)
    error = variance**0.5
    # Quantiles weighed by the parts of the variance, as Cochran and Cox do: of two or three seeds one effective number
    # of degrees of freedom (Satterthwaite's) claims too often.
    half = sum(part * float(t.ppf(0.975, freed)) for part, freed in parts) / variance * error
    below = sum(part * float(t.cdf(-mean / error, freed)) for part, freed in parts) / variance
    return Difference(mean, [mean - half, mean + half], error, below, 1 - below, count, seeds)


def adjusted(probabilities: Sequence[float]) -> list[float]:
    """Holm's correction: each at most the probability that any of the claims up to it is false.

    >>> adjusted([0.01, 0.04, 0.03])
    [0.03, 0.06, 0.06]
    """
    found, highest, count = [0.0] * len(probabilities), 0.0, len(probabilities)
    for rank, k in enumerate(np.argsort(probabilities, kind="stable")):
        highest = max(highest, min(1.0, (count - rank) * probabilities[k]))
        found[k] = highest
    return found


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
        wanted = float(t.ppf(1 - ALLOWED / claims, measured.groups - 1))
        more = measured.groups * (wanted * measured.error / measured.difference) ** 2 - measured.groups
        needed = max(1, int(np.ceil(more)))
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
    sides = [found.false_if_higher if found.difference > 0 else found.false_if_lower for found in measured]
    return [
        verdict(found, up, false, len(measured), margin)
        for found, up, false, margin in zip(measured, higher, adjusted(sides), margins, strict=True)
    ]


@dataclass(frozen=True)
class Share:
    """A share of patients of which is claimed that it is at least so large.

    Attributes:
        share: measured.
        low: lower limit of its 95 % interval (Wilson's); None: not known.
        groups: patients or near-duplicate groups.
        wanted: what is claimed.
    """

    share: float
    low: float | None
    groups: int
    wanted: float

    @property
    def size(self) -> float:
        """Independent patients that would give this interval: Wilson's limit b of p has (p - b)² = z² b (1 - b) / n."""
        if self.low is None or not 0 < self.low < self.share:
            return 0.0
        return _TWO_SIDED**2 * self.low * (1 - self.low) / (self.share - self.low) ** 2

    @property
    def false(self) -> float:
        """Probability that it is smaller in truth: one-sided, by the score test, whose interval is Wilson's."""
        spread = self.wanted * (1 - self.wanted)
        return float(norm.sf((self.share - self.wanted) * (self.size / spread) ** 0.5)) if self.size else 1.0

    def needed(self, claims: int) -> int | None:
        """Further patients that would settle it among so many claims if all went on alike; None: no number would."""
        if not self.size or self.share <= self.wanted:
            return None
        wanted = float(norm.isf(ALLOWED / claims)) ** 2 * self.wanted * (1 - self.wanted)
        return max(1, int(np.ceil(self.groups * (wanted / (self.share - self.wanted) ** 2 / self.size - 1))))


def reservations(shares: Sequence[Share]) -> list[str]:
    """What has to stand beside each of several claims of a share, Holm-corrected together.

    Returns:
        "false: 1.2 %" where the claim may be made, else that it is not settled and what would settle it.

    >>> reservations([Share(1.0, 0.839, 20, 0.9), Share(1.0, 0.95, 73, 0.9)])
    ['not settled: false with a probability of 6.8 %; 15 more patients like these would settle it', 'false: 0.4 %']
    """
    found = []
    for share, false in zip(shares, adjusted([share.false for share in shares]), strict=True):
        if false <= ALLOWED:
            found.append(f"false: {_percent(false)}")
            continue
        more = share.needed(len(shares))
        known = f"{more:,d} more patients like these would settle it" if more else "more patients like these would not"
        chance = f"false with a probability of {_percent(false)}" if share.size else "there is no interval"
        found.append(f"not settled: {chance}; {known}")
    return found


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
