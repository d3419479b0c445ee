"""What stands in place of tissue, by hand: blur, mean, constants, images; and which foregrounds are refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter

from scripts.explain.baselines import baseline_image, blurred_foreground, check_foreground


def test_the_blur_stays_in_the_foreground_by_hand():
    x = torch.zeros(1, 1, 1, 5)
    x[..., 1:4] = torch.tensor([1.0, 2.0, 6.0])
    x[..., 4] = 1000.0  # bright air
    inside = torch.tensor([[[[0, 1, 1, 1, 0]]]]).bool()
    blurred = blurred_foreground(x, inside, sigma_pixels=100.0)
    torch.testing.assert_close(blurred, torch.tensor([[[[0.0, 3.0, 3.0, 3.0, 1000.0]]]]), rtol=1e-3, atol=1e-3)
    sharp = blurred_foreground(x, inside, sigma_pixels=0.05)
    torch.testing.assert_close(sharp, x)
    constant = torch.where(inside, torch.tensor(4.0), torch.tensor(-9.0))
    torch.testing.assert_close(blurred_foreground(constant, inside, 2.0), constant)


def test_baselines_by_hand():
    x = torch.tensor([[[[1.0, 2.0, 9.0]], [[3.0, 5.0, 9.0]]]])
    inside = torch.tensor([[[[True, True, False]]]])
    assert baseline_image(x, inside, "mean").tolist() == [[[[1.5, 1.5, 9.0]], [[4.0, 4.0, 9.0]]]]
    assert baseline_image(x, inside, -1).tolist() == [[[[-1.0, -1.0, 9.0]], [[-1.0, -1.0, 9.0]]]]
    image = torch.tensor([[[[7.0, 8.0, 0.0]]]])
    assert baseline_image(x, inside, image).tolist() == [[[[7.0, 8.0, 9.0]], [[7.0, 8.0, 9.0]]]]
    with pytest.raises(ValueError, match="expected 'blur', 'mean', a number or an image, got 'black'"):
        baseline_image(x, inside, "black")
    with pytest.raises(ValueError, match="does not fit the input"):
        baseline_image(x, inside, torch.zeros(1, 1, 2, 2))


def test_a_foreground_is_what_is_not_zero_and_everything_for_none():
    x = torch.zeros(2, 3, 1, 2)
    assert check_foreground(torch.tensor([[[[0, 2]]], [[[-1, 0]]]]), x).tolist() == [
        [[[False, True]]],
        [[[True, False]]],
    ]
    everything = check_foreground(None, x)
    assert (everything.dtype, everything.shape, bool(everything.all())) == (torch.bool, (2, 1, 1, 2), True)


@pytest.mark.parametrize("shape", [(2, 1, 4, 6), (1, 1, 4, 5), (2, 3, 4, 5), (2, 4, 5)])
def test_a_foreground_of_another_shape_is_refused(shape):
    with pytest.raises(ValueError, match=r"foreground: expected \(2, 1, 4, 5\) for an input \(2, 3, 4, 5\), got"):
        check_foreground(torch.ones(shape), torch.zeros(2, 3, 4, 5))


def test_samples_without_foreground_are_named():
    inside = torch.ones(3, 1, 2, 2)
    inside[[0, 2]] = 0
    with pytest.raises(ValueError, match=r"foreground: sample\(s\) \[0, 2\] have none"):
        check_foreground(inside, torch.zeros(3, 1, 2, 2))


@pytest.mark.parametrize("size", [(6, 20), (5, 4, 10)])
def test_the_blur_is_a_tenth_of_the_longest_axis_wide(size):
    x, inside = torch.rand(2, 2, *size), torch.rand(2, 1, *size) > 0.2
    blurred = blurred_foreground(x, inside)
    torch.testing.assert_close(blurred, blurred_foreground(x, inside, max(size) / 10))
    torch.testing.assert_close(blurred, baseline_image(x, inside, "blur"))
    assert not torch.allclose(blurred, blurred_foreground(x, inside, min(size) / 10))


def test_the_blur_equals_that_of_scipy_divided_by_the_blurred_mask():
    x, inside = torch.rand(1, 1, 12, 16), torch.rand(1, 1, 12, 16) > 0.3
    mask = inside[0, 0].double().numpy()
    top, bottom = (gaussian_filter(m, 3.0, mode="constant") for m in (x[0, 0].double().numpy() * mask, mask))
    expected = np.where(mask > 0, top / np.maximum(bottom, 1e-9), x[0, 0].numpy())
    np.testing.assert_allclose(blurred_foreground(x, inside, 3.0)[0, 0].numpy(), expected, atol=0.02)


@pytest.mark.parametrize("sigma", [0.0, -1.0])
def test_a_blur_without_width_is_refused(sigma):
    with pytest.raises(ValueError, match="sigma_pixels: expected a positive number"):
        blurred_foreground(torch.ones(1, 1, 4, 4), torch.ones(1, 1, 4, 4).bool(), sigma)


def test_baselines_of_a_batch_of_volumes_by_hand():
    x = torch.arange(16.0).reshape(2, 2, 1, 2, 2).half()
    inside = torch.tensor([[[1, 1], [0, 0]], [[0, 0], [0, 1]]]).bool()[:, None, None]
    mean = baseline_image(x, inside, "mean")
    assert mean.dtype == torch.half
    assert mean[0].flatten().tolist() == [0.5, 0.5, 2.0, 3.0, 4.5, 4.5, 6.0, 7.0]
    assert torch.equal(mean[1], x[1]), "the mean of one pixel is its own value"
    image = torch.full((2, 1, 1, 2, 2), -1.0)
    assert baseline_image(x, inside, image)[1].flatten().tolist() == [8.0, 9.0, 10.0, -1.0, 12.0, 13.0, 14.0, -1.0]
