"""Near pairs of few hashes against comparing each with each, in blocks and lots of any size."""

from __future__ import annotations

import numpy as np
import pytest

from scripts.data.datalists import near_pairs as module
from scripts.data.datalists.fingerprints import packed, standardized, thumbnails, unlikeness
from scripts.data.datalists.near_pairs import (
    chosen,
    copy_pairs,
    distances,
    indexed_pairs,
    joined,
    near_pairs,
    near_rows,
)


def hashes(count: int, bits: int = 64, seed: int = 0) -> np.ndarray:
    """Of few degrees of freedom, so that distances of all sizes are there."""
    rng = np.random.default_rng(seed)
    return rng.standard_normal((count, 3)) @ rng.standard_normal((3, bits)) > 0


LEFT, OTHER = hashes(41), hashes(41) ^ (np.random.default_rng(1).random((41, 64)) < 0.05)


def by_hand(left, right, limit, new=0):
    """A list of (first, second, bits); a pair that is near both ways round is there twice."""
    found = []
    for i in range(len(left)):
        for j in range(len(left)):
            bits = int((left[i] != (left if right is None else right)[j]).sum())
            if bits <= limit and max(i, j) >= new and (i < j if right is None else i != j):
                found.append((min(i, j), max(i, j), bits))
    return sorted(found)


def listed(pairs):
    return sorted(zip(*(part.tolist() for part in pairs), strict=True))


@pytest.mark.parametrize("block", [1, 7, 41, 512])
@pytest.mark.parametrize("new", [0, 1, 20, 40, 41])
@pytest.mark.parametrize("right", [None, OTHER])
def test_blocks_of_any_size_find_all_pairs(monkeypatch, block, new, right):
    monkeypatch.setattr(module, "_BLOCK", block)
    for limit in (0, 5, 5.5, 64):
        assert listed(near_pairs(LEFT, right, limit, new)) == by_hand(LEFT, right, limit, new)
    assert len(by_hand(LEFT, right, 5)) > 5, "too easy"


@pytest.mark.parametrize("lot", [7, 1 << 22])
@pytest.mark.parametrize("new", [0, 20])
@pytest.mark.parametrize("right", [None, OTHER])
def test_the_index_finds_them_by_lots_of_any_size(monkeypatch, lot, new, right):
    monkeypatch.setattr(module, "_AT_ONCE", lot)
    for limit in (1, 4, 13, 14, 15):
        assert listed(indexed_pairs(LEFT, right, limit, new)) == by_hand(LEFT, right, limit, new)


def test_parts_of_32_bits_are_the_longest_that_an_index_takes():
    same = np.zeros((3, 128), bool)
    same[1, :3] = True
    assert listed(indexed_pairs(same, None, 3)) == [(0, 1, 3), (0, 2, 0), (1, 2, 3)]
    with pytest.raises(ValueError, match="parts of more than 32 bits: 128 bits within 2"):
        indexed_pairs(same, None, 2)
    assert [len(part) for part in indexed_pairs(~np.eye(64, dtype=bool)[:1], None, 1)] == [0, 0, 0]


def test_some_rows_are_compared_with_all_others(monkeypatch):
    monkeypatch.setattr(module, "_BLOCK", 2)
    rows = np.array([3, 0, 17, 40, 5])
    expected = sorted(
        (int(i), j, int((LEFT[i] != OTHER[j]).sum()))
        for i in rows
        for j in range(41)
        if i != j and (LEFT[i] != OTHER[j]).sum() <= 9
    )
    assert len(expected) > 3
    assert listed(near_rows(LEFT, OTHER, rows, 9)) == expected


def test_distances_are_the_bits_that_differ():
    first, second = np.array([0, 5, 40]), np.array([1, 5, 2])
    found = distances(LEFT, OTHER, first, second)
    assert found.tolist() == [(LEFT[i] != OTHER[j]).sum() for i, j in zip(first, second, strict=True)]
    assert found.dtype == np.float64


def test_pairs_are_chosen_and_joined_in_order():
    pairs = (np.array([0, 1, 2]), np.array([3, 4, 5]), np.array([6.0, 7.0, 8.0]))
    few = chosen(pairs, np.array([True, False, True]))
    assert [part.tolist() for part in few] == [[0, 2], [3, 5], [6.0, 8.0]]
    assert [part.tolist() for part in joined(few, pairs)] == [[0, 2, 0, 1, 2], [3, 5, 3, 4, 5], [6, 8, 6, 7, 8]]


MOST = (0.02, 0.01)


@pytest.fixture(scope="module")
def drawn() -> np.ndarray:
    """30 thumbnails and copies of them, upright or mirrored; two show nothing."""
    rng = np.random.default_rng(2)
    gray = rng.integers(0, 256, (30, 2, 16, 16))
    copies = np.clip(gray + rng.integers(-6, 7, gray.shape), 0, 255)
    copies[:10, 0] = rng.integers(0, 256, (10, 16, 16))  # the head alone
    copies[:5, 1] = copies[:5, 1, ::-1, ::-1]
    copies[5:10, 1] = copies[5:10, 1, :, ::-1]
    copies[10:20, 1] = rng.integers(0, 256, (10, 16, 16))  # upright alone
    gray[20] = copies[21] = 7
    return packed(np.zeros((60, 5, 256), bool), np.concatenate([gray, copies]))


@pytest.mark.parametrize("new", [0, 30, 45, 60])
@pytest.mark.parametrize("fitted", [5000, 9])
def test_copies_are_found_by_the_components_of_any_thumbnails(monkeypatch, drawn, new, fitted):
    monkeypatch.setattr(module, "_FITTED", fitted)
    first, second = np.triu_indices(60, 1)
    copies = (unlikeness(drawn, first, second) <= MOST).any(axis=1) & (second >= new)
    found = copy_pairs(drawn, MOST, new)
    assert [part.tolist() for part in found] == [first[copies].tolist(), second[copies].tolist()]
    assert copies.sum() >= {0: 28, 30: 28, 45: 13, 60: 0}[new]


def test_pictures_that_show_nothing_are_copies_of_none(drawn):
    blank = drawn[[20, 20]].copy()
    assert np.isnan(standardized(thumbnails(blank))).all()
    assert [len(part) for part in copy_pairs(blank, MOST)] == [0, 0]
    assert np.isinf(unlikeness(blank, np.array([0]), np.array([1]))).all()
