"""The options of the masks' loss, against MONAI's losses and by hand."""

from __future__ import annotations

import math

import pytest
import torch
from monai.losses import DiceLoss, FocalLoss, TverskyLoss

from scripts.training.mask_loss import SegmentationLoss


def batch(nested: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
    """Three pictures, the last without a tumor."""
    generator = torch.Generator().manual_seed(3)
    seg = 2 * torch.randn(3, 2, 6, 6, generator=generator)
    label = torch.zeros(3, 2 if nested else 1, 6, 6)
    label[0, :, 1:4, 2:5] = 1
    label[1, :, 4:, :2] = 1
    if nested:
        label[:, 1, 2] = 0
    return seg, label


def test_focal_loss_on_masks_is_that_of_monai():
    seg, label = batch()
    dice = SegmentationLoss()(seg, label) - torch.nn.functional.cross_entropy(seg, label[:, 0].long())
    focal = 2 * FocalLoss(gamma=2.0, use_softmax=True, to_onehot_y=True)(seg, label)  # a mean over both channels
    assert float(SegmentationLoss(focal_gamma=2.0)(seg, label)) == pytest.approx(float(dice + focal), abs=1e-5)


def test_focal_loss_on_regions_is_that_of_monai():
    seg, label = batch(nested=True)
    entropy = torch.nn.functional.binary_cross_entropy_with_logits(seg, label)
    dice = SegmentationLoss(nested=True)(seg, label) - entropy
    focal = FocalLoss(gamma=1.5)(seg, label)
    loss = SegmentationLoss(nested=True, focal_gamma=1.5)(seg, label)
    assert float(loss) == pytest.approx(float(dice + focal), abs=1e-5)


@pytest.mark.parametrize("beta", [0.3, 0.5, 0.7])
def test_tversky_overlap_is_that_of_monai(beta):
    seg, label = batch()
    tversky = TverskyLoss(
        include_background=False, to_onehot_y=True, softmax=True, batch=True, alpha=1 - beta, beta=beta
    )(seg, label)
    entropy = torch.nn.functional.cross_entropy(seg, label[:, 0].long())
    loss = SegmentationLoss(tversky_beta=beta)(seg, label)
    assert float(loss) == pytest.approx(float(tversky + entropy), abs=1e-4)


def test_a_missed_pixel_costs_more_than_a_false_one_where_beta_is_large():
    _, label = batch()
    right = torch.where(torch.cat([label < 0.5, label > 0.5], dim=1), 9.0, -9.0)
    missed, false = right.clone(), right.clone()
    missed[0, :, 1, 2] = right[0, :, 1, 2].flip(0)
    false[0, :, 0, 0] = right[0, :, 0, 0].flip(0)

    def price(wrong: torch.Tensor, beta: float) -> float:
        loss = SegmentationLoss(tversky_beta=beta)
        return float(loss(wrong, label) - loss(right, label))

    assert price(missed, 0.7) > price(false, 0.7)
    assert price(missed, 0.3) < price(false, 0.3)


def test_overlap_of_each_item_is_the_mean_of_monais_over_those_with_a_tumor():
    seg, label = batch()
    dice = DiceLoss(include_background=False, to_onehot_y=True, softmax=True)(seg[:2], label[:2])
    entropy = torch.nn.functional.cross_entropy(seg, label[:, 0].long())
    loss = SegmentationLoss(per_item=True)
    assert float(loss(seg, label)) == pytest.approx(float(dice + entropy), abs=1e-4)
    none = torch.zeros_like(label)
    assert float(loss(seg, none)) == pytest.approx(float(torch.nn.functional.cross_entropy(seg, none[:, 0].long())))


@pytest.mark.parametrize("options", [{}, {"focal_gamma": 2.0}, {"tversky_beta": 0.7}, {"per_item": True}])
@pytest.mark.parametrize("nested", [False, True])
def test_sums_of_two_halves_are_those_of_the_batch(options, nested):
    seg, label = batch(nested)
    loss = SegmentationLoss(nested=nested, **options)
    halves = loss.sums(seg[:1], label[:1]) + loss.sums(seg[1:], label[1:])
    assert torch.allclose(halves, loss.sums(seg, label), atol=1e-4)
    assert len(halves) == loss.size


@pytest.mark.parametrize("gamma", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("nested", [False, True])
def test_focal_loss_has_gradients_where_a_pixel_is_certain(gamma, nested):
    seg, label = batch(nested)
    seg[:, 0, :3], seg[:, 1, :3] = 40.0, -40.0
    seg.requires_grad_()
    SegmentationLoss(nested=nested, focal_gamma=gamma)(seg, label).backward()
    assert bool(torch.isfinite(seg.grad).all())
    assert bool(seg.grad[:, :, 3:].any())


@pytest.mark.parametrize(
    "options", [{"focal_gamma": -1.0}, {"focal_gamma": math.inf}, {"tversky_beta": 0.0}, {"tversky_beta": 1.0}]
)
def test_numbers_out_of_range_are_refused(options):
    with pytest.raises(ValueError, match="mask_loss: focal_gamma is 0 or more, tversky_beta between 0 and 1"):
        SegmentationLoss(**options)
