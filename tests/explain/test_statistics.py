"""Frozen statistics: the exact gradient of the network whose statistics are constants, and no other output."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from scripts.explain.cam import HiResCAM, cam_pass
from scripts.explain.layers import LayerError
from scripts.explain.methods import explain
from scripts.explain.statistics import check_statistics, frozen_statistics, named, without_statistics
from scripts.explain.targets import ClassScore
from scripts.networks.normalization import ForegroundInstanceNorm
from tests.explain.nets import assert_same_state, state_of


class Functional(nn.Module):
    """A function as a module."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


class Net(nn.Module):
    """Convolution, norm, activation, convolution, pooling."""

    def __init__(self, norm, dims=2):
        super().__init__()
        conv = nn.Conv2d if dims == 2 else nn.Conv3d
        self.conv1, self.norm, self.conv2 = conv(1, 4, 3, padding=1), norm, conv(4, 2, 3, padding=1)

    def forward(self, x):
        return self.conv2(F.leaky_relu(self.norm(self.conv1(x)), 0.1)).square().flatten(2).mean(2)


NORMS = {
    "instance": (nn.InstanceNorm2d(4, affine=True), (2, 3)),
    "instance without parameters": (nn.InstanceNorm2d(4), (2, 3)),
    "batch in training": (Functional(lambda x: F.batch_norm(x, None, None, training=True)), (0, 2, 3)),
    "layer": (nn.LayerNorm([6, 6]), (2, 3)),
    "by function": (Functional(F.instance_norm), (2, 3)),
    "by keyword": (Functional(lambda x: F.group_norm(input=x, num_groups=4)), (2, 3)),
}


@pytest.mark.parametrize("name", NORMS)
def test_gradient_is_the_exact_one_where_statistics_are_constants(name):
    torch.manual_seed(0)
    norm, dims = NORMS[name]
    for parameter in norm.parameters():
        nn.init.normal_(parameter)
    net, x = Net(norm), torch.randn(2, 1, 6, 6)
    z = net.conv1(x).detach()
    mean, scale = z.mean(dims, keepdim=True), (z.var(dims, unbiased=False, keepdim=True) + 1e-5).rsqrt()
    shape = (1, 4, 1, 1) if isinstance(norm, nn.InstanceNorm2d) else (6, 6)
    weight, bias = (1.0, 0.0) if not list(norm.parameters()) else (p.reshape(shape) for p in (norm.weight, norm.bias))
    constant = Net(Functional(lambda v: (v - mean) * scale * weight + bias))
    constant.conv1, constant.conv2 = net.conv1, net.conv2
    expected = cam_pass(constant, x, "conv1", ClassScore(1), "hirescam", signed=True)
    result = cam_pass(net, x, "conv1", ClassScore(1), ["hirescam", "hirescam_frozen"], signed=True)
    torch.testing.assert_close(result.output, expected.output)
    frozen, followed = (result.maps[f"hirescam{kind}", "conv1"] for kind in ("_frozen", ""))
    torch.testing.assert_close(frozen, expected.maps["hirescam", "conv1"], atol=1e-5, rtol=1e-4)
    assert float((followed - frozen).abs().max()) > 0.01


@pytest.mark.parametrize(
    ("norm", "constant"),
    [
        (nn.GroupNorm(2, 4), lambda z: _grouped(z)),
        (nn.RMSNorm([6, 6], eps=1e-5), lambda z: z * (z.detach().square().mean((2, 3), keepdim=True) + 1e-5).rsqrt()),
    ],
)
def test_group_and_rms_norm_by_hand(norm, constant):
    torch.manual_seed(0)
    z = torch.randn(2, 4, 6, 6, requires_grad=True)
    weights = torch.randn(2, 4, 6, 6)
    (expected,) = torch.autograd.grad((constant(z) * weights).sum(), z)
    with frozen_statistics(norm):
        value = norm(z)
    torch.testing.assert_close(value, norm(z))
    (gradient,) = torch.autograd.grad((value * weights).sum(), z)
    torch.testing.assert_close(gradient, expected)


def _grouped(z):
    flat = z.detach().reshape(2, 2, -1)
    mean, scale = flat.mean(2), (flat.var(2, unbiased=False) + 1e-5).rsqrt()
    each = [t.repeat_interleave(2, 1).reshape(2, 4, 1, 1) for t in (mean, scale)]
    return (z - each[0]) * each[1]


