"""Tokens and channels-last maps explained as the same values in a map of channels first."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from scripts.explain.cam import GradCAM, cam_pass
from scripts.explain.grids import as_map
from scripts.explain.layers import LayerError
from scripts.explain.methods import explain
from scripts.explain.recording import default_layer
from scripts.explain.targets import ClassScore

FORMULAS = ("gradcam", "hirescam", "gradcam++", "layercam")


class Form(nn.Module):
    """Features in one of the forms that they have in networks; the identity otherwise."""

    def __init__(self, form: str):
        super().__init__()
        self.form, self.norm = form, nn.LayerNorm(5) if form == "channels last" else nn.Identity()
        self.features = nn.Linear(5, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.features(self.norm(x.flatten(2).transpose(1, 2) if "token" in self.form else x.movedim(1, -1)))
        if self.form == "class token":
            return torch.cat([x.mean(1, keepdim=True), x], 1)
        return x.movedim(-1, 1) if self.form == "channels first" else x


class Net(nn.Module):
    """Convolution, features in a form, and their mean weighted by place, in every form the same number."""

    def __init__(self, form: str, dims: int):
        super().__init__()
        convolution = nn.Conv2d if dims == 2 else nn.Conv3d
        self.stem, self.block, self.head = convolution(1, 5, 4, 4), Form(form), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        features = self.block(self.stem(x))
        if self.block.form == "channels first":
            features = features.flatten(2).transpose(1, 2)
        features = features.flatten(1, -2)[:, -(x[0, 0].numel() // 4 ** (x.dim() - 2)) :]
        places = torch.linspace(-1, 1, features.shape[1])[:, None]
        return self.head((features.square() * places).sum(1))


def build(form: str, dims: int) -> Net:
    torch.manual_seed(0)
    net = Net(form, dims)
    other = Net("channels first", dims)
    net.load_state_dict(other.state_dict(), strict=False)
    return net


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("form", ["tokens", "class token"])
def test_maps_of_tokens_equal_those_of_the_same_features_as_a_map(form, dims):
    torch.manual_seed(1)
    x = torch.randn(2, 1, 16, 8, *[12] * (dims - 2))
    expected = cam_pass(build("channels first", dims), x, "block", ClassScore([0, 2]), FORMULAS, signed=True).maps
    found = cam_pass(build(form, dims), x, "block", ClassScore([0, 2]), FORMULAS, signed=True).maps
    for key, value in expected.items():
        assert value.shape == (2, 1, 4, 2, *[3] * (dims - 2))
        torch.testing.assert_close(found[key], value)


@pytest.mark.parametrize("dims", [2, 3])
def test_maps_of_channels_last_equal_those_of_channels_first(dims):
    torch.manual_seed(1)
    net, x = build("channels last", dims), torch.randn(2, 1, 16, 8, *[12] * (dims - 2))
    found = cam_pass(net, x, "block", ClassScore([0, 2]), FORMULAS, signed=True).maps
    by_hand = cam_pass(
        net, x, "block", ClassScore([0, 2]), FORMULAS, signed=True, reshape_transform=lambda t: t.movedim(-1, 1)
    ).maps
    for key, value in by_hand.items():
        assert value.shape == (2, 1, 4, 2, *[3] * (dims - 2))
        assert torch.equal(found[key], value)
    with torch.no_grad():
        features = net.block(net.stem(x)).movedim(-1, 1)
    weight = net.head.weight[[0, 2]].detach()[:, :, None]
    places = torch.linspace(-1, 1, features[0, 0].numel())
    score_of_places = (weight * features.flatten(2).square() * places).sum(1)  # HiResCAM of a square is twice its share
    torch.testing.assert_close(found["hirescam", "block"].flatten(1), 2 * score_of_places)


def test_every_method_that_explains_layers_takes_tokens():
    torch.manual_seed(1)
    net, x = build("class token", 2), torch.randn(1, 1, 16, 8)
    for method in ("scorecam", "hirescam_frozen"):
        found = explain(net, x, method, "block", 1, signed=True).maps[method, "block"]
        expected = explain(build("channels first", 2), x, method, "block", 1, signed=True).maps[method, "block"]
        torch.testing.assert_close(found, expected)
    cam = GradCAM(net, "block")
    assert cam.feature_map_size((1, 1, 16, 8)) == (1, 1, 4, 2)
    assert cam(x, 1).shape == (1, 1, 16, 8)
    assert cam(x, 1).max() == 1


def grid(shape: tuple[int, ...], size: tuple[int, ...], net: nn.Module | None = None, name: str = "0") -> tuple:
    net = net if net is not None else nn.Sequential(nn.ReLU())
    values, x = torch.zeros(2, *shape), torch.zeros(2, 1, *size)
    return tuple(as_map(net, name, values, x)(values).shape[1:])


def test_grids_by_shape():
    assert grid((64, 7), (32, 32)) == (7, 8, 8)
    assert grid((65, 7), (32, 32)) == (7, 8, 8)
    assert grid((6, 7), (32, 48)) == (7, 2, 3)
    assert grid((7, 4), (48, 32)) == (4, 3, 2)  # a class token and a grid of 3 x 2
    assert grid((9, 7), (33, 34)) == (7, 3, 3)  # strides rounded
    assert grid((8, 7), (16, 16, 16)) == (7, 2, 2, 2)
    assert grid((33, 7), (32, 32, 16)) == (7, 4, 4, 2)
    assert grid((11, 7), (22, 3)) == (7, 11, 1)  # strides 2 and 3
    assert grid((5, 3), (10,)) == (5, 3)  # of one axis, three axes are a map


def test_channels_last_by_shape():
    norms = nn.Sequential(nn.Sequential(nn.LayerNorm(8), nn.Linear(8, 8)), nn.Conv2d(8, 8, 1), nn.GELU())
    assert grid((4, 4, 8), (32, 32), norms, "2") == (8, 4, 4)  # (4, 8) is no grid of one stride
    assert grid((8, 4, 4), (32, 32), norms, "2") == (8, 4, 4)
    assert grid((4, 4, 6), (32, 32), norms, "2") == (4, 4, 6)  # no layer norm over 6 channels
    assert grid((8, 8, 8), (32, 32), norms, "0") == (8, 8, 8)
    values = torch.arange(2 * 8 * 8 * 8).reshape(2, 8, 8, 8)
    assert torch.equal(as_map(norms, "0", values, torch.zeros(2, 1, 32, 32))(values), values.movedim(-1, 1))
    assert torch.equal(as_map(norms, "1", values, torch.zeros(2, 1, 32, 32))(values), values)
    with pytest.raises(LayerError, match=r"'2' of Sequential puts out \(2, 8, 8, 8\), whose channels may be"):
        grid((8, 8, 8), (32, 32), norms, "2")


def test_shapes_of_no_grid_or_of_several_are_refused_in_one_sentence():
    with pytest.raises(LayerError, match=r"the 23 tokens of layer '0' fill no grid of an image of \(32, 32\)"):
        grid((23, 7), (32, 32))
    with pytest.raises(LayerError, match=r"the 8 tokens of layer '0' lie on one of several grids of an image"):
        grid((8, 7), (32, 32))
    with pytest.raises(LayerError, match=r"'0' of Sequential puts out \(2, 7\); expected \(2, C, \*spatial\)"):
        grid((7,), (32, 32))
    values, x = torch.zeros(8, 16, 7), torch.zeros(2, 1, 32, 32)  # windows of Swin, four an image
    with pytest.raises(LayerError, match=r"puts out \(8, 16, 7\); expected"):
        as_map(nn.Sequential(nn.ReLU()), "0", values, x)
    with pytest.raises(LayerError, match=r"reshape_transform made \(2, 7, 8\) of layer '0'"):
        as_map(nn.Sequential(nn.ReLU()), "0", torch.zeros(2, 8, 7), x, lambda t: t.transpose(1, 2))


def test_default_layer_of_tokens_hands_on_more_than_the_class_token():
    class ClassToken(nn.Module):
        def __init__(self):
            super().__init__()
            self.net, self.mix, self.last = build("class token", 2), nn.Linear(9, 9), nn.LayerNorm(5)

        def forward(self, x):
            tokens = self.net.block(self.net.stem(x))
            tokens = self.mix(tokens.transpose(1, 2)).transpose(1, 2)
            return self.net.head(self.last(tokens)[:, 0])

    net, x = ClassToken(), torch.randn(1, 1, 16, 8)
    assert default_layer(net, x) == "net.block"
    assert default_layer(build("tokens", 2), x) == "block"


def test_axes_of_tokens_and_of_other_batches():
    assert grid((3, 5, 7), (32, 32)) == (3, 5, 7), "as many axes as the image"
    net = nn.Sequential(nn.ReLU())
    for values, x in (
        (torch.zeros(3, 4, 4, 4), torch.zeros(2, 1, 32, 32)),
        (torch.zeros(3, 16, 4), torch.zeros(2, 1, 32, 32)),
        (torch.zeros(2, 4, 4, 4), torch.zeros(2, 1, 8, 8, 8)),
        (torch.zeros(2, 4, 4, 4, 4), torch.zeros(2, 1, 8, 8)),
    ):
        with pytest.raises(LayerError, match="puts out"):
            as_map(net, "0", values, x)
    with pytest.raises(LayerError, match=r"expected \(2, C, \*grid\) with 2 axes of a grid"):
        as_map(net, "0", torch.zeros(2, 3, 4, 4), torch.zeros(2, 1, 8, 8), lambda t: t[:1])
    given = as_map(net, "0", torch.zeros(2, 9), torch.zeros(2, 1, 3, 3), lambda t: t.reshape(len(t), 1, 3, 3))
    assert given(torch.zeros(2, 9)).shape == (2, 1, 3, 3)


def test_tokens_lie_in_the_order_of_their_places_the_last_axis_fastest():
    tokens = torch.arange(6.0)[None, :, None].repeat(2, 1, 3)
    x = torch.zeros(2, 1, 32, 48)
    net = nn.Sequential(nn.ReLU())
    assert as_map(net, "0", tokens, x)(tokens)[0, 1].tolist() == [[0.0, 1.0, 2.0], [3.0, 4.0, 5.0]]
    with_class = torch.cat([torch.full((2, 1, 3), 99.0), tokens], 1)
    assert as_map(net, "0", with_class, x)(with_class)[1, 2].tolist() == [[0.0, 1.0, 2.0], [3.0, 4.0, 5.0]]


@pytest.mark.parametrize(
    ("tokens", "size", "expected"),
    [
        (4, (8, 8), (2, 2)),
        (5, (8, 8), (2, 2)),
        (12, (32, 48), (3, 4)),  # rounded up: 32 / 12
        (16, (30, 30), (4, 4)),  # rounded up: 30 / 8
        (9, (30, 31), (3, 3)),  # rounded down: 30 / 10, 31 / 10
        (2, (8, 8), None),  # one cell is no grid, and 1 x 2 or 2 x 1
        (3, (8, 8), None),
        (17, (16, 16), (4, 4)),
        (10, (3, 3), (3, 3)),  # of single pixels, behind a class token
    ],
)
def test_grids_of_tokens(tokens, size, expected):
    if expected is None:
        with pytest.raises(LayerError, match="tokens of layer"):
            grid((tokens, 7), size)
    else:
        assert grid((tokens, 7), size) == (7, *expected)
