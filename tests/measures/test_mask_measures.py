"""Measures of a mask by hand in two and three dimensions, what is not defined, and what chance scores."""

from __future__ import annotations

import math

import pytest
import torch
from scipy import ndimage

from scripts.measures.mask_measures import SEGMENTATION, mask_measures, random_mask


def box(*shape: int, at: int, side: int = 4) -> torch.Tensor:
    """(1, *shape) with a box from a place along the first axis on, elsewhere from 2 on."""
    mask = torch.zeros(1, *shape)
    mask[(0, slice(at, at + side), *[slice(2, 2 + side)] * (len(shape) - 1))] = 1
    return mask


def head(mask: torch.Tensor) -> torch.Tensor:
    """The first 12 of the first axis."""
    inside = torch.zeros_like(mask, dtype=torch.bool)
    inside[:, :12] = True
    return inside


def same(found: dict, expected: dict) -> None:
    for name, value in expected.items():
        assert found[name] == (pytest.approx(value, nan_ok=True) if value is not None else None), name
    assert all(type(found[name]) is type(value) for name, value in expected.items() if type(value) is int)


def test_a_box_moved_by_one_pixel_of_a_plane():
    """12 of 16 shared, one side a pixel away, which is 3 mm long; a pixel has 1.5 mm2."""
    label, said = box(16, 10, at=4), box(16, 10, at=5)
    row = mask_measures(said, label, head(label), torch.tensor([3.0, 0.5]), "case")
    expected = {
        "has_mask": True, "head_pixels": 120, "tumor_pixels": 16, "predicted_pixels": 16, "shared_pixels": 12,
        "tumor_mm2": 24.0, "predicted_mm2": 24.0, "tumor_ml": math.nan, "predicted_ml": math.nan,
        "dice": 0.75, "iou": 12 / 20, "hd95": 1.0, "hd95_mm": 3.0, "dice_whole_head": 2 * 16 / (120 + 16),
        "lesions": 1, "lesions_found": 1, "false_lesions": 0,
    }  # fmt: skip
    same(row, expected)
    assert row["dice_random"] == pytest.approx(float((random_mask(head(label), 16, "case") * label).sum()) / 16)


def test_a_volume_is_measured_in_milliliters():
    label, said = box(16, 8, 8, at=0, side=2), box(16, 8, 8, at=0, side=4)
    row = mask_measures(said, label, head(label), torch.tensor([2.0, 2.0, 5.0]), "case")
    same(row, {"tumor_ml": 8 * 20 / 1000, "predicted_ml": 64 * 20 / 1000, "tumor_mm2": math.nan})
    same(row, {"predicted_mm2": math.nan, "head_pixels": 12 * 64, "shared_pixels": 8, "dice": 2 * 8 / 72})
    small = mask_measures(label, said, head(label), torch.tensor([2.0, 2.0, 5.0]), "case")
    assert (small["tumor_pixels"], small["predicted_pixels"], small["shared_pixels"]) == (64, 8, 8)


def test_without_a_mask_only_what_is_predicted_is_known():
    said = box(16, 10, at=4)
    row = mask_measures(said, None, head(said), torch.tensor([1.0, 2.0]), "case")
    same(row, {"has_mask": False, "tumor_pixels": None, "predicted_pixels": 16, "shared_pixels": None})
    same(row, {"tumor_mm2": math.nan, "predicted_mm2": 32.0, "lesions": None, "false_lesions": None})
    same(row, dict.fromkeys((*SEGMENTATION, "dice_whole_head", "dice_random"), math.nan))


def test_a_network_that_does_not_segment_predicts_nothing_and_not_0():
    label = box(16, 10, at=4)
    row = mask_measures(None, label, head(label), torch.ones(2), "case")
    same(row, {"predicted_pixels": None, "shared_pixels": None, "predicted_mm2": math.nan, "predicted_ml": math.nan})
    same(row, {"tumor_pixels": 16, "tumor_mm2": 16.0, "lesions": None, **dict.fromkeys(SEGMENTATION, math.nan)})
    assert row["dice_whole_head"] > 0


def test_a_tumor_that_is_not_there_or_not_found():
    label, nothing = box(16, 10, at=4), torch.zeros(1, 16, 10)
    missed = mask_measures(nothing, label, head(label), torch.ones(2), "case")
    same(missed, {"dice": 0.0, "iou": 0.0, "hd95": math.nan, "hd95_mm": math.nan, "predicted_pixels": 0})
    same(missed, {"lesions": 1, "lesions_found": 0, "false_lesions": 0, "predicted_mm2": 0.0})
    healthy = mask_measures(label, nothing, head(label), torch.ones(2), "case")
    same(healthy, {"tumor_pixels": 0, "tumor_mm2": 0.0, "shared_pixels": 0, "lesions": 0, "false_lesions": 1})
    same(healthy, dict.fromkeys((*SEGMENTATION, "dice_whole_head", "dice_random"), math.nan))


def test_where_the_size_of_a_pixel_is_not_known_distances_are_in_pixels_alone():
    label, said = box(16, 10, at=4), box(16, 10, at=6)
    row = mask_measures(said, label, head(label), torch.tensor([math.nan, 1.0]), "case")
    same(row, {"hd95": 2.0, "hd95_mm": math.nan, "tumor_mm2": math.nan, "dice": 0.5})


@pytest.mark.parametrize("shape", [(18, 13), (9, 10, 11)])
def test_a_random_mask_has_the_pixels_asked_for_in_the_head_and_is_the_cases_own(shape):
    inside = head(torch.zeros(1, *shape))
    for pixels in (0, 1, 57, int(inside.sum())):
        mask = random_mask(inside, pixels, "case")
        assert mask.shape == inside.shape
        assert mask.dtype == torch.bool
        assert int(mask.sum()) == pixels
        assert not bool((mask & ~inside).any())
    assert torch.equal(random_mask(inside, 57, "case"), random_mask(inside, 57, "case"))
    assert not torch.equal(random_mask(inside, 57, "case"), random_mask(inside, 57, "another"))


def test_a_random_mask_hangs_together_by_cells():
    inside = torch.ones(1, 64, 64, dtype=torch.bool)
    parts = [ndimage.label(random_mask(inside, 400, "case", cell=cell)[0])[1] for cell in (1, 4, 16)]
    assert parts[0] > 4 * parts[1] > 8 * parts[2]
    default = random_mask(inside, 400, "case")
    assert torch.equal(default, random_mask(inside, 400, "case", cell=4))
    # In cells of the whole image one value is everywhere, and of an odd size the last cell is begun.
    assert int(random_mask(inside, 5, "case", cell=64).sum()) == 5
    assert random_mask(torch.ones(1, 5, 7, dtype=torch.bool), 3, "case").shape == (1, 5, 7)
