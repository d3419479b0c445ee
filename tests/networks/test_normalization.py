from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from scripts.networks import normalization
from scripts.networks.blocks import masked_norm
from scripts.networks.normalization import ForegroundInstanceNorm, PlainNorm


def trained_norm(channels: int, dtype: torch.dtype = torch.float32) -> ForegroundInstanceNorm:
    norm = ForegroundInstanceNorm(channels).to(dtype)
    with torch.no_grad():
        norm.weight.copy_(torch.linspace(0.5, 2.0, channels))
        norm.bias.copy_(torch.linspace(-1.0, 1.0, channels))
    return norm


def half_mask(batch: int, *size: int) -> torch.Tensor:
    mask = (torch.rand(batch, 1, *size, generator=torch.Generator().manual_seed(1)) < 0.4).float()
    mask.flatten(2)[..., 0] = 1  # no sample is empty
    return mask


def reference(x: np.ndarray, mask: np.ndarray, weight: np.ndarray, bias: np.ndarray, eps: float = 1e-5) -> np.ndarray:
    """The textbook formula in numpy, sample by sample and channel by channel, in float64."""
    out = np.zeros(x.shape, dtype=np.float64)
    for b in range(x.shape[0]):
        inside = mask[b, 0] > 0
        for c in range(x.shape[1]):
            values = x[b, c].astype(np.float64)[inside]
            out[b, c][inside] = (values - values.mean()) / np.sqrt(values.var() + eps) * weight[c] + bias[c]
    return out


@pytest.mark.parametrize("size", [(7, 9), (5, 6, 4)])
def test_with_foreground_everywhere_it_is_instance_norm(size):
    x = torch.randn(2, 3, *size) * 2 + 1
    norm = trained_norm(3)
    expected = nn.functional.instance_norm(x, weight=norm.weight, bias=norm.bias, eps=1e-5)
    torch.testing.assert_close(norm(x, torch.ones(2, 1, *size)), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("size", [(7, 9), (5, 6, 4)])
def test_statistics_are_those_of_the_foreground_and_air_is_zero(size):
    x = torch.randn(3, 4, *size) * 3 - 2
    mask, norm = half_mask(3, *size), trained_norm(4)
    result = norm(x, mask).detach()
    expected = reference(x.numpy(), mask.numpy(), norm.weight.detach().numpy(), norm.bias.detach().numpy())
    np.testing.assert_allclose(result.numpy(), expected, atol=1e-5)
    assert (result[(mask == 0).expand_as(result)] == 0).all()
    assert (plain_output(x, norm)[(mask == 0).expand_as(result)] != 0).all(), "the stock layer fills the air"


def plain_output(x: torch.Tensor, norm: ForegroundInstanceNorm) -> torch.Tensor:
    return nn.functional.instance_norm(x, weight=norm.weight, bias=norm.bias)


def test_values_in_air_do_not_matter():
    x, mask, norm = torch.randn(2, 3, 8, 8), half_mask(2, 8, 8), trained_norm(3)
    noisy = x + 1000 * torch.randn(2, 3, 8, 8) * (1 - mask)
    torch.testing.assert_close(norm(noisy, mask), norm(x, mask), atol=1e-4, rtol=0)
    assert (plain_output(noisy, norm) - plain_output(x, norm)).abs().max() > 0.1


def test_one_foreground_pixel_becomes_the_shift():
    norm = trained_norm(2)
    mask = torch.zeros(1, 1, 4, 4)
    mask[0, 0, 1, 2] = 1
    expected = torch.zeros(1, 2, 4, 4)
    expected[0, :, 1, 2] = torch.tensor([-1.0, 1.0])
    torch.testing.assert_close(norm(torch.full((1, 2, 4, 4), 7.0), mask), expected)


def test_digits_are_kept_where_the_mean_is_100_times_the_deviation():
    x = torch.randn(2, 4, 64, 64) + 100
    mask, norm = half_mask(2, 64, 64), ForegroundInstanceNorm(4)
    expected = reference(x.numpy(), mask.numpy(), np.ones(4), np.zeros(4))
    assert np.abs(norm(x, mask).detach().numpy() - expected).max() < 1e-4
    # The formula E[x^2] - E[x]^2 in float32 does not pass, so the bound says something.
    inside = mask.flatten(2)
    flat, count = x.flatten(2), inside.sum(2, keepdim=True)
    mean = (flat * inside).sum(2, keepdim=True) / count
    variance = (flat.square() * inside).sum(2, keepdim=True) / count - mean.square()
    naive = ((flat - mean) * torch.rsqrt(variance + 1e-5) * inside).reshape(x.shape)
    assert np.abs(naive.numpy() - expected).max() > 1e-4


def test_bfloat16_input_loses_only_the_rounding_of_the_result():
    x = (torch.randn(2, 3, 48, 48) + 10).bfloat16()
    mask, norm = half_mask(2, 48, 48), trained_norm(3)
    result = norm(x, mask).detach()
    assert result.dtype == torch.bfloat16
    expected = reference(x.float().numpy(), mask.numpy(), norm.weight.detach().numpy(), norm.bias.detach().numpy())
    error = np.abs(result.float().numpy() - expected)
    assert (error <= 2.0**-8 * np.abs(expected) + 1e-5).all()
    assert (result[(mask == 0).expand_as(result)] == 0).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_gives_finite_and_right_values_on_large_images(dtype):
    # 512 x 512 foreground pixels of mean 8: their sum does not fit into float16, whose largest number is 65504.
    x = (torch.randn(1, 2, 512, 512) + 8).to(dtype)
    mask, norm = torch.ones(1, 1, 512, 512), trained_norm(2)
    expected = reference(x.float().numpy(), mask.numpy(), norm.weight.detach().numpy(), norm.bias.detach().numpy())
    with torch.autocast("cpu", dtype=dtype):
        result = norm(x, mask)
    assert np.abs(result.detach().float().numpy() - expected).max() < 0.05


def test_autocast_keeps_the_digits_of_float32_input():
    # The mean that is taken off first may be rough, 100 in bfloat16 to within 0.5; what it leaves is taken off after.
    x = torch.randn(2, 3, 64, 64) + 100
    mask, norm = half_mask(2, 64, 64), trained_norm(3)
    expected = reference(x.numpy(), mask.numpy(), norm.weight.detach().numpy(), norm.bias.detach().numpy())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        result = norm(x, mask)
    assert np.abs(result.detach().numpy() - expected).max() < 1e-3


def test_gradients_equal_those_of_the_textbook_formula():
    x = (torch.randn(2, 3, 5, 4, dtype=torch.float64) * 2 + 5).requires_grad_()
    mask, norm = half_mask(2, 5, 4).double(), trained_norm(3, torch.float64)
    upstream = torch.randn(2, 3, 5, 4, dtype=torch.float64)
    ours = torch.autograd.grad((norm(x, mask) * upstream).sum(), [x, norm.weight, norm.bias])

    count = mask.sum((2, 3), keepdim=True)
    mean = (x * mask).sum((2, 3), keepdim=True) / count
    variance = ((x - mean).square() * mask).sum((2, 3), keepdim=True) / count
    scale, shift = norm.weight.view(1, -1, 1, 1), norm.bias.view(1, -1, 1, 1)
    textbook = ((x - mean) / torch.sqrt(variance + 1e-5) * scale + shift) * mask
    theirs = torch.autograd.grad((textbook * upstream).sum(), [x, norm.weight, norm.bias])
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, atol=1e-10, rtol=0)
    assert (ours[0][(mask == 0).expand_as(x)] == 0).all(), "no gradient reaches the air"


