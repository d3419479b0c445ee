"""Small networks whose maps can be computed by hand, and the stock design."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from scripts.explain.cam import cam_pass
from scripts.networks.multitask_dynunet import MultiTaskDynUNet
from tests.networks.nets import tiny

CLS = {"output": "cls"}


def cam_maps(*arguments: Any, **options: Any) -> dict[tuple[str, str], torch.Tensor]:
    """The maps of `cam_pass`."""
    return cam_pass(*arguments, **options).maps


class PooledLinear(nn.Module):
    """Convolution, ReLU, global average pooling, linear layer: CAM, Grad-CAM and HiResCAM agree up to scale."""

    def __init__(self, inplace: bool = False, classes: int = 3, dims: int = 2):
        super().__init__()
        conv = nn.Conv2d if dims == 2 else nn.Conv3d
        self.conv = conv(1, 4, 3, padding=1)
        self.relu = nn.ReLU(inplace=inplace)
        self.fc = nn.Linear(4, classes)

    def forward(self, x):
        return self.fc(self.relu(self.conv(x)).flatten(2).mean(2))


class InplaceResidual(nn.Module):
    """The pattern of DynUNet's residual blocks: `out += residual` behind the norm, one activation used twice."""

    def __init__(self, inplace: bool = True):
        super().__init__()
        self.inplace = inplace
        self.conv1, self.conv2 = nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.norm1, self.norm2 = nn.InstanceNorm2d(4, affine=True), nn.InstanceNorm2d(4, affine=True)
        self.lrelu = nn.LeakyReLU(0.1, inplace=inplace)
        self.fc = nn.Linear(4, 2)

    def forward(self, x):
        out = self.lrelu(self.norm1(self.conv1(x)))
        residual = out
        out = self.norm2(self.conv2(out))
        if self.inplace:
            out += residual
        else:
            out = out + residual
        return self.fc(self.lrelu(out).square().flatten(2).mean(2))


class Wrapped(nn.Module):
    """A network inside another one, chosen output by keyword."""

    def __init__(self, inner: nn.Module):
        super().__init__()
        self.inner = nn.ModuleDict({"net": inner})

    def forward(self, x, scale=1.0):
        return self.inner["net"](x) * scale


class TinySegmenter(nn.Module):
    """Two convolutions, dense output of two channels, stride 1."""

    def __init__(self):
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(1, 3, 3, padding=1), nn.LeakyReLU(0.1))
        self.out = nn.Conv2d(3, 2, 1)

    def forward(self, x):
        return self.out(self.features(x))


class TwoOutputs(nn.Module):
    """Encoder, class head, and a decoder that runs afterwards; a dictionary of both outputs, or one of them."""

    def __init__(self, only: str | None = None):
        super().__init__()
        self.only = only
        self.encoder = nn.Sequential(nn.Conv2d(1, 4, 3, stride=2, padding=1), nn.InstanceNorm2d(4), nn.ReLU())
        self.last = nn.Sequential(nn.Conv2d(4, 6, 3, stride=2, padding=1), nn.ReLU())
        self.fc = nn.Linear(6, 2)
        self.decoder = nn.Sequential(nn.ConvTranspose2d(4, 3, 2, 2), nn.ReLU())
        self.out = nn.Conv2d(3, 2, 1)

    def forward(self, x):
        features = self.encoder(x)
        found = {"cls": self.fc(self.last(features).flatten(2).mean(2)), "seg": self.out(self.decoder(features))}
        return found if self.only is None else found[self.only]


class EvidenceNet(nn.Module):
    """Features, a bias-free 1x1 evidence convolution, and a pooling of the evidence into class logits."""

    def __init__(self, pooling: str = "lse", classes: int = 3):
        super().__init__()
        self.pooling = pooling
        self.features = nn.Sequential(nn.Conv2d(1, 5, 3, padding=1, stride=2), nn.LeakyReLU(0.1))
        self.evidence = nn.Conv2d(5, classes, 1, bias=False)
        self.bias = nn.Parameter(torch.linspace(-1, 1, classes))

    def forward(self, x, output="cls"):
        evidence = self.evidence(self.features(x))
        if output == "evidence":
            return evidence
        flat = evidence.flatten(2)
        pooled = flat.mean(2) if self.pooling == "mean" else (flat * 5).logsumexp(2) / 5
        return pooled + self.bias


def undecided() -> tuple[nn.Module, torch.Tensor]:
    """A network and inputs (4, 1, 6, 6) of which not all have the same top class."""
    torch.manual_seed(1)
    net, x = PooledLinear(), torch.randn(4, 1, 6, 6)
    x[::2] += 2.0
    with torch.no_grad():
        features = net.relu(net.conv(x)).flatten(2).mean(2)
        net.fc.weight.mul_(5.0)
        net.fc.bias.copy_(-(features @ net.fc.weight.T).mean(0))
    return net, x


def undecided_segmenter() -> tuple[nn.Module, torch.Tensor]:
    """A segmenter and inputs (2, 1, 6, 6) in which it predicts channel 1 in about half of the pixels."""
    torch.manual_seed(0)
    net, x = TinySegmenter(), torch.randn(2, 1, 6, 6)
    with torch.no_grad():
        logits = net(x)
        net.out.bias[1] -= (logits[:, 1] - logits[:, 0]).median()
    return net, x


def state_of(model: nn.Module) -> dict:
    """Everything that an explanation must leave alone."""
    return {
        "modes": [m.training for m in model.modules()],
        "requires_grad": [p.requires_grad for p in model.parameters()],
        "grads": [None if p.grad is None else p.grad.clone() for p in model.parameters()],
        "tensors": {k: v.clone() for k, v in model.state_dict().items()},
        "hooks": sum(
            len(m._forward_hooks) + len(m._backward_hooks) + len(m._forward_pre_hooks) for m in model.modules()
        ),
    }


def assert_same_state(before: dict, after: dict) -> None:
    assert before["modes"] == after["modes"]
    assert before["requires_grad"] == after["requires_grad"]
    assert before["hooks"] == after["hooks"]
    for a, b in zip(before["grads"], after["grads"], strict=True):
        assert (a is None) == (b is None)
        assert a is None or torch.equal(a, b)
    for key, value in before["tensors"].items():
        assert torch.equal(value, after["tensors"][key]), key


def peaked(maps):
    """Maps with a strongest place of 1."""
    return maps / maps.amax(tuple(range(1, maps.dim())), keepdim=True)


def stock(**options):
    """The stock design: normalization and pooling over the air as well."""
    return tiny(normalization="instance", head="average_pool", **options)


def windowed() -> MultiTaskDynUNet:
    """A network of 3D patches of 16 voxels a side, two sequences and three nested regions, with evidence to see."""
    torch.manual_seed(3)
    made = MultiTaskDynUNet(
        3, 2, 3, [3, 3, 3], [1, 2, 2], [2, 2], filters=[4, 4, 8], evidence_channels=4,
        regions=["whole", "core", "rim"], window=[16, 16, 16],
    )  # fmt: skip
    nn.init.normal_(made.head.evidence.conv.weight, std=0.5)
    return made.eval()
