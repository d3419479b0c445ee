from __future__ import annotations

import pytest
import torch
from captum.attr import IntegratedGradients, Saliency
from torch import nn

from scripts.explain.baselines import blurred_foreground
from scripts.explain.gradients import INPUT, integrated_gradients, saliency, smoothgrad
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

METHODS = {"saliency": saliency, "smoothgrad": smoothgrad, "integrated_gradients": integrated_gradients}


class Quadratic(nn.Module):
    """Logits [sum(x^2) / 2, sum(3 x)]: gradients x and 3."""

    def forward(self, x):
        flat = x.flatten(1)
        return torch.stack([flat.square().sum(1) / 2, 3 * flat.sum(1)], 1)


def inside_of(x):
    inside = torch.zeros(x.shape[0], 1, *x.shape[2:])
    inside[..., 1:-1, 1:-1] = 1
    return inside


def test_saliency_by_hand():
    x = torch.tensor([[[[1.0, -2.0]], [[-3.0, 0.5]]]])  # two channels
    result = saliency(Quadratic(), x, ClassScore(0))
    assert result.maps["saliency", INPUT].tolist() == [[[[3.0, 2.0]]]]
    assert saliency(Quadratic(), x, ClassScore(0), signed=True).maps["saliency", INPUT].tolist() == [[[[-2.0, -1.5]]]]
    assert saliency(Quadratic(), x, ClassMargin(0, 1)).maps["saliency", INPUT].tolist() == [[[[6.0, 5.0]]]]
    assert result.score.tolist() == [7.125]
    assert result.output.tolist() == [[7.125, -10.5]]


def test_saliency_equals_captum_and_autograd():
    torch.manual_seed(0)
    net, x = InplaceResidual(inplace=False), torch.randn(2, 1, 8, 8)
    ours = saliency(net, x, ClassScore([1, 0])).maps["saliency", INPUT]
    leaf = x.clone().requires_grad_()
    torch.testing.assert_close(ours, Saliency(net).attribute(leaf, target=torch.tensor([1, 0])))
    (gradient,) = torch.autograd.grad(net(leaf)[torch.arange(2), [1, 0]].sum(), leaf)
    torch.testing.assert_close(ours, gradient.abs())


def test_smoothgrad_of_a_quadratic_is_the_mean_of_the_noisy_inputs():
    x = torch.arange(16.0).reshape(1, 1, 4, 4)
    inside = inside_of(x)
    # Foreground values 5, 6, 9, 10: range 5, standard deviation 1.
    result = smoothgrad(Quadratic(), x, ClassScore(0), foreground=inside, n_samples=5, noise_share=0.2, seed=7)
    noise = torch.randn(5, 1, 4, 4, generator=torch.Generator().manual_seed(7)).mean(0)
    torch.testing.assert_close(result.maps["smoothgrad", INPUT], x + noise * inside)
    other = smoothgrad(Quadratic(), x, ClassScore(0), foreground=inside, n_samples=5, noise_share=0.2, seed=8)
    assert not torch.allclose(other.maps["smoothgrad", INPUT], result.maps["smoothgrad", INPUT])


def test_smoothgrad_without_noise_is_saliency_and_leaves_the_random_state():
    torch.manual_seed(0)
    net, x = PooledLinear(), torch.randn(2, 1, 6, 6)
    state = torch.get_rng_state()
    smooth = smoothgrad(net, x, ClassScore(1), noise_share=0.0, n_samples=3, batch_size=4)
    assert torch.equal(torch.get_rng_state(), state)
    torch.testing.assert_close(
        smooth.maps["smoothgrad", INPUT], saliency(net, x, ClassScore(1)).maps["saliency", INPUT]
    )


