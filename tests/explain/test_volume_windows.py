"""Class activation maps of volumes that go through the network in windows, against the gradient in one piece."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor

from scripts.explain.cam import cam_pass
from scripts.explain.cam_formulas import gradcam, hirescam
from scripts.explain.methods import explain
from scripts.explain.targets import named_target
from scripts.explain.windows import window_pass
from scripts.networks.multitask_dynunet import MultiTaskDynUNet
from tests.explain.nets import windowed

STRIDES = {"input_block": 1, "downsamples.0": 2, "bottleneck": 4, "head.features": 2, "upsamples.1": 1}


@pytest.fixture(scope="module")
def network() -> MultiTaskDynUNet:
    return windowed()


@pytest.fixture(scope="module")
def volume() -> Tensor:
    image = torch.zeros(1, 2, 32, 24, 12)
    image[:, :, 3:29, 2:22, 1:11] = torch.randn(1, 2, 26, 20, 10, generator=torch.Generator().manual_seed(0))
    return image


@contextmanager
def changed(network: MultiTaskDynUNet, layer: str, change: Tensor) -> Iterator[None]:
    """Add a window's part of a change of the volume to a layer."""
    handle = network.get_submodule(layer).register_forward_hook(lambda _m, _a, out: out + change)
    try:
        yield
    finally:
        handle.remove()


def one_piece(network: MultiTaskDynUNet, volume: Tensor, layer: str, change: Tensor, output: str) -> Tensor:
    """The output of the whole volume, with its whole graph, as a function of a change of one layer on its grid."""
    stride = STRIDES[layer]

    def outputs(image: Tensor, mask: Tensor, place: tuple[slice, ...]) -> dict[str, Tensor]:
        box = (place[0], slice(None), *(slice(p.start // stride, p.stop // stride) for p in place[1:]))
        with changed(network, layer, change[box]):
            return network.of_window(image, mask, output)

    return network.of_windows(volume, outputs, output=output)


@pytest.mark.parametrize(
    ("layer", "target", "output"),
    [
        ("input_block", "tumor_log_odds", "cls"),
        ("downsamples.0", "tumor_log_odds", "cls"),
        ("bottleneck", "tumor_log_odds", "cls"),
        ("head.features", "tumor_log_odds", "cls"),
        ("bottleneck", "segmentation_1_predicted", "seg"),
        ("upsamples.1", "segmentation_1_predicted", "seg"),
    ],
)
def test_the_gradient_of_all_windows_is_that_of_the_volume_in_one_piece(network, volume, layer, target, output):
    aim, channels = named_target(target), 8 if layer == "bottleneck" else 4
    grid = [-(-max(n, 16) // STRIDES[layer]) for n in volume.shape[2:]]  # of the volume, filled up to the window
    change = torch.zeros(1, channels, *grid, requires_grad=True)
    expected_output = one_piece(network, volume, layer, change, output)
    expected = torch.autograd.grad(aim(expected_output).sum(), change)[0]
    found_output, score, activations, gradients = window_pass(network, volume, [layer], aim, {"output": output})
    inside = tuple(slice(0, n // STRIDES[layer]) for n in volume.shape[2:])
    expected = expected[(slice(None), slice(None), *inside)]
    assert float(expected.abs().max()) > 0
    assert torch.allclose(gradients[layer], expected, atol=1e-5 * float(expected.abs().max()), rtol=0)
    assert torch.allclose(found_output, expected_output, atol=1e-6)
    assert torch.allclose(score, aim(expected_output))
    assert activations[layer].shape == gradients[layer].shape


def test_the_score_follows_a_small_change_of_the_layer_as_the_gradient_says(network, volume):
    aim = named_target("tumor_log_odds")
    _, _, _, gradients = window_pass(network, volume, ["bottleneck"], aim, {"output": "cls"})
    direction = torch.randn(1, 8, 8, 6, 4, generator=torch.Generator().manual_seed(1))
    direction[..., 3:] = 0  # filled up to the window
    with torch.no_grad():
        high, low = (aim(one_piece(network, volume, "bottleneck", sign * direction, "cls")) for sign in (0.01, -0.01))
    found = float((gradients["bottleneck"] * direction[..., :3]).sum())
    assert found == pytest.approx(float(high - low) / 0.02, rel=1e-2)


def test_maps_are_the_formulas_of_the_volumes_activations_and_gradients(network, volume):
    aim = named_target("tumor_log_odds")
    _, score, activations, gradients = window_pass(network, volume, ["bottleneck"], aim, {"output": "cls"})
    found = cam_pass(network, volume, "bottleneck", aim, ["gradcam", "hirescam"], {"output": "cls"}, signed=True)
    for method, formula in (("gradcam", gradcam), ("hirescam", hirescam)):
        expected = formula(activations["bottleneck"], gradients["bottleneck"])
        assert torch.allclose(found.maps[method, "bottleneck"], expected, atol=1e-6)
    assert torch.equal(found.score, score)


def test_hirescam_in_front_of_the_linear_head_is_the_share_of_each_cells_evidence(network, volume):
    """Behind the features everything is linear but the pooling: gradient x activation is weight x evidence."""
    aim = named_target("tumor_log_odds")
    found = cam_pass(network, volume, "head.features", aim, "hirescam", {"output": "cls"}, signed=True)
    cam = found.maps["hirescam", "head.features"]
    with torch.no_grad():
        evidence = network.multitask(volume)["evidence"]
    assert cam.shape == evidence[:, 1:].shape
    strongest = evidence[0, 1].flatten().argmax()
    assert cam[0, 0].flatten().argmax() == strongest


def test_methods_of_frozen_statistics_and_batches_go_through_windows_too(network, volume):
    other = volume.flip(2)
    both = torch.cat([volume, other])
    kwargs = {"forward_kwargs": {"output": "cls"}, "signed": True}
    methods = ["layercam", "layercam_frozen"]
    aim = named_target("tumor_log_odds")
    together = explain(network, both, methods, "downsamples.0", aim, **kwargs)
    alone = explain(network, other, methods, "downsamples.0", aim, **kwargs)
    for method in methods:
        assert torch.allclose(
            together.maps[method, "downsamples.0"][1:], alone.maps[method, "downsamples.0"], atol=1e-6
        )
    assert not torch.allclose(*(alone.maps[method, "downsamples.0"] for method in methods), atol=1e-6)


def test_the_network_is_left_as_it_was(network, volume):
    before = [p.requires_grad for p in network.parameters()]
    with pytest.raises(ZeroDivisionError), changed_of_windows(network):
        cam_pass(network, volume, "bottleneck", named_target("tumor_log_odds"), "gradcam", {"output": "cls"})
    cam_pass(network, volume, "bottleneck", named_target("tumor_log_odds"), "gradcam", {"output": "cls"})
    assert not any(module._forward_hooks for module in network.modules())
    assert [p.requires_grad for p in network.parameters()] == before
    assert all(p.grad is None for p in network.parameters())


@contextmanager
def changed_of_windows(network: MultiTaskDynUNet) -> Iterator[None]:
    """A network whose decoder-free pass fails in the middle of a volume."""
    runs = []
    original = network.head.forward

    def failing(*arguments):
        runs.append(None)
        if len(runs) == 5:
            raise ZeroDivisionError
        return original(*arguments)

    network.head.forward = failing
    try:
        yield
    finally:
        del network.head.forward