def test_gradcheck():
    x = (torch.randn(2, 2, 3, 4, dtype=torch.float64) + 3).requires_grad_()
    mask, norm = half_mask(2, 3, 4).double(), trained_norm(2, torch.float64)
    assert torch.autograd.gradcheck(
        lambda x, w, b: torch.func.functional_call(norm, {"weight": w, "bias": b}, (x, mask)),
        (x, norm.weight, norm.bias),
    )


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("autocast", [False, True])
def test_blocks_give_the_values_and_gradients_of_the_plain_operations(monkeypatch, affine, dtype, autocast):
    monkeypatch.setattr(normalization, "BLOCK", 3 * 7 * 5)  # three channels a block, the last one smaller
    start = (torch.randn(2, 8, 7, 5) * 2 + 20).to(dtype)
    mask, upstream = half_mask(2, 7, 5), torch.randn(2, 8, 7, 5).to(dtype)

    def run(blocks: bool) -> list[torch.Tensor]:
        monkeypatch.setattr(normalization, "in_blocks", lambda x: blocks)
        norm = ForegroundInstanceNorm(8, affine=affine)
        if affine:
            norm.load_state_dict(trained_norm(8).state_dict())
        norm = norm.to(torch.promote_types(dtype, torch.float32))
        x = start.clone().requires_grad_()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
            y = norm(x, mask.to(x.dtype))
        y.backward(upstream)
        return [y.detach(), x.grad, *(p.grad for p in norm.parameters())]

    plain, blocked = run(False), run(True)
    if dtype == torch.bfloat16:
        tolerance = 0.02  # of the rounding of values up to 4
    else:
        tolerance = 1e-12 if dtype == torch.float64 and not autocast else 2e-4
    for a, b in zip(blocked, plain, strict=True):
        assert a.dtype == b.dtype
        torch.testing.assert_close(a, b, atol=tolerance, rtol=2.0**-7 if dtype == torch.bfloat16 else tolerance)


