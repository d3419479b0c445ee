from __future__ import annotations

import math

import pytest
import torch
from monai.bundle import ConfigParser

from scripts.command.locations import CONFIGS
from scripts.training.engines import MultiTaskStep
from scripts.training.losses import EvidenceLoss, MultiTaskLoss, SegmentationLoss, pooling_of
from tests.networks.nets import gradients, heads, tiny


def sigmoid(v: float) -> float:
    return 1 / (1 + math.exp(-v))


def one_row(values: list[list[float]]) -> torch.Tensor:
    """Evidence (1, K, 1, cells) from one list a class."""
    return torch.tensor(values).view(1, len(values), 1, -1)


def label_of(tumor_pixels: list[int]) -> torch.Tensor:
    """Label (1, 1, 2, 2 * cells): cells of 2 x 2 pixels, of which so many are tumor."""
    cells = []
    for count in tumor_pixels:
        pixels = torch.zeros(4, dtype=torch.uint8)
        pixels[:count] = 1
        cells.append(pixels.view(2, 2))
    return torch.cat(cells, dim=1)[None, None]


def overlap(p: list[float], p_tumor: list[float], area: list[float]) -> float:
    inner = sum(a * b for a, b in zip(p, area, strict=True))
    return 1 - (2 * inner + 1e-5) / (sum(p_tumor) + sum(area) + 1e-5)


def without_background(area_at_zero: float = 0.5) -> EvidenceLoss:
    return EvidenceLoss(area_at_zero, background_weight=0.0)


