"""Scores by lesion, counted by hand."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from scripts.measures.lesion_scores import _dilated, lesion_scores

ONE_MM = (1.0, 1.0, 1.0)


def cube(*starts: int, side: int = 6, size: int = 60) -> np.ndarray:
    """Cubes along the first axis, at the given starts."""
    mask = np.zeros((size, 20, 20), bool)
    for start in starts:
        mask[start : start + side, 6 : 6 + side, 6 : 6 + side] = True
    return mask


def test_each_lesion_counts_once_whatever_its_size_and_a_false_component_is_a_zero():
    truth = cube(4) | cube(30, side=10)
    said = cube(6) | cube(30, side=10) | cube(50)
    found = lesion_scores(said, truth, ONE_MM)
    assert found["lesion_dice"] == pytest.approx((4 / 6 + 1 + 0) / 3)  # moved by 2 of 6 voxels; exact; false
    assert found["lesion_f1"] == pytest.approx(2 * 2 / (2 * 2 + 0 + 1))


def test_a_missed_lesion_is_a_zero():
    found = lesion_scores(cube(4), cube(4, 30), ONE_MM)
    assert (found["lesion_dice"], found["lesion_f1"]) == (pytest.approx(0.5), pytest.approx(2 / 3))


@pytest.mark.parametrize(("gap", "lesions"), [(6, 1), (7, 2)])
def test_true_components_whose_dilations_touch_are_one_lesion(gap, lesions):
    """Each is dilated by three voxels: at a gap of six these lie side by side."""
    found = lesion_scores(cube(4), cube(4, 10 + gap), ONE_MM)
    assert found["lesion_dice"] == pytest.approx(2 * 216 / (216 + 432) if lesions == 1 else 0.5)
    assert found["lesion_f1"] == pytest.approx(1.0 if lesions == 1 else 2 / 3)


def test_on_a_coarser_grid_lesions_are_dilated_by_as_many_millimeters():
    found = lesion_scores(cube(4), cube(4, 14), (3.0, 3.0, 3.0))  # one step each: a gap of four parts them
    assert found["lesion_dice"] == pytest.approx(0.5)


def test_a_small_true_lesion_takes_no_part_and_what_is_predicted_of_it_is_not_false():
    speck = cube(30, side=3)  # 27 mm3
    assert lesion_scores(cube(4), cube(4) | speck, ONE_MM) == {"lesion_dice": 1.0, "lesion_f1": 1.0}
    assert lesion_scores(cube(4) | speck, cube(4) | speck, ONE_MM) == {"lesion_dice": 1.0, "lesion_f1": 1.0}
    assert lesion_scores(cube(4), cube(4) | speck, (2.0, 2.0, 2.0))["lesion_f1"] == pytest.approx(2 / 3)


def test_nothing_is_right_where_there_is_nothing_and_wrong_where_something_is_predicted():
    empty = np.zeros((60, 20, 20), bool)
    assert lesion_scores(empty, empty, ONE_MM) == {"lesion_dice": 1.0, "lesion_f1": 1.0}
    assert lesion_scores(cube(4), empty, ONE_MM) == {"lesion_dice": 0.0, "lesion_f1": 0.0}


@pytest.mark.parametrize(("sides", "lesions"), [((1.0, 1.0, 3.0), 1), ((3.0, 1.0, 1.0), 2), ((1.0, 3.0, 1.0), 1)])
def test_lesions_are_dilated_by_as_many_millimeters_along_each_axis(sides, lesions):
    """A gap of six voxels along the first axis is 6 mm, or 18 where its voxels are the long ones."""
    found = lesion_scores(cube(4), cube(4, 16), sides)
    assert found["lesion_f1"] == pytest.approx(1.0 if lesions == 1 else 2 / 3)


def test_isotropic_voxels_are_dilated_alike_along_all_axes():
    """Equal to iterating one step of 18 neighbors, as BraTS does at 1 mm."""
    seed = np.zeros((15, 15, 15), bool)
    seed[7, 7, 7] = True
    for side, steps in ((1.0, 3), (2.0, 2), (4.0, 1)):
        expected = ndimage.binary_dilation(seed, ndimage.generate_binary_structure(3, 2), iterations=steps)
        assert np.array_equal(_dilated(seed, (side,) * 3), expected)
    reach = _dilated(seed, (1.0, 1.0, 3.0))
    assert [int(reach.any(axis=axes).sum()) for axes in ((1, 2), (0, 2), (0, 1))] == [7, 7, 3]
