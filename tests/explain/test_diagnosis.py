from __future__ import annotations

import math

import matplotlib
import pytest
import torch
from monai.networks.nets import DenseNet121
from monai.visualize.class_activation_maps import default_normalizer
from torch import nn

from scripts.explain.class_findings import wrong_class
from scripts.explain.diagnosis import CAUSES, diagnose
from scripts.explain.findings import CANNOT_TELL, DOES_NOT_HOLD, FOLLOWS, HOLDS
from scripts.explain.gradient_findings import (
    gradient_averaging,
    lost_gradient,
    normalizations,
    unsuitable_layer,
)
from scripts.explain.maps import max_scaling
from scripts.explain.network_findings import first_normalization, normalization_leak, pooling_over_air
from scripts.explain.targets import ClassMargin, ClassScore, SegmentationRegion, TumorLogOdds
from tests.explain.nets import InplaceResidual, PooledLinear, assert_same_state, state_of
from tests.networks.nets import heads, tiny

CLS = {"output": "cls"}


def stock(**options):
    return tiny(normalization="instance", head="average_pool", **options)


def turbo(values):
    return matplotlib.colormaps["turbo"](values)


@pytest.mark.parametrize("dims", [2, 3])
def test_normalization_leak_is_found_in_the_stock_net_and_not_in_ours(dims):
    x = heads(dims, 24 if dims == 2 else 12)
    inside = x != 0
    leak = normalization_leak(stock(dims=dims), x, inside, forward_kwargs=CLS, pad=4)
    assert leak.verdict == HOLDS
    assert leak.figures["change_of_features_with_more_air"] > 0.05
    assert leak.figures["air_to_head_magnitude"] > 0.05
    assert leak.figures["layers_that_mix_air"] == leak.figures["normalization_layers"] > 1
    ours = normalization_leak(tiny(dims), x, inside, forward_kwargs=CLS, pad=4)
    assert ours.verdict == DOES_NOT_HOLD
    assert ours.figures["change_of_features_with_more_air"] < 1e-5
    assert ours.figures["air_to_head_magnitude"] == 0.0
    assert ours.figures["largest_change_by_air"] == 0.0


def test_batch_norm_in_evaluation_mode_does_not_leak_and_no_norm_cannot():
    x = heads(size=32)
    net = DenseNet121(2, 1, 3, block_config=(2, 2), init_features=8)
    assert first_normalization(net, x, {}) == "features.norm0"
    assert normalization_leak(net, x, x != 0, pad=32).verdict == DOES_NOT_HOLD
    plain = normalization_leak(PooledLinear(), x, x != 0)
    assert plain.verdict == DOES_NOT_HOLD
    assert "no normalization layer" in plain.reason


def test_a_probe_reads_the_label_from_the_corner_of_a_stock_net():
    generator = torch.Generator().manual_seed(0)
    x, labels = heads(size=16).repeat(16, 1, 1, 1), [i % 2 for i in range(32)]
    inside = x != 0
    noise = torch.randn(x.shape, generator=generator)
    x = (noise * (1 + 2 * torch.tensor(labels).reshape(-1, 1, 1, 1)) + 0.5) * inside  # the tumors have more contrast
    leak = normalization_leak(stock(), x, inside, labels, CLS, pad=4)
    assert leak.figures["corner_auc"] > 0.9
    assert "AUC" in leak.reason
    ours = normalization_leak(tiny(), x, inside, labels, CLS, pad=4)
    assert ours.figures["corner_auc"] == 0.5  # all corners are exactly 0
    assert "corner_auc" not in normalization_leak(stock(), x[:10], inside[:10], labels[:10], CLS, pad=4).figures


