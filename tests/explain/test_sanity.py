"""Whether maps depend on the weights and not on noise: similarity, cascading randomization, stability."""

from __future__ import annotations

import math

import pytest
import torch
from scipy.stats import spearmanr
from skimage.metrics import structural_similarity
from torch import nn

from scripts.explain.sanity import cascading_randomization, map_similarity, stability
from scripts.explain.targets import ClassMargin, TumorLogOdds
from tests.explain.nets import PooledLinear, assert_same_state, cam_maps, state_of
from tests.networks.nets import heads, tiny


def test_similarity_equals_scipy_and_skimage():
    torch.manual_seed(0)
    a, b = torch.rand(2, 1, 12, 10), torch.rand(2, 1, 12, 10)
    b[1] = a[1] * 3
    inside = torch.ones(2, 1, 12, 10)
    inside[0, :, :3] = 0
    found = map_similarity(a, b, (12, 10), inside)
    where = inside[0, 0].bool()
    expected = spearmanr(a[0, 0][where].numpy(), b[0, 0][where].numpy()).statistic
    assert float(found["rank_correlation"][0]) == pytest.approx(expected)
    first, second = (m[0, 0].double().numpy() / float(m[0].max()) for m in (a, b))
    _, local = structural_similarity(first, second, data_range=1.0, full=True)
    assert float(found["ssim"][0]) == pytest.approx(float(local[where.numpy()].mean()), abs=1e-6)
    assert float(found["rank_correlation"][1]) == pytest.approx(1.0)
    assert float(found["ssim"][1]) == pytest.approx(1.0)
    assert float(map_similarity(a, -a, (12, 10))["rank_correlation"][0]) == pytest.approx(-1.0)


def test_similarity_of_an_empty_map_is_not_a_number():
    found = map_similarity(torch.zeros(1, 1, 8, 8), torch.rand(1, 1, 4, 4), (8, 8))
    assert math.isnan(float(found["rank_correlation"]))
    assert math.isnan(float(found["ssim"]))


def test_cascade_randomizes_from_the_output_and_only_a_copy():
    torch.manual_seed(0)
    net, x = PooledLinear(), torch.randn(2, 1, 12, 12)
    before, seen = state_of(net), []

    def explainer(model, images):
        seen.append({k: v.clone() for k, v in model.state_dict().items()})
        return cam_maps(model, images, "relu", ClassMargin(1, 0), "hirescam", signed=True)["hirescam", "relu"]

    state = torch.get_rng_state()
    stages = cascading_randomization(net, x, explainer, stages=2)
    assert torch.equal(torch.get_rng_state(), state)
    assert_same_state(before, state_of(net))
    assert [stage.layers for stage in stages] == [(), ("fc",), ("conv",)]
    assert all(torch.equal(seen[1][k], before["tensors"][k]) for k in seen[1])
    assert torch.equal(seen[2]["conv.weight"], before["tensors"]["conv.weight"])
    assert not torch.equal(seen[2]["fc.weight"], before["tensors"]["fc.weight"])
    assert not torch.equal(seen[3]["conv.weight"], before["tensors"]["conv.weight"])
    assert stages[0].rank_correlation.tolist() == pytest.approx([1.0, 1.0])
    assert stages[0].ssim.tolist() == pytest.approx([1.0, 1.0])
    assert float(stages[2].rank_correlation.abs().max()) < 0.9
    again = cascading_randomization(net, x, explainer, stages=2)
    assert torch.equal(again[2].rank_correlation, stages[2].rank_correlation)
    other = cascading_randomization(net, x, explainer, stages=2, seed=1)
    assert not torch.equal(other[2].rank_correlation, stages[2].rank_correlation)


def test_a_map_that_ignores_the_network_is_found_out():
    net, x = PooledLinear(), torch.randn(2, 1, 12, 12)
    edges = lambda _, images: (images - images.roll(1, -1)).abs()  # noqa: E731
    for stage in cascading_randomization(net, x, edges, stages=["fc", "conv"]):
        assert stage.rank_correlation.tolist() == pytest.approx([1.0, 1.0])
    with pytest.raises(ValueError, match=r"no module \['fcc'\]"):
        cascading_randomization(net, x, edges, stages=["fcc"])


def test_randomized_weights_leave_running_statistics_alone():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 2, 3, padding=1), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(288, 2)).eval()
    net[1].running_mean.fill_(3.0)  # which its own reset_parameters sets to 0
    net[1].running_var.fill_(5.0)
    seen = []

    def explainer(model, images):
        seen.append((model[0].weight.clone(), model[1].running_mean.tolist(), model[1].running_var.tolist()))
        return images * model[0].weight[0, 0, 1, 1]

    cascading_randomization(net, torch.randn(1, 1, 12, 12), explainer, stages=3)
    assert not torch.equal(seen[-1][0], net[0].weight)
    assert all((mean, variance) == ([3.0, 3.0], [5.0, 5.0]) for _, mean, variance in seen)


