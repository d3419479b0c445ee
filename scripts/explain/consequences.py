"""Which of the causes that hold are consequences of another: fix that one, and test them again."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from scripts.explain.effect_findings import LEAST_EFFECT, WITHOUT_TUMOR
from scripts.explain.findings import FOLLOWS, HOLDS, SHORTCUT, Finding

__all__ = ["with_consequences"]

AIR, ORDER, LEAK, LAYER = "air not zero", "order of transforms", "normalization leak", "unsuitable layer"
AVERAGING, DEAD, GRID, WRONG = "gradient averaging", "dead or saturated gradient", "coarse grid", "wrong class index"
# Told without the network, or by what is upstream of all others.
FIRST = ("inverted normalizer", "swapped colors", AIR, ORDER, SHORTCUT)


def with_consequences(
    findings: Sequence[Finding], again: Mapping[str, Callable[[Sequence[str]], Sequence[Finding]]]
) -> list[Finding]:
    """The findings, those that follow from another one marked as consequences.

    Args:
        findings: of all causes.
        again: cause: function that tests some causes once more with that cause fixed; what no longer holds then is a
            consequence of it.
    """
    results = {finding.cause: finding for finding in findings}

    def holds(cause: str) -> bool:
        return cause in results and results[cause].verdict == HOLDS

    def follow(cause: str, root: str, why: str) -> None:
        if holds(cause):
            reason = f"a consequence of {root!r}: {why}; {results[cause].reason}"
            results[cause] = replace(results[cause], verdict=FOLLOWS, reason=reason, follows=root)

    air_alone = holds(SHORTCUT) and results[SHORTCUT].signs == ("air",)
    if holds(ORDER):
        follow(AIR, ORDER, "the normalization moved the air away from 0")
        if air_alone:
            follow(SHORTCUT, ORDER, "the value of the air is that of the normalization")
    elif holds(AIR) and air_alone:
        effect = results[SHORTCUT].figures.get("share_of_the_verdict_that_follows_the_air")
        if effect is None or effect >= LEAST_EFFECT:
            follow(AIR, SHORTCUT, "it is the air that predicts the class")
        else:
            follow(SHORTCUT, AIR, "an air of 0 tells nothing, and the verdict does not follow it")
    for root in [cause for cause in again if holds(cause) or (cause in results and results[cause].verdict == FOLLOWS)]:
        source = results[root].follows or root
        others = [cause for cause in results if holds(cause) and cause not in (source, *FIRST)]
        for finding in again[root](others) if others else ():
            if finding.verdict != HOLDS:
                follow(finding.cause, source, "it does not hold once that is fixed")
    if holds(DEAD):
        of_gradient = (AVERAGING, LAYER, WRONG) if results[WRONG].signs == ("margin",) else (AVERAGING, LAYER)
        for cause in of_gradient:
            follow(cause, DEAD, "such a gradient is rounding")
    if holds(LAYER):
        for cause in (AVERAGING, GRID):
            follow(cause, LAYER, "it is about the map at that layer")
    for root in (WRONG, SHORTCUT):
        if holds(root):
            follow(WITHOUT_TUMOR, root, "what decides in place of the tumor is named there")
    return list(results.values())
