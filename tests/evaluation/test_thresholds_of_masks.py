"""Every mask that an evaluation makes begins at the network's own threshold of its region."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from scripts.data.preprocessing import collate
from scripts.evaluation.evaluation import CaseResults
from scripts.evaluation.explanation_plan import make_plan
from scripts.evaluation.localization import measure
from scripts.inference.uncertainty import PredictiveUncertainty, tumor_threshold
from scripts.networks.regions import mask_threshold, region_probability
from tests.evaluation.small_cases import CLASSES, make_cases, make_net

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


def test_masks_of_several_predictions_are_compared_at_the_threshold(net):
    assert tumor_threshold(net) == pytest.approx(LEAST)
    one, other = torch.tensor([[[[0.3, 0.1, 0.1]]]]), torch.tensor([[[[0.3, 0.25, 0.1]]]])
    classes = [torch.tensor([[0.5, 0.5]])] * 2
    assert float(PredictiveUncertainty.of(classes, [one, other], 0.5).mask_disagreement) == 0  # nothing is marked
    assert float(PredictiveUncertainty.of(classes, [one, other], LEAST).mask_disagreement) > 0
