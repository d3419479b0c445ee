from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from monai.networks.nets import DenseNet121, EfficientNetBN, SegResNet, UNet
from torch import nn

from scripts.explain.cam import METHODS as CAMS
from scripts.explain.evidence import evidence_pass
from scripts.explain.gradients import INPUT, integrated_gradients, saliency, smoothgrad
from scripts.explain.layers import LayerError
from scripts.explain.lrp import LRP_METHODS, lrp
from scripts.explain.maps import combine_maps
from scripts.explain.methods import METHODS, explain
from scripts.explain.perturbation import occlusion, scorecam
from scripts.explain.targets import ClassMargin, ClassScore, SegmentationRegion, TumorLogOdds
from tests.explain.nets import EvidenceNet, PooledLinear, TinySegmenter, Wrapped, assert_same_state, cam_maps, state_of
from tests.networks.nets import heads, tiny


def test_the_front_door_gives_what_each_method_gives():
    torch.manual_seed(0)
    net, x = PooledLinear(), torch.randn(2, 1, 6, 6)
    target, inside = ClassMargin(2, 0), torch.ones(2, 1, 6, 6)
    options = {"occlusion": {"window": 3}, "smoothgrad": {"n_samples": 4}, "integrated_gradients": {"n_steps": 8}}
    methods = [name for name in METHODS if name != "evidence"]
    expected = cam_maps(net, x, ["conv", "relu"], target, tuple(CAMS))
    expected |= scorecam(net, x, ["conv", "relu"], target).maps
    expected |= lrp(net, x, ["conv", "relu"], target, methods=LRP_METHODS).maps
    expected |= occlusion(net, x, target, window=3).maps
    expected |= smoothgrad(net, x, target, n_samples=4).maps
    expected |= saliency(net, x, target).maps
    ig = integrated_gradients(net, x, target, n_steps=8)
    expected |= ig.maps
    options |= {"smoothgrad_frozen": {"n_samples": 4}, "integrated_gradients_frozen": {"n_steps": 8}}
    expected |= smoothgrad(net, x, target, n_samples=4, statistics="frozen").maps
    expected |= saliency(net, x, target, statistics="frozen").maps
    expected |= integrated_gradients(net, x, target, n_steps=8, statistics="frozen").maps
    result = explain(net, x, methods, ["conv", "relu"], target, foreground=inside, options=options)
    assert set(result.maps) == set(expected)
    for key, value in expected.items():
        assert float(value.max()) > 0
        assert torch.equal(result.maps[key], value), key
    assert torch.equal(result.figures["integrated_gradients_completeness_error"], ig.completeness_error)
    assert torch.equal(result.figures["integrated_gradients_relative_error"], ig.relative_error)
    assert torch.equal(result.output, net(x).detach())
    assert torch.equal(result.score, target(result.output))
    assert result.target == "class_2_minus_class_0"


def test_maps_come_in_the_order_asked_for_and_unasked_ones_do_not():
    net, x = PooledLinear(), torch.randn(1, 1, 6, 6)
    result = explain(net, x, ["saliency", "hirescam"], "relu", 1)
    assert list(result.maps) == [("saliency", INPUT), ("hirescam", "relu")]
    assert list(explain(net, x).maps) == [("gradcam", "relu")]


def test_several_layers_share_one_forward_pass_and_are_combined():
    torch.manual_seed(0)
    net, x, calls = PooledLinear(), torch.randn(2, 1, 6, 6), []
    hook = net.register_forward_hook(lambda *_: calls.append(1))
    result = explain(net, x, ["gradcam", "hirescam"], ["conv", "relu"], ClassScore(1), aggregate="product")
    hook.remove()
    assert calls == [1]
    for method in ("gradcam", "hirescam"):
        parts = [result.maps[method, layer] for layer in ("conv", "relu")]
        assert torch.equal(result.maps[method, "product(conv, relu)"], combine_maps(parts, (6, 6), "product"))
    score = explain(net, x, "scorecam", ["conv", "relu"], 1, aggregate="mean", batch_size=3)
    assert list(score.maps) == [("scorecam", "conv"), ("scorecam", "relu"), ("scorecam", "mean(conv, relu)")]