def test_cascade_of_our_network_covers_every_weight_and_keeps_buffers():
    network, x = tiny(), heads()
    network.threshold.fill_(0.3)
    states = []

    def explainer(model, images):
        states.append({k: v.clone() for k, v in model.state_dict().items()})
        maps = cam_maps(model, images, None, TumorLogOdds(), "gradcam", {"output": "cls"}, cancelled="empty")
        return next(iter(maps.values()))

    stages = cascading_randomization(network, x, explainer, 4, {"output": "cls"}, x != 0)
    assert len(stages) == 5
    assert stages[1].layers[0].startswith("head")
    assert stages[-1].layers[-1].startswith("input_block")
    last = states[-1]
    for name, first in network.state_dict().items():
        if name in ("threshold", "temperature"):
            assert torch.equal(last[name], first)
        elif name.startswith(("input_block", "downsamples", "bottleneck", "head")) and first.numel() > 1:
            assert not torch.equal(last[name], first), name
    assert float(stages[0].rank_correlation.min()) == pytest.approx(1.0)
    assert float(stages[-1].rank_correlation.nan_to_num(0).max()) < 0.9


def test_stability_by_hand_and_of_a_batch():
    x = torch.rand(2, 1, 8, 8) + 1
    inside = torch.ones(2, 1, 8, 8)
    inside[..., :2] = 0
    seen = []

    def explainer(_, images):
        seen.append(images)
        return images[:, :1]

    result = stability(nn.Identity(), x, explainer, inside, noise_std=0.1, n_copies=3, seed=5)
    generator = torch.Generator().manual_seed(5)
    for copy in seen[1:]:
        noise = torch.randn(1, 8, 8, generator=generator)
        for b in range(2):
            std = x[b][inside[b] == 1].std(correction=0)
            torch.testing.assert_close(copy[b], x[b] + 0.1 * std * noise * inside[b])
    first = x / x.amax((1, 2, 3), keepdim=True)
    changes = [
        ((c / c.amax((1, 2, 3), keepdim=True) - first).flatten(1).norm(dim=1) / first.flatten(1).norm(dim=1))
        for c in seen[1:]
    ]
    torch.testing.assert_close(result.largest_change, torch.stack(changes).amax(0).double(), rtol=1e-4, atol=1e-6)
    assert result.rank_correlation.shape == (3, 2)
    assert 0.9 < float(result.rank_correlation.min()) < 1.0
    alone = stability(nn.Identity(), x[1:], explainer, inside[1:], noise_std=0.1, n_copies=3, seed=5)
    torch.testing.assert_close(alone.largest_change, result.largest_change[1:])
    still = stability(nn.Identity(), x, lambda _, images: torch.ones_like(images) * images[:, :, :1, :1].round())
    assert float(still.largest_change.max()) == 0


@pytest.mark.parametrize(("size", "window"), [((5, 9), 5), ((6, 9), 5), ((3, 4), 3), ((8, 20), 7)])
def test_similarity_on_small_grids_takes_the_largest_odd_window_that_fits(size, window):
    a, b = torch.rand(2, 1, 1, *size)
    found = map_similarity(a, b, size)
    first, second = (m[0, 0].double().numpy() / float(m.max()) for m in (a, b))
    _, local = structural_similarity(first, second, win_size=window, data_range=1.0, full=True)
    assert float(found["ssim"]) == pytest.approx(float(local.mean()), abs=1e-6)


def test_similarity_where_there_is_no_window_and_of_a_map_that_is_constant():
    found = map_similarity(torch.rand(1, 1, 2, 8), torch.rand(1, 1, 2, 8), (2, 8))
    assert math.isnan(float(found["ssim"]))
    assert abs(float(found["rank_correlation"])) < 1
    constant = map_similarity(torch.ones(1, 1, 8, 8), torch.rand(1, 1, 8, 8), (8, 8))
    assert math.isnan(float(constant["rank_correlation"]))
    assert 0 < float(constant["ssim"]) < 1
    both = map_similarity(torch.rand(2, 1, 8, 8), torch.cat([-torch.ones(1, 1, 8, 8), torch.rand(1, 1, 8, 8)]), (8, 8))
    assert both["ssim"].isnan().tolist() == [True, False]


def by_weight(name):
    """Maps of the image times one weight of a layer, so that they change with it alone."""
    return lambda model, images: images * model.get_submodule(name).weight.flatten()[0]


