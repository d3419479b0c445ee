from __future__ import annotations

import pytest
import torch

from scripts.explain.maps import combine_maps, is_empty, max_scaling, scale_maps, upsample


def test_strongest_is_one_and_nothing_is_stretched():
    maps = torch.tensor([[[[2.0, 4.0]]], [[[4.0, 4.0]]], [[[0.0, 0.0]]], [[[-3.0, -1.0]]]])
    scaled, empty = scale_maps(maps)
    assert scaled.flatten(1).tolist() == [[0.5, 1.0], [1.0, 1.0], [0.0, 0.0], [0.0, 0.0]]
    assert empty.tolist() == is_empty(maps).tolist() == [False, False, True, True]


def test_tiny_maps_scale_without_loss():
    maps = torch.tensor([[[[1e-40, 2e-40]]]])  # subnormal in float32
    assert max_scaling(maps).flatten().tolist() == pytest.approx([0.5, 1.0], rel=1e-4)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_values_that_are_not_finite_are_an_error_that_names_the_sample(bad):
    maps = torch.zeros(3, 1, 2, 2)
    maps[1, 0, 0, 0] = bad
    with pytest.raises(FloatingPointError, match=r"sample\(s\) \[1\]"):
        scale_maps(maps)


def test_shape_is_checked():
    with pytest.raises(ValueError, match="expected"):
        scale_maps(torch.zeros(1, 2, 4, 4))
    with pytest.raises(ValueError, match="other dimensions"):
        upsample(torch.zeros(1, 1, 4, 4), (8, 8, 8))


def test_upsampling_puts_cells_at_their_centers():
    # align_corners=False by hand: cells at 0.5 and 2.5 of a grid of 4, values between linear, edges constant.
    assert upsample(torch.tensor([[[[0.0, 1.0]]]]), (1, 4)).flatten().tolist() == [0.0, 0.25, 0.75, 1.0]
    cube = torch.zeros(1, 1, 2, 2, 2)
    cube[..., 1] = 1.0
    assert upsample(cube, (4, 4, 4))[0, 0, 0, 0].tolist() == [0.0, 0.25, 0.75, 1.0]


def test_combined_maps_by_hand():
    a, b = torch.tensor([[[[1.0, 4.0]]]]), torch.tensor([[[[2.0, 0.0]]]])
    assert combine_maps([a, b], (1, 2)).flatten().tolist() == [0.625, 0.5]
    assert combine_maps([a, b], (1, 2), "max").flatten().tolist() == [1.0, 1.0]
    assert combine_maps([a, b], (1, 2), "product").flatten().tolist() == [0.5, 0.0]
    with pytest.raises(ValueError, match="expected 'mean'"):
        combine_maps([a], (1, 2), "median")
