"""What users of other libraries reported about class activation maps, tried here; docs/peers.md names reports."""

from __future__ import annotations

import gc
import shutil
import warnings
import weakref

import monai.networks.nets as nets
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from scripts.explain.cam import GradCAM, cam_pass
from scripts.explain.layers import LayerError
from scripts.explain.methods import explain
from scripts.explain.targets import ClassScore
from tests.explain.nets import PooledLinear, assert_same_state, state_of


class Functional(nn.Module):
    """Convolutions and an activation that is a function: in place, out of place, or recomputed from a checkpoint."""

    def __init__(self, how: str = "plain"):
        super().__init__()
        self.how = how
        self.first, self.second, self.fc = nn.Conv2d(1, 4, 3), nn.Conv2d(4, 4, 3), nn.Linear(4, 3)

    def block(self, x):
        return F.relu(self.second(F.relu(self.first(x), inplace=self.how == "in place")))

    def forward(self, x):
        if self.how.startswith("checkpoint"):
            features = checkpoint(self.block, x, use_reentrant=self.how == "checkpoint, reentrant")
        else:
            features = self.block(x)
        return self.fc(features.square().mean((2, 3)))


def functional(how: str) -> nn.Module:
    torch.manual_seed(0)
    return Functional(how)


def test_functional_activations_in_place_give_the_same_maps():
    x = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    methods = ["gradcam", "hirescam", "gradcam++", "layercam"]
    expected = explain(functional("plain"), x, methods, ["first", "second"], 1, signed=True)
    net = functional("in place")
    before = state_of(net)
    found = explain(net, x, methods, ["first", "second"], 1, signed=True)
    for key, value in expected.maps.items():
        torch.testing.assert_close(found.maps[key], value)
    assert_same_state(before, state_of(net))


def test_a_layer_inside_a_checkpoint_has_the_maps_of_the_layer():
    x = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    methods, layers = ["gradcam", "hirescam", "hirescam_frozen"], ["first", "second"]
    expected = explain(functional("plain"), x, methods, layers, 1, signed=True)
    net = functional("checkpoint")
    before = state_of(net)
    found = explain(net, x, methods, layers, 1, signed=True)
    assert_same_state(before, state_of(net))
    for key, value in expected.maps.items():
        assert float(value.abs().max()) > 0
        assert torch.equal(found.maps[key], value)


def test_a_layer_inside_a_reentrant_checkpoint_is_refused_in_one_sentence():
    net, x = functional("checkpoint, reentrant"), torch.randn(1, 1, 8, 8)
    before = state_of(net)
    with pytest.raises(LayerError, match="no gradient reaches 'first'"):
        explain(net, x, "hirescam", "first", 1)
    assert_same_state(before, state_of(net))


def test_a_checkpointed_block_has_the_maps_of_the_block():
    class Outside(nn.Module):
        def __init__(self, how):
            super().__init__()
            self.inner, self.after, self.fc = functional(how), nn.ReLU(), nn.Linear(4, 3)
            self.how = how

        def forward(self, x):
            block = self.inner.block
            features = block(x) if self.how == "plain" else checkpoint(block, x, use_reentrant=False)
            return self.fc(self.after(features).square().mean((2, 3)))

    x = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    plain, checkpointed = Outside("plain"), Outside("checkpoint")
    checkpointed.load_state_dict(plain.state_dict())
    expected = explain(plain, x, "hirescam", "after", 1, signed=True).maps["hirescam", "after"]
    assert float(expected.abs().max()) > 0
    assert torch.equal(
        explain(checkpointed, x, "hirescam", "after", 1, signed=True).maps["hirescam", "after"], expected
    )


@pytest.mark.skipif(shutil.which("g++") is None and shutil.which("clang++") is None, reason="no compiler of C++ here")
def test_a_network_compiled_by_inductor_has_the_maps_of_the_network_itself():
    x = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    expected = explain(functional("plain"), x, "hirescam", "second", 1).maps["hirescam", "second"]
    compiled = torch.compile(functional("plain"))
    assert torch.equal(explain(compiled, x, "hirescam", "second", 1).maps["hirescam", "second"], expected)


def test_memory_does_not_grow_and_needs_no_garbage_collector():
    net, x = functional("plain"), torch.randn(1, 1, 8, 8)
    kept = []
    net.second.register_forward_hook(lambda _m, _a, out: kept.append(weakref.ref(out)))
    gc.disable()
    try:
        for _ in range(3):
            result = explain(net, x, ["gradcam", "saliency"], "second", 1)
            cam = GradCAM(net, "second")
            maps = cam(x, class_idx=1)
        del result, cam, maps
        assert len(kept) > 3
        assert all(reference() is None for reference in kept)
    finally:
        gc.enable()


def test_later_predictions_and_training_see_no_hook():
    net, x = functional("plain"), torch.randn(2, 1, 8, 8)
    expected = net(x)
    GradCAM(net, "second")(x, class_idx=1)
    assert all(not module._forward_hooks and not module._backward_hooks for module in net.modules())
    assert torch.equal(net(x), expected)
    net(x).sum().backward()
    assert net.first.weight.grad is not None


def test_no_class_means_the_class_that_the_network_says():
    torch.manual_seed(0)
    net, x = nets.DenseNet(2, 1, 3, 8, 4, (2, 2)), torch.randn(3, 1, 32, 32)
    cam = GradCAM(net, "class_layers.relu")
    with torch.no_grad():
        top = net.eval()(x).argmax(1)
    assert torch.equal(cam(x), cam(x, class_idx=top))


