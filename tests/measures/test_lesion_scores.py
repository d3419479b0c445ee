"""Scores by lesion, counted by hand."""

from __future__ import annotations

import numpy as np
import pytest

from scripts.measures.lesion_scores import lesion_scores

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
