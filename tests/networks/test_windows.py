"""A network of patches on a larger volume: stitched maps, one verdict, no seam, no window without a head."""

from __future__ import annotations

import pytest
import torch

from scripts.networks.mirroring import applied
from scripts.networks.multitask_dynunet import MultiTaskDynUNet
from scripts.networks.regions import region_masks, region_probability, tumor_mask
from scripts.networks.windows import evidence_stride, larger, overlaps, stitched, window_words

WINDOW = [16, 16, 16]


def net(evidence: str = "signed", window: list[int] | None = WINDOW, **changes) -> MultiTaskDynUNet:
    torch.manual_seed(3)
    options = {"num_classes": 3, "evidence_channels": 4, "regions": ["whole", "core", "rim"], **changes}
    return MultiTaskDynUNet(
        3, 2, 3, [3, 3, 3], [1, 2, 2], [2, 2], filters=[4, 4, 8], evidence=evidence, window=window, **options
    ).eval()


@pytest.fixture(scope="module")
def volume() -> torch.Tensor:
    """Two heads of another size in air, (2, 2, 40, 24, 20); the third axis is hardly longer than the window."""
    image = torch.zeros(2, 2, 40, 24, 20)
    generator = torch.Generator().manual_seed(0)
    image[0, :, 3:25, 4:20, 2:18] = torch.randn(2, 22, 16, 16, generator=generator)
    image[1, :, 20:38, 2:22, 1:19] = torch.randn(2, 18, 20, 18, generator=generator)
    return image


@pytest.mark.parametrize("evidence", ["signed", "rectified", "softplus"])
def test_the_verdict_is_the_pooling_of_the_stitched_evidence(volume, evidence):
    network = net(evidence)
    with torch.no_grad():
        found = network.multitask(volume)
        inside = torch.nn.functional.max_pool3d((volume != 0).any(1, keepdim=True).float(), evidence_stride(network))
        assert torch.equal(found["cls"], network.head.of_evidence(found["evidence"], inside))
        assert torch.equal(network(volume, output="cls"), found["cls"])
    assert found["seg"].shape == (2, 3, 40, 24, 20)
    assert found["evidence"].shape == (2, 3, 20, 12, 10)
    assert not bool((found["evidence"] * (1 - inside)).any())
    assert not bool(found["evidence"][:, 0].any())


def test_air_is_background_in_every_region_to_within_rounding(volume):
    with torch.no_grad():
        seg = net().multitask(volume)["seg"]
    air = (volume == 0).all(1, keepdim=True).expand_as(seg)
    assert torch.allclose(seg[air], torch.full_like(seg[air], -10.0))
    assert not bool(region_masks(seg, nested=True)[air].any())


def test_one_window_is_one_pass(volume):
    network, whole = net(), net(window=None)
    patch = volume[:1, :, 4:20, 4:20, 2:18]
    with torch.no_grad():
        for name, value in whole.multitask(patch).items():
            assert torch.allclose(stitched(network, patch)[name], value, atol=1e-5)
            assert torch.equal(network.multitask(patch)[name], value)


def test_a_place_that_one_window_sees_is_that_windows(volume):
    """Without overlap and on a multiple of the window, stitching is cutting."""
    network, whole = net(), net(window=None)
    image = volume[:1, :, :32, 4:20, 2:18]
    with torch.no_grad():
        found = stitched(network, image, overlap=0.0)
        parts = [whole.multitask(image[:, :, a : a + 16]) for a in (0, 16)]
    assert torch.allclose(found["seg"], torch.cat([p["seg"] for p in parts], dim=2), atol=1e-5)
    assert torch.allclose(found["evidence"], torch.cat([p["evidence"] for p in parts], dim=2), atol=1e-5)


def test_windows_without_a_head_are_not_computed(volume):
    network, seen = net(), []
    network.input_block.register_forward_pre_hook(lambda _, given: seen.append(bool((given[0] != 0).any())))
    image = torch.zeros(1, 2, 64, 16, 16)
    image[:, :, 50:60, 4:12, 4:12] = 1.0 + torch.rand(1, 2, 10, 8, 8)
    with torch.no_grad():
        network.multitask(image)
    assert seen
    assert all(seen)
    assert len(seen) < 7  # windows start at 0, 8, ..., 48


def test_a_hook_on_a_layer_is_refused_and_one_on_the_network_is_not(volume):
    network = net()
    with torch.no_grad():
        handle = network.register_forward_hook(lambda *_: None)
        assert network(volume[:1], output="cls").shape == (1, 3)
        handle.remove()
        network.bottleneck.register_forward_hook(lambda *_: None)
        with pytest.raises(ValueError, match=r"16 x 16 x 16.* see one window at a time"):
            network(volume[:1], output="cls")
        assert network(volume[:1, :, 4:20, 4:20, 2:18], output="cls").shape == (1, 3)


