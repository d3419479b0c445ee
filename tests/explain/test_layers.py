from __future__ import annotations

import pytest
import torch
from monai.networks.nets import DenseNet121, DynUNet, SegResNet, UNet
from torch import nn

from scripts.explain.layers import (
    LayerError,
    default_aliases,
    evaluating,
    frozen,
    list_layers,
    refuse_quantized,
    resolve_layer,
)
from scripts.explain.recording import default_layer, record
from tests.explain.nets import PooledLinear, TinySegmenter, Wrapped, assert_same_state, state_of


@pytest.fixture(scope="module")
def dynunet():
    torch.manual_seed(0)
    return DynUNet(2, 1, 2, [3, 3, 3, 3], [1, 2, 2, 2], [2, 2, 2], filters=[4, 4, 4, 4])


def test_wrong_name_is_an_error_with_the_nearest_name(dynunet):
    with pytest.raises(LayerError) as error:
        resolve_layer(dynunet, "bottlenek")
    assert str(error.value) == (
        "layer 'bottlenek' not in DynUNet; nearest: 'bottleneck'; "
        "list them with scripts.explain.layers.list_layers(model)"
    )


def test_the_model_itself_is_no_layer(dynunet):
    with pytest.raises(LayerError, match="not in DynUNet"):
        resolve_layer(dynunet, "")


def test_aliases_of_a_dynunet(dynunet):
    assert default_aliases(dynunet) == {
        "encoder_early": "input_block",
        "encoder_mid": "downsamples.0",
        "encoder_last": "bottleneck",
        "decoder_last": "upsamples.2",
        "seg_head": "output_block",
    }
    assert resolve_layer(dynunet, "decoder_last") == "upsamples.2"


def test_given_aliases_come_first_and_are_checked(dynunet):
    assert resolve_layer(dynunet, "decoder_last", {"decoder_last": "upsamples.0"}) == "upsamples.0"
    with pytest.raises(LayerError, match="alias 'mine' stands for layer 'nowhere', which is not in DynUNet"):
        resolve_layer(dynunet, "mine", {"mine": "nowhere"})
    with pytest.raises(LayerError, match="DynUNet has no default for the alias 'evidence'"):
        resolve_layer(dynunet, "evidence")


def test_aliases_of_a_segresnet_name_its_blocks():
    net = SegResNet(spatial_dims=2, init_filters=8, blocks_down=(1, 1, 1), blocks_up=(1, 1))
    assert default_aliases(net) == {
        "encoder_early": "convInit",
        "encoder_mid": "down_layers.1",
        "encoder_last": "down_layers.2",
        "decoder_last": "up_layers.1",
        "seg_head": "conv_final",
    }


def test_list_layers_gives_names_that_resolve(dynunet):
    names = list_layers(dynunet)
    assert "bottleneck" in names
    assert "" not in names
    assert all(resolve_layer(dynunet, name) == name for name in names)


def test_modes_come_back_module_by_module_also_after_an_exception():
    net = nn.Sequential(nn.Conv2d(1, 1, 1), nn.BatchNorm2d(1), nn.Dropout())
    net.train()
    net[1].eval()
    with pytest.raises(RuntimeError, match="stop"), evaluating(net):  # noqa: PT012
        assert not net[2].training
        raise RuntimeError("stop")
    assert [m.training for m in net] == [True, False, True]
    assert net.training


def test_layer_that_runs_twice_is_an_error_that_names_the_block(dynunet):
    with (
        pytest.raises(LayerError, match=r"'bottleneck\.lrelu' of DynUNet ran more than once.*\('bottleneck'\)"),
        record(dynunet, ["bottleneck.lrelu"]),
    ):
        dynunet(torch.randn(1, 1, 16, 16))
    assert all(not m._forward_hooks for m in dynunet.modules())


def test_automatic_layer():
    x = torch.randn(1, 1, 32, 32)
    densenet = DenseNet121(spatial_dims=2, in_channels=1, out_channels=2, block_config=(1, 1), init_features=8)
    before = state_of(densenet)
    assert default_layer(densenet, x) == "class_layers.relu"
    assert default_layer(Wrapped(densenet), x) == "inner.net.class_layers.relu"
    assert_same_state(before, state_of(densenet))
    assert default_layer(TinySegmenter(), x) == "features"
    assert default_layer(UNet(2, 1, 2, (4, 8), (2,)), x) == "model.1"