@pytest.mark.parametrize("dims", [2, 3])
def test_norm_with_a_slope_of_its_own(dims):
    torch.manual_seed(0)
    norm, shape = ForegroundInstanceNorm(3), (2, 3, *[5] * dims)
    nn.init.normal_(norm.weight)
    z, mask = torch.randn(shape).requires_grad_(), (torch.rand(2, 1, *shape[2:]) > 0.4).float()
    weights = torch.randn(shape)
    flat, inside = z.detach().flatten(2), mask.flatten(2)
    mean = (flat * inside).sum(2) / inside.sum(2)
    variance = ((flat - mean[..., None]).square() * inside).sum(2) / inside.sum(2)
    scale = norm.weight * (variance + norm.eps).rsqrt()
    with frozen_statistics(norm):
        value = norm(z, mask)
    torch.testing.assert_close(value, norm(z, mask), atol=0, rtol=0)
    (gradient,) = torch.autograd.grad((value * weights).sum(), z)
    torch.testing.assert_close(gradient, weights * mask * scale.reshape(2, 3, *[1] * dims))


def test_constants_stay_what_they_were():
    torch.manual_seed(0)
    net, x = Net(nn.BatchNorm2d(4)), torch.randn(2, 1, 6, 6)
    methods = ["gradcam", "gradcam_frozen", "saliency", "saliency_frozen"]
    before = state_of(net)
    result = explain(net, x, methods, "conv1", ClassScore(1))
    assert_same_state(before, state_of(net))
    for name, layer in (("gradcam", "conv1"), ("saliency", "input")):
        assert torch.equal(result.maps[name, layer], result.maps[f"{name}_frozen", layer])


def test_gradcam_in_front_of_a_norm_has_a_map_with_frozen_statistics():
    torch.manual_seed(0)
    net, x = Net(nn.InstanceNorm2d(4)), torch.randn(2, 1, 6, 6)
    with pytest.raises(LayerError, match="gradcam with frozen statistics"):
        cam_pass(net, x, "conv1", ClassScore(1), "gradcam")
    assert float(cam_pass(net, x, "conv1", ClassScore(1), "gradcam_frozen").maps["gradcam_frozen", "conv1"].max()) > 0
    raw = HiResCAM(net, "conv1", statistics="frozen").compute_map(x, 1)
    assert torch.equal(
        raw, cam_pass(net, x, "conv1", ClassScore(1), "hirescam_frozen").maps["hirescam_frozen", "conv1"]
    )


class HandmadeNorm(nn.Module):
    def forward(self, x):
        return (x - x.mean((2, 3), keepdim=True)) / x.std((2, 3), keepdim=True)


def test_statistics_that_cannot_be_held_fixed_are_refused():
    net, x = Net(HandmadeNorm()), torch.randn(1, 1, 6, 6)
    before = state_of(net)
    with pytest.raises(LayerError, match="'norm' of Net, HandmadeNorm, computes its own statistics"):
        cam_pass(net, x, "conv1", ClassScore(1), "hirescam_frozen")
    assert_same_state(before, state_of(net))
    direct = Net(Functional(lambda v: torch.group_norm(v, 2)))
    with pytest.raises(LayerError, match=r"call torch\.nn\.functional\.group_norm"):
        cam_pass(direct, x, "conv1", ClassScore(1), "hirescam_frozen")
    scripted = nn.Sequential(torch.jit.script(nn.InstanceNorm2d(1)), nn.Flatten(), nn.Linear(36, 2))
    with pytest.raises(LayerError, match="'0' is scripted or traced"):
        explain(scripted, x, "saliency_frozen", target=1)
    with pytest.raises(ValueError, match="expected 'followed' or 'frozen', got 'fixed'"):
        check_statistics("fixed")
    assert [named("saliency", how) for how in ("followed", "frozen")] == ["saliency", "saliency_frozen"]


def slope_of(function, x):
    """Derivative of each value by its own place, the statistics constant."""
    z = x.clone().requires_grad_()
    with frozen_statistics(nn.Identity()) as _:
        value = function(z)
    torch.testing.assert_close(value, function(x))
    return torch.autograd.grad(value.sum(), z)[0]


W3, W4 = torch.tensor([2.0, -1.0, 0.5]), torch.tensor([1.0, 2.0, -3.0, 0.5])