def test_hirescam_equals_gradcam_in_front_of_mean_and_linear_layer_and_not_before():
    torch.manual_seed(0)
    net, x = PooledLinear(), torch.randn(2, 1, 8, 8)
    maps = cam_pass(net, x, ["conv", "relu"], ClassScore(1), ["gradcam", "hirescam"], signed=True).maps
    torch.testing.assert_close(maps["gradcam", "relu"], maps["hirescam", "relu"])
    assert not torch.allclose(maps["gradcam", "conv"], maps["hirescam", "conv"], rtol=0.1)


def test_slices_of_a_volume_are_not_copies_of_their_neighbors():
    ramp = torch.arange(3.0).reshape(1, 1, 1, 1, 3).expand(1, 1, 2, 2, 3) + 1

    class Ramp(nn.Module):
        def __init__(self):
            super().__init__()
            self.pool, self.features = nn.AvgPool3d((2, 2, 2)), nn.Identity()

        def forward(self, x):
            return (self.features(self.pool(x)) * ramp).mean((2, 3, 4))

    heat = GradCAM(Ramp(), "features", cancelled="empty")(
        torch.rand(1, 1, 4, 4, 6) + ramp.repeat_interleave(2, 4)[..., :1, :1, :]
    )
    assert heat.shape == (1, 1, 4, 4, 6)
    assert all(not torch.equal(heat[..., i], heat[..., i + 1]) for i in range(5))


def test_behind_the_last_attention_the_map_is_empty_and_the_default_is_not_there():
    torch.manual_seed(0)
    vit = nets.ViT(1, (16, 16), (4, 4), 12, 16, 2, 2, classification=True, num_classes=3, spatial_dims=2)
    x = torch.randn(1, 1, 16, 16)
    behind = explain(vit, x, "hirescam", "blocks.1.norm2", "0:1", signed=True)
    assert float(behind.maps["hirescam", "blocks.1.norm2"].abs().max()) == 0
    default = explain(vit, x, "hirescam", None, "0:1", signed=True).maps
    assert list(default) == [("hirescam", "blocks.0")]
    assert float(default["hirescam", "blocks.0"].abs().max()) > 0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_networks_in_half_precision_give_float32_maps_near_those_in_float32(dtype):
    x = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    expected = explain(functional("plain"), x, "hirescam", "second", 1).maps["hirescam", "second"]
    found = explain(functional("plain").to(dtype), x.to(dtype), "hirescam", "second", 1).maps["hirescam", "second"]
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected, rtol=0, atol=0.05 * float(expected.max()))


def test_nothing_found_is_zero_and_never_nan():
    net, x = PooledLinear(), torch.randn(1, 1, 6, 6)
    net.fc.weight.data.copy_(-net.fc.weight.data.abs())
    heat, empty = explain(net, x, "gradcam", "relu", 1).on_image("gradcam", "relu")
    assert bool(empty.all())
    assert torch.equal(heat, torch.zeros(1, 1, 6, 6))


BAD = {
    "wrong channels": (
        PooledLinear,
        torch.randn(1, 2, 6, 6),
        "relu",
        1,
        r"failed on images \(1, 2, 6, 6\)",
    ),
    "not a number": (
        PooledLinear,
        torch.full((1, 1, 6, 6), torch.nan),
        "relu",
        1,
        r"NaN .* in sample\(s\) \[0\]",
    ),
    "integers": (PooledLinear, torch.ones(1, 1, 6, 6, dtype=torch.long), "relu", 1, "got .*int64"),
    "no batch": (PooledLinear, torch.randn(6, 6), "relu", 1, "expected floating point .* got"),
    "unknown layer": (
        PooledLinear,
        torch.randn(1, 1, 6, 6),
        "rellu",
        1,
        "nearest: 'relu'",
    ),
    "unknown class": (PooledLinear, torch.randn(1, 1, 6, 6), "relu", 7, "class index 7 is not in 0..2"),
    "unknown method": (PooledLinear, torch.randn(1, 1, 6, 6), "relu", 1, "unknown method"),
    "class by name": (PooledLinear, torch.randn(1, 1, 6, 6), "relu", "gliom", "nearest class: 'glioma'"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_one_sentence(name):
    make, x, layer, target, message = BAD[name]
    net = make()
    before = state_of(net)
    method = "gradcm" if name == "unknown method" else "gradcam"
    with pytest.raises((ValueError, FloatingPointError), match=message) as error:
        explain(net, x, method, layer, target, classes=["no tumor", "glioma", "other"])
    assert "\n" not in str(error.value)
    assert_same_state(before, state_of(net))


def test_a_quantized_network_is_refused_in_one_sentence():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch announces the successor of its quantization
        net = torch.ao.quantization.quantize_dynamic(PooledLinear(), {nn.Linear}, dtype=torch.qint8)
    with pytest.raises(LayerError, match="layer 'fc' of PooledLinear is quantized"):
        explain(net, torch.randn(1, 1, 6, 6), "gradcam", "relu", 1)
    occlusion = explain(net, torch.randn(1, 1, 6, 6), "occlusion", target=1, options={"occlusion": {"window": 2}})
    assert occlusion.maps["occlusion", "input"].shape == (1, 1, 6, 6)
