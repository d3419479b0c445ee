"""The same network, layer and image through the peers: equal maps and measures, or a case by hand that decides.

Maps: MONAI, captum, torch-cam and pytorch-grad-cam. Measures of maps: Quantus.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import monai.networks.nets as nets
import monai.visualize
import numpy as np
import pytest
import torch
from captum.attr import LayerGradCam
from torch import Tensor, nn

from benchmarks import explain as benchmark
from scripts.explain.cam import cam_pass
from scripts.explain.faithfulness import cascading_randomization, deletion_insertion, stability
from scripts.explain.measures import case_measures
from scripts.explain.methods import explain
from scripts.explain.targets import ClassScore
from tests.explain.nets import PooledLinear

ABSENT = "is not installed (Makefile: the peers)"


@pytest.fixture(scope="module")
def torchcam():
    return pytest.importorskip("torchcam.methods", reason=f"torchcam {ABSENT}")


@pytest.fixture(scope="module")
def gradcams():
    """pytorch-grad-cam; where torchvision is absent, of which it runs nothing here, with stand-ins for its names."""
    if not benchmark.has_gradcams():
        pytest.skip(f"pytorch-grad-cam, or ttach that it imports, {ABSENT}")
    return benchmark.import_gradcams()


@pytest.fixture(scope="module")
def quantus():
    return pytest.importorskip("quantus", reason=f"Quantus {ABSENT}")


CLASSES = [2, 0]


def ours(net: nn.Module, x: Tensor, layer: str, method: str) -> Tensor:
    return cam_pass(net, x, layer, ClassScore(CLASSES[: len(x)]), method).maps[method, layer]


def by_torchcam(torchcam: Any, net: nn.Module, x: Tensor, layer: str, method: str) -> Tensor:
    makers = {"gradcam": torchcam.GradCAM, "gradcam++": torchcam.GradCAMpp, "layercam": torchcam.LayerCAM}
    with makers[method](net, layer) as extractor:
        return extractor(CLASSES[: len(x)], net(x), normalized=False)[0][:, None]


def by_gradcams(gradcams: Any, net: nn.Module, x: Tensor, layer: str, method: str) -> Tensor:
    """Maps on the layer's grid, before they are scaled and brought to the image."""
    makers = {"gradcam": "GradCAM", "gradcam++": "GradCAMPlusPlus", "layercam": "LayerCAM", "hirescam": "HiResCAM"}
    target = net.get_submodule(layer)
    with getattr(gradcams, makers[method])(net, [target]) as cam:
        outputs = cam.activations_and_grads(x.clone())
        score = sum(outputs[i, c] for i, c in enumerate(CLASSES[: len(x)]))
        net.zero_grad()
        score.backward()
        activations, gradients = (
            values[0].numpy(force=True)
            for values in (cam.activations_and_grads.activations, cam.activations_and_grads.gradients)
        )
        map_ = cam.get_cam_image(x, target, CLASSES[: len(x)], activations, gradients, False)
    net.zero_grad()
    return torch.from_numpy(np.maximum(map_, 0))[:, None]


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
def test_gradcam_and_layercam_equal_those_of_the_peers(name, torchcam):
    make, layer, dims = NETWORKS[name]
    torch.manual_seed(0)
    net, x = make().eval(), torch.randn(2, 1, *[64 if layer == "layer4" else 32] * dims)
    [layer_ for layer_ in net.modules() if isinstance(layer_, nn.Linear)][-1].weight.data.abs_()  # no map is empty
    expected = peaked(ours(net, x, layer, "gradcam"))
    assert bool((expected.flatten(1).amax(1) == 1).all())
    for other in (by_torchcam(torchcam, net, x, layer, "gradcam"), by_captum(net, x, layer), by_monai(net, x, layer)):
        torch.testing.assert_close(peaked(other), expected, rtol=0, atol=1e-5)
    layercam = ours(net, x, layer, "layercam")
    torch.testing.assert_close(
        peaked(by_torchcam(torchcam, net, x, layer, "layercam")), peaked(layercam), rtol=0, atol=1e-5
    )


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


