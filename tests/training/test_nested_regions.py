"""Training on several regions: the loss by hand, the metrics of a validation, whole volumes in evaluation mode."""

from __future__ import annotations

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from monai.losses import DiceLoss

from scripts.measures.thresholds import LEAST
from scripts.networks.multitask_dynunet import MultiTaskDynUNet
from scripts.networks.regions import region_masks
from scripts.training.engines import MultiTaskStep, prepare_batch
from scripts.training.handlers.validation import ValidationMetrics
from scripts.training.losses import MultiTaskLoss
from scripts.training.mask_loss import SegmentationLoss

REGIONS = ["whole", "core", "rim"]


def masks() -> torch.Tensor:
    """(2, 3, 8, 8, 8): nested boxes in the first case, nothing in the second."""
    found = torch.zeros(2, 3, 8, 8, 8)
    found[0, 0, 1:7, 1:7, 1:7], found[0, 1, 2:6, 2:6, 2:6], found[0, 2, 3:5, 3:5, 3:5] = 1, 1, 1
    return found


def test_the_loss_is_dice_of_each_region_and_the_mean_binary_cross_entropy():
    torch.manual_seed(0)
    seg, label = torch.randn(2, 3, 8, 8, 8, requires_grad=True), masks()
    found = SegmentationLoss(3, nested=True)(seg, label)
    dice = DiceLoss(sigmoid=True, batch=True, smooth_nr=1e-5, smooth_dr=1e-5)(seg, label)
    entropy = torch.nn.functional.binary_cross_entropy_with_logits(seg, label)
    assert float(found) == pytest.approx(float(dice + entropy), rel=1e-5)
    found.backward()
    assert bool((seg.grad != 0).all())


def test_a_region_that_no_case_has_is_taught_by_the_cross_entropy_alone():
    label = masks()
    label[:, 2] = 0
    seg = torch.zeros(2, 3, 8, 8, 8)
    whole, core = (1 - 2 * n / 2 / (1024 / 2 + n) for n in (216, 64))  # p is one half everywhere
    expected = (whole + core) / 2 + math.log(2)
    assert float(SegmentationLoss(3, nested=True)(seg, label)) == pytest.approx(expected, rel=1e-4)


def test_masks_of_other_regions_are_refused_in_one_sentence():
    with pytest.raises(ValueError, match="segments 3 regions, the masks are of 2"):
        SegmentationLoss(3, nested=True)(torch.zeros(1, 3, 8, 8, 8), torch.zeros(1, 2, 8, 8, 8))


def batch() -> dict:
    label = masks()
    return {
        "image": torch.rand(2, 2, 8, 8, 8) + 0.1, "label": label[:, :1], "foreground": torch.ones(2, 1, 8, 8, 8),
        "has_mask": torch.tensor([True, True]), "diagnosis": torch.tensor([1, 0]), "region_masks": label,
        "name": ["a", "b"],
    }  # fmt: skip


def net(**options) -> MultiTaskDynUNet:
    torch.manual_seed(0)
    return MultiTaskDynUNet(
        3,
        2,
        3,
        [3, 3, 3],
        [1, 2, 1],
        [2, 1],
        filters=[4, 4, 4],
        evidence_levels=1,
        evidence_channels=4,
        regions=REGIONS,
        **options,
    )


def test_a_step_on_patches_trains_every_part():
    step, loss = MultiTaskStep(net()), MultiTaskLoss(out_channels=3, nested=True)
    image, target, _, named = prepare_batch(batch())
    loss(step(image, **named), target).backward()
    assert set(loss.parts) == {"segmentation", "classification", "evidence"}
    assert all(p.grad is not None and bool((p.grad != 0).any()) for p in step.network.output_block.parameters())


