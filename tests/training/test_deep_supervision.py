"""Deep supervision: coarser levels are taught the mask with halved weights, and nothing else changes."""

from __future__ import annotations

import pytest
import torch

from scripts.networks.deep_supervision import decode_levels, level_weights
from scripts.networks.multitask_dynunet import RARE_LOGIT, MultiTaskDynUNet
from scripts.runs.checkpoint_files import load_weights
from scripts.training.engines import MultiTaskStep
from scripts.training.losses import MultiTaskLoss, coarser_levels
from scripts.training.mask_loss import SegmentationLoss
from tests.networks.nets import gradients, heads

REGIONS = ["whole", "core", "rim"]
OPTIONS = [{}, {"focal_gamma": 2.0}, {"tversky_beta": 0.7}, {"per_item": True}]


def net(deep: bool, dims: int = 2, nested: bool = False, levels: int = 5, **options) -> MultiTaskDynUNet:
    torch.manual_seed(4)
    between = [2] * (levels - 1)
    return MultiTaskDynUNet(
        dims, 1, 3 if nested else 2, [3] * levels, [1, *between], between, filters=[4, 4, 6, 6, 8][:levels],
        evidence_channels=4, regions=REGIONS if nested else None, deep_supervision=deep, **options,
    )  # fmt: skip


