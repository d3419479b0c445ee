"""The loss of all tasks: its parts by hand, and the gradients that they send."""

from __future__ import annotations

import math

import pytest
import torch
from monai.bundle import ConfigParser

from scripts.command.locations import CONFIGS
from scripts.training.engines import MultiTaskStep
from scripts.training.losses import EvidenceLoss, MultiTaskLoss
from scripts.training.mask_loss import SegmentationLoss
from tests.networks.nets import gradients, heads, tiny

LOGITS = torch.tensor([[2.0, 0.0, -1.0], [0.5, 1.0, 0.0], [0.0, 0.0, 3.0], [1.0, 1.0, 1.0]])
DIAGNOSIS = torch.tensor([0, 2, 2, 1])


def targets(diagnosis: torch.Tensor = DIAGNOSIS, has_mask: bool = False) -> dict[str, torch.Tensor]:
    count = len(diagnosis)
    return {
        "diagnosis": diagnosis,
        "has_mask": torch.full((count,), has_mask),
        "label": torch.zeros(count, 1, 4, 4, dtype=torch.uint8),
        "foreground": torch.ones(count, 1, 4, 4, dtype=torch.uint8),
    }


def classification(diagnosis: torch.Tensor = DIAGNOSIS, **options) -> float:
    return float(MultiTaskLoss(cls_weight=1.0, **options)({"cls": LOGITS}, targets(diagnosis)))


def negative_log_p(diagnosis: torch.Tensor = DIAGNOSIS) -> list[float]:
    """By hand, item by item."""
    return [
        math.log(sum(math.exp(v) for v in row)) - row[k]
        for row, k in zip(LOGITS.tolist(), diagnosis.tolist(), strict=True)
    ]


class TestClassification:
    def test_cross_entropy_by_hand(self):
        assert classification() == pytest.approx(sum(negative_log_p()) / 4, abs=1e-6)

    def test_unknown_diagnosis_is_left_out(self):
        unknown = torch.tensor([0, -1, 2, -1])
        values = negative_log_p()
        assert classification(unknown) == pytest.approx((values[0] + values[2]) / 2, abs=1e-6)

    def test_label_smoothing_by_hand(self):
        every = [negative_log_p(torch.full((4,), k)) for k in range(3)]
        uniform = [sum(values[i] for values in every) / 3 for i in range(4)]
        expected = sum(0.9 * a + 0.1 * b for a, b in zip(negative_log_p(), uniform, strict=True)) / 4
        assert classification(label_smoothing=0.1) == pytest.approx(expected, abs=1e-6)

    def test_class_weights_by_hand(self):
        weights = [1.0, 2.0, 4.0]
        chosen = [weights[k] for k in DIAGNOSIS.tolist()]
        expected = sum(w * v for w, v in zip(chosen, negative_log_p(), strict=True)) / sum(chosen)
        assert classification(class_weights=weights) == pytest.approx(expected, abs=1e-6)

    def test_focal_loss_by_hand(self):
        expected = sum((1 - math.exp(-v)) ** 2 * v for v in negative_log_p()) / 4
        assert classification(focal_gamma=2.0) == pytest.approx(expected, abs=1e-6)

    def test_focal_loss_without_focus_is_cross_entropy(self):
        # Switching it on must not change the weight of the part as well.
        assert classification(focal_gamma=1e-6) == pytest.approx(classification(), rel=1e-4)
        weights = [1.0, 2.0, 4.0]
        assert classification(focal_gamma=1e-6, class_weights=weights) == pytest.approx(
            classification(class_weights=weights), rel=1e-4
        )

    def test_focal_loss_and_label_smoothing_exclude_each_other(self):
        with pytest.raises(ValueError, match="alternatives"):
            MultiTaskLoss(focal_gamma=2.0, label_smoothing=0.1)


