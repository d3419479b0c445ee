"""Causes that lie in how a map is shown: the scaling and the colors."""

from __future__ import annotations

import matplotlib
import numpy as np
import pytest
from monai.visualize.class_activation_maps import default_normalizer

from scripts.explain.findings import CANNOT_TELL, DOES_NOT_HOLD, HOLDS
from scripts.explain.maps import max_scaling
from scripts.explain.picture_findings import inverted_normalizer, swapped_colors, swapped_pictures, warmth


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


def test_what_the_ends_of_a_scale_become_by_hand():
    found = inverted_normalizer(lambda m: 3 - 2 * m)
    assert found.verdict == HOLDS
    assert found.figures == {"strongest_becomes": 1.0, "weakest_becomes": 3.0, "empty_map_becomes": 3.0}
    assert inverted_normalizer(lambda m: m * 0 + 0.5).figures["empty_map_becomes"] == 0.5
    # Up and down again: the strongest is no smaller than the weakest.
    assert inverted_normalizer(lambda m: (m * (1 - m)).numpy()).verdict == DOES_NOT_HOLD
    middle = inverted_normalizer(lambda m: (m - 0.5).abs())
    assert (middle.verdict, middle.figures["weakest_becomes"]) == (DOES_NOT_HOLD, 0.5)


def test_warmth_is_red_minus_blue():
    assert warmth(np.array([[[5, 1, 2], [0, 9, 3]]])).tolist() == [[3.0, -3.0]]
    assert warmth(np.array([1.0, 0.5, 0.25, 0.9])) == 0.75


def two_ends(cold, warm):
    """A color map from one red minus blue to another."""
    return lambda m: np.stack([cold + (warm - cold) * m, 0 * m, 1 + 0 * m], -1)


def test_ends_that_differ_by_less_than_a_tenth_are_no_warm_and_cold_end():
    for cold, warm, verdict in (
        (0.0, 0.125, DOES_NOT_HOLD), (0.125, 0.0, HOLDS), (0.0, 0.09, CANNOT_TELL), (0.09, 0.0, CANNOT_TELL),
    ):  # fmt: skip
        assert swapped_colors(two_ends(cold, warm)).verdict == verdict
    found = swapped_colors(lambda m: 255 * two_ends(0.0, 0.5)(m))
    assert found.figures == {"warmth_of_strongest": pytest.approx(-0.5), "warmth_of_weakest": pytest.approx(-1.0)}
    assert "red minus blue is -0.50 at the strongest and -1.00 at the weakest" in found.reason
    with_opacity = swapped_colors(lambda m: np.concatenate([two_ends(0.0, 0.5)(m), 9 + 0 * m[..., None]], -1))
    assert with_opacity.figures == found.figures, "the opacity is no color"
    black = swapped_colors(lambda m: np.zeros((*m.shape, 3)))
    assert (black.verdict, black.figures["warmth_of_strongest"]) == (CANNOT_TELL, 0.0)
    for wrong in (lambda m: np.zeros((8, 8, 2)), lambda m: np.zeros((4, 8, 3)), lambda m: np.zeros((8, 8, 5))):
        with pytest.raises(ValueError, match="expected RGB"):
            swapped_colors(wrong)


@pytest.mark.parametrize("name", ["jet", "inferno"])
def test_a_map_explains_the_colors_of_its_own_picture_whole_and_gray_none(name):
    found = swapped_pictures([shown(blob(), name, False)] * 2, [blob()] * 2)
    assert found.figures["pictures"] == 2.0
    assert found.figures["variance_explained"] == pytest.approx(1.0, abs=0.01)
    assert found.figures["variance_explained_swapped"] < 0.9
    colored = (np.ptp(shown(blob(), name, False) / 255, axis=2) > 0.15).mean()
    assert found.figures["share_of_colored_pixels"] == pytest.approx(colored)
    swapped = swapped_pictures([shown(blob(), name, True)], [blob()])
    assert swapped.figures["variance_explained_swapped"] == pytest.approx(1.0, abs=0.01)
    assert ("see 'inverted normalizer'" in swapped.reason, "see 'inverted normalizer'" in found.reason) == (True, False)


def test_opacity_that_grows_with_the_value_is_known():
    values = blob()
    gray = np.repeat(np.random.default_rng(0).integers(0, 255, (40, 40, 1)), 3, 2)
    overlay = (1 - values[..., None]) * gray + values[..., None] * shown(values, "jet", False)
    found = swapped_pictures([np.rint(overlay).astype(np.uint8)], [values])
    assert found.verdict == DOES_NOT_HOLD
    assert found.figures["variance_explained"] > 0.99


def test_distance_to_the_known_maps_by_hand():
    found = swapped_pictures([shown(blob(), "inferno", False)])
    assert found.figures["distance_to_known_map"] < 0.01
    assert found.figures["distance_to_known_map_swapped"] > 0.05
    constant = swapped_pictures([shown(blob(), "inferno", False)], [np.full((40, 40), 0.5)])
    assert "distance_to_known_map" in constant.figures, "a map that is the same everywhere tells no colors"


def test_pictures_of_a_hundred_colored_pixels_are_enough():
    picture = np.full((20, 20, 3), 90, np.uint8)
    picture[:5] = shown(np.linspace(0.2, 1, 100).reshape(5, 20), "inferno", False)
    colored = swapped_pictures([picture])
    assert colored.figures["share_of_colored_pixels"] == pytest.approx(0.25, abs=0.01)
    few = picture.copy()
    few[0] = 90
    assert "no color" in swapped_pictures([few]).reason
    # A pixel is colored where its channels lie more than 0.15 apart.
    for apart, share in ((38, 0.0), (39, 1.0)):
        plain = np.full((20, 20, 3), 100, np.uint8)
        plain[..., 0] += apart
        assert swapped_pictures([plain]).figures["share_of_colored_pixels"] == share
