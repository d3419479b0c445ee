"""A network with more channels begins with the answers of the narrow one."""

import pytest
import torch

from scripts.networks import widened
from tests.networks.nets import tiny


@pytest.mark.parametrize("wide", [[4, 6, 8], [5, 6, 8], [4, 9, 16], [4, 6, 9]])
@pytest.mark.parametrize("spatial_dims", [2, 3])
@torch.no_grad()
def test_a_wider_network_answers_alike_at_first(wide, spatial_dims):
    narrow, larger = tiny(spatial_dims), tiny(spatial_dims, seed=1, filters=wide)
    state = widened(larger, narrow.state_dict())
    assert state.keys() == larger.state_dict().keys()
    larger.load_state_dict(state)
    image = torch.rand([2, 1] + [32] * spatial_dims)
    image[..., :5] = 0  # air
    before, after = narrow.multitask(image), larger.multitask(image)
    assert float(before["evidence"].std()) > 1e-3
    for output, values in before.items():
        torch.testing.assert_close(after[output], values, atol=2e-5, rtol=1e-4)


def test_weights_of_before_a_later_buffer_are_widened_too():
    narrow, larger = tiny(), tiny(seed=1, filters=[5, 9, 16])
    state = {name: value for name, value in narrow.state_dict().items() if name not in ("mask_threshold", "fixed_part")}
    taken = widened(larger, state)
    assert larger.state_dict().keys() - taken.keys() == {"mask_threshold", "fixed_part"}


def test_deep_heads_hinder_no_widening_and_are_of_regions_themselves():
    options = {"strides": [1, 2, 2, 2], "kernel_size": [3] * 4, "upsample_kernel_size": [2] * 3}
    narrow = tiny(filters=[4, 6, 8, 8], deep_supervision=True, **options)
    larger = tiny(seed=1, filters=[5, 9, 16, 16], **options)
    assert widened(larger, narrow.state_dict()).keys() == larger.state_dict().keys()
    nested = tiny(
        seed=1, filters=[5, 9, 16, 16], deep_supervision=True, out_channels=3, regions=["a", "b", "c"], **options
    )
    taken = widened(nested, narrow.state_dict())
    assert not any(name.startswith(("deep_heads.", "mask_threshold", "output_block")) for name in taken)


def test_every_further_channel_can_learn():
    larger = tiny(seed=1, filters=[5, 9, 16])
    larger.load_state_dict(widened(larger, tiny().state_dict()))
    optimizer = torch.optim.SGD(larger.parameters(), lr=0.1)
    before = {k: v.clone() for k, v in larger.named_parameters()}
    image = torch.rand(2, 1, 32, 32)
    for _ in range(2):
        optimizer.zero_grad()
        outputs = larger.multitask(image)
        sum((v**2).mean() for v in outputs.values()).backward()
        optimizer.step()
    for name, value in larger.named_parameters():
        changed = (value != before[name]).flatten(1).any(dim=1) if value.ndim > 1 else value != before[name]
        assert bool(changed.all()), name


def test_a_narrower_network_takes_only_what_is_no_wider():
    small = tiny(filters=[4, 6, 7])
    taken = widened(small, tiny().state_dict())
    missing = small.state_dict().keys() - taken.keys()
    assert missing
    assert all("bottleneck" in k or "upsamples.0.transp_conv" in k or "head.features.lateral.1" in k for k in missing)


@pytest.mark.parametrize(
    ("options", "left"),
    [
        ({"in_channels": 4}, {"input_block.conv1.conv.weight"}),
        ({"num_classes": 5}, {"head.evidence.conv.weight", "head.bias", "fixed_part"}),
        (
            {"out_channels": 3, "regions": ["a", "b", "c"]},
            {"output_block.conv.conv.weight", "output_block.conv.conv.bias", "mask_threshold"},
        ),
    ],
)
def test_sequences_classes_and_regions_are_no_features(options, left):
    larger = tiny(seed=1, **options)
    assert larger.state_dict().keys() - widened(larger, tiny().state_dict()).keys() == left


def test_of_other_levels_only_equal_shapes_are_taken():
    deeper = tiny(filters=[4, 6, 8, 10], kernel_size=[3] * 4, strides=[1, 2, 2, 2], upsample_kernel_size=[2, 2, 2])
    state = tiny().state_dict()
    taken = widened(deeper, state)
    assert taken
    assert all(state[name].shape == value.shape for name, value in taken.items())
