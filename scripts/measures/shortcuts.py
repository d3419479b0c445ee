"""Prediction without looking at the brain: features of air, geometry and histogram, and the AUC they reach."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.model_selection import StratifiedGroupKFold
from sklearn.tree import DecisionTreeClassifier

from scripts.measures.intervals import auc, auc_interval

AXES = ("width", "height", "depth")
QUANTILES = (1, 5, 10, 25, 50, 75, 90, 95, 99)
FOLDS = 5
MIN_UNITS = 8  # patients or near-duplicate groups on either side; below, an AUC says nothing
# Flagged above these, if the interval leaves 0.5 out. Air and the file's size hold nothing of the truth. The head's
# outline and histogram hold a little (the plane of the slice, a large bright tumor), so their limits are higher.
LIMITS = {"air": 0.60, "size": 0.60, "geometry": 0.70, "histogram": 0.80}


def air_features(image: np.ndarray, foreground: np.ndarray) -> dict[str, float]:
    """Describe the values outside the head.

    Args:
        image: float (C, X, Y[, Z]), any range.
        foreground: bool (X, Y[, Z]), True in the head.

    Returns:
        by channel: mean, deviation, extremes and quantiles of the air, its mean in the corners and on the rim, the
        share of exact zeros, the number of different values and the mean step between neighbors. NaN without air.
    """
    air = ~foreground
    corner, rim = air & corners(air.shape, [max(1, n // 16) for n in air.shape[:2]]), air & _rim(air.shape)
    pairs = air[1:] & air[:-1]
    features: dict[str, float] = {}
    for prefix, plane in _channels(image):
        values = plane[air]
        empty = values.size == 0
        features |= {
            f"{prefix}air mean": _mean(values),
            f"{prefix}air deviation": math.nan if empty else float(values.std(dtype=np.float64)),
            f"{prefix}air maximum": math.nan if empty else float(values.max()),
            f"{prefix}air minimum": math.nan if empty else float(values.min()),
            f"{prefix}air in the corners": _mean(plane[corner]),
            f"{prefix}air on the rim": _mean(plane[rim]),
            f"{prefix}exact zeros in air": _mean(values == 0),
            f"{prefix}different values in air": math.nan if empty else float(len(np.unique(values))),
            f"{prefix}steps in air": _mean(np.abs(plane[1:] - plane[:-1])[pairs]),
        }
        for q, value in zip((5, 50, 95), _quantiles(values, (5, 50, 95)), strict=True):
            features[f"{prefix}air quantile {q} %"] = value
    return features


def size_features(shape: Sequence[int]) -> dict[str, float]:
    """Width, height (and depth), aspect and number of pixels of a picture of this shape, (X, Y[, Z])."""
    features = dict(zip(AXES, map(float, shape), strict=False))
    return features | {"aspect of the picture": shape[0] / shape[1], "pixels": float(np.prod(shape))}


def geometry_features(foreground: np.ndarray, with_size: bool = True) -> dict[str, float]:
    """Describe the size of the picture and the outline of the head; no intensity comes in.

    Args:
        foreground: bool (X, Y[, Z]), True in the head; not empty.
        with_size: the picture's own size too (a file's; on the network's grid all are alike).

    Raises:
        ValueError: when the foreground is empty.
    """
    shape = foreground.shape
    features = size_features(shape) if with_size else {}
    box_size = 1.0
    for axis, name in zip(range(foreground.ndim), AXES, strict=False):
        profile = foreground.sum(axis=tuple(a for a in range(foreground.ndim) if a != axis))
        hit = np.flatnonzero(profile)
        if not hit.size:
            raise ValueError("the foreground mask is empty")
        extent = float(hit[-1] + 1 - hit[0])
        box_size *= extent
        features |= {
            f"{name} of the head": extent if with_size else extent / shape[axis],
            f"share of the {name}": extent / shape[axis],
            f"place along the {name}": float(profile @ np.arange(len(profile)) / profile.sum() / shape[axis]),
        }
    count = float(foreground.sum())
    edges = sum(float((np.diff(foreground, axis=axis)).sum()) for axis in range(foreground.ndim))
    features |= {
        "aspect of the head": features["width of the head"]
        * shape[0] ** (not with_size)
        / (features["height of the head"] * shape[1] ** (not with_size)),
        "coverage": count / foreground.size,
        "share of its box": count / box_size,
        "length of the outline": edges / count ** ((foreground.ndim - 1) / foreground.ndim),
    }
    return features


def histogram_features(image: np.ndarray, foreground: np.ndarray) -> dict[str, float]:
    """Describe the values inside the head by their distribution alone.

    Args:
        image: float (C, X, Y[, Z]), any range.
        foreground: bool (X, Y[, Z]), True in the head; not empty.

    Returns:
        by channel: quantiles, mean, deviation, skewness, the shares of the darkest and the brightest value, and the
        number of different values.
    """
    features: dict[str, float] = {}
    for prefix, plane in _channels(image):
        values = plane[foreground].astype(np.float64)
        for q, value in zip(QUANTILES, _quantiles(values, QUANTILES), strict=True):
            features[f"{prefix}quantile {q} %"] = value
        features |= {
            f"{prefix}mean": float(values.mean()),
            f"{prefix}deviation": float(values.std()),
            f"{prefix}skewness": skewness(values),
            f"{prefix}share of the brightest value": float((values == values.max()).mean()),
            f"{prefix}share of the darkest value": float((values == values.min()).mean()),
            f"{prefix}different values": float(len(np.unique(values.astype(np.float32)))),
        }
    return features


def skewness(values: np.ndarray) -> float:
    """Third moment of values (N,), float64, about their mean, in deviations."""
    centered = values - values.mean()
    squared = centered * centered
    return float((squared * centered).mean()) / max(math.sqrt(float(squared.mean())), 1e-12) ** 3


def _channels(image: np.ndarray) -> list[tuple[str, np.ndarray]]:
    return [("" if len(image) == 1 else f"channel {k} ", plane) for k, plane in enumerate(image)]


def _mean(values: np.ndarray) -> float:
    return float(values.mean(dtype=np.float64)) if values.size else math.nan


def _quantiles(values: np.ndarray, at: Sequence[float]) -> list[float]:
    return [float(v) for v in np.percentile(values, at)] if values.size else [math.nan] * len(at)


def corners(shape: Sequence[int], sides: Sequence[int]) -> np.ndarray:
    """True in the four corners of the plane: bool (X, Y[, Z]).

    Args:
        shape: (X, Y[, Z]).
        sides: pixels of a corner along X and Y, at least 1.
    """
    near = np.zeros(shape, bool)
    ends = [(slice(side), slice(size - side, size)) for size, side in zip(shape, sides, strict=False)]
    for x in ends[0]:
        for y in ends[1]:
            near[x, y] = True
    return near


def _rim(shape: tuple[int, ...]) -> np.ndarray:
    rim = np.ones(shape, bool)
    rim[1:-1, 1:-1] = False
    return rim


def subsample(items: Sequence[dict[str, Any]], limit: int | None, seed: int = 0) -> list[dict[str, Any]]:
    """At most ``limit`` items, every source and class in its proportion; the same for the same seed.

    Raises:
        ValueError: when ``limit`` is less than 1.
    """
    if limit is None or limit >= len(items):
        return list(items)
    if limit < 1:
        raise ValueError(f"limit must be 1 or more, got {limit}")
    rng = np.random.default_rng(seed)
    strata: dict[tuple[str, int], list[int]] = {}
    for index, item in enumerate(items):
        strata.setdefault((str(item.get("source", "")), int(item.get("diagnosis", -1))), []).append(index)
    timed = [
        ((place + 0.5) / len(members), index)
        for members in strata.values()
        for place, index in enumerate(rng.permutation(members).tolist())
    ]
    return [items[index] for _, index in sorted(sorted(timed)[:limit], key=lambda pair: pair[1])]


def predicted(features: np.ndarray, target: np.ndarray, clusters: np.ndarray, seed: int = 0) -> np.ndarray:
    """Predict every item from a model that has seen none of its cluster.

    Gradient-boosted trees on histograms (scikit-learn's HistGradientBoostingClassifier): they find thresholds,
    non-monotone relations and interactions ("369 pixels wide"), which a linear model misses, need no scaling, and take
    missing values. Five folds stratified by target, with the clusters kept together.

    Args:
        features: (N, F) float, NaN allowed.
        target: (N,) class of each item.
        clusters: (N,) patient or near-duplicate group.
        seed: of the folds.

    Returns:
        (N, K) probabilities of the classes ``np.unique(target)``, out of fold; all alike where the rest has one class
        or no feature.

    Raises:
        ValueError: when a class has fewer than two clusters.
    """
    classes, encoded = np.unique(target, return_inverse=True)
    scarce = min(len(np.unique(clusters[encoded == k])) for k in range(len(classes)))
    if len(classes) < 2 or scarce < 2:
        raise ValueError(f"cannot cross-validate {len(classes)} classes, the scarcest with {scarce} patients or groups")
    folds = StratifiedGroupKFold(min(FOLDS, scarce), shuffle=True, random_state=seed)
    result = np.full((len(target), len(classes)), 1 / len(classes))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The least populated class", category=UserWarning)
        splits = list(folds.split(features, encoded, clusters))
    for train, test in splits:
        known = ~np.isnan(features[train]).all(axis=0)  # scikit-learn refuses a feature without any value
        if len(np.unique(encoded[train])) < 2 or not known.any():
            continue
        smallest = int(np.bincount(encoded[train]).min())
        model = HistGradientBoostingClassifier(
            max_iter=80, max_leaf_nodes=8, min_samples_leaf=max(2, min(20, smallest // 4)), random_state=seed
        )
        model.fit(features[np.ix_(train, known)], encoded[train])
        result[np.ix_(test, model.classes_)] = model.predict_proba(features[np.ix_(test, known)])
    return result


def auc_by_value(
    features: Sequence[dict[str, float]], target: Sequence[Any], clusters: Sequence[str], seed: int = 0
) -> list[dict[str, Any]]:
    """How well the features tell each value of the target from the rest.

    Args:
        features: one dict an item, all with the same keys.
        target: a value for each item.
        clusters: patient or near-duplicate group of each item.
        seed: of the folds.

    Returns:
        a row for each value (for the second one only if there are two): ``value``, ``n``, ``positives``, ``clusters``
        (of the scarcer side), ``auc`` (cross-validated, out of fold, value against rest), ``auc_ci95`` (by cluster),
        ``strongest`` feature and ``strongest_auc`` (that one alone, by a small tree). With fewer than 8
        clusters on a side ``auc`` is None.
    """
    names = list(features[0])
    matrix = np.asarray([[values_of[name] for name in names] for values_of in features], float)
    values, groups = np.asarray(target), np.asarray(clusters)
    classes = np.unique(values)
    if len(classes) < 2:
        return []
    sides = {v: min(len(np.unique(groups[values == v])), len(np.unique(groups[values != v]))) for v in classes}
    enough = [v for v in classes if sides[v] >= MIN_UNITS]
    usable = np.isin(values, [v for v in classes if len(np.unique(groups[values == v])) >= 2])
    scores = np.zeros((len(values), len(classes)))
    if enough:
        kept = np.unique(values[usable])
        scores[np.ix_(usable, np.searchsorted(classes, kept))] = predicted(
            matrix[usable], values[usable], groups[usable], seed
        )
    rows = []
    for k, value in enumerate(classes):
        if len(classes) == 2 and k == 0:
            continue
        positive = values[usable] == value
        row: dict[str, Any] = {
            "value": value.item() if isinstance(value, np.generic) else value,
            "n": int(usable.sum()),
            "positives": int(positive.sum()),
            "clusters": int(sides[value]),
            "auc": None,
            "auc_ci95": [None, None],
            "strongest": None,
            "strongest_auc": None,
        }
        if value in enough:
            score = scores[usable, k]
            row["auc"] = auc(positive, score)
            row["auc_ci95"] = auc_interval(positive, score, list(groups[usable]))
            row["strongest"], row["strongest_auc"] = _strongest(matrix[usable], positive, groups[usable], names, seed)
        rows.append(row)
    return rows


def _strongest(
    matrix: np.ndarray, positive: np.ndarray, clusters: np.ndarray, names: Sequence[str], seed: int
) -> tuple[str | None, float]:
    """The feature that alone tells best, by a small tree on either half of the clusters, and its AUC.

    A tree and not the ranks: 369 pixels among 300 and 512 tell much without being large or small.
    """
    half = np.random.default_rng(seed).permutation(len(np.unique(clusters))) % 2
    side = half[np.unique(clusters, return_inverse=True)[1]] == 0
    best: tuple[str | None, float] = (None, 0.5)
    for name, column in zip(names, np.nan_to_num(matrix, nan=-1e9).T, strict=True):
        aucs = []
        for train, test in ((side, ~side), (~side, side)):
            if len(np.unique(positive[train])) < 2:
                continue
            tree = DecisionTreeClassifier(max_leaf_nodes=8, min_samples_leaf=max(2, len(column) // 100), random_state=0)
            tree.fit(column[train, None], positive[train])
            aucs.append(auc(positive[test], tree.predict_proba(column[test, None])[:, 1]))
        mean_auc = float(np.nanmean(aucs)) if np.isfinite(aucs).any() else 0.5
        if mean_auc > best[1] + 1e-9:
            best = (name, mean_auc)
    return best
