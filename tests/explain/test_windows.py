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
from scripts.explain.windows import explain_windows, nnunet_inferer
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
