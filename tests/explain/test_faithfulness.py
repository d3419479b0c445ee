from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from scripts.explain.faithfulness import (
    background_swap,
    deletion_insertion,
)
from scripts.explain.gradients import INPUT, saliency
from scripts.explain.targets import ClassMargin, ClassScore, TumorLogOdds
from tests.explain.nets import PooledLinear, assert_same_state, state_of
from tests.networks.nets import heads, tiny


class Weighted(nn.Module):
    """Logits [sum(weight * x), 0]."""

    def __init__(self, weight):
        super().__init__()
        self.weight = nn.Parameter(torch.as_tensor(weight))

    def forward(self, x):
        score = (x * self.weight).flatten(1).sum(1)
        return torch.stack([score, torch.zeros_like(score)], 1)


def test_curves_of_a_linear_network_by_hand():
    net = Weighted([[[4.0, 3.0, 2.0, 1.0]]])
    x = torch.ones(2, 1, 1, 4)
    maps = torch.tensor([[[[0.8, 0.4, 0.2, 0.1]]], [[[0.1, 0.2, 0.4, 0.8]]]])  # right, and the other way round
    curves = deletion_insertion(net, x, maps, ClassScore(0), steps=4, baseline=0.0, n_random=40)
    assert curves.share.tolist() == [0.0, 0.25, 0.5, 0.75, 1.0]
    assert curves.deletion.tolist() == [[10.0, 6.0, 3.0, 1.0, 0.0], [10.0, 9.0, 7.0, 4.0, 0.0]]
    assert curves.insertion.tolist() == [[0.0, 4.0, 7.0, 9.0, 10.0], [0.0, 1.0, 3.0, 6.0, 10.0]]
    auc = curves.auc()
    assert auc["deletion"].tolist() == [3.75, 6.25]
    assert auc["insertion"].tolist() == [6.25, 3.75]
    # A random order loses 2.5 a step on average: 5.
    torch.testing.assert_close(auc["random_deletion"], torch.tensor([5.0, 5.0]).double(), atol=0.4, rtol=0)
    torch.testing.assert_close(auc["deletion_gain"], auc["random_deletion"] - auc["deletion"])
    torch.testing.assert_close(auc["insertion_gain"], auc["insertion"] - auc["random_insertion"])
    assert auc["deletion_gain"][0] > 0.5 > -0.5 > auc["deletion_gain"][1]
    assert auc["insertion_gain"][0] > 0.5 > -0.5 > auc["insertion_gain"][1]
    # Deletion and insertion of the same order add up to the score, for a linear network.
    torch.testing.assert_close(curves.random_deletion + curves.random_insertion, torch.full((40, 2, 5), 10.0).double())
    assert not bool(curves.empty.any())


def test_only_the_foreground_is_deleted_and_the_baseline_takes_its_place():
    net = Weighted([[[4.0, 3.0, 2.0, 1.0]]])
    x = torch.tensor([[[[100.0, 1.0, 1.0, 4.0]]]])
    inside = torch.tensor([[[[0, 1, 1, 1]]]])
    maps = torch.tensor([[[[9.0, 0.1, 0.5, 0.2]]]])  # strongest in air: does not count
    # Order: third, fourth, second pixel; each becomes the foreground's mean 2.
    curves = deletion_insertion(net, x, maps, ClassScore(0), foreground=inside, steps=3, baseline="mean")
    assert curves.deletion.tolist() == [[409.0, 411.0, 409.0, 412.0]]
    assert curves.insertion.tolist() == [[412.0, 410.0, 412.0, 409.0]]


def test_ties_are_broken_at_random_and_not_by_position():
    net = Weighted(torch.ones(1, 8, 8) * torch.linspace(0, 1, 64).reshape(8, 8))
    x = torch.ones(1, 1, 8, 8)
    curves = deletion_insertion(net, x, torch.zeros(1, 1, 8, 8), ClassScore(0), baseline=0.0, n_random=8)
    auc = curves.auc()
    total = float(net(x)[0, 0].detach())
    assert abs(float(auc["deletion"]) / total - 0.5) < 0.08  # by position it would be 0.67
    assert curves.empty.tolist() == [True]


