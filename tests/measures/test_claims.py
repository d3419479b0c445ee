"""Claims: tests by hand, what is withheld, and how often a false one is made."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import norm, t, ttest_rel

from benchmarks.intervals import said
from scripts.measures.claims import Difference, Share, adjusted, difference_of, reservations, sentence, verdict, words

RNG = np.random.default_rng(0)
REFERENCE = RNG.beta(6, 2, (1, 40))
OURS = REFERENCE + RNG.normal(0.03, 0.05, (1, 40))


def test_one_seed_and_a_patient_a_case_is_the_paired_t_test():
    measured = difference_of(OURS, REFERENCE, np.arange(40))
    expected = ttest_rel(OURS[0], REFERENCE[0], alternative="greater")
    assert measured.false_if_higher == pytest.approx(expected.pvalue)
    assert measured.false_if_lower == pytest.approx(1 - expected.pvalue)
    assert measured.ci95 == pytest.approx(list(ttest_rel(OURS[0], REFERENCE[0]).confidence_interval(0.95)))
    assert (measured.groups, measured.seeds) == (40, 1)


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
    # the standard error of three trainings 0.05 apart is added
    assert apart.error**2 == pytest.approx(alike.error**2 + 0.05**2 / 3)
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
    """Variance over the two patients 0.015625 (1 degree of freedom), over trainings 0.01125 / 2 (2 degrees)."""
    ours, reference = np.array([[0.5, 0.7], [0.6, 0.9]]), np.zeros((2, 2))
    measured = difference_of(ours, reference, ["a", "b"])
    variance, error = 0.015625 + 0.005625, 0.02125**0.5
    assert measured.difference == pytest.approx(0.675)
    assert measured.error == pytest.approx(error)
    half = (0.015625 * t.ppf(0.975, 1) + 0.005625 * t.ppf(0.975, 2)) / variance * error
    assert measured.ci95 == pytest.approx([0.675 - half, 0.675 + half])
    below = (0.015625 * t.cdf(-0.675 / error, 1) + 0.005625 * t.cdf(-0.675 / error, 2)) / variance
    assert measured.false_if_higher == pytest.approx(below)
    assert measured.false_if_lower == pytest.approx(1 - below)


def test_patients_needed_by_hand():
    """5 * (2.776 * 0.2 / 0.1)² - 5 = 149.2: of two claims each may be false with 2.5 %."""
    measured = Difference(0.1, [-0.1, 0.3], 0.2, 0.3, 0.7, 5, 1)
    assert verdict(measured, True, 0.6, 2) == {"claim": "not settled", "false_probability": 0.6, "needed": 150}
    assert verdict(replace(measured, difference=0.0), True, 1.0, 2)["needed"] is None
    assert verdict(replace(measured, seeds=3), True, 0.6, 2)["needed"] is None
    assert verdict(replace(measured, error=0.01), True, 0.06, 2)["needed"] == 1


@pytest.mark.parametrize(
    ("interval", "claim"), [([-0.09, 0.09], "equal"), ([-0.1, 0.09], "not settled"), ([-0.09, 0.1], "not settled")]
)
def test_equal_is_said_where_the_whole_interval_lies_inside_of_the_margin(interval, claim):
    measured = Difference(0.0, interval, 0.05, 0.5, 0.5, 5, 1)
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


def wilson(right, n):
    """Lower limit of the 95 % interval."""
    z, p = norm.isf(0.025), right / n
    middle, half = p + z * z / (2 * n), z * np.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return float((middle - half) / (1 + z * z / n))


@pytest.mark.parametrize(("right", "n"), [(20, 20), (95, 100), (47, 50)])
def test_a_share_is_smaller_in_truth_with_the_probability_of_the_score_test(right, n):
    share = Share(right / n, wilson(right, n), n, 0.9)
    assert share.size == pytest.approx(n)
    assert share.false == pytest.approx(norm.sf((right / n - 0.9) / np.sqrt(0.9 * 0.1 / n)))
    more = share.needed(1)
    settled, short = (norm.sf((right / n - 0.9) / np.sqrt(0.9 * 0.1 / (n + k))) for k in (more, more - 1))
    assert settled <= 0.05
    assert short > 0.05 or more == 1


def test_shares_are_claimed_where_they_hold_together_and_say_else_what_is_missing():
    alone, many = Share(1.0, wilson(35, 35), 35, 0.9), Share(1.0, wilson(400, 400), 400, 0.9)
    assert reservations([alone]) == ["false: 2.4 %"]
    both = reservations([alone] * 3)  # corrected for three
    assert all(text.startswith("not settled: false with a probability of 7.3 %; 6 more patients") for text in both)
    assert reservations([alone, many]) == ["false: 2.4 %", "false: < 0.1 %"]
    assert reservations([Share(0.9, 0.7, 20, 0.9)]) == [
        "not settled: false with a probability of 50.0 %; more patients like these would not"
    ]
    assert reservations([Share(1.0, None, 1, 0.9)]) == [
        "not settled: there is no interval; more patients like these would not"
    ]
    assert reservations([]) == []


def test_of_shares_that_are_not_so_large_hardly_any_is_claimed():
    rng = np.random.default_rng(0)
    for n in (20, 60, 200):
        rights = rng.binomial(n, 0.9, (400, 5))  # at the limit: any claim is false
        said = sum(
            any(text.startswith("false") for text in reservations([Share(r / n, wilson(r, n), n, 0.9) for r in row]))
            for row in rights
        )
        assert said / 400 <= 0.075, n
