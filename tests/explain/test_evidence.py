from __future__ import annotations

import pytest
import torch

from scripts.explain.evidence import evidence_map, evidence_pass
from scripts.explain.targets import ClassMargin, ClassScore, TumorLogOdds
from tests.explain.nets import EvidenceNet, assert_same_state, cam_maps, state_of


def test_closed_form_by_hand():
    evidence = torch.tensor([[[[1.0, 0.0]], [[2.0, 4.0]], [[6.0, 1.0]]]])
    logits = torch.tensor([[0.3, 1.0, 1.0]])  # equal tumor logits: both tumor classes weigh a half
    assert evidence_map(evidence, logits, TumorLogOdds()).tolist() == [[[[3.0, 2.5]]]]
    assert evidence_map(evidence, logits, ClassScore(2)).tolist() == [[[[6.0, 1.0]]]]
    assert evidence_map(evidence, logits, ClassMargin(0, 1)).tolist() == [[[[0.0, 0.0]]]]
    assert evidence_map(evidence, logits, ClassMargin(0, 1), signed=True).tolist() == [[[[-1.0, -4.0]]]]


@pytest.mark.parametrize("pooling", ["lse", "mean"])
@pytest.mark.parametrize("target", [TumorLogOdds(), ClassScore(2), ClassScore(), ClassMargin(2, 0)])
def test_evidence_is_gradcam_at_the_features_times_the_number_of_cells(pooling, target):
    torch.manual_seed(0)
    net, x = EvidenceNet(pooling), torch.randn(2, 1, 12, 8)
    result = evidence_pass(net, x, target, signed=True)
    maps = cam_maps(net, x, "features", target, ("gradcam", "hirescam"), signed=True)
    torch.testing.assert_close(result.maps["evidence", "evidence"], maps["gradcam", "features"] * 24)
    if pooling == "mean":
        torch.testing.assert_close(maps["hirescam", "features"], maps["gradcam", "features"])
    torch.testing.assert_close(result.score, target(net(x)).detach())


def test_hirescam_of_log_sum_exp_is_the_softmax_weighted_evidence():
    torch.manual_seed(0)
    net, x = EvidenceNet("lse"), torch.randn(1, 1, 12, 8)
    evidence = net(x, output="evidence").detach()[:, 1]
    weights = (evidence * 5).flatten(1).softmax(1).reshape(evidence.shape)
    maps = cam_maps(net, x, "features", ClassScore(1), "hirescam", signed=True)
    torch.testing.assert_close(maps["hirescam", "features"], (weights * evidence)[:, None])


def test_network_is_left_alone_and_multitask_takes_one_pass():
    class Multi(EvidenceNet):
        calls = 0

        def multitask(self, x, segmentation=True, classification=True, gain=1.0):
            self.calls += 1
            assert not segmentation
            assert not self.training
            return {"cls": self(x) * gain, "evidence": self(x, output="evidence")}

    torch.manual_seed(0)
    net, x = Multi(), torch.randn(2, 1, 8, 8)
    before = state_of(net)
    result = evidence_pass(net, x, ClassScore(1), {"output": "cls", "gain": 2.0})
    assert_same_state(before, state_of(net))
    assert net.calls == 1
    torch.testing.assert_close(result.output, 2 * net(x).detach())
    torch.testing.assert_close(result.maps["evidence", "evidence"], net(x, "evidence")[:, 1:2].detach().clamp(min=0))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_close_and_float32(dtype):
    torch.manual_seed(0)
    net, x = EvidenceNet(), torch.randn(2, 1, 8, 8)
    expected = evidence_pass(net, x, TumorLogOdds(), signed=True).maps["evidence", "evidence"]
    with torch.autocast("cpu", dtype):
        automatic = evidence_pass(net, x, TumorLogOdds(), signed=True)
    for found in (automatic, evidence_pass(net.to(dtype), x.to(dtype), TumorLogOdds(), signed=True)):
        maps = found.maps["evidence", "evidence"]
        assert maps.dtype == torch.float32
        assert 0 < float((maps - expected).abs().max()) < 0.03 * float(expected.abs().max())


def test_shapes_and_values_are_checked():
    with pytest.raises(ValueError, match="expected evidence"):
        evidence_map(torch.zeros(2, 3, 4, 4), torch.zeros(2, 2), TumorLogOdds())
    with pytest.raises(FloatingPointError, match="not finite"):
        evidence_map(torch.full((1, 2, 2, 2), torch.nan), torch.zeros(1, 2), TumorLogOdds())


@pytest.mark.parametrize("shape", [(2,), (1, 2), (1, 1, 2)])
def test_evidence_of_any_number_of_axes_by_hand(shape):
    evidence = torch.tensor([[[1.0, -2.0], [3.0, 0.5]], [[4.0, 0.0], [5.0, -1.0]]]).reshape(2, 2, *shape)
    maps = evidence_map(evidence, torch.zeros(2, 2), ClassMargin(1, 0), signed=True)
    assert maps.shape == (2, 1, *shape)
    assert maps.flatten(1).tolist() == [[2.0, 2.5], [1.0, -1.0]]
    positive = evidence_map(evidence, torch.zeros(2, 2), ClassScore(0))
    assert positive.flatten(1).tolist() == [[1.0, 0.0], [4.0, 0.0]]


@pytest.mark.parametrize("shape", [(2, 3), (1, 3, 4), (2, 2, 4)])
def test_evidence_without_places_or_of_other_samples_or_classes_is_refused(shape):
    with pytest.raises(ValueError, match=r"expected evidence \(B, K, \*grid\) and logits \(B, K\)"):
        evidence_map(torch.zeros(shape), torch.zeros(2, 3), TumorLogOdds())


def test_a_network_without_multitask_is_asked_twice_and_for_no_other_output():
    asked = []

    class Named(EvidenceNet):
        def forward(self, x, output="cls"):
            asked.append(output)
            return super().forward(x, output)

    net, x = Named().train(), torch.randn(1, 1, 8, 8)
    result = evidence_pass(net, x, ClassScore(1), {"output": "seg"})
    assert asked == ["cls", "evidence"]
    assert net.training
    assert not result.output.requires_grad
    assert float(result.maps["evidence", "evidence"].min()) >= 0
    net.multitask = None  # an attribute that is no function
    assert torch.equal(evidence_pass(net, x, ClassScore(1)).output, result.output)
