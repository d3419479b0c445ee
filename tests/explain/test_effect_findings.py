"""What the verdict follows, by hand: tumors painted out, and air exchanged between images of the two sides."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from scripts.explain.effect_findings import air_effect, verdict_without_tumor
from scripts.explain.findings import CANNOT_TELL, DOES_NOT_HOLD, HOLDS
from scripts.explain.targets import ClassMargin, ClassScore, TumorLogOdds
from tests.explain.nets import TinySegmenter

SHARE = "share_of_the_verdict_that_goes_with_the_tumor"
LABELS = [0] * 4 + [1] * 4


class Mean(nn.Module):
    """Logits [0, mean of the image + offset]."""

    def forward(self, x, offset=0.0):
        mean = x.flatten(1).mean(1) + offset
        return torch.stack([torch.zeros_like(mean), mean], 1)


def levels(*values):
    """Images (B, 1, 2, 2) of one value each."""
    return torch.tensor(values).reshape(-1, 1, 1, 1).expand(-1, 1, 2, 2).clone()


def masks(labels=LABELS):
    """A tumor of one pixel in each image of a class above 0."""
    tumor = torch.zeros(len(labels), 1, 2, 2)
    tumor[:, 0, 0, 0] = (torch.tensor(labels) > 0).float()
    return tumor


IMAGES = levels(*[0.0] * 4, *[4.0] * 4)


@pytest.mark.parametrize(
    ("painted", "share", "verdict"),
    [(4.0, 0.0, HOLDS), (3.25, 0.1875, HOLDS), (3.0, 0.25, DOES_NOT_HOLD), (0.0, 1.0, DOES_NOT_HOLD)],
)
@pytest.mark.parametrize("target", [ClassScore(1), TumorLogOdds(), ClassMargin(0, 1)])
def test_share_of_the_verdict_that_goes_with_the_tumors(painted, share, verdict, target):
    without = levels(*[0.0] * 4, *[painted] * 4)
    found = verdict_without_tumor(Mean(), IMAGES, LABELS, target, masks(), without)
    assert found.figures == {SHARE: pytest.approx(share), "tumors_painted_out": 4.0}
    assert found.verdict == verdict
    assert (f"{share:.0%} of the way" in found.reason, "limit 25%" in found.reason) == (True, True)


def test_only_images_with_a_tumor_are_looked_at_with_arguments_of_their_own():
    tumor, offset = masks(), torch.tensor([*[0.0] * 4, 4.0, 9.0, 4.0, 4.0])
    tumor[5:7] = 0
    found = verdict_without_tumor(
        Mean(), levels(*[0.0] * 8), LABELS, ClassScore(1), tumor, levels(*[-2.0] * 8), {"offset": offset}
    )
    assert found.figures == {SHARE: 0.5, "tumors_painted_out": 2.0}


@pytest.mark.parametrize(("each", "told"), [(3, False), (4, True)])
def test_a_verdict_that_chance_gives_in_a_tenth_of_cases_is_none(each, told):
    labels = [0] * each + [1] * each
    x = levels(*[0.0 + 0.01 * k for k in range(each)], *[4.0 + 0.01 * k for k in range(each)])
    found = verdict_without_tumor(Mean(), x, labels, ClassScore(1), masks(labels), x * 0)
    assert (found.verdict == DOES_NOT_HOLD, "hardly separates" in found.reason) == (told, not told)


def test_of_several_classes_the_images_without_a_tumor_are_the_other_side():
    labels = [*LABELS, 2, 2, 2, 2, -1]
    x = torch.cat([IMAGES, levels(*[100.0] * 4, 7.0)])
    found = verdict_without_tumor(Mean(), x, labels, ClassScore(1), masks(labels), x - 1)
    assert found.figures == {SHARE: 0.25, "tumors_painted_out": 4.0}
    # Of the score of no tumor, all classes of tumors are the other side.
    found = verdict_without_tumor(Mean(), x[:-1], labels[:-1], ClassMargin(0, 1), masks(labels)[:-1], x[:-1] - 1)
    assert found.figures == {SHARE: pytest.approx(0.25), "tumors_painted_out": 4.0}


@pytest.mark.parametrize(
    ("network", "labels", "target", "tumor", "why"),
    [
        (Mean(), LABELS, ClassScore(1), masks() * 0, "tumor masks were not given"),
        (Mean(), LABELS, ClassScore(), masks(), "there is no one verdict"),
        (Mean(), [1] * 8, ClassScore(1), masks(), "images with and without a tumor are needed"),
        (Mean(), [0] * 8, ClassScore(1), masks(), "images with and without a tumor are needed"),
        (Mean(), [1] * 4 + [0] * 4, ClassScore(1), masks(), "hardly separates the images (AUC 0.00)"),
        (Mean(), [0, -1, -1, -1, -1, -1, -1, 1], ClassScore(1), masks(), "hardly separates the images (AUC 1.00)"),
        (Mean(), [0] * 4 + [1] * 3 + [-1], ClassScore(1), masks([0] * 7 + [1]), "no image of a known class has"),
        (TinySegmenter(), LABELS, ClassScore(1), masks(), "the output is no logits (B, K)"),
        (nn.Sequential(nn.BatchNorm2d(1), Mean()), LABELS, ClassScore(1), masks(), "the network is untrained: all 1"),
    ],
)
def test_where_there_is_no_verdict_to_take_away(network, labels, target, tumor, why):
    found = verdict_without_tumor(network, IMAGES, labels, target, tumor, IMAGES)
    assert found.verdict == CANNOT_TELL
    assert why in found.reason
    if "masks" not in why and "mask" not in why:
        assert air_effect(network, IMAGES, torch.ones_like(IMAGES), labels, target) is None


class Air(nn.Module):
    """Logits [0, s]: s is the sum of the first two columns, the second channel ten times."""

    def forward(self, x):
        score = (x[..., :2] * torch.tensor([1.0, 10.0]).reshape(1, 2, 1, 1)).flatten(1).sum(1) / 100
        return torch.stack([torch.zeros_like(score), score], 1)


def test_exchanged_air_by_hand():
    x, inside = torch.ones(8, 2, 1, 4), torch.ones(8, 1, 1, 4)
    x[:4, :, 0, 0] = torch.tensor([1.0, 2.0])  # one column of air, without a tumor
    x[4:, :, 0, :2] = torch.tensor([[5.0, 7.0], [6.0, 8.0]])  # two with one
    inside[..., 0], inside[4:, ..., 1] = 0, 0
    before = x.clone()
    # Tumors, 12 + 10 * 14 = 152, get 1 and 2 in both columns: 2 + 10 * 4 = 42. The others, 2 + 10 * 3 = 32, get 5 and 6
    # in their one: 6 + 10 * 7 = 76.
    expected = ((152 - 42) / (152 - 32) + (32 - 76) / (32 - 152)) / 2
    assert air_effect(Air(), x, inside, LABELS, ClassScore(1)) == pytest.approx(expected)
    assert torch.equal(x, before)
    assert air_effect(Air(), x.flip(3), inside.flip(3), LABELS, ClassScore(1)) is None, "no difference without air"
    inside[:4] = 1
    assert air_effect(Air(), x, inside, LABELS, ClassScore(1)) is None, "images without a tumor have no air to give"
