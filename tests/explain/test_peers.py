"""The same network, layer and image through MONAI, captum and torch-cam: equal maps, or a case by hand that decides."""

from __future__ import annotations

from collections.abc import Sequence

import monai.networks.nets as nets
import monai.visualize
import pytest
import torch
from captum.attr import LayerGradCam
from torch import Tensor, nn

from scripts.explain.cam import cam_pass
from scripts.explain.targets import ClassScore
from tests.explain.nets import PooledLinear

torchcam = pytest.importorskip("torchcam.methods", reason="torchcam is not installed (extra: peers)")

CLASSES = [2, 0]


def ours(net: nn.Module, x: Tensor, layer: str, method: str) -> Tensor:
    return cam_pass(net, x, layer, ClassScore(CLASSES[: len(x)]), method).maps[method, layer]


def by_torchcam(net: nn.Module, x: Tensor, layer: str, method: str) -> Tensor:
    makers = {"gradcam": torchcam.GradCAM, "gradcam++": torchcam.GradCAMpp, "layercam": torchcam.LayerCAM}
    with makers[method](net, layer) as extractor:
        return extractor(CLASSES[: len(x)], net(x), normalized=False)[0][:, None]


def by_captum(net: nn.Module, x: Tensor, layer: str) -> Tensor:
    classes = torch.tensor(CLASSES[: len(x)])
    return LayerGradCam(net, net.get_submodule(layer)).attribute(x, target=classes, relu_attributions=True).detach()


def by_monai(net: nn.Module, x: Tensor, layer: str, maker: type = monai.visualize.GradCAM) -> Tensor:
    cam = maker(net, layer, postprocessing=lambda map_: map_)
    maps: Sequence[Tensor] = [cam.compute_map(x[i : i + 1], CLASSES[i]) for i in range(len(x))]
    for module in net.modules():  # MONAI leaves its hooks
        module._forward_hooks.clear()
        module._backward_hooks.clear()
    return torch.cat(list(maps)).detach()


def peaked(maps: Tensor) -> Tensor:
    return maps / maps.abs().flatten(1).amax(1).reshape(-1, *[1] * (maps.dim() - 1))


NETWORKS = {
    "DenseNet": (lambda: nets.DenseNet(2, 1, 3, 8, 4, (2, 2)), "class_layers.relu", 2),
    "DenseNet 3D": (lambda: nets.DenseNet(3, 1, 3, 8, 4, (2, 2)), "class_layers.relu", 3),
    "ResNet": (
        lambda: nets.resnet10(spatial_dims=2, n_input_channels=1, num_classes=3, widen_factor=0.1),
        "layer4",
        2,
    ),
    "two layers": (PooledLinear, "relu", 2),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_gradcam_and_layercam_equal_those_of_the_peers(name):
    make, layer, dims = NETWORKS[name]
    torch.manual_seed(0)
    net, x = make().eval(), torch.randn(2, 1, *[64 if layer == "layer4" else 32] * dims)
    [layer_ for layer_ in net.modules() if isinstance(layer_, nn.Linear)][-1].weight.data.abs_()  # no map is empty
    expected = peaked(ours(net, x, layer, "gradcam"))
    assert bool((expected.flatten(1).amax(1) == 1).all())
    for other in (by_torchcam(net, x, layer, "gradcam"), by_captum(net, x, layer), by_monai(net, x, layer)):
        torch.testing.assert_close(peaked(other), expected, rtol=0, atol=1e-5)
    layercam = ours(net, x, layer, "layercam")
    torch.testing.assert_close(peaked(by_torchcam(net, x, layer, "layercam")), peaked(layercam), rtol=0, atol=1e-5)


class Places(nn.Module):
    """Two channels, each lit at its own place, whose sums have the weights 1e-3 and 1e-5 in the only logit."""

    def __init__(self, inplace: bool = False):
        super().__init__()
        self.split = nn.Conv2d(2, 2, 1, bias=False)
        self.relu, self.head = nn.ReLU(inplace=inplace), nn.Linear(2, 1, bias=False)
        self.split.weight.data = torch.eye(2)[:, :, None, None]
        self.head.weight.data = torch.tensor([[1e-3, 1e-5]])

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.relu(self.split(x)).sum((2, 3)))


def test_gradcam_plus_plus_differs_and_the_paper_by_hand_says_who_is_right(monkeypatch):
    monkeypatch.setattr(f"{__name__}.CLASSES", [0])
    net, x = Places(), torch.zeros(1, 2, 1, 2)
    x[0, 0, 0, 0] = x[0, 1, 0, 1] = 1.0
    # alpha = 1 / (2 + g), w = 2 alpha g (two places): 1e-3 / 1.0005 and 1e-5 / 1.000005.
    expected = torch.tensor([[[[1e-3 / 1.0005, 1e-5 / 1.000005]]]])
    torch.testing.assert_close(ours(net, x, "relu", "gradcam++"), expected, rtol=1e-5, atol=0)
    expected_ratio = float(expected[0, 0, 0, 1] / expected[0, 0, 0, 0])  # about 1e-2
    # torch-cam 0.5 divides a copy (`alpha[mask].div_`), so that its alpha is g^2 and its weights are cubes.
    other = by_torchcam(net, x, "relu", "gradcam++")
    assert float(other[0, 0, 0, 1] / other[0, 0, 0, 0]) == pytest.approx(expected_ratio**3, rel=1e-2)
    # MONAI 1.6.1 adds 1e-7 to the denominator 2 g^2 + g^3 sum(A), which is 2e-10 for the second channel.
    other = by_monai(net, x, "relu", monai.visualize.GradCAMpp)
    shrunk = [g**3 / (2 * g**2 + g**3 + 1e-7) for g in (1e-3, 1e-5)]
    assert float(other[0, 0, 0, 1] / other[0, 0, 0, 0]) == pytest.approx(shrunk[1] / shrunk[0], rel=1e-2)
    assert shrunk[1] / shrunk[0] < 0.01 * expected_ratio


def test_in_front_of_an_in_place_activation_a_peer_shows_what_came_later(monkeypatch):
    monkeypatch.setattr(f"{__name__}.CLASSES", [0])
    x = torch.tensor([[[[2.0, -1.0, 1.0]], [[0.0, 0.0, 0.0]]]])
    # Grad-CAM at the convolution: weight 1e-3 * 2/3 (two of three places pass the ReLU) times 2, -1 and 1.
    signed = torch.tensor([[[[2.0, -1.0, 1.0]]]]) * 1e-3 * 2 / 3
    net = Places(inplace=True)
    found = cam_pass(net, x, "split", ClassScore(0), "gradcam", signed=True).maps["gradcam", "split"]
    torch.testing.assert_close(found, signed)
    torch.testing.assert_close(by_captum(net, x, "split"), signed.clamp(min=0))
    with torchcam.GradCAM(net, "split") as extractor:
        scores = net(x)
        assert extractor.hook_a[0].flatten().tolist()[:3] == [2.0, 0.0, 1.0]  # the convolution put out -1
        assert scores.shape == (1, 1)
    with pytest.raises(RuntimeError, match="is being modified inplace"):
        by_monai(net, x, "split")
