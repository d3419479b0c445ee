"""The class that is explained is not the one that is meant."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

from scripts.explain.class_findings import separation, wanted, wrong_class
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


@pytest.mark.parametrize(
    ("target", "classes", "positive", "others"),
    [
        (ClassScore(1), 3, [0, 0, 1, 0], [0, 1, 0, 1]),
        (ClassScore(0), 3, [0, 1, 0, 0], [0, 0, 1, 1]),
        (ClassScore(0), 1, [0, 0, 1, 1], [0, 1, 0, 0]),  # one logit says tumor or none
        (ClassMargin(2, 0), 3, [0, 0, 0, 1], [0, 1, 0, 0]),
        (TumorLogOdds(), 3, [0, 0, 1, 1], [0, 1, 0, 0]),
    ],
)
def test_which_images_a_target_speaks_for(target, classes, positive, others):
    sides = wanted(target, np.array([-1, 0, 1, 2]), classes)
    assert [side.tolist() for side in sides] == [[bool(v) for v in positive], [bool(v) for v in others]]


def test_targets_that_speak_for_no_certain_images():
    labels = np.array([0, 1])
    for target in (ClassScore(), ClassScore([0, 1]), ClassMargin([1, 0], 2), ClassMargin(2, [1, 0])):
        assert wanted(target, labels, 3) is None
    assert wanted(SegmentationRegion(), labels, 3) is None


def test_what_a_top_class_gets_right_is_reported_of_the_known_labels():
    x = levels()
    found = wrong_class(TwoLogits(1.0), x, [1] * 9 + [0] + [-1] * 2, ClassScore(), "features")
    # Image 0 has two logits of 0, so that class 0 is its top; 1 to 8 are right, 9 is not.
    assert found.figures == {"accuracy": 0.8}
    unknown = wrong_class(TwoLogits(1.0), x, [-1] * 12, ClassScore(), "features")
    assert (unknown.verdict, unknown.figures) == (CANNOT_TELL, {})


class Scores(nn.Module):
    """Logits that are the first pixels of the image; features are the image."""

    def __init__(self, classes, *gains):
        super().__init__()
        self.features = nn.Conv2d(1, 1, 1, bias=False)
        nn.init.constant_(self.features.weight, 1.0)
        self.gains = torch.tensor(gains or [1.0] * classes)

    def forward(self, x):
        return self.features(x)[:, 0, 0, : len(self.gains)] * self.gains


def rows(*columns):
    """Images (B, 1, 1, K + 1) by their logits."""
    return torch.stack([torch.tensor([*map(float, column)]) for column in (*columns, [1.0] * len(columns[0]))], 1)[
        :, None, None
    ]


def test_one_logit_is_held_against_zero():
    labels = [0] * 6 + [1] * 6
    right = wrong_class(Scores(1), rows(range(12)), labels, ClassScore(0), "features")
    assert right.verdict == DOES_NOT_HOLD
    assert set(right.figures) == {"auc_for_its_own_label", "p_by_chance"}
    assert wrong_class(Scores(1), rows(range(12)), labels[::-1], ClassScore(0), "features").verdict == HOLDS


def test_a_score_that_is_lower_by_chance_alone_is_no_wrong_index():
    # Two against two the wrong way round: AUC 0, and chance gives that in a third of cases.
    few = wrong_class(Scores(1), rows([3, 4, 1, 2]), [0, 0, 1, 1], ClassScore(0), "features")
    assert (few.verdict, few.figures["auc_for_its_own_label"]) == (CANNOT_TELL, 0.0)
    assert "hardly separates these 4 images (by chance in 33% of cases)" in few.reason
    right = wrong_class(Scores(1), rows([1, 2, 3, 4]), [0, 0, 1, 1], ClassScore(0), "features")
    assert (right.verdict, right.figures["auc_for_its_own_label"]) == (CANNOT_TELL, 1.0)


@pytest.mark.parametrize(("gain", "share", "verdict"), [(3.9, 1 / 4.9, DOES_NOT_HOLD), (4.1, 1 / 5.1, HOLDS)])
def test_a_fifth_of_the_margins_gradient_has_to_lie_in_its_own_logit(gain, share, verdict):
    labels, own = [0] * 6 + [1] * 6, [0, 1, 2, 3, 4, 5, 16, 17, 18, 19, 20, 21]
    x = rows([-v for v in own], own, [-90] * 12)
    found = wrong_class(Scores(3, gain, 1.0, 9.0), x, labels, ClassScore(1), "features")
    assert found.verdict == verdict
    assert found.figures["share_of_margin_in_its_own_logit"] == pytest.approx(share)
    assert found.signs == (("margin",) if verdict == HOLDS else ())


def test_channels_of_a_segmentation_by_how_they_rank_the_tumors_pixels():
    tumor = torch.tensor([[[[1.0, 1.0, 0.0, 0.0, 0.0]]]])
    for values, auc, verdict in (
        ([3, 1, 2, 2, 0], 4 / 6, DOES_NOT_HOLD),
        ([3, 1, 2, 2, 2], 0.5, CANNOT_TELL),
        ([1, 0, 2, 2, 0], 1.5 / 6, HOLDS),
    ):
        x = torch.tensor(values).float()[None, None, None]
        found = wrong_class(nn.Sequential(nn.Identity()), x, None, SegmentationRegion(channel=0), "0", tumor=tumor)
        assert (found.verdict, found.figures["auc_for_tumor_pixels"]) == (verdict, pytest.approx(auc))
    whole = wrong_class(nn.Identity(), tumor, None, SegmentationRegion(channel=0), "0", tumor=torch.ones_like(tumor))
    assert (whole.verdict, whole.figures) == (CANNOT_TELL, {})
    assert "pixels without a tumor" in whole.reason
    for mask in (tumor * 0, tumor[..., :2]):
        assert (
            "there are none"
            in wrong_class(nn.Identity(), tumor, None, SegmentationRegion(channel=0), "0", tumor=mask).reason
        )


@pytest.mark.parametrize(
    ("each", "right", "wrong"),
    [
        (3, CANNOT_TELL, CANNOT_TELL),  # chance gives a perfect order in 2 of 20 draws
        (4, DOES_NOT_HOLD, CANNOT_TELL),  # in 2 of 70
        (5, DOES_NOT_HOLD, HOLDS),  # in 2 of 252
    ],
)
def test_how_many_images_it_takes_to_tell(each, right, wrong):
    labels = [0] * each + [1] * each
    for order, verdict in ((labels, right), (labels[::-1], wrong)):
        found = wrong_class(Scores(1), rows(range(2 * each)), order, ClassScore(0), "features")
        assert found.verdict == verdict
        assert found.figures["p_by_chance"] == pytest.approx(2 / math.comb(2 * each, each))
