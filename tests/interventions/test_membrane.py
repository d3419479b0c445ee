"""The solver against functions whose harmonic extension is known, and blends against what they must keep."""

from __future__ import annotations

import numpy as np
import pytest

from scripts.interventions.blend import BLENDS, blend
from scripts.interventions.membrane import laplacian, solve

Y, X = np.meshgrid(np.arange(40, dtype=np.float32), np.arange(44, dtype=np.float32), indexing="ij")
HOLE = np.hypot(Y - 20, X - 21) < 11
ALL = np.ones(HOLE.shape, bool)


@pytest.mark.parametrize("field", [0 * X + 3, 2 * X - Y, (X - 20) ** 2 - (Y - 20) ** 2, (X - 20) * (Y - 20)])
def test_a_harmonic_function_is_restored_from_its_rim(field):
    filled = solve(np.where(HOLE, -99, field)[None].astype(np.float32), HOLE, ALL)
    assert np.abs(filled[0] - field).max() <= 0.02 * max(1.0, np.ptp(field[HOLE]))
    np.testing.assert_array_equal(filled[0][~HOLE], field[~HOLE])


def test_a_given_laplacian_is_met():
    field = np.sin(X / 4) * np.cos(Y / 5)
    filled = solve(field[None].astype(np.float32), HOLE, ALL, laplacian(field[None].astype(np.float32), ALL))
    assert np.abs(filled[0] - field).max() < 0.07


def test_air_takes_no_part():
    tissue = X < 25
    filled = solve(np.where(tissue, 1.0, -50.0)[None].astype(np.float32), HOLE & tissue, tissue)
    np.testing.assert_allclose(filled[0][HOLE & tissue], 1.0, atol=1e-4)


def test_a_ramp_in_a_volume_is_restored():
    z = np.arange(16, dtype=np.float32)
    volume = np.broadcast_to(z, (20, 20, 16)).copy()
    hole = np.zeros(volume.shape, bool)
    hole[6:14, 6:14, 4:12] = True
    np.testing.assert_allclose(solve(volume[None], hole, np.ones_like(hole))[0], volume, atol=0.1)


@pytest.mark.parametrize("how", BLENDS)
def test_a_piece_equal_to_its_host_changes_nothing(how):
    host = np.sin(X / 6 + Y / 9)[None].astype(np.float32)
    np.testing.assert_allclose(blend(how, host, host, HOLE, ALL, 3), host, atol=1e-5)


def test_gradient_blends_take_away_an_offset_and_alpha_keeps_it():
    host = np.sin(X / 6)[None].astype(np.float32)
    lifted = {how: blend(how, host, host + 5, HOLE, ALL, 3)[0, 20, 21] - host[0, 20, 21] for how in BLENDS}
    assert lifted["alpha"] == pytest.approx(5, abs=1e-5)
    assert abs(lifted["membrane"]) < 0.05
    assert abs(lifted["poisson"]) < 0.05


def test_an_unknown_blend_is_refused():
    with pytest.raises(ValueError, match="one of alpha, membrane, poisson, got 'glue'"):
        blend("glue", X[None], X[None], HOLE, ALL, 3)
