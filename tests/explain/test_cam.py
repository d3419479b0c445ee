"""Maps of one pass: by hand, against captum and MONAI, on networks of every kind."""

from __future__ import annotations

import monai.visualize
import pytest
import torch
from captum.attr import LayerGradCam
from monai.networks.nets import DenseNet121, DynUNet, EfficientNetBN, SegResNet, UNet
from torch import nn

from scripts.explain.cam import METHODS, GradCAM, cam_pass
from scripts.explain.cam_formulas import gradcam_plus_plus
from scripts.explain.layers import LayerError
from scripts.explain.targets import ClassMargin, ClassScore, SegmentationRegion
from tests.explain.nets import (
    InplaceResidual,
    PooledLinear,
    TinySegmenter,
    Wrapped,
    assert_same_state,
    cam_maps,
    peaked,
    state_of,
)

ALL = tuple(METHODS)


def one_by_one(model, x, layers, target, **options):
    """The maps of a batch, each sample explained alone."""
    index = torch.arange(len(x))
    alone = [cam_maps(model, x[i : i + 1], layers, target.take(index[i : i + 1]), ALL, **options) for i in index]
    return {key: torch.cat([maps[key] for maps in alone]) for key in alone[0]}


def assert_close_maps(a, b, rtol=1e-4, share=1e-5):
    """Equal up to rounding, measured against each map's own maximum."""
    assert a.keys() == b.keys()
    for key in a:
        assert float(b[key].max()) > 0, f"{key}: an empty reference proves nothing"
        torch.testing.assert_close(a[key], b[key], rtol=rtol, atol=share * float(b[key].max()), msg=str(key))


def test_maps_of_a_known_network_by_hand():
    # Two 1x1 channels 2x and -x, ReLU, global average, score = 3 mean(relu(2x)) - mean(relu(-x)).
    net = PooledLinear(classes=1)
    net.conv = nn.Conv2d(1, 2, 1, bias=False)
    net.fc = nn.Linear(2, 1, bias=False)
    net.conv.weight.data = torch.tensor([2.0, -1.0]).reshape(2, 1, 1, 1)
    net.fc.weight.data = torch.tensor([[3.0, -1.0]])
    x = torch.tensor([[[[1.0, -2.0], [0.0, 3.0]]]])
    # Activations at relu: [2 0; 0 6] and [0 2; 0 0]; gradients 3/4 and -1/4 everywhere.
    maps = cam_maps(net, x, "relu", ClassScore(0), ALL, signed=True)
    hand = torch.tensor([[[[1.5, -0.5], [0.0, 4.5]]]])
    torch.testing.assert_close(maps["gradcam", "relu"], hand)
    torch.testing.assert_close(maps["hirescam", "relu"], hand)
    torch.testing.assert_close(maps["layercam", "relu"], hand.clamp(min=0))
    # Grad-CAM++: alpha = 1 / (2 + 0.75 * 8) = 1/8, weight = 4 * 0.75 / 8 = 0.375.
    torch.testing.assert_close(maps["gradcam++", "relu"], torch.tensor([[[[0.75, 0.0], [0.0, 2.25]]]]))
    assert torch.equal(cam_maps(net, x, "relu", ClassScore(0))["gradcam", "relu"], hand.clamp(min=0))
    # In front of the ReLU, gradients vanish where it is closed: activations [2 -4; 0 6] and [-1 2; 0 -3],
    # gradients [.75 0; 0 .75] and [0 -.25; 0 0], means .375 and -.0625.
    maps = cam_maps(net, x, "conv", ClassScore(0), ALL, signed=True)
    torch.testing.assert_close(maps["gradcam", "conv"], torch.tensor([[[[0.8125, -1.625], [0.0, 2.4375]]]]))
    torch.testing.assert_close(maps["hirescam", "conv"], torch.tensor([[[[1.5, -0.5], [0.0, 4.5]]]]))
    torch.testing.assert_close(maps["layercam", "conv"], torch.tensor([[[[1.5, 0.0], [0.0, 4.5]]]]))


@pytest.mark.parametrize("dims", [2, 3])
def test_cam_gradcam_and_hirescam_agree_under_a_linear_head(dims):
    torch.manual_seed(0)
    net, x = PooledLinear(dims=dims), torch.randn(2, 1, *[6] * dims)
    maps = cam_maps(net, x, ["relu"], ClassScore([0, 2]), ("gradcam", "hirescam"))
    features = net.relu(net.conv(x)).detach()
    cam = torch.stack([(net.fc.weight[k, :, None] * features[b].flatten(1)).sum(0) for b, k in enumerate((0, 2))])
    cam = cam.reshape(2, 1, *[6] * dims).clamp(min=0).detach() / 6**dims
    torch.testing.assert_close(maps["gradcam", "relu"], cam)
    torch.testing.assert_close(maps["hirescam", "relu"], cam)


