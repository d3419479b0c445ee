from __future__ import annotations

import threading

import pytest
import torch
from monai.networks.nets import DenseNet121, DynUNet, SegResNet, UNet
from torch import nn

from scripts.explain.layers import LayerError, default_aliases, evaluating, list_layers, resolve_layer
from scripts.explain.recording import default_layer, record
from tests.explain.nets import InplaceResidual, PooledLinear, TinySegmenter, Wrapped, assert_same_state, state_of


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


@pytest.mark.parametrize("error_in", ["forward", "block"])
def test_hooks_are_removed_when_an_exception_is_raised(error_in):
    net = PooledLinear()
    x = torch.zeros(1, 1, 4, 4) if error_in == "block" else torch.zeros(1, 2, 4, 4)
    with pytest.raises(RuntimeError), record(net, ["conv", "relu"]):  # noqa: PT012
        assert len(net.conv._forward_hooks) == 1
        net(x)
        raise RuntimeError("block")
    assert all(not m._forward_hooks for m in net.modules())


def test_recorded_gradient_is_that_of_the_output_by_hand():
    net = nn.Sequential(nn.Conv2d(1, 1, 1, bias=False), nn.ReLU(inplace=True))
    nn.init.constant_(net[0].weight, 2.0)
    x = torch.tensor([[[[1.0, -1.0], [3.0, 0.5]]]])
    with record(net, ["0", "1"]) as recorder:
        score = net(x).square().sum((1, 2, 3))
    gradients = recorder.gradients(score)
    # The in-place ReLU behind the convolution leaves the recorded, negative value alone.
    assert torch.equal(recorder.activations["0"], torch.tensor([[[[2.0, -2.0], [6.0, 1.0]]]]))
    assert torch.equal(recorder.activations["1"], torch.tensor([[[[2.0, 0.0], [6.0, 1.0]]]]))
    assert torch.equal(gradients["0"], torch.tensor([[[[4.0, 0.0], [12.0, 2.0]]]]))
    assert torch.equal(gradients["1"], torch.tensor([[[[4.0, 0.0], [12.0, 2.0]]]]))
    assert net[0].weight.grad is None


def test_in_place_residual_gives_the_gradients_of_the_net_without_it():
    torch.manual_seed(0)
    net, plain = InplaceResidual(), InplaceResidual(inplace=False)
    plain.load_state_dict(net.state_dict())
    x, layers = torch.randn(2, 1, 6, 6), ["conv1", "norm1", "conv2", "norm2"]
    results = []
    for model in (net, plain):
        with record(model, layers) as recorder:
            score = model(x)[:, 1]
        results.append((dict(recorder.activations), recorder.gradients(score)))
    for layer in layers:
        torch.testing.assert_close(results[0][0][layer], results[1][0][layer], rtol=0, atol=0)
        torch.testing.assert_close(results[0][1][layer], results[1][1][layer], rtol=1e-5, atol=1e-7)


def test_layer_that_runs_twice_is_an_error_that_names_the_block(dynunet):
    with (
        pytest.raises(LayerError, match=r"'bottleneck\.lrelu' of DynUNet ran more than once.*\('bottleneck'\)"),
        record(dynunet, ["bottleneck.lrelu"]),
    ):
        dynunet(torch.randn(1, 1, 16, 16))
    assert all(not m._forward_hooks for m in dynunet.modules())


def test_layer_that_returns_a_tuple_is_an_error():
    class Pair(nn.Module):
        def forward(self, x):
            return x, x

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.pair = Pair()

        def forward(self, x):
            return self.pair(x)[0]

    net = Net()
    with (
        pytest.raises(LayerError, match=r"'pair' of Net returns a tuple of 2 \(Tensor, Tensor\)"),
        record(net, ["pair"]),
    ):
        net(torch.ones(1, 1, 2, 2))
    assert not net.pair._forward_hooks


def test_layer_that_did_not_run_or_does_not_matter_is_an_error():
    class Net(PooledLinear):
        def __init__(self):
            super().__init__()
            self.idle, self.aside = nn.Identity(), nn.Conv2d(1, 1, 1)

        def forward(self, x):
            self.aside(x)
            return super().forward(x)

    net = Net()
    for layer, message in (("idle", "'idle' of Net did not run"), ("aside", "does not depend on layer 'aside'")):
        with record(net, [layer, "conv"]) as recorder:
            score = net(torch.randn(1, 1, 4, 4))[:, 0]
        with pytest.raises(LayerError, match=message):
            recorder.gradients(score)


def test_forward_without_gradients_is_an_error_and_not_a_zero_map():
    net = PooledLinear()
    with record(net, ["conv"]) as recorder, torch.no_grad():
        score = net(torch.randn(1, 1, 4, 4))[:, 0]
    with pytest.raises(LayerError, match="no gradient reaches 'conv'"):
        recorder.gradients(score)


def test_output_overwritten_through_the_input_is_an_error():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.same = nn.Conv2d(1, 1, 1), nn.Identity()

        def forward(self, x):
            x = self.conv(x)
            kept = self.same(x)
            x += 1.0
            return (kept * 2 + x).sum((2, 3))

    net = Net()
    with record(net, ["same"]) as recorder:
        score = net(torch.ones(1, 1, 2, 2))[:, 0]
    with pytest.raises(LayerError, match="overwritten in place"):
        recorder.gradients(score)


def test_passes_of_other_threads_are_not_recorded():
    net = PooledLinear()
    x = torch.randn(1, 1, 4, 4)
    with record(net, ["conv"]) as recorder:
        thread = threading.Thread(target=net, args=(torch.zeros(1, 1, 8, 8),))
        thread.start()
        thread.join()
        net(x)
    assert torch.equal(recorder.activations["conv"], net.conv(x))


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
