"""Where a map lies against a region: hand-computed values, and sides of a voxel that must not be exchanged."""

from __future__ import annotations

from itertools import permutations

import pytest
import torch
from scipy.spatial.distance import cdist

from scripts.explain.localization import REGION_MEASURES, energy, localized, ratio
from scripts.explain.measures import aggregate, case_measures, case_rows

SIDES = (1.0, 2.0, 5.0)


def at(*places: tuple[int, int, int], size: tuple[int, int, int] = (8, 6, 5)) -> torch.Tensor:
    made = torch.zeros(1, 1, *size, dtype=torch.double)
    for place in places:
        made[(0, 0, *place)] = 1
    return made


def found(maps: torch.Tensor, region: torch.Tensor, sides: tuple[float, ...] = SIDES) -> dict[str, float]:
    measured = localized(maps.double(), region != 0, torch.tensor([sides]))
    assert tuple(measured) == REGION_MEASURES
    return {name: float(value[0]) for name, value in measured.items()}


def test_distances_are_in_millimeters_along_each_axis_of_its_own():
    region = at((2, 1, 1), (3, 1, 1))
    peak = at((6, 5, 3))
    m = found(peak, region)
    assert m["peak_distance_mm"] == pytest.approx((3**2 + 8**2 + 10**2) ** 0.5)  # to (3, 1, 1)
    assert m["centroid_distance_mm"] == pytest.approx((3.5**2 + 8**2 + 10**2) ** 0.5)
    for other in set(permutations(SIDES)) - {SIDES}:
        wrong = found(peak, region, other)
        assert wrong["peak_distance_mm"] != pytest.approx(m["peak_distance_mm"], rel=0.02)
        assert wrong["centroid_distance_mm"] != pytest.approx(m["centroid_distance_mm"], rel=0.02)


def test_the_nearest_voxel_is_the_nearest_in_millimeters():
    """Three voxels along the first axis are nearer than one along the last."""
    assert found(at((4, 3, 2)), at((7, 3, 2), (4, 3, 3)))["peak_distance_mm"] == 3
    assert found(at((4, 3, 2)), at((7, 3, 2), (4, 3, 3)), (5.0, 2.0, 1.0))["peak_distance_mm"] == 1


def test_a_peak_inside_has_no_distance_and_several_have_the_mean_of_theirs():
    region = at((2, 1, 1), (3, 1, 1))
    assert found(region, region)["peak_distance_mm"] == 0
    assert found(at((3, 1, 1), (5, 1, 1)), region)["peak_distance_mm"] == 1


def test_a_map_that_is_the_same_everywhere_has_the_mean_distance_of_all_voxels():
    """So many places take another way to the same distances."""
    region = at((2, 7, 1), (3, 1, 9), size=(12, 20, 24))
    sides = torch.tensor(SIDES, dtype=torch.double)
    every, own = (torch.nonzero(mask[0, 0]) * sides for mask in (torch.ones_like(region), region))
    assert len(every) > 4096
    expected = cdist(every, own).min(axis=1).mean()
    assert found(torch.ones_like(region), region)["peak_distance_mm"] == pytest.approx(expected)


def test_rank_accuracy_counts_as_many_voxels_as_the_region_has():
    region = at((0, 0, 0), (0, 0, 1), (0, 0, 2), (0, 0, 3))
    maps = torch.zeros_like(region)
    maps[0, 0, 0, 0] = torch.tensor([9.0, 1.0, 8.0, 0.5, 0.0])
    maps[0, 0, 4, 0, :2] = torch.tensor([7.0, 6.0])
    assert found(maps, region)["rank_accuracy"] == pytest.approx(2 / 4)  # 9, 8 of 9, 8, 7, 6
    maps[0, 0, 4, 0, 1] = 1.0  # as strong as one of the region: one of the two is drawn
    assert found(maps, region)["rank_accuracy"] == pytest.approx(2.5 / 4)


def test_an_empty_map_is_a_miss_without_a_distance_and_a_region_that_is_not_there_is_not_measured():
    nothing, region = torch.zeros(1, 1, 8, 6, 5), at((2, 1, 1))
    m = found(nothing, region)
    assert [m[name] for name in ("energy", "pointing_game", "rank_accuracy")] == [0, 0, 0]
    assert m["peak_distance_mm"] != m["peak_distance_mm"]
    m = found(region, torch.zeros_like(region))
    assert m["area"] == 0
    assert all(m[name] != m[name] for name in REGION_MEASURES if name != "area")
    m = found(region, region, (float("nan"),) * 3)
    assert (m["energy"], m["rank_accuracy"]) == (1, 1)
    assert m["centroid_distance_mm"] != m["centroid_distance_mm"]


