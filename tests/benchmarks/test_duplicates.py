"""The rate of false groups is measured on pictures that are unrelated, and true copies are among them."""

from __future__ import annotations

import numpy as np

from benchmarks import duplicates


def test_unrelated_pictures_are_seldom_put_together_and_copies_are_found():
    found = duplicates.measure(duplicates.fingerprints(240, copies=20), classes=4, copies=20)
    assert found["copies_found"] == "20 of 20"
    assert found["images_in_wrong_groups"] <= 0.06 * 240
    assert found["max_distance_bits"] <= 40
    assert found["max_distance_bits_neighbors"] is None


def test_drawn_pictures_differ_and_a_copy_is_the_same_picture():
    rng = np.random.default_rng(0)
    one, other = duplicates.draw(rng), duplicates.draw(rng)
    assert np.abs(np.asarray(one, float) - np.asarray(other, float)).mean() > 5
    again = duplicates.stored_again(one)
    assert again.size == (48, 48)
    small = np.asarray(one.resize((48, 48)), float)
    assert np.abs(np.asarray(again, float) - small).mean() < 5
