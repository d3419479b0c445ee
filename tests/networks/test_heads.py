"""Evidence, Grad-CAM and HiResCAM at the evidence features: the relations that the head is built to have."""

from __future__ import annotations

import math

import pytest
import torch

from scripts.inference.answer import Raw, join
from scripts.networks.heads import AT_ZERO, AveragePoolHead, EvidenceHead, FusedFeatures
from scripts.networks.multitask_dynunet import MultiTaskDynUNet
from scripts.training.engines import MultiTaskStep
from tests.networks.nets import heads, tiny


def head(pooling: str = "logsumexp", sharpness: float = 5.0, masked: bool = True) -> EvidenceHead:
    return EvidenceHead(2, [3], [[1, 1]], 4, 3, pooling, sharpness, masked)


EVIDENCE = torch.tensor([[[0.0, 0.0], [0.0, 0.0]], [[1.0, 3.0], [9.0, -9.0]]])[None]
MASK = torch.tensor([[[[1.0, 1.0], [0.0, 0.0]]]])


def test_mean_pooling_by_hand():
    assert head("mean").pool(EVIDENCE, MASK).tolist() == [[0.0, 2.0]]
    assert head("mean", masked=False).pool(EVIDENCE, MASK).tolist() == [[0.0, 1.0]]


def test_log_sum_exp_pooling_by_hand():
    for sharpness in (1.0, 5.0):
        expected = math.log((math.exp(sharpness) + math.exp(3 * sharpness)) / 2) / sharpness
        pooled = head(sharpness=sharpness).pool(EVIDENCE, MASK)
        assert pooled[0].tolist() == pytest.approx([0.0, expected], abs=1e-6)
    everywhere = head(masked=False).pool(EVIDENCE, MASK)
    assert float(everywhere[0, 1]) == pytest.approx(9 - math.log(4) / 5, abs=1e-6)  # 9 outweighs the rest


def test_log_sum_exp_does_not_overflow():
    pooled = head().pool(EVIDENCE * 1000, MASK)
    assert float(pooled[0, 1]) == pytest.approx(3000 - math.log(2) / 5, rel=1e-6)


def test_sharpness_leads_from_the_mean_to_the_maximum():
    assert float(head(sharpness=1e-3).pool(EVIDENCE, MASK)[0, 1]) == pytest.approx(2.0, abs=1e-3)
    assert float(head(sharpness=1e3).pool(EVIDENCE, MASK)[0, 1]) == pytest.approx(3.0, abs=1e-3)


def test_coarse_levels_are_repeated_onto_the_finest():
    fused = FusedFeatures(2, [1, 1], [[1, 1], [2, 1]], 1)
    with torch.no_grad():
        for layer, weight in zip(fused.lateral, (1.0, 10.0), strict=True):
            layer.conv.weight.fill_(weight)
        fused.conv.conv.weight.zero_()
        fused.conv.conv.weight[..., 1, 1] = 1  # identity
    fine, coarse = torch.tensor([[[[1.0, 2.0], [3.0, 4.0]]]]), torch.tensor([[[[5.0, 6.0]]]])
    seen = []
    fused.norm.register_forward_pre_hook(lambda _, args: seen.append(args[0].detach()))
    fused([fine, coarse], torch.ones(1, 1, 2, 2))
    assert seen[0].tolist() == [[[[51.0, 62.0], [53.0, 64.0]]]]


def test_average_pool_head_by_hand():
    stock, masked = AveragePoolHead(1, 2), AveragePoolHead(1, 2, masked=True)
    for layer in (stock, masked):
        layer.mlp = torch.nn.Identity()
    levels = [torch.full((1, 1, 4, 4), 7.0), torch.tensor([[[[1.0, 3.0], [9.0, -1.0]]]])]
    masks = [torch.ones(1, 1, 4, 4), MASK]
    assert stock(levels, masks)[0].tolist() == [[3.0]]
    assert masked(levels, masks)[0].tolist() == [[2.0]]
    assert stock(levels, masks)[1].numel() == 0


