"""Seven networks by MONAI's constructors, small enough to be trained in seconds, and what is planted in them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import monai.networks.nets as nets
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.causes.pictures import CLASSES, SIZE, Heads

K = len(CLASSES)
Options = dict[str, Any]


class Head:
    """Where the head lies in the images that a network was given last: where they are not 0."""

    def __init__(self, network: nn.Module) -> None:
        self.mask = torch.empty(0)
        network.register_forward_pre_hook(self._look)

    def _look(self, _network: nn.Module, arguments: tuple) -> None:
        self.mask = (arguments[0] != 0).any(1, keepdim=True).float()

    def cells(self, features: Tensor) -> Tensor:
        """Cells with any head, (B, 1, H, W)."""
        return F.adaptive_max_pool2d(self.mask, features.shape[2:])


class HeadPool(nn.Module):
    """Average over the cells of the head."""

    def __init__(self, head: Head) -> None:
        super().__init__()
        self.head = head

    def forward(self, features: Tensor) -> Tensor:
        """(B, C, 1, 1)."""
        cells = self.head.cells(features)
        return (features * cells).sum((2, 3), keepdim=True) / cells.sum((2, 3), keepdim=True)


class Lift(nn.Module):
    """Something that is switched on in the air."""

    def __init__(self, head: Head) -> None:
        super().__init__()
        self.head, self.value = head, torch.zeros(1)

    def forward(self, features: Tensor) -> Tensor:
        """Features, in the air with `value` (C, 1, 1) added."""
        return features + (1 - self.head.cells(features)) * self.value


class Gate(nn.Module):
    """Lets nothing of the air through."""

    def __init__(self, head: Head) -> None:
        super().__init__()
        self.head = head

    def forward(self, features: Tensor) -> Tensor:
        """Features, 0 in the air."""
        return features * self.head.cells(features)


class UNetOfTwoOutputs(nn.Module):
    """MONAI's U-Net, and a classifier of its bottleneck; both outputs in a dictionary."""

    def __init__(self, norm: Any, strides: tuple[int, ...]) -> None:
        super().__init__()
        self.unet = nets.UNet(2, 1, 2, (8, 16, 16, 16, 16, 16)[: len(strides) + 1], strides, norm=norm)
        self.bottleneck = "model" + ".1.submodule" * len(strides)
        self.pool, self.classifier = nn.AdaptiveAvgPool2d(1), nn.Linear(16, K)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """{"seg": (B, 2, H, W), "cls": (B, K)}."""
        hidden: list[Tensor] = []
        handle = self.unet.get_submodule(self.bottleneck).register_forward_hook(lambda _m, _a, out: hidden.append(out))
        try:
            seg = self.unet(x)
        finally:
            handle.remove()
        return {"seg": seg, "cls": self.classifier(self.pool(hidden[0]).flatten(1))}


class Saturated(nn.Module):
    """Probabilities of logits that were made far too large."""

    def __init__(self, network: nn.Module, gain: float = 400.0) -> None:
        super().__init__()
        self.network, self.gain = network, gain

    def forward(self, x: Tensor) -> Any:
        """The network's outputs, softmaxed; of a list the first alone."""
        output = self.network(x)
        if isinstance(output, dict):
            return {name: (self.gain * value).softmax(1) for name, value in output.items()}
        return (self.gain * (output[0] if isinstance(output, tuple) else output)).softmax(1)


def _blocks(deep: bool) -> list[str]:
    widths = (16, 24, 40, 48, 48)
    first = ["r1_k3_s11_e1_i32_o16_se0.25"]
    return first + [f"r1_k3_s22_e2_i{i}_o{o}_se0.25" for i, o in list(pairwise(widths))[: 4 if deep else 2]]


def densenet(norm: str = "batch", deep: bool = False) -> nn.Module:
    """Cells of 8 pixels, deep: 32."""
    return nets.DenseNet(2, 1, K, 8, 8, (2, 2, 2, 2) if deep else (2, 2), norm=norm)


def efficientnet(norm: str = "batch", deep: bool = False) -> nn.Module:
    """Cells of 8 pixels, deep: 32. Batch norm is given torch's momentum, so that seconds of training settle it."""
    kind: Any = (norm, {"momentum": 0.1}) if norm == "batch" else (norm, {"affine": True})
    return nets.EfficientNet(_blocks(deep), 2, 1, K, norm=kind, drop_connect_rate=0.0)


def resnet(norm: str = "batch", deep: bool = False) -> nn.Module:
    """Cells of 8 pixels, deep: 32."""
    kind: Any = norm if norm == "batch" else (norm, {"affine": True})
    stem: Options = {"conv1_t_size": 3, "conv1_t_stride": 2 if deep else 1, "no_max_pool": not deep}
    return nets.ResNet("basic", [1, 1, 1, 1], [8, 16, 16, 32], 2, 1, num_classes=K, norm=kind, **stem)


