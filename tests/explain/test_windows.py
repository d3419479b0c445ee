"""Maps of a sliding window, one window at a time, equal the same computation in one piece."""

from __future__ import annotations

import pytest
import torch
from monai.inferers import SlidingWindowInferer
from monai.networks.nets import DynUNet
from torch import nn

from scripts.explain.layers import LayerError
from scripts.explain.maps import upsample
from scripts.explain.methods import explain
from scripts.explain.targets import SegmentationRegion
from scripts.explain.windows import answers_in_windows, explain_windows, nnunet_inferer, window_around
from tests.explain.nets import assert_same_state, state_of


def net(dims=2):
    torch.manual_seed(0)
    return DynUNet(dims, 1, 2, [3, 3, 3], [1, 2, 2], [2, 2], filters=[4, 6, 8]).eval()


class Last:
    """Keeps what the last layer but one put out in each window, in a graph that spans all windows."""

    def __init__(self, network, layer, axes):
        self.network, self.layer, self.flips = network, layer, axes
        self.kept, self.places = [], []

    def __call__(self, window, places):
        found = []
        for axes in self.flips:
            kept = []
            hook = self.network.get_submodule(self.layer).register_forward_hook(lambda _m, _a, o, k=kept: k.append(o))
            found.append(self.network(window.flip(axes)).flip(axes))
            hook.remove()
            self.kept.append((kept[0], axes, places))
        return torch.stack(found).mean(0)


