"""Every mask that an evaluation makes begins at the network's own threshold of its region."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from scripts.data.preprocessing import collate
from scripts.evaluation.evaluation import CaseResults
from scripts.evaluation.explanation_plan import make_plan
from scripts.evaluation.localization import _Part, measure
from scripts.inference.uncertainty import PredictiveUncertainty, tumor_threshold
from scripts.networks.regions import mask_threshold, region_probability
from tests.evaluation.small_cases import CLASSES, make_cases, make_net
from tests.networks.nets import tiny

LEAST = 0.2


@pytest.fixture
def net():
    made = make_net()
    made.mask_threshold.fill_(LEAST)
    return made


def expected(net, image) -> torch.Tensor:
    with torch.no_grad():
        probability = region_probability(net.multitask(image)["seg"], nested=False)
    mask = probability > LEAST
    assert int(mask.sum()) > int((probability > 0.5).sum()), "the threshold makes another mask than one half"
    return mask


def test_the_rows_of_cases_are_of_the_masks_at_the_threshold(net):
    batch = collate(make_cases())
    batch |= {
        "pixel_mm": torch.ones(4, 2), "pixel_area": torch.ones(4), "head_share": torch.ones(4),
        "slice_mm": torch.ones(4), "slice": torch.zeros(4), "volume": [""] * 4,
    }  # fmt: skip
    with torch.no_grad():
        pred = net.multitask(batch["image"])
    results = CaseResults(mask_threshold=mask_threshold(net))
    results.collect(SimpleNamespace(state=SimpleNamespace(batch=batch, output={"pred": pred, "label": batch})))
    assert [row["predicted_pixels"] for row in results.rows] == expected(net, batch["image"]).flatten(1).sum(1).tolist()


def test_maps_are_measured_against_the_predicted_masks_at_the_threshold(net):
    batch = collate(make_cases()[:3])
    rows = measure(net, [batch], make_plan(net, ["evidence"], ["tumor_log_odds"]), CLASSES, set())
    found = [r["tumor_area"] for r in rows if (r["mask"], r["method"]) == ("predicted", "uniform")]
    assert found == pytest.approx(expected(net, batch["image"]).flatten(1).double().mean(1).tolist())


def test_the_target_of_the_predicted_mask_is_that_mask(net):
    batch = collate(make_cases()[:3])
    part = _Part(net, batch, torch.arange(3), CLASSES, "cpu")
    target = part.target("segmentation_1_predicted")
    assert target.name == "segmentation_1_predicted"
    region = target.region(part.output["seg"])
    assert torch.equal(region, expected(net, batch["image"])[:, 0])
    assert torch.equal(part.take([2]).target("segmentation_1_predicted").region(part.output["seg"][2:]), region[2:])


def test_the_target_of_a_nested_region_is_its_own_mask():
    torch.manual_seed(0)
    net = tiny(out_channels=3, regions=["whole", "core", "rim"], num_classes=2)
    net.mask_threshold.copy_(torch.tensor([0.4, 0.2, 0.5]))
    batch = collate(make_cases()[:2])
    part = _Part(net, batch, torch.arange(2), CLASSES, "cpu")
    for k in range(3):
        region = part.target(f"segmentation_{k}_predicted").region(part.output["seg"])
        assert torch.equal(region, torch.sigmoid(part.output["seg"][:, k]) > net.mask_threshold[k])


def test_masks_of_several_predictions_are_compared_at_the_threshold(net):
    assert tumor_threshold(net) == pytest.approx(LEAST)
    one, other = torch.tensor([[[[0.3, 0.1, 0.1]]]]), torch.tensor([[[[0.3, 0.25, 0.1]]]])
    classes = [torch.tensor([[0.5, 0.5]])] * 2
    assert float(PredictiveUncertainty.of(classes, [one, other], 0.5).mask_disagreement) == 0  # nothing is marked
    assert float(PredictiveUncertainty.of(classes, [one, other], LEAST).mask_disagreement) > 0
