from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from captum.attr import Occlusion
from torch import nn

from scripts.explain.gradients import INPUT
from scripts.explain.layers import LayerError
from scripts.explain.perturbation import occlusion, scorecam
from scripts.explain.targets import ClassMargin, ClassScore, SegmentationRegion
from tests.explain.nets import (
    InplaceResidual,
    PooledLinear,
    Wrapped,
    assert_same_state,
    state_of,
    undecided,
    undecided_segmenter,
)
from tests.networks.nets import heads, tiny


class Weighted(nn.Module):
    """Logits [sum(weight * x), 0]."""

    def __init__(self, weight):
        super().__init__()
        self.weight = nn.Parameter(weight)

    def forward(self, x):
        score = (x * self.weight).flatten(1).sum(1)
        return torch.stack([score, torch.zeros_like(score)], 1)


def test_occlusion_by_hand():
    net = Weighted(torch.tensor([[1.0, 2.0, 3.0, 4.0]]))
    x = torch.ones(1, 1, 1, 4)
    # Windows of two pixels, step 1, replaced by 0: drops 3, 5, 7; each pixel the mean of its windows.
    maps = occlusion(net, x, ClassScore(0), window=[1, 2], stride=[1, 1], baseline=0.0).maps
    assert maps["occlusion", INPUT].tolist() == [[[[3.0, 4.0, 6.0, 7.0]]]]
    # With the last pixel air, and never painted: drops 3, 5, 3.
    inside = torch.tensor([[[[1, 1, 1, 0]]]])
    maps = occlusion(net, x, ClassScore(0), foreground=inside, window=[1, 2], stride=[1, 1], baseline=0.0).maps
    assert maps["occlusion", INPUT].tolist() == [[[[3.0, 4.0, 4.0, 0.0]]]]
    # What speaks against the target is negative, and 0 unless asked for.
    against = occlusion(net, x, ClassMargin(1, 0), window=1, baseline=0.0, signed=True).maps["occlusion", INPUT]
    assert against.tolist() == [[[[-1.0, -2.0, -3.0, -4.0]]]]
    assert float(occlusion(net, x, ClassMargin(1, 0), window=1, baseline=0.0).maps["occlusion", INPUT].max()) == 0
    # The mean of the foreground in place of the tissue changes nothing where all tissue is alike.
    assert float(occlusion(net, x, ClassScore(0), window=1, signed=True).maps["occlusion", INPUT].abs().max()) == 0


@pytest.mark.parametrize(("window", "stride"), [((3, 3), (2, 2)), ((4, 2), (3, 1)), ((8, 9), (8, 9))])
def test_occlusion_equals_captum(window, stride):
    torch.manual_seed(0)
    net, x = InplaceResidual(inplace=False).eval(), torch.randn(2, 1, 8, 9)
    target = torch.tensor([1, 0])
    reference = Occlusion(net).attribute(x, (1, *window), (1, *stride), baselines=0.5, target=target)
    ours = occlusion(net, x, ClassScore(target), window=window, stride=stride, baseline=0.5, signed=True, batch_size=5)
    torch.testing.assert_close(ours.maps["occlusion", INPUT], reference.float(), rtol=1e-4, atol=1e-6)


def test_windows_without_tissue_are_not_run():
    net, sizes = PooledLinear(), []
    net.register_forward_hook(lambda _m, inputs, _o: sizes.append(len(inputs[0])))
    inside = torch.zeros(2, 1, 8, 8)
    inside[0, :, :2, :2] = 1
    inside[1, :, :4, :4] = 1
    occlusion(net, torch.randn(2, 1, 8, 8), ClassScore(0), foreground=inside, window=2, stride=2, batch_size=3)
    assert sizes == [2, 3, 2]  # the prediction, then 1 + 4 windows


def test_occlusion_holds_the_foreground_of_the_network_fixed():
    network, x = tiny(), heads()
    inside = (x != 0).float()
    found = {"output": "cls"}
    seen = []
    hook = network.input_block.register_forward_hook(lambda _m, inputs, _o: seen.append(inputs[1].clone()))
    arguments = {"window": 6, "stride": 6, "baseline": 0.0}
    fixed = occlusion(network, x, ClassMargin(1, 0), found, inside, "foreground", **arguments)
    hook.remove()
    sums = {float(mask.flatten(1).sum(1)[i]) for mask in seen for i in range(len(mask))}
    assert sums == {float(inside[0].sum()), float(inside[1].sum())}
    # Read off the image, a patch of zeros is air, and the map another one.
    mask = network.forward

    class Unaware(nn.Module):
        def forward(self, image):
            return mask(image, output="cls")

    loose = occlusion(Unaware(), x, ClassMargin(1, 0), foreground=inside, **arguments)
    assert not torch.allclose(loose.maps["occlusion", INPUT], fixed.maps["occlusion", INPUT], rtol=0.05)