def test_targets_given_as_a_class_as_classes_or_not_at_all():
    torch.manual_seed(0)
    net, x = PooledLinear(), torch.randn(2, 1, 6, 6)
    maps = {name: explain(net, x, "hirescam", "relu", t, signed=True) for name, t in
            {"int": 2, "list": [2, 0], "tensor": torch.tensor([2, 0]), "none": None}.items()}  # fmt: skip
    reference = cam_maps(net, x, "relu", ClassScore([2, 0]), "hirescam", signed=True)["hirescam", "relu"]
    assert torch.equal(maps["list"].maps["hirescam", "relu"], reference)
    assert torch.equal(maps["tensor"].maps["hirescam", "relu"], reference)
    assert torch.equal(maps["int"].maps["hirescam", "relu"][:1], reference[:1])
    assert maps["none"].target == "top_class"
    assert torch.equal(maps["none"].score, net(x).detach().amax(1))
    segmenter = TinySegmenter()
    assert explain(segmenter, x, "saliency").target == "segmentation_1_predicted"
    assert explain(segmenter, x, "saliency", target=0).target == "segmentation_0_predicted"
    with pytest.raises(ValueError, match="expected one channel for a dense output"):
        explain(segmenter, x, "saliency", target=[0, 1])


def test_shown_on_the_image_the_strongest_is_one_and_nothing_is_nothing():
    net, x = PooledLinear(), torch.randn(2, 1, 6, 6)
    with torch.no_grad():
        net.fc.weight.abs_()
        net.fc.weight[0] = 0.0
    target = ClassScore([1, 0])  # the second explains a class without weights
    result = explain(net, x, ["gradcam"], "relu", target, cancelled="empty")
    shown, empty = result.on_image("gradcam", "relu")
    assert shown.shape == (2, 1, 6, 6)
    assert shown.flatten(1).amax(1).tolist() == [1.0, 0.0]
    assert empty.tolist() == [False, True]
    with pytest.raises(KeyError, match="no map"):
        result.on_image("hirescam", "relu")


def test_evidence_goes_through_the_same_door():
    torch.manual_seed(0)
    net, x = EvidenceNet(), torch.randn(2, 1, 8, 8)
    result = explain(net, x, ["evidence", "gradcam"], "features", TumorLogOdds(), forward_kwargs={"output": "cls"})
    assert torch.equal(result.maps["evidence", "evidence"], evidence_pass(net, x, TumorLogOdds()).maps[
        "evidence", "evidence"
    ])  # fmt: skip
    torch.testing.assert_close(result.on_image("evidence", "evidence")[0], result.on_image("gradcam", "features")[0])
    with pytest.raises(ValueError, match="explains class logits"):
        explain(net, x, "evidence", target=SegmentationRegion())


@pytest.mark.parametrize("dims", [2, 3])
def test_our_network_by_every_method(dims):
    network, x = tiny(dims), heads(dims, 24 if dims == 2 else 12)
    inside = (x != 0).float()
    arguments = {
        "target": TumorLogOdds(),
        "foreground": inside,
        "foreground_kwarg": "foreground",
        "forward_kwargs": {"output": "cls"},
        "options": {"occlusion": {"window": 6}, "integrated_gradients": {"n_steps": 8}, "smoothgrad": {"n_samples": 3}},
        "batch_size": 8,
    }
    before = state_of(network)
    together = explain(network, x, list(METHODS), **arguments)
    assert_same_state(before, state_of(network))
    layers = {layer for _, layer in together.maps}
    assert layers == {"evidence", "head.features", INPUT}
    for method, layer in together.maps:
        shown, empty = together.on_image(method, layer)
        assert not bool(empty.all()) or (method.startswith("lrp") and bool((together.score < 0).all())), method
        if layer == INPUT:
            assert float((shown * (1 - inside)).abs().max()) == 0, f"{method}: energy in air"
    for i in range(2):
        arguments["foreground"] = inside[i : i + 1]
        alone = explain(network, x[i : i + 1], list(METHODS), **arguments)
        for key, maps in alone.maps.items():
            share = 1e-3 * float(maps.max())
            torch.testing.assert_close(together.maps[key][i : i + 1], maps, rtol=1e-3, atol=share, msg=str(key))


def stabilized(net: nn.Module, shape: tuple[int, ...]) -> nn.Module:
    """Batch norms with the statistics of random inputs: with those a net is born with, deep activations die out."""
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d | nn.BatchNorm3d):
            module.momentum = None
            module.reset_running_stats()
    with torch.no_grad():
        net.train()(torch.randn(shape))
    return net


def dense_net(dims):
    return DenseNet121(dims, 1, 3, block_config=(2, 2), init_features=8, growth_rate=4)


def efficient_net(dims):
    size = (8, 1, 32, 32) if dims == 2 else (4, 1, 32, 32, 32)
    net = EfficientNetBN("efficientnet-b0", spatial_dims=dims, in_channels=1, pretrained=False, num_classes=3)
    return stabilized(stabilized(net, size), size)


