"""Measures of each region: hand-computed values, and what is not defined."""

from __future__ import annotations

import math

import pytest
import torch

from scripts.measures.mask_measures import mask_measures
from scripts.measures.region_measures import region_measures, region_summary

NAMES = ("whole_tumor", "tumor_core")


def box(start: int, stop: int, size: int = 24) -> torch.Tensor:
    mask = torch.zeros(size, size, size, dtype=torch.bool)
    mask[start:stop, 8:16, 8:16] = True
    return mask


def test_a_box_shifted_by_two_voxels_of_two_millimeters():
    truth, said = torch.stack([box(4, 12), box(6, 10)]), torch.stack([box(6, 14), box(6, 10)])
    row = region_measures(said, truth, NAMES, torch.tensor([2.0, 2.0, 2.0]))
    assert row["dice_whole_tumor"] == pytest.approx(2 * 6 / 16)
    assert row["hd95_mm_whole_tumor"] == pytest.approx(4.0)  # the end faces lie 2 voxels of 2 mm apart
    assert 0.3 < row["nsd_whole_tumor"] < 0.95
    assert [row[f"{m}_tumor_core"] for m in ("dice", "hd95_mm", "nsd")] == [1.0, 0.0, 1.0]


def test_a_missed_region_scores_zero_and_has_no_distance():
    nothing = torch.zeros(2, 24, 24, 24, dtype=torch.bool)
    row = region_measures(nothing, torch.stack([box(4, 12)] * 2), NAMES, torch.ones(3))
    assert (row["dice_whole_tumor"], row["nsd_whole_tumor"]) == (0.0, 0.0)
    assert math.isnan(row["hd95_mm_whole_tumor"])


def test_what_is_not_known_is_not_a_number():
    truth = torch.stack([box(4, 12), torch.zeros(24, 24, 24, dtype=torch.bool)])
    without = region_measures(truth, None, NAMES, torch.ones(3))
    assert all(math.isnan(value) for value in without.values())
    blind = region_measures(truth, truth, NAMES, torch.full((3,), math.nan))
    assert blind["dice_whole_tumor"] == 1.0
    assert math.isnan(blind["hd95_mm_whole_tumor"])
    assert math.isnan(blind["nsd_whole_tumor"])
    assert math.isnan(blind["dice_tumor_core"])


def test_the_summary_counts_each_region_over_the_cases_that_have_it():
    empty = torch.zeros(24, 24, 24, dtype=torch.bool)
    pairs = [
        (torch.stack([box(4, 12), box(6, 10)]), torch.stack([box(4, 12), box(6, 10)])),
        (torch.stack([empty, empty]), torch.stack([box(4, 12), empty])),
        (torch.stack([empty, box(6, 10)]), torch.stack([empty, empty])),
    ]
    rows = [
        {**region_measures(said, truth, NAMES, torch.ones(3)), "cluster": f"p{k}"}
        for k, (said, truth) in enumerate(pairs)
    ]
    found = region_summary(rows, NAMES)
    assert (found["whole_tumor"]["n"], found["tumor_core"]["n"]) == (2, 1)
    assert (found["whole_tumor"]["missed"], found["tumor_core"]["missed"]) == (1, 0)
    assert found["whole_tumor"]["dice"]["mean"] == pytest.approx(0.5)
    assert found["whole_tumor"]["hd95_mm"]["n"] == 1
    assert found["whole_tumor"]["false_positive_rate"]["mean"] == 0.0
    assert found["tumor_core"]["false_positive_rate"]["mean"] == pytest.approx(0.5)
    assert found["whole_tumor"]["lesion_dice"]["mean"] == pytest.approx((1 + 0 + 1) / 3)
    assert found["tumor_core"]["lesion_f1"]["mean"] == pytest.approx((1 + 1 + 0) / 3)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_distances_and_surfaces_use_the_side_of_the_voxel_along_their_own_axis(axis):
    """A box moved by two voxels along one axis, of 1, 1.5 and 3 mm: 2, 3 or 6 mm, and none other."""
    truth = box(6, 12)
    said = truth.roll(2, dims=axis)
    sides = torch.tensor([1.0, 1.5, 3.0])
    row = region_measures(said[None], truth[None], ["tumor"], sides)
    assert row["hd95_mm_tumor"] == pytest.approx(2 * float(sides[axis]))
    near = region_measures(truth.roll(1, dims=axis)[None], truth[None], ["tumor"], sides)
    # One voxel: within the tolerance of 1 mm along the first axis alone.
    assert (near["nsd_tumor"] == 1.0) == (axis == 0)
    whole = mask_measures(said[None].float(), truth[None].float(), torch.ones(1, 24, 24, 24) > 0, sides, "case")
    assert whole["hd95_mm"] == pytest.approx(2 * float(sides[axis]))
    assert whole["tumor_ml"] == pytest.approx(6 * 8 * 8 * 4.5 / 1000)
