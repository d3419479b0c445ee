"""Shortcuts: features by hand, draws in proportion, and models that never saw the cluster they predict."""

from __future__ import annotations

import math
import statistics

import numpy as np
import pytest
from sklearn.model_selection import StratifiedGroupKFold

from scripts.measures import shortcuts
from scripts.measures.intervals import auc, auc_interval
from scripts.measures.shortcuts import (
    FOLDS,
    MIN_UNITS,
    air_features,
    auc_by_value,
    corners,
    geometry_features,
    histogram_features,
    predicted,
    size_features,
    skewness,
    subsample,
)


def test_a_subset_keeps_the_proportions_and_depends_on_the_seed():
    items = [{"image": str(k), "source": "a" if k < 80 else "b", "diagnosis": k % 2} for k in range(100)]
    chosen = subsample(items, 20)
    assert len(chosen) == 20
    assert sum(item["source"] == "b" for item in chosen) == 4
    assert sum(item["diagnosis"] for item in chosen) == 10
    assert [int(item["image"]) for item in chosen] == sorted(int(item["image"]) for item in chosen)
    assert subsample(items, 20) == chosen
    assert subsample(items, 20, seed=1) != chosen
    assert subsample(items, 100) == subsample(items, None) == subsample(items, 101) == items


@pytest.mark.parametrize(("limit", "lone"), [(4, 0), (6, 1)])
def test_a_kind_that_is_a_tenth_is_drawn_as_soon_as_half_an_item_of_it_is_due(limit, lone):
    items = [{"source": "rare"}, *[{"source": "often"}] * 9]
    assert sum(item["source"] == "rare" for item in subsample(items, limit)) == lone


def test_items_without_a_diagnosis_are_a_kind_of_their_own():
    items = [{"image": k, "diagnosis": 1} for k in range(8)] + [{"image": k} for k in range(8)]
    assert sum("diagnosis" in item for item in subsample(items, 4)) == 2
    assert len(subsample(items, 1)) == 1
    with pytest.raises(ValueError, match="limit must be 1 or more, got 0"):
        subsample(items, 0)


def test_corners_of_a_plane_have_their_own_side_along_each_axis():
    near = corners((5, 4), (2, 1))
    assert near.astype(int).tolist() == [[1, 0, 0, 1], [1, 0, 0, 1], [0, 0, 0, 0], [1, 0, 0, 1], [1, 0, 0, 1]]
    assert corners((5, 4, 3), (2, 1)).all(2).tolist() == near.tolist()


def test_features_of_a_known_picture():
    foreground = np.zeros((40, 20), bool)
    foreground[10:30, 5:15] = True
    image = np.where(foreground, 7.0, 2.0)[None].astype(np.float32)
    image[0, 0, 0] = 0
    air = air_features(image, foreground)
    assert air["air maximum"] == 2
    assert air["air minimum"] == 0
    assert air["exact zeros in air"] == pytest.approx(1 / 600)
    assert air["different values in air"] == 2
    assert air["air in the corners"] == pytest.approx(2 - 2 / 8)  # corners of 2 x 1 pixels
    assert size_features((40, 20)) == {"width": 40, "height": 20, "aspect of the picture": 2, "pixels": 800}
    shape = geometry_features(foreground)
    assert shape["coverage"] == 0.25
    assert shape["aspect of the head"] == 2
    assert shape["share of its box"] == 1
    assert shape["share of the width"] == 0.5
    assert shape["place along the height"] == pytest.approx(9.5 / 20)
    assert shape["length of the outline"] == pytest.approx(60 / math.sqrt(200))
    values = histogram_features(image * 2, foreground)
    assert values["quantile 50 %"] == values["mean"] == 14
    assert values["deviation"] == values["skewness"] == 0
    assert values["different values"] == 1
    everywhere = air_features(image, np.ones_like(foreground))
    assert all(math.isnan(value) for value in everywhere.values())
    with pytest.raises(ValueError, match="foreground mask is empty"):
        geometry_features(np.zeros((4, 4), bool))