def test_rows_hold_every_region_and_their_means_are_over_the_cases_that_have_it():
    """The first region is the tumor; of the second case the core is missing."""
    whole = torch.cat([at((2, 1, 1), (3, 1, 1)), at((6, 4, 3))])
    core = torch.cat([at((3, 1, 1)), at()])
    maps = torch.cat([at((2, 1, 1), (3, 1, 1), (7, 5, 4)), at((0, 0, 0))])
    head = torch.ones_like(whole)
    measures = case_measures(
        maps, whole, head, pixel_mm=torch.tensor([SIDES] * 2), regions={"whole": whole, "core": core}
    )
    cases = [{"name": name, "source": "s", "patient": name} for name in "ab"]
    rows = case_rows(measures, cases, method="evidence", layer="l", target="t")
    assert [row["energy_whole"] for row in rows] == [row["tumor_energy"] for row in rows]
    assert [row["area_core"] for row in rows] == [1 / 240, 0]
    table = aggregate(rows)[0]
    assert table["regions"]["whole"]["n"] == 2
    assert table["regions"]["whole"]["peak_distance_mm"] == table["peak_distance_mm"]
    assert table["regions"]["core"]["n"] == 1
    assert table["regions"]["core"]["energy"] == pytest.approx(1 / 3)
    first, far = 1.0, (4**2 + 8**2 + 15**2) ** 0.5  # of the three peaks one lies in the core
    assert table["regions"]["core"]["peak_distance_mm"] == pytest.approx((first + 0 + far) / 3)
    assert (
        "regions"
        not in aggregate(case_rows(case_measures(maps, whole, head), cases, method="m", layer="l", target="t"))[0]
    )


def test_quotients_and_shares_by_hand():
    assert torch.equal(ratio(torch.tensor([1.0, 3.0]), torch.tensor([4.0, 1.0])), torch.tensor([0.25, 3.0]))
    assert ratio(torch.tensor([1.0, 0.0]), torch.tensor([0.0, 0.0])).isnan().all()
    shares = energy(torch.tensor([[[[1.0, 3.0]]], [[[0.0, 0.0]]]]), torch.tensor([[[[0, 1]]], [[[1, 1]]]]))
    assert shares[0] == 0.75
    assert shares[1].isnan()


def test_a_batch_of_pictures_by_hand():
    """Without a region, without a map, and with a size that is known of one axis alone."""
    maps = torch.tensor([[[[0.0, 2.0, 2.0]]], [[[0.0, 0.0, 0.0]]], [[[1.0, 0.0, 0.0]]], [[[1.0, 0.0, 3.0]]]]).double()
    region = torch.tensor([[[[1, 1, 0]]], [[[1, 0, 0]]], [[[0, 0, 0]]], [[[1, 1, 0]]]]) != 0
    mm = torch.tensor([[2.0, 3.0], [2.0, 3.0], [2.0, 3.0], [float("nan"), 3.0]])
    m = localized(maps, region, mm)
    nan = float("nan")
    for name, expected in {
        "energy": [0.5, 0.0, nan, 0.25],
        "area": [2 / 3, 1 / 3, 0.0, 2 / 3],
        "pointing_game": [0.5, 0.0, nan, 0.0],
        "rank_accuracy": [0.5, 0.0, nan, 0.5],  # the two strongest: 2 and 2 of one inside; 3 and 1
        "peak_distance_mm": [1.5, nan, nan, nan],  # 0 and one pixel of 3 mm
        "centroid_distance_mm": [3.0, nan, nan, nan],  # 1.5 against 0.5 pixels
    }.items():
        assert m[name].tolist() == pytest.approx(expected, nan_ok=True), name
    unknown = localized(maps, region)
    assert unknown["peak_distance_mm"].isnan().all()
    assert unknown["energy"].tolist() == pytest.approx(m["energy"].tolist(), nan_ok=True)


@pytest.mark.parametrize("count", [4095, 4096, 4097])
def test_many_places_have_the_same_distance_as_few(count):
    """All but the region's one pixel, to which the mean distance along a line is that of 1 to count."""
    maps = torch.ones(1, 1, 1, count + 1, dtype=torch.double)
    region = torch.zeros_like(maps).bool()
    region[..., 0] = True
    m = localized(maps, region, torch.tensor([[7.0, 0.5]]))
    assert float(m["peak_distance_mm"]) == pytest.approx(0.5 * count * (count + 1) / 2 / (count + 1))
