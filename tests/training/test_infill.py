"""Fitting the learned infill: holes lie in healthy tissue, the loss counts them alone, and truth is what was there."""

from __future__ import annotations

from itertools import islice

import numpy as np
import pytest
import torch

from scripts.data.preprocessing import make_training_pipeline
from scripts.runs.folder import read_datalist, stage_items
from scripts.training.counterfactuals import arrays
from scripts.training.infill import Holes, batches, fidelity, fit, hole_loss, summary, table
from scripts.training.monai_label import CaseDataset


@pytest.fixture(scope="module")
def holes(small_data) -> Holes:
    datalist = read_datalist(str(small_data.datalist_file), str(small_data.dataset_dir))
    items = stage_items(datalist, "training", str(small_data.dataset_dir), empty_masks=True)
    return Holes(CaseDataset(items, make_training_pipeline((96, 96), False, 2), progress=False))


def test_holes_lie_in_healthy_tissue(holes):
    found = 0
    for index in holes.heads:
        hole = holes.at(index, np.random.default_rng(index))
        if hole is None:
            continue
        found += 1
        image, mask, foreground = arrays(holes.dataset.prepared(index))
        assert not (hole.whole_region & (mask | ~foreground)).any()
        np.testing.assert_array_equal(hole.whole, image)
    assert found >= len(holes.heads) // 2


def test_the_loss_counts_the_holes_alone():
    hole = torch.zeros(1, 1, 4, 4)
    hole[..., 1:3, 1:3] = 1
    wanted = torch.zeros_like(hole)
    answer = torch.full_like(hole, 2.0)
    # 4 pixels off by 2; 8 steps of 2 from the error to the 0 around it.
    assert hole_loss(answer, wanted, hole).item() == pytest.approx((4 * 2 + 0.5 * 8 * 2) / 4)
    answer[hole == 0] = 99.0
    assert hole_loss(answer, wanted, hole).item() == pytest.approx(4.0)
    assert hole_loss(wanted, wanted, hole).item() == 0


def test_fitting_is_decided_by_its_seed_and_learns(holes):
    first, second = (fit(holes, 3, 2, seed=4) for _ in range(2))
    for a, b in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(a, b)
    inputs, wanted = next(islice(batches(holes, np.random.default_rng(9), 8), 0, 1))
    longer = fit(holes, 40, 4, seed=4)
    with torch.no_grad():
        before, after = (float(hole_loss(n(inputs), wanted, inputs[:, 1:])) for n in (first, longer))
    assert after < before


def test_infills_are_measured_by_the_tissue_that_was_there(holes):
    truth = lambda hole, rng: hole.image.copy()  # noqa: E731
    off = lambda hole, rng: hole.image + hole.whole[:, hole.foreground].std()  # noqa: E731
    rows = fidelity(holes, {"truth": truth, "off": off})
    found = summary(rows)
    assert found["truth"]["mae"]["mean"] == pytest.approx(0, abs=1e-6)
    assert found["truth"]["ssim"]["mean"] == pytest.approx(1, abs=1e-6)
    assert found["off"]["mae"]["mean"] == pytest.approx(1, abs=1e-4)
    assert found["off"]["ssim"]["mean"] < 0.99
    assert table(found).splitlines()[1].startswith("truth")