def test_air_by_hand():
    """Squares of 0 to 11; of them 16 is the head, and 49 alone is air off the rim."""
    image = np.square(np.arange(12.0)).reshape(4, 3)
    foreground = np.zeros((4, 3), bool)
    foreground[1, 1] = True
    air = [0, 1, 4, 9, 25, 36, 49, 64, 81, 100, 121]
    expected = {
        "air mean": statistics.mean(air),
        "air deviation": statistics.pstdev(air),
        "air maximum": 121,
        "air minimum": 0,
        "air in the corners": (0 + 4 + 81 + 121) / 4,
        "air on the rim": (sum(air) - 49) / 10,
        "exact zeros in air": 1 / 11,
        "different values in air": 11,
        "steps in air": (9 + 21 + 27 + 39 + 45 + 51 + 57) / 7,  # along the first axis, the head left out
        "air quantile 5 %": 0.5,
        "air quantile 50 %": 36,
        "air quantile 95 %": 110.5,
    }
    assert air_features(image[None], foreground) == pytest.approx(expected)
    two = air_features(np.stack([image, -3 * image]), foreground)
    assert two["channel 0 air mean"] == pytest.approx(expected["air mean"])
    assert two["channel 1 steps in air"] == pytest.approx(3 * expected["steps in air"])
    assert len(two) == 2 * len(expected)


def test_air_that_reaches_no_corner_has_no_value_there():
    foreground = np.ones((4, 5), bool)
    foreground[1, 2] = False
    found = air_features(np.full((1, 4, 5), 3.0), foreground)
    assert (found["air mean"], found["air deviation"], found["different values in air"]) == (3.0, 0.0, 1.0)
    assert all(math.isnan(found[name]) for name in ("air in the corners", "air on the rim", "steps in air"))


def test_the_corners_of_a_picture_are_a_sixteenth_of_its_sides_and_at_least_a_pixel():
    image = np.zeros((1, 64, 15))
    image[0, :4, 0] = 8.0
    image[0, 4, 0] = 1000.0  # beside the corner
    assert air_features(image, np.zeros((64, 15), bool))["air in the corners"] == pytest.approx(8 / 4)


def test_geometry_of_a_volume_by_hand():
    foreground = np.zeros((4, 5, 6), bool)
    foreground[1:3, 1:4, 2:3] = True
    sizes = {"width": 4, "height": 5, "depth": 6, "aspect of the picture": 0.8, "pixels": 120}
    shares = {"share of the width": 2 / 4, "share of the height": 3 / 5, "share of the depth": 1 / 6}
    alike = {
        **shares,
        "place along the width": 1.5 / 4,
        "place along the height": 2 / 5,
        "place along the depth": 2 / 6,
        "aspect of the head": 2 / 3,
        "coverage": 6 / 120,
        "share of its box": 1.0,
        "length of the outline": (2 * 3 + 2 * 2 + 2 * 6) / 6 ** (2 / 3),
    }
    extents = {"width of the head": 2, "height of the head": 3, "depth of the head": 1}
    assert size_features(foreground.shape) == pytest.approx(sizes)
    assert geometry_features(foreground) == pytest.approx({**sizes, **extents, **alike})
    by_share = {f"{name.removeprefix('share of the ')} of the head": share for name, share in shares.items()}
    assert geometry_features(foreground, with_size=False) == pytest.approx({**by_share, **alike})
    foreground[1, 1, 2] = False
    assert geometry_features(foreground)["share of its box"] == pytest.approx(5 / 6)


def test_histogram_by_hand():
    image = np.array([[[1.0, 1.0 + 1e-12], [2.0, 4.0], [99.0, 99.0]]])
    found = histogram_features(image, np.array([[True, True], [True, True], [False, False]]))
    assert found["mean"] == pytest.approx(2)
    assert found["deviation"] == pytest.approx(math.sqrt(1.5))
    assert found["skewness"] == pytest.approx(1.5 / 1.5**1.5)
    assert [found[f"quantile {q} %"] for q in (25, 50, 75, 99)] == pytest.approx([1, 1.5, 2.5, 3.94])
    assert (found["share of the darkest value"], found["share of the brightest value"]) == (0.25, 0.25)
    assert found["different values"] == 3, "in single precision"
    twice = histogram_features(np.concatenate([image, image + 1]), np.ones((3, 2), bool))
    assert twice["channel 1 mean"] == pytest.approx(twice["channel 0 mean"] + 1)
    assert twice["channel 0 share of the brightest value"] == pytest.approx(2 / 6)


