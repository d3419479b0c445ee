"""Activations computed again block by block: the same gradients and random numbers, less memory, none in inference."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from scripts.networks.classifiers import ImageClassifier
from scripts.training.engines import MultiTaskStep
from scripts.training.losses import MultiTaskLoss
from tests.networks.nets import gradients, heads, tiny


def batch(dims: int) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    image = torch.cat([heads(dims, 16), heads(dims, 16, touching=True)])
    target = {"label": (image > 1).to(torch.uint8), "foreground": (image != 0).to(torch.uint8)}
    target["has_mask"], target["diagnosis"] = torch.tensor([True, False, True, True]), torch.tensor([0, 1, 2, 1])
    return image, target


class Trained:
    """Loss and gradients of a step, and how often the bottleneck's first convolution ran."""

    def __init__(self, dims: int, checkpointing: bool, accumulation_steps: int = 1, **options):
        self.network = tiny(dims, **options).double()  # so that rounding hides nothing
        self.passes = 0
        self.network.bottleneck.conv1.register_forward_hook(self.count)
        step = MultiTaskStep(
            self.network, accumulation_steps=accumulation_steps, gradient_checkpointing=checkpointing
        ).train()
        image, target = batch(dims)
        self.before = {name: value.clone() for name, value in self.network.named_buffers()}
        torch.manual_seed(5)
        loss = MultiTaskLoss()(step(image.double(), target["has_mask"]), target)
        loss.backward()
        self.loss, self.gradients, self.drawn = float(loss.detach()), gradients(self.network), torch.rand(3)

    def count(self, *_):
        self.passes += 1


@pytest.mark.parametrize("options", [{}, {"dropout": 0.5}, {"evidence": "rectified"}], ids=["plain", "dropout", "head"])
@pytest.mark.parametrize("dims", [2, 3])
def test_loss_gradients_and_random_numbers_are_those_without(dims, options):
    plain, again = (Trained(dims, checkpointing, **options) for checkpointing in (False, True))
    assert (plain.passes, again.passes) == (1, 2)
    assert again.loss == pytest.approx(plain.loss, abs=1e-12)
    assert max(float(g.abs().max()) for g in plain.gradients.values()) > 0.01
    for name, gradient in plain.gradients.items():
        torch.testing.assert_close(again.gradients[name], gradient, atol=1e-9, rtol=0, msg=name)
    assert torch.equal(again.drawn, plain.drawn), "the generator stands where it stood"
    for name, value in again.network.named_buffers():
        assert torch.equal(value, again.before[name]), "no statistic is counted twice"


def test_parts_and_blocks_together_have_the_same_gradients():
    plain, again = Trained(2, False, dropout=0.0), Trained(2, True, accumulation_steps=2, dropout=0.0)
    for name, gradient in plain.gradients.items():
        torch.testing.assert_close(again.gradients[name], gradient, atol=1e-9, rtol=0, msg=name)


def kept(checkpointing: bool) -> int:
    """Bytes that a forward pass keeps for the backward pass, parameters and image aside."""
    network = tiny()
    image, target = batch(2)
    own = {p.data_ptr() for p in network.parameters()} | {image.data_ptr()}
    found: dict[int, int] = {}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.data_ptr() not in own:
            found[tensor.data_ptr()] = tensor.nbytes
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        result = MultiTaskStep(network, gradient_checkpointing=checkpointing).train()(image, target["has_mask"])
    assert result["seg"].requires_grad
    return sum(found.values())


def test_activations_within_blocks_are_not_kept():
    assert kept(True) < 0.5 * kept(False)


def test_evaluation_and_exports_are_as_without():
    plain, again, image = tiny(), tiny(), heads()
    MultiTaskStep(again, gradient_checkpointing=True)
    with torch.no_grad():
        for name, value in plain.multitask(image).items():
            assert torch.equal(again.multitask(image)[name], value)
            torch.testing.assert_close(torch.jit.script(again).multitask(image)[name], value, atol=2e-5, rtol=2e-5)
    passes: list[nn.Module] = []
    again.bottleneck.conv1.register_forward_hook(lambda module, *_: passes.append(module))
    again(image.requires_grad_()).sum().backward()
    assert len(passes) == 1, "explanations differentiate in evaluation mode, once"


def test_a_network_of_other_blocks_is_refused():
    with pytest.raises(ValueError, match="over the blocks of MultiTaskDynUNet, not of ImageClassifier"):
        MultiTaskStep(ImageClassifier("densenet121", 1, 2), segmentation=False, gradient_checkpointing=True)
