"""The network that normalizes each patch by itself."""

from __future__ import annotations

import torch

from scripts.networks import PatchStatisticsDynUNet
from scripts.networks.patch_statistics import standardized
from tests.networks.nets import heads, shape_arguments, tiny


def test_a_patch_is_normalized_over_its_head_alone() -> None:
    x = torch.randn(2, 3, 8, 8) * torch.tensor([1.0, 5.0, 0.2]).view(1, 3, 1, 1) + 7
    mask = (torch.rand(2, 1, 8, 8) < 0.5).float()
    result = standardized(x * mask, mask)
    inside = mask.bool().expand_as(result)
    assert (result[~inside] == 0).all()
    for image, place in zip(result, inside, strict=True):
        for channel, own in zip(image, place, strict=True):
            assert abs(channel[own].mean()) < 1e-5
            assert abs(channel[own].std(correction=0) - 1) < 1e-4
    assert (standardized(x, torch.zeros_like(mask)) == 0).all()


def test_its_answer_does_not_depend_on_the_scales_of_the_sequences() -> None:
    network = tiny(in_channels=2).eval()
    own = PatchStatisticsDynUNet(**shape_arguments(in_channels=2), num_classes=3, evidence_channels=5).eval()
    own.load_state_dict(network.state_dict())
    x = heads(channels=2)
    mask = (x != 0).any(1, keepdim=True).float()
    changed = (x * torch.tensor([3.0, 0.5]).view(1, 2, 1, 1) + torch.tensor([2.0, -1.0]).view(1, 2, 1, 1)) * mask
    with torch.no_grad():
        first, second = own.multitask(x, mask), own.multitask(changed, mask)
        plain = [network(image, mask) for image in (x, changed)]
    assert all(torch.allclose(first[name], second[name], atol=1e-3) for name in first)
    assert not torch.allclose(*plain, atol=1e-1)


def test_a_small_deviation_is_normalized_and_a_head_of_one_value_is_0() -> None:
    mask = torch.zeros(3, 1, 4, 4)
    mask[0] = mask[1] = 1
    mask[2, 0, 1, 1] = 1  # a single pixel
    x = torch.full((3, 1, 4, 4), 5.0)
    x[0] += 0.01 * torch.linspace(-1, 1, 16).view(4, 4)
    found = standardized(x, mask)
    assert abs(float(found[0].std(correction=0)) - 1) < 1e-3
    assert not found[1:].any()
    almost = torch.full((1, 1, 2, 2), 5.0)
    almost[0, 0, 0, 0] += 1e-5
    assert float(standardized(almost, torch.ones(1, 1, 2, 2)).abs().max()) < 0.1, "noise of rounding is not blown up"


def test_without_a_given_foreground_the_head_is_where_the_image_is_not_0() -> None:
    own = PatchStatisticsDynUNet(**shape_arguments(), num_classes=3, evidence_channels=5).eval()
    x = heads()
    with torch.no_grad():
        for given in ((x != 0).float(), 7 * (x != 0).to(torch.uint8)):
            assert torch.equal(own(x, given), own(x))
