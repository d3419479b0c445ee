"""Units are dealt to training, validation and test."""

from __future__ import annotations

from collections import Counter

import pytest

from scripts.data import datalists


def test_units_are_dealt_in_the_given_shares_per_stratum_whatever_their_order():
    strata = {f"u{k:03d}": "a" if k < 100 else "b" for k in range(140)}
    sides = datalists.split_clusters(strata, (0.6, 0.15, 0.25), seed=4)
    counts = Counter((strata[name], side) for name, side in sides.items())
    assert [counts["a", side] for side in datalists.SPLITS] == [60, 15, 25]
    assert [counts["b", side] for side in datalists.SPLITS] == [24, 6, 10]
    assert datalists.split_clusters(dict(reversed(strata.items())), (0.6, 0.15, 0.25), seed=4) == sides
    assert datalists.split_clusters(strata, (0.6, 0.15, 0.25), seed=5) != sides


def test_large_units_do_not_all_land_in_training():
    strata = {f"u{k}": "a" for k in range(120)}
    sizes = {f"u{k}": 5 if k < 20 else 1 for k in range(120)}
    sides = datalists.split_clusters(strata, (0.6, 0.15, 0.25), sizes=sizes)
    large = Counter(sides[f"u{k}"] for k in range(20))
    assert [large[side] for side in datalists.SPLITS] == [12, 3, 5]


def test_three_units_reach_all_three_splits():
    assert sorted(datalists.split_clusters(dict.fromkeys("abc", "s")).values()) == sorted(datalists.SPLITS)


@pytest.mark.parametrize("fractions", [(0.5, 0.5), (0.5, 0.5, 0.5), (1.2, -0.2, 0.0)])
def test_fractions_must_be_three_that_sum_to_one(fractions):
    with pytest.raises(ValueError, match="three numbers from 0 that sum to 1"):
        datalists.split_clusters({"a": "s"}, fractions)


def test_a_part_of_no_share_stays_empty():
    sides = datalists.split_clusters({f"u{k}": "ab"[k % 2] for k in range(40)}, (0.75, 0, 0.25))
    assert Counter(sides.values()) == {"training": 30, "test": 10}
    items = [{"image": f"{k}.png", "diagnosis": 0, "patient": f"p{k}", "source": "s"} for k in range(2)]
    foreign = datalists.assemble("foreign", ["no_tumor", "tumor"], items, (0, 0, 1))
    assert [len(foreign[split]) for split in datalists.SPLITS] == [0, 0, 2]
    for fractions in ((0.5, 0.5), (0.5, 0.5, 0.0, 0.0)):
        with pytest.raises(ValueError, match="three numbers from 0"):
            datalists.assemble("foreign", ["no_tumor", "tumor"], items, fractions)


def items(*kinds: int, **more) -> list[dict]:
    return [{"image": f"{k}.png", "diagnosis": kind, "patient": f"p{k}", **more} for k, kind in enumerate(kinds)]


def test_shares_are_those_of_items_and_ties_go_to_the_first_part():
    sides = datalists.split_clusters({"big": "s", "a": "s", "b": "s"}, (0.5, 0.25, 0.25), sizes={"big": 9})
    assert sides["big"] == "training"
    assert sorted(sides[name] for name in "ab") == ["test", "validation"]
    assert datalists.split_clusters({"a": "s"}, (0.5, 0.25, 0.25)) == {"a": "training"}
    assert datalists.split_clusters({"a": "s"}, (0, 0.25, 0.75)) == {"a": "validation"}
    assert datalists.split_clusters({f"u{k}": "s" for k in range(20)}) == datalists.split_clusters(
        {f"u{k}": "s" for k in range(20)}, (0.60, 0.15, 0.25), seed=0
    )
    third = 1 / 3
    assert len(datalists.split_clusters({"a": "s"}, (third, third, third))) == 1, "sums to 1 but for rounding"


def test_a_patients_items_stay_together_and_strata_are_the_most_frequent_class():
    every = items(*[0] * 40, *[1] * 40)
    every += [{"image": f"again{k}.png", "diagnosis": 1, "patient": f"p{k}"} for k in range(40)]
    datalist = datalists.assemble("x", ["no_tumor", "tumor"], every, seed=1)
    where = {}
    for split in datalists.SPLITS:
        for item in datalist[split]:
            assert where.setdefault(item["patient"], split) == split
    counts = Counter((where[f"p{k}"], k < 40) for k in range(80))
    # Of two classes as often in one patient the lower says the stratum: 40 patients each.
    assert [counts["training", kind] for kind in (True, False)] == [24, 24]
    assert sum(len(datalist[split]) for split in datalists.SPLITS) == 120
    assert (datalist["name"], datalist["modality"]) == ("x", {"0": "FLAIR"})
    assert datalist["classes"] == {"0": "no_tumor", "1": "tumor"}


def test_small_strata_are_dealt_as_one_and_too_few_patients_are_said(caplog):
    strata = {f"patient p{k}": str(k) for k in range(4)}
    datalist = datalists.assemble("x", ["no_tumor", "tumor"], items(0, 0, 1, 1), strata=strata)
    assert all(datalist[split] for split in datalists.SPLITS)
    assert "too few" not in caplog.text
    two = datalists.assemble("x", ["no_tumor", "tumor"], items(0, 1), modality=["T1", "T2"], regions={"a": [1]})
    assert [len(two[split]) for split in datalists.SPLITS] == [1, 1, 0]
    assert "2 items of 2 patients or groups are too few to split: nothing in test" in caplog.text
    assert two["modality"] == {"0": "T1", "1": "T2"}
    assert two["regions"] == {"a": [1]}
    assert "regions" not in datalist
