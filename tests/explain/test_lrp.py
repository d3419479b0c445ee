"""Relevance: the rules by hand, and nothing of the score gets lost in networks of any build, 2D and 3D."""

from __future__ import annotations

import math

import monai.networks.nets as nets
import pytest
import torch
import torch.nn.functional as F
from monai.networks.blocks import ChannelSELayer
from torch import nn

from scripts.explain.layers import LayerError
from scripts.explain.lrp import in_places, lrp, output_relevance
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


class Skip(nn.Module):
    """Two ways to cells of 4 pixels: `down` and, around it, `skip`. The score of class 1 is the sum of all cells."""

    def __init__(self, dims):
        super().__init__()
        conv = (nn.Conv2d, nn.Conv3d)[dims - 2]
        self.down, self.skip = (conv(1, 1, 4, 4, bias=False) for _ in range(2))
        self.cells = nn.Sequential(nn.Flatten(), nn.Linear(2**dims, 2, bias=False))
        self.requires_grad_(False)
        self.down.weight.fill_(1.0)
        self.down.weight[..., 2:] = 3.0  # the right half of a cell three times
        self.skip.weight.fill_(2.0)
        self.cells[1].weight.copy_(torch.tensor([[0.0], [1.0]]).expand(2, 2**dims))

    def forward(self, x):
        return self.cells(self.down(x) + self.skip(x))


@pytest.mark.parametrize("dims", [2, 3])
def test_relevance_in_places_by_hand_in_a_network_with_a_skip(dims):
    x = torch.zeros(1, 1, *[8] * dims)
    place = 2**dims  # pixels of a place of 2
    x[(0, 0, *[slice(0, 2)] * dims)] = 1.0  # first cell: a place of 1 on the left ...
    x[(0, 0, *[slice(0, 2)] * (dims - 1), slice(2, 4))] = 2.0  # ... and one of 2 on the right
    x[(0, 0, *[slice(4, 8)] * dims)] = 1.0  # last cell: all of it
    net, layers = Skip(dims), ["down", "skip"]
    result = explain(net, x, ["lrp", "lrp_places"], layers, ClassScore(1))
    first, last = (0,) * dims, (1,) * dims
    whole = 4**dims
    down, skip = (result.maps["lrp", layer][0, 0] for layer in layers)
    found = [float(values[cell]) for cell in (first, last) for values in (down, skip)]
    assert found == pytest.approx([place * (1 + 3 * 2), place * (2 + 2 * 2), whole * 2, whole * 2])
    places = result.maps["lrp_places", "down"][0, 0]
    assert places.shape == (4,) * dims
    assert float(places[first]) == pytest.approx(place)  # 7 : 1 part of 7 on the left, 6 on the right
    assert float(places[(0,) * (dims - 1) + (1,)]) == pytest.approx(place * 6)
    assert float(places[(2,) * dims]) == pytest.approx(place)
    assert float(places[(3,) * dims]) == pytest.approx(place * 3)
    by_hand = {"down": torch.zeros(4, 4), "skip": torch.zeros(4, 4)}
    by_hand["down"][0, :2] = torch.tensor([1.0, 6.0])
    by_hand["skip"][0, :2] = torch.tensor([2.0, 4.0])
    by_hand["down"][2:, 2], by_hand["down"][2:, 3], by_hand["skip"][2:, 2:] = 1.0, 3.0, 2.0
    if dims == 2:
        for layer, expected in by_hand.items():
            torch.testing.assert_close(result.maps["lrp_places", layer][0, 0], place * expected)
    total = sum(float(result.maps["lrp_places", layer].sum()) for layer in layers)
    assert total == pytest.approx(
        float(result.score)
    )  # the two layers are a cut: nothing of the score goes around them