def batch(dims: int = 2, nested: bool = False) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Two heads of 32 pixels a side, the first with a mask."""
    image = heads(dims, 32)
    label = torch.zeros(2, 1, *image.shape[2:])
    label[(0, 0, *[slice(11, 23)] * dims)] = 1
    target = {"label": label, "foreground": (image != 0).float(), "diagnosis": torch.tensor([1, 0])}
    target["has_mask"] = torch.tensor([True, False])
    if nested:
        core = torch.zeros_like(label)
        core[(0, 0, *[slice(14, 20)] * dims)] = 1
        target["region_masks"] = torch.cat([label, core, torch.zeros_like(core)], dim=1)
    return image, target


def loss_of(network: MultiTaskDynUNet, nested: bool = False, **options) -> MultiTaskLoss:
    return MultiTaskLoss(
        out_channels=network.out_channels, nested=nested, coarser_levels=coarser_levels(network), **options
    )


@pytest.mark.parametrize(("levels", "weights"), [(4, [2 / 3, 1 / 3]), (5, [4 / 7, 2 / 7, 1 / 7])])
def test_weights_halve_by_level_and_the_coarsest_has_none_as_in_nnunet(levels, weights):
    network = net(True, levels=levels)
    assert level_weights(len(network.deep_heads)) == pytest.approx(weights)
    loss = loss_of(network, seg_weight=3.0)
    found = [loss.weights[name] for name in ("segmentation", *loss.levels)]
    assert found == pytest.approx([3 * w for w in weights])
    assert loss_of(net(False)).weights == MultiTaskLoss().weights


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("dims", [2, 3])
def test_the_loss_is_the_weighted_sum_over_the_levels(dims, nested, options):
    network, (image, target) = net(True, dims, nested), batch(dims, nested)
    with torch.no_grad():
        pred = MultiTaskStep(network).train()(image, target["has_mask"])
    assert [tuple(pred[name].shape[2:]) for name in ("seg", "seg_1", "seg_2")] == [(n,) * dims for n in (32, 16, 8)]
    assert "seg_3" not in pred
    whole = loss_of(network, nested, mask_loss=options)
    rest = {name: value for name, value in pred.items() if not name.startswith("seg")}
    total = float(whole(pred, target)) - float(loss_of(network, nested)(rest, target))
    masks = (target["region_masks"] if nested else target["label"])[:1]
    expected = 0.0
    for k, weight in enumerate(level_weights(2)):
        step = 2**k
        low = masks[(..., *[slice(step // 2, None, step)] * dims)]  # the value in the middle of each cell
        part = SegmentationLoss(network.out_channels, nested, **options)(pred[f"seg_{k}" if k else "seg"], low)
        assert float(whole.parts[f"segmentation_{k}" if k else "segmentation"]) == pytest.approx(float(part), rel=1e-6)
        expected += weight * float(part)
    assert total == pytest.approx(expected, rel=1e-5)


def test_every_level_is_taught_and_air_teaches_nothing():
    network, (image, target) = net(True), batch()
    pred = MultiTaskStep(network).train()(image, target["has_mask"])
    for name in ("seg_1", "seg_2"):
        pred[name].retain_grad()
    loss_of(network)(pred, target).backward()
    for layer in network.deep_heads:
        assert float(layer.weight.grad.abs().max()) > 0
    for name in ("seg_1", "seg_2"):
        air = torch.nn.functional.adaptive_max_pool2d((image[:1] != 0).float(), pred[name].shape[2:]) == 0
        assert bool(air.any())
        assert torch.equal(pred[name][:, :1][air], torch.full_like(pred[name][:, :1][air], 10.0))


def test_parts_of_a_batch_have_the_gradients_of_the_whole():
    found = []
    for parts in (1, 2):
        network, (image, target) = net(True), batch()
        target["has_mask"] = torch.tensor([True, True])
        pred = MultiTaskStep(network, accumulation_steps=parts).train()(image, target["has_mask"])
        loss_of(network)(pred, target).backward()
        found.append(gradients(network))
    assert float(found[0]["deep_heads.0.weight"].abs().max()) > 1e-4
    for name, gradient in found[0].items():
        torch.testing.assert_close(found[1][name], gradient, atol=1e-5, rtol=1e-4, msg=name)


@pytest.mark.parametrize(("dims", "nested"), [(2, False), (3, True)])
def test_inference_is_bit_for_bit_that_of_the_same_weights_without(dims, nested):
    deep, plain = net(True, dims, nested).eval(), net(False, dims, nested).eval()
    for name, value in plain.state_dict().items():
        assert torch.equal(deep.state_dict()[name], value), "all else begins as without"
    image = heads(dims, 32)
    with torch.no_grad():
        found, expected = deep.multitask(image), plain.multitask(image)
        step = MultiTaskStep(deep).eval()(image)
    assert sorted(step) == ["cells", "cls", "evidence", "seg"]
    for name, value in expected.items():
        assert torch.equal(found[name], value)
        assert torch.equal(step[name], value)
    begins = {float(b) for layer in deep.deep_heads for b in layer.bias}
    assert begins == {RARE_LOGIT if nested else 0.0}


def test_files_of_weights_load_into_a_network_with_and_without_it(tmp_path):
    deep, plain = net(True), net(False)
    torch.save(deep.state_dict(), tmp_path / "deep.pt")
    torch.save(plain.state_dict(), tmp_path / "plain.pt")
    loaded = load_weights(net(False), tmp_path / "deep.pt")
    assert torch.equal(loaded.bottleneck.conv1.conv.weight, deep.bottleneck.conv1.conv.weight)
    loaded = load_weights(net(True), tmp_path / "plain.pt")
    assert torch.equal(loaded.bottleneck.conv1.conv.weight, plain.bottleneck.conv1.conv.weight)


def test_weights_fit_a_network_with_and_without_it():
    deep, plain = net(True), net(False)
    with torch.no_grad():
        for parameter in deep.parameters():
            parameter.add_(0.1)
    plain.load_state_dict(deep.state_dict())
    assert torch.equal(plain.bottleneck.conv1.conv.weight, deep.bottleneck.conv1.conv.weight)
    other = net(True)
    own = [layer.weight.clone() for layer in other.deep_heads]
    other.load_state_dict(plain.state_dict())
    assert torch.equal(other.bottleneck.conv1.conv.weight, deep.bottleneck.conv1.conv.weight)
    assert all(torch.equal(layer.weight, value) for layer, value in zip(other.deep_heads, own, strict=True))
    other.load_state_dict(deep.state_dict())
    assert torch.equal(other.deep_heads[0].weight, deep.deep_heads[0].weight)
    broken = {name: value for name, value in deep.state_dict().items() if not name.startswith("bottleneck.conv1")}
    with pytest.raises(RuntimeError, match=r"bottleneck\.conv1"):
        other.load_state_dict(broken)


def test_a_scripted_network_is_that_without_it():
    deep, image = net(True).eval(), heads(2, 32)
    scripted = torch.jit.script(deep)
    with torch.no_grad():
        for name, value in deep.multitask(image).items():
            torch.testing.assert_close(scripted.multitask(image)[name], value, atol=2e-5, rtol=2e-5)


def test_without_it_the_decoder_is_decoded_once_and_nothing_is_kept():
    network, image = net(False), heads(2, 32)
    features, masks = network.encode(image)
    found = decode_levels(network, features, masks)
    assert list(found) == ["seg"]
    assert torch.equal(found["seg"], network.decode(features, masks))