NETWORKS = {
    "DenseNet121": (dense_net, "class_layers.relu"),
    "EfficientNet-B0": (efficient_net, "_blocks.0"),
    "SegResNet": (lambda dims: SegResNet(dims, 8, out_channels=2, blocks_down=(1, 1), blocks_up=(1,)), "conv_final.1"),
    "UNet": (lambda dims: UNet(dims, 1, 2, (4, 8), (2,), num_res_units=1, norm="instance"), "model.1"),
    "wrapped DenseNet121": (lambda dims: Wrapped(dense_net(dims)), "inner.net.class_layers.relu"),
}


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("name", NETWORKS)
def test_monai_networks_are_explained_by_every_method_without_change_to_them(name, dims):
    torch.manual_seed(3)
    build, layer = NETWORKS[name]
    net = build(dims)
    x = torch.randn(2, 1, *([40, 32] if dims == 2 else [32 if name == "EfficientNet-B0" else 16] * 3))
    dense = name in ("SegResNet", "UNet")
    mask = (torch.rand(2, 1, *x.shape[2:]) > 0.5).float()
    target = SegmentationRegion(mask) if dense else ClassMargin(2, 1)
    methods = [m for m in METHODS if m != "evidence"]
    if name == "EfficientNet-B0":
        if dims == 3:  # 32 channels cost seconds
            methods.remove("scorecam")
        net, x, mask = net.double(), x.double(), mask.double()  # with random weights it blows rounding up
    options = {"occlusion": {"window": 16, "stride": 16}, "integrated_gradients": {"n_steps": 2}}
    options |= {"smoothgrad": {"n_samples": 1}}
    before = state_of(net)
    result = explain(net, x, methods, layer, target, signed=True, options=options)
    assert_same_state(before, state_of(net))
    index = torch.tensor([1])
    alone = explain(net, x[1:], methods, layer, target.take(index), signed=True, options=options)
    for key, maps in alone.maps.items():
        strongest = float(maps.abs().max())
        assert strongest > 0, key
        torch.testing.assert_close(result.maps[key][1:], maps, rtol=1e-3, atol=1e-3 * strongest, msg=str(key))
    automatic = explain(net, x[1:], "hirescam", None, target.take(index))
    assert next(iter(automatic.maps.values())).shape[2:].numel() > 1


def test_errors():
    net, x = PooledLinear(), torch.randn(1, 1, 6, 6)
    with pytest.raises(ValueError, match=r"unknown method\(s\) \['cam'\]"):
        explain(net, x, ["gradcam", "cam"])
    with pytest.raises(ValueError, match="unknown method"):
        explain(net, x, [])
    with pytest.raises(ValueError, match=r"options for \['occlusion'\]"):
        explain(net, x, "gradcam", options={"occlusion": {}})
    with pytest.raises(ValueError, match=r"layers 'relu' are given, but saliency, occlusion explains none"):
        explain(net, x, ["saliency", "occlusion"], "relu")
    with pytest.raises(ValueError, match="expected several layers"):
        explain(net, x, aggregate="mean")
    with pytest.raises(ValueError, match="expected 'mean', 'max' or 'product'"):
        explain(net, x, layers=["conv", "relu"], aggregate="sum")
    with pytest.raises(ValueError, match="signed maps cannot be"):
        explain(net, x, layers=["conv", "relu"], aggregate="mean", signed=True)
    with pytest.raises(ValueError, match="but no foreground"):
        explain(net, x, foreground_kwarg="foreground")
    with pytest.raises(LayerError, match="nearest: 'relu'"):
        explain(net, x, ["saliency", "gradcam"], "rellu")
    assert all(not m._forward_hooks for m in net.modules())


@pytest.mark.parametrize(
    ("x", "message"),
    [
        ([[1.0]], "images: expected floating point .* got list"),
        (torch.zeros(1, 4), r"got \(1, 4\) of torch.float32"),
        (torch.zeros(1, 1, 4, 4, dtype=torch.long), r"got \(1, 1, 4, 4\) of torch.int64"),
        (
            torch.tensor([[[[0.0]]], [[[torch.nan]]], [[[torch.inf]]]]),
            r"infinite values in sample\(s\) \[1, 2\]",
        ),
        (torch.zeros(1, 2, 6, 6), r"PooledLinear failed on images \(1, 2, 6, 6\) of torch.float32: Given groups=1"),
    ],
)
def test_images_that_are_none_are_refused_in_one_sentence(x, message):
    with pytest.raises(ValueError, match=message) as error:
        explain(PooledLinear(), x, target=0)
    assert "\n" not in str(error.value)