@pytest.mark.parametrize("dims", [2, 3])
def test_each_cell_keeps_its_relevance_when_it_is_divided(dims):
    torch.manual_seed(0)
    net = tiny(dims).eval()
    x = torch.rand(2, 1, *[32 if dims == 2 else 16] * dims) + 0.1
    kwargs = {"signed": True, "methods": ("lrp", "lrp_places")}
    result = lrp(net, x, ["input_block", "bottleneck"], TumorLogOdds(), {"output": "cls"}, **kwargs)
    cells, places = (result.maps[method, "bottleneck"] for method in kwargs["methods"])
    times = places.shape[2] // cells.shape[2]
    assert times > 1
    assert float(cells.abs().max()) > 0
    pool = F.avg_pool2d if dims == 2 else F.avg_pool3d
    torch.testing.assert_close(pool(places, times) * times**dims, cells)
    assert places.flatten(1).unique(dim=1).shape[1] > cells.flatten(1).shape[1]  # and it lies unevenly in them
    pixels, joined = (result.maps[method, "input_block"] for method in kwargs["methods"])
    torch.testing.assert_close(pool(pixels, 2) * 2**dims, joined)  # its cells are pixels
    alone = lrp(net, x[1:], "bottleneck", TumorLogOdds(), {"output": "cls"}, **kwargs)
    torch.testing.assert_close(alone.maps["lrp_places", "bottleneck"], places[1:], atol=1e-6, rtol=1e-3)


def test_cells_that_are_no_multiple_of_places_lose_nothing():
    handed_on = torch.tensor([[[-3.0, -3.0, 0.0, 2.0, *[0.0] * 5]]])  # 9 pixels of 2 cells: 2 places each
    assert in_places(torch.tensor([[[-8.0, 2.0]]]), handed_on).tolist()[0][0][2:] == [1.0, 1.0]
    assert in_places(torch.tensor([[[1.0, 2.0, 3.0]]]), torch.rand(1, 1, 5)).tolist() == [[[1.0, 2.0, 3.0]]]
    assert in_places(handed_on, handed_on).tolist() == [[[-6.0, 2.0, 0.0, 0.0, 0.0]]]  # the last place is half air
    cells = torch.randn(2, 1, 3, 7, generator=torch.Generator().manual_seed(0))
    places = in_places(cells, torch.rand(2, 1, 24, 7))
    assert places.shape == (2, 1, 12, 4)  # divided along one axis, joined along the other
    torch.testing.assert_close(places.flatten(1).sum(1), cells.flatten(1).sum(1))


def test_outputs_that_the_image_does_not_change_get_nothing():
    output = torch.tensor([[1.0, 3.0, 2.0]])
    found = output_relevance(ClassMargin(1, 0), output, torch.tensor([[False, True, True]]))
    assert found.tolist() == [[0.0, 2.0, 0.0]]
    found = output_relevance(ClassMargin(1, 0), output, torch.ones(1, 3, dtype=torch.bool))
    assert found.tolist() == [[-1.0, 3.0, 0.0]]


def test_maps_of_an_image_without_any_evidence_are_empty_and_no_error():
    torch.manual_seed(0)
    net = tiny(2, evidence="rectified").eval()
    with torch.no_grad():
        net.head.evidence.conv.weight.zero_()
    x = torch.rand(1, 1, 16, 16) + 0.1
    methods, layers = ["lrp", "lrp_places"], ["bottleneck", "head.features"]
    result = explain(net, x, methods, layers, TumorLogOdds(), forward_kwargs={"output": "cls"}, signed=True)
    assert float(result.score) != 0
    assert all(not bool(map_.any()) for map_ in result.maps.values())


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