def test_pooling_over_air_by_hand():
    # Global average: each cell has the same gradient, so that the share in air is the share of air.
    net, x = PooledLinear(), heads(size=16)
    inside = x != 0
    with torch.no_grad():
        net.conv.bias.fill_(5.0)  # no closed ReLU
    found = pooling_over_air(net, x, inside, ClassScore(1), "relu")
    air = 1 - float(inside.float().mean())
    assert found.verdict == HOLDS
    assert found.figures["share_of_gradient_in_air"] == pytest.approx(air, abs=1e-5)
    with torch.no_grad():
        change = (net(nn.functional.pad(x, [16] * 4)) - net(x))[:, 1].abs().max()
    assert found.figures["score_change_with_more_air"] == pytest.approx(float(change)) != 0
    ours = pooling_over_air(tiny(), heads(), heads() != 0, TumorLogOdds(), "head.features", CLS, pad=8)
    assert ours.verdict == DOES_NOT_HOLD
    assert ours.figures["share_of_gradient_in_air"] == 0.0
    assert ours.figures["score_change_with_more_air"] < 1e-4
    bad = pooling_over_air(tiny(masked_pooling=False), heads(), heads() != 0, TumorLogOdds(), "head.features", CLS, 8)
    assert bad.verdict == HOLDS
    # A log-sum-exp over 400 cells instead of 144: log(400 / 144) / sharpness less, and hardly any gradient in the air.
    assert bad.figures["score_change_with_more_air"] == pytest.approx(math.log(400 / 144) / 5, abs=1e-3)
    assert bad.figures["share_of_gradient_in_air"] < 0.01
    assert "though not the head's features" in bad.reason
    assert pooling_over_air(net, x, torch.ones_like(x), ClassScore(1), "relu").verdict == CANNOT_TELL


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


class TwoLogits(nn.Module):
    """Logits [-weight mean, mean]: the evidence for 1 lies, negated, in the other class's logit."""

    def __init__(self, weight):
        super().__init__()
        self.features, self.weight = nn.Conv2d(1, 1, 1), weight
        nn.init.constant_(self.features.weight, 1.0)

    def forward(self, x):
        mean = self.features(x).flatten(1).mean(1)
        return torch.stack([-self.weight * mean, mean], 1)


def levels(count=12):
    """Images of one value each, 0 to count - 1."""
    return torch.arange(float(count)).reshape(count, 1, 1, 1).expand(count, 1, 3, 3)


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
        (unclear, ClassScore(1), "hardly tells"),
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
            self.features = nn.Conv2d(1, 1, 1)
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


def arguments(x):
    inside = x != 0
    tumor = torch.zeros_like(x)
    tumor[..., 9:15, 9:15] = 1
    return {
        "x": x,
        "foreground": inside,
        "labels": [0, 1],
        "tumor": tumor,
        "postprocessing": max_scaling,
        "colorize": turbo,
        "forward_kwargs": CLS,
        "pad": 4,
    }


def test_nothing_holds_on_our_network_and_the_pipeline_as_it_should_be():
    network, x = tiny(), heads()
    before, original = state_of(network), x.clone()
    found = diagnose(network, target=TumorLogOdds(), **arguments(x))
    assert_same_state(before, state_of(network))
    assert torch.equal(x, original)
    assert {f.cause: f.verdict for f in found} == {
        "inverted normalizer": DOES_NOT_HOLD,
        "swapped colors": DOES_NOT_HOLD,
        "air not zero": DOES_NOT_HOLD,
        "order of transforms": DOES_NOT_HOLD,
        "source or air shortcut": CANNOT_TELL,
        "normalization leak": DOES_NOT_HOLD,
        "pooling over air": DOES_NOT_HOLD,
        "verdict without the tumor": CANNOT_TELL,
        "gradient averaging": DOES_NOT_HOLD,
        "wrong class index": CANNOT_TELL,
        "dead or saturated gradient": DOES_NOT_HOLD,
        "unsuitable layer": DOES_NOT_HOLD,
        "coarse grid": DOES_NOT_HOLD,
    }
    assert [f.cause for f in found] == list(CAUSES)
    assert all(f.reason for f in found)
    assert all(f.advice for f in found if f.verdict != CANNOT_TELL and f.figures)


def test_the_stock_design_is_told_its_two_faults_and_no_other():
    found = diagnose(stock(), target=TumorLogOdds(), layer="bottleneck", **arguments(heads()))
    assert [f.cause for f in found if f.verdict == HOLDS] == ["normalization leak", "pooling over air"]