def test_equals_captum_on_a_nonlinear_head():
    torch.manual_seed(1)
    net, x = InplaceResidual(inplace=False), torch.randn(1, 1, 8, 8)
    for layer in ("norm1", "norm2"):
        reference = LayerGradCam(net, net.get_submodule(layer)).attribute(x, target=1)
        maps = cam_maps(net, x, layer, ClassScore(1), "gradcam", signed=True)
        torch.testing.assert_close(maps["gradcam", layer], reference.detach(), rtol=1e-4, atol=1e-8)


def test_equals_monai_for_one_sample_where_monai_is_right():
    torch.manual_seed(2)
    net, x = PooledLinear().eval(), torch.randn(1, 1, 12, 12)
    for ours, stock in ((GradCAM, monai.visualize.GradCAM),):
        reference = stock(net, "relu", postprocessing=lambda m: m)(x, class_idx=1).detach()
        result = ours(net, "relu", postprocessing=lambda m: m)(x, class_idx=1)
        torch.testing.assert_close(result, reference, rtol=1e-5, atol=1e-8)


def test_in_place_and_plain_networks_have_the_same_maps():
    torch.manual_seed(0)
    net, plain = InplaceResidual(), InplaceResidual(inplace=False)
    plain.load_state_dict(net.state_dict())
    x, layers = torch.randn(2, 1, 6, 6), ["conv1", "norm1", "conv2", "norm2"]
    results = [cam_maps(m, x, layers, ClassMargin(1, 0), ALL, cancelled="empty") for m in (net, plain)]
    for layer in ("conv1", "conv2"):  # in front of an instance norm there is no Grad-CAM
        assert [float(r.pop(("gradcam", layer)).max()) for r in results] == [0.0, 0.0]
    assert_close_maps(results[0], results[1])


def test_gradcam_plus_plus_neither_overflows_nor_vanishes():
    net = PooledLinear(classes=1)
    with torch.no_grad():
        net.conv.weight.fill_(1.0)
        net.fc.weight.fill_(1.0)
    maps = cam_maps(net, torch.full((1, 1, 4, 4), 1e4), "relu", ClassScore(0), "gradcam++")  # exp(score) = inf
    assert torch.isfinite(maps["gradcam++", "relu"]).all()
    assert float(maps["gradcam++", "relu"].max()) > 0
    tiny = gradcam_plus_plus(torch.ones(1, 1, 2, 2), torch.full((1, 1, 2, 2), 1e-30))  # its square is 0 in float32
    torch.testing.assert_close(tiny, torch.full((1, 1, 2, 2), 2e-30))


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("frozen", ["nothing", "encoder", "all"])
def test_frozen_networks_have_the_same_maps_and_keep_their_state(training, frozen):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(144, 2))
    net[1].running_mean.fill_(0.1)
    x = torch.randn(3, 1, 8, 8)
    reference = cam_maps(net.eval(), x, ["0", "1", "2"], ClassScore([0, 1, 0]), ALL)
    for parameter in {"nothing": [], "encoder": net[:3].parameters(), "all": net.parameters()}[frozen]:
        parameter.requires_grad_(False)
    net.train(training)
    net[4].eval()
    before = state_of(net)
    maps = cam_maps(net, x, ["0", "1", "2"], ClassScore([0, 1, 0]), ALL)
    assert_same_state(before, state_of(net))
    assert all(p.grad is None for p in net.parameters())
    assert_close_maps(maps, reference, rtol=0, share=0)


