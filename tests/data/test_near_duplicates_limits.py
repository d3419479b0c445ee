"""The distances within which images are linked, at their boundaries."""

from __future__ import annotations

import numpy as np
import pytest

from scripts.data.datalists.fingerprints import packed
from scripts.data.datalists.near_duplicates import (
    CLOSE_DISTANCE,
    MAX_DISTANCE_PATIENTS,
    MAX_GROUP,
    TURNED_SHARE,
    _safe_limit,
    close_to_training,
    group_near_duplicates,
    places,
)


def flipped(hashes: np.ndarray, *numbers: int) -> np.ndarray:
    """One hash (bits,) with the first so many bits turned, a row a number."""
    rows = np.tile(hashes, (len(numbers), 1))
    for row, number in zip(rows, numbers, strict=True):
        row[:number] ^= True
    return rows


BASE = np.random.default_rng(0).integers(0, 2, 256).astype(bool)


def groups(hashes, *args, **options) -> list[int]:
    return group_near_duplicates(hashes, *args, **options)[0].tolist()


def test_two_known_patients_are_joined_as_copies_alone():
    hashes = flipped(BASE, 0, MAX_DISTANCE_PATIENTS)
    both = np.array([1, 2])
    assert groups(hashes, people=both) == [0, 0]
    assert groups(flipped(BASE, 0, MAX_DISTANCE_PATIENTS + 1), people=both) == [0, 1]
    for people in ([1, 1], [-1, 2], [1, -1], [-1, -1]):
        assert groups(flipped(BASE, 0, MAX_DISTANCE_PATIENTS + 1), people=np.array(people)) == [0, 0], people


def test_turned_heads_count_by_their_share_and_not_of_two_known_patients():
    views = np.random.default_rng(1).integers(0, 2, (2, 5, 256)).astype(bool)
    for bits, expected in ((36, [0, 0]), (37, [0, 1])):
        views[1, 4] = views[0, 1]
        views[1, 4, :bits] ^= True
        assert groups(views) == expected
    views[1, 4] = views[0, 1]
    assert groups(views, people=np.array([1, 2])) == [0, 1]
    assert groups(views, people=np.array([1, -1])) == [0, 0]
    used = group_near_duplicates(views, 20)[1]
    assert (used.upright, used.turned, used.neighbors) == (20, 20 * TURNED_SHARE, None)


def test_the_largest_group_of_few_images_is_of_twenty():
    for count in (MAX_GROUP, MAX_GROUP + 1):
        hashes = np.zeros((count, 256), bool)
        for k in range(count):
            hashes[k, : 8 * k] = True
        found, used = group_near_duplicates(hashes, 8)
        assert (len(set(found.tolist())), used.upright) == ((1, 8) if count == MAX_GROUP else (count, 0))
    # Copies stay together whatever the distance.
    assert groups(np.zeros((30, 256), bool)) == [0] * 30
    assert groups(np.eye(30, 256, dtype=bool), 0, same=np.zeros(30, int)) == [0] * 30


@pytest.mark.parametrize("wrong", [-1, 257])
def test_a_distance_is_from_0_to_all_bits(wrong):
    with pytest.raises(ValueError, match=f"max_distance must be from 0 to 256 bits, got {wrong}"):
        group_near_duplicates(BASE[None], wrong)
    assert groups(flipped(BASE, 0, 256), 256) == [0, 0]
    assert groups(BASE[None], 0) == [0]
    for shape in ((0, 256), (256,)):
        with pytest.raises(ValueError, match="N >= 1"):
            group_near_duplicates(np.zeros(shape, bool))


def test_the_safe_distance_is_lowered_until_few_unrelated_pairs_are_within_its_last_step():
    def bits(**counts: int) -> np.ndarray:
        return np.repeat([int(name[1:]) for name in counts], list(counts.values()))

    assert _safe_limit(np.array([]), 40, 0.5) == 40
    assert _safe_limit(bits(b38=3), 40, 3) == 40
    assert _safe_limit(bits(b38=4), 40, 3) == 36, "half a step lower"
    assert _safe_limit(bits(b38=8, b30=2), 40, 3) == 40, "four times as many as in the step before"
    assert _safe_limit(bits(b38=9, b30=2), 40, 3) == 36
    assert _safe_limit(bits(b40=4, b32=0), 40, 3) == 36, "the limit itself is within"
    assert _safe_limit(bits(b32=99, b24=1), 40, 3) == 40, "what lies before the last step is its own matter"
    assert _safe_limit(bits(b41=99), 40, 3) == 40
    assert _safe_limit(bits(b0=99), 6, 3) == 0
    assert _safe_limit(bits(b5=9)[::-1], 6, 3) == 2


def test_test_images_close_to_training_are_counted_at_the_distance_itself():
    sides = ["training", "test", "test", "validation", "test"]
    hashes = np.concatenate([flipped(BASE, 0, CLOSE_DISTANCE, CLOSE_DISTANCE + 1, 0), ~BASE[None]])[:, None]
    assert close_to_training(hashes, sides) == round(1 / 3, 4)
    assert close_to_training(hashes, sides, [True, True, False, False, False]) == 0.0, "two known patients"
    assert close_to_training(hashes, sides, [True, False, True, True, True]) == round(1 / 3, 4)
    assert close_to_training(hashes, ["training"] * 5) is None
    assert close_to_training(hashes, ["test"] * 5) is None
    views = np.random.default_rng(3).integers(0, 2, (2, 5, 256)).astype(bool)
    for bits, share in ((43, 1.0), (44, 0.0)):  # 0.9 of 48 is 43.2
        views[1, 2] = views[0, 1]
        views[1, 2, :bits] ^= True
        assert close_to_training(views, ["training", "test"]) == share
        assert close_to_training(views, ["test", "training"]) == share
    views[1, 2] = views[0, 1]
    assert close_to_training(packed(views, np.zeros((2, 2, 16, 16))), ["training", "test"]) == 1.0


def test_files_have_places_by_number_with_gaps_between_folders():
    found = places([["a/p10.png", "a/p9.png", "a/P9b2.png"], ["b/x.png", "b/1.png"]])
    assert sorted(found, key=found.__getitem__)[-2:] == ["b/1.png", "b/x.png"]
    assert found["a/p10.png"] == found["a/p9.png"] + 1
    assert min(found.values()) == 1000
    assert found["b/1.png"] - max(found[name] for name in found if name[0] == "a") == 1000
    assert places([]) == {}
