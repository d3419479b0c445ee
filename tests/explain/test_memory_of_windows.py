"""A volume in windows: no hook is left, and nothing of a window is in memory when the next one begins."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef

from scripts.explain.methods import explain
from scripts.explain.targets import named_target
from scripts.explain.windows import explain_windows, nnunet_inferer
from scripts.networks.multitask_dynunet import MultiTaskDynUNet
from tests.explain.nets import windowed

WATCHED = ("input_block", "downsamples.0", "bottleneck", "upsamples.1")


@pytest.fixture(scope="module")
def network() -> MultiTaskDynUNet:
    return windowed()


def volume(size: int) -> Tensor:
    """Head nearly everywhere, so that no window is skipped."""
    image = torch.zeros(1, 2, size, 16, 16)
    image[:, :, 1:-1, 1:15, 1:15] = torch.randn(1, 2, size - 2, 14, 14, generator=torch.Generator().manual_seed(0))
    return image


class Outputs:
    """What layers put out: how many memories of earlier windows are held when a window begins, for each window."""

    def __init__(self) -> None:
        self.memories: list[StorageWeakRef] = []
        self.held: list[int] = []
        self.at_once = 0
        self.hooks: list[int] = []

    def alive(self) -> int:
        return sum(not memory.expired() for memory in self.memories)

    @contextmanager
    def watch(self, network: nn.Module) -> Iterator[Outputs]:
        """By the forward functions of the layers, not by hooks; without the collector of cycles."""
        layers = [network.get_submodule(name) for name in WATCHED]

        def wrapped(layer: nn.Module, first: bool) -> Callable[..., Tensor]:
            def forward(*arguments: Any) -> Tensor:
                if first:
                    self.held.append(self.alive())
                    self.hooks.append(sum(len(module._forward_hooks) for module in network.modules()))
                output = type(layer).forward(layer, *arguments)
                self.memories.append(StorageWeakRef(output.untyped_storage()))
                self.at_once = max(self.at_once, self.alive())
                return output

            return forward

        gc.collect()
        gc.disable()
        try:
            for k, layer in enumerate(layers):
                layer.forward = wrapped(layer, k == 0)  # type: ignore[method-assign]
            yield self
        finally:
            gc.enable()
            for layer in layers:
                del layer.forward


def infer(network: MultiTaskDynUNet, image: Tensor) -> None:
    with torch.no_grad():
        network.multitask(image)


def class_map(network: MultiTaskDynUNet, image: Tensor) -> None:
    explain(network, image, ["gradcam", "layercam"], "bottleneck", named_target("tumor_log_odds"),
            forward_kwargs={"output": "cls"})  # fmt: skip


def segmentation_map(network: MultiTaskDynUNet, image: Tensor) -> None:
    target = named_target("segmentation_1_predicted")
    explain(network, image, ["hirescam"], "upsamples.1", target, forward_kwargs={"output": "seg"})


def dense_map(network: MultiTaskDynUNet, image: Tensor) -> None:
    inferer = nnunet_inferer((16, 16, 16))
    explain_windows(network, image, inferer, 1, ["gradient", "hirescam"], "upsamples.1")


@pytest.mark.parametrize("work", [infer, class_map, segmentation_map, dense_map])
def test_one_window_is_in_memory_whatever_their_number_and_no_hook_is_left(network, work):
    most, windows, hooks = [], [], []
    for size in (32, 96):
        with Outputs().watch(network) as outputs:
            work(network, volume(size))
        windows.append(len(outputs.held))
        most.append(outputs.at_once)
        hooks.append(max(outputs.hooks))
        assert set(outputs.held) == {0}, "something of an earlier window was held when a window began"
        assert outputs.alive() == 0, "something is held when the work is done"
        assert not any(m._forward_hooks or m._forward_pre_hooks or m._backward_hooks for m in network.modules())
    assert windows[1] >= 3 * windows[0], "the larger volume has more windows"
    assert most[0] == most[1] <= len(WATCHED)
    assert hooks[0] == hooks[1] <= 2, "those of one recording, of the layer and of the network around it"


def test_what_is_kept_of_a_window_would_be_seen(network):
    kept = []
    layer = network.get_submodule("bottleneck")
    with Outputs().watch(network) as outputs:
        watched = layer.forward
        layer.forward = lambda *arguments: kept.append(watched(*arguments)) or kept[-1]
        infer(network, volume(32))
    assert outputs.held == list(range(len(outputs.held)))
    assert outputs.alive() == len(kept) > 1