@pytest.mark.parametrize("scale", [1e-7, 1.0, 1e5])
def test_skewness_has_no_unit(scale):
    values = np.array([1.0, 1.0, 2.0, 4.0])
    assert skewness(scale * values) == pytest.approx(1.5 / 1.5**1.5)
    assert skewness(-scale * values) == pytest.approx(-1.5 / 1.5**1.5)


def separable(*counts: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A feature that says the class, a NaN and noise; a cluster an item."""
    target = np.repeat(np.arange(len(counts)), counts)
    noise = np.random.default_rng(0).random(len(target))
    return np.stack([target, np.full(len(target), np.nan), noise], axis=1), target, np.arange(len(target))


def test_predictions_are_probabilities_of_the_classes_in_order():
    features, target, clusters = separable(8, 10, 9)
    found = predicted(features, np.array(["b", "a", "c"])[target], clusters)
    assert found.shape == (27, 3)
    assert found.sum(axis=1) == pytest.approx(np.ones(27))
    assert (found.argmax(axis=1) == np.array([1, 0, 2])[target]).all()


def test_features_without_any_value_say_nothing():
    _, target, clusters = separable(4, 4)
    assert predicted(np.full((8, 2), np.nan), target, clusters) == pytest.approx(np.full((8, 2), 0.5))


class Recorded(StratifiedGroupKFold):
    """Notes how many folds are asked for."""

    asked: list[int] = []  # noqa: RUF012 - emptied by the test

    def __init__(self, n_splits, **options):
        self.asked.append(n_splits)
        super().__init__(n_splits, **options)


def test_there_are_as_many_folds_as_the_scarcest_class_has_clusters_and_five_at_most(monkeypatch):
    monkeypatch.setattr(shortcuts, "StratifiedGroupKFold", Recorded)
    Recorded.asked.clear()
    for scarce in (2, 3, FOLDS, FOLDS + 1):
        _, target, _ = separable(12, 2 * scarce)
        clusters = np.array([*range(12), *(100 + k // 2 for k in range(2 * scarce))])
        predicted(np.full((len(target), 1), np.nan), target, clusters)
    assert Recorded.asked == [2, 3, FOLDS, FOLDS]


@pytest.mark.parametrize(
    ("target", "clusters", "reason"),
    [
        ([0, 0, 0, 0], [0, 1, 2, 3], "1 classes, the scarcest with 4"),
        ([0, 0, 1, 1], [0, 1, 2, 2], "2 classes, the scarcest with 1"),
    ],
)
def test_what_cannot_be_cross_validated_is_refused(target, clusters, reason):
    with pytest.raises(ValueError, match=reason):
        predicted(np.zeros((4, 1)), np.array(target), np.array(clusters))


def test_a_fold_whose_training_has_one_class_says_nothing(monkeypatch):
    class OneSided:
        def __init__(self, *_, **__):
            pass

        def split(self, features, target, clusters):
            yield np.flatnonzero(target == 0)[:4], np.array([0, 5, 9])

    monkeypatch.setattr(shortcuts, "StratifiedGroupKFold", OneSided)
    features, target, clusters = separable(6, 6, 6)
    assert predicted(features, target, clusters) == pytest.approx(np.full((18, 3), 1 / 3))


def of(values: dict[str, list[float]]) -> list[dict[str, float]]:
    return [dict(zip(values, row, strict=True)) for row in zip(*values.values(), strict=True)]


def test_clusters_are_never_split_between_fold_and_model():
    # Each cluster has a value of its own and a class by chance: learned by heart within it, useless across.
    rng = np.random.default_rng(0)
    classes = rng.permutation(np.arange(40) % 2)
    values = rng.permutation(np.arange(40))
    features = [{"x": float(values[k // 5])} for k in range(200)]
    target = [int(classes[k // 5]) for k in range(200)]
    apart = auc_by_value(features, target, [f"u{k // 5}" for k in range(200)])[0]
    mixed = auc_by_value(features, target, [f"u{k}" for k in range(200)])[0]
    assert mixed["auc"] > 0.8
    assert apart["auc"] < 0.7
    assert apart["strongest_auc"] < 0.7 < mixed["strongest_auc"]
    assert apart["clusters"] == 20


@pytest.mark.parametrize("positives", [MIN_UNITS - 1, MIN_UNITS])
def test_too_few_clusters_on_either_side_are_not_measured(positives):
    for count in (positives, 30 - positives):
        target = [0] * (30 - count) + [1] * count
        (row,) = auc_by_value(of({"x": [float(k) for k in range(30)]}), target, [f"u{k}" for k in range(30)])
        assert (row["value"], row["n"], row["positives"], row["clusters"]) == (1, 30, count, positives)
        if positives < MIN_UNITS:
            assert (row["auc"], row["auc_ci95"], row["strongest"]) == (None, [None, None], None)
        else:
            assert row["auc"] > 0.85
            assert row["auc_ci95"][0] > 0.5
            assert row["strongest"] == "x"


def test_each_of_three_values_is_told_from_the_rest_by_its_own_probability_and_its_clusters(monkeypatch):
    rng = np.random.default_rng(2)
    scores, asked = rng.random((48, 3)), []
    monkeypatch.setattr(shortcuts, "predicted", lambda *arguments: asked.append(arguments) or scores)
    target, clusters = np.array(["c", "a", "b"] * 16), np.array([f"u{k // 2}" for k in range(48)])
    x, noise = rng.random(48) + (target == "b"), rng.random(48)
    rows = auc_by_value(of({"noise": list(noise), "x": list(x)}), list(target), list(clusters), seed=5)
    ((matrix, values, groups, seed),) = asked
    assert np.array_equal(matrix, np.stack([noise, x], axis=1))
    assert ((values == target) & (groups == clusters)).all()
    assert seed == 5
    assert [row["value"] for row in rows] == ["a", "b", "c"]
    assert all(isinstance(row["value"], str) and row["clusters"] == 16 for row in rows)
    assert rows[1]["strongest"] == "x"
    for k, row in enumerate(rows):
        positive = target == row["value"]
        assert row["auc"] == pytest.approx(auc(positive, scores[:, k]))
        assert row["auc_ci95"] == pytest.approx(auc_interval(positive, scores[:, k], list(clusters)))


def test_a_value_of_one_cluster_takes_no_part():
    target = ["a"] * 12 + ["b"] * 12 + ["c"] * 3
    clusters = [f"u{k}" for k in range(24)] + ["last"] * 3
    rows = auc_by_value(of({"x": [0.0] * 12 + [1.0] * 12 + [1.0] * 3}), target, clusters)
    assert [(row["n"], row["positives"], row["clusters"], row["auc"]) for row in rows] == [
        (24, 12, 12, 1.0), (24, 12, 12, 1.0), (24, 0, 1, None),
    ]  # fmt: skip
    assert auc_by_value(of({"x": [0.0, 1.0]}), ["a", "a"], ["u", "v"]) == []


def test_a_value_in_the_middle_is_found_by_the_strongest_feature():
    widths = [300.0, 512.0] * 20 + [369.0] * 40
    features = [{"noise": 0.0, "width": w, "the same": w} for w in widths]
    row = auc_by_value(features, [0] * 40 + [1] * 40, [f"u{k}" for k in range(80)])[0]
    assert row["strongest"] == "width", "the first of those that tell as much"
    assert row["strongest_auc"] == row["auc"] == 1


def test_a_feature_that_is_missing_tells_by_that_and_one_that_never_differs_tells_nothing():
    target, clusters = [0] * 20 + [1] * 20, [f"u{k}" for k in range(40)]
    (missing,) = auc_by_value(of({"x": [math.nan] * 20 + [-5.0] * 20}), target, clusters)
    assert (missing["strongest"], missing["strongest_auc"], missing["auc"]) == ("x", 1.0, 1.0)
    (nothing,) = auc_by_value(of({"x": [2.0] * 40}), target, clusters)
    assert (nothing["strongest"], nothing["strongest_auc"]) == (None, 0.5)
    assert nothing["auc"] == pytest.approx(0.5, abs=0.2)