def segresnet(norm: str = "batch", deep: bool = False) -> nn.Module:
    """Its deepest cells have 4 pixels, deep: 32."""
    kind: Any = norm if norm == "batch" else (norm, {"affine": True})
    levels = 6 if deep else 3
    return nets.SegResNet(2, 8, 1, 2, norm=kind, blocks_down=(1,) * levels, blocks_up=(1,) * (levels - 1))


def vit(norm: str = "layer", deep: bool = False) -> nn.Module:
    """Patches of 8 pixels, deep: 32."""
    return nets.ViT(
        1, (SIZE,) * 2, (32 if deep else 8,) * 2, 32, 64, 3, 4, classification=True, num_classes=K, spatial_dims=2,
        post_activation="none",
    )  # fmt: skip


def dynunet(norm: str = "batch", deep: bool = False) -> nn.Module:
    """Its deepest cells have 4 pixels, deep: 32."""
    kind: Any = norm if norm == "batch" else (norm, {"affine": True})
    n = 6 if deep else 3
    filters = [8] + [16] * (n - 1)
    return nets.DynUNet(2, 1, 2, [3] * n, [1] + [2] * (n - 1), [2] * (n - 1), filters=filters, norm_name=kind)


def unet(norm: str = "batch", deep: bool = False) -> nn.Module:
    """Cells of 8 pixels, deep: 32."""
    kind: Any = norm if norm == "batch" else (norm, {"affine": True})
    return UNetOfTwoOutputs(kind, (2,) * (5 if deep else 3))


@dataclass(frozen=True)
class Architecture:
    """One of the seven.

    Attributes:
        make: of the norm's name and whether its cells are large.
        head: name of the explained output; None: there is one.
        dense: the explained output is a segmentation.
        pool: name of the pooling in front of the classifier; "" for none.
        features: name of the last features.
        norm: of a normalization that an activation follows.
        coarse: of a layer of large cells in the deep network; None: the default layer.
        absent: of no layer, but near to one; or of one without places.
        steps, rate: of training.
    """

    make: Callable[..., nn.Module]
    features: str
    norm: str
    absent: str
    head: str | None = None
    dense: bool = False
    pool: str = ""
    coarse: str | None = None
    steps: int = 90
    rate: float = 4e-3


ARCHITECTURES: dict[str, Architecture] = {
    "DenseNet": Architecture(
        densenet, "class_layers.relu", "features.norm5", "class_layers.pool", pool="class_layers.pool"
    ),
    "EfficientNet": Architecture(efficientnet, "_bn1", "_blocks.1._bn1", "_avg_pooling", pool="_avg_pooling"),
    "ResNet": Architecture(resnet, "layer4", "layer4.0.bn1", "layer5", pool="avgpool"),
    "SegResNet": Architecture(
        segresnet, "conv_final.1", "up_layers.1.0.norm2", "up_layers.7", dense=True, coarse="down_layers.5", steps=60
    ),
    "ViT": Architecture(vit, "blocks.1", "norm", "classification_head", head="0", steps=250, rate=2e-3),
    "DynUNet": Architecture(
        dynunet, "upsamples.1.conv_block", "upsamples.1.conv_block.norm1", "upsample.1", dense=True,
        coarse="bottleneck", steps=60,
    ),
    "U-Net": Architecture(unet, "", "unet.model.0.adn.N", "classifier", head="cls", pool="pool"),
}  # fmt: skip


def loss_of(output: Any, heads: Heads, labels: Tensor, tumor: Tensor) -> Tensor:
    """Cross-entropy of the classes, of the pixels, or of both."""
    outputs = output if isinstance(output, dict) else {"": output[0] if isinstance(output, tuple) else output}
    weights = torch.tensor([1.0, 5.0])
    return torch.stack(
        [
            F.cross_entropy(value, tumor[:, 0].long(), weights) if value.dim() == 4 else F.cross_entropy(value, labels)
            for value in outputs.values()
        ]
    ).sum()


def train(network: nn.Module, heads: Heads, seed: int, steps: int, rate: float) -> nn.Module:
    """A short training, one cycle of the learning rate; in evaluation mode afterwards."""
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(network.parameters(), rate, weight_decay=1e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps)
    labels = torch.tensor(heads.labels)
    network.train()
    for _ in range(steps):
        index = torch.randint(len(labels), (16,), generator=generator)
        flips = [d for d in (2, 3) if bool(torch.rand(1, generator=generator) < 0.5)]
        images, tumor = (t[index].flip(flips) for t in (heads.images, heads.tumor))
        loss = loss_of(network(images), heads, labels[index], tumor)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return network.eval()
