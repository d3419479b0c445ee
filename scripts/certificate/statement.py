"""One statement of a certificate: a property, what was measured, and what is claimed of all patients like these."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from scripts.measures.claims import Share

# A statement rests on at least so many pictures of so many patients or groups.
LEAST, LEAST_GROUPS = 20, 10
# Share of changed controls above which nothing is said of a property.
CONTROL = 0.10


@dataclass(frozen=True)
class Statement:
    """A property with its verdict and the sentence that says why.

    Attributes:
        property, of: what the sentence is about, and of which output.
        verdict: "holds", "in part" or "fails" where that may be claimed, else "withheld".
        sentence: what was measured; of `statements` also what follows, with the probability that it is false.
        value, ci95, n: share, its interval, pictures.
        measured: what the verdict is of these pictures alone; "" where they are too few or the control changes them.
        conclusion: what is claimed, in words.
        claimed: the shares that all have to lie where the conclusion says.
        false_probability: of the conclusion, corrected for all of the certificate.
        needed: further patients that would settle it; None: settled, or no number would.
    """

    property: str
    of: str
    verdict: str
    sentence: str
    value: float | None = None
    ci95: tuple[float | None, float | None] = (None, None)
    n: int = 0
    measured: str = ""
    conclusion: str = ""
    claimed: tuple[Share, ...] = ()
    false_probability: float | None = None
    needed: int | None = None

    def as_dict(self) -> dict[str, Any]:
        """For causal.json."""
        return {**asdict(self), "ci95": list(self.ci95), "claimed": [asdict(one) for one in self.claimed]}


def claim(
    name: str, of: str, verdict: str, sentence: str, value: float, n: int, conclusion: str, *claimed: Share,
    ci95: tuple[float | None, float | None] = (None, None),
) -> Statement:  # fmt: skip
    """A statement as measured, before it is looked at whether it may be made."""
    return Statement(name, of, verdict, sentence, value, ci95, n, verdict, conclusion, claimed)


def at_most(share: float, error: float | None, groups: int, most: float, stays: bool) -> Share:
    """The claim that at most so many change, or (not `stays`) that more do."""
    return Share(share, error, groups, most=most) if stays else Share(share, error, groups, least=most)


def percent(share: float) -> str:
    """A share in words."""
    return f"{100 * share:.0f} %"