def test_an_axis_shorter_than_the_window_is_filled_with_air(volume):
    network = net()
    image = volume[:1, :, :, :, 2:10]
    with torch.no_grad():
        found = network.multitask(image)
    assert found["seg"].shape == (1, 3, 40, 24, 8)
    assert found["evidence"].shape == (1, 3, 20, 12, 4)
    padded = torch.nn.functional.pad(image, (0, 8))
    with torch.no_grad():
        assert torch.allclose(network.multitask(padded)["cls"], found["cls"], atol=1e-5)


def test_windows_are_mirrored_one_by_one_and_the_verdict_is_of_the_stitched_means(volume):
    network, whole = net("rectified"), net("rectified", window=None)
    image = volume[:1, :, :32, 4:20, 2:18]
    with torch.no_grad():
        for one in (network, whole):
            one.head.evidence.conv.weight.mul_(50)
        plain = network.multitask(image)
        applied(network, [0, 2])
        found = stitched(network, image, overlap=0.0)
        for a in (0, 16):
            window = image[:, :, a : a + 16]
            turned = [whole.multitask(window.flip(axes)) for axes in ((), (2,), (4,), (2, 4))]
            mean = sum(t["evidence"].flip(axes) for t, axes in zip(turned, ((), (2,), (4,), (2, 4)), strict=True)) / 4
            torch.testing.assert_close(found["evidence"][:, :, a // 2 : a // 2 + 8], mean, atol=1e-5, rtol=1e-5)
        inside = torch.nn.functional.max_pool3d((image != 0).any(1, keepdim=True).float(), evidence_stride(network))
        assert torch.equal(found["cls"], network.head.of_evidence(found["evidence"], inside))
        assert not torch.allclose(network.multitask(image)["cls"], plain["cls"], atol=1e-4)


def test_training_never_uses_windows(volume):
    network = net().train()
    assert not larger([16, 16, 16], network.window)
    assert larger([16, 16, 24], network.window)
    assert not larger([99, 99, 99], None)
    result = network.multitask(volume[:1, :, 4:20, 4:20, 2:18], segmentation=False)
    assert result["cls"].requires_grad


@pytest.mark.parametrize("overlap", [0.0, 0.25, 0.5, 0.75])
def test_windows_start_on_the_stride(overlap):
    for size, share in zip([16, 48, 96], overlaps([16, 48, 96], [4, 8, 16], overlap), strict=True):
        step = int(size * (1 - share))
        assert step % {16: 4, 48: 8, 96: 16}[size] == 0
        assert 0 < step <= size


def test_what_does_not_fit_is_refused_in_one_sentence(volume):
    network = net()
    with pytest.raises(ValueError, match="not a multiple of the total stride"):
        network.multitask(volume[:, :, :39])
    with pytest.raises(ValueError, match="no foreground"):
        network.multitask(torch.zeros(1, 2, 32, 16, 16))
    with pytest.raises(ValueError, match="overlap of windows"):
        stitched(network, volume, overlap=1.0)
    with pytest.raises(ValueError, match="needs the head 'evidence'"):
        net(head="average_pool")
    with pytest.raises(ValueError, match="2 output channels, got out_channels 3"):
        net(regions=["a", "b"])


def test_one_region_is_todays_network():
    torch.manual_seed(0)
    plain = MultiTaskDynUNet(2, 1, 2, [3, 3, 3], [1, 2, 2], [2, 2], filters=[4, 8, 16]).eval()
    torch.manual_seed(0)
    named = MultiTaskDynUNet(2, 1, 2, [3, 3, 3], [1, 2, 2], [2, 2], filters=[4, 8, 16], regions=["lesion"]).eval()
    assert plain.state_dict().keys() == named.state_dict().keys()
    image = torch.rand(1, 1, 32, 32) + 0.1
    seg = plain(image)
    assert torch.equal(seg, named(image))
    assert torch.equal(tumor_mask(seg, plain), seg.argmax(1, keepdim=True) > 0)
    assert torch.equal(region_probability(seg, False), 1 - torch.softmax(seg, 1)[:, :1])
    assert (plain.regions, named.regions) == (["tumor"], ["lesion"])


def test_a_scripted_network_knows_its_regions():
    network = net(window=None)
    image = torch.rand(1, 2, 16, 16, 16) + 0.1
    scripted = torch.jit.script(network)
    with torch.no_grad():
        assert torch.allclose(scripted.multitask(image)["seg"], network.multitask(image)["seg"], atol=1e-5)
        assert torch.equal(tumor_mask(network(image), scripted), network(image)[:, :1] > 0)


def flat(**options) -> MultiTaskDynUNet:
    torch.manual_seed(3)
    return MultiTaskDynUNet(
        2, 1, 2, [3, 3, 3], [1, 2, 2], [2, 2], filters=[4, 4, 8], evidence_channels=4, **options
    ).eval()


@pytest.mark.parametrize(("levels", "stride"), [(1, [4, 4]), (2, [2, 2]), (3, [1, 1])])
@torch.no_grad()
def test_planes_go_through_in_windows_too(levels, stride):
    network = flat(window=[16, 8], evidence_levels=levels)
    assert evidence_stride(network) == stride
    assert window_words(network) == "16 x 8"
    image = torch.zeros(1, 1, 24, 16)
    image[..., 2:20, 3:14] = torch.rand(18, 11) + 0.1
    found = network.multitask(image)
    assert found["seg"].shape == (1, 2, 24, 16)
    assert list(found["evidence"].shape[2:]) == [24 // stride[0], 16 // stride[1]]
    inside = torch.nn.functional.max_pool2d((image != 0).float(), stride)
    assert torch.equal(found["cls"], network.head.of_evidence(found["evidence"], inside))
    assert sorted(network.multitask(image, classification=False)) == ["seg"]
    assert sorted(network.multitask(image, segmentation=False)) == ["cls", "evidence"]
    assert torch.equal(network(image), found["seg"])


@torch.no_grad()
def test_a_window_of_air_is_background():
    network, image = flat(window=[16, 16]), torch.zeros(1, 1, 48, 16)
    image[..., :8, :] = 1.0
    seg = stitched(network, image, overlap=0.0)["seg"]
    assert (seg[:, 0, 16:] == 10).all()
    assert (seg[:, 1, 16:] == -10).all()
    assert not stitched(network, image, overlap=0.0)["evidence"][..., 8:, :].any()


@torch.no_grad()
def test_a_given_foreground_keeps_a_zeroed_patch_in_the_head():
    network, image = flat(window=[16, 16]), torch.rand(1, 1, 32, 16) + 0.1
    whole = torch.ones_like(image, dtype=torch.uint8)
    for name, value in network.multitask(image).items():
        assert torch.equal(network.multitask(image, whole)[name], value)
    image[..., 4:8, 4:8] = 0
    assert (network(image)[:, 0, 4:8, 4:8] == 10).all()
    assert (network(image, whole)[:, 0, 4:8, 4:8] != 10).all()
    with pytest.raises(ValueError, match="no foreground"):
        network(image, 0 * whole)


@torch.no_grad()
def test_short_axes_are_filled_behind_their_end_each_by_its_own():
    network = flat(window=[16, 8])
    image = torch.rand(1, 1, 8, 12) + 0.1
    found = network.multitask(image)
    assert (found["seg"].shape[2:], found["evidence"].shape[2:]) == ((8, 12), (4, 6))
    padded = network.multitask(torch.nn.functional.pad(image, (0, 0, 0, 8)))
    torch.testing.assert_close(found["seg"], padded["seg"][:, :, :8])
    torch.testing.assert_close(found["cls"], padded["cls"])


@torch.no_grad()
def test_other_outputs_of_windows_are_stitched_alike():
    network, image = flat(window=[16, 16]), torch.rand(1, 1, 32, 16) + 0.1
    places = []

    def outputs(window, mask, place):
        places.append([(s.start, s.stop) for s in place])
        return network.of_window(window, mask, "cls")

    assert torch.equal(network.of_windows(image, outputs, output="cls"), network(image, output="cls"))
    assert places == [[(0, 1), (start, start + 16), (0, 16)] for start in (0, 8, 16)]
    assert network.in_windows(image)
    assert not network.in_windows(image[:, :, :16])
    assert list(network.of_window(image[:, :, :16], torch.ones(1, 1, 16, 16), "seg")) == ["seg"]
    handle = network.bottleneck.register_forward_hook(lambda *_: None)
    network.of_windows(image, outputs, output="evidence")  # whoever gives the outputs answers for the hooks
    handle.remove()


def test_windows_overlap_by_half_at_least_as_far_as_the_stride_goes():
    assert [int(w * (1 - o)) for w, o in zip([16, 24], overlaps([16, 24], [4, 16], 0.5), strict=True)] == [8, 16]
    assert [int(w * (1 - o)) for w, o in zip([16, 24], overlaps([16, 24], [4, 8], 0.0), strict=True)] == [16, 24]
    with pytest.raises(ValueError, match=r"0 or more and less than 1, got -0\.1"):
        overlaps([16], [4], -0.1)