def full_batch() -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Four items, the second and the fourth with a mask, logits (M, 2, 4, 4) for these two."""
    generator = torch.Generator().manual_seed(5)
    target = targets()
    target["has_mask"] = torch.tensor([False, True, False, True])
    target["label"][1, 0, :2, :2] = 1
    target["label"][3, 0, 2:, :3] = 1
    pred = {
        "cls": LOGITS,
        "seg": torch.randn(2, 2, 4, 4, generator=generator),
        "cells": torch.randn(4, 3, 2, 2, generator=generator),
    }
    return pred, target


class TestMultiTaskLoss:
    def test_segmentation_by_hand(self):
        pred, target = full_batch()
        p = pred["seg"].softmax(1)[:, 1]
        label = target["label"][target["has_mask"], 0].float()
        dice = 1 - (2 * (p * label).sum() + 1e-5) / (p.sum() + label.sum() + 1e-5)
        cross_entropy = -(label * p.log() + (1 - label) * (1 - p).log()).mean()
        loss = MultiTaskLoss(cls_weight=0, evidence_weight=0)
        assert float(loss(pred, target)) == pytest.approx(float(dice + cross_entropy), abs=1e-5)

    def test_without_any_tumor_in_the_batch_cross_entropy_alone_is_left(self):
        pred, target = full_batch()
        seg, label = pred["seg"], torch.zeros_like(target["label"][target["has_mask"]])
        loss = SegmentationLoss()(seg, label)
        assert float(loss) == pytest.approx(float(torch.nn.functional.cross_entropy(seg, label[:, 0].long())), abs=1e-6)

    def test_tumor_predicted_in_a_head_without_one_lowers_the_dice_of_the_batch(self):
        seg, label = torch.zeros(2, 2, 4, 4), torch.zeros(2, 1, 4, 4, dtype=torch.uint8)
        label[0, :, :2] = 1
        seg[0, 1], seg[0, 0] = 9.0 * label[0, 0], 9.0 * (1 - label[0, 0].float())
        seg[1, 0] = 9.0
        right = float(SegmentationLoss()(seg, label))
        seg[1, 0, 0, :], seg[1, 1, 0, :] = 0.0, 9.0
        p = 1 / (1 + math.exp(-9))
        overlap, both = 8 * p, 8 * p + 8 * (1 - p) + 12 * (1 - p) + 4 * p + 8
        dice = 1 - 2 * overlap / both
        entropy = (28 * -math.log(p) + 4 * -math.log(1 - p)) / 32
        assert right < 0.01
        assert float(SegmentationLoss()(seg, label)) == pytest.approx(dice + entropy, abs=1e-4)

    def test_evidence_is_that_of_the_items_with_a_mask(self):
        pred, target = full_batch()
        m = target["has_mask"]
        expected = EvidenceLoss(0.3)(
            pred["cells"][m], target["label"][m], target["foreground"][m], target["diagnosis"][m]
        )
        loss = MultiTaskLoss(seg_weight=0, cls_weight=0, area_at_zero=0.3)
        assert float(loss(pred, target)) == pytest.approx(float(expected), abs=1e-6)

    def test_weights_act_linearly(self):
        pred, target = full_batch()
        parts = [float(MultiTaskLoss(*[float(i == k) for i in range(3)])(pred, target)) for k in range(3)]
        for weights in ([1.0, 1.0, 1.0], [2.0, 3.0, 0.5], [0.0, 10.0, 1.0]):
            expected = sum(w * part for w, part in zip(weights, parts, strict=True))
            assert float(MultiTaskLoss(*weights)(pred, target)) == pytest.approx(expected, rel=1e-5)

    def test_parts_are_kept_unweighted_for_the_log(self):
        pred, target = full_batch()
        loss = MultiTaskLoss(2.0, 3.0, 0.5)
        total = loss(pred, target)
        parts = {name: float(value) for name, value in loss.parts.items()}
        assert list(parts) == ["segmentation", "classification", "evidence"]
        assert parts["classification"] == pytest.approx(classification(), abs=1e-6)
        assert float(total) == pytest.approx(
            2 * parts["segmentation"] + 3 * parts["classification"] + 0.5 * parts["evidence"], rel=1e-6
        )
        loss({"cls": pred["cls"]}, target)
        assert list(loss.parts) == ["classification"], "parts of the batch before are gone"

    def test_batch_that_trains_nothing_is_an_error(self):
        unknown = targets(torch.full((4,), -1))
        with pytest.raises(ValueError, match=r"no part of the loss applies .* 0 items with a mask, 0 with a diagnosis"):
            MultiTaskLoss()({"cls": LOGITS}, unknown)
        pred, target = full_batch()
        with pytest.raises(
            ValueError, match=r"outputs \['cells', 'cls', 'seg'\].* segmentation 0, classification 0, evidence 0"
        ):
            MultiTaskLoss(0, 0, 0)(pred, target)

    def test_masks_of_all_zeros_are_no_masks(self):
        # Items without a mask carry a label of zeros: it must not teach "no tumor here".
        pred, target = full_batch()
        before = float(MultiTaskLoss()(pred, target))
        target["label"][~target["has_mask"]] = 1
        assert float(MultiTaskLoss()(pred, target)) == before


def backward(has_mask: list[bool], **weights: float) -> dict[str, torch.Tensor | None]:
    network = tiny()
    step = MultiTaskStep(network).train()
    x = heads(batch=2)
    target = {
        "label": (x > 1).to(torch.uint8) * torch.tensor(has_mask).view(-1, 1, 1, 1),
        "foreground": (x != 0).to(torch.uint8),
        "has_mask": torch.tensor(has_mask),
        "diagnosis": torch.tensor([1, 2]),
    }
    MultiTaskLoss(**weights)(step(x, target["has_mask"]), target).backward()
    return gradients(network)


def in_decoder(name: str) -> bool:
    return name.startswith(("upsamples", "output_block"))


def test_batch_without_masks_sends_no_gradient_to_the_decoder():
    found = backward([False, False])
    for name, gradient in found.items():
        if in_decoder(name):
            assert gradient is None, name
        else:
            assert gradient is not None, name
    assert float(found["bottleneck.conv2.conv.weight"].abs().sum()) > 0
    assert all(g is not None for g in backward([False, True]).values())


def test_weight_zero_sends_no_gradient():
    without_seg = backward([True, True], seg_weight=0.0)
    assert all(g is None for name, g in without_seg.items() if in_decoder(name))
    without_head = backward([True, True], cls_weight=0.0, evidence_weight=0.0)
    assert all(g is None for name, g in without_head.items() if name.startswith("head"))
    assert all(g is not None for name, g in without_head.items() if not name.startswith("head"))


def test_doubled_weight_doubles_the_gradient():
    one, two = backward([True, True]), backward([True, True], seg_weight=2.0)
    for name, gradient in one.items():
        if in_decoder(name):
            torch.testing.assert_close(two[name], 2 * gradient, atol=1e-6, rtol=1e-4)


def test_air_takes_no_part_in_the_segmentation_loss():
    network = tiny()
    x = heads()
    label = (x > 1).to(torch.uint8)
    seg = network.multitask(x, classification=False)["seg"]
    (gradient,) = torch.autograd.grad(seg.square().sum(), network.output_block.conv.conv.bias, retain_graph=True)
    inside = (x != 0).expand_as(seg)
    torch.testing.assert_close(gradient, 2 * (seg * inside).sum((0, 2, 3)).detach(), rtol=1e-4, atol=1e-3)
    everywhere = torch.nn.functional.cross_entropy(seg, label[:, 0].long(), reduction="none")
    assert everywhere[x[:, 0] == 0].max() < 1e-8


@pytest.mark.parametrize(
    ("overlay", "overrides", "expected"),
    [
        (None, {}, ("logsumexp", 5.0, True)),
        ("mean_pooling", {}, ("mean", 5.0, True)),
        ("unmasked_pooling", {}, ("logsumexp", 5.0, False)),
        (None, {"network_def#sharpness": 2.0}, ("logsumexp", 2.0, True)),
    ],
)
def test_what_a_config_says_of_the_head_reaches_the_loss(overlay, overrides, expected):
    parser = ConfigParser()
    parser.read_config([CONFIGS / "train.yaml", *([CONFIGS / "ablations" / f"{overlay}.yaml"] if overlay else [])])
    parser.update({"device": "cpu", **overrides})
    loss = parser.get_parsed_content("train#loss").evidence
    assert (loss.pooling, loss.sharpness, loss.masked) == expected
