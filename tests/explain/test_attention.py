"""Attention rollout, by hand and by loops over the matrices that the network itself saved."""

from __future__ import annotations

import monai.networks.nets as nets
import numpy as np
import pytest
import torch
from torch import nn

from scripts.explain.attention import attention_matrices, rollout
from scripts.explain.layers import LayerError
from scripts.explain.methods import explain
from tests.explain.nets import assert_same_state, state_of

SMALL = {"hidden_size": 8, "mlp_dim": 8, "num_heads": 2, "num_layers": 2, "num_classes": 3, "spatial_dims": 2}


def vit(**options):
    torch.manual_seed(0)
    return nets.ViT(1, (8, 8), (4, 4), **{**SMALL, "classification": True, **options})


class Encoder(nn.Module):
    """torch's own transformer on patches, without a class token."""

    def __init__(self, batch_first=True):
        super().__init__()
        self.patches = nn.Conv2d(1, 8, 4, 4)
        layer = nn.TransformerEncoderLayer(8, 2, 8, batch_first=batch_first)
        self.encoder, self.head, self.batch_first = nn.TransformerEncoder(layer, 2), nn.Linear(8, 3), batch_first

    def forward(self, x):
        tokens = self.patches(x).flatten(2).transpose(1, 2)
        if not self.batch_first:
            return self.head(self.encoder(tokens.transpose(0, 1)).mean(0))
        return self.head(self.encoder(tokens).mean(1))


def test_rollout_by_hand():
    # Tokens 0 and 1; both look at token 1 in the first layer and at token 0 in the second.
    first, second = torch.tensor([[[[0.0, 1.0], [0.0, 1.0]]]]), torch.tensor([[[[1.0, 0.0], [1.0, 0.0]]]])
    # A1 = [[.5, .5], [0, 1]], A2 = [[1, 0], [.5, .5]], A2 A1 = [[.5, .5], [.25, .75]].
    assert rollout([first, second]).tolist() == [[[0.5, 0.5], [0.25, 0.75]]]


def test_uniform_attention_of_a_vit_by_hand():
    net, x = vit(), torch.randn(2, 1, 8, 8)
    for block in net.blocks:
        nn.init.zeros_(block.attn.qkv.weight)
    # Two layers of half 1/5 everywhere and half identity: 1 - 1/4 of the class token's sight is spread over 5 tokens.
    result = explain(net, x, "attention_rollout", target="0:1")
    torch.testing.assert_close(result.maps["attention_rollout", "attention"], torch.full((2, 1, 2, 2), 0.15))
    heat, empty = result.on_image("attention_rollout", "attention")
    assert heat.shape == (2, 1, 8, 8)
    assert not empty.any()


@pytest.mark.parametrize("classification", [True, False])
def test_rollout_of_a_vit_is_that_of_the_matrices_that_it_saves(classification):
    net, saving = vit(classification=classification), vit(classification=classification, save_attn=True)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.mul_(3.0)
    saving.load_state_dict(net.state_dict())
    torch.manual_seed(1)
    x = torch.randn(2, 1, 8, 8)
    saving.eval()(x)
    before = state_of(net)

    class Mean(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = net

        def forward(self, x):
            return self.net(x)[0] if classification else self.net(x)[0].mean(1)

    found = explain(Mean(), x, "attention_rollout", target=1).maps["attention_rollout", "attention"]
    assert_same_state(before, state_of(net))
    assert [(block.attn.save_attn, block.attn.att_mat.numel()) for block in net.blocks] == [(False, 0)] * 2
    for i in range(2):
        joint = np.eye(5 if classification else 4)
        for block in saving.blocks:
            joint = (block.attn.att_mat[i].mean(0).double().numpy() + np.eye(len(joint))) / 2 @ joint
        expected = joint[0, 1:] if classification else joint.mean(0)
        np.testing.assert_allclose(found[i, 0].flatten().numpy(), expected, rtol=1e-5)
        assert expected.std() > 1e-3


def test_rollout_of_the_attention_of_torch():
    torch.manual_seed(0)
    net, x = Encoder(), torch.randn(2, 1, 8, 12)
    other = Encoder(batch_first=False)
    other.load_state_dict(net.state_dict())
    before = state_of(net)
    result = explain(net, x, ["attention_rollout", "hirescam"], target=1)
    assert list(result.maps) == [("attention_rollout", "attention"), ("hirescam", "encoder")]
    found = result.maps["attention_rollout", "attention"]
    assert found.shape == (2, 1, 2, 3)
    torch.testing.assert_close(found.sum((1, 2, 3)), torch.ones(2))
    with torch.no_grad(), attention_matrices(net.eval()) as matrices:
        output = net(x)
    net.train()
    torch.testing.assert_close(result.output, output)
    joint = (matrices[1].mean(1) + torch.eye(6)) / 2 @ ((matrices[0].mean(1) + torch.eye(6)) / 2)
    torch.testing.assert_close(found.flatten(1), joint.mean(1))
    torch.testing.assert_close(
        explain(other, x, "attention_rollout", target=1).maps["attention_rollout", "attention"], found
    )
    assert_same_state(before, state_of(net))


def test_networks_without_the_matrices_are_refused_in_one_sentence():
    x = torch.randn(1, 1, 64, 64)
    swin = nets.SwinUNETR(1, 2, spatial_dims=2, feature_size=12, depths=(1, 1, 1, 1), num_heads=(1, 1, 1, 1))
    for net in (swin, nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.LazyLinear(2))):
        with pytest.raises(LayerError, match="has no attention whose matrix can be had"):
            explain(net, x, "attention_rollout", target=1)
    flash = vit()
    flash.blocks[0].attn.use_flash_attention = True
    before = state_of(flash)
    with pytest.raises(LayerError, match=r"'blocks\.0\.attn' of ViT makes no matrix"):
        explain(flash, torch.randn(1, 1, 8, 8), "attention_rollout", target="0:1")
    assert_same_state(before, state_of(flash))

    class Halves(Encoder):
        def forward(self, x):
            return self.head(
                self.encoder(self.patches(x).flatten(2).transpose(1, 2).reshape(-1, 2, 8)).mean(1)[: len(x)]
            )

    with pytest.raises(LayerError, match=r"do not attend among the same tokens .*\(4, 2, 2\)"):
        explain(Halves(), torch.randn(2, 1, 8, 8), "attention_rollout", target=1)
    with pytest.raises(ValueError, match="explains none"):
        explain(vit(), torch.randn(1, 1, 8, 8), "attention_rollout", "blocks.0", target="0:1")
