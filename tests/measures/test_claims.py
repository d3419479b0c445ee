"""Claims: tests by hand, what is withheld, and how often a false one is made."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from scipy.stats import binomtest, t, ttest_1samp

from benchmarks.intervals import said
from scripts.measures.claims import (
    ALLOWED,
    MOST,
    Difference,
    Share,
    _further,
    adjusted,
    difference_of,
    reservation,
    sentence,
    settled,
    verdict,
    verdicts,
    words,
)
from scripts.measures.intervals import standard_error

RNG = np.random.default_rng(0)
REFERENCE = RNG.beta(6, 2, (1, 40))
OURS = REFERENCE + RNG.normal(0.03, 0.05, (1, 40))


def test_one_seed_and_a_patient_a_case_is_the_paired_t_test_with_one_more_against_it():
    measured = difference_of(OURS, REFERENCE, np.arange(40))
    change = (OURS - REFERENCE)[0]
    for furthest, way, false in (
        (change.min(), "greater", measured.false_if_higher),
        (change.max(), "less", measured.false_if_lower),
    ):
        with_one_more = np.append(change, furthest)
        statistic = ttest_1samp(with_one_more, 0).statistic
        assert false == pytest.approx(t.cdf(-statistic if way == "greater" else statistic, 39)), (
            "39: the one is not seen"
        )
        half = t.ppf(0.975, 39) * with_one_more.std(ddof=1) / 41**0.5
        sign, end = (-1, measured.ci95[0]) if way == "greater" else (1, measured.ci95[1])
        assert end == pytest.approx(with_one_more.mean() + sign * half)
    assert (measured.groups, measured.seeds) == (40, 1)
    assert measured.error == pytest.approx(change.std(ddof=1) / 40**0.5)


def test_slices_of_a_patient_are_one_draw():
    once = difference_of(OURS, REFERENCE, np.arange(40))
    copies = difference_of(np.repeat(OURS, 5, axis=1), np.repeat(REFERENCE, 5, axis=1), np.repeat(np.arange(40), 5))
    assert copies.ci95 == pytest.approx(once.ci95)
    assert copies.groups == 40


def test_seeds_that_differ_widen_the_interval():
    alike = difference_of(np.repeat(OURS, 3, axis=0), np.repeat(REFERENCE, 3, axis=0), np.arange(40))
    assert alike.ci95 == pytest.approx(difference_of(OURS, REFERENCE, np.arange(40)).ci95)
    moved = np.array([[-0.05], [0.0], [0.05]])
    apart = difference_of(np.repeat(OURS, 3, axis=0) + moved, np.repeat(REFERENCE, 3, axis=0), np.arange(40))
    assert apart.difference == pytest.approx(alike.difference)
    assert apart.error == pytest.approx(alike.error), "over patients"
    assert apart.false_if_higher > 5 * alike.false_if_higher


@pytest.mark.parametrize(
    ("ours", "groups"), [(REFERENCE + 0.125, np.arange(40)), (OURS, np.zeros(40))], ids=["all alike", "one patient"]
)
def test_patients_that_are_all_changed_alike_or_one_patient_say_nothing(ours, groups):
    measured = difference_of(ours, REFERENCE, groups)
    assert (measured.false_if_higher, measured.false_if_lower) == (1.0, 1.0)
    assert measured.ci95 == [None, None]
    assert verdict(measured, True, 1.0, 1) == {"claim": "not settled", "false_probability": 1.0, "needed": None}


def test_verdicts():
    measured = difference_of(OURS, REFERENCE, np.arange(40))
    assert verdict(measured, True, 0.05, 3) == {"claim": "better", "false_probability": 0.05, "needed": None}
    assert verdict(measured, False, 0.05, 3)["claim"] == "worse"
    withheld = verdict(measured, True, 0.06, 3)
    assert withheld["claim"] == "not settled"
    high = measured.ci95[1]
    assert verdict(measured, True, 0.2, 1, margin=high + 0.001)["claim"] == "equal"
    assert verdict(measured, True, 0.2, 1, margin=high - 0.001)["claim"] == "not settled"


def test_more_patients_of_the_number_said_would_settle_it():
    few = np.arange(5)
    measured = difference_of(OURS[:, :5], REFERENCE[:, :5], few)
    false = measured.false_if_higher
    assert false > 0.05, "five patients do not settle it"
    needed = verdict(measured, True, false, 1)["needed"]
    times = -(-(5 + needed) // 5)
    more = difference_of(np.tile(OURS[:, :5], times), np.tile(REFERENCE[:, :5], times), np.arange(5 * times))
    assert more.false_if_higher <= 0.05


def test_holm_by_hand():
    assert adjusted([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert adjusted([0.5, 0.6]) == [1.0, 1.0]
    assert adjusted([]) == []


def test_arrays_of_other_shapes_are_refused():
    with pytest.raises(ValueError, match=r"seeds, cases.*\(1, 40\), \(1, 39\) and 40"):
        difference_of(OURS, REFERENCE[:, 1:], np.arange(40))


# Of 400 repeats a rate of 0.05 is found below 0.075, and the power of the larger gain well above it.
@pytest.mark.parametrize("seeds", [1, 3])
def test_better_is_rarely_said_where_there_is_no_difference_and_mostly_where_there_is(seeds):
    rng = np.random.default_rng(0)
    assert said(50, 0.0, 400, rng, measures=3, seeds=seeds) <= 0.075
    assert said(50, 0.05, 50, rng, measures=3, seeds=seeds) >= 0.9


def test_two_seeds_by_hand():
    """With a patient at 0.55 the mean is 0.6333 and its variance 0.0069, over trainings 0.01125 / 2."""
    ours, reference = np.array([[0.5, 0.7], [0.6, 0.9]]), np.zeros((2, 2))
    measured = difference_of(ours, reference, ["a", "b"])
    assert measured.difference == pytest.approx(0.675)
    assert measured.error == pytest.approx(0.125)
    assert measured.furthest == pytest.approx((0.125, 0.125))
    for sign, found, false in (
        (-1, measured.ci95[0], measured.false_if_higher),
        (1, measured.ci95[1], measured.false_if_lower),
    ):
        patients = np.array([0.55, 0.8, 0.675 + sign * 0.125])
        parts = ((patients.var(ddof=1) / 3, 1), (0.005625, 2))
        variance = sum(part for part, _ in parts)
        half = sum(part * t.ppf(0.975, freed) for part, freed in parts) / variance * variance**0.5
        assert found == pytest.approx(patients.mean() + sign * half)
        below = sum(part * t.cdf(sign * patients.mean() / variance**0.5, freed) for part, freed in parts) / variance
        assert false == pytest.approx(below)


def test_patients_needed_by_hand():
    """Of so many patients, one more 0.3 below the mean, each of two claims is false with 2.5 %."""
    measured = Difference(0.1, [-0.1, 0.3], 0.2, (0.3, 0.3), 0.3, 0.7, 5, 1)
    needed = verdict(measured, True, 0.6, 2)["needed"]

    def false(patients):
        more = 0.2**2 * 5 * (patients - 1) + 0.3**2 * patients / (patients + 1)
        return t.cdf(-(0.1 - 0.3 / (patients + 1)) / (more / patients / (patients + 1)) ** 0.5, patients - 1)

    assert false(5 + needed) <= 0.025 < false(4 + needed)
    assert verdict(replace(measured, difference=0.0), True, 1.0, 2)["needed"] is None
    assert verdict(replace(measured, seeds=3), True, 0.6, 2)["needed"] is None
    assert verdict(replace(measured, error=0.01, furthest=(0.01, 0.01)), True, 0.06, 2)["needed"] == 1


@pytest.mark.parametrize(
    ("interval", "claim"), [([-0.09, 0.09], "equal"), ([-0.1, 0.09], "not settled"), ([-0.09, 0.1], "not settled")]
)
def test_equal_is_said_where_the_whole_interval_lies_inside_of_the_margin(interval, claim):
    measured = Difference(0.0, interval, 0.05, (0.1, 0.1), 0.5, 0.5, 5, 1)
    assert verdict(measured, True, 0.5, 1, margin=0.1)["claim"] == claim
    assert verdict(measured, True, 0.5, 1)["claim"] == "not settled"


@pytest.mark.parametrize(
    ("claim", "false", "needed", "short", "said"),
    [
        ("better", 0.012, None, "better (false: 1.2 %)",
         "Dice of A is better than that of B; the probability that this is false is 1.2 %."),
        ("worse", 0.0001, None, "worse (false: < 0.1 %)",
         "Dice of A is worse than that of B; the probability that this is false is < 0.1 %."),
        ("equal", 0.4, None, "equal", "Dice of A and B is equal within 0.02."),
        ("not settled", 0.4, 1200, "not settled (1,200 more patients)",
         "Dice: which of A and B is better is not settled; 1,200 more patients like these would settle it."),
        ("not settled", 1.0, None, "not settled",
         "Dice: which of A and B is better is not settled; these patients do not tell."),
    ],
)  # fmt: skip
def test_claims_in_words(claim, false, needed, short, said):
    entry = {"claim": claim, "false_probability": false, "needed": needed, "margin": 0.02}
    assert words(entry) == short
    assert sentence("Dice", "A", "B", entry) == said


def of_rate(right, n, **claimed):
    return Share(right / n, float(np.sqrt(right / n * (1 - right / n) / (n - 1))), n, **claimed)


@pytest.mark.parametrize(("right", "n"), [(20, 20), (95, 100), (47, 50)])
def test_a_share_is_smaller_in_truth_with_the_probability_of_the_exact_test(right, n):
    share = of_rate(right, n, least=0.9)
    assert share.false == pytest.approx(binomtest(right, n, 0.9, alternative="greater").pvalue)
    below = of_rate(n - right, n, most=0.1)
    assert below.false == pytest.approx(share.false), "the rest is at most what is left"
    found = settled([[share]])[0]
    assert share.false_of(n + found["needed"]) <= 0.05 < share.false_of(n + found["needed"] - 1)


def test_a_share_between_two_limits_is_false_where_either_is_passed():
    share = of_rate(70, 100, least=0.5, most=0.9)
    low, high = (binomtest(70, 100, p, alternative=way).pvalue for p, way in ((0.5, "greater"), (0.9, "less")))
    assert share.false == pytest.approx(max(low, high))


def test_slices_of_a_patient_settle_no_more_than_the_patient():
    values, patients = np.repeat([1.0, 0.0, 1.0, 1.0], 5), np.repeat(list("abcd"), 5)
    clustered, once = (standard_error(v, g) for v, g in ((values, patients), (values[::5], patients[::5])))
    assert Share(0.75, clustered, 4, 0.5).false == pytest.approx(Share(0.75, once, 4, 0.5).false)


def test_claims_of_shares_hold_together_or_say_what_is_missing():
    alone, many = of_rate(35, 35, least=0.9), of_rate(400, 400, least=0.9)
    assert reservation(settled([[alone]])[0]) == "false: 2.5 %"
    both = [reservation(found) for found in settled([[alone]] * 3)]  # corrected for three
    assert both == ["not settled: false with a probability of 7.5 %; 4 more patients like these would settle it"] * 3
    assert [reservation(found) for found in settled([[alone], [many]])] == ["false: 2.5 %", "false: < 0.1 %"]
    assert settled([[alone, many]])[0]["false_probability"] == pytest.approx(alone.false), "both have to hold"
    assert reservation(settled([[of_rate(18, 20, least=0.9)]])[0]).endswith("more patients like these would not")
    unknown = settled([[Share(1.0, None, 1, 0.9)]])[0]
    assert unknown == {"settled": False, "false_probability": 1.0, "needed": None}
    assert settled([]) == []


def test_of_shares_that_are_not_so_large_hardly_any_is_claimed():
    rng = np.random.default_rng(0)
    for n in (20, 60, 200):
        rights = rng.binomial(n, 0.899, (400, 5))  # below the limit: any claim is false
        said = sum(
            any(found["settled"] for found in settled([[of_rate(r, n, least=0.9)] for r in row])) for row in rights
        )
        assert said / 400 <= 0.075, n


def test_the_further_patients_are_searched_up_to_the_limit():
    for needed in (1, 2, 3, 1000, 65_537, 70_000, MOST):
        assert _further(lambda n, needed=needed: 0.0 if n >= 10 + needed else 1.0, 10, 0.05) == needed
    assert _further(lambda n: 0.0 if n > 10 + MOST else 1.0, 10, 0.05) is None


def test_what_is_just_allowed_is_claimed():
    """The boundary itself counts: of a difference, of shares, and of the patients looked for."""
    measured = Difference(0.1, [-0.1, 0.3], 0.2, (0.3, 0.3), 0.3, 0.7, 5, 1)
    assert verdict(measured, True, ALLOWED, 1)["claim"] == "better"
    assert verdict(measured, True, np.nextafter(ALLOWED, 1), 1)["claim"] == "not settled"
    for false, held in ((ALLOWED, True), (np.nextafter(ALLOWED, 1), False)):
        share = SimpleNamespace(false=false, groups=5, false_of=lambda patients: 0.0)
        (found,) = settled([[share]])
        assert (found["settled"], found["needed"]) == (held, None if held else 1)
    for needed in (1, 2, 5, 40):
        assert _further(lambda n, needed=needed: 0.05 if n >= 10 + needed else 0.06, 10, 0.05) == needed


def test_a_difference_below_zero_needs_as_many_patients_as_its_mirror_image():
    above = Difference(0.1, [-0.1, 0.3], 0.2, (0.3, 0.5), 0.3, 0.7, 5, 1)
    below = replace(above, difference=-0.1, furthest=(0.5, 0.3), false_if_higher=0.7, false_if_lower=0.3)
    assert below.false_of(9) == pytest.approx(above.false_of(9))
    assert replace(above, furthest=(0.6, 0.5)).false_of(9) > above.false_of(9), "who speaks against it counts"
    assert replace(above, furthest=(0.3, 9.0)).false_of(9) == above.false_of(9)
    assert verdict(below, False, 0.6, 1) == {**verdict(above, True, 0.6, 1), "false_probability": 0.6}


def test_of_seeds_that_differ_something_is_known_also_where_patients_are_alike():
    reference = np.zeros((2, 6))
    measured = difference_of(reference + np.array([[0.1], [0.2]]), reference, np.arange(6))
    assert measured.error == pytest.approx(0, abs=1e-12)
    half = t.ppf(0.975, 2) * (0.005 / 2) ** 0.5
    assert measured.ci95 == pytest.approx([0.15 - half, 0.15 + half])
    assert measured.false_if_higher == pytest.approx(t.cdf(-0.15 / 0.0025**0.5, 2))


def test_furthest_patients_are_those_below_and_above_the_mean():
    change = np.array([[0.1, 0.2, 0.6]])
    measured = difference_of(change, np.zeros((1, 3)), ["a", "b", "c"])
    assert measured.furthest == pytest.approx((0.2, 0.3))
    # Two cases of one patient are as far as both together, by their share of the cases.
    clustered = difference_of(change, np.zeros((1, 3)), ["a", "b", "b"])
    assert clustered.furthest == pytest.approx((0.2 * 2 / 3, 0.2 * 2 / 3))
    assert clustered.groups == 2
    with pytest.raises(ValueError, match=r"\(3,\), \(3,\) and 3"):
        difference_of(change[0], change[0], ["a", "b", "c"])
    with pytest.raises(ValueError, match=r"\(1, 3\), \(1, 3\) and 2"):
        difference_of(change, change, ["a", "b"])


def test_the_claims_of_a_table_are_corrected_together_each_on_the_side_that_was_measured():
    base = Difference(0.1, [0.05, 0.15], 0.02, (0.1, 0.1), 0.01, 0.99, 9, 1)
    worse = replace(base, difference=-0.1, ci95=[-0.15, -0.05], false_if_higher=0.98, false_if_lower=0.02)
    unsure = replace(base, ci95=[-0.01, 0.02], false_if_higher=0.4)
    found = verdicts([base, worse, unsure, unsure], [True, True, False, True], [None, None, 0.03, None])
    assert [row["claim"] for row in found] == ["better", "not settled", "equal", "not settled"]
    assert [row["false_probability"] for row in found] == pytest.approx([0.04, 0.06, 0.8, 0.8])
    assert [row["claim"] for row in verdicts([base, worse], [False, False], [None, None])] == ["worse", "better"]
    assert verdicts([replace(base, difference=0.0)], [True], [None])[0]["false_probability"] == 0.99
    with pytest.raises(ValueError, match="zip"):
        verdicts([base], [True], [])


def test_two_groups_are_the_fewest_of_which_anything_is_claimed():
    assert Share(1.0, 0.0, 1, 0.5).false == 1.0
    assert Share(1.0, 0.0, 2, 0.5).false == pytest.approx(0.25)
    assert Share(1.0, None, 9, 0.5).false == 1.0
    lone, pair = Share(1.0, 0.0, 1, 0.5), Share(1.0, 0.0, 2, 0.5)
    assert settled([[pair]])[0]["needed"] == 3  # 0.5 ** 5 is below 0.05
    assert settled([[pair, lone]])[0]["needed"] is None, "nothing is known of one of them"


def test_a_probability_of_a_twentieth_of_a_percent_is_printed():
    found = [reservation({"settled": True, "false_probability": p}) for p in (0.00049, 0.0005, 0.0014)]
    assert found == ["false: < 0.1 %", "false: 0.1 %", "false: 0.1 %"]
