"""Causes that show without the network: the data."""

from __future__ import annotations

import pytest
import torch

from scripts.explain.findings import (
    CANNOT_TELL,
    DOES_NOT_HOLD,
    HOLDS,
    air_not_zero,
    coarse_grid,
    order_of_transforms,
    source_shortcut,
)


def air_and_head(values):
    """One-row images (B, 1, 1, N) and a foreground that leaves out the first two pixels."""
    x = torch.tensor(values)[:, None, None]
    inside = torch.ones_like(x)
    inside[..., :2] = 0
    return x, inside


def test_air_not_zero_by_hand():
    found = air_not_zero(*air_and_head([[0.0, 0.5, 1.0, 2.0], [0.0, 0.0, 1.0, 2.0]]))
    assert found.verdict == HOLDS
    assert found.figures == {"share_of_air_not_zero": 0.25, "largest_value_in_air": 0.5}
    assert air_not_zero(*air_and_head([[0.0, 0.0, 0.0, 2.0]])).verdict == DOES_NOT_HOLD
    assert air_not_zero(torch.ones(1, 1, 2, 2), torch.ones(1, 1, 2, 2)).verdict == CANNOT_TELL


def test_order_of_transforms_by_hand():
    # Masked, then normalized over the whole image: one constant. Never masked: noise. Right: 0.
    found = order_of_transforms(*air_and_head([[-1.0, -1.0, 1.0, 2.0], [0.0, 0.0, 1.0, 2.0]]))
    assert found.verdict == HOLDS
    assert found.figures == {"share_of_images": 0.5, "air_value": -0.5, "share_of_air_of_one_value": 1.0}
    assert order_of_transforms(*air_and_head([[-1.0, -0.8, 1.0, 2.0]])).verdict == DOES_NOT_HOLD
    white_page = order_of_transforms(*air_and_head([[1.0, 1.0, 0.2, 0.7]]))  # never masked, not masked first
    assert (white_page.verdict, white_page.figures["air_value"]) == (DOES_NOT_HOLD, 1.0)
    assert order_of_transforms(*air_and_head([[0.0, 0.0, 1.0, 2.0]])).verdict == DOES_NOT_HOLD
    assert order_of_transforms(torch.ones(1, 1, 2, 2), torch.ones(1, 1, 2, 2)).verdict == CANNOT_TELL


def test_the_list_of_transforms_names_the_culprit_and_the_pixels_decide():
    wrong = order_of_transforms(*air_and_head([[-1.0, -1.0, 1.0, 2.0]]), "NormalizeIntensityd after MaskIntensityd")
    assert wrong.reason.endswith("The list of transforms: NormalizeIntensityd after MaskIntensityd")
    harmless = order_of_transforms(*air_and_head([[0.0, 0.0, 1.0, 2.0]]), "NormalizeIntensityd after MaskIntensityd")
    assert harmless.verdict == DOES_NOT_HOLD
    assert "the air came out as it should" in harmless.reason


def test_a_few_pixels_that_an_estimated_mask_missed_are_no_air():
    values = [[0.0, 0.5, *[0.0] * 998]]
    x = torch.tensor(values)[:, None, None]
    inside = torch.zeros_like(x)
    inside[..., 0] = 1
    assert air_not_zero(x, inside).verdict == HOLDS
    estimated = air_not_zero(x, inside, tolerance=0.005)
    assert estimated.verdict == DOES_NOT_HOLD
    assert "the foreground being estimated" in estimated.reason


def test_source_shortcut_by_hand():
    found = source_shortcut(["a"] * 4 + ["b"] * 8, [1] * 4 + [0] * 8)
    assert (found.verdict, found.figures["balanced_accuracy_from_source"]) == (HOLDS, 1.0)
    # Both sources have both classes alike, though one class is rare: guessing the source gives nothing.
    even = source_shortcut(["a"] * 10 + ["b"] * 10, ([1] * 2 + [0] * 8) * 2)
    assert (even.verdict, even.figures["balanced_accuracy_from_source"]) == (DOES_NOT_HOLD, 0.5)
    assert source_shortcut(["a", "a"], [0, 1]).verdict == CANNOT_TELL
    # Two images of two sources: any labels would fit, so that nothing can be told.
    few = source_shortcut(["a", "b", "b"], [0, 1, -1])
    assert (few.verdict, few.figures["balanced_accuracy_from_source"]) == (CANNOT_TELL, 1.0)
    assert "shuffled labels" in few.reason


