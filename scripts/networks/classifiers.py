"""Stock classifiers behind the interface of `MultiTaskDynUNet`, for comparison: they classify and segment nothing."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import torch
from monai.networks.nets import DenseNet121, EfficientNetBN
from torch import nn

from scripts.networks.parts import PARTS, InParts

ARCHITECTURES = ("densenet121", "efficientnet-b0")
# The last features, right in front of the average pooling: there Grad-CAM is the closed-form class activation map.
CAM_LAYERS = {"densenet121": "net.class_layers.relu", "efficientnet-b0": "net._avg_pooling.features"}


class SegmentsNothing(InParts, nn.Module):
    """What `ImageClassifier` and `ClassifierEnsemble` share: one output, and the calls that the bundle makes.

    Args:
        num_classes: K classes, class 0 being "no tumor".
    """

    has_segmentation = False
    has_evidence = False
    threshold: torch.Tensor
    temperature: torch.Tensor
    class_shift: torch.Tensor

    def __init__(self, num_classes: int):
        super().__init__()
        if num_classes < 2:
            raise ValueError(f"num_classes counts class 0 'no tumor' too and is at least 2, got {num_classes}")
        self.num_classes = num_classes
        self.register_buffer("threshold", torch.tensor(0.5))
        self.register_buffer("temperature", torch.tensor(1.0))
        self.register_buffer("class_shift", torch.zeros(num_classes), persistent=False)

    def encode(
        self, x: torch.Tensor, foreground: torch.Tensor | None = None
    ) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        """Last features (B, C, h, w[, d]), a list of one a member, and no masks.

        Args:
            x: (B, C, H, W[, D]).
            foreground: not used: these networks look at all pixels, air included.
        """
        raise NotImplementedError

    def classify(self, features: list[torch.Tensor], masks: list[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        """Class logits (B, K), float32, from `encode`; the second result is an empty tensor, as without evidence."""
        raise NotImplementedError

    def multitask(
        self,
        x: torch.Tensor,
        foreground: torch.Tensor | None = None,
        segmentation: bool = False,
        classification: bool = True,
    ) -> dict[str, torch.Tensor]:
        """The outputs that there are: "cls", (B, K) logits.

        Args:
            x: (B, C, H, W[, D]).
            foreground: not used, see `encode`.
            segmentation: must be False.
            classification: False gives an empty dictionary.

        Raises:
            ValueError: when a segmentation is asked for.
        """
        if segmentation:
            raise ValueError(f"{type(self).__name__} classifies only: it has no segmentation to give")
        return {"cls": self.classify(*self.encode(x))[0]} if classification else {}

    def shift_classes(self, shift: torch.Tensor) -> None:
        """Add (K,) to the calibrated log-probabilities of the classes, see `MultiTaskDynUNet.shift_classes`."""
        self.class_shift.copy_(shift)

    def forward(self, x: torch.Tensor, foreground: torch.Tensor | None = None, output: str = "cls") -> torch.Tensor:
        """Class logits (B, K).

        Raises:
            ValueError: when another output than "cls" is asked for.
        """
        if output != "cls":
            raise ValueError(f"{type(self).__name__} has the output 'cls' alone, got {output!r}")
        return self.multitask(x)["cls"]


class ImageClassifier(SegmentsNothing):
    """MONAI's DenseNet121 or EfficientNet-B0, from random weights, unchanged but for the name of its last features.

    Args:
        architecture: of `ARCHITECTURES`.
        spatial_dims, in_channels: of the image.
        num_classes: K classes, class 0 being "no tumor".

    Raises:
        ValueError: when the architecture is unknown.

    Example:
        >>> net = ImageClassifier("efficientnet-b0", 2, 1, 3).eval()
        >>> net.multitask(torch.rand(2, 1, 64, 64))["cls"].shape
        torch.Size([2, 3])
    """

    def __init__(self, architecture: str, spatial_dims: int = 2, in_channels: int = 1, num_classes: int = 2):
        super().__init__(num_classes)
        if architecture not in ARCHITECTURES:
            raise ValueError(f"architecture is one of {', '.join(ARCHITECTURES)}, got {architecture!r}")
        self.architecture = architecture
        if architecture == "densenet121":
            self.net: Any = DenseNet121(spatial_dims=spatial_dims, in_channels=in_channels, out_channels=num_classes)
        else:
            self.net = EfficientNetBN(
                architecture,
                pretrained=False,
                spatial_dims=spatial_dims,
                in_channels=in_channels,
                num_classes=num_classes,
            )
            # Its last activation is one module with all the others and can not be named; an identity behind it can.
            self.net._avg_pooling = nn.Sequential(OrderedDict(features=nn.Identity(), pool=self.net._avg_pooling))
        self.default_cam_layer = CAM_LAYERS[architecture]

    def encode(
        self, x: torch.Tensor, foreground: torch.Tensor | None = None
    ) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        """Last features (B, C, h, w[, d]) in front of activation (DenseNet) or pooling, as a list; no masks."""
        if self.architecture == "densenet121":
            return [self.net.features(x)], []
        x = self.net._swish(self.net._bn0(self.net._conv_stem(self.net._conv_stem_padding(x))))
        x = self.net._conv_head(self.net._conv_head_padding(self.net._blocks(x)))
        return [self.net._swish(self.net._bn1(x))], []

    def classify(self, features: list[torch.Tensor], masks: list[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        """Class logits (B, K), float32, from `encode`; the second result is an empty tensor."""
        last = features[0]
        if self.architecture == "densenet121":
            logits = self.net.class_layers(last)
        else:
            logits = self.net._fc(self.net._dropout(self.net._avg_pooling(last).flatten(start_dim=1)))
        return logits.float() + self.temperature * self.class_shift, torch.empty(0, device=last.device)

    def parts(self) -> dict[str, list[nn.Module]]:
        """Modules by part: all but the last linear layer is the encoder."""
        if self.architecture == "densenet121":
            return {"encoder": [self.net.features], "decoder": [], "head": [self.net.class_layers]}
        body = [m for name, m in self.net.named_children() if name != "_fc"]
        return {"encoder": body, "decoder": [], "head": [self.net._fc]}


class ClassifierEnsemble(SegmentsNothing):
    """Classifiers whose calibrated probabilities are averaged; its logits are the logarithm of that mean.

    Args:
        members: two or more classifiers of the same classes; each brings its own temperature.

    Raises:
        ValueError: when there are fewer than two, or their classes differ.

    Example:
        >>> members = [ImageClassifier(name, 2, 1, 2) for name in ARCHITECTURES]
        >>> net = ClassifierEnsemble(members).eval()
        >>> torch.softmax(net(torch.rand(1, 1, 64, 64)), 1).sum().round(decimals=4).item()
        1.0
    """

    def __init__(self, members: Sequence[ImageClassifier]):
        if len(members) < 2:
            raise ValueError(f"an ensemble has two members or more, got {len(members)}")
        classes = [member.num_classes for member in members]
        if len(set(classes)) > 1:
            raise ValueError(f"the members of an ensemble know the same classes; got {classes} classes")
        super().__init__(classes[0])
        self.members: Any = nn.ModuleList(members)
        self.cam_layers = tuple(f"members.{i}.{member.default_cam_layer}" for i, member in enumerate(members))

    def encode(
        self, x: torch.Tensor, foreground: torch.Tensor | None = None
    ) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        """Last features of each member, and no masks."""
        return [member.encode(x)[0][0] for member in self.members], []

    def classify(self, features: list[torch.Tensor], masks: list[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        """Logarithm of the members' mean probability, (B, K), float32; the second result is an empty tensor."""
        each = []
        for member, feature_map in zip(self.members, features, strict=True):
            logits, _ = member.classify([feature_map], masks)
            each.append(torch.log_softmax(logits / member.temperature, dim=1))
        mean = torch.logsumexp(torch.stack(each), dim=0) - math.log(len(each))
        return mean + self.temperature * self.class_shift, torch.empty(0, device=mean.device)

    def parts(self) -> dict[str, list[nn.Module]]:
        """Modules by part, of all members."""
        by_member = [member.parts() for member in self.members]
        return {part: [module for parts in by_member for module in parts[part]] for part in PARTS}
