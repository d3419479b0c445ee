"""The class that is explained is not the one that is meant."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from scripts.explain.class_findings import separation, wrong_class
from scripts.explain.findings import CANNOT_TELL, DOES_NOT_HOLD, HOLDS
from scripts.explain.targets import ClassMargin, ClassScore, SegmentationRegion, TumorLogOdds


class TwoLogits(nn.Module):
    """Logits [-weight mean, mean]: the evidence for 1 lies, negated, in the other class's logit."""

    def __init__(self, weight):
        super().__init__()
        self.features, self.weight = nn.Conv2d(1, 1, 1, bias=False), weight
        nn.init.constant_(self.features.weight, 1.0)

    def forward(self, x):
        mean = self.features(x).flatten(1).mean(1)
        return torch.stack([-self.weight * mean, mean], 1)


def levels(count=12):
    """Images of one value each, 0 to count - 1."""
    return torch.arange(float(count)).reshape(count, 1, 1, 1).expand(count, 1, 3, 3)


def test_scores_that_are_not_finite_tell_nothing():
    own = np.array([True, True, False, False])
    assert separation(np.array([3.0, 1.0, 1.0, 0.0]), own, ~own)[0] == 0.875  # one pair of four is equal: half
    with pytest.raises(ValueError, match="not finite"):
        separation(np.array([3.0, 1.0, np.nan, 0.0]), own, ~own)


def test_wrong_class_by_hand():
    x, halves = levels(), [0] * 6 + [1] * 6
    right = wrong_class(TwoLogits(1.0), x, halves, ClassScore(1), "features")
    assert right.verdict == DOES_NOT_HOLD
    assert right.figures["auc_for_its_own_label"] == 1.0
    assert right.figures["share_of_margin_in_its_own_logit"] == pytest.approx(0.5)
    swapped = wrong_class(TwoLogits(1.0), x, halves[::-1], ClassScore(1), "features")
    assert (swapped.verdict, swapped.figures["auc_for_its_own_label"]) == (HOLDS, 0.0)
    elsewhere = wrong_class(TwoLogits(9.0), x, halves, ClassScore(1), "features")
    assert elsewhere.verdict == HOLDS
    assert elsewhere.figures["share_of_margin_in_its_own_logit"] == pytest.approx(0.1)
    assert wrong_class(TwoLogits(1.0), x, halves, TumorLogOdds(), "features").verdict == DOES_NOT_HOLD
    assert wrong_class(TwoLogits(1.0), x, halves[::-1], TumorLogOdds(), "features").verdict == HOLDS
    assert wrong_class(TwoLogits(1.0), x, halves[::-1], ClassMargin(1, 0), "features").verdict == HOLDS
    assert wrong_class(TwoLogits(1.0), x, halves, ClassMargin(1, 0), "features").verdict == DOES_NOT_HOLD


def test_wrong_class_says_when_it_cannot_tell():
    x, halves = levels(), [0] * 6 + [1] * 6
    unclear = [0, 1] * 6
    for labels, target, why in (
        ([1] * 12, ClassScore(1), "images that it should be high for, and others, are needed"),
        (unclear, ClassScore(1), "hardly separates"),
        (halves, ClassScore(), "own top class"),
        (None, ClassScore(1), "labels of the images were not given"),
    ):
        found = wrong_class(TwoLogits(1.0), x, labels, target, "features")
        assert found.verdict == CANNOT_TELL
        assert why in found.reason


class Levels(nn.Module):
    """Logits that peak at images of value 1, 5 and 9, in the given order of classes."""

    def __init__(self, order):
        super().__init__()
        self.features, self.order = nn.Conv2d(1, 1, 1, bias=False), order
        nn.init.constant_(self.features.weight, 1.0)

    def forward(self, x):
        mean = self.features(x).flatten(1).mean(1)
        return torch.stack([-((mean - (1 + 4 * k)) ** 2) for k in self.order], 1)


def test_classes_in_another_order_than_the_labels_are_found_by_the_class_that_fits_better():
    x, labels = levels(), [0] * 4 + [1] * 4 + [2] * 4
    found = wrong_class(Levels([0, 2, 1]), x, labels, ClassScore(1), "features")
    assert found.verdict == HOLDS
    right = wrong_class(Levels([0, 1, 2]), x, labels, ClassScore(1), "features")
    assert right.verdict == DOES_NOT_HOLD
    assert right.figures["auc_of_the_best_class"] == right.figures["auc_for_its_own_label"] > 0.98


def test_the_background_channel_of_a_segmentation_is_the_wrong_one():
    tumor = torch.zeros(1, 1, 6, 6)
    tumor[..., :2, :2] = 1

    class Segmenter(nn.Module):
        def __init__(self):
            super().__init__()
            self.features = nn.Conv2d(1, 1, 1, bias=False)
            nn.init.constant_(self.features.weight, 1.0)

        def forward(self, x):
            seen = self.features(x)
            return torch.cat([-seen, seen], 1)

    x = tumor * 2 - 1
    background = wrong_class(Segmenter(), x, None, SegmentationRegion(channel=0), "features", tumor=tumor)
    assert (background.verdict, background.figures["auc_for_tumor_pixels"]) == (HOLDS, 0.0)
    assert (
        wrong_class(Segmenter(), x, None, SegmentationRegion(channel=1), "features", tumor=tumor).verdict
        == DOES_NOT_HOLD
    )
    assert wrong_class(Segmenter(), x, None, SegmentationRegion(channel=1), "features").verdict == CANNOT_TELL
