"""Figures of merit over cases, from scikit-learn and MONAI, with the baselines and intervals that they need."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from monai.metrics.calibration import calibration_binning
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax, softmax
from sklearn import metrics as sk

from scripts.measures.intervals import auc, auc_interval, fewest_groups, mean_interval, ratio_interval, recall_values

__all__ = [
    "balanced_accuracy",
    "calibration_bins",
    "classification_metrics",
    "decide",
    "diagnosis_metrics",
    "expected_calibration_error",
    "fit_temperature",
    "negative_log_likelihood",
    "one_class_metrics",
    "temperature_at_bound",
    "tumor_probability",
]

ECE_BINS = 10
TEMPERATURES = (0.05, 20.0)


def tumor_probability(logits: np.ndarray, temperature: float = 1.0) -> np.ndarray:
    """Probability of any tumor, (N,), from class logits (N, K) with class 0 "no tumor"."""
    return 1.0 - softmax(np.asarray(logits, dtype=np.float64) / temperature, axis=1)[:, 0]


def decide(logits: np.ndarray, threshold: float, temperature: float = 1.0) -> np.ndarray:
    """Class (N,): 0 below the threshold of tumor probability, else the most probable tumor class."""
    tumor = tumor_probability(logits, temperature) >= threshold
    return np.where(tumor, 1 + np.argmax(logits[:, 1:], axis=1), 0)


def lifted(logits: np.ndarray, temperature: float, fixed_part: np.ndarray | None = None) -> np.ndarray:
    """Logits (N, K) which, once divided by the temperature, have the fixed part (K,) of the given ones as it was."""
    return logits if fixed_part is None else logits + (temperature - 1.0) * fixed_part


def fit_temperature(logits: np.ndarray, diagnosis: np.ndarray, fixed_part: np.ndarray | None = None) -> float:
    """Temperature in [0.05, 20] that minimizes the negative log-likelihood of the validation cases.

    It is 1, the logits as they are, where no temperature is better on these cases, and where they say nothing about it:
    cases that are all classified right are most likely under certainty, so the fit would run to its lower bound and
    make every probability 0 or 1 (beside a fixed part they are not).

    Args:
        logits: (N, K), before any temperature.
        diagnosis: (N,) int in [0, K).
        fixed_part: (K,), which the temperature does not divide; None: it divides all.

    Source: Guo et al., "On Calibration of Modern Neural Networks", ICML 2017, section 4.2.
    """
    if fixed_part is None and bool((logits.argmax(axis=1) == diagnosis).all()):
        return 1.0

    def likelihood(t: float) -> float:
        return negative_log_likelihood(lifted(logits, t, fixed_part), diagnosis, t)

    bounds = tuple(np.log(TEMPERATURES))
    fitted = minimize_scalar(lambda log_t: likelihood(float(np.exp(log_t))), bounds=bounds, method="bounded")
    temperature = float(np.exp(fitted.x))
    return temperature if likelihood(temperature) < likelihood(1.0) else 1.0


def negative_log_likelihood(logits: np.ndarray, diagnosis: np.ndarray, temperature: float = 1.0) -> float:
    """Mean over cases of -log of the probability of the true class, from logits (N, K) and classes (N,)."""
    log_p = log_softmax(np.asarray(logits, dtype=np.float64) / temperature, axis=1)
    return float(-log_p[np.arange(len(diagnosis)), diagnosis].mean())


def temperature_at_bound(temperature: float) -> bool:
    """Whether a fitted temperature stands at an end of its range, so that it says nothing about calibration."""
    return bool(temperature <= TEMPERATURES[0] * 1.01 or temperature >= TEMPERATURES[1] / 1.01)


def calibration_bins(probability: np.ndarray, happened: np.ndarray, bins: int = ECE_BINS) -> list[dict[str, Any]]:
    """The reliability curve: what was said and what happened, in bins of equal width, from MONAI.

    Args:
        probability: (N,) in [0, 1].
        happened: (N,) bool, what the probability is of.
        bins: number of bins.

    Returns:
        one entry a bin: {low, high, n, predicted, observed}, the means None where the bin is empty.
    """
    said = torch.as_tensor(np.asarray(probability, dtype=np.float64))[None, None]
    means, rates, counts = calibration_binning(said, torch.as_tensor(np.asarray(happened, float))[None, None], bins)
    return [
        {
            "low": i / bins,
            "high": (i + 1) / bins,
            "n": int(counts[0, 0, i]),
            "predicted": float(means[0, 0, i]) if counts[0, 0, i] else None,
            "observed": float(rates[0, 0, i]) if counts[0, 0, i] else None,
        }
        for i in range(bins)
    ]


def expected_calibration_error(confidence: np.ndarray, correct: np.ndarray, bins: int = ECE_BINS) -> float:
    """Mean gap of confidence and accuracy over equal-width bins, weighted by their size.

    Source: Guo et al., ICML 2017, eq. 5.
    """
    filled = [b for b in calibration_bins(confidence, correct, bins) if b["n"]]
    return float(sum(b["n"] * abs(b["predicted"] - b["observed"]) for b in filled) / len(confidence))


def balanced_accuracy(diagnosis: np.ndarray, predicted: np.ndarray) -> float:
    """Mean recall over the classes that are there."""
    return float(np.mean([(predicted[diagnosis == c] == c).mean() for c in np.unique(diagnosis)]))


def diagnosis_metrics(
    diagnosis: np.ndarray,
    predicted: np.ndarray,
    probability: np.ndarray,
    classes: int,
    groups: Sequence[str] | None = None,
) -> dict[str, Any]:
    """Figures of decided cases.

    Accuracy, balanced accuracy, MCC, confusion matrix and the majority baseline are over all classes; sensitivity,
    specificity, precision, F1, ROC-AUC and average precision are of tumor against no tumor. What is undefined (an
    absent class) is None.

    Args:
        diagnosis, predicted: (N,) int in [0, K).
        probability: (N,) of any tumor, or another score that rises with it.
        classes: K.
        groups: (N,) patients or near-duplicate groups; with them come 95 % intervals, ``<name>_ci95``; of a
            figure over the cases of one patient there is none.

    Raises:
        ValueError: when there is no case.
    """
    if len(diagnosis) == 0:
        raise ValueError("no case with a diagnosis: classification can not be evaluated")
    tumor, positive = diagnosis > 0, predicted > 0
    both = bool(0 < tumor.sum() < len(tumor))
    result: dict[str, Any] = {
        "n": len(diagnosis),
        "accuracy": float(sk.accuracy_score(diagnosis, predicted)),
        "balanced_accuracy": balanced_accuracy(diagnosis, predicted),
        "sensitivity": float(sk.recall_score(tumor, positive)) if tumor.any() else None,
        "specificity": float(sk.recall_score(~tumor, ~positive)) if (~tumor).any() else None,
        "precision": float(sk.precision_score(tumor, positive)) if positive.any() else None,
        "f1": float(sk.f1_score(tumor, positive)) if tumor.any() else None,
        "roc_auc": auc(tumor, probability) if both else None,
        "average_precision": float(sk.average_precision_score(tumor, probability)) if both else None,
        "mcc": float(sk.matthews_corrcoef(diagnosis, predicted)) if len(np.unique(diagnosis)) > 1 else None,
        "majority_accuracy": float(np.bincount(diagnosis).max() / len(diagnosis)),
        "majority_balanced_accuracy": 1 / len(np.unique(diagnosis)),
        "prevalence": float(tumor.mean()),
        "confusion_matrix": sk.confusion_matrix(diagnosis, predicted, labels=list(range(classes))).tolist(),
    }
    if groups is not None:
        right = tumor == positive
        # Sensitivity and the like are rates over some of the cases: these, and how much each weighs.
        rates = {
            "sensitivity": tumor.astype(float),
            "specificity": (~tumor).astype(float),
            "precision": positive.astype(float),
            "f1": np.where(tumor & positive, 2.0, (tumor | positive).astype(float)),
        }
        present = [diagnosis == k for k in np.unique(diagnosis)]
        limits = {
            "accuracy": mean_interval(diagnosis == predicted, groups),
            "balanced_accuracy": mean_interval(
                recall_values(diagnosis, predicted), groups, fewest=fewest_groups(groups, *present)
            ),
            **{name: ratio_interval(right * weights, weights, groups) for name, weights in rates.items()},
            "roc_auc": auc_interval(tumor, probability, groups) if both else [None, None],
        }
        result |= {f"{name}_ci95": limit for name, limit in limits.items()}
    return result


def one_class_metrics(
    diagnosis: np.ndarray, predicted: np.ndarray, score: np.ndarray, index: int, groups: Sequence[str]
) -> dict[str, Any]:
    """Recall, specificity, precision, F1 and ROC-AUC of one class against all others, with intervals, and calibration.

    ``reliability`` is the curve of the class's own probability, ``ece`` its calibration error.

    Args:
        diagnosis, predicted: (N,) int.
        score: (N,) probability of the class.
        index: the class.
        groups: (N,) patients or near-duplicate groups.
    """
    metrics = diagnosis_metrics((diagnosis == index).astype(int), (predicted == index).astype(int), score, 2, groups)
    names = ("sensitivity", "specificity", "precision", "f1", "roc_auc")
    kept = {key: metrics[key] for name in names for key in (name, f"{name}_ci95")}
    positive = diagnosis == index
    calibration = {"ece": expected_calibration_error(score, positive), "reliability": calibration_bins(score, positive)}
    return {"n": int(positive.sum()), "predicted": int((predicted == index).sum()), **kept, **calibration}


def classification_metrics(
    logits: np.ndarray,
    diagnosis: np.ndarray,
    threshold: float,
    temperature: float = 1.0,
    groups: Sequence[str] | None = None,
    uncalibrated: np.ndarray | None = None,
) -> dict[str, Any]:
    """The block "classification" of metrics.json: `diagnosis_metrics`, and how well the probabilities are calibrated.

    Calibration error and reliability are of the most probable class's probability (``ece``) and of the tumor
    probability (``ece_tumor``), after the temperature; ``ece_uncalibrated`` is the former without it. ``nll`` is the
    mean of -log of the probability of the true class.

    Args:
        logits: (N, K).
        diagnosis: (N,) int in [0, K).
        threshold: of tumor probability, chosen elsewhere.
        temperature: divides the logits, chosen elsewhere.
        groups: (N,) patients or near-duplicate groups; with them come 95 % intervals.
        uncalibrated: (N, K) logits before the temperature, where it leaves a part of them as it is; None: the same.

    Raises:
        ValueError: when there is no case.
    """
    if len(diagnosis) == 0:
        raise ValueError("no case with a diagnosis: classification can not be evaluated")
    probability = tumor_probability(logits, temperature)
    before = logits if uncalibrated is None else uncalibrated
    per_class, raw = softmax(logits / temperature, axis=1), softmax(before, axis=1)
    correct = per_class.argmax(axis=1) == diagnosis
    return {
        **diagnosis_metrics(diagnosis, decide(logits, threshold, temperature), probability, logits.shape[1], groups),
        "ece": expected_calibration_error(per_class.max(axis=1), correct),
        "ece_uncalibrated": expected_calibration_error(raw.max(axis=1), raw.argmax(axis=1) == diagnosis),
        "nll": negative_log_likelihood(logits, diagnosis, temperature),
        "nll_uncalibrated": negative_log_likelihood(before, diagnosis),
        "ece_tumor": expected_calibration_error(probability, diagnosis > 0),
        "reliability": calibration_bins(per_class.max(axis=1), correct),
        "reliability_tumor": calibration_bins(probability, diagnosis > 0),
        "threshold": float(threshold),
        "temperature": float(temperature),
        "temperature_at_bound": temperature_at_bound(temperature),
    }
