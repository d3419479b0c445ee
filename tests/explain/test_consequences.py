"""Causes that hold because of another one are called its consequences; what the verdict follows is tried out."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from scripts.explain.consequences import with_consequences
from scripts.explain.diagnosis import diagnose
from scripts.explain.effect_findings import LEAST_EFFECT, air_effect, verdict_without_tumor
from scripts.explain.findings import CANNOT_TELL, DOES_NOT_HOLD, FOLLOWS, HOLDS, Finding
from scripts.explain.gradient_findings import unsuitable_layer
from scripts.explain.targets import ClassScore, SegmentationRegion

CAUSES = (
    "air not zero", "order of transforms", "source or air shortcut", "normalization leak", "pooling over air",
    "verdict without the tumor", "gradient averaging", "wrong class index", "dead or saturated gradient",
    "unsuitable layer", "coarse grid",
)  # fmt: skip


def holding(*causes, signs=(), **figures):
    return [
        Finding(cause, HOLDS if cause in causes else DOES_NOT_HOLD, figures, "reason", signs=signs) for cause in CAUSES
    ]


def marked(findings):
    return {finding.cause: finding.follows for finding in findings if finding.verdict == FOLLOWS}


EFFECT = "share_of_the_verdict_that_follows_the_air"


@pytest.mark.parametrize(
    ("findings", "expected"),
    [
        (holding("air not zero", "order of transforms"), {"air not zero": "order of transforms"}),
        (
            holding("air not zero", "order of transforms", "source or air shortcut", signs=("air",)),
            {"air not zero": "order of transforms", "source or air shortcut": "order of transforms"},
        ),
        (
            holding("air not zero", "source or air shortcut", signs=("air",), **{EFFECT: 0.9}),
            {"air not zero": "source or air shortcut"},
        ),
        (
            holding("air not zero", "source or air shortcut", signs=("air",), **{EFFECT: 0.0}),
            {"source or air shortcut": "air not zero"},
        ),
        (holding("air not zero", "source or air shortcut", signs=("source",)), {}),
        (
            holding("gradient averaging", "unsuitable layer", "coarse grid"),
            {"gradient averaging": "unsuitable layer", "coarse grid": "unsuitable layer"},
        ),
        (
            holding("dead or saturated gradient", "unsuitable layer", "gradient averaging"),
            {"unsuitable layer": "dead or saturated gradient", "gradient averaging": "dead or saturated gradient"},
        ),
        (
            holding("source or air shortcut", "verdict without the tumor"),
            {"verdict without the tumor": "source or air shortcut"},
        ),
        (holding("normalization leak", "pooling over air", "coarse grid"), {}),
        (
            holding("air not zero", "source or air shortcut", signs=("air",), **{EFFECT: LEAST_EFFECT}),
            {"air not zero": "source or air shortcut"},
        ),
        (
            holding("air not zero", "source or air shortcut", signs=("air",)),  # it was not tried
            {"air not zero": "source or air shortcut"},
        ),
        (holding("air not zero", "source or air shortcut", signs=("source", "air"), **{EFFECT: 0.0}), {}),
        (
            holding("dead or saturated gradient", "wrong class index", signs=("margin",)),
            {"wrong class index": "dead or saturated gradient"},
        ),
        (holding("dead or saturated gradient", "wrong class index"), {}),
        (
            holding("wrong class index", "verdict without the tumor"),
            {"verdict without the tumor": "wrong class index"},
        ),
    ],
)
def test_what_follows_by_the_findings_themselves(findings, expected):
    assert marked(with_consequences(findings, {})) == expected


def test_what_no_longer_holds_once_a_cause_is_mended_follows_from_it():
    asked = []

    def fixed(causes):
        asked.append(list(causes))
        return [Finding("pooling over air", DOES_NOT_HOLD), Finding("coarse grid", HOLDS)]

    found = with_consequences(holding("air not zero", "pooling over air", "coarse grid"), {"air not zero": fixed})
    assert asked == [["pooling over air", "coarse grid"]]
    assert marked(found) == {"pooling over air": "air not zero"}
    reason = next(finding.reason for finding in found if finding.cause == "pooling over air")
    assert reason == "a consequence of 'air not zero': it does not hold once that is fixed; reason"


def test_causes_are_mended_that_hold_themselves_or_by_another_and_no_others():
    asked = []

    def fixed(cause):
        def again(causes):
            asked.append((cause, list(causes)))
            return [Finding("pooling over air", CANNOT_TELL)]

        return again

    roots = ["normalization leak", "air not zero", "unsuitable layer", "no such cause"]
    findings = holding("air not zero", "order of transforms", "pooling over air")
    found = with_consequences(findings, {root: fixed(root) for root in roots})
    assert asked == [("air not zero", ["pooling over air"])]
    assert marked(found) == {"air not zero": "order of transforms", "pooling over air": "order of transforms"}
    assert [finding.cause for finding in found] == list(CAUSES)
    asked.clear()
    with_consequences(holding("air not zero", "order of transforms"), {"air not zero": fixed("air not zero")})
    assert asked == [], "there is nothing that could follow"


class Blob(nn.Module):
    """Logits [-s, s]: s is the brightest place of a part of the image, so that one of it alone decides."""

    def __init__(self, columns):
        super().__init__()
        self.columns = columns
        self.features = nn.Conv2d(1, 1, 1, bias=False)
        nn.init.constant_(self.features.weight, 1.0)

    def forward(self, x):
        seen = self.features(x)[..., self.columns].flatten(1).amax(1) - 2
        return torch.stack([-seen, seen], 1)


def pictures():
    """Eight of 8 x 8: air in the first two columns, tumors at 4, air as bright for those with a tumor."""
    labels = [0, 1] * 4
    x, inside = torch.ones(8, 1, 8, 8), torch.ones(8, 1, 8, 8, dtype=torch.bool)
    inside[..., :2] = False
    tumor = torch.zeros(8, 1, 8, 8)
    tumor[1::2, :, 3:5, 4:6] = 1
    x[..., :2] = 0.5
    x[1::2, ..., :2] = 3
    x = x + 3 * tumor + 0.01 * torch.rand(x.shape, generator=torch.Generator().manual_seed(0)) * inside
    return x, inside, tumor, labels


@pytest.mark.parametrize(("columns", "reads_tumor"), [(slice(2, None), True), (slice(0, 2), False)])
def test_the_verdict_follows_the_tumor_or_the_air(columns, reads_tumor):
    x, inside, tumor, labels = pictures()
    without = torch.where(tumor > 0, torch.ones(()), x)
    network = Blob(columns)
    found = verdict_without_tumor(network, x, labels, ClassScore(1), tumor, without)
    share = found.figures["share_of_the_verdict_that_goes_with_the_tumor"]
    assert found.verdict == (DOES_NOT_HOLD if reads_tumor else HOLDS)
    assert share == pytest.approx(1.0 if reads_tumor else 0.0, abs=0.05)
    assert air_effect(network, x, inside, labels, ClassScore(1)) == pytest.approx(1.0 - reads_tumor, abs=0.05)
    assert verdict_without_tumor(network, x, labels, ClassScore(0), tumor, without).verdict == found.verdict


def test_what_the_verdict_follows_cannot_be_told_without_images_of_both_sides_or_masks():
    x, inside, tumor, labels = pictures()
    network = Blob(slice(2, None))
    for arguments, why in (
        ((labels, ClassScore(1), None, None), "tumor masks were not given"),
        (([1] * 8, ClassScore(1), tumor, x), "images with and without a tumor are needed"),
        ((None, ClassScore(1), tumor, x), "labels of the images were not given"),
        ((labels, SegmentationRegion(), tumor, x), "no verdict on the image"),
        (([0, 1, 1, 0, 1, 0, 0, 1], ClassScore(1), tumor, x), "hardly separates the images"),
    ):
        found = verdict_without_tumor(network, x, *arguments)
        assert found.verdict == CANNOT_TELL
        assert why in found.reason
    assert air_effect(network, x, inside, None, ClassScore(1)) is None


class Fold(nn.Module):
    """Nothing in its name or its class says that it ends in a normalization."""

    def __init__(self):
        super().__init__()
        self.inner = nn.Conv2d(1, 4, 3, padding=1)

    def forward(self, x):
        return nn.functional.group_norm(self.inner(x), 2)


class Net(nn.Module):
    def __init__(self, activated):
        super().__init__()
        self.fold, self.activated = Fold(), activated
        self.next, self.pool, self.fc = nn.Conv2d(4, 4, 3, padding=1), nn.AdaptiveAvgPool2d(1), nn.Linear(4, 2)

    def forward(self, x):
        x = self.fold(x)
        return self.fc(self.pool(torch.relu(self.next(torch.relu(x) if self.activated else x))).flatten(1))


def test_a_block_that_ends_in_a_normalization_an_activation_cuts_is_named_whatever_it_is_called():
    torch.manual_seed(0)
    x = torch.randn(2, 1, 8, 8)
    found = unsuitable_layer(Net(True), x, ClassScore(1), "fold", method="hirescam")
    assert found.verdict == HOLDS
    assert "is a Fold that ends in a normalization, and an activation cuts it" in found.reason
    assert unsuitable_layer(Net(False), x, ClassScore(1), "fold", method="hirescam").verdict == DOES_NOT_HOLD
    one_cell = unsuitable_layer(Net(True), x, ClassScore(1), "pool")
    assert one_cell.verdict == HOLDS
    assert "of a single cell" in one_cell.reason


def test_gradients_that_cancel_are_the_layers_fault_or_that_of_the_leak_behind_it():
    class Leaking(nn.Module):
        """Average over all places of a linear function behind an instance norm: gradients cancel in front of it."""

        def __init__(self):
            super().__init__()
            self.first, self.norm = nn.Conv2d(1, 4, 3, padding=1), nn.InstanceNorm2d(4, affine=True)
            self.weight, self.fc = nn.Parameter(torch.rand(8, 8)), nn.Linear(4, 2)

        def forward(self, x):
            return self.fc((self.norm(self.first(x)) * self.weight).mean((2, 3)))

    torch.manual_seed(0)
    x, inside, tumor, labels = pictures()
    x = x * inside
    found = diagnose(Leaking(), x, inside, ClassScore(1), "first", labels, tumor, pad=2)
    assert {f.cause: f.follows for f in found if f.verdict == FOLLOWS} == dict.fromkeys(
        ["gradient averaging", "unsuitable layer"], "normalization leak"
    )