def test_integrated_gradients_of_a_quadratic_in_closed_form():
    x = torch.arange(16.0).reshape(1, 1, 4, 4)
    inside = inside_of(x)
    # From 2 to x: (x^2 - 2^2) / 2 inside, nothing outside. Exact for a quadratic with two points.
    result = integrated_gradients(Quadratic(), x, ClassScore(0), foreground=inside, baseline=2.0, n_steps=2)
    torch.testing.assert_close(result.attributions, (x.square() - 4) / 2 * inside)
    assert result.baseline[0, 0, 1, 1] == 2.0
    assert result.baseline[0, 0, 0, 1] == 1.0  # air is left alone
    torch.testing.assert_close(result.score_difference, torch.tensor([113.0]).double())  # (25+36+81+100)/2 - 4*4/2
    assert float(result.completeness_error.abs()) < 1e-4
    down = integrated_gradients(Quadratic(), x, ClassMargin(1, 0), foreground=inside, baseline=2.0, n_steps=2)
    # 3 (x - 2) - (x^2 - 4) / 2 is negative for x = 5, 6, ...: nothing speaks for the target.
    assert float(down.maps["integrated_gradients", INPUT].max()) == 0
    torch.testing.assert_close(down.attributions[0, 0, 1, 1], torch.tensor(-1.5))


