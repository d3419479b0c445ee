"""Items are drawn in proportion and corners are found, for what looks for shortcuts."""

from __future__ import annotations

from scripts.measures.shortcuts import corners, subsample


def test_a_subset_keeps_the_proportions_and_depends_on_the_seed():
    items = [{"image": str(k), "source": "a" if k < 80 else "b", "diagnosis": k % 2} for k in range(100)]
    chosen = subsample(items, 20)
    assert len(chosen) == 20
    assert sum(item["source"] == "b" for item in chosen) == 4
    assert sum(item["diagnosis"] for item in chosen) == 10
    assert subsample(items, 20) == chosen
    assert subsample(items, 20, seed=1) != chosen
    assert subsample(items, 100) == subsample(items, None) == items


def test_corners_of_a_plane_have_their_own_side_along_each_axis():
    near = corners((5, 4), (2, 1))
    assert near.astype(int).tolist() == [[1, 0, 0, 1], [1, 0, 0, 1], [0, 0, 0, 0], [1, 0, 0, 1], [1, 0, 0, 1]]
    assert corners((5, 4, 3), (2, 1)).all(2).tolist() == near.tolist()
