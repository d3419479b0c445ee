"""Gradients that are averaged away, lost, or taken at a layer that is not suited."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from scripts.explain.findings import CANNOT_TELL, DOES_NOT_HOLD, HOLDS
from scripts.explain.gradient_findings import (
    activations_and_gradients,
    cells_with_head,
    gradient_averaging,
    logits_of,
    lost_gradient,
    normalizations,
    unsuitable_layer,
)
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


class Places(nn.Module):
    """One logit: features, which are the image, times a weight a place, plus an offset; and a constant one."""

    def __init__(self, *weights, gain=1.0):
        super().__init__()
        self.features, self.weights = nn.Conv2d(1, 1, 1, bias=False), torch.tensor(weights)
        nn.init.constant_(self.features.weight, 1.0)
        self.gain = gain

    def forward(self, x, offset=0.0):
        score = self.gain * (self.features(x)[:, 0, 0] * self.weights).sum(1) + offset
        return torch.stack([score, torch.ones_like(score)], 1)


def line(*values):
    """Images (B, 1, 1, N)."""
    return torch.tensor(values).reshape(-1, 1, 1, len(values[0]))


@pytest.mark.parametrize("size", [(1, 2), (1, 2, 2)])
def test_cells_with_any_foreground(size):
    foreground = torch.zeros(1, 1, 4, 8) if len(size) == 2 else torch.zeros(1, 1, 4, 8, 2)
    foreground[0, 0, 3, 4] = -1
    expected = [False, True] if len(size) == 2 else [False, False, True, True]
    assert cells_with_head(foreground, size).flatten().tolist() == expected
    assert cells_with_head(foreground, size).shape == (1, 1, *size)


def test_many_images_go_through_in_parts_with_arguments_of_their_own():
    net, x, offset = Places(1.0, 2.0), torch.rand(19, 1, 1, 2), torch.arange(19.0)
    sizes = []
    net.register_forward_hook(lambda _m, inputs, _o: sizes.append(len(inputs[0])))
    score, activations, gradients = activations_and_gradients(
        net, x, "features", ClassScore([0] * 19), {"offset": offset}
    )
    torch.testing.assert_close(score, x[:, 0, 0, 0] + 2 * x[:, 0, 0, 1] + offset)
    torch.testing.assert_close(activations, x)
    assert gradients.flatten(1).tolist() == [[1.0, 2.0]] * 19
    torch.testing.assert_close(logits_of(net, x, {"offset": offset})[:, 0], score)
    assert sum(sizes) == 2 * 19
    assert max(sizes) < 19
    with pytest.raises(TypeError, match="Pair returned tuple; expected one tensor"):
        logits_of(Pair(), x, {})


class Pair(nn.Module):
    def forward(self, x):
        return x, x


@pytest.mark.parametrize(("in_air", "verdict"), [(0.94, DOES_NOT_HOLD), (0.83, DOES_NOT_HOLD), (0.80, HOLDS)])
def test_grad_cam_may_have_five_points_more_of_its_energy_in_the_air(in_air, verdict):
    # Two cells of four are air: half of Grad-CAM; of HiResCAM in_air / (1 + in_air), of 0.8: 44 %, of 0.83: 45.4 %.
    x, inside = line((1.0, 1.0, 1.0, 1.0)), line((0.0, 0.0, 1.0, 1.0))
    found = gradient_averaging(Places(in_air, 0.0, 0.5, 0.5), x, inside, ClassScore(0), "features")
    assert found.verdict == verdict
    assert found.figures["gradcam_energy_in_air"] == pytest.approx(0.5)
    assert found.figures["hirescam_energy_in_air"] == pytest.approx(in_air / (1 + in_air))
    assert found.figures["gradcam_energy_without_gradient"] == pytest.approx(0.25)
    other = gradient_averaging(Places(0.0, 0.0, 0.5, 0.5), x, inside, ClassScore(0), "features", method="hirescam")
    assert other.verdict == DOES_NOT_HOLD
    assert other.reason.startswith("hirescam averages no gradient; Grad-CAM at 'features' has 50.0% of its energy")


def test_gradients_below_a_thousandth_of_the_largest_are_silent():
    x, inside = line((1.0, 1.0, 1.0, 1.0)), line((1.0, 1.0, 1.0, 1.0))
    found = gradient_averaging(Places(1.0, 1.1e-3, 0.9e-3, 0.0), x, inside, ClassScore(0), "features")
    assert found.figures["gradcam_energy_without_gradient"] == pytest.approx(0.5)
    empty = gradient_averaging(Places(-1.0, -1.0, 0.0, 0.0), x, inside, ClassScore(0), "features")
    assert (empty.verdict, empty.reason) == (CANNOT_TELL, "Grad-CAM is empty for every image")
    assert empty.figures == {"coherence": 1.0}


@pytest.mark.parametrize(
    ("effect", "offset", "verdict"),
    [(0.9e-6, 0.0, HOLDS), (1.1e-6, 0.0, DOES_NOT_HOLD), (0.9e-3, 1e3, HOLDS), (1.1e-3, -1e3, DOES_NOT_HOLD)],
)
def test_an_effect_below_a_millionth_of_the_score_is_dead(effect, offset, verdict):
    x = line((1.0, -1.0, 1.0, 1.0), (1e9, 1.0, 1.0, 1.0))
    net = Places(1.0, 1.0, 1.0, 1.0, gain=effect / 4)
    found = lost_gradient(net, x, ClassScore(0), "features", {"offset": torch.tensor([offset, 0.0])})
    assert found.verdict == verdict
    assert found.figures["share_of_images_without_gradient"] == (0.5 if verdict == HOLDS else 0.0)
    assert found.figures["share_of_channels_without_gradient"] == 0.0
    assert found.figures["smallest_effect"] == pytest.approx(effect)


def test_a_score_that_is_a_constant_has_no_gradient():
    x = line((1.0, 2.0))
    constant = lost_gradient(Places(1.0, 2.0), x, ClassScore(1), "features")
    assert constant.verdict == HOLDS
    zero = lost_gradient(Places(0.0, 0.0), x, ClassScore(0), "features")
    assert zero.verdict == HOLDS
    assert "is exactly 0 everywhere: class_0 is a constant there" in zero.reason
    assert zero.figures["smallest_effect"] == 0.0

    class Fixed(Places):
        def forward(self, x):
            score = super().forward(x)[:, 0]
            return torch.cat([score[:, None], torch.zeros(len(x), 1)], 1)

    class Constant(ClassScore):
        def __call__(self, output):
            return torch.zeros(len(output), requires_grad=True)

        def take(self, index):
            return self

    fixed = lost_gradient(Fixed(1.0, 2.0), x, Constant(1), "features")
    assert (fixed.verdict, fixed.figures) == (HOLDS, {"share_of_images_without_gradient": 1.0})
    assert "it is a constant there, while other outputs are not" in fixed.reason
    elsewhere = unsuitable_layer(Fixed(1.0, 2.0), x, Constant(1), "features")
    assert (elsewhere.verdict, elsewhere.figures) == (CANNOT_TELL, {})
    assert "see 'dead or saturated gradient'" in elsewhere.reason


def test_a_suitable_layer_is_described_and_one_cell_is_none():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 2, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2, 2))
    x = torch.randn(1, 1, 4, 6)
    found = unsuitable_layer(net, x, ClassScore(0), "1")
    assert "'1' is a ReLU on a grid of 4x6 that runs once (coherence of its gradients 1)" in found.reason
    assert found.figures == {"share_of_negative_activations": 0.0, "coherence": 1.0}
    single = unsuitable_layer(net, x, ClassScore(0), "2")
    assert single.verdict == HOLDS
    assert "'2' is a AdaptiveAvgPool2d of a single cell" in single.reason
    none = unsuitable_layer(net, x, ClassScore(0), "3")
    assert (none.verdict, none.figures) == (HOLDS, {})
    # A layer that the score does not look at, where the default layer has what it looks at.
    idle = nn.Sequential(nn.Conv2d(1, 2, 1), nn.ReLU(), nn.Conv2d(2, 2, 1), nn.Flatten(2), Last())
    nn.init.constant_(idle[0].bias, -100.0)
    aside = unsuitable_layer(idle, x, ClassScore(0), "0")
    assert aside.verdict == HOLDS
    assert "no place of '0' matters to class_0, and those of the default layer do" in aside.reason


class Last(nn.Module):
    def forward(self, x):
        return x.mean(2)


def test_the_last_features_of_a_network_may_be_those_of_a_normalization():
    torch.manual_seed(0)
    tail = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 2)]
    x = torch.randn(2, 1, 6, 6)
    last = nn.Sequential(nn.Conv2d(1, 3, 1), nn.BatchNorm2d(3), *tail)
    assert unsuitable_layer(last, x, ClassScore(0), "1").verdict == DOES_NOT_HOLD
    behind = nn.Sequential(nn.Conv2d(1, 3, 1), nn.BatchNorm2d(3), nn.ReLU(), nn.Conv2d(3, 3, 1), *tail)
    found = unsuitable_layer(behind, x, ClassScore(0), "1")
    assert found.verdict == HOLDS
    assert "'1' is a BatchNorm2d: its output is not what the layers behind it read" in found.reason


def test_gradients_that_cancel_concern_the_methods_that_average_them():
    torch.manual_seed(0)
    net, x = InplaceResidual(), torch.randn(2, 1, 8, 8)
    assert unsuitable_layer(net, x, ClassScore(0), "conv2", method="hirescam").verdict == DOES_NOT_HOLD
    for method in ("gradcam", "gradcam++"):
        found = unsuitable_layer(net, x, ClassScore(0), "conv2", method=method)
        assert found.verdict == HOLDS
        assert "no Grad-CAM at 'conv2': the gradients of every channel cancel" in found.reason


def test_normalizations_are_leaves_of_that_name():
    net = nn.Sequential(
        nn.utils.parametrizations.weight_norm(nn.Conv2d(1, 2, 1)), nn.GroupNorm(1, 2), nn.ReLU(), nn.LayerNorm(4)
    )
    assert [name for name, _ in normalizations(net)] == ["1", "3"]
    assert list(normalizations(nn.BatchNorm2d(2))) == [], "the network itself is no layer of it"