def chain():
    """Three layers with weights, of which the second runs last."""
    net = nn.Sequential(nn.Conv2d(1, 2, 1), nn.Conv2d(2, 2, 1), nn.Conv2d(2, 1, 1))
    net.forward = lambda x: net[1](net[0](x))
    return net


def test_layers_are_split_into_stages_in_the_order_in_which_they_run():
    net, x = chain(), torch.rand(1, 1, 8, 8)
    explainer = lambda model, images: images  # noqa: E731
    for stages, expected in ((1, [("1", "0")]), (2, [("1",), ("0",)]), (6, [("1",), ("0",)])):
        assert [stage.layers for stage in cascading_randomization(net, x, explainer, stages)] == [(), *expected]
    net.train()
    assert [s.layers for s in cascading_randomization(net, x, explainer, ["2", "0"])] == [(), ("2",), ("0",)]
    for stages, wrong in ((0, net), (3, nn.ReLU())):
        with pytest.raises(ValueError, match="stages: expected 1 or more"):
            cascading_randomization(wrong, x, explainer, stages)


def test_empty_maps_are_told_stage_by_stage():
    net = nn.Sequential(nn.Conv2d(1, 1, 1, bias=False))
    nn.init.constant_(net[0].weight, 2.0)
    positive = lambda model, images: images * (model[0].weight.flatten()[0] == 2.0)  # noqa: E731
    stages = cascading_randomization(net, torch.rand(2, 1, 8, 8) + 0.1, positive, 1)
    assert [stage.empty.tolist() for stage in stages] == [[False, False], [True, True]]


class Scale(nn.Module):
    """Parameters without a way to draw them again, and a buffer."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.linspace(4.0, 6.0, 10000))
        self.one, self.two = nn.Parameter(torch.tensor([3.0])), nn.Parameter(torch.tensor([1.0, 5.0]))
        self.register_buffer("seen", torch.tensor([7.0]))

    def forward(self, x):
        return x * self.weight[0] * self.one


def test_parameters_without_a_way_to_draw_them_keep_their_mean_and_deviation():
    net, drawn, pairs = Scale(), [], []

    def explainer(model, images):
        drawn.append((model.weight.detach().clone(), float(model.one.detach()), float(model.seen)))
        pairs.append(model.two.detach().clone())
        return images

    cascading_randomization(net, torch.rand(1, 1, 8, 8), explainer, [""])
    weight, one, seen = drawn[-1]
    assert not torch.equal(weight, net.weight)
    assert float(weight.mean()) == pytest.approx(5.0, abs=0.05)
    assert float(weight.std()) == pytest.approx(float(net.weight.std()), rel=0.05)
    assert not torch.equal(pairs[-1], net.two), "two values have one"
    assert (one, seen) == (3.0, 7.0), "one value has no deviation, and a buffer is no weight"


class Windowed(nn.Module):
    """Takes images of its window alone, and says so of larger ones."""

    window = (4, 4)

    def __init__(self):
        super().__init__()
        self.conv, self.fc = nn.Conv2d(1, 2, 3, padding=1), nn.Linear(32, 2)

    def in_windows(self, x):
        return tuple(x.shape[2:]) != self.window

    def forward(self, x):
        assert x.shape == (1, 1, *self.window)
        assert bool((x != 0).all()), "the window lies where the head is"
        return self.fc(self.conv(x).flatten(1))


def test_the_order_of_a_network_of_windows_is_that_of_one():
    x = torch.zeros(2, 1, 8, 12)
    x[:, :, 3:7, 6:10] = 1.0 + torch.rand(2, 1, 4, 4)
    stages = cascading_randomization(Windowed(), x, lambda model, images: images, 6)
    assert [stage.layers for stage in stages] == [(), ("fc",), ("conv",)]


def test_stability_without_options_is_repeatable_and_refuses_what_is_no_noise():
    x = torch.rand(2, 1, 8, 8)
    explainer = lambda _, images: images  # noqa: E731
    first, again = (stability(nn.Identity(), x, explainer) for _ in range(2))
    assert torch.equal(first.rank_correlation, again.rank_correlation)
    assert 0.9 < float(first.ssim.min()) < 1
    empty = stability(nn.Identity(), x, lambda _, images: -images)
    assert empty.largest_change.isnan().all()
    for options in ({"noise_std": 0.0}, {"noise_std": -0.1}, {"n_copies": 0}):
        with pytest.raises(ValueError, match="noise_std > 0 and n_copies >= 1"):
            stability(nn.Identity(), x, explainer, **options)
    assert stability(nn.Identity(), x, explainer, n_copies=1).rank_correlation.shape == (1, 2)
