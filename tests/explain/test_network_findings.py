"""Air in the features of a network: by its normalization, by its pooling."""

from __future__ import annotations

import math

import pytest
import torch
from monai.networks.nets import DenseNet121
from torch import nn

from scripts.explain.findings import CANNOT_TELL, DOES_NOT_HOLD, HOLDS
from scripts.explain.gradient_findings import normalizations
from scripts.explain.network_findings import (
    first_normalization,
    normalization_leak,
    pad_with_air,
    pooling_over_air,
    with_more_air,
)
from scripts.explain.targets import ClassScore, SegmentationRegion, TumorLogOdds
from tests.explain.nets import CLS, PooledLinear, stock
from tests.networks.nets import heads, tiny


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


@pytest.mark.parametrize("size", [(1, 4), (1, 1, 4)])
def test_more_air_is_the_middle_of_each_images_own(size):
    x, inside = torch.full((2, 2, *size), 9.0), torch.ones(2, 1, *size)
    inside[0, ..., :3] = 0
    x[0, 0, ..., :3], x[0, 1, ..., :3] = torch.tensor([1.0, 3.0, 50.0]), -2.0
    padded = pad_with_air(x, inside, 1)
    assert padded.shape == (2, 2, *(n + 2 for n in size))
    core = padded[(slice(None), slice(None), *[slice(1, -1)] * len(size))]
    assert torch.equal(core, x)
    rim = padded.clone()
    rim[(slice(None), slice(None), *[slice(1, -1)] * len(size))] = torch.nan
    for sample, channel, value in ((0, 0, 3.0), (0, 1, -2.0), (1, 0, 0.0), (1, 1, 0.0)):  # the other has no air
        values = rim[sample, channel].flatten()
        assert values[~values.isnan()].unique().tolist() == [value]


class MixingNorm(nn.Module):
    """Adds some of the mean over all places."""

    def __init__(self, leak):
        super().__init__()
        self.leak = leak

    def forward(self, x):
        return x + self.leak * x.mean((2, 3), keepdim=True)


def strip():
    """Two columns of air, 0, and two of a head, 1."""
    x = torch.tensor([[[[0.0, 0.0, 1.0, 1.0]]]])
    return x, x != 0


@pytest.mark.parametrize(("leak", "verdict"), [(0.003, DOES_NOT_HOLD), (0.004, HOLDS)])
def test_air_may_change_the_head_by_a_thousandth(leak, verdict):
    net = nn.Sequential(MixingNorm(leak), nn.Conv2d(1, 1, 1), nn.BatchNorm2d(1)).eval()
    found = normalization_leak(net, *strip(), pad=1)
    assert found.verdict == verdict
    # The air, half of the places, moves by the deviation of 0, 0, 1, 1, so that the mean moves by half of that. With a
    # rim of air the mean is 2 / 18 in place of 1 / 2. The largest feature of the head is 1 + leak / 2.
    head = 1 + leak / 2
    expected = {
        "normalization_layers": 2.0,
        "layers_that_mix_air": float(verdict == HOLDS),
        "largest_change_by_air": leak * math.sqrt(1 / 3) / 2 / head,
        "change_of_features_with_more_air": leak * (1 / 2 - 2 / 18) / head,
        "air_to_head_magnitude": leak / 2 / head,
    }
    assert found.figures == pytest.approx(expected, rel=1e-3)
    assert ("behind '0' by 0.1%" in found.reason, "1 pixels more air" in found.reason) == (True, True)


def test_a_norm_without_air_at_its_cells_cannot_be_told():
    x, inside = strip()
    found = normalization_leak(nn.Sequential(MixingNorm(1.0)), x, torch.ones_like(inside))
    assert (found.verdict, found.figures) == (CANNOT_TELL, {})
    assert first_normalization(nn.Sequential(nn.Conv2d(1, 1, 1), nn.ReLU()), x, {}) is None
    vector = nn.Sequential(nn.Flatten(), nn.LayerNorm(4))
    assert first_normalization(vector, x, {}) is None, "its output has no places"


@pytest.mark.parametrize(
    ("labels", "probed"),
    [
        ([0, 1] * 10, True),
        ([0, 1] * 9 + [1], False),  # fewer than twenty
        ([0, 2] * 10 + [-1] * 5, True),
        ([0, 1] * 9 + [1, -1, -1], False),  # ... whose class is known
        ([1] * 15 + [0] * 5, True),
        ([1] * 16 + [0] * 4, False),  # fewer than five of a class
        ([0] * 16 + [1] * 4, False),
        (None, False),
    ],
)
def test_a_probe_needs_twenty_images_and_five_of_each_class(labels, probed):
    count = 25 if labels is None else len(labels)
    x = strip()[0].repeat(count, 1, 1, 1)
    tumor = torch.tensor(labels or [0] * count).clamp(max=1).float()
    x[:, 0, 0, 0] = tumor + 0.1 * torch.rand(count)
    inside = torch.tensor([[[[0, 0, 1, 1]]]]).repeat(count, 1, 1, 1)
    net = nn.Sequential(MixingNorm(0.0))
    figures = normalization_leak(net, x, inside, labels, pad=1).figures
    assert figures.get("corner_auc") == (1.0 if probed else None)
    assert "corner_auc" not in normalization_leak(net, x.flip(3), inside.flip(3), labels, pad=1).figures, "it is head"