def scorecam_by_hand(net, x, layer, index, weighting):
    """Channel by channel, one sample."""
    kept = []
    handle = net.get_submodule(layer).register_forward_hook(lambda _m, _i, out: kept.append(out.clone()))
    with torch.no_grad():
        net(x)
    handle.remove()
    activation, increases = kept[0], []
    for k in range(activation.shape[1]):
        mask = F.interpolate(activation[:, k : k + 1], x.shape[2:], mode="bilinear", align_corners=False)
        mask = (mask - mask.min()) / (mask.max() - mask.min())
        with torch.no_grad():
            increases.append(net(x * mask)[0, index] - net(x * 0)[0, index])
    weights = torch.stack(increases)
    weights = weights.softmax(0) if weighting == "softmax" else weights
    return (weights.reshape(1, -1, 1, 1) * activation).sum(1, keepdim=True)


@pytest.mark.parametrize("weighting", ["softmax", "increase"])
def test_scorecam_equals_the_paper_channel_by_channel(weighting):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 5, 3, stride=2), nn.ReLU(), nn.Conv2d(5, 4, 3), nn.Flatten(), nn.Linear(100, 3))
    net.eval()
    x, classes = torch.randn(3, 1, 15, 15), [2, 0, 1]
    layers = ["1", "2"]
    options = {"weighting": weighting, "signed": True, "batch_size": 4}
    result = scorecam(net, x, layers, ClassScore(classes), **options)
    assert list(result.maps) == [("scorecam", "1"), ("scorecam", "2")]
    for layer in layers:
        hand = torch.cat([scorecam_by_hand(net, x[i : i + 1], layer, classes[i], weighting) for i in range(3)])
        torch.testing.assert_close(result.maps["scorecam", layer], hand, rtol=1e-4, atol=1e-6)
    positive = scorecam(net, x, "2", ClassScore(classes), weighting=weighting).maps["scorecam", "2"]
    torch.testing.assert_close(positive, hand.clamp(min=0), rtol=1e-4, atol=1e-6)
    assert torch.equal(result.output, net(x).detach())


def test_scorecam_runs_all_channels_in_batches_and_leaves_constant_ones_out():
    net, sizes = PooledLinear(), []
    with torch.no_grad():
        net.conv.weight[1].zero_()
        net.conv.bias.fill_(0.5)  # channel 1 is 0.5 everywhere
    net.register_forward_hook(lambda _m, inputs, _o: sizes.append(len(inputs[0])))
    x = torch.randn(2, 1, 6, 6)
    scorecam(net, x, "relu", ClassScore(0), batch_size=4)
    assert sizes == [2, 2, 4, 2]  # prediction, baseline, 2 x 3 varying channels
    with torch.no_grad():
        net.conv.weight.zero_()
    with pytest.raises(LayerError, match=r"all its channels are constant in sample\(s\) \[0, 1\]"):
        scorecam(net, x, "relu", ClassScore(0))


def test_positive_is_important_for_both_methods():
    # The net counts brightness in one corner; both methods must point there.
    weight = torch.zeros(1, 8, 8)
    weight[:, :3, :3] = 1.0

    class Corner(Weighted):
        def __init__(self):
            super().__init__(weight)
            self.same = nn.Conv2d(1, 2, 1, bias=False)
            nn.init.constant_(self.same.weight, 1.0)

        def forward(self, x):
            return super().forward(self.same(x)[:, :1])

    x = torch.zeros(1, 1, 8, 8)
    x[..., :3, :3] = 2.0
    occluded = occlusion(Corner(), x, ClassScore(0), window=3, stride=1, baseline=0.0).maps["occlusion", INPUT]
    seen = scorecam(Corner(), x, "same", ClassScore(0)).maps["scorecam", "same"]
    for maps in (occluded, seen):
        assert float(maps[..., :3, :3].sum() / maps.sum()) > 0.5
        assert divmod(int(maps.flatten().argmax()), 8)[0] < 3


def run_occlusion(net, x, target, *args, **kwargs):
    return occlusion(net, x, target, *args, window=3, stride=2, **kwargs).maps["occlusion", INPUT]


def run_scorecam(net, x, target, *args, **kwargs):
    result = scorecam(net, x, None, target, *args, **kwargs)
    return next(iter(result.maps.values()))


