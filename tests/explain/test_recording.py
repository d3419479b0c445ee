"""What layers put out in one pass and its gradients, without a trace in the network; which layer is the default."""

from __future__ import annotations

import threading

import pytest
import torch
from torch import nn

from scripts.explain.layers import LayerError
from scripts.explain.recording import chosen_layers, default_layer, nodes_behind, record
from tests.explain.nets import InplaceResidual, PooledLinear, TinySegmenter


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


def test_no_layer_is_a_mistake_unless_it_is_meant():
    net = PooledLinear()
    with pytest.raises(LayerError, match="no layer given"), record(net, []):
        pass
    with record(net, [], none=True) as recorder:
        net(torch.zeros(1, 1, 4, 4))
    assert recorder.activations == {}


def test_gradients_of_half_precision_are_scaled_and_not_finite_ones_refused():
    net = nn.Sequential(nn.Conv2d(1, 1, 1, bias=False)).half()
    nn.init.constant_(net[0].weight, 1.0)
    with record(net, ["0"]) as recorder:
        score = (net(torch.ones(1, 1, 2, 2, dtype=torch.half)).float() * 1e-7).sum((1, 2, 3))
    gradient = recorder.gradients(score)["0"]
    assert gradient.dtype == torch.float32
    assert gradient.flatten().tolist() == pytest.approx([1e-7] * 4, rel=0.05)
    net = net.float()
    with record(net, ["0"]) as recorder:
        score = net(torch.zeros(1, 1, 2, 2)).sqrt().sum((1, 2, 3))
    with pytest.raises(FloatingPointError, match="gradient of the target at layer '0' of Sequential is not finite"):
        recorder.gradients(score)


def test_integers_are_no_activation():
    class Rounded(nn.Module):
        def forward(self, x):
            return x.round().long()

    net = nn.Sequential(Rounded())
    with (
        pytest.raises(LayerError, match=r"'0' of Sequential returns torch\.int64; expected floating point"),
        record(net, ["0"]),
    ):
        net(torch.zeros(1, 1, 2, 2))


def test_the_graph_may_be_kept_for_another_score():
    net, x = PooledLinear(), torch.randn(1, 1, 4, 4)
    with record(net, ["relu"]) as recorder:
        output = net(x)
    first = recorder.gradients(output[:, 0], retain_graph=True)["relu"]
    second = recorder.gradients(output[:, 1])["relu"]
    torch.testing.assert_close(first[0, :, 0, 0], net.fc.weight[0].detach() / 16)
    torch.testing.assert_close(second[0, :, 0, 0], net.fc.weight[1].detach() / 16)
    with pytest.raises(RuntimeError, match="second time"):
        recorder.gradients(output[:, 0])


def test_a_layer_at_the_top_that_runs_twice_has_no_block_around_it():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(1, 1, 1)

        def forward(self, x):
            return self.conv(self.conv(x))

    net = Twice()
    with pytest.raises(LayerError, match="name a block that runs once"), record(net, ["conv"]):
        net(torch.zeros(1, 1, 2, 2))


def test_nodes_behind_a_value_by_ways_around_another():
    x = torch.ones(1, requires_grad=True)
    a = x * 2
    b = a + 1
    total = b * x
    assert a.grad_fn in nodes_behind(total.grad_fn)
    around = nodes_behind(total.grad_fn, b.grad_fn)
    assert (a.grad_fn in around, total.grad_fn in around, len(around)) == (False, True, 2)
    assert nodes_behind(None) == set()


def test_layers_are_those_named_or_the_default_one():
    net, x = PooledLinear(), torch.randn(1, 1, 4, 4)
    assert chosen_layers(net, x, "mine") == ["mine"]
    assert chosen_layers(net, x, ("conv", "mine")) == ["conv", "mine"]
    assert chosen_layers(net, x, None) == ["relu"]
    net.default_cam_layer = "conv"
    assert chosen_layers(net, x, None) == ["conv"]
    segmenter = TinySegmenter()
    segmenter.default_cam_layer = "out"
    assert [chosen_layers(segmenter, x, None, dense=dense) for dense in (False, True)] == [["out"], ["features"]]
    segmenter.default_cam_layer = 3  # no name
    assert default_layer(segmenter, x) == "features"


def test_the_default_layer_of_a_dense_output_lies_in_front_of_its_last_weights():
    x = torch.randn(1, 1, 8, 8)
    behind = nn.Sequential(nn.Conv2d(1, 2, 1), nn.ReLU(), nn.Conv2d(2, 2, 1), nn.Sigmoid())
    assert default_layer(behind, x) == "1"
    norm = nn.Sequential(nn.Conv2d(1, 2, 1), nn.ReLU(), nn.Conv2d(2, 2, 1), nn.BatchNorm2d(2))
    assert default_layer(norm, x) == "1", "weights of one axis make no output layer"

    class ByPlace(nn.Module):
        """A linear layer over channels as the output layer."""

        def __init__(self):
            super().__init__()
            self.features, self.out = nn.Sequential(nn.Conv2d(1, 2, 1), nn.ReLU()), nn.Linear(2, 2)

        def forward(self, x):
            return self.out(self.features(x).movedim(1, -1)).movedim(-1, 1)

    assert default_layer(ByPlace(), x) == "features"
    none = nn.Sequential(nn.ReLU(), nn.AvgPool2d(2))
    assert default_layer(none, x) == "1", "without weights it is the last"


def test_the_default_layer_has_places_and_runs_once():
    x = torch.randn(1, 1, 8, 8)
    pooled = nn.Sequential(nn.Conv2d(1, 2, 1), nn.AdaptiveAvgPool2d((1, 2)), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    assert default_layer(pooled, x) == "1"
    shared = nn.ReLU()
    twice = nn.Sequential(shared, nn.Conv2d(1, 2, 1), shared, nn.Flatten(), nn.Linear(128, 2))
    assert default_layer(twice, x) == "1"
    kwargs = {"gain": 2.0}

    class Gained(PooledLinear):
        def forward(self, x, *, gain):
            return super().forward(x * gain)

    assert default_layer(Gained(), x, kwargs) == "relu"