def test_a_source_that_tells_only_tumor_from_none_is_found_whatever_the_number_of_tumor_classes():
    labels = [0, 1, 2, 3, 4, 5] * 8
    told = source_shortcut(["volunteers" if k == 0 else "hospital" for k in labels], labels)
    assert (told.verdict, told.figures["balanced_accuracy_from_source"], told.figures["chance"]) == (HOLDS, 1.0, 0.5)
    assert "gives tumor or none with a balanced accuracy of 1.00 (limit 0.70)" in told.reason
    even = source_shortcut(["a", "b"] * 24, [k // 2 % 6 for k in range(48)])
    assert even.verdict == DOES_NOT_HOLD


def test_coarse_grid_by_hand():
    tumor = torch.zeros(1, 1, 8, 8)
    tumor[..., :2, :2] = 1
    inside = torch.ones(1, 1, 8, 8)
    inside[..., 6:] = 0
    assert coarse_grid(tumor, inside, (8, 8)).figures["oracle_tumor_energy"] == 1.0
    assert coarse_grid(tumor, inside, (8, 8)).verdict == DOES_NOT_HOLD
    found = coarse_grid(tumor, inside, (1, 1))
    assert (found.verdict, found.figures["oracle_tumor_energy"]) == (HOLDS, 4 / 64)
    assert found.figures["oracle_background_energy"] == 2 / 8
    assert coarse_grid(tumor * 0, inside, (8, 8)).verdict == CANNOT_TELL


def test_air_is_measured_in_every_channel_and_image():
    x, inside = torch.zeros(2, 2, 1, 4), torch.ones(2, 1, 1, 4)
    inside[..., :2] = 0
    x[..., 2:] = 5.0  # the head
    x[1, 1, 0, 1] = -0.25  # one of four air pixels, in one of its channels
    found = air_not_zero(x, inside)
    assert found.figures == {"share_of_air_not_zero": 0.25, "largest_value_in_air": 0.25}
    assert "25.0% of the air pixels are not exactly 0 (limit: none); the largest value there is 0.25" in found.reason
    assert "largest" not in air_not_zero(x * inside, inside).reason
    assert air_not_zero(x, inside, tolerance=0.25).verdict == DOES_NOT_HOLD, "as many as may be"
    assert air_not_zero(x, inside, tolerance=0.24).verdict == HOLDS


def strip(air, head=(0.0, 2.0)):
    """One image (1, 1, 1, N): air, and a head whose deviation is 1."""
    x = torch.tensor([*air, *head])[None, None, None].double()
    inside = torch.ones_like(x)
    inside[..., : len(air)] = 0
    return x, inside


@pytest.mark.parametrize(
    ("air", "share", "verdict"),
    [
        ([-1.0] * 10, 1.0, HOLDS),
        ([-1.0] * 19 + [-0.5], 0.95, HOLDS),
        ([-1.0] * 9 + [-0.5], 0.9, DOES_NOT_HOLD),  # more than 90 % have to be one value
        ([-1.0] * 5 + [-1.0078125] * 5, 1.0, HOLDS),  # ... to one hundredth of the head's deviation
        ([-1.0] * 6 + [-1.015625] * 4, 0.6, DOES_NOT_HOLD),
        ([0.0] * 10, 1.0, DOES_NOT_HOLD),
    ],
)
def test_how_constant_the_air_has_to_be(air, share, verdict):
    found = order_of_transforms(*strip(air))
    assert (found.figures["share_of_air_of_one_value"], found.verdict) == (share, verdict)


def test_air_within_a_hundredth_of_the_heads_deviation_is_one_value():
    for within, share in ((0.01, 1.0), (0.0101, 2 / 3)):
        found = order_of_transforms(*strip([0.0, 0.0, within]))
        assert found.figures["share_of_air_of_one_value"] == pytest.approx(share)


def test_one_channel_below_zero_is_enough_and_images_without_air_do_not_count():
    x, inside = torch.ones(2, 2, 1, 4), torch.ones(2, 1, 1, 4)
    x[..., 3] = 2.0
    x[0, 0, 0, :2], x[0, 1, 0, :2] = 0.0, -1.0
    inside[0, ..., :2] = 0
    found = order_of_transforms(x, inside)
    assert found.verdict == HOLDS
    assert found.figures == {"share_of_images": 1.0, "air_value": -0.5, "share_of_air_of_one_value": 1.0}


def test_images_of_unknown_class_are_left_out_and_limits_are_kept():
    assert source_shortcut(["a", "b"] * 4, [0, -1] * 4).verdict == CANNOT_TELL
    assert "given: 1 source and 1 class" in source_shortcut(["a", "b"] * 4, [0, -1] * 4).reason
    assert "given: 2 source and 1 class" in source_shortcut(["a", "b"], [0, 0]).reason
    assert "given: 1 source and 2 classes" in source_shortcut(["a", "a"], [0, 1]).reason
    # Ten of each class; source a has 7 and 3 of them: balanced accuracy 0.7, as much as may be.
    limit = source_shortcut((["a"] * 7 + ["b"] * 3) + (["a"] * 3 + ["b"] * 7), [0] * 10 + [1] * 10)
    assert limit.figures["balanced_accuracy_from_source"] == pytest.approx(0.7)
    assert (limit.verdict, limit.signs) == (DOES_NOT_HOLD, ())
    above = source_shortcut((["a"] * 32 + ["b"] * 8) + (["a"] * 8 + ["b"] * 32), [0] * 40 + [1] * 40)
    assert (above.verdict, above.signs) == (HOLDS, ("source",))
    assert above.figures["p_by_chance"] < 0.01
    assert "(limit 0.70)" in above.reason


def test_chance_is_counted_in_shuffled_labels():
    # Of two images a and b each: 2 of the 6 ways to label two of the four as tumors are as good, the perfect ones.
    found = source_shortcut(["a", "a", "b", "b"], [0, 0, 1, 1], draws=3000)
    assert found.figures["p_by_chance"] == pytest.approx(1 / 3, abs=0.04)
    assert found.verdict == CANNOT_TELL
    assert "so it does for 33% of shuffled labels: 4 images of 2 sources" in found.reason.replace("34%", "33%").replace(
        "32%", "33%"
    )


def test_classes_without_a_healthy_one_are_not_taken_together():
    labels = [1, 2, 3] * 8
    found = source_shortcut(["first" if k == 1 else "others" for k in labels], labels)
    assert found.figures["chance"] == pytest.approx(1 / 3)
    assert found.figures["balanced_accuracy_from_source"] == pytest.approx(2 / 3)


def test_a_perfect_map_with_half_of_its_energy_in_the_tumors_is_fine_enough():
    inside = torch.ones(2, 1, 4, 4)
    half = torch.zeros(2, 1, 4, 4)
    half[0, 0, :, :2] = 1  # half of the one cell; the other image has no tumor
    found = coarse_grid(half, inside, (1, 1))
    assert (found.verdict, found.figures["oracle_tumor_energy"]) == (DOES_NOT_HOLD, 0.5)
    assert found.figures["tumor_area"] == 0.5
    assert found.figures["cells"] == 1
    assert "over 1 tumors" in found.reason
    assert "another cause" not in found.reason
    half[0, 0, 0, 0] = 0
    assert "another cause" in coarse_grid(half, inside, (1, 1)).reason
    assert coarse_grid(half * 0, inside, (2, 3)).figures == {"cells": 6.0}