METHODS = {"occlusion": run_occlusion, "scorecam": run_scorecam}


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("dims", [2, 3])
def test_batches_equal_one_at_a_time_and_the_network_is_left_alone(name, dims):
    torch.manual_seed(0)
    net, x = Wrapped(PooledLinear(dims=dims)), torch.randn(3, 1, *[6] * dims)
    net.inner["net"].conv.weight.requires_grad_(False)
    net(x).sum().backward()
    inside = (torch.rand(3, 1, *[6] * dims) > 0.3).float()
    kwargs = {"scale": torch.tensor([[1.0], [2.0], [-1.0]])}
    target = ClassScore([2, 0, 1])
    before, original = state_of(net), x.clone()
    together = METHODS[name](net, x, target, kwargs, inside, batch_size=4)
    assert_same_state(before, state_of(net))
    assert torch.equal(x, original)
    assert not together.requires_grad
    for i in range(3):
        index = torch.tensor([i])
        alone = METHODS[name](net, x[index], target.take(index), {"scale": kwargs["scale"][index]}, inside[index])
        assert float(alone.max()) > 0
        torch.testing.assert_close(together[index], alone, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", METHODS)
def test_in_place_training_and_inference_mode_give_the_same(name):
    torch.manual_seed(0)
    net = nn.Sequential(nn.ReLU(inplace=True), InplaceResidual()).train()
    plain = nn.Sequential(nn.ReLU(), InplaceResidual(inplace=False)).eval()
    plain.load_state_dict(net.state_dict())
    x = torch.randn(2, 1, 6, 6)
    original = x.clone()
    reference = METHODS[name](plain, x, ClassScore(1))
    for context in (torch.no_grad, torch.inference_mode, torch.enable_grad):
        with context():
            result = METHODS[name](net, original * 1.0, ClassScore(1))
        torch.testing.assert_close(result, reference, rtol=1e-4, atol=1e-6)
    assert torch.equal(METHODS[name](net, x, ClassScore(1)), result)
    assert torch.equal(x, original)


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_close_and_float32(name, dtype):
    torch.manual_seed(0)
    net, x = PooledLinear(), 4 * torch.randn(2, 1, 8, 8)
    reference = METHODS[name](net, x, ClassScore(1))
    with torch.autocast("cpu", dtype=dtype):
        automatic = METHODS[name](net, x, ClassScore(1))
    cast = METHODS[name](net.to(dtype), x.to(dtype), ClassScore(1))
    for result in (automatic, cast):
        assert result.dtype == torch.float32
        torch.testing.assert_close(result, reference, rtol=0, atol=0.1 * float(reference.max()))


@pytest.mark.parametrize("name", METHODS)
def test_targets_stay_those_of_the_unchanged_prediction(name):
    net, x = undecided()
    top = net(x).argmax(1)
    assert top.unique().numel() > 1
    assert torch.equal(METHODS[name](net, x, ClassScore()), METHODS[name](net, x, ClassScore(top)))
    segmenter, x = undecided_segmenter()
    region = segmenter(x).argmax(1) == 1
    assert 0 < int(region.sum()) < region.numel()
    assert torch.equal(
        METHODS[name](segmenter, x, SegmentationRegion()), METHODS[name](segmenter, x, SegmentationRegion(region))
    )


def test_errors_and_no_trace_after_them():
    class Failing(PooledLinear):
        calls = 0

        def forward(self, x):
            self.calls += 1
            if self.calls > 2:
                raise RuntimeError("out of luck")
            return super().forward(x)

    for method in METHODS.values():
        net = Failing()
        before = state_of(net)
        with pytest.raises(RuntimeError, match="out of luck"):
            method(net, torch.randn(2, 1, 6, 6), ClassScore(0))
        assert_same_state(before, state_of(net))
    net, x = PooledLinear(), torch.randn(2, 1, 6, 6)
    with pytest.raises(ValueError, match="some tissue would never be occluded"):
        occlusion(net, x, ClassScore(0), window=2, stride=3)
    with pytest.raises(ValueError, match="window: expected a positive integer, or one for each of 2 axes"):
        occlusion(net, x, ClassScore(0), window=[2, 2, 2])
    with pytest.raises(ValueError, match="expected 'softmax' or 'increase'"):
        scorecam(net, x, "relu", ClassScore(0), weighting="none")
    with pytest.raises(LayerError, match="nearest: 'relu'"):
        scorecam(net, x, "rellu", ClassScore(0))
    with pytest.raises(LayerError, match=r"'fc' of PooledLinear puts out \(2, 3\)"):
        scorecam(net, x, "fc", ClassScore(0))
    assert all(not m._forward_hooks for m in net.modules())


@pytest.mark.parametrize(
    ("size", "window", "stride"), [((16, 8), (2, 1), (1, 1)), ((5, 7), (1, 1), (1, 1)), ((32, 40), (4, 5), (2, 2))]
)
def test_windows_are_an_eighth_of_each_axis_and_step_by_half(size, window, stride):
    torch.manual_seed(0)
    net, x = Weighted(torch.rand(1, *size)), torch.rand(1, 1, *size)
    found = occlusion(net, x, ClassScore(0), batch_size=500)
    asked = occlusion(net, x, ClassScore(0), window=window, stride=stride, baseline="mean", batch_size=500)
    assert torch.equal(found.maps["occlusion", INPUT], asked.maps["occlusion", INPUT])
    half = occlusion(net, x, ClassScore(0), window=window, batch_size=500)
    assert torch.equal(found.maps["occlusion", INPUT], half.maps["occlusion", INPUT])


def test_occlusion_of_volumes_and_of_windows_cut_off_at_the_border_by_hand():
    net, x = Weighted(torch.tensor([[[1.0, 2.0, 3.0, 4.0, 5.0]]])), torch.ones(1, 1, 1, 1, 5)
    maps = occlusion(net, x, ClassScore(0), window=(1, 1, 2), stride=(1, 1, 2), baseline=0.0).maps
    assert maps["occlusion", INPUT].flatten().tolist() == [3.0, 3.0, 7.0, 7.0, 5.0]
    maps = occlusion(net, x, ClassScore(0), window=(3, 1, 4), stride=(1, 1, 3), baseline=0.0).maps
    assert maps["occlusion", INPUT].flatten().tolist() == [10.0, 10.0, 10.0, 9.5, 9.0]


def test_sides_of_windows_that_are_refused():
    net, x = Weighted(torch.ones(1, 4, 4)), torch.ones(1, 1, 4, 4)
    for option in ("window", "stride"):
        for wrong in (0, -1, [2, 0], [1], (1, 1, 1)):
            with pytest.raises(ValueError, match=f"{option}: expected a positive integer, or one for each of 2 axes"):
                occlusion(net, x, ClassScore(0), **{option: wrong})
    for window, stride in (((2, 4), (3, 1)), ((4, 2), (1, 3))):
        with pytest.raises(ValueError, match="some tissue would never be occluded"):
            occlusion(net, x, ClassScore(0), window=window, stride=stride)
    assert occlusion(net, x, ClassScore(0), window=2, stride=2, baseline=0.0).maps["occlusion", INPUT].unique() == 4


class Channels(nn.Module):
    """Features: the image, its negative and a constant; the score is the image's sum."""

    def __init__(self):
        super().__init__()
        self.features = nn.Conv2d(1, 3, 1)
        self.features.weight.data = torch.tensor([1.0, -1.0, 0.0]).reshape(3, 1, 1, 1)
        self.features.bias.data = torch.tensor([0.0, 0.0, 7.0])

    def forward(self, x):
        self.features(x)
        total = x.flatten(1).sum(1)
        return torch.stack([total, 0 * total], 1)


def test_scorecam_weighs_channels_by_hand_and_constant_ones_not_at_all():
    x = torch.tensor([[[[0.0, 1.0, 3.0]]]])
    # Through the first channel, 0, 1/3, 1, the image sums to 10/3; through the second, 1, 2/3, 0, to 2/3.
    increases = torch.tensor([10 / 3, 2 / 3])
    by_increase = scorecam(Channels(), x, "features", ClassScore(0), weighting="increase", signed=True)
    expected = increases[0] * x - increases[1] * x
    torch.testing.assert_close(by_increase.maps["scorecam", "features"], expected)
    share = increases.softmax(0)
    by_softmax = scorecam(Channels(), x, "features", ClassScore(0), signed=True)
    torch.testing.assert_close(by_softmax.maps["scorecam", "features"], (share[0] - share[1]) * x)
    # In front of a baseline of 2 what is dark is 2: 2, 5/3, 3 and 0, 4/3, 2 against 6.
    bright = scorecam(Channels(), x, "features", ClassScore(0), weighting="increase", signed=True, baseline=2.0)
    increases = torch.tensor([20 / 3 - 6, 10 / 3 - 6])
    torch.testing.assert_close(bright.maps["scorecam", "features"], (increases[0] - increases[1]) * x)
    positive = scorecam(Channels(), -x, "features", ClassScore(0), weighting="increase")
    assert float(positive.maps["scorecam", "features"].min()) == 0


def test_the_sample_whose_channels_are_all_constant_is_named():
    x = torch.tensor([[[[0.0, 1.0]]], [[[2.0, 2.0]]]])
    with pytest.raises(LayerError, match=r"all its channels are constant in sample\(s\) \[1\]"):
        scorecam(Channels(), x, "features", ClassScore(0))
