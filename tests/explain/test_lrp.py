"""Relevance: the rules by hand, and nothing of the score gets lost in networks of any build, 2D and 3D."""

from __future__ import annotations

import monai.networks.nets as nets
import pytest
import torch
import torch.nn.functional as F
from monai.networks.blocks import ChannelSELayer
from torch import nn

from scripts.explain.layers import LayerError
from scripts.explain.lrp import lrp, output_relevance
from scripts.explain.methods import explain
from scripts.explain.relevance import relevance_rules
from scripts.explain.targets import ClassMargin, ClassScore, SegmentationRegion, TumorLogOdds
from tests.explain.nets import InplaceResidual, PooledLinear, assert_same_state, state_of
from tests.networks.nets import tiny


def handed_on(function, *inputs, relevance):
    """Relevance of each input of a function."""
    leaves = [value.clone().requires_grad_() for value in inputs]
    with relevance_rules(nn.Identity()):
        output = function(*leaves)
    assert torch.equal(output.detach(), function(*inputs))
    return torch.autograd.grad(output, leaves, relevance, allow_unused=True, materialize_grads=True)


def test_linear_rule_by_hand():
    layer = nn.Linear(3, 3, bias=True)
    layer.requires_grad_(False)
    layer.weight.copy_(torch.tensor([[2.0, -1.0, 1.0], [-1.0, -1.0, 0.0], [0.0, 0.0, 0.0]]))
    layer.bias.fill_(100.0)
    x = torch.tensor([[1.0, 2.0, 2.0]])
    # Output 0: 2 and 2 speak for it, -2 against. Output 1: only -1 and -2. Output 2: nothing at all.
    (found,) = handed_on(layer, x, relevance=torch.tensor([[4.0, 3.0, 0.0]]))
    torch.testing.assert_close(found, torch.tensor([[2.0 + 1.0, 2.0, 2.0]]))
    (found,) = handed_on(layer, x, relevance=torch.tensor([[0.0, 0.0, 3.0]]))
    torch.testing.assert_close(found, torch.tensor([[1.0, 1.0, 1.0]]))
    (found,) = handed_on(layer, -x, relevance=torch.tensor([[3.0, 0.0, 0.0]]))  # -1 times -2 speaks for it
    torch.testing.assert_close(found, torch.tensor([[0.0, 3.0, 0.0]]))


def test_sums_gates_and_averages_by_hand():
    a, b, given = torch.tensor([[3.0, -1.0, 2.0]]), torch.tensor([[1.0, 4.0, -2.0]]), torch.tensor([[8.0, 5.0, 2.0]])
    of_a, of_b = handed_on(torch.add, a, b, relevance=given)
    assert of_a.tolist() == [[6.0, 0.0, 2.0]]  # 3 of 4; 4 alone has the direction of 3; 2 of 2 in that of 0
    assert of_b.tolist() == [[2.0, 5.0, 0.0]]
    of_a, of_b = handed_on(lambda p, q: p - q, a, b, relevance=given)
    assert of_a.tolist() == [[8.0, 1.0, 1.0]]  # 2 = 3 - 1: 3 alone; -5: 1 of 5; 4: 2 of 4
    assert of_b.tolist() == [[0.0, 4.0, 1.0]]
    of_x, of_gate = handed_on(lambda p, q: p * torch.sigmoid(q), 9 * b, a, relevance=given)
    assert (of_x.tolist(), of_gate.tolist()) == (given.tolist(), [[0.0, 0.0, 0.0]])
    for function in (lambda v: 5 * v, lambda v: v / -2, lambda v: 1 - v, lambda v: v + 7, F.leaky_relu):
        assert handed_on(function, a, relevance=given)[0].tolist() == given.tolist()
    (found,) = handed_on(lambda v: v.mean(1), a, relevance=torch.tensor([10.0]))
    torch.testing.assert_close(found, torch.tensor([[6.0, 0.0, 4.0]]))
    (found,) = handed_on(lambda v: v.repeat(1, 2), a, relevance=torch.arange(6.0).reshape(1, 6))
    assert found.tolist() == [[3.0, 5.0, 7.0]]
    (found,) = handed_on(lambda v: v.amax(1), a, relevance=torch.tensor([10.0]))
    assert found.tolist() == [[10.0, 0.0, 0.0]]