def test_whole_volumes_go_through_the_step_in_windows_in_evaluation_mode_alone():
    network = net(window=[8, 8, 8])
    step = MultiTaskStep(network).eval()
    volume = torch.rand(1, 2, 16, 8, 8) + 0.1
    with torch.no_grad():
        found = step(volume)
        expected = network.multitask(volume)
    assert found.keys() == expected.keys() == {"seg", "cls", "evidence"}
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    with pytest.raises(ValueError, match="patches are drawn again"):
        MultiTaskStep(net(window=[8, 8, 8]), segmentation=False, frozen=["encoder"], cache_features=True, items=2)


def test_validation_dice_is_the_mean_over_the_regions_of_a_case():
    label = masks()
    seg = torch.where(label > 0, 5.0, -5.0)
    seg[0, 1] = -5.0  # the core is missed
    metrics = ValidationMetrics(REGIONS)
    pred = {"seg": seg, "cls": torch.tensor([[0.0, 1.0], [1.0, 0.0]])}
    target = {key: value for key, value in batch().items() if key != "name"}
    state = SimpleNamespace(output={"pred": pred, "label": target}, batch={"name": ["a", "b"]}, metrics={})
    engine = SimpleNamespace(state=state)
    metrics.start(engine)
    metrics.collect(engine)
    metrics.compute(engine)
    assert state.metrics["dice"] == pytest.approx(2 / 3)
    assert [state.metrics[f"dice_{name}"] for name in REGIONS] == pytest.approx([1.0, 0.0, 1.0])
    assert state.metrics["balanced_accuracy"] == 1.0
    assert np.isfinite(state.metrics["combined"])


def validated(cases: int, **changes: list) -> ValidationMetrics:
    """A validation of cases in which the core is found above 0.3, and too much of it above 0.2; the rim is absent."""
    metrics = ValidationMetrics(REGIONS)
    metrics.start(None)
    for k in range(cases):
        label = masks()
        label[:, 2] = 0
        seg = torch.full_like(label, -5.0)
        seg[label > 0] = 5.0
        core = torch.full((8, 8, 8), 0.02)
        core[1:7, 1:7, 1:7], core[2:6, 2:6, 2:6] = 0.22, 0.4
        seg[0, 1] = torch.logit(core)
        target = {key: value for key, value in batch().items() if key != "name"}
        target |= {"region_masks": label, "label": label[:, :1]}
        pred = {"seg": seg, "cls": torch.tensor([[0.0, 1.0], [1.0, 0.0]])}
        names = {"name": [f"a{k}", f"b{k}"], "patient": [f"p{k}", f"q{k}"], **changes}
        metrics.collect(SimpleNamespace(state=SimpleNamespace(output={"pred": pred, "label": target}, batch=names)))
    return metrics


def test_each_region_gets_the_threshold_of_its_best_dice_on_validation():
    found = validated(LEAST).mask_thresholds()
    assert [value for value, _ in found] == [0.5, 0.35, 0.5]
    assert found[0][1] == "0.5 (mean Dice 1.000, 1.000 at 0.5; 10 patients)"
    assert found[1][1] == "0.35 (mean Dice 1.000, 0.000 at 0.5; 10 patients)"
    assert found[2][1].startswith("0.5 (0 of the 10 patients with it")


def test_too_few_patients_and_changed_items_give_no_threshold():
    assert [value for value, _ in validated(LEAST - 1).mask_thresholds()] == [0.5] * 3
    assert [value for value, _ in validated(LEAST, patient=["p", "q"]).mask_thresholds()] == [0.5] * 3
    assert validated(LEAST, intervention=["removed", "removed"]).mask_thresholds() is None


def test_selection_measures_dice_at_one_half_whatever_was_chosen():
    """Otherwise an epoch would be compared with another one's thresholds."""
    metrics = validated(LEAST)
    state = SimpleNamespace(metrics={})
    metrics.compute(SimpleNamespace(state=state))
    assert state.metrics["dice_core"] == 0.0
    seg = torch.logit(torch.full((1, 3, 2, 2, 2), 0.4))
    assert not bool(region_masks(seg, True).any())
    assert bool(region_masks(seg, True, torch.tensor([0.35] * 3)).all())
