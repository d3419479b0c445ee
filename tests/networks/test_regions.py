"""Thresholds of the masks in the network's state, and masks at them."""

from __future__ import annotations

import pytest
import torch

from scripts.networks.multitask_dynunet import MultiTaskDynUNet
from scripts.networks.regions import region_masks, region_probability, thresholds_by_name, tumor_mask
from scripts.runs.checkpoint_files import load_weights


def net(regions: list[str]) -> MultiTaskDynUNet:
    channels = max(2, len(regions))
    return MultiTaskDynUNet(
        2, 1, channels, [3, 3, 3], [1, 2, 2], [2, 2], filters=[4, 4, 4], evidence_channels=4, regions=regions
    )


@pytest.mark.parametrize("nested", [True, False])
def test_a_mask_is_where_the_probability_is_above_the_threshold(nested):
    seg = 3 * torch.randn(2, 2, 9, 7, generator=torch.Generator().manual_seed(0))
    probability = region_probability(seg, nested)
    threshold = torch.tensor([0.3, 0.8] if nested else [0.3])
    masks = region_masks(seg, nested, threshold)
    assert torch.equal(masks, probability > threshold.view(1, -1, 1, 1))
    assert torch.equal(region_masks(seg, nested), region_masks(seg, nested, torch.full_like(threshold, 0.5)))


@pytest.mark.parametrize("regions", [["tumor"], ["whole", "core", "rim"]])
def test_weights_of_before_have_masks_at_one_half_and_later_ones_keep_theirs(regions, tmp_path):
    network, seg = net(regions), torch.randn(1, max(2, len(regions)), 8, 8)
    state = network.state_dict()
    del state["mask_threshold"]
    torch.save(state, tmp_path / "old.pt")
    old = net(regions)
    old.mask_threshold.fill_(0.9)
    load_weights(old, tmp_path / "old.pt")
    assert thresholds_by_name(old) == dict.fromkeys(regions, 0.5)
    assert torch.equal(tumor_mask(seg, old), region_masks(seg, old.nested)[:, :1])
    network.mask_threshold.fill_(0.35)
    torch.save(network.state_dict(), tmp_path / "new.pt")
    new = load_weights(net(regions), tmp_path / "new.pt")
    assert thresholds_by_name(new) == dict.fromkeys(regions, 0.35)
    assert torch.equal(tumor_mask(seg, new), region_masks(seg, new.nested, new.mask_threshold)[:, :1])