@pytest.mark.parametrize(
    ("name", "layer", "shape"),
    [
        ("ConvTranspose2d", nn.ConvTranspose2d(3, 2, 3, 2, 1), (2, 3, 5, 5)),
        ("ConvTranspose3d", nn.ConvTranspose3d(3, 2, 2, 2), (2, 3, 3, 3, 3)),
        ("Conv3d", nn.Conv3d(3, 4, 3, 2, 1), (2, 3, 5, 5, 5)),
        ("grouped", nn.Conv2d(4, 4, 3, padding=1, groups=2), (2, 4, 5, 5)),
        ("InstanceNorm3d", nn.InstanceNorm3d(3, affine=True), (2, 3, 4, 4, 4)),
        ("GroupNorm", nn.GroupNorm(2, 4), (2, 4, 4, 4)),
        ("BatchNorm", nn.BatchNorm2d(3).eval(), (2, 3, 4, 4)),
        ("upsampling", nn.Upsample(scale_factor=2, mode="bilinear"), (2, 3, 4, 4)),
        ("pooling", nn.AdaptiveAvgPool3d(2), (2, 3, 4, 4, 4)),
        ("maximum", nn.MaxPool2d(2), (2, 3, 4, 4)),
        ("padding", nn.Sequential(nn.ZeroPad2d((2, 1, 3, 0)), nn.Conv2d(3, 2, 3)), (2, 3, 4, 4)),
    ],
)
def test_every_layer_hands_on_what_it_was_given(name, layer, shape):
    torch.manual_seed(0)
    layer.requires_grad_(False)
    x = torch.randn(shape)
    x[0, :, :2] = 0.0
    given = torch.randn(layer(x).shape)
    (found,) = handed_on(layer, x, relevance=given)
    torch.testing.assert_close(found.flatten(1).sum(1), given.flatten(1).sum(1), atol=1e-4, rtol=1e-4)


def _unet(dims):
    return nets.DynUNet(dims, 1, 2, [3, 3, 3], [1, 2, 2], [2, 2], filters=[2, 4, 4], res_block=True)