def test_features_with_more_air_are_those_of_the_same_places():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 3, 2, 2), nn.ReLU())
    x = torch.rand(2, 1, 4, 8)
    inside = torch.ones(2, 1, 4, 8)
    inside[..., :2] = 0
    x = x * inside
    features, more, outputs = with_more_air(net, x, inside, "1", {}, 2)
    torch.testing.assert_close(more, features)
    assert (features.shape, outputs[1].shape) == ((2, 3, 2, 4), (2, 3, 4, 6))
    fixed = nn.Sequential(*net, nn.Flatten(), nn.Linear(24, 2))
    with pytest.raises(ValueError, match="the network takes no input of 8x12: mat1 and mat2"):
        with_more_air(fixed, x, inside, "1", {}, 2)
    with pytest.raises(RuntimeError, match="expected input"):
        with_more_air(net, x.repeat(1, 2, 1, 1), inside, "1", {}, 2)


class Pooled(nn.Module):
    """The largest feature, and so much for every cell that there is."""

    def __init__(self, by_cell, start=0.0):
        super().__init__()
        self.features, self.by_cell, self.start = nn.Conv2d(1, 1, 1, bias=False), by_cell, start
        nn.init.constant_(self.features.weight, 1.0)

    def forward(self, x):
        features = self.features(x).flatten(1)
        return (features.amax(1) + self.by_cell * features.shape[1] + self.start)[:, None]


@pytest.mark.parametrize(
    ("change", "start", "verdict"),
    [(1.1e-3, 0.0, HOLDS), (-1.1e-3, 0.0, HOLDS), (0.9e-3, 0.0, DOES_NOT_HOLD), (5e-3, 9.0, DOES_NOT_HOLD),
     (1.1e-2, 9.0, HOLDS)],
)  # fmt: skip
def test_more_air_may_change_the_score_by_a_thousandth_where_it_leaves_the_head(change, start, verdict):
    found = pooling_over_air(Pooled(change / 14, start), *strip(), ClassScore(0), "features", pad=1)  # 18 cells, of 4
    assert found.verdict == verdict
    assert found.figures["score_change_with_more_air"] == pytest.approx(abs(change), rel=0.01)
    assert found.figures["share_of_gradient_in_air"] == 0.0
    assert found.figures["share_of_air"] == 0.5
    assert ("though not the head's features" in found.reason) == (verdict == HOLDS)


class Weights(nn.Module):
    """Features, which are the image, times one weight a place."""

    def __init__(self, *weights):
        super().__init__()
        self.features, self.weights = nn.Conv2d(1, 1, 1, bias=False), torch.tensor(weights)
        nn.init.constant_(self.features.weight, 1.0)

    def forward(self, x):
        return (self.features(x)[:, 0, 0] * self.weights).sum(1, keepdim=True)


@pytest.mark.parametrize(("in_air", "verdict"), [(0.009, DOES_NOT_HOLD), (-0.011, HOLDS)])
def test_a_hundredth_of_the_gradient_may_lie_in_the_air(in_air, verdict):
    head = (1 - abs(in_air)) / 2
    found = pooling_over_air(Weights(in_air, 0.0, head, -head), *strip(), ClassScore(0), "features", pad=1)
    assert found.verdict == verdict
    assert found.figures["share_of_gradient_in_air"] == pytest.approx(abs(in_air))
    assert "could not be tried: the network takes no input of 3x6" in found.reason


def test_where_pooling_cannot_be_looked_at():
    x, inside = strip()
    nothing = pooling_over_air(Weights(0.0, 0.0, 0.0, 0.0), x, inside, ClassScore(0), "features", pad=1)
    assert (nothing.verdict, nothing.reason) == (CANNOT_TELL, "the gradient is 0 everywhere")
    dense = pooling_over_air(Weights(1.0, 1.0, 1.0, 1.0), x, inside, SegmentationRegion(), "features")
    assert (dense.verdict, dense.figures) == (DOES_NOT_HOLD, {})
    vector = pooling_over_air(nn.Sequential(nn.Flatten(), nn.Linear(4, 2)), x, inside, ClassScore(0))
    assert vector.verdict == CANNOT_TELL
    assert "the features in front of the pooling were not found: no layer of Sequential" in vector.reason
