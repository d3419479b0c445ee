"""Lesions found, missed and false, counted by hand, and the figures over cases."""

from __future__ import annotations

import numpy as np
import pytest

from scripts.measures.intervals import ratio_interval
from scripts.measures.lesions import FOUND_SHARE, count_lesions, lesion_summary


def plane(*boxes: tuple[int, int, int, int]) -> np.ndarray:
    mask = np.zeros((20, 20))
    for x, y, width, height in boxes:
        mask[x : x + width, y : y + height] = 1
    return mask


def counts(found: dict[str, int]) -> tuple[int, int, int]:
    return found["lesions"], found["lesions_found"], found["false_lesions"]


@pytest.mark.parametrize(("pixels", "expected"), [(9, 0), (10, 1)])
def test_a_lesion_is_found_from_a_tenth_of_its_pixels_on(pixels, expected):
    label, said = plane((2, 2, 10, 10)), np.zeros((20, 20))
    said[2 : 2 + pixels, 2] = 1
    assert expected == (pixels / 100 >= FOUND_SHARE)
    assert counts(count_lesions(said, label)) == (1, expected, 0)


def test_pixels_that_touch_at_a_corner_are_one_lesion():
    assert counts(count_lesions(plane(), plane((2, 2, 2, 2), (4, 4, 2, 2), (7, 7, 2, 2)))) == (2, 0, 0)
    assert counts(count_lesions(plane((2, 2, 2, 2), (4, 4, 2, 2), (7, 7, 2, 2)), plane())) == (0, 0, 2)


def test_a_predicted_component_is_false_where_it_shares_no_pixel_with_a_lesion():
    label = plane((2, 2, 4, 4), (12, 12, 4, 4))
    said = plane((5, 5, 1, 1), (10, 2, 3, 3), (17, 2, 2, 2))  # of the first a sixteenth: touched, and not found
    assert counts(count_lesions(said, label)) == (2, 0, 2)
    assert counts(count_lesions(label, label)) == (2, 2, 0)
    assert counts(count_lesions(plane(), plane())) == (0, 0, 0)
    volume = np.zeros((4, 4, 4))
    volume[0, 0, 0] = volume[1, 1, 1] = 2
    assert counts(count_lesions(volume, volume)) == (1, 1, 0)


def row(cluster: str, has_mask: bool = True, **of: int) -> dict:
    names = ("lesions", "lesions_found", "false_lesions")
    return {"cluster": cluster, "has_mask": has_mask, **{name: of.get(name, 0) for name in names}}


def test_figures_over_cases_by_hand():
    rows = [
        row("a", lesions=3, lesions_found=2, false_lesions=1),
        row("b", lesions=1, lesions_found=1),
        row("c", false_lesions=4),
        row("d"),
        row("e", has_mask=False, lesions=5, lesions_found=5, false_lesions=9),
    ]
    found = lesion_summary(rows)
    assert (found["n"], found["found"], found["sensitivity"]) == (4, 3, 0.75)
    expected = ratio_interval(np.array([2.0, 1.0]), np.array([3.0, 1.0]), ["a", "b"])
    assert found["sensitivity_ci95"] == pytest.approx(expected)
    assert (found["false_per_image"]["n"], found["false_per_image"]["mean"]) == (4, 5 / 4)
    assert (found["false_per_tumor_free_image"]["n"], found["false_per_tumor_free_image"]["mean"]) == (2, 2.0)
    assert "at least 10% of it" in found["rule"]


def test_without_lesions_there_is_no_sensitivity():
    found = lesion_summary([row("a"), row("b", false_lesions=1)])
    assert (found["n"], found["sensitivity"], found["sensitivity_ci95"]) == (0, None, [None, None])
    assert found["false_per_image"]["mean"] == 0.5