@pytest.mark.parametrize(
    ("dims", "size", "window"), [(2, (40, 24), (16, 16)), (2, (12, 20), (16, 16)), (3, (16, 8, 12), (8, 8, 8))]
)
@pytest.mark.parametrize("mirror", [(), (0, 1)])
def test_window_by_window_equals_one_graph_over_all_windows(dims, size, window, mirror):
    network, x = net(dims), torch.randn(2, 1, *size, generator=torch.Generator().manual_seed(1))
    layer, inferer = "upsamples.1", nnunet_inferer(window)
    before = state_of(network)
    found = explain_windows(network, x, inferer, 1, ["gradient", "hirescam"], layer, mirror)
    assert_same_state(before, state_of(network))
    flips = {(): [()], (0, 1): [(), (2,), (3,), (2, 3)]}[mirror]
    # In one piece: MONAI's inferer over an image that needs a gradient.
    low = [max(w - n, 0) // 2 for n, w in zip(size, window, strict=True)]
    padded = torch.zeros(2, 1, *(max(n, w) for n, w in zip(size, window, strict=True)))
    crop = (slice(None), slice(None), *(slice(b, b + n) for b, n in zip(low, size, strict=True)))
    padded[crop] = x
    padded.requires_grad_()
    whole = SlidingWindowInferer(window, 1, 0.5, "gaussian", 0.125, with_coord=True)
    whole.roi_weight_map = inferer.roi_weight_map
    last = Last(network, layer, flips)
    stitched = whole(padded, last)[crop]
    torch.testing.assert_close(found.output, stitched.detach(), rtol=0, atol=1e-6)
    score = SegmentationRegion(channel=1).bind(stitched.detach())(stitched)
    inputs = [padded, *(activation for activation, _, _ in last.kept)]
    gradients = torch.autograd.grad(score.sum(), inputs)
    torch.testing.assert_close(found.gradient, gradients[0][crop], rtol=0, atol=1e-5 * float(gradients[0].abs().max()))
    total = torch.zeros_like(padded)
    for (activation, axes, places), gradient in zip(last.kept, gradients[1:], strict=True):
        part = upsample((activation * gradient).sum(1, keepdim=True).detach(), window).flip(axes)
        for one, place in zip(part, places, strict=True):
            total.data[(place[0], slice(None), *place[2:])] += one[None]
    expected = total.detach()[crop].clamp(min=0)
    assert float(expected.max()) > 0
    torch.testing.assert_close(found.maps["hirescam", layer], expected, rtol=0, atol=1e-5 * float(expected.max()))


def test_one_window_is_the_plain_explanation():
    network, x = net(), torch.randn(1, 1, 16, 16, generator=torch.Generator().manual_seed(1))
    found = explain_windows(network, x, nnunet_inferer((16, 16)))
    plain = explain(network, x, "hirescam", None, SegmentationRegion(channel=1))
    ((_, layer),) = plain.maps
    assert list(found.maps) == [("hirescam", layer)]
    torch.testing.assert_close(found.score, plain.score)
    expected = upsample(plain.maps["hirescam", layer], (16, 16))
    torch.testing.assert_close(found.maps["hirescam", layer], expected, rtol=0, atol=1e-5 * float(expected.max()))


def test_several_windows_at_once_are_the_same_as_one_at_a_time():
    network, x = net(), torch.randn(1, 1, 32, 24, generator=torch.Generator().manual_seed(1))
    one, four = (explain_windows(network, x, nnunet_inferer((16, 16), windows=n), 1, ["gradient"]) for n in (1, 4))
    torch.testing.assert_close(four.gradient, one.gradient, rtol=0, atol=1e-5 * float(one.gradient.abs().max()))


def test_refusals_are_one_sentence_and_leave_no_hook():
    network, x = net(), torch.randn(1, 1, 16, 16)
    before = state_of(network)
    for options, message in (
        ({"methods": "gradcam"}, "an average over the whole image is unknown window by window"),
        ({"mirror_axes": (2,)}, "the image has the spatial axes 0 to 1"),
        ({"layer": "upsample.1"}, "nearest: 'upsamples"),
    ):
        with pytest.raises(ValueError, match=message):
            explain_windows(network, x, nnunet_inferer((16, 16)), 1, **options)

    class Aside(nn.Module):
        def __init__(self):
            super().__init__()
            self.aside, self.out = nn.Conv2d(1, 1, 1), nn.Conv2d(1, 2, 1)

        def forward(self, x):
            self.aside(x)
            return self.out(x)

    with pytest.raises(LayerError, match="does not depend on layer 'aside'"):
        explain_windows(Aside(), x, nnunet_inferer((16, 16)), 1, layer="aside")
    assert_same_state(before, state_of(network))


@pytest.mark.parametrize("patch", [(8, 16), (5, 8), (8, 8, 8)])
def test_the_weights_of_nnunet_by_its_own_formula(patch):
    inferer = nnunet_inferer(patch, 0.25, windows=3)
    assert (tuple(inferer.roi_size), inferer.overlap, inferer.sw_batch_size) == (patch, 0.75, 3)
    weight = inferer.roi_weight_map
    assert weight.shape == patch
    assert float(weight.max()) == weight[tuple(n // 2 for n in patch)] == 1, "the middle lies on a pixel"
    line = weight[(slice(None), *(n // 2 for n in patch[1:]))].double()
    n = patch[0]
    expected = torch.exp(-0.5 * ((torch.arange(n) - n // 2) / (n / 8)) ** 2).double()  # a Gaussian of an eighth
    near = expected > 0.01
    torch.testing.assert_close(line[near], expected[near], atol=0.01, rtol=0)
    assert float(weight.min()) > 0, "no place without a weight"


def test_windows_of_the_inferer_step_by_half_of_themselves_unless_told():
    assert nnunet_inferer((8, 8)).overlap == 0.5
    assert nnunet_inferer((8, 8)).sw_batch_size == 1


@pytest.mark.parametrize(
    ("hits", "room", "wide", "expected"),
    [
        ((4, 5), 10, 4, slice(3, 7)),
        ((4, 4), 10, 4, slice(2, 6)),
        ((0, 0), 10, 4, slice(0, 4)),
        ((9, 9), 10, 4, slice(6, 10)),
        ((2, 2), 3, 8, slice(0, 3)),
        ((2, 7), 10, 3, slice(4, 7)),
        (None, 10, 4, slice(3, 7)),
    ],
)
def test_a_window_lies_around_the_middle_of_a_mask(hits, room, wide, expected):
    inside = torch.zeros(room, 2)
    if hits is not None:
        inside[list(hits), 0] = -1.0
    assert window_around(inside, (wide, 2)) == (expected, slice(0, 2))


def test_who_answers_in_windows():
    network = nn.Identity()
    assert not answers_in_windows(network, torch.zeros(1))
    network.in_windows = lambda x: len(x) > 1
    assert [answers_in_windows(network, torch.zeros(n)) for n in (1, 2)] == [False, True]


class Dense(nn.Module):
    """Two logits: the image times 1 and 2; features are the image."""

    def __init__(self):
        super().__init__()
        self.features, self.out = nn.Conv2d(1, 1, 1, bias=False), nn.Conv2d(1, 2, 1, bias=False)
        nn.init.constant_(self.features.weight, 1.0)
        self.out.weight.data = torch.tensor([-1.0, 2.0]).reshape(2, 1, 1, 1)

    def forward(self, x):
        return self.out(self.features(x))


@pytest.mark.parametrize("size", [(3, 5), (4, 4), (9, 6)])
def test_maps_of_a_network_that_works_pixel_by_pixel_by_hand(size):
    x = torch.rand(2, 1, *size) + 0.5
    x[:, :, 0] *= -1
    found = explain_windows(
        Dense(), x, nnunet_inferer((4, 4)), SegmentationRegion(channel=1, reduction="sum"), ["gradient", "hirescam"],
        "features", (0, 1),
    )  # fmt: skip
    region = (x > 0).float()
    torch.testing.assert_close(found.output, torch.cat([-x, 2 * x], 1))
    torch.testing.assert_close(found.score, (2 * x * region).flatten(1).sum(1))
    torch.testing.assert_close(found.gradient, 2 * region)
    torch.testing.assert_close(found.maps["gradient", "input"], 2 * region)
    torch.testing.assert_close(found.maps["hirescam", "features"], 2 * x * region)
    against = explain_windows(Dense(), x, nnunet_inferer((4, 4)), 0, ["gradient", "layercam"], "features")
    assert against.gradient.min() < 0 < against.maps["gradient", "input"].max()
    assert set(against.maps) == {("gradient", "input"), ("layercam", "features")}
    assert not against.maps["layercam", "features"].any(), "nothing in it speaks for channel 0"


def test_what_windows_cannot_take_is_refused():
    x = torch.rand(1, 1, 4, 4)
    with pytest.raises(ValueError, match="method '': expected some of"):
        explain_windows(Dense(), x, nnunet_inferer((4, 4)), methods=[])
    for axis in (-1, 2):
        with pytest.raises(ValueError, match=r"the image has the spatial axes 0 to 1"):
            explain_windows(Dense(), x, nnunet_inferer((4, 4)), mirror_axes=(axis,))
    only = explain_windows(Dense(), x, nnunet_inferer((4, 4)))
    assert (only.gradient, list(only.maps)) == (None, [("hirescam", "features")])
