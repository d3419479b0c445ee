"""What options and buffers of the network do: where it begins, its grids, its foreground and its class logits."""

from __future__ import annotations

import pytest
import torch

from scripts.networks.multitask_dynunet import MultiTaskDynUNet
from tests.networks.nets import heads, shape_arguments, tiny


def test_a_new_network_begins_at_one_half_without_calibration_and_near_no_evidence():
    torch.manual_seed(0)
    network, x = MultiTaskDynUNet(**shape_arguments(), evidence_channels=5).eval(), heads()
    assert (float(network.threshold), float(network.temperature), network.mask_threshold.tolist()) == (0.5, 1.0, [0.5])
    assert network.fixed_part.tolist() == network.class_shift.tolist() == [0.0, 0.0]
    assert (network.mirror_axes, network.window, network.shifted, network.nested) == ((), None, False, False)
    outputs = network.multitask(x)
    assert outputs["evidence"].abs().max() < 0.2
    assert outputs["cls"].shape == (2, 2)
    assert (outputs["seg"][:, 1:][x == 0] == -10).all(), "the logit of air"
    assert not network.output_block.conv.conv.bias.any()
    assert network.regions == ["tumor"]


def test_a_network_of_nested_regions_begins_with_none_of_them():
    network = tiny(out_channels=3, regions=["a", "b", "c"])
    assert torch.sigmoid(network.output_block.conv.conv.bias).tolist() == pytest.approx([0.018] * 3, abs=1e-3)
    assert network.mask_threshold.tolist() == [0.5] * 3
    x = heads()
    assert (network(x)[(x == 0).expand(-1, 3, -1, -1)] == -10).all(), "air is in none"
    assert (tiny(out_channels=1)(x)[x == 0] == -10).all(), "a single channel is no background"


@pytest.mark.parametrize(("levels", "stride"), [(1, [2, 4, 4]), (2, [1, 2, 2]), (3, [1, 2, 2])])
def test_strides_by_axis_give_the_grids_by_axis(levels, stride):
    torch.manual_seed(0)
    strides = [[1, 2, 2], 1, [2, 2, 2]]
    network = MultiTaskDynUNet(
        3, 1, 2, [3, 3, 3], strides, strides[1:], filters=[4, 4, 4], evidence_levels=levels, evidence_channels=3
    ).eval()
    assert network.total_stride == [2, 4, 4]
    x = torch.rand(1, 1, 4, 16, 8) + 0.1
    outputs = network.multitask(x)
    assert list(outputs["evidence"].shape[2:]) == [n // s for n, s in zip((4, 16, 8), stride, strict=True)]
    features, masks = network.encode(x)
    assert [list(f.shape[2:]) for f in features] == [list(m.shape[2:]) for m in masks]
    assert [list(m.shape[2:]) for m in masks] == [[4, 8, 4], [4, 8, 4], [2, 4, 2]]


def test_a_cell_of_a_coarser_level_is_foreground_where_any_pixel_is():
    x = torch.zeros(1, 1, 8, 8)
    x[0, 0, 3, 6] = 1.0
    _, masks = tiny().encode(x)
    for mask, stride in zip(masks, (1, 2, 4), strict=True):
        assert mask.nonzero().tolist() == [[0, 0, 3 // stride, 6 // stride]]


def test_images_of_other_channels_are_refused():
    with pytest.raises(ValueError, match=r"2 channel\(s\) for a network that takes 1"):
        tiny()(heads(channels=2))


def test_what_lies_outside_of_a_given_foreground_is_not_seen():
    x = heads()
    inside = (x != 0).float()
    noisy = x + 5 * (1 - inside)
    for normalization, alike in (("foreground", True), ("instance", False)):
        network = tiny(normalization=normalization)
        with torch.no_grad():
            found, expected = network(noisy, 3 * inside), network(x, inside)
        assert torch.allclose(found, expected) == alike, "the stock design sees all there is"


@pytest.mark.parametrize(
    ("options", "masked"),
    [
        ({}, True),
        ({"masked_pooling": True}, True),
        ({"masked_pooling": False}, False),
        ({"head": "average_pool"}, False),
        ({"head": "average_pool", "masked_pooling": True}, True),
        ({"head": "average_pool", "masked_pooling": False}, False),
    ],
)
def test_the_evidence_head_pools_over_the_foreground_and_the_stock_head_over_all(options, masked):
    assert tiny(**options).head.masked == masked


def test_options_reach_the_head():
    network = tiny(sharpness=2.0, pooling="mean", evidence="softplus", evidence_channels=7)
    head = network.head
    assert (head.sharpness, head.pooling, head.kind) == (2.0, "mean", "softplus")
    assert head.evidence.conv.weight.shape[:2] == (2, 7)
    assert tiny(head="average_pool", evidence_channels=7).head.mlp[0].out_features == 7
    assert (tiny(head="average_pool").evidence_levels, tiny(head="average_pool").default_cam_layer) == (1, "bottleneck")
    assert tiny().default_cam_layer == "head.features"


@torch.no_grad()
def test_cells_are_what_the_evidence_is_made_of():
    network, x = tiny(evidence="rectified"), heads()
    features, masks = network.encode(x)
    logits, evidence, cells = network.classify_cells(features, masks)
    assert torch.equal(evidence, cells.relu())
    assert (cells < 0).any()
    for found, expected in zip((logits, evidence), network.classify(features, masks), strict=True):
        assert torch.equal(found, expected)


@torch.no_grad()
def test_the_decoders_activations_are_given_coarsest_first():
    network, x = tiny(), heads()
    features, masks = network.encode(x)
    levels: list[torch.Tensor] = []
    assert torch.equal(network.decode(features, masks, levels), network(x))
    assert [(level.shape[1], level.shape[2]) for level in levels] == [(6, 12), (4, 24)]


@torch.no_grad()
def test_a_prevalence_moves_the_calibrated_logits_and_the_training_keeps_its_own():
    network, x = tiny(), heads()
    before, shift = network(x, output="cls"), torch.tensor([0.0, 1.5, -0.5])
    network.temperature.fill_(4.0)
    network.shift_classes(shift)
    torch.testing.assert_close(network(x, output="cls") / 4.0, before / 4.0 + shift)
    assert not any("class_shift" in name for name in network.state_dict())
    unmoved = tiny()
    unmoved.class_shift.copy_(shift)
    torch.testing.assert_close(unmoved(x, output="cls"), before)  # not asked for by `shift_classes`
    assert tiny(evidence="rectified").constant().tolist() == pytest.approx(
        tiny(evidence="rectified").head.bias.tolist()
    )
    assert tiny(head="average_pool").constant() is None


def test_weights_of_before_the_buffers_load_with_none():
    state = {k: v for k, v in tiny().state_dict().items() if k not in ("fixed_part", "mask_threshold")}
    network = tiny(seed=1)
    network.fixed_part.fill_(3.0)
    network.mask_threshold.fill_(0.9)
    network.load_state_dict(state)
    assert (network.fixed_part.tolist(), network.mask_threshold.tolist()) == ([0.0] * 3, [0.5])