def test_relevance_of_outputs_by_hand():
    every = torch.ones(1, 3, dtype=torch.bool)
    output = torch.tensor([[1.0, 3.0, 3.0]])
    # Slopes -1, 1/2 and 1/2, so that -1, 1.5 and 1.5; what is missing of log(2 e^3) - 1 lies by the slopes' size.
    missing = (math.log(2) + 3 - 1) - 2
    found = output_relevance(TumorLogOdds(), output, every)
    torch.testing.assert_close(found, torch.tensor([[-1 + missing / 2, 1.5 + missing / 4, 1.5 + missing / 4]]))
    torch.testing.assert_close(found.sum(1), TumorLogOdds()(output))
    none = output_relevance(ClassScore(1), output, torch.zeros(1, 3, dtype=torch.bool))
    assert none.tolist() == [[0.0, 0.0, 0.0]]
    both = output_relevance(ClassScore([0, 2]), torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, -6.0]]), torch.ones(2, 3) > 0)
    assert both.tolist() == [[1.0, 0.0, 0.0], [0.0, 0.0, -6.0]]


def test_places_of_other_sizes_by_hand():
    pixels = torch.tensor([[[1.0, 3.0, 0.0, 4.0, 2.0, 2.0]]])
    assert in_places(torch.tensor([[[12.0]]]), pixels, 3).flatten().tolist() == pytest.approx([4.0, 8.0])
    assert in_places(pixels, pixels, 3).flatten().tolist() == pytest.approx([4.0, 8.0])
    assert in_places(pixels, pixels, 1).tolist() == pixels.tolist()
    assert in_places(torch.tensor([[[9.0]]]), 0 * pixels).flatten().tolist() == pytest.approx([3.0] * 3), "evenly"
    cube = torch.zeros(1, 1, 4, 4, 4)
    cube[0, 0, 0, 0, 0] = 5.0
    assert float(in_places(torch.ones(1, 1, 1, 1, 1), cube)[0, 0, 0, 0, 0]) == 1.0
    assert in_places(cube, cube).shape == (1, 1, 2, 2, 2)


def test_negative_scores_have_an_empty_map_unless_it_is_signed():
    net = nn.Sequential(nn.Flatten(), nn.Linear(4, 2, bias=False))
    net[1].weight.data = torch.tensor([[-1.0, -2.0, 0.0, 0.0], [1.0, 0.0, 0.0, 0.0]])
    x = torch.ones(1, 1, 2, 2)
    signed = lrp(net, x, "input", ClassScore(0), signed=True)
    assert signed.maps["lrp", "input"].flatten().tolist() == [-1.0, -2.0, 0.0, 0.0]
    assert (signed.score.tolist(), signed.output.tolist()) == ([-3.0], [[-3.0, 1.0]])
    assert not lrp(net, x, "input", ClassScore(0)).maps["lrp", "input"].any()
    positive = lrp(net, x, "input", ClassScore(1)).maps["lrp", "input"]
    assert positive.flatten().tolist() == [1.0, 0.0, 0.0, 0.0]


def test_a_layer_beside_the_way_of_the_score_is_refused():
    class Aside(nn.Module):
        def __init__(self):
            super().__init__()
            self.aside, self.fc = nn.Conv2d(1, 1, 1), nn.Linear(16, 2, bias=False)

        def forward(self, x):
            self.aside(x)
            return self.fc(x.flatten(1))

    with pytest.raises(LayerError, match="the target does not depend on layer 'aside' of Aside"):
        lrp(Aside(), torch.rand(1, 1, 4, 4) + 0.1, "aside", ClassScore(1))


@pytest.mark.parametrize(("lost", "refused"), [(0.9e-3, False), (1.1e-3, True), (-1.1e-3, True)])
def test_a_thousandth_of_the_score_may_get_lost(lost, refused):
    class Losing(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, relevance):
            return relevance * (1 - lost)

    class Net(nn.Module):
        def forward(self, x):
            return Losing.apply(x.flatten(1)).sum(1, keepdim=True) * 1.0

    x = torch.tensor([[[[1.0, 3.0]]], [[[10.0, 30.0]]]])
    if refused:
        with pytest.raises(LayerError, match=r"where the score of sample 0 is 4;|where the score of sample 1 is 40;"):
            lrp(Net(), x, "input", ClassScore(0))
    else:
        torch.testing.assert_close(lrp(Net(), x, "input", ClassScore(0)).maps["lrp", "input"], x, rtol=2e-3, atol=0)
