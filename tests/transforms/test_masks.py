"""Drawn masks and label values: which are meant, and on which side of each limit they fall."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from transforms.limits import ReadLimits, TooLarge
from transforms.masks import binary_mask, check_tumor, read_mask_picture, region_masks, unknown_labels


def drawn(*values: float) -> np.ndarray:
    return np.array([values], np.float32)


def layer(path: Path, *pixels: tuple[int, int, int, int]) -> np.ndarray:
    """A row of pixels with alpha, as it is read."""
    Image.fromarray(np.array([pixels], np.uint8), "RGBA").save(path)
    return read_mask_picture(path)[:, 0]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ((0, 127, 128, 255), (0, 0, 1, 1)),
        ((0, 127, 128, 129), (0, 0, 1, 1)),  # the cut is that of the range, not of the brightest value
        ((0, 32767, 32768, 65535), (0, 0, 1, 1)),
        ((0, 128, 255, 32768), (0, 0, 0, 1)),
        ((0, 1, 2, 4), (0, 1, 1, 1)),
        ((0, 0.5, 0.51, 1), (0, 0, 1, 1)),
        ((0, 0, 0, 0), (0, 0, 0, 0)),
    ],
)
def test_a_picture_is_cut_in_the_middle_of_its_range_or_holds_labels(values, expected):
    mask = binary_mask(drawn(*values), "m.png", picture=True)
    assert mask.dtype == np.uint8
    assert tuple(mask[0]) == expected


@pytest.mark.parametrize("top", [5, 127, 256, 32767])
def test_a_brightest_value_that_is_neither_label_nor_white_is_refused(top):
    with pytest.raises(ValueError, match=f"mask m.png has a brightest value of {top}; expected 0 and 255"):
        binary_mask(drawn(0, top), "m.png", picture=True)
    assert binary_mask(drawn(0, top), "m.nii", picture=False).tolist() == [[0, 1]]


def area(gray: float, side: int, white: float = 255.0) -> np.ndarray:
    """A square of a gray, and one of white that does not touch it."""
    picture = np.zeros((24, 24), np.float32)
    picture[2 : 2 + side, 3 : 3 + side] = gray
    picture[14:20, 14:20] = white
    return picture


@pytest.mark.parametrize(
    ("gray", "side", "white", "refused"),
    [
        (100, 4, 255, True),
        (100, 3, 255, False),  # as wide as soft edges are
        (25, 4, 255, True),
        (24, 4, 255, False),  # black with the noise of JPEG
        (127, 4, 255, True),
        (128, 4, 255, False),  # white
        (6193, 4, 65535, True),  # 24 of 127 is 6192 of 32767
        (6192, 4, 65535, False),
        (32767, 4, 65535, True),
        (32768, 4, 65535, False),
    ],
)
def test_an_area_of_gray_is_no_soft_edge(gray, side, white, refused):
    picture = area(gray, side, white)
    for shaped in (picture, picture[None]):
        if refused:
            with pytest.raises(ValueError, match=f"mask m.png holds areas of gray or color {gray} beside {white}, and"):
                binary_mask(shaped, "m.png", picture=True)
        else:
            assert binary_mask(shaped, "m.png", picture=True).sum() == 36 + (gray > white // 2) * 16


@pytest.mark.parametrize("corner", [(0, 0), (0, 20), (20, 0), (20, 20)])
def test_an_area_at_the_edge_of_the_picture_counts(corner):
    picture = np.zeros((24, 24), np.float32)
    picture[10:14, 10:14] = 255
    picture[corner[0] : corner[0] + 4, corner[1] : corner[1] + 4] = 90
    with pytest.raises(ValueError, match="areas of gray or color 90 beside 255"):
        binary_mask(picture, "m.png", picture=True)
    picture[corner[0] : corner[0] + 4, corner[1] : corner[1] + 4] = 90 + np.arange(16).reshape(4, 4)
    assert binary_mask(picture, "m.png", picture=True).sum() == 16


def test_at_most_five_grays_are_named():
    picture = np.zeros((60, 12), np.float32)
    for k in range(7):
        picture[8 * k : 8 * k + 4, :4] = 100 - 10 * k
    picture[:, 8:] = 255
    with pytest.raises(ValueError, match="gray or color 40, 50, 60, 70, 80 beside 255"):
        binary_mask(picture, "m.png", picture=True)


@pytest.mark.parametrize("picture", [True, False])
def test_values_that_are_not_finite_are_refused(picture):
    with pytest.raises(ValueError, match="mask m holds values that are not finite"):
        binary_mask(drawn(0, np.nan), "m", picture=picture)
    with pytest.raises(ValueError, match="mask m holds values that are not finite"):
        region_masks(drawn(0, np.inf), "m", {"whole": [1]})


# What is opaque


def test_transparency_is_the_mask_where_all_that_is_opaque_has_one_color(tmp_path):
    red = (200, 0, 0)
    assert layer(tmp_path / "m.png", (0, 0, 0, 0), (*red, 255), (9, 9, 9, 127), (*red, 128)).tolist() == [
        0,
        255,
        127,
        128,
    ]
    two = layer(tmp_path / "m.png", (0, 0, 0, 0), (*red, 255), (0, 100, 0, 255), (*red, 51))
    assert two.tolist() == [0, 200, 100, 40], "of several colors the brightest, as far as it is opaque"


def test_where_nothing_is_transparent_or_nothing_opaque_colors_are_the_mask(tmp_path):
    assert layer(tmp_path / "m.png", (0, 0, 0, 255), (0, 0, 0, 128)).tolist() == [0, 0]
    assert layer(tmp_path / "m.png", (90, 200, 10, 255), (90, 200, 10, 128)).tolist() == [200, 100]
    assert layer(tmp_path / "m.png", (90, 200, 10, 127), (9, 0, 0, 0)).tolist() == [100, 0]


def test_a_mask_beyond_the_limit_is_refused(tmp_path):
    Image.new("RGB", (3, 2), (7, 8, 9)).save(tmp_path / "m.png")
    assert read_mask_picture(tmp_path / "m.png", ReadLimits(pixels=6)).tolist() == [[9, 9]] * 3
    with pytest.raises(TooLarge):
        read_mask_picture(tmp_path / "m.png", ReadLimits(pixels=5))


# Regions


def test_unknown_labels_are_named_but_for_rounding():
    assert unknown_labels(np.array([0, 1, 0.99999997, 2.0009, 3]), [0, 1, 2, 3]) == ""
    assert unknown_labels(np.array([0, 1.002, 1.4, 2]), [0, 1, 2]) == "1.002, 1.4"
    assert unknown_labels(np.array([7, -1, 4, 5, 9, 8, 6, 1]), {1}) == "-1, 4, 5, 6, 7"


def test_regions_are_made_of_their_label_values_in_their_order():
    labels = np.array([[0, 1, 1.9999999], [4, 0, 2]])
    masks = region_masks(labels, "m.nii", {"whole": [1, 2, 4], "core": [4, 1], "edema": [2]})
    assert masks.dtype == np.uint8
    assert masks.tolist() == [[[0, 1, 1], [1, 0, 1]], [[0, 1, 0], [1, 0, 0]], [[0, 0, 1], [0, 0, 1]]]
    with pytest.raises(
        ValueError, match=r"m.nii holds the label 3, of which no region is; the regions whole are made of 1, 4"
    ):
        region_masks(np.array([0, 3]), "m.nii", {"whole": [4, 1]})


# What can be no tumor


def test_half_of_the_image_may_be_tumor():
    mask = np.ones((10, 10), np.uint8)
    mask[1:9, 1:9] = 0
    mask[1, 1:9], mask[2, 1:7] = 1, 1  # 14 beside the 36 of the rim
    check_tumor(mask, "m")
    mask[2, 7] = 1
    with pytest.raises(ValueError, match="mask m marks 51% of the image as tumor and 100% of its rim"):
        check_tumor(mask, "m")


def test_a_rim_of_at_most_nine_tenths_may_be_tumor():
    mask = np.ones((10, 10), np.uint8)
    mask[0, 1:5] = 0  # 36 of the 40 places of the four sides
    check_tumor(mask, "m")
    mask[0, 1] = 1
    with pytest.raises(ValueError, match="mask m marks 97% of the image as tumor and 92% of its rim"):
        check_tumor(mask, "m")


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_axes_of_length_one_have_no_rim(axis):
    mask = np.ones((10, 10), np.uint8)
    mask[0, 1:5] = 0
    check_tumor(np.expand_dims(mask, axis), "m")
    with pytest.raises(ValueError, match="100% of its rim"):
        check_tumor(np.ones((1, 1, 1), np.uint8), "m")