def test_faults_of_the_pipeline_are_told_apart_from_those_of_the_network():
    x = heads(batch=2).repeat(4, 1, 1, 1)
    given = arguments(x)
    mean = x.mean((1, 2, 3), keepdim=True)
    given |= {
        "x": (x - mean) / x.std((1, 2, 3), keepdim=True),  # over the whole image, after masking
        "postprocessing": default_normalizer,
        "colorize": lambda values: turbo(values)[..., 2::-1],
        "labels": [1, 0] * 4,  # as this network tells them
        "sources": ["tumors", "healthy"] * 4,
    }
    given["forward_kwargs"] = {**CLS, "foreground": given["foreground"].float()}
    found = diagnose(tiny(), target=TumorLogOdds(), **given)
    assert [f.cause for f in found if f.verdict == HOLDS] == [
        "inverted normalizer",
        "swapped colors",
        "order of transforms",
        "source or air shortcut",
    ]
    assert {f.cause: f.follows for f in found if f.verdict == FOLLOWS} == {"air not zero": "order of transforms"}


def test_the_reference_class_has_a_dead_gradient_and_the_layer_is_not_to_blame():
    network, x = tiny(), heads()
    found = {f.cause: f for f in diagnose(network, target=ClassScore(0), **arguments(x))}
    assert found["dead or saturated gradient"].verdict == HOLDS
    assert "exactly 0 everywhere: class_0 is a constant" in found["dead or saturated gradient"].reason
    assert found["unsuitable layer"].verdict == DOES_NOT_HOLD
    assert found["gradient averaging"].verdict == CANNOT_TELL


def test_a_logit_that_is_fixed_has_no_gradient_though_the_layer_is_sound():
    class Fixed(PooledLinear):
        def forward(self, x):
            return torch.cat([super().forward(x)[:, 1:], torch.zeros(len(x), 1)], 1)

    x = heads()
    for target, why in ((ClassScore(2), "constant"), (ConstantTarget(), "constant")):
        found = {f.cause: f for f in diagnose(Fixed(), x, x != 0, target, "relu", labels=[0, 2], pad=4)}
        assert found["dead or saturated gradient"].verdict == HOLDS
        assert why in found["dead or saturated gradient"].reason
        assert found["unsuitable layer"].verdict != HOLDS


class ConstantTarget(ClassScore):
    """A score that is cut off from the network."""

    def __call__(self, output):
        return torch.zeros(len(output), requires_grad=True)

    def take(self, index):
        return self


def test_a_network_of_one_input_size_is_diagnosed_without_more_air():
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1), nn.InstanceNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(2304, 2)
    )
    x = heads()
    leak = normalization_leak(net, x, x != 0, pad=8)
    assert leak.verdict == HOLDS
    assert "more air could not be tried: the network takes no input of 40x40" in leak.reason
    pooled = pooling_over_air(net, x, x != 0, ClassScore(1), None, None, 8)
    assert pooled.verdict == HOLDS  # a linear layer over all cells reads the air's
    assert "could not be tried" in pooled.reason


def test_blocks_that_hold_a_normalization_are_no_normalizations():
    class ConvNorm(nn.Sequential):
        pass

    net = nn.Sequential(ConvNorm(nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4)), nn.ReLU())
    assert [name for name, _ in normalizations(net)] == ["0.1"]
    assert normalization_leak(net.eval(), heads(), heads() != 0, pad=4).verdict == DOES_NOT_HOLD


def test_a_layer_that_is_not_there_is_a_finding_and_the_rest_cannot_tell():
    found = {f.cause: f for f in diagnose(tiny(), target=TumorLogOdds(), layer="bottlenek", **arguments(heads()))}
    assert found["unsuitable layer"].verdict == HOLDS
    assert "nearest: 'bottleneck'" in found["unsuitable layer"].reason
    assert found["gradient averaging"].verdict == found["coarse grid"].verdict == CANNOT_TELL
    assert found["normalization leak"].verdict == DOES_NOT_HOLD
