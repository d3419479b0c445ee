"""The classes of the maps, in place of MONAI's."""

from __future__ import annotations

import monai.visualize
import pytest
import torch
from monai.data import MetaTensor
from monai.visualize.class_activation_maps import ModelWithHooks
from torch import nn

from scripts.explain.cam import METHODS, GradCAM, GradCAMpp, HiResCAM, LayerCAM, cam_pass
from scripts.explain.layers import LayerError
from scripts.explain.targets import ClassScore, SegmentationRegion
from tests.explain.nets import InplaceResidual, PooledLinear, TinySegmenter, Wrapped, cam_maps, peaked

ALL = tuple(METHODS)


def test_class_per_sample_in_one_batch_equals_single_calls():
    torch.manual_seed(0)
    net, x = PooledLinear(), torch.randn(3, 1, 8, 8)
    cam = GradCAM(net, "relu")
    together = cam(x, class_idx=torch.tensor([2, 0, 1]))
    for i, k in enumerate((2, 0, 1)):
        torch.testing.assert_close(together[i : i + 1], cam(x[i : i + 1], class_idx=k))
    top = net(x).argmax(1)
    torch.testing.assert_close(cam(x), cam(x, class_idx=top))


def test_stock_class_mixes_the_batch_that_ours_keeps_apart():
    # The fault that the subclass fixes, so that it is noticed if MONAI fixes it.
    torch.manual_seed(0)
    net, x = PooledLinear().eval(), torch.randn(2, 1, 8, 8)
    stock = monai.visualize.GradCAM(net, "relu", postprocessing=lambda m: m)
    index = torch.tensor([2, 0])
    alone = torch.cat([stock(x[i : i + 1], class_idx=int(k)) for i, k in enumerate(index)]).detach()
    assert not torch.allclose(stock(x, class_idx=index).detach(), alone)
    torch.testing.assert_close(GradCAM(net, "relu", postprocessing=lambda m: m)(x, class_idx=index), alone)


def test_gradcam_class_is_a_drop_in_for_monai():
    torch.manual_seed(0)
    net = Wrapped(PooledLinear())
    x = MetaTensor(torch.randn(2, 1, 8, 8))
    cam = GradCAM(nn_module=net, target_layers=["inner.net.conv", "inner.net.relu"])
    assert isinstance(cam, monai.visualize.GradCAM)
    assert all(not m._forward_hooks and not m._backward_hooks for m in net.modules())
    result = cam(x, class_idx=1, layer_idx=-1, retain_graph=True, scale=2.0)
    expected = cam_maps(net, x, "inner.net.relu", ClassScore(1), "gradcam")["gradcam", "inner.net.relu"]
    torch.testing.assert_close(result, peaked(expected))  # default postprocessing: strongest is 1
    assert torch.equal(cam.compute_map(x, 1, False, 0), cam_maps(net, x, "inner.net.conv", ClassScore(1))[
        "gradcam", "inner.net.conv"
    ])  # fmt: skip
    assert cam.feature_map_size((1, 1, 8, 8)) == (1, 1, 8, 8)
    assert not result.requires_grad
    hooked = GradCAM(ModelWithHooks(net, "inner.net.relu"), "inner.net.relu")
    torch.testing.assert_close(hooked(x, 1, scale=2.0), result)


def test_gradcam_class_refuses_wrong_layers_and_automatic_choice_works():
    net, x = PooledLinear(), torch.randn(1, 1, 8, 8)
    with pytest.raises(LayerError, match="nearest: 'relu'"):
        GradCAM(net, "reluu")
    with pytest.raises(ValueError, match="no Grad-CAM without gradients"):
        GradCAM(net, "relu", register_backward=False)
    automatic = GradCAM(net)
    torch.testing.assert_close(automatic(x, 1), GradCAM(net, "relu")(x, 1))
    assert automatic.target_layers == ("relu",)