def test_second_derivatives_are_refused_and_not_wrong():
    x = torch.randn(1, 2, 4, 4, requires_grad=True)
    (first,) = torch.autograd.grad(trained_norm(2)(x, half_mask(1, 4, 4)).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        first.sum().backward()


def test_without_affine_nothing_is_learned_or_stored():
    norm = ForegroundInstanceNorm(3, affine=False)
    assert list(norm.state_dict()) == []
    assert list(norm.parameters()) == []
    x = torch.randn(2, 3, 6, 6)
    torch.testing.assert_close(norm(x, torch.ones(2, 1, 6, 6)), nn.functional.instance_norm(x), atol=1e-5, rtol=0)


def test_masked_norm_keeps_the_parameters_of_the_layer_it_replaces():
    stock = nn.InstanceNorm3d(3, affine=True, eps=1e-3)
    for kind, layer in (("foreground", ForegroundInstanceNorm), ("instance", PlainNorm)):
        norm = masked_norm(stock, kind)
        assert isinstance(norm, layer)
        assert norm.weight is stock.weight
        assert norm.bias is stock.bias
        assert norm.eps == 1e-3
        assert list(norm.state_dict()) == ["weight", "bias"]


@pytest.mark.parametrize("layer", [nn.BatchNorm2d(4), nn.InstanceNorm2d(4, track_running_stats=True)])
def test_other_normalization_is_refused(layer):
    with pytest.raises(ValueError, match="expected instance normalization without running statistics"):
        masked_norm(layer, "foreground")


@pytest.mark.parametrize("affine", [True, False])
def test_the_slope_is_the_derivative_at_the_statistics_as_they_are(affine):
    x, mask = torch.randn(2, 3, 6, 5) * 3 + 4, half_mask(2, 6, 5)
    norm = trained_norm(3) if affine else ForegroundInstanceNorm(3, affine=False)
    found = norm.slope(x, mask).detach()
    for b in range(2):
        inside = mask[b, 0] > 0
        for c in range(3):
            deviation = np.sqrt(x[b, c][inside].double().var(correction=0).item() + norm.eps)
            weight = float(norm.weight[c]) if affine else 1.0
            torch.testing.assert_close(found[b, c][inside], torch.full((int(inside.sum()),), weight / deviation))
            assert not found[b, c][~inside].any()
    assert norm.slope(x.bfloat16(), mask).dtype == torch.float32
    assert norm.slope(x.double(), mask).dtype == torch.float64


def test_blocks_are_of_eager_tensors_in_one_piece(monkeypatch):
    x = torch.randn(2, 3, 6, 5)
    assert normalization.in_blocks(x)
    assert not normalization.in_blocks(x.transpose(2, 3))
    assert not normalization.in_blocks(x.to("meta"))
    monkeypatch.setattr(torch.jit, "is_tracing", lambda: True)
    assert not normalization.in_blocks(x)
    monkeypatch.undo()
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    assert not normalization.in_blocks(x)


@pytest.mark.parametrize(("values", "channels"), [(5, 4), (6, 3), (20, 1), (50, 1)])
def test_blocks_hold_as_many_whole_channels_as_fit_and_one_at_least(monkeypatch, values, channels):
    monkeypatch.setattr(normalization, "BLOCK", 20)
    blocks = normalization._blocks(torch.zeros(2, 7, values))
    assert {len(range(*k.indices(7))) for _, k in blocks[:1]} == {channels}
    assert [(b, c) for b, k in blocks for c in range(*k.indices(7))] == [(b, c) for b in (0, 1) for c in range(7)]


def test_layers_say_what_they_are():
    assert repr(ForegroundInstanceNorm(3, eps=0.5)) == "ForegroundInstanceNorm(3, eps=0.5, affine=True)"
    assert repr(PlainNorm(nn.InstanceNorm2d(3))) == "PlainNorm(3, eps=1e-05, affine=False)"
    assert ForegroundInstanceNorm(3).eps == nn.InstanceNorm2d(3).eps
    x = torch.randn(1, 3, 4, 4)
    torch.testing.assert_close(
        PlainNorm(nn.InstanceNorm2d(3, eps=0.5))(x, torch.ones(1, 1, 4, 4)), nn.InstanceNorm2d(3, eps=0.5)(x)
    )
