"""Measures of maps are ranked by maps that are made worse step by step."""

from __future__ import annotations

import numpy as np
import pytest

from scripts.certificate.map_measures import KINDS, MEASURES, degraded, phantom_maps, rank_measures, table


def test_degradations_start_at_the_map_and_end_at_what_they_say():
    own, other = np.zeros((8, 8)), np.zeros((8, 8))
    own[2, 2] = other[6, 6] = 1
    for kind in KINDS:
        np.testing.assert_allclose(degraded(kind, own, other, 0.0, np.random.default_rng(0)), own, atol=1e-9)
    np.testing.assert_array_equal(degraded("of another picture", own, other, 1.0, np.random.default_rng(0)), other)
    assert degraded("blurred", own, other, 1.0, np.random.default_rng(0)).max() < 0.1
    with pytest.raises(ValueError, match="got 'bent'"):
        degraded("bent", own, other, 1.0, np.random.default_rng(0))


def test_energy_in_the_tumor_ranks_every_degradation():
    found = rank_measures(*phantom_maps(12))
    assert set(found) == set(KINDS)
    assert min(found[kind]["tumor_energy"] for kind in KINDS) >= 0.9
    # A mean of the map relative to its own peak does not see where the rest lies.
    assert min(min(values.values()) for values in found.values()) < 0.9
    lines = table(found).splitlines()
    assert len(lines) == 1 + len(MEASURES)
    assert next(line for line in lines if line.startswith("tumor_energy")).endswith("yes")