class TestEvidenceLoss:
    def test_background_term_is_no_tumor_of_the_evidence_pooled_outside_the_tumor(self):
        label = label_of([0, 4, 0])
        evidence = one_row([[0.0, 0.0, 0.0], [1.0, 30.0, -2.0]])
        arguments = (evidence, label, torch.ones_like(label), torch.tensor([1]))
        pooled = math.log((math.exp(5 * 1.0) + math.exp(5 * -2.0)) / 2) / 5
        expected = 0.7 * math.log(1 + math.exp(pooled))
        term = EvidenceLoss(background_weight=0.7)(*arguments) - without_background()(*arguments)
        assert float(term) == pytest.approx(expected, abs=1e-5)

    def test_background_term_gives_a_single_hot_cell_the_gradient_that_the_mean_does_not(self):
        values = torch.full((1, 2, 1, 400), -4.0)
        values[:, 0] = 0.0
        values[0, 1, 0, 7] = 2.0
        label = torch.zeros(1, 1, 2, 800)
        gradients = {}
        for weight in (0.0, 1.0):
            evidence = values.clone().requires_grad_()
            EvidenceLoss(background_weight=weight)(
                evidence, label, torch.ones_like(label), torch.tensor([0])
            ).backward()
            gradients[weight] = float(evidence.grad[0, 1, 0, 7])
        assert gradients[0.0] < 0.01
        assert gradients[1.0] > 0.3

    @pytest.mark.parametrize(
        ("arguments", "expected"),
        [
            ({"sharpness": 1.0}, math.log((math.e + math.exp(-2)) / 2)),
            ({"sharpness": 10.0}, math.log((math.exp(10) + math.exp(-20)) / 2) / 10),
            ({"pooling": "mean"}, (1.0 - 2.0) / 2),
            ({"pooling": "mean", "masked": False}, (1.0 - 2.0 + 0.0) / 3),
            ({"sharpness": 1.0, "masked": False}, math.log((math.e + math.exp(-2) + 1) / 3)),
        ],
    )
    def test_background_is_pooled_as_the_head_pools(self, arguments, expected):
        label, foreground = label_of([0, 4, 0, 0]), torch.ones(1, 1, 2, 8)
        foreground[..., 6:] = 0
        tensors = (one_row([[0.0] * 4, [1.0, 30.0, -2.0, 0.0]]), label, foreground, torch.tensor([1]))
        term = EvidenceLoss(**arguments)(*tensors) - without_background()(*tensors)
        assert float(term) == pytest.approx(math.log(1 + math.exp(expected)), abs=1e-5)

    @pytest.mark.parametrize("pooling", ["logsumexp", "mean"])
    @pytest.mark.parametrize("masked", [True, False])
    def test_pooling_is_that_of_the_networks_head(self, pooling, masked):
        network = tiny(pooling=pooling, sharpness=3.0, masked_pooling=masked)
        loss = MultiTaskLoss(pooling=pooling_of(network)).evidence
        evidence = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(1))
        mask = torch.ones(2, 1, 4, 4)
        mask[:, :, :2] = 0
        weight = mask.flatten(1) if masked else torch.ones(2, 16)
        for k in range(3):
            pooled = loss.pool(evidence[:, k].flatten(1), weight)
            torch.testing.assert_close(pooled, network.head.pool(evidence, mask)[:, k])

    def test_network_without_evidence_has_no_pooling(self):
        assert pooling_of(tiny(head="average_pool")) == {}

    def test_unknown_pooling_is_refused(self):
        with pytest.raises(ValueError, match="pooling is one of logsumexp, mean, got 'max'"):
            EvidenceLoss(pooling="max")

    def test_item_that_is_all_tumor_has_no_background_term(self):
        label = label_of([4])
        arguments = (one_row([[0.0], [2.0]]), label, torch.ones_like(label), torch.tensor([1]))
        assert float(EvidenceLoss()(*arguments)) == pytest.approx(float(without_background()(*arguments)))

    def test_one_cell_by_hand(self):
        label = label_of([1])
        p, a = sigmoid(2.0), 0.25
        expected = -(a * math.log(p) + (1 - a) * math.log(1 - p)) + overlap([p], [p], [a])
        loss = without_background()(one_row([[0.0], [2.0]]), label, torch.ones_like(label), torch.tensor([1]))
        assert float(loss) == pytest.approx(expected, abs=1e-6)

    def test_two_cells_by_hand(self):
        label = label_of([4, 0])
        p = [sigmoid(1.0), sigmoid(-3.0)]
        expected = (-math.log(p[0]) - math.log(1 - p[1])) / 2 + overlap(p, p, [1.0, 0.0])
        loss = without_background()(
            one_row([[0.0, 0.0], [1.0, -3.0]]), label, torch.ones_like(label), torch.tensor([1])
        )
        assert float(loss) == pytest.approx(expected, abs=1e-6)

    def test_cells_of_air_do_not_count_and_cells_at_the_rim_do(self):
        label, foreground = label_of([4, 0, 0]), torch.ones(1, 1, 2, 6)
        foreground[..., 4:] = 0
        evidence = one_row([[0.0, 0.0, 0.0], [1.0, -3.0, 50.0]])
        two = without_background()(evidence[..., :2], label_of([4, 0]), torch.ones(1, 1, 2, 4), torch.tensor([1]))
        assert float(without_background()(evidence, label, foreground, torch.tensor([1]))) == pytest.approx(float(two))
        foreground[0, 0, 0, 4] = 1  # one pixel of the third cell is head: it is asked for no evidence
        assert float(without_background()(evidence, label, foreground, torch.tensor([1]))) > float(two) + 10

    def test_class_of_the_tumor_matters_when_it_is_known(self):
        label = label_of([4])
        evidence = one_row([[0.0], [1.0], [2.0]])
        total = 1 + math.e + math.e**2
        p1, p2 = math.e / total, math.e**2 / total
        known = {1: p1, 2: p2, -1: p1 + p2, 0: p1 + p2}
        for diagnosis, p in known.items():
            expected = -math.log(p) + overlap([p], [p1 + p2], [1.0])
            loss = without_background()(evidence, label, torch.ones_like(label), torch.tensor([diagnosis]))
            assert float(loss) == pytest.approx(expected, abs=1e-5), diagnosis

    def test_three_dimensions(self):
        label = torch.zeros(1, 1, 2, 2, 2)
        label[0, 0, 0, 0, 0] = 1
        p, a = sigmoid(-1.0), 0.125
        expected = -(a * math.log(p) + (1 - a) * math.log(1 - p)) + overlap([p], [p], [a])
        loss = without_background()(
            torch.tensor([0.0, -1.0]).view(1, 2, 1, 1, 1), label, torch.ones_like(label), torch.tensor([1])
        )
        assert float(loss) == pytest.approx(expected, abs=1e-6)

    @pytest.mark.parametrize("area", [0.25, 0.5])
    def test_evidence_of_zero_is_right_at_the_stated_area(self, area):
        # The gradient of the cross-entropy alone is p - area: at evidence 0 it vanishes where area = area_at_zero.
        loss = without_background(area)
        assert sigmoid(loss.offset) == pytest.approx(area, abs=1e-6)
        label = label_of([round(4 * area)])
        expected = -(area * math.log(area) + (1 - area) * math.log(1 - area)) + overlap([area], [area], [area])
        value = loss(one_row([[0.0], [0.0]]), label, torch.ones_like(label), torch.tensor([1]))
        assert float(value) == pytest.approx(expected, abs=1e-6)

    def test_evidence_in_the_tumor_lowers_it(self):
        label = label_of([4, 0, 0, 2])
        foreground, diagnosis = torch.ones_like(label), torch.tensor([1])
        losses = {
            name: float(without_background()(one_row([[0.0] * 4, values]), label, foreground, diagnosis))
            for name, values in {
                "right": [9.0, -9.0, -9.0, 0.0],
                "nothing": [0.0] * 4,
                "everywhere": [9.0] * 4,
                "wrong": [-9.0, 9.0, 9.0, 0.0],
            }.items()
        }
        assert losses["right"] < losses["nothing"] < losses["everywhere"] < losses["wrong"]

    @pytest.mark.parametrize("area", [0.0, 1.0])
    def test_area_out_of_range_is_refused(self, area):
        with pytest.raises(ValueError, match="area_at_zero lies between 0 and 1"):
            EvidenceLoss(area)


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