def test_gradients_that_training_left_are_neither_used_nor_changed():
    torch.manual_seed(0)
    net, x = PooledLinear(), torch.randn(2, 1, 6, 6)
    reference = cam_maps(net, x, "relu", ClassScore(1))
    net(x).square().sum().backward()
    before = state_of(net)
    again = cam_maps(net, x, "relu", ClassScore(1))
    assert_same_state(before, state_of(net))
    assert_close_maps(again, reference, rtol=0, share=0)


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
def test_works_where_gradients_are_switched_off(context):
    torch.manual_seed(0)
    net, x = PooledLinear(), torch.randn(2, 1, 6, 6)
    reference = cam_maps(net, x, "relu", ClassScore(1))
    with context():
        maps = cam_maps(net, x * 1.0, "relu", ClassScore(1))
        assert not torch.is_grad_enabled()
    assert_close_maps(maps, reference, rtol=0, share=0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_maps_are_float32_and_close(dtype):
    torch.manual_seed(0)
    net, x = PooledLinear(), torch.randn(2, 1, 8, 8)
    reference = cam_maps(net, x, "relu", ClassScore(1), ALL)
    with torch.autocast("cpu", dtype=dtype):
        maps = cam_maps(net, x, "relu", ClassScore(1), ALL)
    assert all(m.dtype == torch.float32 for m in maps.values())
    assert_close_maps({k: peaked(v) for k, v in maps.items()}, {k: peaked(v) for k, v in reference.items()}, share=2e-2)


def test_half_precision_gradients_do_not_vanish():
    # The gradient at each pixel is 1e-8: 0 in float16 without scaling.
    net = nn.Sequential(nn.Conv2d(1, 1, 1, bias=False), nn.AdaptiveAvgPool2d(1), nn.Flatten()).half()
    nn.init.constant_(net[0].weight, 1.0)

    class Small(nn.Module):
        def forward(self, x):
            return x.float() * 1.6e-7

    net.append(Small())
    maps = cam_maps(net, torch.ones(1, 1, 4, 4, dtype=torch.half), "0", ClassScore(0), "gradcam")
    torch.testing.assert_close(maps["gradcam", "0"], torch.full((1, 1, 4, 4), 1e-8), rtol=0.05, atol=0)


def test_one_forward_and_no_other_pass_for_all_layers_and_methods():
    net, calls = InplaceResidual(), []
    net.register_forward_hook(lambda *_: calls.append(1))
    maps = cam_maps(net, torch.randn(2, 1, 6, 6), ["conv1", "norm1", "norm2"], ClassScore(0), ALL, cancelled="empty")
    assert calls == [1, 1]  # the methods with frozen statistics share one of their own
    assert set(maps) == {(m, layer) for m in ALL for layer in ("conv1", "norm1", "norm2")}


def test_pass_returns_the_prediction_and_the_score():
    net, x = PooledLinear().eval(), torch.randn(2, 1, 6, 6)
    result = cam_pass(net, x, None, ClassMargin(2, 0), "gradcam")
    output = net(x).detach()
    assert torch.equal(result.output, output)
    assert torch.equal(result.score, output[:, 2] - output[:, 0])
    assert list(result.maps) == [("gradcam", "relu")]
    assert not result.output.requires_grad


def test_maps_keep_the_alias_as_their_key():
    torch.manual_seed(0)
    net = DynUNet(2, 1, 2, [3, 3, 3], [1, 2, 2], [2, 2], filters=[4, 4, 4])
    names = ["encoder_last", "decoder_last", "mine"]
    maps = cam_maps(net, torch.randn(2, 1, 16, 16), names, SegmentationRegion(), aliases={"mine": "bottleneck"})
    assert [layer for method, layer in maps if method == "gradcam"] == names
    assert maps["gradcam", "decoder_last"].shape == (2, 1, 16, 16)
    assert maps["gradcam", "encoder_last"].shape == (2, 1, 4, 4)
    assert torch.equal(maps["gradcam", "encoder_last"], maps["gradcam", "mine"])


def test_segmentation_target_by_hand():
    # out = 1x1 convolution with weight w on features: gradient of the mean over a region is w/|R| inside, 0 outside.
    torch.manual_seed(0)
    net, x = TinySegmenter(), torch.randn(1, 1, 4, 4)
    mask = torch.zeros(1, 1, 4, 4)
    mask[..., :2, 1:3] = 1
    features = net.features(x).detach()
    evidence = (net.out.weight[1].detach() * features).sum(1, keepdim=True)
    maps = cam_maps(net, x, "features", SegmentationRegion(mask), ("hirescam", "gradcam"), signed=True)
    torch.testing.assert_close(maps["hirescam", "features"], evidence * mask / 4)
    torch.testing.assert_close(maps["gradcam", "features"], evidence / 16)


def test_empty_region_gives_an_empty_map():
    net = TinySegmenter()
    maps = cam_maps(net, torch.randn(1, 1, 4, 4), "features", SegmentationRegion(torch.zeros(1, 1, 4, 4)))
    assert all(float(m.abs().max()) == 0 for m in maps.values())


def test_gradcam_in_front_of_a_normalization_is_an_error_and_not_noise():
    torch.manual_seed(0)
    net, x = seg_res_net(), torch.randn(2, 1, 32, 32)
    target = SegmentationRegion(torch.rand(2, 1, 32, 32) > 0.5)
    with pytest.raises(LayerError, match=r"no Grad-CAM at layer 'up_layers\.0'.*Use hirescam"):
        cam_maps(net, x, "up_layers.0", target, "gradcam")
    maps = cam_maps(net, x, "up_layers.0", target, ("gradcam", "hirescam"), cancelled="empty")
    assert float(maps["gradcam", "up_layers.0"].abs().max()) == 0
    assert float(maps["hirescam", "up_layers.0"].max()) > 0


def test_errors():
    net, x = PooledLinear(), torch.randn(2, 1, 6, 6)
    with pytest.raises(LayerError, match="nearest: 'relu'"):
        cam_maps(net, x, "rellu", ClassScore(0))
    with pytest.raises(LayerError, match=r"'fc' of PooledLinear puts out \(2, 3\)"):
        cam_maps(net, x, "fc", ClassScore(0))
    with pytest.raises(ValueError, match="unknown method 'grad-cam'"):
        cam_maps(net, x, "relu", ClassScore(0), "grad-cam")
    with pytest.raises(ValueError, match="class index 3"):
        cam_maps(net, x, "relu", ClassScore(3))
    with_nan = PooledLinear()
    with_nan.fc.weight.data[0, 0] = torch.nan
    with pytest.raises(FloatingPointError, match="not finite"):
        cam_maps(with_nan, x, "relu", ClassScore(0))

    class Dict(PooledLinear):
        def forward(self, x):
            return {"cls": super().forward(x)}

    with pytest.raises(TypeError, match="Dict returned dict; expected one tensor"):
        cam_maps(Dict(), x, "relu", ClassScore(0))
    assert all(not m._forward_hooks for m in net.modules())
    assert all(p.requires_grad for p in net.parameters())
    assert net.training


def dense_net():
    return DenseNet121(spatial_dims=2, in_channels=1, out_channels=3, block_config=(2, 2), init_features=8)


def efficient_net():
    """Batch norm with the statistics of random inputs: with those it is born with, the activations die out."""
    net = EfficientNetBN("efficientnet-b0", in_channels=1, pretrained=False, num_classes=3).train()
    for _ in range(3):
        net(torch.randn(4, 1, 64, 64))
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None
            module.reset_running_stats()
    with torch.no_grad():
        net(torch.randn(16, 1, 64, 64))
    return net


def seg_res_net():
    return SegResNet(spatial_dims=2, init_filters=8, out_channels=2, blocks_down=(1, 1), blocks_up=(1,))


def unet(dims=2):
    return UNet(dims, 1, 2, (4, 8, 8), (2, 2), num_res_units=1, norm="instance")


NETWORKS = {
    "DenseNet121": (dense_net, 2, ["features", "class_layers.relu"]),
    "EfficientNet-B0": (efficient_net, 2, ["_blocks.0", "_bn1"]),
    "SegResNet": (seg_res_net, 2, ["conv_final.0", "conv_final.1"]),
    "UNet": (unet, 2, ["model.1", "model.1.submodule.1"]),
    "UNet 3D": (lambda: unet(3), 3, ["model.1"]),
    "wrapped DenseNet121": (lambda: Wrapped(dense_net()), 2, ["inner.net.features"]),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_batches_equal_one_at_a_time_on_monai_networks(name):
    torch.manual_seed(3)
    build, dims, layers = NETWORKS[name]
    net = build()
    x = torch.randn(3, 1, *([64, 48] if dims == 2 else [16, 16, 8]))
    dense = "Res" in name or "UNet" in name
    mask = (torch.rand(3, 1, *x.shape[2:]) > 0.5).float()
    target = SegmentationRegion(mask) if dense else ClassScore([0, 2, 1])
    before = state_of(net)
    maps = cam_maps(net, x, layers, target, ALL)
    assert_same_state(before, state_of(net))
    assert_close_maps(maps, one_by_one(net, x, layers, target), rtol=1e-3, share=1e-4)
    automatic = cam_maps(net, x, None, target, "gradcam")
    assert next(iter(automatic.values())).shape[2:].numel() > 1


def test_unused_memory_is_given_back():
    net, x = PooledLinear(), torch.randn(1, 1, 8, 8)
    result = cam_pass(net, x, "relu", ClassScore(0))
    assert result.score.grad_fn is None
    assert all(m.grad_fn is None for m in result.maps.values())
