"""Padding and target of a network that is diagnosed."""

from __future__ import annotations

import torch
from monai.networks.nets import DenseNet121
from torch import nn

from scripts.diagnosis.network import choose_target, padding
from scripts.explain.targets import SegmentationRegion, TumorLogOdds
from tests.networks.nets import heads, tiny

CLS = {"output": "cls"}


def test_the_padding_is_a_multiple_of_the_stride():
    x = torch.zeros(1, 1, 64, 64)
    assert padding(DenseNet121(2, 1, 2, block_config=(2, 2, 2, 2), init_features=8), x, {}) == 32
    assert padding(tiny(), heads(size=24), CLS) == 16
    assert padding(nn.Conv2d(1, 1, 3, padding=1), x, {}, least=5) == 5


def test_the_target_follows_the_output():
    x = heads()
    seg, said = choose_target(tiny(), x, {}, None, None, None)
    assert isinstance(seg, SegmentationRegion)
    assert "channel 1 of the segmentation" in said
    assert choose_target(tiny(), x, CLS, None, None, 3)[0].name == "class_1"
    assert choose_target(tiny(), x, CLS, None, 2, None)[0].name == "class_2"
    assert choose_target(tiny(), x, CLS, "class_2_minus_class_0", None, None)[0].name == "class_2_minus_class_0"
    assert isinstance(choose_target(tiny(), x, CLS, None, None, None, TumorLogOdds())[0], TumorLogOdds)
