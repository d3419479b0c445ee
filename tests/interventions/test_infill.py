"""Which tissue an infill copies: that of places which hold what the tissue around the hole holds."""

from __future__ import annotations

import numpy as np
import pytest

from scripts.interventions.infill import MUCH, Hole, odd
from scripts.interventions.infills import infill
from scripts.interventions.regions import Search, within

SIDE = 96


def disk(row: int, column: int, radius: float) -> np.ndarray:
    rows, columns = np.mgrid[:SIDE, :SIDE]
    return (rows - row) ** 2 + (columns - column) ** 2 <= radius**2


def head_with_vessels(channels: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """Tissue of about 1 with dotted islands of the hole's size, whose even rims match better than any other."""
    tissue = disk(48, 48, 44)
    image = 1 + 0.1 * np.random.default_rng(0).standard_normal((channels, SIDE, SIDE)).astype(np.float32)
    dots = np.where(np.indices((SIDE, SIDE)).sum(axis=0) % 4 == 0, 1, 9)
    for row, column in ((48, 20), (48, 76), (22, 48)):
        image[:, disk(row, column, 13)] = 1
        image[:, disk(row, column, 8)] = dots[disk(row, column, 8)]
    image[:, disk(66, 48, 13)] = 1
    return np.where(tissue, image, 0).astype(np.float32), tissue


def hole_of(region: np.ndarray, image: np.ndarray, tissue: np.ndarray) -> Hole:
    return Hole(image, region, tissue & ~region & disk(48, 48, 40), tissue, 2)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("how", ["patch", "mirror", "poisson", "learned"])
def test_bright_islands_whose_rims_match_best_are_not_copied(how, channels):
    image, tissue = head_with_vessels(channels)
    region = disk(66, 48, 9)
    brightest = [
        infill(how, hole_of(region, image, tissue), np.random.default_rng(seed))[0][region].max() for seed in range(8)
    ]
    assert max(brightest) < 3


@pytest.mark.parametrize("channels", [1, 2, 4])
def test_tissue_like_that_around_is_not_odd_however_many_channels_and_islands_are(channels):
    image, tissue = head_with_vessels(channels)
    region = disk(66, 48, 9)
    hole = hole_of(region, image, tissue)
    search = Search(region, hole.healthy)
    found, share = odd(search, hole, image), search.share(~within(image, *hole.usual[0]))
    np.testing.assert_array_equal(found[share <= hole.usual[1]], 0)
    assert (share <= hole.usual[1]).any()
    assert (np.diff(found[np.argsort(share)]) >= 0).all()
    assert found.max() > 0.1


def test_the_share_of_a_shape_in_a_mask_is_that_of_its_pixels():
    shape, allowed = np.zeros((SIDE, SIDE), bool), np.ones((SIDE, SIDE), bool)
    shape[10:14, 20:26] = True
    mask = np.zeros((SIDE, SIDE), bool)
    mask[:, 40:] = True
    search = Search(shape, allowed)
    by_shift = dict(zip(map(tuple, search.shifts.tolist()), search.share(mask).tolist(), strict=True))
    assert by_shift[0, 0] == pytest.approx(0, abs=1e-4)
    assert by_shift[0, 17] == pytest.approx(0.5, abs=1e-4)
    assert by_shift[3, 30] == pytest.approx(1, abs=1e-4)


def test_where_the_only_place_for_the_whole_is_odd_it_is_filled_in_pieces():
    tissue = disk(48, 48, 44)
    image = np.where(tissue, 1 + 0.1 * np.random.default_rng(0).standard_normal((1, SIDE, SIDE)), 0).astype(np.float32)
    region, only = disk(70, 48, 10), disk(17, 48, 11)
    dots = np.where(np.indices((SIDE, SIDE)).sum(axis=0) % 4 == 0, 1.0, 9.0).astype(np.float32)
    image[0][only] = dots[only]
    beside = np.abs(np.arange(SIDE) - 48)
    around = (beside > 15) & (beside <= 31)  # two columns, too narrow for the whole
    hole = Hole(image, region, only | (tissue & around & (np.arange(SIDE)[:, None] > 45)), tissue, 2)
    whole = Search(region, hole.healthy)
    assert len(whole.shifts)
    assert odd(whole, hole, image).min() > MUCH
    filled = infill("patch", hole, np.random.default_rng(0))
    assert np.ptp(filled[0][region]) < 3
