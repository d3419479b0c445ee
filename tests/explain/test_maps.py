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


@pytest.mark.parametrize("dims", [1, 2, 3])
def test_maps_of_one_to_three_axes(dims):
    maps = torch.arange(4.0).reshape(1, 1, *[1] * (dims - 1), 4)
    size = (*[1] * (dims - 1), 4)
    assert upsample(maps, size) is not None
    assert torch.equal(upsample(maps, size), maps)
    assert max_scaling(maps).flatten().tolist() == pytest.approx([0, 1 / 3, 2 / 3, 1])
    assert upsample(maps, (*size[:-1], 8)).shape == (1, 1, *size[:-1], 8)


@pytest.mark.parametrize("shape", [(4, 4), (1, 2, 4, 4), (1, 1), (1, 1, 2, 2, 2, 2)])
def test_other_shapes_are_no_maps(shape):
    with pytest.raises(ValueError, match=r"map: expected \(B, 1, \*spatial\) with one to three spatial axes, got"):
        is_empty(torch.zeros(shape))
    with pytest.raises(ValueError, match="got list"):
        scale_maps([1.0])


def test_every_sample_that_is_not_finite_is_named():
    maps = torch.zeros(3, 1, 2)
    maps[0, 0, 1], maps[2, 0, 0] = torch.nan, -torch.inf
    with pytest.raises(FloatingPointError, match=r"sample\(s\) \[0, 2\]"):
        is_empty(maps)


def test_a_map_is_empty_without_a_value_above_zero():
    assert is_empty(torch.tensor([[[0.0, -1.0]], [[-1.0, 1e-30]]])).tolist() == [True, False]


def test_precision_of_maps():
    half = torch.tensor([[[0.0, 1.0]]], dtype=torch.half)
    assert upsample(half, (4,)).dtype == torch.float32
    assert upsample(half.double(), (4,)).dtype == torch.double
    assert scale_maps(half.double())[0].dtype == torch.float32


def test_maps_of_several_grids_are_combined_on_one():
    a, b = torch.tensor([[[0.0, 2.0]]]), torch.tensor([[[8.0, 8.0, 8.0, 8.0]]])
    along = torch.tensor([0.0, 0.25, 0.75, 1.0])
    for how, expected in (("mean", (along + 1) / 2), ("max", torch.ones(4)), ("product", along.sqrt())):
        torch.testing.assert_close(combine_maps([a, b], (4,), how)[0, 0], expected)
    torch.testing.assert_close(combine_maps([a, b], (4,))[0, 0], (along + 1) / 2)
    three = combine_maps([a, b, torch.tensor([[[2.0, 4.0]]])], (2,), "product")
    torch.testing.assert_close(three[0, 0], torch.tensor([0.0, 1.0]))
    with pytest.raises(ValueError, match="no maps given"):
        combine_maps([], (2,))