def test_gradcam_plus_plus_differs_and_the_paper_by_hand_says_who_is_right(monkeypatch, torchcam):
    monkeypatch.setattr(f"{__name__}.CLASSES", [0])
    net, x = Places(), torch.zeros(1, 2, 1, 2)
    x[0, 0, 0, 0] = x[0, 1, 0, 1] = 1.0
    # alpha = 1 / (2 + g), w = 2 alpha g (two places): 1e-3 / 1.0005 and 1e-5 / 1.000005.
    expected = torch.tensor([[[[1e-3 / 1.0005, 1e-5 / 1.000005]]]])
    torch.testing.assert_close(ours(net, x, "relu", "gradcam++"), expected, rtol=1e-5, atol=0)
    expected_ratio = float(expected[0, 0, 0, 1] / expected[0, 0, 0, 0])  # about 1e-2
    # torch-cam 0.5 divides a copy (`alpha[mask].div_`), so that its alpha is g^2 and its weights are cubes.
    other = by_torchcam(torchcam, net, x, "relu", "gradcam++")
    assert float(other[0, 0, 0, 1] / other[0, 0, 0, 0]) == pytest.approx(expected_ratio**3, rel=1e-2)
    # MONAI 1.6.1 adds 1e-7 to the denominator 2 g^2 + g^3 sum(A), which is 2e-10 for the second channel.
    other = by_monai(net, x, "relu", monai.visualize.GradCAMpp)
    shrunk = [g**3 / (2 * g**2 + g**3 + 1e-7) for g in (1e-3, 1e-5)]
    assert float(other[0, 0, 0, 1] / other[0, 0, 0, 0]) == pytest.approx(shrunk[1] / shrunk[0], rel=1e-2)
    assert shrunk[1] / shrunk[0] < 0.01 * expected_ratio


def test_in_front_of_an_in_place_activation_a_peer_shows_what_came_later(monkeypatch, torchcam):
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


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("method", ["gradcam", "layercam", "hirescam"])
def test_maps_of_pytorch_grad_cam_are_the_same(name, method, gradcams):
    make, layer, dims = NETWORKS[name]
    torch.manual_seed(0)
    net, x = make().eval(), torch.randn(2, 1, *[64 if layer == "layer4" else 32] * dims)
    [layer_ for layer_ in net.modules() if isinstance(layer_, nn.Linear)][-1].weight.data.abs_()
    expected = peaked(ours(net, x, layer, method))
    other = peaked(by_gradcams(gradcams, net, x, layer, method))
    torch.testing.assert_close(other, expected, rtol=0, atol=1e-5)


def test_pytorch_grad_cam_subtracts_the_smallest_value_and_ours_does_not(gradcams):
    """Where it differs after the same map: 3, 2, 1 is drawn as 1, 0.5, 0; here 1/3 of the largest stays 1/3."""

    net, x = Places(), torch.zeros(1, 2, 3, 3)
    x[0, 0] = torch.tensor([3.0, 2.0, 1.0])
    with gradcams.GradCAM(net, [net.relu]) as cam:
        theirs = cam(x, [lambda output: output[0]])
    np.testing.assert_allclose(theirs[0, 0], [1.0, 0.5, 0.0], atol=1e-5)
    found, _ = explain(net, x, "gradcam", "relu", ClassScore(0)).on_image("gradcam", "relu")
    torch.testing.assert_close(found[0, 0, 0], torch.tensor([1.0, 2 / 3, 1 / 3]))


def test_gradcam_plus_plus_of_pytorch_grad_cam_loses_small_gradients_as_well(monkeypatch, gradcams):
    monkeypatch.setattr(f"{__name__}.CLASSES", [0])
    net, x = Places(), torch.zeros(1, 2, 1, 2)
    x[0, 0, 0, 0] = x[0, 1, 0, 1] = 1.0
    expected = ours(net, x, "relu", "gradcam++")  # by hand above: about 1e-2 between the two places
    other = by_gradcams(gradcams, net, x, "relu", "gradcam++")
    # It adds 1e-6 to the denominator 2 g^2 + g^3 sum(A).
    shrunk = [g**3 / (2 * g**2 + g**3 + 1e-6) for g in (1e-3, 1e-5)]
    assert float(other[0, 0, 0, 1] / other[0, 0, 0, 0]) == pytest.approx(shrunk[1] / shrunk[0], rel=1e-2)
    assert shrunk[1] / shrunk[0] < 0.1 * float(expected[0, 0, 0, 1] / expected[0, 0, 0, 0])


def quantus_scores(metric: Any, maps: Tensor, tumor: Tensor) -> list[float]:
    arrays = {"x_batch": np.zeros(maps.shape), "a_batch": maps.numpy(), "s_batch": tumor.numpy()}
    return [float(v) for v in metric(model=None, channel_first=True, y_batch=np.zeros(len(maps), int), **arrays)]


