"""The learned infill: what its network sees and gives back, on planes of any size."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from scripts.interventions.infill import Hole, surface
from scripts.interventions.learned import (
    SIZE,
    Plane,
    Square,
    expected,
    learned,
    like_healthy,
    make_network,
    planes,
    trained_network,
)
from scripts.interventions.regions import grow, inner
from tests.interventions.heads import pair


def hole_of(seed: int = 1, three_d: bool = False) -> Hole:
    head = pair(seed, 3)[0] if three_d else pair(seed)[0]
    region = grow(head.mask, 3) & head.foreground
    return Hole(head.image, region, inner(head.foreground) & ~region, head.foreground, 3)


class Nothing(torch.nn.Module):
    """A network that adds nothing to the surface."""

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return torch.zeros_like(inputs[:, :1])


def test_the_weights_are_small_and_fit_the_network():
    network = trained_network()
    assert not network.training
    assert sum(p.numel() for p in network.parameters()) == sum(p.numel() for p in make_network().parameters())
    assert all(torch.isfinite(p).all() for p in network.parameters())


@pytest.mark.parametrize("shape", [(160, 160), (96, 70), (300, 210)])
def test_a_plane_goes_into_the_square_and_comes_back(shape):
    foreground = np.zeros(shape, bool)
    foreground[shape[0] // 8 : -shape[0] // 8, shape[1] // 6 : -shape[1] // 6] = True
    x, y = np.meshgrid(np.linspace(0, 3, shape[0]), np.linspace(0, 2, shape[1]), indexing="ij")
    values = (np.sin(x) + np.cos(y)).astype(np.float32)[None]
    square = Square(foreground)
    there = square.take(values)
    assert there.shape == (1, SIZE, SIZE)
    back = square.give(there, shape)
    assert not back[:, ~foreground].any()
    np.testing.assert_allclose(back[:, foreground], values[:, foreground], atol=0.03)


def test_what_the_network_should_answer_gives_the_plane_back():
    hole = hole_of()
    truth = pair(1)[1].image  # the same head without its tumor
    ((k, plane),) = planes(hole, surface(hole))
    assert k == 0
    assert plane.inputs.shape == (1, 2, SIZE, SIZE)
    answer = plane.difference(truth)
    restored = plane.filled + plane.square.give(answer[:, 0], hole.whole.shape[1:]) * plane.spread
    before = np.abs(plane.filled - truth)[:, hole.whole_region].mean()
    assert np.abs(restored - truth)[:, hole.whole_region].mean() < 0.5 * before


def test_a_network_that_answers_nothing_leaves_the_surface():
    hole = hole_of()
    np.testing.assert_array_equal(expected(hole, Nothing()), surface(hole))


def test_what_tissue_adds_is_what_was_left_out_at_a_healthy_place():
    """Of a head of one gray value nothing is left out anywhere; of one with grain, its grain."""
    hole = hole_of()
    plane = np.where(hole.foreground, 2, 0).astype(np.float32)[None]
    flat = Hole(plane, hole.whole_region, hole.healthy, hole.foreground, 3)
    made = like_healthy(flat, np.random.default_rng(0), Nothing())
    np.testing.assert_allclose(made[:, flat.region], 2, atol=1e-4)
    noisy = np.where(hole.foreground, plane + np.random.default_rng(1).normal(0, 0.2, plane.shape), 0)
    rough = Hole(noisy.astype(np.float32), hole.whole_region, hole.healthy, hole.foreground, 3)
    deep = hole.region & ~grow(~hole.region, 5)
    added = like_healthy(rough, np.random.default_rng(0), Nothing()) - surface(rough)
    assert 0.14 < float(added[:, deep].std()) < 0.32  # the grain of the head, not a smooth surface


def test_gain_and_offset_of_the_picture_change_nothing_but_gain_and_offset():
    hole = hole_of()
    tissue = hole.foreground
    brighter = np.where(tissue, hole.whole * np.float32(40) + np.float32(7), 0).astype(np.float32)
    same = Hole(brighter, hole.whole_region, hole.healthy, tissue, hole.seam)
    first, second = (learned(h, np.random.default_rng(5)) for h in (hole, same))
    np.testing.assert_allclose(second[:, hole.region], first[:, hole.region] * 40 + 7, rtol=2e-3, atol=0.05)


def test_volumes_are_filled_slice_by_slice():
    hole = hole_of(three_d=True)
    found = dict(planes(hole, surface(hole)))
    assert list(found) == np.flatnonzero(hole.whole_region.any(axis=(0, 1))).tolist()
    filled = hole.placed(surface(hole))
    k = next(iter(found))
    alone = Plane.of(filled[..., k], hole.whole_region[..., k], hole.foreground[..., k])
    assert torch.equal(alone.inputs, found[k].inputs)
