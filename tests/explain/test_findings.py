"""Causes that show without the network: how the map is shown, and the data."""

from __future__ import annotations

import matplotlib
import numpy as np
import pytest
import torch
from monai.visualize.class_activation_maps import default_normalizer

from scripts.explain.findings import (
    CANNOT_TELL,
    DOES_NOT_HOLD,
    HOLDS,
    air_not_zero,
    coarse_grid,
    order_of_transforms,
    source_shortcut,
)
from scripts.explain.maps import max_scaling
from scripts.explain.picture_findings import inverted_normalizer, swapped_colors, swapped_pictures


def air_and_head(values):
    """One-row images (B, 1, 1, N) and a foreground that leaves out the first two pixels."""
    x = torch.tensor(values)[:, None, None]
    inside = torch.ones_like(x)
    inside[..., :2] = 0
    return x, inside


def test_inverted_normalizer():
    found = inverted_normalizer(default_normalizer)
    assert found.verdict == HOLDS
    assert found.figures == {"strongest_becomes": 0.0, "weakest_becomes": 1.0, "empty_map_becomes": 0.0}
    assert inverted_normalizer(max_scaling).verdict == DOES_NOT_HOLD
    assert inverted_normalizer(lambda m: m * 0).verdict == CANNOT_TELL


def test_swapped_colors():
    assert swapped_colors(lambda m: matplotlib.colormaps["jet"](m)).verdict == DOES_NOT_HOLD
    assert swapped_colors(lambda m: matplotlib.colormaps["jet"](m)[..., 2::-1]).verdict == HOLDS
    assert (
        swapped_colors(lambda m: (255 * matplotlib.colormaps["jet"](m)[..., 2::-1]).astype(np.uint8)).verdict == HOLDS
    )
    assert swapped_colors(lambda m: np.stack([m] * 3, -1)).verdict == CANNOT_TELL
    with pytest.raises(ValueError, match=r"expected RGB \(H, W, 3\)"):
        swapped_colors(lambda m: m)


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


def shown(values, name, swapped):
    """Map (H, W) in [0, 1] as an RGB picture."""
    picture = np.rint(matplotlib.colormaps[name](values)[..., :3] * 255).astype(np.uint8)
    return picture[..., ::-1] if swapped else picture


def blob(size=40):
    y, x = np.mgrid[:size, :size] / size
    return np.exp(-((x - 0.6) ** 2 + (y - 0.4) ** 2) / 0.03)


@pytest.mark.parametrize("name", ["jet", "turbo", "inferno", "viridis"])
@pytest.mark.parametrize("swapped", [False, True])
def test_swapped_colors_of_ready_pictures_are_told_by_their_map(name, swapped):
    found = swapped_pictures([shown(blob(), name, swapped)], [blob()])
    assert found.verdict == (HOLDS if swapped else DOES_NOT_HOLD)
    gray = np.repeat(np.random.default_rng(0).integers(0, 255, (40, 40, 1)), 3, 2)
    overlay = (0.5 * gray + 0.5 * shown(blob(), name, swapped)).astype(np.uint8)
    assert swapped_pictures([overlay], [blob()]).verdict == found.verdict


def test_without_the_map_jet_pictures_cannot_be_told_but_inferno_can():
    assert swapped_pictures([shown(blob(), "jet", True)]).verdict == CANNOT_TELL
    assert swapped_pictures([shown(blob(), "inferno", True)]).verdict == HOLDS
    assert swapped_pictures([shown(blob(), "inferno", False)]).verdict == DOES_NOT_HOLD
    gray = np.full((20, 20, 3), 90, np.uint8)
    assert "no color" in swapped_pictures([gray]).reason
    noise = np.random.default_rng(0).random((40, 40))
    assert swapped_pictures([shown(blob(), "jet", False)], [noise]).verdict == CANNOT_TELL  # another map's picture
    with pytest.raises(ValueError, match="one map of the picture's size"):
        swapped_pictures([gray], [blob()])