def test_energy_and_pointing_game_equal_those_of_quantus(quantus):
    generator = torch.Generator().manual_seed(0)
    maps = torch.rand(16, 1, 12, 12, generator=generator)
    tumor = torch.zeros(16, 1, 12, 12)
    tumor[:, :, 2:8, 3:9] = 1.0
    found = case_measures(maps, tumor, torch.ones_like(tumor))
    kwargs = {"abs": False, "disable_warnings": True}
    mass = quantus_scores(quantus.RelevanceMassAccuracy(**kwargs), maps, tumor)
    np.testing.assert_allclose(mass, found["tumor_energy"], rtol=0, atol=1e-5)
    hits = quantus_scores(quantus.PointingGame(**kwargs), maps, tumor)
    assert hits == found["pointing_game"].tolist()
    assert 0 < sum(hits) < 16


def test_where_quantus_counts_otherwise_a_map_by_hand_says_who_is_right(quantus):
    kwargs = {"abs": False, "disable_warnings": True}
    game, mass = quantus.PointingGame(**kwargs), quantus.RelevanceMassAccuracy(**kwargs, normalise=False)
    tumor = torch.zeros(1, 1, 1, 4)
    tumor[..., 0] = 1.0
    inside = torch.ones_like(tumor)

    def ours_of(values: list[float], mask: Tensor = tumor) -> tuple[float, float]:
        found = case_measures(torch.tensor([[[values]]]), mask, inside)
        return float(found["pointing_game"]), float(found["tumor_energy"])

    def theirs(metric: Any, values: list[float], mask: Tensor = tumor) -> float:
        return quantus_scores(metric, torch.tensor([[[values]]]), mask)[0]

    # Three places share the maximum, one of them in the tumor: by chance one in three. Quantus counts any as a hit.
    assert theirs(game, [1.0, 1.0, 1.0, 0.0]) == 1.0
    assert ours_of([1.0, 1.0, 1.0, 0.0])[0] == pytest.approx(1 / 3)
    # Without a tumor there is nothing to hit. Quantus writes NaN into an array of bool, where it reads True.
    nothing = torch.zeros_like(tumor)
    assert theirs(game, [1.0, 0.0, 0.0, 0.0], nothing) == 1.0
    assert np.isnan(ours_of([1.0, 0.0, 0.0, 0.0], nothing)[0])
    # What speaks against the class is no mass outside: 3 of 4 lie inside. Quantus divides by the signed sum, 3 / 2.
    assert theirs(mass, [3.0, 1.0, -2.0, 0.0]) == pytest.approx(1.5)
    assert ours_of([3.0, 1.0, -2.0, 0.0])[1] == pytest.approx(0.75)
    # A map that found nothing is a miss. Quantus refuses it, so that a mean over cases leaves it out.
    with pytest.raises(AssertionError, match="all equal to zero"):
        theirs(mass, [0.0] * 4)
    assert ours_of([0.0] * 4) == (0.0, 0.0)


def small_network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3)).eval()


