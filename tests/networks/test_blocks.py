"""Blocks that compute their activations again: in training alone, all of a network's, with the same gradients."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from scripts.networks.blocks import MaskedBlock, MaskedUpBlock, recompute_blocks
from tests.networks.nets import gradients, heads, tiny

# The first convolution of each block of `tiny`, down and up.
FIRST = (
    *(f"{block}.conv1" for block in ("input_block", "downsamples.0", "bottleneck")),
    *(f"upsamples.{k}.transp_conv" for k in (0, 1)),
)


class Counted:
    """A network in double precision, and how often each block's first convolution ran."""

    def __init__(self, recompute: bool):
        self.network = tiny().double()
        self.passes = dict.fromkeys(FIRST, 0)
        for name in FIRST:
            self.network.get_submodule(name).register_forward_hook(lambda *_, name=name: self.count(name))
        if recompute:
            recompute_blocks(self.network)

    def count(self, name: str) -> None:
        self.passes[name] += 1

    def outputs(self) -> dict[str, torch.Tensor]:
        self.passes = dict.fromkeys(FIRST, 0)
        return self.network.multitask(heads(size=16).double())


def test_in_training_every_block_runs_twice_and_the_gradients_are_the_same():
    plain, again = Counted(False), Counted(True)
    found = []
    for counted in (plain, again):
        counted.network.train()
        outputs = counted.outputs()
        sum((value**2).mean() for value in outputs.values()).backward()
        found.append((outputs, gradients(counted.network)))
    assert set(plain.passes.values()) == {1}
    assert set(again.passes.values()) == {2}
    for name, value in found[0][0].items():
        assert torch.equal(found[1][0][name], value)
    for name, gradient in found[0][1].items():
        torch.testing.assert_close(found[1][1][name], gradient, atol=1e-12, rtol=0)


def test_without_training_or_gradients_nothing_runs_twice():
    counted = Counted(True)
    counted.network.eval()
    counted.outputs()["seg"].sum().backward()
    assert set(counted.passes.values()) == {1}
    counted.network.train()
    with torch.no_grad():
        counted.outputs()
    assert set(counted.passes.values()) == {1}


def test_blocks_run_once_until_they_are_asked():
    network = tiny()
    blocks = [module for module in network.modules() if isinstance(module, (MaskedBlock, MaskedUpBlock))]
    assert len(blocks) == 3 + 2 * 2
    assert not any(block.recompute for block in blocks)
    with pytest.raises(ValueError, match="blocks of MultiTaskDynUNet, not of Linear"):
        recompute_blocks(nn.Linear(1, 1))
