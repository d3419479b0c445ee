"""Units are dealt to training, validation and test."""

from __future__ import annotations

from collections import Counter

import pytest

from scripts.data import datalists


def test_units_are_dealt_in_the_given_shares_per_stratum_whatever_their_order():
    strata = {f"u{k:03d}": "a" if k < 100 else "b" for k in range(140)}
    sides = datalists.split_units(strata, (0.6, 0.15, 0.25), seed=4)
    counts = Counter((strata[name], side) for name, side in sides.items())
    assert [counts["a", side] for side in datalists.SPLITS] == [60, 15, 25]
    assert [counts["b", side] for side in datalists.SPLITS] == [24, 6, 10]
    assert datalists.split_units(dict(reversed(strata.items())), (0.6, 0.15, 0.25), seed=4) == sides
    assert datalists.split_units(strata, (0.6, 0.15, 0.25), seed=5) != sides


def test_large_units_do_not_all_land_in_training():
    strata = {f"u{k}": "a" for k in range(120)}
    sizes = {f"u{k}": 5 if k < 20 else 1 for k in range(120)}
    sides = datalists.split_units(strata, (0.6, 0.15, 0.25), sizes=sizes)
    large = Counter(sides[f"u{k}"] for k in range(20))
    assert [large[side] for side in datalists.SPLITS] == [12, 3, 5]


def test_three_units_reach_all_three_splits():
    assert sorted(datalists.split_units(dict.fromkeys("abc", "s")).values()) == sorted(datalists.SPLITS)


@pytest.mark.parametrize("fractions", [(0.5, 0.5), (0.5, 0.5, 0.5), (1.0, 0.0, 0.0)])
def test_fractions_must_be_three_that_sum_to_one(fractions):
    with pytest.raises(ValueError, match="three positive numbers that sum to 1"):
        datalists.split_units({"a": "s"}, fractions)