def test_integrated_gradients_equal_captum_and_add_up():
    torch.manual_seed(0)
    net, x = InplaceResidual(inplace=False), torch.randn(3, 1, 8, 8)
    start = torch.randn(3, 1, 8, 8)
    ours = integrated_gradients(net, x, ClassScore([1, 0, 1]), baseline=start, n_steps=40, batch_size=7, signed=True)
    reference, delta = IntegratedGradients(net).attribute(
        x, start, target=torch.tensor([1, 0, 1]), n_steps=40, return_convergence_delta=True
    )
    torch.testing.assert_close(ours.attributions, reference.float(), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(ours.completeness_error.float(), delta.float(), rtol=1e-2, atol=1e-6)
    finer = integrated_gradients(net, x, ClassScore([1, 0, 1]), baseline=start, n_steps=400, batch_size=400)
    assert float(finer.relative_error.max()) < 0.03 < float(ours.relative_error.max())
    assert torch.equal(ours.maps["integrated_gradients", INPUT], ours.attributions)


def test_a_black_baseline_fails_under_instance_norm_and_the_report_says_so():
    network, x = tiny(), heads()[1:]
    inside = x != 0
    smooth = blurred_foreground(x, inside, 1.0)
    x = torch.where(inside, (smooth - smooth[inside].mean()) / smooth[inside].std(), x)
    arguments = {"forward_kwargs": {"output": "cls"}, "foreground": inside, "foreground_kwarg": "foreground"}
    arguments |= {"n_steps": 128, "batch_size": 128}
    blurred = integrated_gradients(network, x, ClassMargin(1, 0), **arguments)
    black = integrated_gradients(network, x, ClassMargin(1, 0), baseline=0.0, **arguments)
    assert float(blurred.score_difference.abs()) > 0.5
    assert float(blurred.relative_error) < 0.03
    assert float(black.relative_error) > 0.1
    assert float((blurred.attributions * ~inside).abs().max()) == 0
    assert torch.equal(blurred.baseline[~inside], x[~inside])


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
    together = METHODS[name](net, x, target, kwargs, inside, batch_size=4).maps[name, INPUT]
    assert_same_state(before, state_of(net))
    assert torch.equal(x, original)
    assert x.grad is None
    assert not together.requires_grad
    for i in range(3):
        index = torch.tensor([i])
        alone = METHODS[name](net, x[index], target.take(index), {"scale": kwargs["scale"][index]}, inside[index])
        assert float(alone.maps[name, INPUT].max()) > 0
        torch.testing.assert_close(together[index], alone.maps[name, INPUT], rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("name", METHODS)
def test_top_class_is_fixed_to_that_of_the_unchanged_input(name):
    net, x = undecided()
    top = net(x).argmax(1)
    assert top.unique().numel() > 1
    free, given = (METHODS[name](net, x, target).maps[name, INPUT] for target in (ClassScore(), ClassScore(top)))
    assert torch.equal(free, given)


@pytest.mark.parametrize("name", METHODS)
def test_frozen_in_place_no_grad_and_inference_mode_give_the_same(name):
    torch.manual_seed(0)
    net = nn.Sequential(nn.ReLU(inplace=True), InplaceResidual())
    plain = nn.Sequential(nn.ReLU(), InplaceResidual(inplace=False))
    plain.load_state_dict(net.state_dict())
    x = torch.randn(2, 1, 6, 6)
    original = x.clone()
    reference = METHODS[name](plain, x, ClassScore(1)).maps[name, INPUT]
    for parameter in net.parameters():
        parameter.requires_grad_(False)
    assert float(reference.max()) > 0
    for context in (torch.no_grad, torch.inference_mode, torch.enable_grad):
        with context():
            result = METHODS[name](net, original * 1.0, ClassScore(1)).maps[name, INPUT]
        torch.testing.assert_close(result, reference, rtol=1e-4, atol=1e-6)
    assert torch.equal(x, original)


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_close_and_float32(name, dtype):
    torch.manual_seed(0)
    net, x = PooledLinear(), torch.randn(2, 1, 8, 8)
    reference = METHODS[name](net, x, ClassScore(1)).maps[name, INPUT]
    with torch.autocast("cpu", dtype=dtype):
        automatic = METHODS[name](net, x, ClassScore(1)).maps[name, INPUT]
    cast = METHODS[name](net.to(dtype), x.to(dtype), ClassScore(1)).maps[name, INPUT]
    for result in (automatic, cast):
        assert result.dtype == torch.float32
        torch.testing.assert_close(result, reference, rtol=0, atol=0.05 * float(reference.max()))


def test_small_gradients_survive_float16():
    class Tiny(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.ones(1, dtype=torch.half))

        def forward(self, x):
            return (x * self.weight).float().flatten(1).sum(1, keepdim=True) * 1e-8  # 0 in float16

    x = torch.ones(1, 1, 2, 2, dtype=torch.half)
    torch.testing.assert_close(
        saliency(Tiny(), x, ClassScore(0)).maps["saliency", INPUT], torch.full((1, 1, 2, 2), 1e-8), rtol=0.01, atol=0
    )


def test_segmentation_targets_keep_the_predicted_region():
    net, x = undecided_segmenter()
    region = net(x).argmax(1) == 1
    assert 0 < int(region.sum()) < region.numel()
    for name, method in METHODS.items():
        free = method(net, x, SegmentationRegion()).maps[name, INPUT]
        given = method(net, x, SegmentationRegion(region)).maps[name, INPUT]
        assert torch.equal(free, given)


def test_errors():
    net, x = PooledLinear(), torch.randn(2, 1, 6, 6)
    inside = torch.ones(2, 1, 6, 6)

    class Rounded(PooledLinear):
        def forward(self, x):
            return super().forward(x).detach()

    with pytest.raises(ValueError, match="no gradient of class_0 reaches the input of Rounded"):
        saliency(Rounded(), x, ClassScore(0))
    with pytest.raises(ValueError, match=r"foreground: expected \(2, 1, 6, 6\)"):
        saliency(net, x, ClassScore(0), foreground=inside[:1])
    with pytest.raises(ValueError, match=r"foreground: sample\(s\) \[1\] have none"):
        saliency(net, x, ClassScore(0), foreground=inside * torch.tensor([1.0, 0.0]).reshape(2, 1, 1, 1))
    with pytest.raises(ValueError, match="pass foreground_kwarg='foreground'"):
        saliency(tiny(), heads(), ClassScore(0), {"output": "cls"}, heads() != 0)
    with pytest.raises(ValueError, match="but no foreground"):
        saliency(net, x, ClassScore(0), foreground_kwarg="foreground")
    with pytest.raises(ValueError, match="give it once"):
        saliency(net, x, ClassScore(0), {"mask": inside}, inside, "mask")
    with pytest.raises(ValueError, match="n_samples >= 1"):
        smoothgrad(net, x, ClassScore(0), n_samples=0)
    with pytest.raises(ValueError, match="sigma_pixels: expected a positive number"):
        integrated_gradients(net, x, ClassScore(0), sigma_pixels=0)
    broken = PooledLinear()
    broken.fc.weight.data[0, 0] = torch.nan
    with pytest.raises(FloatingPointError, match="score of PooledLinear is not finite"):
        saliency(broken, x, ClassScore(0))
    assert all(p.requires_grad for p in net.parameters())
    assert net.training


def test_the_network_is_left_alone_when_it_raises_in_the_middle():
    class Failing(PooledLinear):
        calls = 0

        def forward(self, x):
            self.calls += 1
            if self.calls > 1:
                raise RuntimeError("out of luck")
            return super().forward(x)

    for method in METHODS.values():
        net = Failing()
        before = state_of(net)
        with pytest.raises(RuntimeError, match="out of luck"):
            method(net, torch.randn(2, 1, 6, 6), ClassScore(0))
        assert_same_state(before, state_of(net))


def test_signed_maps_add_channels_up_and_others_take_the_largest():
    x = torch.tensor([[[[1.0, -2.0]], [[-3.0, 0.5]]]])
    smooth = smoothgrad(Quadratic(), x, ClassScore(0), n_samples=2, noise_share=0.0)
    assert smooth.maps["smoothgrad", INPUT].tolist() == [[[[3.0, 2.0]]]]
    signed = smoothgrad(Quadratic(), x, ClassScore(0), n_samples=2, noise_share=0.0, signed=True)
    assert signed.maps["smoothgrad", INPUT].tolist() == [[[[-2.0, -1.5]]]]
    for option, expected in ((True, [[[[5.0, 2.125]]]]), (False, [[[[5.0, 2.125]]]])):
        result = integrated_gradients(Quadratic(), x, ClassScore(0), baseline=0.0, n_steps=2, signed=option)
        torch.testing.assert_close(result.maps["integrated_gradients", INPUT], torch.tensor(expected))
    against = integrated_gradients(Quadratic(), x, ClassMargin(1, 0), baseline=0.0, n_steps=2, signed=True)
    torch.testing.assert_close(against.maps["integrated_gradients", INPUT], torch.tensor([[[[-11.0, -6.625]]]]))


def test_noise_is_a_share_of_the_range_of_all_channels_in_the_foreground():
    x = torch.tensor([[[[2.0, 5.0, 99.0]], [[1.0, 3.0, -99.0]]]])  # 1 to 5 inside
    inside = torch.tensor([[[[1, 1, 0]]]])
    result = smoothgrad(Quadratic(), x, ClassScore(0), foreground=inside, n_samples=1, noise_share=0.5, signed=True)
    noise = torch.randn(1, *x.shape[1:], generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(result.maps["smoothgrad", INPUT], (x + 2 * noise * inside).sum(1, keepdim=True))


def test_options_of_no_meaning_are_refused():
    x = torch.ones(1, 1, 2, 2)
    for options in ({"n_samples": 0}, {"noise_share": -0.1}):
        with pytest.raises(ValueError, match="expected n_samples >= 1 and noise_share >= 0"):
            smoothgrad(Quadratic(), x, ClassScore(0), **options)
    with pytest.raises(ValueError, match="n_steps: expected 1 or more, got 0"):
        integrated_gradients(Quadratic(), x, ClassScore(0), n_steps=0)
    one = integrated_gradients(Quadratic(), x, ClassScore(0), baseline=0.0, n_steps=1)
    torch.testing.assert_close(one.attributions, x / 2)  # the middle of the way


def test_errors_of_integrated_gradients_by_hand():
    class Step(nn.Module):
        """1 for images above 1 in sum, with the gradient of that sum."""

        def forward(self, x):
            total = x.flatten(1).sum(1)
            return (total + ((total > 1).float() - total).detach())[:, None]

    x = torch.tensor([[[[1.0, 1.0]]], [[[0.25, 0.25]]]])
    result = integrated_gradients(Step(), x, ClassScore(0), baseline=0.0, n_steps=4)
    torch.testing.assert_close(result.attributions, x)
    torch.testing.assert_close(result.score_difference, torch.tensor([1.0, 0.0]).double())
    torch.testing.assert_close(result.completeness_error, torch.tensor([1.0, 0.5]).double())
    assert result.relative_error.tolist() == [1.0, torch.inf]
    same = integrated_gradients(Quadratic(), x * 0, ClassScore(0), baseline=0.0)
    assert (same.relative_error.tolist(), same.completeness_error.tolist()) == ([0.0, 0.0], [0.0, 0.0])


def test_gradients_that_are_not_finite_are_no_map():
    class Root(nn.Module):
        def forward(self, x):
            return x.flatten(1).sqrt().sum(1, keepdim=True)

    with pytest.raises(FloatingPointError, match="gradient by the input: values that are not finite"):
        saliency(Root(), torch.zeros(1, 1, 2, 2), ClassScore(0))


def test_methods_without_a_seed_are_repeatable():
    torch.manual_seed(0)
    net, x = PooledLinear(), torch.rand(1, 1, 4, 4)
    first, again = (smoothgrad(net, x, ClassScore(0)).maps["smoothgrad", INPUT] for _ in range(2))
    assert torch.equal(first, again)