@pytest.mark.parametrize(
    ("function", "dims", "eps", "weight"),
    [
        (lambda x: F.instance_norm(x, weight=W4, eps=0.5), (2, 3), 0.5, W4[:, None, None]),
        (lambda x: F.instance_norm(x), (2, 3), 1e-5, 1.0),
        (lambda x: F.batch_norm(x, None, None, W4, training=True), (0, 2, 3), 1e-5, W4[:, None, None]),
        (lambda x: F.batch_norm(x, None, None, training=True, eps=0.5), (0, 2, 3), 0.5, 1.0),
        (lambda x: F.group_norm(x, 4, W4, eps=0.5), (2, 3), 0.5, W4[:, None, None]),
        (lambda x: F.group_norm(x, 1), (1, 2, 3), 1e-5, 1.0),
        (lambda x: F.layer_norm(x, [3], W3), (3,), 1e-5, W3),
        (lambda x: F.layer_norm(x, [2, 3], eps=0.5), (2, 3), 0.5, 1.0),
        (lambda x: F.layer_norm(x, [4, 2, 3]), (1, 2, 3), 1e-5, 1.0),
    ],
)
def test_every_function_has_the_slope_of_its_own_axes_weight_and_eps(function, dims, eps, weight):
    x = 0.01 * torch.randn(2, 4, 2, 3, generator=torch.Generator().manual_seed(0))  # so small that eps counts
    expected = (weight * (x.var(dims, unbiased=False, keepdim=True) + eps).rsqrt()).expand_as(x)
    torch.testing.assert_close(slope_of(function, x), expected)


@pytest.mark.parametrize(
    ("function", "dims", "eps", "weight"),
    [
        (lambda x: F.rms_norm(x, [3], W3, eps=0.5), (3,), 0.5, W3),
        (lambda x: F.rms_norm(x, [2, 3]), (2, 3), torch.finfo(torch.float32).eps, 1.0),
    ],
)
def test_a_root_mean_square_is_not_centered(function, dims, eps, weight):
    x = 1e-3 * (torch.randn(2, 4, 2, 3, generator=torch.Generator().manual_seed(0)) + 1)
    expected = (weight * (x.square().mean(dims, keepdim=True) + eps).rsqrt()).expand_as(x)
    torch.testing.assert_close(slope_of(function, x), expected)


def test_groups_of_several_channels_of_a_volume():
    x = torch.randn(2, 4, 2, 2, 3, generator=torch.Generator().manual_seed(0))
    deviation = (x.reshape(2, 2, -1).var(2, unbiased=False) + 1e-5).rsqrt()
    expected = W4.reshape(1, 4, 1, 1, 1) * deviation.repeat_interleave(2, 1).reshape(2, 4, 1, 1, 1)
    torch.testing.assert_close(slope_of(lambda v: F.group_norm(v, 2, W4), x), expected.expand_as(x))


def test_running_statistics_are_constants_already():
    x = torch.randn(2, 4, 3, 3, generator=torch.Generator().manual_seed(0))
    mean, variance = torch.full((4,), 0.5), torch.full((4,), 4.0)
    for function in (
        lambda v: F.batch_norm(v, mean, variance, eps=0.0),
        lambda v: F.instance_norm(v, mean, variance, use_input_stats=False, eps=0.0),
    ):
        torch.testing.assert_close(slope_of(function, x), torch.full_like(x, 0.5))


def test_half_precision_has_its_deviation_in_float32():
    x = (1e-4 * torch.randn(1, 4, 4, 4, generator=torch.Generator().manual_seed(0))).bfloat16()
    expected = (x.float().var((2, 3), unbiased=False, keepdim=True) + 1e-5).rsqrt().expand_as(x)
    slope = slope_of(lambda v: F.instance_norm(v), x)
    torch.testing.assert_close(slope.float(), expected, rtol=0.01, atol=0)


def test_names_of_methods_with_and_without_their_statistics():
    assert [without_statistics(name) for name in ("hirescam_frozen", "hirescam", "frozen")] == [
        "hirescam", "hirescam", "frozen",
    ]  # fmt: skip
    with pytest.raises(ValueError, match="expected 'followed' or 'frozen'"):
        named("hirescam", "held")


def test_handmade_norms_without_a_gradient_are_no_matter():
    net = nn.Sequential(HandmadeNorm(), nn.Conv2d(1, 1, 1))
    x = torch.randn(1, 1, 4, 4)
    with frozen_statistics(net):
        net(x)  # the image needs none
        with torch.no_grad():
            net(x.clone().requires_grad_())
    assert all(not m._forward_hooks and not m._forward_pre_hooks for m in net.modules())
    with pytest.raises(LayerError, match="'0' of Sequential, HandmadeNorm, computes its own"), frozen_statistics(net):
        net(x.requires_grad_())
