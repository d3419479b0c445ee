"""Nothing about the air reaches a prediction, an evidence map or an activation."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from scripts.explain.maps import max_scaling
from scripts.explain.targets import SegmentationRegion, TumorLogOdds
from tests.explain.nets import cam_maps
from tests.networks.nets import BLOCKS, TOTAL_STRIDE, crop, heads, pad_with_air, tiny

TOLERANCE = 1e-4
# Other amounts on every side, all multiples of the total stride; torch's order, last axis first.
PADDINGS = {2: [4, 8, 12, 4], 3: [4, 8, 4, 4, 8, 4]}
SIZES = {2: 24, 3: 12}


def outputs(network: nn.Module, x: torch.Tensor) -> dict[str, torch.Tensor]:
    with torch.no_grad():
        return network.multitask(x)


def activations(network: nn.Module, x: torch.Tensor, names=(*BLOCKS, "head.features")) -> dict[str, torch.Tensor]:
    """Output of every block in one forward pass, with gradients."""
    kept: dict[str, torch.Tensor] = {}
    hooks = [
        network.get_submodule(name).register_forward_hook(lambda _, __, out, name=name: kept.update({name: out}))
        for name in names
    ]
    kept.update(network.multitask(x))
    for hook in hooks:
        hook.remove()
    return kept


def cells_with_foreground(x: torch.Tensor, size: torch.Size) -> torch.Tensor:
    """(B, 1, h, w[, d]) bool: cells of a layer's grid with any foreground pixel, found apart from the network."""
    inside = (x != 0).any(1, keepdim=True)
    for axis, cells in enumerate(size):
        inside = inside.unflatten(2 + axis, (cells, inside.shape[2 + axis] // cells)).any(dim=3 + axis)
    return inside


class Cam:
    """Grad-CAM and HiResCAM at one block by their formulas, before ReLU, scaled to a largest magnitude of 1."""

    def __init__(self, network: nn.Module, image: torch.Tensor, name: str):
        found = activations(network, image)
        activation, axes = found[name], tuple(range(2, image.ndim))
        inside = (image != 0).float()
        # Segmentation for the decoder's blocks, which the class logits do not pass.
        score = found["seg"][:, 1:] * inside if name.startswith("upsamples") else tumor_log_odds(found["cls"])
        (self.gradient,) = torch.autograd.grad(score.sum(), activation)
        self.cells = cells_with_foreground(image, activation.shape[2:]).float()
        count = self.cells.sum(axes, keepdim=True)
        self.weight = self.gradient.mean(axes, keepdim=True)
        self.foreground_weight = (self.gradient * self.cells).sum(axes, keepdim=True) / count
        self.grad_cam = self._map(self.weight * activation)
        self.foreground_grad_cam = self._map(self.foreground_weight * activation)
        self.hires_cam = self._map(self.gradient * activation)

    def _map(self, terms: torch.Tensor) -> torch.Tensor:
        cam = terms.sum(1, keepdim=True).detach()
        assert (cam[self.cells == 0] == 0).all(), "energy in air"
        return cam / cam.abs().amax(dim=tuple(range(1, cam.ndim)), keepdim=True)


def tumor_log_odds(logits: torch.Tensor) -> torch.Tensor:
    return logits[:, 1:].logsumexp(1) - logits[:, 0]


@pytest.mark.parametrize("touching", [False, True], ids=["inside", "touching the border"])
@pytest.mark.parametrize("dims", [2, 3])
def test_more_air_changes_nothing(dims, touching):
    network, x = tiny(dims), heads(dims, SIZES[dims], touching=touching)
    padding = PADDINGS[dims]
    plain, padded = outputs(network, x), outputs(network, pad_with_air(x, padding))
    torch.testing.assert_close(padded["cls"], plain["cls"], atol=TOLERANCE, rtol=0)
    torch.testing.assert_close(crop(padded["seg"], padding), plain["seg"], atol=TOLERANCE, rtol=0)
    torch.testing.assert_close(crop(padded["evidence"], padding, 2), plain["evidence"], atol=TOLERANCE, rtol=0)
    # All of the evidence lies in the part that was there before.
    assert padded["evidence"].abs().sum() == pytest.approx(float(plain["evidence"].abs().sum()), rel=1e-4)
    # The figures are large enough for the tolerance to mean something.
    assert plain["evidence"].abs().max() > 0.1
    assert plain["seg"][x.expand_as(plain["seg"]) != 0].std() > 0.1


@pytest.mark.parametrize(
    "options",
    [
        {"pooling": "mean"},
        {"evidence_levels": 1},
        {"evidence_levels": 3},
        {"evidence": "rectified"},
        {"evidence": "softplus"},
    ],
)
def test_more_air_changes_nothing_with_other_heads(options):
    network, x = tiny(**options), heads(touching=True)
    plain, padded = outputs(network, x), outputs(network, pad_with_air(x, PADDINGS[2]))
    stride = x.shape[-1] // plain["evidence"].shape[-1]
    torch.testing.assert_close(padded["cls"], plain["cls"], atol=TOLERANCE, rtol=0)
    torch.testing.assert_close(crop(padded["evidence"], PADDINGS[2], stride), plain["evidence"], atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize(
    "options",
    [{"normalization": "instance"}, {"normalization": "instance", "head": "average_pool"}, {"masked_pooling": False}],
    ids=["stock normalization", "stock design", "pooling over air"],
)
def test_without_the_design_more_air_changes_the_logits(options):
    network, x = tiny(**options), heads()
    plain, padded = outputs(network, x), outputs(network, pad_with_air(x, PADDINGS[2]))
    assert (padded["cls"] - plain["cls"]).abs().max() > 100 * TOLERANCE


def test_stock_normalization_changes_the_segmentation_and_fills_the_air():
    network, x = tiny(normalization="instance"), heads()
    plain, padded = activations(network, x), outputs(network, pad_with_air(x, PADDINGS[2]))
    assert (crop(padded["seg"], PADDINGS[2]) - plain["seg"]).abs().max() > 100 * TOLERANCE
    first = plain["input_block"]
    air = ~cells_with_foreground(x, first.shape[2:]).expand_as(first)
    assert (first[air] != 0).float().mean() > 0.99


@pytest.mark.parametrize("dims", [2, 3])
def test_noise_in_air_before_masking_changes_nothing(dims):
    network, x = tiny(dims), heads(dims, SIZES[dims])
    foreground = (x != 0).float()
    noisy = x + torch.randn_like(x) * (1 - foreground)
    clean, masked = outputs(network, x), outputs(network, noisy * foreground)
    for name in clean:
        torch.testing.assert_close(masked[name], clean[name], atol=TOLERANCE, rtol=0)
    assert (outputs(network, noisy)["cls"] - clean["cls"]).abs().max() > 100 * TOLERANCE, "unmasked noise does matter"


def test_noise_in_air_changes_nothing_when_the_foreground_is_given():
    # As for the blurred baseline of integrated gradients, which bleeds into the air.
    network, x = tiny(), heads()
    foreground = (x != 0).float()
    noisy = x + torch.randn_like(x) * (1 - foreground)
    with torch.no_grad():
        clean, given = network.multitask(x), network.multitask(noisy, foreground)
    for name in clean:
        torch.testing.assert_close(given[name], clean[name], atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("touching", [False, True], ids=["inside", "touching the border"])
@pytest.mark.parametrize("dims", [2, 3])
def test_activations_are_exactly_zero_in_air_at_every_block(dims, touching):
    network, x = tiny(dims), heads(dims, SIZES[dims], touching=touching)
    found = activations(network, x)
    for name in (*BLOCKS, "head.features", "evidence"):
        activation = found[name].detach()
        inside = cells_with_foreground(x, activation.shape[2:])
        assert (~inside).any(), "no air cell to look at"
        assert (activation[~inside.expand_as(activation)] == 0).all(), name
        if name != "evidence":
            assert (activation[inside.expand_as(activation)] != 0).all(), name


def test_evidence_of_class_0_is_exactly_zero():
    evidence = outputs(tiny(), heads())["evidence"]
    assert (evidence[:, 0] == 0).all()
    assert (evidence[:, 1:].abs().amax((2, 3)) > 0.1).all()


def test_segmentation_in_air_is_background():
    seg = outputs(tiny(), heads())["seg"]
    air = heads()[:, 0] == 0
    assert (seg[:, 0][air] == 10).all()
    assert (seg[:, 1][air] == -10).all()


ENCODER_BLOCKS = ("input_block", "downsamples.0", "bottleneck")


def image_with_room(dims: int, touching: bool = False) -> torch.Tensor:
    """A cell of air or more on each side of the head, at the bottleneck too, unless it touches the border."""
    x = heads(dims, SIZES[dims], touching=touching)
    return x if touching else pad_with_air(x, [TOTAL_STRIDE] * 2 * dims)


def both_cams(dims: int, name: str, touching: bool = False) -> tuple[Cam, Cam, int]:
    network, x = tiny(dims), image_with_room(dims, touching)
    plain, padded = Cam(network, x, name), Cam(network, pad_with_air(x, PADDINGS[dims]), name)
    return plain, padded, x.shape[-1] // plain.cells.shape[-1]


@pytest.mark.parametrize("touching", [False, True], ids=["inside", "touching the border"])
@pytest.mark.parametrize("dims", [2, 3])
def test_hires_cam_and_foreground_grad_cam_at_every_block_are_the_same_with_more_air(dims, touching):
    for name in (*BLOCKS, "head.features"):
        plain, padded, stride = both_cams(dims, name, touching)
        for kind in ("hires_cam", "foreground_grad_cam"):
            before, after = getattr(plain, kind), crop(getattr(padded, kind), PADDINGS[dims], stride)
            assert before.abs().max() == 1
            torch.testing.assert_close(after, before, atol=TOLERANCE, rtol=0, msg=f"{name}, {kind}")


def foreground_grad_cam(network: nn.Module, x: torch.Tensor, signed: bool) -> dict[str, torch.Tensor]:
    """Grad-CAM over the foreground as `scripts.explain` computes it, at every block; targets as in `Cam`."""
    inside = (x != 0).float()
    decoder = [name for name in BLOCKS if name.startswith("upsamples")]
    encoder = [name for name in (*BLOCKS, "head.features") if name not in decoder]
    options = {"methods": "gradcam", "foreground": inside, "signed": signed}
    maps = cam_maps(network, x, encoder, TumorLogOdds(), forward_kwargs={"output": "cls"}, **options)
    region = SegmentationRegion(inside, reduction="sum")
    maps |= cam_maps(network, x, decoder, region, forward_kwargs={"output": "seg"}, **options)
    return {name: value for (_, name), value in maps.items()}


@pytest.mark.parametrize("touching", [False, True], ids=["inside", "touching the border"])
@pytest.mark.parametrize("dims", [2, 3])
def test_cam_maps_over_the_foreground_equal_the_formula_and_ignore_more_air(dims, touching):
    network, x = tiny(dims), image_with_room(dims, touching)
    signed = foreground_grad_cam(network, x, signed=True)
    plain = foreground_grad_cam(network, x, signed=False)
    padded = foreground_grad_cam(network, pad_with_air(x, PADDINGS[dims]), signed=False)
    for name in (*BLOCKS, "head.features"):
        formula = Cam(network, x, name)
        axes = tuple(range(1, x.ndim))
        scaled = signed[name] / signed[name].abs().amax(axes, keepdim=True)
        torch.testing.assert_close(scaled, formula.foreground_grad_cam, atol=1e-5, rtol=1e-4, msg=name)
        stride = x.shape[-1] // plain[name].shape[-1]
        before, after = max_scaling(plain[name]), max_scaling(padded[name])
        assert (before.amax(axes) == 1).any(), f"{name}: only empty maps prove nothing"
        torch.testing.assert_close(crop(after, PADDINGS[dims], stride), before, atol=TOLERANCE, rtol=0, msg=name)
        for value, image in ((plain[name], x), (padded[name], pad_with_air(x, PADDINGS[dims]))):
            air = ~cells_with_foreground(image, value.shape[2:])
            assert air.any()
            assert (value[air] == 0).all(), f"{name}: energy in air"


@pytest.mark.parametrize("dims", [2, 3])
def test_grad_cam_where_it_is_defined_is_the_same_with_more_air(dims):
    for name in ("upsamples.0", "upsamples.1", "head.features"):
        plain, padded, stride = both_cams(dims, name)
        after = crop(padded.grad_cam, PADDINGS[dims], stride)
        torch.testing.assert_close(after, plain.grad_cam, atol=TOLERANCE, rtol=0, msg=name)


@pytest.mark.parametrize("dims", [2, 3])
def test_grad_cam_weights_at_the_encoder_cancel_unless_averaged_over_the_foreground(dims):
    """Why plain Grad-CAM says nothing at the encoder's blocks.

    The gradient behind a normalized convolution sums to 0 over the foreground, so the gradient before it sums to 0 over
    the whole grid, whatever the kernel: the channel weights of Grad-CAM are rounding, or the border's where it cuts the
    kernel off. Averaged over the foreground cells they are there.
    """
    for name in ENCODER_BLOCKS:
        cam = Cam(tiny(dims), image_with_room(dims), name)
        size = cam.gradient.abs().mean(tuple(range(2, 2 + dims)), keepdim=True)
        assert (cam.weight.abs() / size).max() < 1e-5, name
        assert (cam.foreground_weight.abs() / size).median() > 1e-2, name


def test_stock_design_paints_the_air():
    # The defect of the usual design, with the same measure: Grad-CAM at the bottleneck lies outside the head as well.
    network, x = tiny(normalization="instance", head="average_pool"), image_with_room(2)
    kept = []
    hook = network.bottleneck.register_forward_hook(lambda _, __, out: kept.append(out))
    score = tumor_log_odds(network(x, output="cls")).sum()
    hook.remove()
    (gradient,) = torch.autograd.grad(score, kept[0])
    cam = (gradient.mean((2, 3), keepdim=True) * kept[0]).sum(1, keepdim=True).relu().detach()
    air = ~cells_with_foreground(x, cam.shape[2:])
    assert cam[air].sum() / cam.sum() > 0.05


def test_total_stride_is_the_unit_of_padding():
    assert tiny().total_stride == [TOTAL_STRIDE, TOTAL_STRIDE]
    assert tiny(3).total_stride == [TOTAL_STRIDE] * 3