NETWORKS = {
    "DenseNet": lambda: nets.DenseNet(2, 1, 3, init_features=4, growth_rate=2, block_config=(2, 2)),
    "DenseNet 3D": lambda: nets.DenseNet(3, 1, 3, init_features=4, growth_rate=2, block_config=(2,)),
    "ResNet": lambda: nets.resnet10(spatial_dims=2, n_input_channels=1, num_classes=3, widen_factor=0.1),
    "SE": lambda: nn.Sequential(nn.Conv2d(1, 8, 3), ChannelSELayer(2, 8), nn.Flatten(), nn.LazyLinear(3)),
    "DynUNet": lambda: _unet(2),
    "DynUNet 3D": lambda: _unet(3),
    "HighResNet": lambda: nets.HighResNet(2, 1, 2),
    "U-Net": lambda: nets.UNet(2, 1, 2, (4, 8), (2,), num_res_units=1),
    "SegResNet": lambda: nets.SegResNet(2, 8, 1, 2, blocks_down=(1, 1), blocks_up=(1,)),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_relevance_of_the_image_adds_up_to_the_score(name):
    torch.manual_seed(0)
    net = NETWORKS[name]()
    x = torch.randn(2, 1, *[32 if name == "ResNet" else 16] * (3 if "3D" in name else 2))
    dense = name.split()[0] in ("DynUNet", "HighResNet", "U-Net", "SegResNet")
    with torch.no_grad():
        net(x)  # shapes of the lazy layer
    region = torch.rand(2, 1, *x.shape[2:]) > 0.5
    target = SegmentationRegion(region) if dense else ClassMargin(2, 0)
    before = state_of(net)
    result = lrp(net, x, "input", target, signed=True)
    assert_same_state(before, state_of(net))
    torch.testing.assert_close(result.maps["lrp", "input"].flatten(1).sum(1), result.score, atol=1e-3, rtol=1e-3)
    alone = lrp(net, x[1:], "input", SegmentationRegion(region[1:]) if dense else target, signed=True)
    torch.testing.assert_close(result.maps["lrp", "input"][1:], alone.maps["lrp", "input"], atol=1e-5, rtol=1e-3)


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("evidence", ["signed", "rectified"])
def test_our_network_at_its_layers(dims, evidence):
    torch.manual_seed(0)
    net = tiny(dims, evidence=evidence).eval()
    x = torch.rand(2, 1, *[16] * dims) + 0.1
    x[:, :, :4] = 0.0
    layers = ["input", "input_block", "head.features"]
    result = lrp(net, x, layers, TumorLogOdds(), {"output": "cls"}, signed=True)
    for layer in layers:
        torch.testing.assert_close(result.maps["lrp", layer].flatten(1).sum(1), result.score, atol=1e-3, rtol=1e-3)
    assert float(result.maps["lrp", "input"][:, :, :4].abs().max()) == 0.0
    region = x > 0
    dense = lrp(net, x, "input", SegmentationRegion(region), {"output": "seg"}, signed=True)
    torch.testing.assert_close(dense.maps["lrp", "input"].flatten(1).sum(1), dense.score, atol=1e-3, rtol=1e-3)


def test_outputs_that_the_image_does_not_change_get_nothing():
    output = torch.tensor([[1.0, 3.0, 2.0]])
    found = output_relevance(ClassMargin(1, 0), output, torch.tensor([[False, True, True]]))
    assert found.tolist() == [[0.0, 2.0, 0.0]]
    found = output_relevance(ClassMargin(1, 0), output, torch.ones(1, 3, dtype=torch.bool))
    assert found.tolist() == [[-1.0, 3.0, 0.0]]


def test_goes_through_the_same_door_and_takes_in_place_networks():
    torch.manual_seed(0)
    x = torch.randn(2, 1, 6, 6)
    result = explain(PooledLinear(inplace=True), x, ["lrp", "gradcam"], ["relu"], ClassScore(1))
    assert list(result.maps) == [("lrp", "relu"), ("gradcam", "relu")]
    one, other = InplaceResidual(True), InplaceResidual(False)
    other.load_state_dict(one.state_dict())
    maps = [lrp(net, x, "conv2", ClassScore(1)).maps["lrp", "conv2"] for net in (one, other)]
    assert float(maps[0].max()) > 0
    torch.testing.assert_close(*maps)


class Double(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return 2 * x

    @staticmethod
    def backward(ctx, gradient):
        return 2 * gradient


class Hidden(nn.Module):
    def forward(self, x):
        return Double.apply(x)


class Unruly(nn.Module):
    def forward(self, x):
        return torch.sin(x)


def test_no_map_where_relevance_is_lost_or_has_no_rule():
    torch.manual_seed(0)
    x = torch.rand(1, 1, 4, 4)
    linear = [nn.Flatten(), nn.Linear(16, 2)]
    with pytest.raises(LayerError, match="there is no rule for 'sin'"):
        lrp(nn.Sequential(Unruly(), *linear), x, "input", ClassScore(1))
    with pytest.raises(LayerError, match=r"that of the image adds up to .* where the score of sample 0 is"):
        lrp(nn.Sequential(Hidden(), *linear, nn.Linear(2, 2, bias=False)), 90 * x, "input", ClassScore(1))
    with pytest.raises(LayerError, match="layer 'inputs' not in Sequential"):
        lrp(nn.Sequential(*linear), x, "inputs", ClassScore(1))
