"""Stock constructors of MONAI, 2D and 3D: one call explains each at the layer that a reader of its code would name."""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import Any

import monai.networks.nets as nets
import pytest
import torch
from torch import nn

from scripts.explain.methods import explain
from scripts.explain.outputs import tensors_of
from tests.explain.nets import assert_same_state, state_of

TRANSFORMER = {"hidden_size": 12, "mlp_dim": 16, "num_heads": 2}


def vit(dims: int, size: int, classification: bool = True) -> nn.Module:
    shape, patch = (size,) * dims, (8,) * dims
    return nets.ViT(
        1, shape, patch, num_layers=2, classification=classification, num_classes=3, spatial_dims=dims, **TRANSFORMER
    )


class MeanOfTokens(nn.Module):
    """A ViT without a class token: the mean of its tokens is classified."""

    def __init__(self):
        super().__init__()
        self.vit, self.head = vit(2, 32, classification=False), nn.Linear(12, 3)

    def forward(self, x):
        return self.head(self.vit(x)[0].mean(1))


class MultiTask(nn.Module):
    """A classifier on the bottleneck of a U-Net, and both outputs in a dictionary."""

    def __init__(self, dims: int):
        super().__init__()
        self.unet = dynunet(dims)
        self.classifier = nn.Linear(8, 3)

    def forward(self, x):
        found = []
        handle = self.unet.bottleneck.register_forward_hook(lambda _m, _a, out: found.append(out))
        seg = self.unet(x)
        handle.remove()
        return {"seg": seg, "cls": self.classifier(found[0].flatten(2).mean(2))}


def resnet(dims: int) -> nn.Module:
    return nets.resnet10(spatial_dims=dims, n_input_channels=1, num_classes=3, widen_factor=0.1)


def efficientnet() -> nn.Module:
    return nets.EfficientNetBN("efficientnet-b0", pretrained=False, in_channels=1, num_classes=3)


def seresnet(dims: int) -> nn.Module:
    return nets.SEResNet50(spatial_dims=dims, in_channels=1, num_classes=3, layers=(1, 1, 1, 1))


def unet(dims: int, units: int) -> nn.Module:
    return nets.UNet(dims, 1, 3, (4, 8), (2,), num_res_units=units)


def dynunet(dims: int, **options: Any) -> nn.Module:
    return nets.DynUNet(dims, 1, 2, [3, 3, 3], [1, 2, 2], [2, 2], filters=[4, 6, 8], **options)


def segresnet(dims: int) -> nn.Module:
    return nets.SegResNet(dims, 8, 1, 2, blocks_down=(1, 1), blocks_up=(1,))


def segresnet_ds() -> nn.Module:
    return nets.SegResNetDS(2, 8, 1, 2, blocks_down=(1, 1), blocks_up=(1,))


def flexible_unet() -> nn.Module:
    return nets.FlexibleUNet(1, 2, "efficientnet-b0", decoder_channels=(16, 8, 8, 4, 4), spatial_dims=2)


def swin_unetr(dims: int, **options: Any) -> nn.Module:
    one = {"depths": (1, 1, 1, 1), "num_heads": (1, 1, 1, 1)}
    return nets.SwinUNETR(1, 2, spatial_dims=dims, feature_size=12, **one, **options)


def unetr(*size: int) -> nn.Module:
    return nets.UNETR(1, 2, size, 4, spatial_dims=len(size), **TRANSFORMER)