def test_coarse_maps_get_coarse_random_maps():
    net = Weighted(torch.ones(1, 8, 8))
    x = torch.randn(1, 1, 8, 8)
    fine = deletion_insertion(net, x, torch.rand(1, 1, 8, 8), ClassScore(0), baseline=0.0, seed=3)
    coarse = deletion_insertion(net, x, torch.rand(1, 1, 2, 2), ClassScore(0), baseline=0.0, seed=3)
    assert not torch.allclose(fine.random_deletion, coarse.random_deletion)


@pytest.mark.parametrize("dims", [2, 3])
def test_curves_of_a_batch_equal_single_ones_and_leave_the_network_alone(dims):
    network, x = tiny(dims), heads(dims, 24 if dims == 2 else 12)
    inside = (x != 0).float()
    maps = torch.rand(2, 1, *[6] * dims)
    arguments = {"forward_kwargs": {"output": "cls"}, "foreground_kwarg": "foreground", "steps": 4, "batch_size": 7}
    before = state_of(network)
    together = deletion_insertion(network, x, maps, TumorLogOdds(), foreground=inside, **arguments)
    assert_same_state(before, state_of(network))
    score = TumorLogOdds()(network(x, output="cls")).detach().double()
    torch.testing.assert_close(together.deletion[:, 0], score)
    torch.testing.assert_close(together.insertion[:, -1], score)
    torch.testing.assert_close(together.deletion[:, -1], together.insertion[:, 0])
    for i in range(2):
        part = slice(i, i + 1)
        alone = deletion_insertion(network, x[part], maps[part], TumorLogOdds(), foreground=inside[part], **arguments)
        torch.testing.assert_close(together.deletion[part], alone.deletion, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(together.random_insertion[:, part], alone.random_insertion, rtol=1e-4, atol=1e-4)


def test_a_map_of_what_the_network_counts_beats_chance():
    torch.manual_seed(0)
    weight = torch.zeros(1, 16, 16)
    weight[:, 4:8, 4:8] = 1.0
    net, x = Weighted(weight), torch.rand(1, 1, 16, 16) + 1
    maps = saliency(net, x, ClassMargin(0, 1)).maps["saliency", INPUT]
    auc = deletion_insertion(net, x, maps, ClassMargin(0, 1), baseline=0.0).auc()
    assert float(auc["deletion_gain"]) > 0.4 * float(net(x)[0, 0].detach())
    assert float(auc["insertion_gain"]) > 0.4 * float(net(x)[0, 0].detach())


def test_background_swap_by_hand():
    net = Weighted([[[1.0, 1.0, 1.0, 10.0]]])
    x = torch.tensor([[[[1.0, 2.0, 6.0, 0.0]]]])
    inside = torch.tensor([[[[1, 1, 1, 0]]]])
    swap = background_swap(net, x, inside, ClassScore(0))
    assert swap.score.tolist() == [9.0]
    assert swap.before_masking == {name: torch.tensor([0.0]) for name in ("darkest", "mean", "brightest", "noise")}
    noise = torch.randn(1, 1, 4, generator=torch.Generator().manual_seed(0))[0, 0, 3]
    std = math.sqrt((4 + 1 + 9) / 3)
    expected = {"darkest": 10.0, "mean": 30.0, "brightest": 60.0, "noise": 10 * (3 + std * float(noise))}
    assert {k: float(v) for k, v in swap.after_masking.items()} == pytest.approx(expected, rel=1e-5)
    broken = background_swap(net, x, inside, ClassScore(0), mask=lambda image, _: image)
    assert float(broken.before_masking["mean"]) == 30.0
    with pytest.raises(ValueError, match="has no air"):
        background_swap(net, x, torch.ones(1, 1, 1, 4), ClassScore(0))


def test_our_network_keeps_to_the_foreground_it_is_given():
    network, x = tiny(), heads()
    inside = (x != 0).float()
    found = {"output": "cls"}
    given = background_swap(network, x, inside, TumorLogOdds(), found, "foreground")
    assert all(float(v.abs().max()) < 1e-5 for v in (*given.before_masking.values(), *given.after_masking.values()))

    read = background_swap(network, x, inside, TumorLogOdds(), found)  # reads it off the image
    assert all(float(v.abs().max()) < 1e-5 for v in read.before_masking.values())
    assert all(float(v.abs().max()) > 1e-2 for v in read.after_masking.values())


def test_errors():
    net, x = PooledLinear(), torch.randn(2, 1, 6, 6)
    maps = torch.rand(2, 1, 6, 6)
    with pytest.raises(ValueError, match="steps >= 1"):
        deletion_insertion(net, x, maps, ClassScore(0), steps=0)
    with pytest.raises(ValueError, match="1 maps for a batch of 2"):
        deletion_insertion(net, x, maps[:1], ClassScore(0))
    with pytest.raises(FloatingPointError, match="NaN or infinite"):
        deletion_insertion(net, x, maps * torch.nan, ClassScore(0))


def test_one_step_and_one_random_map_are_enough_and_fewer_none():
    net, x = Weighted([[[4.0, 3.0, 2.0, 1.0]]]), torch.ones(1, 1, 1, 4)
    maps = torch.rand(1, 1, 1, 4)
    curves = deletion_insertion(net, x, maps, ClassScore(0), steps=1, n_random=1, baseline=0.0)
    assert (curves.share.tolist(), curves.deletion.tolist()) == ([0.0, 1.0], [[10.0, 0.0]])
    assert curves.random_insertion.tolist() == [[[0.0, 10.0]]]
    for options in ({"steps": 0}, {"n_random": 0}):
        with pytest.raises(ValueError, match="expected steps >= 1 and n_random >= 1"):
            deletion_insertion(net, x, maps, ClassScore(0), **options)
    first, again = (deletion_insertion(net, x, maps, ClassScore(0), baseline=0.0) for _ in range(2))
    assert torch.equal(first.random_deletion, again.random_deletion)
    other = deletion_insertion(net, x, maps, ClassScore(0), baseline=0.0, seed=1)
    assert not torch.equal(first.random_deletion, other.random_deletion)
    assert (first.deletion.shape[1], len(first.random_deletion)) == (len(first.share), 3)


def test_shares_of_a_foreground_that_steps_do_not_divide_are_rounded():
    net, x = Weighted([[[5.0, 4.0, 3.0, 2.0, 1.0]]]), torch.ones(1, 1, 1, 5)
    maps = torch.tensor([[[[5.0, 4.0, 3.0, 2.0, 1.0]]]])
    curves = deletion_insertion(net, x, maps, ClassScore(0), steps=4, baseline=0.0)
    # 1.25, 2.5 (to the even 2) and 3.75 pixels.
    assert curves.deletion.tolist() == [[15.0, 10.0, 6.0, 1.0, 0.0]]


def test_values_below_zero_are_ties_with_zero():
    net, x = Weighted(torch.ones(1, 8, 8) * torch.linspace(0, 1, 64).reshape(8, 8)), torch.ones(1, 1, 8, 8)
    flat = deletion_insertion(net, x, torch.zeros(1, 1, 8, 8), ClassScore(0), baseline=0.0)
    below = deletion_insertion(net, x, -torch.rand(1, 1, 8, 8), ClassScore(0), baseline=0.0)
    assert torch.equal(flat.deletion, below.deletion)
    assert below.empty.tolist() == [True]


def test_air_of_several_channels_gets_the_values_of_each():
    net = Weighted([[[0.0, 0.0, 1.0]], [[0.0, 0.0, 100.0]]])
    x = torch.tensor([[[[1.0, 3.0, 0.0]], [[5.0, 9.0, 0.0]]]])
    inside = torch.tensor([[[[1, 1, 0]]]])
    swap = background_swap(net, x, inside, ClassScore(0))
    noise = torch.randn(2, 1, 3, generator=torch.Generator().manual_seed(0))[:, 0, 2]
    expected = {
        "darkest": 1 + 500.0, "mean": 2 + 700.0, "brightest": 3 + 900.0,
        "noise": 2 + float(noise[0]) + 100 * (7 + 2 * float(noise[1])),
    }  # fmt: skip
    assert {k: float(v) for k, v in swap.after_masking.items()} == pytest.approx(expected, rel=1e-5)
    other = background_swap(net, x, inside, ClassScore(0), seed=1)
    assert other.after_masking["noise"] != swap.after_masking["noise"]
