"""Figures of merit over cases, from scikit-learn and MONAI, with the baselines and intervals that they need."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax, softmax
from scipy.stats import rankdata
from sklearn import metrics as sk

ECE_BINS = 10


def tumor_probability(logits: np.ndarray, temperature: float = 1.0) -> np.ndarray:
    """Probability of any tumor, (N,), from class logits (N, K) with class 0 "no tumor"."""
    return 1.0 - softmax(np.asarray(logits, dtype=np.float64) / temperature, axis=1)[:, 0]


def decide(logits: np.ndarray, threshold: float, temperature: float = 1.0) -> np.ndarray:
    """Class (N,): 0 below the threshold of tumor probability, else the most probable tumor class."""
    tumor = tumor_probability(logits, temperature) >= threshold
    return np.where(tumor, 1 + np.argmax(logits[:, 1:], axis=1), 0)


def fit_temperature(logits: np.ndarray, diagnosis: np.ndarray) -> float:
    """Temperature in [0.05, 20] that minimizes the negative log-likelihood of validation data.

    Source: Guo et al., "On Calibration of Modern Neural Networks", ICML 2017, section 4.2.
    """
    index = np.arange(len(diagnosis))

    def loss(log_t: float) -> float:
        return float(-log_softmax(logits / np.exp(log_t), axis=1)[index, diagnosis].mean())

    return float(np.exp(minimize_scalar(loss, bounds=(np.log(0.05), np.log(20.0)), method="bounded").x))


def choose_threshold(probability: np.ndarray, tumor: np.ndarray) -> float:
    """Threshold of tumor probability with the best balanced accuracy on validation data.

    Candidates lie midway between neighboring probabilities; of equally good ones the nearest to 0.5 is taken.

    Args:
        probability: (N,) in [0, 1].
        tumor: (N,) bool.
    """
    if not 0 < tumor.sum() < len(tumor):
        return 0.5
    values = np.unique(probability)
    candidates = np.concatenate([(values[1:] + values[:-1]) / 2, [0.5]])
    scores = [((probability[tumor] >= c).mean() + (probability[~tumor] < c).mean()) / 2 for c in candidates]
    best = np.flatnonzero(np.isclose(scores, np.max(scores)))
    return float(candidates[best[np.argmin(np.abs(candidates[best] - 0.5))]])


def expected_calibration_error(confidence: np.ndarray, correct: np.ndarray, bins: int = ECE_BINS) -> float:
    """Mean gap of confidence and accuracy over equal-width bins, weighted by their size.

    Source: Guo et al., ICML 2017, eq. 5.
    """
    index = np.minimum((confidence * bins).astype(int), bins - 1)
    gaps = [
        abs(confidence[index == b].mean() - correct[index == b].mean()) * (index == b).sum()
        for b in range(bins)
        if (index == b).any()
    ]
    return float(np.sum(gaps) / len(confidence))


def balanced_accuracy(diagnosis: np.ndarray, predicted: np.ndarray) -> float:
    """Mean recall over the classes that are there."""
    return float(np.mean([(predicted[diagnosis == c] == c).mean() for c in np.unique(diagnosis)]))


def classification_metrics(
    logits: np.ndarray,
    diagnosis: np.ndarray,
    threshold: float,
    temperature: float = 1.0,
    groups: Sequence[str] | None = None,
) -> dict[str, Any]:
    """The block "classification" of metrics.json.

    Accuracy, balanced accuracy, MCC, confusion matrix and the majority baseline are over all classes; sensitivity,
    specificity, precision, F1 and ROC-AUC are of tumor against no tumor. What is undefined (an absent class) is None.

    Args:
        logits: (N, K).
        diagnosis: (N,) int in [0, K).
        threshold: of tumor probability, chosen elsewhere.
        temperature: divides the logits, chosen elsewhere.
        groups: (N,) patients or near-duplicate groups; with them come 95 % bootstrap intervals of accuracy, balanced
            accuracy and ROC-AUC.
    """
    if len(diagnosis) == 0:
        raise ValueError("no case with a diagnosis: classification can not be evaluated")
    classes = list(range(logits.shape[1]))
    predicted = decide(logits, threshold, temperature)
    tumor, positive = diagnosis > 0, predicted > 0
    probability = tumor_probability(logits, temperature)
    per_class = softmax(logits / temperature, axis=1)
    both = bool(0 < tumor.sum() < len(tumor))
    intervals: dict[str, Any] = {}
    if groups is not None:
        index = np.arange(len(diagnosis))
        intervals = {
            "accuracy_ci95": bootstrap_interval(index, groups, lambda i: (predicted[i] == diagnosis[i]).mean()),
            "balanced_accuracy_ci95": bootstrap_interval(
                index, groups, lambda i: balanced_accuracy(diagnosis[i], predicted[i])
            ),
            "roc_auc_ci95": bootstrap_interval(index, groups, lambda i: _auc(tumor[i], probability[i]))
            if both
            else [None, None],
        }
    return {
        "n": len(diagnosis),
        "accuracy": float(sk.accuracy_score(diagnosis, predicted)),
        "balanced_accuracy": balanced_accuracy(diagnosis, predicted),
        "sensitivity": float(positive[tumor].mean()) if tumor.any() else None,
        "specificity": float((~positive[~tumor]).mean()) if (~tumor).any() else None,
        "precision": float(tumor[positive].mean()) if positive.any() else None,
        "f1": float(sk.f1_score(tumor, positive)) if tumor.any() else None,
        "roc_auc": float(sk.roc_auc_score(tumor, probability)) if both else None,
        "mcc": float(sk.matthews_corrcoef(diagnosis, predicted)) if len(np.unique(diagnosis)) > 1 else None,
        "ece": expected_calibration_error(per_class.max(axis=1), per_class.argmax(axis=1) == diagnosis),
        "majority_accuracy": float(np.bincount(diagnosis).max() / len(diagnosis)),
        "confusion_matrix": sk.confusion_matrix(diagnosis, predicted, labels=classes).tolist(),
        "threshold": float(threshold),
        "temperature": float(temperature),
        **intervals,
    }


def _auc(tumor: np.ndarray, probability: np.ndarray) -> float:
    """ROC-AUC by rank sums, NaN with one class (scikit-learn's takes 1 ms, too long for a bootstrap)."""
    positive = int(tumor.sum())
    negative = len(tumor) - positive
    if positive == 0 or negative == 0:
        return float("nan")
    ranks = rankdata(probability)
    return float((ranks[tumor].sum() - positive * (positive + 1) / 2) / (positive * negative))


def bootstrap_interval(
    values: np.ndarray,
    groups: Sequence[str],
    statistic: Callable[[np.ndarray], float] = np.mean,
    resamples: int = 1000,
    seed: int = 0,
) -> list[float | None]:
    """95 % percentile interval of a statistic over cases, resampling groups (patients) with replacement.

    Args:
        values: (N,) one value a case.
        groups: (N,) the patient or near-duplicate group of each case.
        statistic: of a (n,) array.
        resamples: number of bootstrap samples.
        seed: of the resampling.
    """
    if len(values) == 0:
        return [None, None]
    _, index = np.unique(np.asarray(groups), return_inverse=True)
    members = [np.flatnonzero(index == g) for g in range(index.max() + 1)]
    rng = np.random.default_rng(seed)
    drawn = [
        statistic(values[np.concatenate([members[g] for g in rng.integers(len(members), size=len(members))])])
        for _ in range(resamples)
    ]
    return [float(v) for v in np.nanpercentile(drawn, [2.5, 97.5])]


def case_summary(values: np.ndarray, groups: Sequence[str]) -> dict[str, Any]:
    """S of metrics.json: {n, mean, std, median, ci95} over cases; NaN (undefined) cases are left out of n."""
    values = np.asarray(values, dtype=float)
    defined = np.isfinite(values)
    kept, kept_groups = values[defined], np.asarray(groups)[defined]
    if len(kept) == 0:
        return {"n": 0, "mean": None, "std": None, "median": None, "ci95": [None, None]}
    return {
        "n": len(kept),
        "mean": float(kept.mean()),
        "std": float(kept.std(ddof=1)) if len(kept) > 1 else 0.0,
        "median": float(np.median(kept)),
        "ci95": bootstrap_interval(kept, list(kept_groups)),
    }