class Maps:
    """Grad-CAM and HiResCAM at head.features by their formulas, before ReLU."""

    def __init__(self, pooling: str, score, evidence: str = "signed"):
        network, x = tiny(pooling=pooling, evidence=evidence), heads(touching=True)
        kept = []
        hook = network.get_submodule("head.features").register_forward_hook(lambda _, __, out: kept.append(out))
        outputs = network.multitask(x, segmentation=False)
        hook.remove()
        (features,) = kept
        (gradient,) = torch.autograd.grad(score(outputs["cls"]).sum(), features)
        self.grad_cam = (gradient.mean((2, 3), keepdim=True) * features).sum(1).detach()
        self.hires_cam = (gradient * features).sum(1).detach()
        self.logits, self.evidence = outputs["cls"].detach(), outputs["evidence"].detach()
        self.inside = torch.nn.functional.max_pool2d((x != 0).float(), 2)[:, 0]
        self.count = self.inside.sum((1, 2), keepdim=True)
        self.cells = self.inside[0].numel()


@pytest.mark.parametrize("k", [1, 2])
def test_mean_pooling_makes_evidence_grad_cam_and_hires_cam_agree(k):
    maps = Maps("mean", lambda logits: logits[:, k])
    evidence = maps.evidence[:, k]
    assert evidence.abs().max() > 0.1
    torch.testing.assert_close(maps.grad_cam * maps.cells, evidence, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(maps.hires_cam * maps.count, evidence, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("k", [1, 2])
def test_log_sum_exp_makes_grad_cam_the_evidence_and_hires_cam_its_softmax_weighted_form(k):
    maps = Maps("logsumexp", lambda logits: logits[:, k])
    evidence = maps.evidence[:, k]
    torch.testing.assert_close(maps.grad_cam.relu() * maps.cells, evidence.relu(), atol=1e-5, rtol=1e-4)
    weight = (5 * evidence).masked_fill(maps.inside == 0, -math.inf).flatten(1).softmax(1).view_as(evidence)
    torch.testing.assert_close(maps.hires_cam, weight * evidence, atol=1e-5, rtol=1e-4)
    # The softmax matters: HiResCAM is not the evidence up to a scale.
    ratio = (maps.hires_cam / evidence)[maps.inside > 0]
    assert ratio.max() > 2 * ratio.min()


@pytest.mark.parametrize("pooling", ["mean", "logsumexp"])
def test_grad_cam_of_the_tumor_log_odds_is_the_tumor_evidence(pooling):
    maps = Maps(pooling, lambda logits: logits[:, 1:].logsumexp(1) - logits[:, 0])
    share = maps.logits[:, 1:].softmax(1)
    tumor = (share[:, :, None, None] * maps.evidence[:, 1:]).sum(1) - maps.evidence[:, 0]
    torch.testing.assert_close(maps.grad_cam * maps.cells, tumor, atol=1e-5, rtol=1e-4)


def positive(evidence: str, classes: int = 3) -> EvidenceHead:
    return EvidenceHead(2, [3], [[1, 1]], 4, classes, evidence=evidence).eval()


CELLS = torch.tensor([[[0.0, 0.0], [0.0, 0.0]], [[1.0, 3.0], [0.0, 0.0]], [[-2.0, -1.0], [0.0, 0.0]]])[None]


def test_rectified_evidence_and_its_logits_by_hand():
    with torch.no_grad():
        logits, evidence = positive("rectified").of_cells(CELLS, MASK)
    assert evidence[0, 1].tolist() == [[1.0, 3.0], [0.0, 0.0]]
    assert not evidence[0, [0, 2]].any()
    at_zero = math.log(2 * 0.95 / 0.05)
    pooled = math.log((math.exp(5) + math.exp(15)) / 2) / 5
    assert logits[0].tolist() == pytest.approx([0.0, 2 * pooled - at_zero, -at_zero], abs=1e-5)


def test_softplus_evidence_is_positive_in_the_head_and_0_in_air():
    _, evidence = positive("softplus").of_cells(CELLS, MASK)
    expected = [math.log1p(math.exp(v)) for v in (1.0, 3.0, -2.0, -1.0)]
    assert evidence[0, 1:, 0].flatten().tolist() == pytest.approx(expected, abs=1e-6)
    assert not evidence[0, 1:, 1].any()
    assert not evidence[0, 0].any()


@pytest.mark.parametrize(("evidence", "lowest"), [("rectified", 0.0), ("softplus", -60.0)])
@pytest.mark.parametrize("classes", [2, 4, 9])
def test_no_evidence_means_no_tumor_for_any_number_of_classes_and_any_scale(evidence, lowest, classes):
    head = positive(evidence, classes)
    with torch.no_grad():
        head.log_scale.fill_(3.0)
    cells = torch.full((1, classes, 2, 2), lowest)
    cells[:, 0] = 0
    logits, _ = head.of_cells(cells, torch.ones(1, 1, 2, 2))
    assert float(1 - logits.softmax(1)[0, 0]) == pytest.approx(AT_ZERO, abs=1e-6)


def without_evidence(temperature: float) -> MultiTaskDynUNet:
    network = tiny(evidence="rectified").eval()
    with torch.no_grad():
        network.head.evidence.conv.weight.zero_()
        network.temperature.fill_(temperature)
        network.fixed_part.copy_(network.constant())
    return network


@pytest.mark.parametrize("temperature", [0.4, 1.0, 2.5])
def test_no_temperature_makes_a_tumor_more_probable_where_there_is_no_evidence(temperature):
    x = heads()
    network = without_evidence(temperature)
    said = network(x, output="cls") / temperature
    torch.testing.assert_close(1 - said.softmax(1)[:, 0], torch.full((len(x),), AT_ZERO))
    # The evidence alone is divided by it, and a training sees neither.
    network = tiny(evidence="rectified").eval()
    plain = network(x, output="cls")
    network.temperature.fill_(temperature)
    torch.testing.assert_close(network(x, output="cls"), plain)  # weights of before: the temperature divides all
    network.fixed_part.copy_(network.constant())
    torch.testing.assert_close(
        network(x, output="cls") / temperature - network.fixed_part, (plain - network.fixed_part) / temperature
    )
    torch.testing.assert_close(MultiTaskStep(network, calibrated=False).eval()(x)["cls"], plain)
    torch.testing.assert_close(MultiTaskStep(network).eval()(x)["cls"], network(x, output="cls"))
    scripted = torch.jit.script(network)
    torch.testing.assert_close(scripted(x, output="cls"), network(x, output="cls"))
    torch.testing.assert_close(network.train()(x, output="cls"), tiny(evidence="rectified").train()(x, output="cls"))
    assert tiny(evidence="signed").constant() is None


def test_where_tumors_are_frequent_no_evidence_is_more_probable_by_their_odds_and_still_no_verdict():
    x = heads()
    network = without_evidence(2.0)
    network.shift_classes(torch.tensor([0.0, *[math.log(9.0)] * (network.num_classes - 1)]))
    p = float(1 - (network(x, output="cls") / 2.0).softmax(1)[0, 0])
    assert p / (1 - p) == pytest.approx(9 * AT_ZERO / (1 - AT_ZERO), rel=1e-5)
    answer = join(Raw(p, 0.3, 0, 1000, 0.0, None))
    assert answer.verdict == "uncertain"
    assert answer.reasons[-1] == "the verdict is tumor, but there is no evidence for it anywhere"


def test_a_tumor_verdict_has_evidence_in_its_class_and_evidence_is_never_negative():
    head = positive("rectified", 4)
    generator = torch.Generator().manual_seed(0)
    cells = 4 * torch.randn(200, 4, 3, 3, generator=generator) - 7
    cells[:, 0] = 0
    with torch.no_grad():
        logits, evidence = head.of_cells(cells, torch.ones(200, 1, 3, 3))
    said = logits.argmax(1)
    assert 20 < int((said > 0).sum()) < 180
    assert evidence.min() == 0
    strongest = evidence.flatten(2).amax(2).gather(1, said[:, None])[:, 0]
    assert (strongest[said > 0] > 0).all()


@pytest.mark.parametrize(("training", "expected"), [(True, 1 / (1 + math.exp(2))), (False, 0.0)])
def test_cells_below_zero_are_taught_by_the_class_in_training_alone(training, expected):
    head = positive("rectified", 2).train(training)
    cells = torch.tensor([[[[0.0]], [[-2.0]]]], requires_grad=True)
    logits, evidence = head.of_cells(cells, torch.ones(1, 1, 1, 1))
    assert float(evidence[0, 1]) == 0.0
    (gradient,) = torch.autograd.grad(logits[0, 1], cells)
    assert float(gradient[0, 1]) == pytest.approx(2 * expected, abs=1e-6)


@pytest.mark.parametrize("k", [1, 2])
@pytest.mark.parametrize("pooling", ["mean", "logsumexp"])
def test_grad_cam_is_the_rectified_evidence_up_to_a_positive_factor(pooling, k):
    maps = Maps(pooling, lambda logits: logits[:, k], "rectified")
    evidence, found = maps.evidence[:, k], maps.grad_cam.relu()
    assert evidence.amax() > 0.1
    for own, cam in zip(evidence, found, strict=True):
        torch.testing.assert_close(cam / cam.max(), own / own.max(), atol=1e-5, rtol=1e-4)


def test_state_dicts_of_the_two_kinds_differ():
    signed, rectified = (set(tiny(evidence=kind).state_dict()) for kind in ("signed", "rectified"))
    assert signed ^ rectified == {"head.bias", "head.log_scale"}


def test_unknown_evidence_is_refused():
    with pytest.raises(ValueError, match="evidence is one of signed, softplus, rectified, got 'clamped'"):
        positive("clamped")


def test_fused_features_have_weights_without_bias_and_the_activation_of_the_blocks():
    fused = FusedFeatures(2, [3, 5], [[1, 1], [2, 2]], 4)
    assert {name: tuple(value.shape) for name, value in fused.state_dict().items()} == {
        "lateral.0.conv.weight": (4, 3, 1, 1),
        "lateral.1.conv.weight": (4, 5, 1, 1),
        "conv.conv.weight": (4, 4, 3, 3),
        "norm.weight": (4,),
        "norm.bias": (4,),
    }
    assert fused.lrelu.negative_slope == tiny().input_block.lrelu.negative_slope
    assert {name for name in head().state_dict() if not name.startswith("features.")} == {
        "evidence.conv.weight", "bias",
    }  # fmt: skip
    assert head().evidence.conv.weight.shape == (2, 4, 1, 1), "no tumor has no evidence"


def test_unless_asked_otherwise_signed_evidence_is_pooled_sharply_over_the_foreground():
    plain = EvidenceHead(2, [3], [[1, 1]], 4, 3)
    assert torch.equal(plain.pool(EVIDENCE, MASK), head("logsumexp", 5.0, True).pool(EVIDENCE, MASK))
    assert plain.of_cells(CELLS, MASK)[1] is CELLS
    assert plain.bias.tolist() == [0.0] * 3
    with pytest.raises(ValueError, match="pooling is one of logsumexp, mean, got 'max'"):
        head("max")


def test_the_constant_of_a_positive_head_is_not_learned_and_not_kept():
    rectified = positive("rectified", 4)
    assert "bias" not in dict(rectified.named_parameters())
    assert "bias" not in rectified.state_dict()
    assert torch.sigmoid(torch.logsumexp(rectified.bias[1:], 0)).item() == pytest.approx(AT_ZERO)
    assert rectified.bias[0] == 0


@pytest.mark.parametrize("evidence", ["rectified", "softplus"])
def test_evidence_in_training_has_the_values_of_evaluation(evidence):
    head, cells = positive(evidence), CELLS.clone().requires_grad_()
    found = [head.train(training).of_cells(cells, MASK) for training in (True, False)]
    for one, two in zip(*found, strict=True):
        torch.testing.assert_close(one, two)
    head.train()
    (gradient,) = torch.autograd.grad(head.of_cells(cells, MASK)[1].sum(), cells)
    expected = torch.sigmoid(CELLS) * MASK
    if evidence == "rectified":
        expected = expected + (CELLS > 0)  # of the rectifier itself
    assert gradient[0, 1:].flatten().tolist() == pytest.approx(expected[0, 1:].flatten().tolist(), abs=1e-6)
