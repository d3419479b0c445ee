"""The loss of the evidence map, by hand."""

from __future__ import annotations

import math

import pytest
import torch

from scripts.training.losses import EvidenceLoss, MultiTaskLoss, pooling_of
from tests.networks.nets import tiny


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