def test_gradcam_class_of_a_dense_output_sums_the_channel_like_monai():
    torch.manual_seed(0)
    net, x = TinySegmenter().eval(), torch.randn(1, 1, 8, 8)
    stock = monai.visualize.GradCAM(net, "features", postprocessing=lambda m: m)(x, class_idx=1).detach()
    ours = GradCAM(net, "features", postprocessing=lambda m: m)
    torch.testing.assert_close(ours(x, class_idx=1), stock)
    with pytest.raises(ValueError, match="class_idx is None, which has no meaning for a dense output"):
        ours(x)
    region = SegmentationRegion(torch.ones(1, 1, 8, 8), reduction="sum")
    torch.testing.assert_close(ours(x, class_idx=region), stock)


@pytest.mark.parametrize(
    ("cls", "method"), [(GradCAM, "gradcam"), (GradCAMpp, "gradcam++"), (HiResCAM, "hirescam"), (LayerCAM, "layercam")]
)
def test_classes_compute_their_own_method(cls, method):
    torch.manual_seed(0)
    net, x = InplaceResidual(), torch.randn(2, 1, 8, 8)
    maps = cam_maps(net, x, "norm1", ClassScore(1), ALL)
    assert torch.equal(cls(net, "norm1").compute_map(x, 1), maps[method, "norm1"])
    others = [maps[m, "norm1"] for m in ALL if m != method]
    assert all(not torch.allclose(peaked(o), peaked(maps[method, "norm1"])) for o in others)


def test_a_pass_of_no_method_or_of_another_word_for_cancelled_is_refused():
    net, x = PooledLinear(), torch.randn(1, 1, 4, 4)
    with pytest.raises(ValueError, match="unknown method ''"):
        cam_pass(net, x, "relu", ClassScore(0), [])
    with pytest.raises(ValueError, match="cancelled: expected 'error' or 'empty', got 'zero'"):
        cam_pass(net, x, "relu", ClassScore(0), cancelled="zero")
    with pytest.raises(ValueError, match="there is no Grad-CAM without gradients"):
        GradCAM(net, "relu", register_backward=False)


class Balanced(nn.Module):
    """Features, which are the image, times weights that add up to a share of their size."""

    def __init__(self, share):
        super().__init__()
        self.features = nn.Conv2d(1, 1, 1, bias=False)
        nn.init.constant_(self.features.weight, 1.0)
        self.weights = torch.tensor([1.0, -1.0, 1.0, -1.0 + 4 * share])

    def forward(self, x):
        return (self.features(x)[:, 0, 0] * self.weights).sum(1, keepdim=True)


@pytest.mark.parametrize(("share", "noise"), [(4e-5, True), (6e-5, False)])
def test_gradients_that_cancel_to_less_than_rounding_leaves_have_no_gradcam(share, noise):
    net, x = Balanced(share), torch.rand(2, 1, 1, 4) + 0.5
    result = cam_pass(net, x, "features", ClassScore(0), ["gradcam", "hirescam"], cancelled="empty")
    assert result.cancelled["gradcam", "features"].tolist() == [noise, noise]
    assert ("hirescam", "features") not in result.cancelled
    assert bool(result.maps["gradcam", "features"].any()) != noise
    if noise:
        with pytest.raises(LayerError, match=r"no Grad-CAM at layer 'features'.*coherence 4\.0e-05"):
            cam_pass(net, x, "features", ClassScore(0), "gradcam")
    # Over the cells with a head alone they do not cancel.
    inside = torch.tensor([[[[1, 0, 1, 0]]]]).expand(2, -1, -1, -1)
    over = cam_pass(net, x, "features", ClassScore(0), "gradcam", foreground=inside)
    torch.testing.assert_close(over.maps["gradcam", "features"], x)
    assert over.cancelled == {}


def test_half_precision_is_not_held_to_have_cancelled():
    net, x = Balanced(0.0), torch.rand(1, 1, 1, 4) + 0.5
    with torch.autocast("cpu", torch.bfloat16):
        result = cam_pass(net, x, "features", ClassScore(0), "gradcam", cancelled="empty")
    assert result.cancelled == {}
