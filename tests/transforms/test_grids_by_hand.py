"""Corners, gaps and masks that were cropped, worked by hand."""

from __future__ import annotations

import numpy as np
import pytest

from transforms.grids import corners_mm, grid_gap_mm, off_grid, orient, tolerance_mm, uncropped

IMAGE = np.array([[0.0, -2, 0, 5], [3, 0, 0, -7], [0, 0, 4, 1], [0, 0, 0, 1]])
SHAPE = (6, 5, 4)


def at(start, affine: np.ndarray = IMAGE) -> np.ndarray:
    """The affine of a part that begins at a voxel of the image."""
    part = affine.copy()
    part[:3, 3] = affine[:3] @ [*start, 1]
    return part


def test_corners_are_the_centers_of_the_outermost_voxels():
    corners = corners_mm((3, 4, 5), IMAGE)
    assert corners.shape == (8, 3)
    expected = {(5 - 2 * y, -7 + 3 * x, 1 + 4 * z) for x in (0, 2) for y in (0, 3) for z in (0, 4)}
    assert {tuple(c) for c in corners} == expected
    flat = {tuple(c) for c in corners_mm((3, 4), IMAGE)}
    assert flat == {(5 - 2 * y, -7 + 3 * x, 1) for x in (0, 2) for y in (0, 3)}
    assert len(corners_mm((3, 4, 5, 9), IMAGE)) == 8, "channels have no place"


def test_the_gap_is_none_between_equal_grids_and_the_tolerance_a_tenth_of_the_smallest_side():
    assert grid_gap_mm(SHAPE, IMAGE, IMAGE.copy()) == 0.0
    assert grid_gap_mm(SHAPE, IMAGE, at((0, 0, 1))) == 4.0
    assert tolerance_mm(IMAGE) == pytest.approx(0.2)
    shifted = np.eye(4)
    shifted[0, 3] = 0.125
    assert off_grid((2, 2, 2), np.eye(4) * [1.25, 1.25, 1.25, 1], np.eye(4) * [1.25, 1.25, 1.25, 1]) == ""
    wide = np.diag([1.25, 1.25, 1.25, 1])
    assert off_grid((2, 2, 2), wide, shifted @ wide) == "", "exactly a tenth"
    shifted[0, 3] = 0.126
    assert off_grid((2, 2, 2), wide, shifted @ wide).startswith("their corners lie up to 0.126 mm apart")


@pytest.mark.parametrize("shape", [(3, 4, 5), (3, 4, 5, 2)])
def test_a_turned_volume_keeps_the_place_of_each_voxel(shape):
    array = np.arange(np.prod(shape)).reshape(shape)
    turned, affine = orient(array, IMAGE, "LPS")
    assert turned.shape[:3] == (4, 3, 5)
    for place in np.ndindex(turned.shape[:3]):
        own = np.linalg.inv(IMAGE) @ affine @ [*place, 1]
        assert np.array_equal(turned[place], array[tuple(np.rint(own[:3]).astype(int))])


@pytest.mark.parametrize(
    ("start", "size"),
    [
        ((0, 0, 0), (1, 1, 1)),
        ((2, 1, 1), (3, 2, 2)),
        ((5, 4, 3), (1, 1, 1)),
        ((0, 0, 0), (6, 5, 3)),
        ((0, 0, 1), (6, 5, 3)),
    ],
)
@pytest.mark.parametrize("channels", [(), (2,)])
def test_a_part_goes_back_to_its_place_on_the_whole_grid(start, size, channels):
    mask = np.random.default_rng(0).integers(1, 5, (*size, *channels)).astype(np.uint8)
    made, affine = uncropped(mask, at(start), SHAPE, IMAGE)
    assert made.shape == (*SHAPE, *channels)
    assert made.dtype == np.uint8
    assert affine is IMAGE
    box = tuple(slice(s, s + n) for s, n in zip(start, size, strict=True))
    assert np.array_equal(made[box], mask)
    assert made.astype(int).sum() == mask.astype(int).sum()


@pytest.mark.parametrize(
    ("start", "size"),
    [((-1, 0, 0), (3, 3, 3)), ((0, 0, -1), (3, 3, 3)), ((4, 0, 0), (3, 3, 3)), ((0, 0, 2), (3, 3, 3)),
     ((0, 0, 0), SHAPE), ((0.5, 0, 0), (3, 3, 3)), ((1, 1, 0.2), (3, 3, 3)), ((0, 0, 0), (3, 3, 5))],
)  # fmt: skip
def test_what_is_no_part_of_the_image_stays_as_it_is(start, size):
    mask, affine = np.ones(size, np.uint8), at(start)
    made, own = uncropped(mask, affine, SHAPE, IMAGE)
    assert made is mask
    assert own is affine


def test_a_part_may_be_off_by_the_rounding_of_a_header_and_not_of_another_spacing():
    near = at((2, 1, 1))
    near[0, 3] += 0.19
    assert uncropped(np.ones((3, 2, 2)), near, SHAPE, IMAGE)[1] is IMAGE
    wide = at((2, 1, 1), IMAGE) @ np.diag([1.1, 1, 1, 1])
    assert uncropped(np.ones((3, 2, 2)), wide, SHAPE, IMAGE)[1] is wide
