"""Air in the features of a network: by its normalization, by its pooling."""

from __future__ import annotations

import math

import pytest
import torch
from monai.networks.nets import DenseNet121
from torch import nn

from scripts.explain.findings import CANNOT_TELL, DOES_NOT_HOLD, HOLDS
from scripts.explain.gradient_findings import normalizations
from scripts.explain.network_findings import first_normalization, normalization_leak, pooling_over_air
from scripts.explain.targets import ClassScore, TumorLogOdds
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
