"""Untrained weights are called untrained, not a wrong class index."""

from __future__ import annotations

import pytest
import torch
from monai.networks.nets import DenseNet121
from torch import nn

from scripts.explain.class_findings import untrained_sign, wrong_class
from scripts.explain.findings import CANNOT_TELL, HOLDS
from scripts.explain.targets import ClassScore


class Brightness(nn.Module):
    """Two logits that follow the mean of the image, the wrong way round; a norm layer as made or as trained."""

    def __init__(self, trained: bool, gain: float = 8.0):
        super().__init__()
        self.conv = nn.Conv2d(1, 2, 1, bias=False)
        self.norm = nn.BatchNorm2d(2).eval()
        self.conv.weight.data = torch.tensor([gain, -gain]).view(2, 1, 1, 1)
        if trained:
            self.norm.weight.data.fill_(0.9)

    def forward(self, x):
        return self.norm(self.conv(x)).mean((2, 3))


def images() -> tuple[torch.Tensor, list[int]]:
    labels = [0] * 8 + [1] * 8
    noise = torch.rand(16, 1, 8, 8, generator=torch.Generator().manual_seed(0)) * 0.1
    return noise + torch.tensor(labels).view(-1, 1, 1, 1), labels


@pytest.mark.parametrize(("trained", "status"), [(True, HOLDS), (False, CANNOT_TELL)])
def test_scores_the_wrong_way_round_are_a_wrong_index_of_a_trained_network_alone(trained, status):
    x, labels = images()
    finding = wrong_class(Brightness(trained), x, labels, ClassScore(1), "conv")
    assert finding.verdict == status
    assert ("untrained" in finding.reason) == (not trained)


def test_signs_of_untrained_weights():
    x, _ = images()
    assert untrained_sign(Brightness(False), torch.zeros(3, 2)) == (
        "all 1 normalization layers are as they were made, with weights 1 and biases 0"
    )
    trained = Brightness(True)
    assert untrained_sign(trained, trained(x)) is None
    assert "probabilities of all 16 images are the same" in untrained_sign(
        Brightness(True, gain=1e-4), trained(x) * 1e-4
    )
    assert "normalization layers" in untrained_sign(
        DenseNet121(2, 1, 2, init_features=4, growth_rate=2), torch.zeros(1, 2)
    )


@pytest.mark.parametrize(("gap", "untrained"), [(0.0098, True), (0.0102, False)])
def test_probabilities_that_spread_by_less_than_half_a_percent_are_the_same(gap, untrained):
    # Of p - gap / 2, p, p + gap / 2 the deviation is half of the gap.
    p = torch.tensor([0.5 - gap / 2, 0.5, 0.5 + gap / 2])[:, None]
    for output in (p.logit(), torch.cat([p, 1 - p], 1).log()):
        sign = untrained_sign(nn.Identity(), output)
        assert (sign is not None) == untrained
    assert untrained_sign(nn.Identity(), torch.zeros(1, 2)) is None, "one image"
    assert untrained_sign(nn.Identity(), torch.zeros(2, 2, 3, 3)) is None, "a segmentation"


def test_one_trained_normalization_is_enough():
    norms = nn.Sequential(nn.BatchNorm2d(2), nn.GroupNorm(1, 2), nn.RMSNorm(2))
    assert "all 3 normalization layers" in untrained_sign(norms, torch.zeros(1, 2))
    norms[1].bias.data[0] = 0.5
    assert untrained_sign(norms, torch.zeros(1, 2)) is None
    assert untrained_sign(nn.Sequential(nn.InstanceNorm2d(2)), torch.zeros(1, 2)) is None, "it has no weights"