def test_automatic_layer_follows_the_choice_of_the_network_for_class_outputs():
    net = TinySegmenter()
    net.default_cam_layer = "features.0"
    x = torch.randn(1, 1, 8, 8)
    assert default_layer(net, x) == "features.0"
    assert default_layer(Wrapped(net), x) == "inner.net.features.0"
    assert default_layer(net, x, dense=True) == "features"
    net.default_cam_layer = "feature"
    with pytest.raises(LayerError, match="nearest: 'features'"):
        default_layer(net, x)


def test_no_automatic_layer_for_vectors_and_without_gradients():
    with pytest.raises(LayerError, match="no layer of Sequential puts out spatial features"):
        default_layer(nn.Sequential(nn.Flatten(), nn.Linear(16, 2)), torch.randn(1, 1, 4, 4))

    class Detached(PooledLinear):
        def forward(self, x):
            return super().forward(x).detach()

    with pytest.raises(LayerError, match=r"no gradient of the output \(1, 3\) \(torch.float32\) of Detached reaches"):
        default_layer(Detached(), torch.randn(1, 1, 4, 4))


def test_automatic_layer_is_none_that_a_part_of_the_output_goes_around():
    class Concatenated(nn.Module):
        """The last layers of a dense block whose concatenation is a function and no layer."""

        def __init__(self, around: bool):
            super().__init__()
            self.around = around
            self.stem, self.first, self.second = nn.Conv2d(1, 4, 3), nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1)
            self.fc = nn.Linear(8, 2)

        def forward(self, x):
            stem = self.stem(x)
            first = self.first(stem)
            features = torch.cat([first, self.second(first)], 1)
            logits = self.fc(features.mean((2, 3)))
            return logits + x.mean((1, 2, 3))[:, None] if self.around else logits

    x = torch.randn(2, 1, 8, 8)
    assert default_layer(Concatenated(False), x) == "first"  # "second" is half of the features
    assert default_layer(Concatenated(True), x) == "second"  # no layer has all of it: the last one


def test_automatic_layer_of_a_network_that_hands_its_features_on_or_works_in_place():
    net = nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU(inplace=True), nn.Identity(), nn.Flatten(), nn.Linear(108, 2))
    assert default_layer(net, torch.randn(1, 1, 8, 8)) == "1"
    block = nn.Sequential(nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU()), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    assert default_layer(block, torch.randn(1, 1, 8, 8)) == "0"


def test_aliases_by_the_blocks_that_a_network_has():
    def block(**children):
        module = nn.Module()
        for name, child in children.items():
            setattr(module, name, child)
        return module

    def several(count):
        return nn.ModuleList(nn.Identity() for _ in range(count))

    ours = block(
        input_block=nn.Identity(), bottleneck=nn.Identity(), downsamples=several(4), head=block(features=nn.Identity())
    )
    assert default_aliases(ours) == {
        "encoder_early": "input_block",
        "encoder_mid": "downsamples.1",
        "encoder_last": "bottleneck",
        "evidence": "head.features",
    }
    other = block(down_layers=several(1), up_layers=several(3), convInit=nn.Identity())
    assert default_aliases(other) == {
        "encoder_early": "convInit",
        "encoder_mid": "down_layers.0",
        "encoder_last": "down_layers.0",
        "decoder_last": "up_layers.2",
    }
    assert default_aliases(nn.Sequential(nn.ReLU())) == {}
    assert default_aliases(block(input_block=nn.Identity(), downsamples=several(2), conv_final=nn.Identity())) == {
        "seg_head": "conv_final"
    }


def test_layers_under_two_names_are_found_by_both():
    net = nn.Sequential(nn.ReLU(), nn.Identity())
    net.again = net[0]
    assert resolve_layer(net, "again") == "again"
    with pytest.raises(LayerError, match=r"layer 'x' not in ReLU; list them with"):
        resolve_layer(nn.ReLU(), "x")


def test_parameters_are_frozen_inside_and_learn_again_as_before():
    net = nn.Linear(2, 2)
    net.bias.requires_grad_(False)
    with pytest.raises(RuntimeError, match="stop"), frozen(net):  # noqa: PT012
        assert not any(p.requires_grad for p in net.parameters())
        raise RuntimeError("stop")
    assert (net.weight.requires_grad, net.bias.requires_grad) == (True, False)


def test_quantized_layers_are_refused_by_name():
    class Integers(nn.Module):
        pass

    Integers.__module__ = "torch.ao.nn.quantized.modules"
    refuse_quantized(nn.Sequential(nn.Linear(1, 1)))
    with pytest.raises(LayerError, match=r"layer '1' of Sequential is quantized"):
        refuse_quantized(nn.Sequential(nn.Linear(1, 1), Integers()))
