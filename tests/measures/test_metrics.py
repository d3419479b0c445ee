from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.special import log_softmax, softmax
from sklearn import metrics as sk

from scripts.measures.intervals import mean_interval, ratio_interval
from scripts.measures.metrics import (
    calibration_bins,
    classification_metrics,
    decide,
    diagnosis_metrics,
    expected_calibration_error,
    fit_temperature,
    lifted,
    negative_log_likelihood,
    one_class_metrics,
    temperature_at_bound,
    tumor_probability,
)
from scripts.measures.thresholds import choose_threshold

NO, GLIOMA, OTHER = [4.0, 0.0, 0.0], [0.0, 4.0, 0.0], [0.0, 0.0, 4.0]


def random_cases(n: int = 200, classes: int = 3, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    diagnosis = rng.integers(classes, size=n)
    return rng.normal(size=(n, classes)) + 1.5 * np.eye(classes)[diagnosis], diagnosis


def test_tumor_probability_by_hand():
    logits = np.log(np.array([[0.5, 0.3, 0.2], [0.9, 0.05, 0.05]]))
    np.testing.assert_allclose(tumor_probability(logits), [0.5, 0.1])
    # temperature 0.5 squares the odds: 0.25 against 0.09 + 0.04
    assert tumor_probability(logits, 0.5)[0] == pytest.approx(0.13 / 0.38)


def test_decision_by_hand():
    logits = np.log(np.array([[0.6, 0.3, 0.1], [0.6, 0.1, 0.3], [0.9, 0.02, 0.08]]))
    assert decide(logits, 0.5).tolist() == [0, 0, 0]
    assert decide(logits, 0.3).tolist() == [1, 2, 0]
    assert decide(logits, 0.0).tolist() == [1, 2, 2]
    assert decide(np.log([[0.5, 0.5]]), 0.5).tolist() == [1], "the threshold itself counts as tumor"


def test_figures_equal_those_of_scikit_learn():
    logits, diagnosis = random_cases()
    result = classification_metrics(logits, diagnosis, threshold=0.6, temperature=1.3)
    predicted = decide(logits, 0.6, 1.3)
    tumor, positive = diagnosis > 0, predicted > 0
    assert len(set(predicted)) == 3
    expected = {
        "n": 200,
        "accuracy": sk.accuracy_score(diagnosis, predicted),
        "balanced_accuracy": sk.balanced_accuracy_score(diagnosis, predicted),
        "sensitivity": sk.recall_score(tumor, positive),
        "specificity": sk.recall_score(~tumor, ~positive),
        "precision": sk.precision_score(tumor, positive),
        "f1": sk.f1_score(tumor, positive),
        "roc_auc": sk.roc_auc_score(tumor, 1 - softmax(logits / 1.3, axis=1)[:, 0]),
        "average_precision": sk.average_precision_score(tumor, 1 - softmax(logits / 1.3, axis=1)[:, 0]),
        "mcc": sk.matthews_corrcoef(diagnosis, predicted),
        "majority_accuracy": max(np.bincount(diagnosis)) / 200,
        "threshold": 0.6,
        "temperature": 1.3,
    }
    for name, value in expected.items():
        assert result[name] == pytest.approx(value), name
    assert result["confusion_matrix"] == sk.confusion_matrix(diagnosis, predicted).tolist()


def test_figures_by_hand():
    # Truth 0 0 1 1 1 2, predicted 0 1 1 1 2 2.
    logits = np.array([NO, GLIOMA, GLIOMA, GLIOMA, OTHER, OTHER])
    result = classification_metrics(logits, np.array([0, 0, 1, 1, 1, 2]), threshold=0.5)
    assert result["confusion_matrix"] == [[1, 1, 0], [0, 2, 1], [0, 0, 1]]
    assert result["accuracy"] == pytest.approx(4 / 6)
    assert result["balanced_accuracy"] == pytest.approx((1 / 2 + 2 / 3 + 1) / 3)
    assert result["sensitivity"] == 1.0
    assert result["specificity"] == 0.5
    assert result["precision"] == pytest.approx(4 / 5)
    assert result["f1"] == pytest.approx(2 * 0.8 / 1.8)
    assert result["majority_accuracy"] == pytest.approx(3 / 6)


def test_always_tumor_is_seen_through():
    diagnosis = np.array([1] * 87 + [0] * 13)
    result = classification_metrics(np.tile([0.0, 3.0], (100, 1)), diagnosis, threshold=0.5)
    assert result["accuracy"] == result["majority_accuracy"] == 0.87
    assert result["balanced_accuracy"] == 0.5
    assert (result["sensitivity"], result["specificity"]) == (1.0, 0.0)
    assert result["roc_auc"] == 0.5
    assert result["mcc"] == 0.0


def test_what_is_undefined_is_none():
    tumors = classification_metrics(np.array([GLIOMA, NO]), np.array([1, 1]), threshold=0.5)
    assert tumors["specificity"] is None
    assert tumors["roc_auc"] is None
    assert tumors["mcc"] is None
    assert tumors["balanced_accuracy"] == 0.5, "over the classes that are there"
    assert tumors["confusion_matrix"] == [[0, 0, 0], [1, 1, 0], [0, 0, 0]]
    healthy = classification_metrics(np.array([NO, NO]), np.array([0, 0]), threshold=0.5)
    assert (healthy["sensitivity"], healthy["precision"], healthy["f1"]) == (None, None, None)
    assert healthy["specificity"] == 1.0


def test_intervals_of_the_classification_are_by_group():
    logits, diagnosis = random_cases(120)
    alone = [str(i) for i in range(120)]
    result = classification_metrics(logits, diagnosis, 0.5, groups=alone)
    assert "accuracy_ci95" not in classification_metrics(logits, diagnosis, 0.5)
    for name in ("accuracy", "balanced_accuracy", "roc_auc"):
        low, high = result[f"{name}_ci95"]
        assert low < result[name] < high
    deviation = math.sqrt(result["accuracy"] * (1 - result["accuracy"]) / 120)
    low, high = result["accuracy_ci95"]
    assert high - low == pytest.approx(2 * 1.96 * deviation, rel=0.2)
    together = classification_metrics(logits, diagnosis, 0.5, groups=["one"] * 120)
    intervals = {name: value for name, value in together.items() if name.endswith("_ci95")}
    assert len(intervals) == 7
    assert set(map(tuple, intervals.values())) == {(None, None)}, (
        "one patient: there is no interval, not one of width 0"
    )


@pytest.mark.parametrize(
    ("lone", "without"),
    [
        (
            1,
            {"sensitivity", "f1", "roc_auc", "balanced_accuracy"},
        ),  # one patient with a tumor, whose cases are all of that kind
        (0, {"specificity", "roc_auc", "balanced_accuracy"}),
    ],
)
def test_a_figure_over_the_cases_of_one_patient_has_no_interval(lone, without):
    diagnosis = np.array([lone] * 4 + [1 - lone] * 8)
    # Of each kind half are called right; of those called tumor, both patients' and others' are some.
    logits = np.array([NO[:2], GLIOMA[:2]] * 6)
    result = classification_metrics(logits, diagnosis, 0.5, groups=["lone"] * 4 + [str(i // 2) for i in range(8)])
    none = {name.removesuffix("_ci95") for name, value in result.items() if value == [None, None]}
    assert none - {"f1"} == without - {"f1"}
    assert result["accuracy"] == 0.5
    assert result["accuracy_ci95"][0] is not None


def test_interval_of_a_perfect_auc_has_width_and_one_class_has_none():
    logits = np.array([[1.0, 0.0], [0.0, 1.0], [0.5, 0.0], [0.0, 0.5]])
    result = classification_metrics(logits, np.array([0, 1, 0, 1]), 0.5, groups=["a", "b", "c", "d"])
    low, high = result["roc_auc_ci95"]
    assert low < 0.6, "two of each kind"
    assert high == 1.0
    tumors = classification_metrics(logits, np.array([1, 1, 1, 1]), 0.5, groups=["a", "b", "c", "d"])
    assert tumors["roc_auc_ci95"] == [None, None]


def test_no_case_is_an_error():
    with pytest.raises(ValueError, match="no case with a diagnosis"):
        classification_metrics(np.empty((0, 2)), np.empty(0, dtype=int), threshold=0.5)


def test_threshold_separates_by_balanced_accuracy():
    # 0.3 | 0.7: midway between neighbors; of the equally good ones the nearest to 0.5.
    probability = np.array([0.1, 0.3, 0.7, 0.9])
    assert choose_threshold(probability, np.array([False, False, True, True])) == 0.5
    low = np.array([0.01, 0.02, 0.04, 0.05])
    assert choose_threshold(low, np.array([False, False, True, True])) == pytest.approx(0.03)
    # One tumor of ten cases: accuracy would be best at "never", balanced accuracy is not.
    probability = np.array([0.1] * 8 + [0.2, 0.2])
    tumor = np.array([False] * 8 + [False, True])
    assert choose_threshold(probability, tumor) == pytest.approx(0.15)


def test_threshold_is_the_best_of_all():
    rng = np.random.default_rng(3)
    tumor = rng.random(60) < 0.3
    probability = 1 / (1 + np.exp(-(rng.normal(size=60) + 1.0 * tumor - 1)))

    def balanced(threshold: float) -> float:
        return sk.balanced_accuracy_score(tumor, probability >= threshold)

    chosen = choose_threshold(probability, tumor)
    assert balanced(chosen) == pytest.approx(max(balanced(t) for t in np.linspace(0, 1, 401)))
    assert balanced(chosen) > balanced(0.5)


def test_threshold_is_above_the_probability_without_evidence():
    # Two tumors without any evidence, at 0.05: below it they would be called tumors, and with them all of that kind.
    probability = np.array([0.02, 0.05, 0.05, 0.3, 0.9])
    tumor = np.array([False, True, True, True, True])
    assert choose_threshold(probability, tumor) == pytest.approx(0.035)
    assert choose_threshold(probability, tumor, least=0.05) == pytest.approx(0.175)


@pytest.mark.parametrize(("highest", "threshold"), [(0.0505, 0.175), (0.053, 0.0515)])
def test_threshold_is_above_the_least_by_more_than_rounding(highest, threshold):
    """Midway to the probability of no evidence, 0.05: by a quarter of a thousandth that is the same, by 1.5 not."""
    probability, tumor = np.array([0.05, highest, 0.3]), np.array([False, True, True])
    if threshold == 0.175:
        probability[2] = 0.35 - highest
    assert choose_threshold(probability, tumor, least=0.05) == pytest.approx(threshold)
    assert choose_threshold(probability, tumor) == pytest.approx((0.05 + highest) / 2)


@pytest.mark.parametrize("tumor", [[True, True], [False, False]])
def test_threshold_without_both_classes_is_one_half(tumor):
    assert choose_threshold(np.array([0.1, 0.2]), np.array(tumor)) == 0.5


@pytest.mark.parametrize("scale", [0.3, 1.0, 4.0])
def test_temperature_recovers_a_known_scale(scale):
    rng = np.random.default_rng(1)
    logits = rng.normal(size=(20000, 3)) * 2
    p = softmax(logits, axis=1)
    diagnosis = (rng.random((20000, 1)) > p.cumsum(axis=1)).sum(axis=1)  # drawn from p: calibrated by construction
    temperature = fit_temperature(logits * scale, diagnosis)
    assert temperature == pytest.approx(scale, rel=0.04)


def test_temperature_lowers_the_likelihood_loss_and_keeps_the_ranking():
    logits, diagnosis = random_cases(400, seed=2)
    logits = logits * 5
    temperature = fit_temperature(logits, diagnosis)

    def loss(t: float) -> float:
        return -log_softmax(logits / t, axis=1)[np.arange(400), diagnosis].mean()

    assert loss(temperature) < loss(1.0)
    best = min(loss(t) for t in np.geomspace(0.05, 20, 400))
    assert loss(temperature) == pytest.approx(best, rel=1e-4)
    assert ((logits / temperature).argmax(axis=1) == logits.argmax(axis=1)).all()


def test_temperature_of_separable_validation_data_stays_one():
    # 30 of either class, each right by a margin of 4: the likelihood has its maximum at certainty, temperature 0.
    logits = np.array([[4.0, 0.0]] * 30 + [[0.0, 4.0]] * 30)
    diagnosis = np.repeat([0, 1], 30)
    assert fit_temperature(logits, diagnosis) == 1.0
    assert negative_log_likelihood(logits, diagnosis) == pytest.approx(math.log(1 + math.exp(-4)))
    diagnosis[0] = 1  # one of 60 wrong: by hand, sigmoid(4 / T) = 59 / 60
    assert fit_temperature(logits, diagnosis) == pytest.approx(4 / math.log(59), rel=1e-3)


@pytest.mark.parametrize("count", [4, 12, 60, 300])
@pytest.mark.parametrize("skill", [0.2, 1.5, 4.0])
@pytest.mark.parametrize("scale", [0.3, 1.0, 6.0])
def test_temperature_never_makes_its_own_validation_cases_less_likely(count, skill, scale):
    for seed in range(5):
        rng = np.random.default_rng([count, seed])
        diagnosis = rng.integers(3, size=count)
        logits = scale * (rng.normal(size=(count, 3)) + skill * np.eye(3)[diagnosis])
        temperature = fit_temperature(logits, diagnosis)
        fitted, raw = (negative_log_likelihood(logits, diagnosis, t) for t in (temperature, 1.0))
        assert fitted <= raw
        assert temperature == 1.0 or fitted < raw


@pytest.mark.parametrize("skill", [0.2, 1.5, 4.0])
@pytest.mark.parametrize("scale", [0.3, 1.0, 6.0])
def test_temperature_beside_a_fixed_part_is_the_most_likely_and_never_worse(skill, scale):
    fixed = np.array([0.0, -4.0, -4.0])
    rng = np.random.default_rng(5)
    diagnosis = rng.integers(3, size=80)
    logits = fixed + scale * (np.abs(rng.normal(size=(80, 3))) + (4 + skill) * np.eye(3)[diagnosis])

    def likelihood(t: float) -> float:  # the rest divided by the temperature, the fixed part as it is
        return negative_log_likelihood((logits - fixed) / t + fixed, diagnosis)

    temperature = fit_temperature(logits, diagnosis, fixed)
    moved = lifted(logits, temperature, fixed)
    assert negative_log_likelihood(moved, diagnosis, temperature) == pytest.approx(likelihood(temperature))
    assert likelihood(temperature) <= likelihood(1.0)
    assert likelihood(temperature) <= min(likelihood(t) for t in np.geomspace(0.05, 20, 60)) + 1e-6


def test_temperature_of_useless_logits_is_at_its_bound_and_said_to_be():
    temperature = fit_temperature(np.array([NO, GLIOMA] * 40), np.array([1, 0] * 40))
    assert 19 < temperature <= 20
    assert temperature_at_bound(temperature)
    assert temperature_at_bound(0.050000328570604324)
    logits, diagnosis = random_cases()
    assert classification_metrics(logits, diagnosis, 0.5, temperature=0.05)["temperature_at_bound"]
    assert not classification_metrics(logits, diagnosis, 0.5, temperature=1.0)["temperature_at_bound"]


def test_calibration_error_by_hand():
    # Bin 0.6-0.7: confidence 0.65, accuracy 1/2, gap 0.15; bin 0.9-1: confidence 0.95, accuracy 1, gap 0.05.
    confidence = np.array([0.65, 0.65, 0.92, 0.98])
    correct = np.array([True, False, True, True])
    assert expected_calibration_error(confidence, correct) == pytest.approx((2 * 0.15 + 2 * 0.05) / 4)
    assert expected_calibration_error(np.array([1.0, 1.0]), np.array([True, False])) == pytest.approx(0.5)
    assert expected_calibration_error(confidence, correct, bins=1) == pytest.approx(abs(0.8 - 0.75))


def test_calibration_error_in_the_figures_is_of_the_most_probable_class():
    logits = np.log(np.array([[0.8, 0.1, 0.1], [0.1, 0.8, 0.1]]))
    result = classification_metrics(logits, np.array([0, 2]), threshold=0.5)
    assert result["ece"] == pytest.approx(0.8 - 0.5)


def test_one_class_against_the_others_by_hand():
    # Truth 0 0 1 1 1 2, predicted 0 1 1 1 2 2.
    diagnosis, predicted = np.array([0, 0, 1, 1, 1, 2]), np.array([0, 1, 1, 1, 2, 2])
    score = np.array([0.1, 0.8, 0.9, 0.7, 0.3, 0.2])
    result = one_class_metrics(diagnosis, predicted, score, 1, list("abcdef"))
    assert (result["n"], result["predicted"]) == (3, 3)
    assert result["sensitivity"] == result["precision"] == pytest.approx(2 / 3)
    assert result["specificity"] == pytest.approx(2 / 3)
    assert result["roc_auc"] == pytest.approx(7 / 9)
    low, high = result["sensitivity_ci95"]
    assert low < 2 / 3 < high
    assert sum(b["n"] for b in result["reliability"]) == 6
    assert sum(b["n"] * b["observed"] for b in result["reliability"] if b["n"]) == pytest.approx(3)
    gaps = [b["n"] / 6 * abs(b["predicted"] - b["observed"]) for b in result["reliability"] if b["n"]]
    assert result["ece"] == pytest.approx(sum(gaps))


def test_reliability_bins_by_hand():
    bins = calibration_bins(np.array([0.62, 0.64, 0.92, 1.0]), np.array([True, False, True, True]))
    assert len(bins) == 10
    assert [b["n"] for b in bins] == [0, 0, 0, 0, 0, 0, 2, 0, 0, 2]
    assert (bins[6]["low"], bins[6]["high"], bins[6]["observed"]) == (0.6, 0.7, 0.5)
    assert bins[6]["predicted"] == pytest.approx(0.63)
    assert (bins[9]["predicted"], bins[9]["observed"]) == (pytest.approx(0.96), 1.0)
    assert bins[0]["predicted"] is None


def test_temperature_reaches_decision_and_calibration():
    logits = np.array([[0.0, 2], [0, 2], [0, 2], [2, 0]])
    block = classification_metrics(logits, np.array([1, 1, 0, 0]), threshold=0.8, temperature=2.0)
    said, raw = 1 / (1 + math.exp(-1)), 1 / (1 + math.exp(-2))
    assert raw > 0.8 > said, "decided differently with the temperature and without"
    assert block["confusion_matrix"] == [[2, 0], [2, 0]]
    assert block["ece"] == pytest.approx(0.75 - said)
    assert block["ece_uncalibrated"] == pytest.approx(raw - 0.75)
    assert block["nll"] == pytest.approx((-2 * math.log(said) - math.log(1 - said) - math.log(said)) / 4)
    assert block["nll_uncalibrated"] == pytest.approx((-2 * math.log(raw) - math.log(1 - raw) - math.log(raw)) / 4)
    # Where the temperature leaves a part as it is, another class can come first before it.
    others = np.array([[0.0, -1], [0, -1], [0, -1], [2, 0]])
    before = classification_metrics(logits, np.array([1, 1, 0, 0]), 0.8, 2.0, uncalibrated=others)
    none, sure = 1 / (1 + math.exp(-1)), 1 / (1 + math.exp(-2))
    likelihood = -2 * math.log(1 - none) - math.log(none) - math.log(sure)
    assert before["nll_uncalibrated"] == pytest.approx(likelihood / 4)
    assert before["ece_uncalibrated"] == pytest.approx((3 * (none - 1 / 3) + 1 - sure) / 4)
    assert (before["nll"], before["ece"]) == (block["nll"], block["ece"])
    assert block["ece_tumor"] == pytest.approx((3 * (said - 2 / 3) + (1 - said)) / 4)
    assert [b["n"] for b in block["reliability"] if b["n"]] == [4]
    assert block["reliability"][7]["predicted"] == pytest.approx(said)


def test_each_interval_holds_its_own_figure_and_is_narrow_with_many_patients():
    rng = np.random.default_rng(0)
    diagnosis = rng.integers(0, 3, 3000)
    predicted = np.where(rng.random(3000) < 0.8, diagnosis, rng.integers(0, 3, 3000))
    score = np.clip((predicted > 0) * 0.5 + rng.random(3000) / 2, 0, 1)
    figures = diagnosis_metrics(diagnosis, predicted, score, 3, [str(i) for i in range(3000)])
    assert figures["majority_balanced_accuracy"] == pytest.approx(1 / 3)
    for name in ("accuracy", "balanced_accuracy", "sensitivity", "specificity", "precision", "f1", "roc_auc"):
        low, high = figures[f"{name}_ci95"]
        assert low < figures[name] < high, name
        assert high - low < 0.06, name
    own = one_class_metrics(diagnosis, predicted, score, 2, [str(i) for i in range(3000)])
    assert (own["n"], own["predicted"]) == ((diagnosis == 2).sum(), (predicted == 2).sum())
    assert own["specificity"] == pytest.approx((predicted[diagnosis != 2] != 2).mean())


def test_f1_and_precision_weigh_the_cases_that_they_are_of():
    """Two patients: right in one, wrong in the other; the interval is that of the ratio over patients."""
    diagnosis, predicted = np.array([1, 1, 0, 0, 1]), np.array([1, 0, 0, 1, 1])
    groups = list("abcde")
    result = diagnosis_metrics(diagnosis, predicted, predicted.astype(float), 2, groups)
    right, wrong = np.array([2.0, 0, 0, 0, 2]), np.array([2.0, 1, 0, 1, 2])
    assert result["f1_ci95"] == pytest.approx(ratio_interval(right, wrong, groups))
    said = np.array([1.0, 0, 0, 1, 1])
    assert result["precision_ci95"] == pytest.approx(ratio_interval(said * (diagnosis == 1), said, groups))
    kind = np.array([0.0, 0, 1, 1, 0])
    assert result["specificity_ci95"] == pytest.approx(ratio_interval(kind * (predicted == 0), kind, groups))
    assert result["accuracy_ci95"] == pytest.approx(mean_interval(diagnosis == predicted, groups))
    assert result["prevalence"] == pytest.approx(3 / 5)
    assert result["majority_balanced_accuracy"] == 0.5
