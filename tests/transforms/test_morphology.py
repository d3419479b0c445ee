"""Masks grown, shrunk, cleaned and filled, against scipy and against the definition."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from tests.transforms.images import disc
from transforms.morphology import dilate, erode, fill, growing_steps, keep_components

SHAPES = [(11, 8), (7, 9, 6)]


def drawn(shape: tuple[int, ...], share: float = 0.3) -> np.ndarray:
    return np.random.default_rng(len(shape)).random(shape) < share


@pytest.mark.parametrize("shape", SHAPES)
def test_growing_is_scipys_and_leaves_the_mask_alone(shape):
    mask = drawn(shape, 0.1)
    before = mask.copy()
    assert np.array_equal(dilate(mask), ndimage.binary_dilation(mask))
    assert np.array_equal(mask, before)


@pytest.mark.parametrize("step", [1, 2, 3])
def test_a_step_adds_the_cells_that_far_along_each_axis(step):
    mask = np.zeros((9, 9), bool)
    mask[4, 4] = True
    expected = {(4, 4), (4 - step, 4), (4 + step, 4), (4, 4 - step), (4, 4 + step)}
    assert set(map(tuple, np.argwhere(dilate(mask, step)))) == expected


def test_steps_add_up_to_the_radius_and_leave_no_gaps():
    assert [growing_steps(radius) for radius in (0, 1, 2, 3, 4, 7, 9)] == [
        [], [1], [1, 1], [1, 2], [1, 2, 1], [1, 2, 4], [1, 2, 4, 2],
    ]  # fmt: skip
    for radius in range(12):
        grown = np.zeros((25, 25), bool)
        grown[12, 12] = True
        for step in growing_steps(radius):
            grown = dilate(grown, step)
        assert np.array_equal(np.flatnonzero(grown[12]), np.arange(12 - radius, 13 + radius))


def test_shrinking_is_scipys_with_all_beyond_the_edge_outside():
    mask = drawn((11, 8), 0.8)
    assert np.array_equal(erode(mask), ndimage.binary_erosion(mask))
    assert erode(np.ones((4, 5), bool)).sum() == 2 * 3


def test_a_volume_does_not_shrink_at_its_first_and_last_slice():
    assert np.array_equal(np.argwhere(erode(np.ones((3, 3, 4), bool)))[:, 2], np.arange(4))
    mask = drawn((7, 9, 6), 0.9)
    padded = np.pad(mask, ((0, 0), (0, 0), (1, 1)), constant_values=True)
    assert np.array_equal(erode(mask), ndimage.binary_erosion(padded)[:, :, 1:-1])


def squares(*places: tuple[int, int, int]) -> np.ndarray:
    """Squares of a size at a place."""
    mask = np.zeros((40, 40), bool)
    for x, y, side in places:
        mask[x : x + side, y : y + side] = True
    return mask


def test_components_are_kept_from_the_stated_share_of_the_largest_on():
    low = squares((2, 2, 8), (20, 20, 4))  # opened: 60 and 12 cells
    both, one = keep_components(low, low, 0.2), keep_components(low, low, 0.201)
    assert both.sum() == 72
    assert one.sum() == 60
    assert not one[20:24, 20:24].any()
    assert np.array_equal(both, dilate(erode(low)))


def test_components_without_sure_cells_go_however_large_they_are():
    low, high = squares((2, 2, 12), (20, 20, 5), (30, 2, 4)), squares((21, 21, 2), (31, 3, 1))
    kept = keep_components(low, high, 0.5)
    assert kept.sum() == 33, "of those that stay, the largest counts: 12 of 21 cells are more than half"
    assert kept[22, 22]
    assert kept[31, 3]
    assert not kept[:20].any()


def test_one_component_stays_where_it_is_sure_and_goes_where_it_is_not():
    low = squares((2, 2, 8))
    assert np.array_equal(keep_components(low, squares((5, 5, 1)), 0.5), dilate(erode(low)))
    assert not keep_components(low, squares((20, 20, 3)), 0.5).any()
    assert not keep_components(low, squares((2, 2, 1)), 0.5).any(), "its corner went when it was opened"


def test_specks_and_lines_are_no_components():
    low = squares((2, 2, 2), (10, 10, 1))
    low[30, 5:35] = True
    assert not keep_components(low, low, 0.0).any()


def filled(mask: np.ndarray) -> np.ndarray:
    """By the definition: mask on at least one side along every axis, and on both along all axes but one."""
    out = np.zeros_like(mask)
    for place in np.ndindex(mask.shape):
        sides = []
        for axis in range(mask.ndim):
            line = mask[(*place[:axis], slice(None), *place[axis + 1 :])]
            sides.append((line[: place[axis] + 1].any(), line[place[axis] :].any()))
        out[place] = sum(a and b for a, b in sides) >= mask.ndim - 1 and all(a or b for a, b in sides)
    return mask | out


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("share", [0.0, 0.05, 0.2])
def test_what_has_mask_on_all_sides_but_one_is_filled(shape, share):
    mask = drawn(shape, share)
    assert np.array_equal(fill(mask), filled(mask))


def test_a_hole_is_filled_and_what_lies_around_a_disc_is_not():
    ring = disc((21, 21), 8) & ~disc((21, 21), 4)
    assert np.array_equal(fill(ring), disc((21, 21), 8))