def test_images_of_one_axis_are_taken():
    net = nn.Sequential(nn.Conv1d(1, 2, 1), nn.ReLU(), nn.AdaptiveAvgPool1d(1), nn.Flatten())
    assert explain(net, torch.rand(1, 1, 8), "hirescam", "1", 1).maps["hirescam", "1"].shape == (1, 1, 8)


@pytest.mark.parametrize(
    ("aggregate", "expected"), [("mean", [False, True]), ("max", [False, True]), ("product", [True, True])]
)
def test_an_aggregate_is_cancelled_where_it_has_no_map(aggregate, expected):
    class Balanced(nn.Module):
        """Two layers; gradients cancel at the first for all samples, at the second for the last."""

        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Conv2d(1, 1, 1, bias=False), nn.Conv2d(1, 1, 1, bias=False)

        def forward(self, x):
            sign = torch.tensor([1.0, -1.0])
            a, b = self.first(x), self.second(x)
            kept = torch.where(torch.arange(len(x)) == 0, 1.0, 0.0).reshape(-1, 1, 1, 1)
            return ((a * sign) + b * (kept + (1 - kept) * sign)).flatten(1).sum(1, keepdim=True)

    x = torch.rand(2, 1, 1, 2) + 0.5
    result = explain(Balanced(), x, "gradcam", ["first", "second"], 0, aggregate=aggregate, cancelled="empty")
    assert result.cancelled["gradcam", "first"].tolist() == [True, True]
    assert result.cancelled["gradcam", "second"].tolist() == [False, True]
    assert result.cancelled["gradcam", f"{aggregate}(first, second)"].tolist() == expected


def test_options_are_for_methods_asked_for_that_take_some():
    net, x = PooledLinear(), torch.rand(1, 1, 6, 6)
    frozen = explain(net, x, "smoothgrad_frozen", target=0, options={"smoothgrad": {"n_samples": 2}})
    own = {"smoothgrad": {"n_samples": 9}, "smoothgrad_frozen": {"n_samples": 2}}
    both = explain(net, x, "smoothgrad_frozen", target=0, options=own)
    key = ("smoothgrad_frozen", INPUT)
    assert torch.equal(frozen.maps[key], both.maps[key])
    for method, options in (("lrp", {"lrp": {}}), ("saliency", {"cam": {}}), ("gradcam", {"gradcam": {}})):
        with pytest.raises(ValueError, match=r"options for \["):
            explain(net, x, method, target=0, options=options)
    with pytest.raises(ValueError, match="expected several layers, got \\['relu'\\]"):
        explain(net, x, layers=["relu"], aggregate="mean")


def test_the_channel_of_a_dense_output_that_is_explained_by_default():
    x = torch.rand(1, 1, 6, 6)
    for channels, expected in ((1, 0), (2, 1), (3, 1)):
        net = nn.Sequential(nn.Conv2d(1, 2, 1), nn.Conv2d(2, channels, 1))
        assert explain(net, x, "saliency").target == f"segmentation_{expected}_predicted"


def test_cam_options_reach_the_pass():
    network, x = tiny(), heads()
    inside = (x != 0).float()
    arguments = {"foreground": inside, "foreground_kwarg": "foreground", "forward_kwargs": {"output": "cls"}}
    result = explain(
        network, x, "gradcam", "bottleneck", TumorLogOdds(), options={"cam": {"foreground": inside}}, **arguments
    )
    expected = cam_maps(network, x, "bottleneck", TumorLogOdds(), "gradcam", {"output": "cls"}, foreground=inside)
    torch.testing.assert_close(result.maps["gradcam", "bottleneck"], expected["gradcam", "bottleneck"])


def test_the_example_of_the_documentation_runs():
    text = (Path(__file__).parents[2] / "docs" / "explanation.md").read_text(encoding="utf-8")
    names: dict = {}
    exec("\n".join(re.findall(r"```python\n(.*?)```", text, re.DOTALL)), names)
    assert names["maps"].shape == names["heat"].shape == (2, 1, 64, 64)
    assert names["result"].score.shape == names["empty"].shape == (2,)
    assert ("hirescam", "mean(features.denseblock3, class_layers.relu)") in names["result"].maps
    assert list(names["of_tokens"].maps) == [("hirescam", "blocks.10")]
    for scaled in (names["maps"], names["heat"]):
        peaks = scaled.amax((1, 2, 3))
        assert bool(((peaks == 0) | ((peaks - 1).abs() < 1e-5)).all())
