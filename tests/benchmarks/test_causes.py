"""Planted causes are named, and nothing is on a clean network; all of them by python -m benchmarks.causes."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from benchmarks.causes import __main__ as causes
from benchmarks.causes import pictures, plants
from benchmarks.causes.networks import ARCHITECTURES
from scripts.explain.diagnosis import CAUSES


def test_every_cause_is_planted_in_the_networks_in_which_it_makes_sense():
    assert {plant.cause for plant in plants.PLANTS.values()} == set(CAUSES)
    runs = sum(name not in plant.left_out for plant in plants.PLANTS.values() for name in ARCHITECTURES)
    assert (len(ARCHITECTURES), runs) == (7, len(plants.PLANTS) * 7 - 8)


@pytest.fixture(scope="module")
def few():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plants, "TRAINED_ON", 60)
        patch.setattr(plants, "LOOKED_AT", 24)
        yield


def test_narrow_frames_have_air_but_no_cell_of_it_and_wide_ones_have(few):
    narrow, wide = pictures.heads(7, 24), pictures.heads(7, 24, True)
    for given, cells_of_air in ((narrow, False), (wide, True)):
        assert bool((~given.foreground).flatten(1).any(1).all())
        head = F.max_pool2d(given.foreground.float(), pictures.CELL)
        assert bool((head == 0).any()) == cells_of_air
        assert bool((given.images[~given.foreground] == 0).all())
        assert all(bool(mask.any()) == (label > 0) for mask, label in zip(given.tumor, given.labels, strict=True))


def test_a_subset_is_named_exactly_and_the_matrix_says_so(few):
    torch.manual_seed(0)
    chosen = ["clean", "swapped colors", "masked, then normalized", "norm before activation", "another class's index"]
    rows = causes.rows_of([7], chosen, ["DenseNet"])
    assert [row["named"] for row in rows] == [
        [],
        ["swapped colors"],
        ["order of transforms"],
        ["wrong class index"],
        ["unsuitable layer"],
    ]
    assert rows[2]["consequences"]["air not zero"] == "order of transforms"
    printed = causes.table(rows)
    assert "4 of 4 runs with a planted cause exact (100.0%): it alone; 4 name it first" in printed
    assert "0 false alarms on 1 clean trained networks" in printed
    wrong = [
        {**rows[1], "named": ["coarse grid"], "exact": False},
        {**rows[0], "named": ["coarse grid"], "exact": False},
    ]
    assert "0 of 1 runs with a planted cause exact (0.0%)" in causes.table(wrong)
    assert "1 false alarms on 1 clean" in causes.table(wrong)
