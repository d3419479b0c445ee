"""Thresholds of the masks in the network's state, and masks at them."""

from __future__ import annotations

import pytest
import torch

from scripts.networks.multitask_dynunet import MultiTaskDynUNet
from scripts.networks.regions import (
    is_nested,
    mask_threshold,
    region_log_odds,
    region_masks,
    region_probability,
    thresholds_by_name,
    tumor_mask,
)
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


@pytest.mark.parametrize("nested", [True, False])
def test_a_place_at_the_threshold_is_outside_and_log_odds_are_those_of_the_probability(nested):
    seg = torch.tensor([[[0.0, 1.0, -2.0], [0.0, 3.0, 1.0]]])
    masks = region_masks(seg, nested)
    assert not masks[..., 0].any()
    assert torch.equal(masks, region_log_odds(seg, nested) > 0)
    torch.testing.assert_close(torch.sigmoid(region_log_odds(seg, nested)), region_probability(seg, nested))
    assert region_probability(seg.bfloat16(), nested).dtype == torch.float32
    assert masks.shape == ((1, 2, 3) if nested else (1, 1, 3))


def test_of_several_kinds_of_tumor_the_most_probable_counts_against_the_background():
    seg = torch.tensor([[[1.0, 1.0], [0.0, 2.0], [0.5, -3.0]]])
    assert region_masks(seg, nested=False).tolist() == [[[False, True]]]
    assert region_log_odds(seg, nested=False).tolist() == [[[-0.5, 1.0]]]
    assert region_probability(seg, False)[0, 0, 0] == pytest.approx(1 - float(seg.softmax(1)[0, 0, 0]))


def test_a_network_from_elsewhere_has_a_background_a_tumor_and_no_thresholds():
    stock, seg = torch.nn.Conv2d(1, 2, 1), torch.tensor([[[[0.0]], [[0.1]]]])
    assert (is_nested(stock), mask_threshold(stock), thresholds_by_name(stock)) == (False, None, {})
    assert tumor_mask(seg, stock).tolist() == [[[[True]]]]
    network = net(["whole", "core"])
    network.mask_threshold.copy_(torch.tensor([0.3, 1 / 3]))
    assert thresholds_by_name(network) == {"whole": 0.3, "core": 0.333333}
