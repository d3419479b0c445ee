"""Gradients that are averaged away, lost, or taken at a layer that is not suited."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from scripts.explain.findings import CANNOT_TELL, DOES_NOT_HOLD, HOLDS
from scripts.explain.gradient_findings import gradient_averaging, lost_gradient, unsuitable_layer
from scripts.explain.targets import ClassMargin, ClassScore, SegmentationRegion, TumorLogOdds
from tests.explain.nets import CLS, InplaceResidual, PooledLinear, stock
from tests.networks.nets import heads, tiny


class Corner(nn.Module):
    """Activations everywhere, of which the score reads the head (the last column) alone."""

    def __init__(self):
        super().__init__()
        self.features = nn.Conv2d(1, 1, 1)
        nn.init.constant_(self.features.weight, 1.0)
        nn.init.constant_(self.features.bias, 1.0)

    def forward(self, x):
        return self.features(x)[:, :, :, -1:].flatten(1).sum(1, keepdim=True)


def test_gradient_averaging_by_hand():
    x, inside = torch.ones(1, 1, 4, 4), torch.zeros(1, 1, 4, 4)
    inside[..., -1] = 1
    # Grad-CAM is the same everywhere, 12 of 16 cells are air and without gradient; HiResCAM has nothing there.
    found = gradient_averaging(Corner(), x, inside, ClassScore(0), "features")
    assert found.verdict == HOLDS
    assert found.figures == {
        "coherence": 1.0,
        "gradcam_energy_in_air": 0.75,
        "hirescam_energy_in_air": 0.0,
        "gradcam_energy_without_gradient": 0.75,
    }
    assert "+75.0% against HiResCAM" in found.reason
    network, image = tiny(), heads()
    ours = gradient_averaging(network, image, image != 0, TumorLogOdds(), "head.features", CLS)
    assert (ours.verdict, ours.figures["gradcam_energy_in_air"]) == (DOES_NOT_HOLD, 0.0)
    # With a global average right behind, the average takes nothing away: the air comes from elsewhere.
    same = gradient_averaging(stock(), image, image != 0, TumorLogOdds(), "bottleneck", CLS)
    assert same.verdict == DOES_NOT_HOLD
    assert same.figures["gradcam_energy_in_air"] == pytest.approx(same.figures["hirescam_energy_in_air"], abs=1e-4)
    cancelled = gradient_averaging(InplaceResidual(), image, image != 0, ClassMargin(1, 0), "conv2")
    assert cancelled.verdict == HOLDS
    assert "cancel over space" in cancelled.reason


def test_lost_gradient():
    x = torch.stack([torch.full((1, 4, 4), -50.0), torch.full((1, 4, 4), 1.0)])

    class Probability(nn.Module):
        def __init__(self):
            super().__init__()
            self.features = nn.Conv2d(1, 1, 1, bias=False)
            nn.init.constant_(self.features.weight, 1.0)

        def forward(self, image):
            return self.features(image).flatten(1).mean(1, keepdim=True).sigmoid()

    found = lost_gradient(Probability(), x, ClassScore(0), "features")
    assert found.verdict == HOLDS
    assert found.figures["share_of_images_without_gradient"] == 0.5
    assert lost_gradient(Probability(), x[1:], ClassScore(0), "features").verdict == DOES_NOT_HOLD
    dead = nn.Sequential(nn.Conv2d(1, 1, 1), nn.ReLU(), nn.Flatten(), nn.Linear(16, 1))
    nn.init.constant_(dead[0].weight, 0.0)
    nn.init.constant_(dead[0].bias, -1.0)
    assert lost_gradient(dead, x, ClassScore(0), "0").figures["share_of_channels_without_gradient"] == 1.0


def test_images_without_a_predicted_region_have_no_gradient_that_could_be_lost():
    x = torch.full((2, 1, 4, 4), -1.0)
    x[1, :, :2, :2] = 3.0
    net = nn.Sequential(nn.Conv2d(1, 2, 1, bias=False), nn.Conv2d(2, 2, 1, bias=False))
    net[0].weight.data = torch.tensor([0.0, 1.0]).reshape(2, 1, 1, 1)
    net[1].weight.data = torch.eye(2).reshape(2, 2, 1, 1)
    found = lost_gradient(net, x, SegmentationRegion(channel=1), "0")
    assert (found.verdict, found.figures["share_of_images_without_gradient"]) == (DOES_NOT_HOLD, 0.0)
    nothing = lost_gradient(net, x[:1], SegmentationRegion(channel=1), "0")
    assert (nothing.verdict, nothing.reason) == (CANNOT_TELL, "segmentation_1_predicted is empty in all images")


def test_unsuitable_layer():
    x = torch.randn(2, 1, 8, 8)
    missing = unsuitable_layer(PooledLinear(), x, ClassScore(0), "rellu")
    assert missing.verdict == HOLDS
    assert "nearest: 'relu'" in missing.reason
    assert unsuitable_layer(InplaceResidual(), x, ClassScore(0), "lrelu").verdict == HOLDS  # runs twice
    assert unsuitable_layer(InplaceResidual(), x, ClassScore(0), "conv2").verdict == HOLDS  # cancels
    norm = unsuitable_layer(InplaceResidual(), x, ClassScore(0), "norm1")
    assert norm.verdict == HOLDS
    assert 0.2 < norm.figures["share_of_negative_activations"] < 0.8
    assert unsuitable_layer(PooledLinear(), x, ClassScore(0), "relu").verdict == DOES_NOT_HOLD
