"""Regions in pictures: lines of their own color, dashed where predicted, and their names below."""

from __future__ import annotations

import numpy as np
import pytest

from scripts.pictures import overlays
from scripts.pictures.evaluation_figures import dice_by_region
from scripts.pictures.parts import PART_COLORS, parts_of
from scripts.pictures.planes import PicturePlane

NAMES = ["whole_tumor", "tumor_core", "enhancing_tumor"]


def masks() -> np.ndarray:
    """(3, 24, 24): squares in each other."""
    found = np.zeros((3, 24, 24), np.uint8)
    for k in range(3):
        found[k, 4 + 3 * k : 20 - 3 * k, 4 + 3 * k : 20 - 3 * k] = 1
    return found


@pytest.fixture
def image() -> np.ndarray:
    return np.random.default_rng(0).uniform(1, 2, (1, 24, 24)).astype(np.float32)


def places(picture: np.ndarray, color: tuple[int, int, int]) -> np.ndarray:
    return (picture == color).all(axis=2)


def test_parts_are_the_regions_behind_the_first_in_the_plane_that_is_shown():
    volume = np.stack([0 * masks(), masks()], axis=-1)
    parts = parts_of(NAMES, volume, None, PicturePlane(0, 1, 1, 2))
    assert [part.name for part in parts] == ["tumor core", "enhancing tumor"]
    assert np.array_equal(parts[0].mask, masks()[1:2])
    assert parts[0].predicted is None
    assert parts_of(["tumor"], masks()[:1], None, PicturePlane(0, 1)) == parts_of([], None, None, PicturePlane(0, 1))
    assert len(parts_of([*"abcdef"], None, None, PicturePlane(0, 1))) == len(PART_COLORS)


def test_each_region_has_a_line_of_its_own_color_that_is_dashed_where_it_is_predicted(image):
    zero = np.zeros_like(image)
    true, said = (parts_of(NAMES, *pair, PicturePlane(0, 1)) for pair in ((masks(), None), (None, masks())))
    solid = overlays.overlay(image, zero, mask=masks()[:1], parts=true)
    dashed = overlays.overlay(image, zero, predicted=masks()[:1], parts=said)
    for k, color in enumerate(PART_COLORS[:2], 1):
        line = places(solid, color)
        inside = masks()[k].T.astype(bool)
        assert line.any()
        assert not (line & inside).any(), "just outside, so that what is inside stays visible"
        assert 0 < places(dashed, color).sum() < line.sum()
    assert places(solid, overlays.MASK_COLOR).any()
    assert not places(solid, overlays.PREDICTED_COLOR).any()
    assert np.array_equal(overlays.overlay(image, zero, parts=()), overlays.overlay(image, zero))


@pytest.mark.parametrize(("true", "predicted", "lines"), [(True, True, 4), (True, False, 3), (False, True, 3)])
def test_the_legend_has_a_line_for_every_name_and_leaves_the_picture_as_it_is(image, true, predicted, lines):
    picture = overlays.overlay(image, np.zeros_like(image), scale=10)
    parts = parts_of(NAMES, masks(), masks(), PicturePlane(0, 1))
    named = overlays.with_legend(picture, "whole tumor", parts, true, predicted)
    assert np.array_equal(named[: len(picture)], picture)
    below = named[len(picture) :]
    assert len(below) == lines * overlays.LEGEND
    assert places(below, overlays.MASK_COLOR).any() == true
    assert places(below, overlays.PREDICTED_COLOR).any() == predicted
    assert all(places(below, part.color).any() for part in parts)
    assert np.array_equal(overlays.with_legend(picture, "tumor", []), picture), "one region needs no names"


def test_packed_layers_hold_every_region_in_bits_of_its_own(image):
    parts = parts_of(NAMES, masks(), np.roll(masks(), 1, axis=1), PicturePlane(0, 1))
    bits = overlays.layers(image, None, masks()[:1], None, parts)[..., 2].T
    assert np.array_equal((bits & 64) > 0, masks()[0] > 0)
    for k, part in enumerate(parts):
        assert np.array_equal((bits & 4**k) > 0, part.mask[0] > 0)
        assert np.array_equal((bits & 2 * 4**k) > 0, part.predicted[0] > 0)


def test_a_panel_names_the_regions_under_its_masks(image):
    parts = parts_of(NAMES, masks(), masks(), PicturePlane(0, 1))
    plain = overlays.panel(image, 0 * image, masks()[:1], predicted=masks()[:1])
    named = overlays.panel(image, 0 * image, masks()[:1], predicted=masks()[:1], tumor="whole tumor", parts=parts)
    assert len(named) == len(plain) + 4 * overlays.LEGEND
    assert places(named[:, -plain.shape[1] // 4 :], PART_COLORS[0]).any()


def test_the_figure_of_regions_needs_a_case_with_one():
    summary = {"n": 0, "mean": None, "ci95": [None, None]}
    regions = {name: {"n": 0, "dice": summary, "nsd": summary} for name in NAMES}
    with pytest.raises(ValueError, match="no case with any of the regions"):
        dice_by_region({"run": regions})
    some = {"n": 3, "mean": 0.5, "ci95": [0.1, 0.9]}
    drawn = dice_by_region({"run": {**regions, "tumor_core": {"n": 3, "dice": some, "nsd": some}}})
    assert drawn != dice_by_region({"run": {**regions, "whole_tumor": {"n": 3, "dice": some, "nsd": some}}})