@pytest.mark.parametrize("step", [1, 8])
def test_deletion_is_the_pixel_flipping_of_quantus(step, quantus):
    net, x = small_network(), torch.rand(2, 1, 8, 8) + 0.1
    maps = torch.rand(2, 1, 8, 8)  # no two values are the same
    curves = deletion_insertion(net, x, maps, ClassScore(1), steps=64 // step, baseline=0.0, n_random=1)
    metric = quantus.PixelFlipping(  # its "black" is the smallest value of the image
        step, abs=False, perturb_baseline=0.0, disable_warnings=True, return_auc_per_sample=False
    )
    arrays = {"x_batch": x.numpy(), "y_batch": np.array([1, 1]), "a_batch": maps.numpy()}
    theirs = torch.tensor(metric(model=net, **arrays, softmax=False, device="cpu"), dtype=torch.double)
    assert float((curves.deletion[:, 0] - curves.deletion[:, -1]).abs().max()) > 1e-3
    torch.testing.assert_close(curves.deletion[:, 1:], theirs, rtol=0, atol=1e-5)


@pytest.mark.parametrize("step", [1, 8])
def test_insertion_is_the_pixel_flipping_of_quantus_from_the_baseline_to_the_image(step, quantus):
    """Quantus 0.6 has no insertion: its flipping starts at the baseline and puts the image's own pixels back."""
    net, x, maps = small_network(), torch.rand(2, 1, 8, 8) + 0.1, torch.rand(2, 1, 8, 8)
    curves = deletion_insertion(net, x, maps, ClassScore(1), steps=64 // step, baseline=0.0, n_random=1)
    image = x.flatten(1).numpy()

    def restore(arr: np.ndarray, indices: np.ndarray, **_: Any) -> np.ndarray:
        restored = arr.copy()
        np.put_along_axis(restored, indices, np.take_along_axis(image, indices, 1), 1)
        return restored

    metric = quantus.PixelFlipping(step, abs=False, perturb_func=restore, disable_warnings=True)
    arrays = {"x_batch": np.zeros_like(x.numpy()), "y_batch": np.array([1, 1]), "a_batch": maps.numpy()}
    theirs = torch.tensor(metric(model=net, **arrays, softmax=False, device="cpu"), dtype=torch.double)
    assert float((curves.insertion[:, 0] - curves.insertion[:, -1]).abs().max()) > 1e-3
    torch.testing.assert_close(curves.insertion[:, 1:], theirs, rtol=0, atol=1e-5)


def signed_map(net: nn.Module, x: Tensor) -> Tensor:
    """Gradient times input of class 1, (B, 1, H, W)."""
    x = x.clone().requires_grad_()
    return (torch.autograd.grad(net(x)[:, 1].sum(), x)[0] * x).detach()


def for_quantus(explainer: Any) -> Any:
    return lambda model, inputs, **_: explainer(model, torch.as_tensor(inputs)).numpy()


class OwnWeights(nn.Linear):
    """Draws the same weights again whatever the global seed is: Quantus and ours seed the layers differently."""

    def reset_parameters(self) -> None:
        generator = torch.Generator().manual_seed(self.in_features)
        with torch.no_grad():
            self.weight.copy_(torch.randn(self.weight.shape, generator=generator))
            self.bias.zero_()


def test_cascading_randomization_is_the_one_of_quantus(quantus):
    torch.manual_seed(0)
    layers = [OwnWeights(36, 16), nn.Tanh(), OwnWeights(16, 8), nn.Tanh(), OwnWeights(8, 3)]
    net, x = nn.Sequential(nn.Flatten(), *layers).eval(), torch.rand(4, 1, 6, 6)
    for layer in layers[::2]:
        nn.Linear.reset_parameters(layer)  # "learned": other than what is drawn again
    stages = cascading_randomization(net, x, signed_map, ["5", "3", "1"])
    metric = quantus.MPRT(abs=False, normalise=False, disable_warnings=True)
    arrays = {"x_batch": x.numpy(), "y_batch": np.ones(4, int), "a_batch": signed_map(net, x).numpy()}
    theirs = metric(model=net, **arrays, explain_func=for_quantus(signed_map), device="cpu")
    assert list(theirs) == ["original", "5", "3", "1"]
    assert float(stages[-1].rank_correlation.abs().max()) < 0.9
    for stage, correlations in zip(stages, theirs.values(), strict=True):
        np.testing.assert_allclose(stage.rank_correlation, correlations, rtol=0, atol=1e-6)


def test_the_largest_change_under_noise_is_the_max_sensitivity_of_quantus(quantus):
    """For the same noise: Quantus draws uniform noise of a given size, ours Gaussian of a share of the contrast."""
    net, x, copies, strength = small_network(), torch.rand(3, 1, 8, 8), 3, 0.1

    def explainer(model: nn.Module, image: Tensor) -> Tensor:
        return signed_map(model, image).abs()

    generator = torch.Generator().manual_seed(0)
    contrast = strength * x.flatten(1).std(1, correction=0, keepdim=True)

    def noise(arr: np.ndarray, **_: Any) -> np.ndarray:
        return arr + (contrast * torch.randn(x.shape[1:], generator=generator).flatten()).numpy()

    # Told to normalise, it divides by the largest value of a batch, so that a score depends on the other images in it.
    alone = {"normalise": True, "normalise_func_kwargs": {"normalise_axes": (1, 2, 3)}}
    metric = quantus.MaxSensitivity(nr_samples=copies, perturb_func=noise, disable_warnings=True, **alone)
    arrays = {"x_batch": x.numpy(), "y_batch": np.ones(3, int), "a_batch": explainer(net, x).numpy()}
    theirs = metric(model=net, **arrays, explain_func=for_quantus(explainer), device="cpu")
    found = stability(net, x, explainer, noise_std=strength, n_copies=copies).largest_change
    assert float(found.min()) > 0.01
    np.testing.assert_allclose(found, theirs, rtol=0, atol=1e-5)
