"""The steps that find the head, each against its definition or an example worked by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from scipy import ndimage

from tests.transforms.images import disc, head, overlap
from transforms import foreground as fg
from transforms.foreground import ForegroundMaskd, air_level, foreground_mask, foreground_warnings

# Cells of the coarse grid


@pytest.mark.parametrize(
    ("shape", "factors"), [((7, 9), (2, 3)), ((6, 6), (1, 2)), ((5, 7, 4), (2, 3, 1)), ((8, 4), (4, 4))]
)
def test_cells_are_means_of_blocks_the_last_of_what_is_left(shape, factors):
    image = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    cells = fg._pool(image, factors)
    assert cells.shape == tuple(-(-n // f) for n, f in zip(shape, factors, strict=True))
    for place in np.ndindex(cells.shape):
        block = image
        for axis, (k, f) in enumerate(zip(place, factors, strict=True)):
            block = np.take(block, range(k * f, min((k + 1) * f, shape[axis])), axis)
        assert cells[place] == pytest.approx(block.mean(), abs=1e-6)
    blocks = np.ones(factors)
    assert np.array_equal(
        fg._enlarge(cells > 0, factors, shape), np.kron(cells > 0, blocks)[tuple(slice(n) for n in shape)] > 0
    )


@pytest.mark.parametrize("shape", [(6, 5), (4, 5, 6)])
def test_smoothing_is_the_mean_of_three_with_the_edge_repeated(shape):
    cells = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    before, expected = cells.copy(), cells
    for axis in range(len(shape)):
        expected = ndimage.uniform_filter1d(expected, 3, axis=axis, mode="nearest")
    assert np.allclose(fg._smooth(cells), expected, atol=1e-6)
    assert np.array_equal(cells, before)


def test_the_rim_are_the_outermost_cells_in_plane():
    plane = np.arange(20).reshape(4, 5)
    assert sorted(fg._rim(plane)) == [0, 1, 2, 3, 4, 5, 9, 10, 14, 15, 16, 17, 18, 19]
    volume = np.arange(60).reshape(4, 5, 3)
    assert sorted(fg._rim(volume)) == sorted(v for c in fg._rim(plane) for v in (3 * c, 3 * c + 1, 3 * c + 2))


@pytest.mark.parametrize(("share", "place"), [(0.0, 0), (0.5, 4), (0.995, 8), (1.0, 9), (0.2, 1)])
def test_a_quantile_is_a_value_of_the_list(share, place):
    assert fg._quantile(np.random.default_rng(0).permutation(10).astype(np.float32), share) == place


@pytest.mark.parametrize(
    ("shape", "cells"), [((255, 128), (1, 1)), ((256, 383), (2, 2)), ((384, 60), (3, 1)), ((159, 160, 6), (1, 2, 1))]
)
def test_large_images_are_looked_at_in_cells(shape, cells):
    radius = min(n for n in shape if n > 10) * 0.3
    mask = foreground_mask(
        (disc(shape[:2], radius)[..., None] if len(shape) == 3 else disc(shape, radius)) * np.ones(shape)[None]
    )
    small = mask[tuple(slice(None, None, c) for c in cells)]
    assert np.array_equal(mask, np.kron(small, np.ones(cells))[tuple(slice(n) for n in shape)] > 0)
    for axis, cell in enumerate(cells):
        if cell == 1 and shape[axis] > 10:
            pairs = np.moveaxis(mask, axis, 0)
            assert (pairs[0:-1:2] != pairs[1::2][: len(pairs[0:-1:2])]).any() or (pairs[1:-1:2] != pairs[2::2]).any()


# Constant air


def air_case(equal: int = 130, lower: int = 40, dark: int = 60) -> np.ndarray:
    """50 x 50: of 196 places of the rim so many are 0, so many -3 and the rest 5; so many of -3 inside."""
    image = np.full((50, 50), 5.0, np.float32)
    rim = [p for p in np.ndindex(50, 50) if 0 in p or 49 in p]
    for k, place in enumerate(rim):
        image[place] = 0.0 if k < equal else -3.0 if k < equal + lower else 5.0
    image[1:49, 1:49].flat[0] = 5.0
    inner = [p for p in np.ndindex(50, 50) if p not in set(rim)]
    for place in inner[: dark - lower]:
        image[place] = -3.0
    return image


@pytest.mark.parametrize(
    ("image", "bounds", "expected"),
    [
        (air_case(), (-10, 10), 0.0),
        (air_case(equal=98, lower=60), (-10, 10), 0.0),  # half of the rim
        (air_case(equal=97, lower=60), (-10, 10), None),
        (air_case(dark=51), (-10, 10), 0.0),  # a fiftieth of 2500 places is darker
        (air_case(dark=50), (-10, 10), None),
        (air_case(), (-2, 98), None),  # a fiftieth of the range
        (air_case(), (-2.2, 97.8), 0.0),
        (air_case(), (-90, 10), None),  # nine tenths
        (air_case(), (-89, 11), 0.0),
        (air_case(), (-74, 74), 0.0),  # -3 is more than a fiftieth of the range below
        (air_case(), (-75, 75), None),
    ],
)
def test_air_in_the_middle_of_the_range_is_one_value_of_half_the_rim_and_some_tissue_is_darker(image, bounds, expected):
    assert fg._constant_air(image, *bounds) == expected


# Noise


def test_noise_is_where_neighbors_are_unrelated():
    rng = np.random.default_rng(0)
    noise = rng.normal(size=(60, 50))
    smooth = ndimage.gaussian_filter(rng.normal(size=(60, 50)), 4)
    smooth /= smooth.std()
    seen = []
    for share in np.linspace(0.3, 0.9, 25):
        image = (share * smooth + (1 - share) * noise + 3).astype(np.float32)
        centered = image - image.mean(dtype=float)
        pairs = (centered[1:] * centered[:-1]).mean() / 2 + (centered[:, 1:] * centered[:, :-1]).mean() / 2
        correlation = pairs / centered.var()
        seen.append(correlation)
        if correlation < 0.4:
            with pytest.raises(
                ValueError, match=f"the image is noise .neighboring pixels correlate at {correlation:.2f}"
            ):
                fg._refuse_noise(image)
        else:
            fg._refuse_noise(image)
    assert min(seen) < 0.35 < 0.45 < max(seen)
    assert min(abs(c - 0.4) for c in seen) < 0.03


@pytest.mark.parametrize("axes", [(20, 15, 10), (15, 20, 2)])
def test_neighbors_in_a_volume_are_those_in_plane(axes):
    rows = np.repeat(np.random.default_rng(0).normal(size=(*axes[:2], 1)), axes[2], axis=2).astype(np.float32)
    with pytest.raises(ValueError, match=r"correlate at -?0\.0"):
        fg._refuse_noise(rows)  # alike through the slices alone
    fg._refuse_noise(np.repeat(np.repeat(rows, 4, axis=0), 4, axis=1))


# A white page


def test_a_page_is_white_on_a_quarter_of_the_rim_and_each_piece_touches_a_tenth():
    corner = np.zeros((20, 20), np.float32)
    corner[10, 10], corner[0, 1:19] = 1.0, 1.0
    assert fg._white_page(corner) is None, "18 of 76"
    corner[0, 0] = 1.0
    assert np.array_equal(fg._white_page(corner), (np.indices((20, 20))[0] == 0) & (np.indices((20, 20))[1] < 19))
    pieces = np.zeros((20, 20), np.float32)
    pieces[5, 5] = 1.0
    pieces[0, :12], pieces[19, :8], pieces[8:15, 19] = 1.0, 1.0, 1.0  # 12, 8 and 7 of 76
    found = fg._white_page(pieces)
    assert found[0, :12].all()
    assert found[19, :8].all()
    assert found.sum() == 20


@pytest.mark.parametrize(("white", "is_page"), [(0.84, False), (0.86, True)])
def test_white_is_the_upper_seventh_of_the_range(white, is_page):
    signal = np.full((20, 20), 2.0, np.float32)
    signal[10, 10] = 12.0
    signal[0] = 2 + 10 * white
    signal[-1] = 2 + 10 * white
    assert (fg._white_page(signal) is not None) == is_page


# Thresholds


def levels(rim: list[float] | float = 0.0, ring: float = 0.3) -> np.ndarray:
    """40 x 40: sure tissue of 1 in the middle, a ring around it, 0 elsewhere, and these values by turns on the rim."""
    signal = np.zeros((40, 40), np.float32)
    signal[8:32, 8:32] = ring
    signal[10:30, 10:30] = 1.0
    values = np.resize(rim, 156)
    for place, value in zip((p for p in np.ndindex(40, 40) if 0 in p or 39 in p), values, strict=True):
        signal[place] = value
    return signal


@pytest.mark.parametrize(
    ("signal", "low"),
    [
        (levels(), 0.12),  # 12 % of the way from air to tissue
        (levels(0.1), 0.1 + 0.12 * 0.9),
        (levels([0, 0.01, 0.02]), 0.01 + 0.12 * 0.99),
        (levels([0, 0.02, 0.04]), 0.02 + 4 * 1.4826 * 0.02),  # four deviations of the air are more
        (levels([0, 0.1, 0.2]), 0.12),  # it varies by more than a tenth: tissue
        (levels([0, 0.04, 0.08]), 0.04 + 4 * 1.4826 * 0.04),
        (levels(0.29, 0.45), 0.29 + 0.12 * 0.71),
        (levels(0.31, 0.45), 0.12),  # three tenths of the way up: the rim shows tissue
        (levels([0.02] * 8 + [1.0] * 148), 0.02 + 0.25 * 0.98),  # a twentieth of the rim shows air, the rest is noise
        (levels([0.02] * 7 + [1.0] * 149), 0.25),
        (levels(1.0), 0.25),
    ],
)
def test_the_lower_threshold_lies_between_air_and_tissue(signal, low):
    high, found = fg._thresholds(signal)
    assert found == pytest.approx(low, abs=1e-5)
    assert low < high < 0.5
    assert fg._thresholds(signal * 7)[1] == pytest.approx(7 * low, rel=1e-4)


def test_the_lower_threshold_is_never_above_the_upper_one_and_a_flat_image_has_none():
    high, low = fg._thresholds(levels(ring=0.0))
    assert low == high
    with pytest.raises(ValueError, match="nothing stands out from the background"):
        fg._thresholds(np.full((9, 9), 2.0, np.float32))


def noisy(values: list[float], count: int = 200, marker: tuple[int, int] | None = None) -> np.ndarray:
    """64 x 64 with sure tissue in the middle and these values by turns at places that are looked at, far from it."""
    cells = np.zeros((32, 32), np.float32)
    places = [p for p in np.ndindex(32, 32) if p[0] < 8]
    for place, value in zip(places[:count], np.resize(values, count), strict=True):
        cells[place] = value
    cells[14:18, 14:18] = 1.0
    if marker:
        cells[marker] = 0.05
    return np.kron(cells, np.ones((2, 2))).astype(np.float32)


def test_noise_outside_ends_three_widths_of_its_lower_half_above_its_middle():
    assert fg._noise(noisy([0.04, 0.06, 0.06, 0.06]), 0.5, 0.0, 1.0) == pytest.approx(0.06 + 3 * 0.02, abs=1e-6)
    assert fg._noise(noisy([0.05]), 0.5, 0.0, 1.0) == pytest.approx(0.05)
    assert fg._noise(noisy([0.02, 0.05, 0.3]), 0.5, 0.0, 1.0) == pytest.approx(0.05 + 3 * 0.03, abs=1e-6)


@pytest.mark.parametrize(
    ("image", "known"),
    [
        (noisy([0.05], 31), True), (noisy([0.05], 30), False),  # three hundredths of 1024 places
        (noisy([0.05], 30, (9, 15)), True), (noisy([0.05], 30, (10, 15)), False),  # five from what is surely tissue
        (noisy([0.05], 30, (15, 22)), True), (noisy([0.05], 30, (15, 21)), False),
        (noisy([0.011], 31), True), (noisy([0.01], 31), False),  # blank
    ],
)  # fmt: skip
def test_noise_is_looked_for_well_outside_of_tissue_where_there_is_enough_of_it(image, known):
    assert (fg._noise(image, 0.5, 0.0, 1.0) > -np.inf) == known


def test_what_counts_as_blank_lies_a_hundredth_of_the_way_above_air():
    shifted = noisy([0.05], 31) * 2 + 1  # air at 1, tissue at 3
    assert fg._noise(shifted, 2.0, 1.0, 3.0) == pytest.approx(1.1)
    assert fg._noise(shifted, 2.0, 1.09, 3.0) == -np.inf


@pytest.mark.parametrize(("level", "low"), [(0.2, 0.2), (0.24, 0.24), (0.29, 0.25)])
def test_noise_raises_the_lower_threshold_to_a_quarter_of_the_way(level, low):
    signal = np.zeros((64, 64), np.float32)
    signal[2:62, 2:8] = level
    signal[22:48, 28:54] = 0.5
    signal[24:46, 30:52] = 1.0
    assert fg._thresholds(signal)[1] == pytest.approx(low, abs=1e-4)


# The whole


def test_half_a_hundredth_of_the_image_may_be_a_head_and_specks_are_none():
    def picture(radius: float) -> np.ndarray:
        return disc((100, 100), radius)[None] * 100.0

    assert foreground_mask(picture(4))[50, 50]
    with pytest.raises(ValueError, match="no foreground found: nothing stands out"):
        foreground_mask(picture(1))


def test_pieces_of_three_hundredths_of_the_largest_stay():
    image = disc((160, 160), 40, (60, 60)) * 100.0
    near, far = disc((160, 160), 10, (130, 130)), disc((160, 160), 5, (20, 140))
    mask = foreground_mask((image + 100 * near + 100 * far)[None])
    assert mask[near].mean() > 0.9
    assert not mask[far].any()


def test_a_few_bright_pixels_change_nothing():
    image, outline = head()
    bright = image.copy()
    bright[70:74, 80:84] = 30 * image.max()
    assert overlap(foreground_mask(bright[None]), outline) > 0.97


def test_every_reason_is_told_once_and_a_channel_that_shows_a_head_is_enough():
    blank, noise = np.full((64, 64), 5.0), np.random.default_rng(0).normal(100, 10, (64, 64))
    with pytest.raises(ValueError, match=r"^no foreground found: the image is constant; the image is noise \([^;]*$"):
        foreground_mask(np.stack([blank, noise, blank]))
    image, outline = head((64, 64), 20)
    assert overlap(foreground_mask(np.stack([blank, image, noise])), outline) > 0.9


@pytest.mark.parametrize("shape", [(5,), (1, 0, 5), (1, 2, 2, 2, 2)])
def test_other_shapes_are_refused(shape):
    with pytest.raises(ValueError, match=r"expected an image of shape \(C, X, Y\) or \(C, X, Y, Z\), got"):
        foreground_mask(np.zeros(shape))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_are_counted(value):
    image = head((64, 64), 20)[0]
    image[3, 4:7] = value
    with pytest.raises(ValueError, match=r"^3 values are not finite"):
        foreground_mask(image[None])


# What else is told of an image and a mask


@pytest.mark.parametrize(
    ("air", "low", "expected"),
    [(-0.041, -1, -0.041), (0.041, -1, 0.041), (-0.04, -1, None), (0.04, -1, None), (0.5, -1, 0.5), (0.5, 0, None)],
)
def test_air_is_told_where_it_is_more_than_a_fiftieth_of_the_range_from_0(air, low, expected):
    image = np.full((9, 8), air)
    image[3, 3], image[4, 4] = low, low + 2
    image[0, 0] = 1.0  # the median of the rim
    for values in (image, torch.from_numpy(image), np.stack([image] * 3, -1)):
        assert air_level(values) == (None if expected is None else pytest.approx(expected, abs=1e-6))


def square(side: int, shape: tuple[int, int] = (20, 20), at: int = 3) -> np.ndarray:
    mask = np.zeros(shape, bool)
    mask[at : at + side, at : at + side] = True
    return mask


def test_a_mask_of_a_twentieth_to_97_hundredths_is_as_heads_are():
    few = np.zeros((20, 20), bool)
    few[5:9, 5:10] = True  # 20 of 400
    assert foreground_warnings(few) == []
    few[5, 5] = False
    assert foreground_warnings(few) == ["covers 4.8% of the image, below 5%"]
    most = np.ones((20, 20), bool)
    most[0, :6] = most[19, :6] = False  # 388 of 400, two corners
    assert foreground_warnings(most) == []
    most[19, 5] = True
    assert foreground_warnings(most) == ["covers 97.2% of the image, above 97%: air may be taken for head"]
    assert foreground_warnings(square(4), least=0.01) == []
    assert len(foreground_warnings(square(12), most=0.3)) == 1


def test_three_corners_are_too_many():
    mask = np.ones((20, 20), bool)
    mask[0, 0] = mask[0, 1:15] = False
    assert foreground_warnings(mask) == ["holds 3 of 4 corners: the head is cut all around, or air is taken for head"]
    mask[19, 19] = False
    assert foreground_warnings(mask) == []


def test_a_tenth_outside_of_the_largest_piece_is_too_much():
    mask = square(9)  # 81
    mask[15, 5:14] = True  # 9 of 90
    assert foreground_warnings(mask) == []
    mask[15, 14] = True
    assert foreground_warnings(mask) == ["is in 2 pieces, 11% outside the largest"]


def test_a_stated_mask_of_several_channels_is_their_union_with_the_metadata_of_the_image():
    stated = np.zeros((2, 8, 8), np.float32)
    stated[0, 2, 3], stated[1, 4, 5] = 0.5, -1
    image = MetaTensor(torch.rand(1, 8, 8), meta={"filename_or_obj": "a.png"}, applied_operations=[{"class": "x"}])
    out = ForegroundMaskd(foreground_key="brain")({"image": image, "brain": stated})
    assert out["brain"].shape == (1, 8, 8)
    assert out["brain"].dtype == torch.uint8
    assert out["brain"][0].nonzero().tolist() == [[2, 3], [4, 5]]
    assert out["brain"].meta["filename_or_obj"] == "a.png"
    assert out["brain"].applied_operations == image.applied_operations
    plain = ForegroundMaskd()({"image": image.as_tensor(), "foreground": torch.ones(1, 8, 8)})
    assert type(plain["foreground"]) is torch.Tensor
    with pytest.raises(ValueError, match=r"file a.png: the given foreground mask is empty; leave it out"):
        ForegroundMaskd()({"image": image, "foreground": torch.zeros(1, 8, 8)})