DEEP = {"deep_supervision": True, "res_block": True}
# name: constructor, size of the image, explained output, layer.
NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], str | None, str]] = {
    "ResNet": (lambda: resnet(2), (64, 48), None, "layer4"),
    "ResNet 3D": (lambda: resnet(3), (32, 32, 48), None, "layer4"),
    "DenseNet": (lambda: nets.DenseNet(2, 1, 3, 8, 4, (2, 2)), (32, 32), None, "class_layers.relu"),
    "DenseNet 3D": (lambda: nets.DenseNet(3, 1, 3, 8, 4, (2, 2)), (16, 16, 16), None, "class_layers.relu"),
    "EfficientNet": (efficientnet, (64, 64), None, "_bn1"),
    "SEResNet": (lambda: seresnet(2), (64, 64), None, "layer4"),
    "SEResNet 3D": (lambda: seresnet(3), (32, 32, 48), None, "layer4"),
    "Classifier": (lambda: nets.Classifier((1, 32, 32), 3, (4, 8), (2, 2)), (32, 32), None, "net"),
    "UNet": (lambda: unet(2, 0), (32, 32), None, "model.1"),
    "UNet of residual units": (lambda: unet(2, 2), (32, 32), None, "model.2.0"),
    "UNet 3D": (lambda: unet(3, 0), (16, 16, 8), None, "model.1"),
    "UNet 3D of residual units": (lambda: unet(3, 1), (16, 16, 8), None, "model.2.0"),
    "BasicUNet": (lambda: nets.BasicUNet(2, 1, 2, (4, 4, 4, 4, 4, 4)), (32, 32), None, "upcat_1"),
    "BasicUNet++": (lambda: nets.BasicUNetPlusPlus(2, 1, 2, (4, 4, 4, 4, 4, 4)), (32, 32), None, "upcat_0_4"),
    "DynUNet": (lambda: dynunet(2), (32, 32), None, "upsamples.1"),
    "DynUNet 3D": (lambda: dynunet(3, **DEEP), (16, 16, 16), None, "upsamples.1"),
    "SegResNet": (lambda: segresnet(2), (32, 32), None, "act_mod"),
    "SegResNet 3D": (lambda: segresnet(3), (16, 16, 16), None, "act_mod"),
    "SegResNetDS": (segresnet_ds, (32, 32), None, "up_layers.0.blocks"),
    "AttentionUnet": (lambda: nets.AttentionUnet(2, 1, 2, (4, 8), (2,)), (32, 32), None, "model.1"),
    "AttentionUnet 3D": (lambda: nets.AttentionUnet(3, 1, 2, (4, 8), (2,)), (16, 16, 8), None, "model.1"),
    "FlexibleUNet": (flexible_unet, (32, 32), None, "decoder"),
    "VNet": (lambda: nets.VNet(spatial_dims=2, out_channels=2), (32, 32), None, "out_tr.act_function1"),
    "HighResNet": (lambda: nets.HighResNet(2, 1, 2), (16, 16), None, "blocks.10"),
    "MedNeXt": (lambda: nets.MedNeXt(2, 4, 1, 2), (32, 32), None, "dec_stages.3"),
    "MedNeXt 3D": (lambda: nets.MedNeXt(3, 4, 1, 2), (32, 16, 16), None, "dec_stages.3"),
    "SwinUNETR": (lambda: swin_unetr(2), (64, 64), None, "decoder1"),
    "SwinUNETR 3D": (lambda: swin_unetr(3), (64, 32, 32), None, "decoder1"),
    "SwinUNETR with checkpoints": (lambda: swin_unetr(2, use_checkpoint=True), (64, 64), None, "decoder1"),
    "UNETR": (lambda: unetr(32, 32), (32, 32), None, "decoder2"),
    "UNETR 3D": (lambda: unetr(32, 16, 16), (32, 16, 16), None, "decoder2"),
    "ViT": (lambda: vit(2, 32), (32, 32), "0", "blocks.0"),
    "ViT 3D": (lambda: vit(3, 16), (16, 16, 16), "0", "blocks.0"),
    "ViT without a class token": (MeanOfTokens, (32, 32), None, "vit.norm"),
    "multi-task, class": (lambda: MultiTask(2), (32, 32), "cls", "unet.bottleneck"),
    "multi-task, segmentation": (lambda: MultiTask(2), (32, 32), "seg", "unet.upsamples.1"),
    "multi-task 3D, class": (lambda: MultiTask(3), (16, 16, 16), "cls", "unet.bottleneck"),
}


@pytest.fixture(scope="module", autouse=True)
def _only_new_objects_are_counted():
    gc.collect()
    gc.freeze()  # else each count walks through a million objects of the imported packages
    yield
    gc.unfreeze()


def living_tensors() -> int:
    gc.collect()
    return sum(issubclass(type(thing), torch.Tensor) for thing in gc.get_objects())


@pytest.mark.parametrize("name", NETWORKS)
def test_each_network_is_explained_in_one_call_at_its_layer(name):
    make, size, head, layer = NETWORKS[name]
    torch.manual_seed(0)
    net, x = make(), torch.randn(1, 1, *size)
    tensors = living_tensors()
    before = state_of(net)
    result = explain(net, x, ["gradcam", "hirescam"], head=head, signed=True)
    assert list(result.maps) == [("gradcam", layer), ("hirescam", layer)]
    for map_ in result.maps.values():
        assert map_.shape[2:].numel() > 1
        assert torch.isfinite(map_).all()
        assert float(map_.abs().max()) > 0
    assert_same_state(before, state_of(net))
    with torch.no_grad():
        output = tensors_of(net.eval()(x))
    torch.testing.assert_close(result.output, output[head] if head else next(iter(output.values())))
    del result, map_, output, before
    assert living_tensors() == tensors
