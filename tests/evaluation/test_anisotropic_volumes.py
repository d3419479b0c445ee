"""Volumes whose voxels have unequal sides, in a file with other axes than the network's: maps, masks and distances."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from scipy.spatial.distance import cdist

from scripts.data.datalists.regions import SCHEMES
from scripts.data.preprocessing import collate, make_training_pipeline
from scripts.evaluation.evaluation import CaseResults
from scripts.evaluation.explanation_plan import make_plan
from scripts.evaluation.items import EvaluationDataset
from scripts.evaluation.localization import measure
from scripts.evaluation.localization_table import format_regions, localization_table, sorted_rows
from scripts.explain.maps import upsample
from scripts.networks.multitask_dynunet import MultiTaskDynUNet
from scripts.phantoms.sequences import phantom_case

SIDES = np.array([2.5, 4.5, 9.0])  # left-right, front-back, bottom-top
REGIONS = SCHEMES["brats2012"]
NAMES = list(REGIONS)
STREAM = [3, 11]  # a tumor with a core that enhances


@pytest.fixture(scope="module")
def case(tmp_path_factory) -> dict[str, Any]:
    """A phantom in a file whose first axis is bottom-top, as the pipeline leaves it at the spacing of the file."""
    folder = tmp_path_factory.mktemp("long")
    drawn = phantom_case(STREAM, True, SIDES.tolist())
    affine = np.diag([-SIDES[0], -SIDES[1], SIDES[2], 1.0])[:, [2, 0, 1, 3]]
    for name, array in (("flair", drawn.images["flair"]), ("seg", drawn.label)):
        nib.save(nib.Nifti1Image(np.transpose(array, (2, 0, 1)), affine), folder / f"{name}.nii.gz")
    item = {
        "image": str(folder / "flair.nii.gz"), "label": str(folder / "seg.nii.gz"), "regions": REGIONS, "name": "long",
        "diagnosis": 1, "source": "phantoms", "patient": "p",
    }  # fmt: skip
    pipeline = make_training_pipeline((16, 16, 8), augment=False, num_classes=2, spacing_mm="acquired")
    made = dict(EvaluationDataset([item], pipeline)[0])
    made["expected_ml"] = float((drawn.label > 0).sum() * SIDES.prod() / 1000)
    return made


def network() -> MultiTaskDynUNet:
    torch.manual_seed(1)
    made = MultiTaskDynUNet(
        3, 1, 3, [3] * 3, [1, 2, 2], [2, 2], filters=[4, 4, 8], evidence_channels=4, regions=NAMES
    ).eval()
    torch.nn.init.normal_(made.head.evidence.conv.weight, std=0.5)
    torch.nn.init.constant_(made.output_block.conv.conv.bias, 0.0)
    return made


def test_the_sides_of_a_voxel_follow_its_axes_through_the_pipeline(case):
    np.testing.assert_allclose(case["pixel_mm"], SIDES, rtol=1e-6)
    assert float(case["label"].sum() * case["pixel_mm"].prod() / 1000) == pytest.approx(case["expected_ml"])


def test_a_volume_resampled_to_three_sides_has_them_along_left_front_and_bottom(case, tmp_path):
    affine = np.diag([-SIDES[0], -SIDES[1], SIDES[2], 1.0])[:, [2, 0, 1, 3]]
    drawn = phantom_case(STREAM, True, SIDES.tolist())
    path = tmp_path / "flair.nii.gz"
    nib.save(nib.Nifti1Image(np.transpose(drawn.images["flair"], (2, 0, 1)), affine), path)
    item = {"image": str(path), "name": "long", "diagnosis": 1}
    pipeline = make_training_pipeline((16, 16, 8), augment=False, num_classes=2, spacing_mm=[3.0, 5.0, 8.0])
    made = EvaluationDataset([item], pipeline)[0]
    np.testing.assert_allclose(made["pixel_mm"], [3.0, 5.0, 8.0], rtol=0.05)
    for axis in range(3):  # the head stays as large, but for a voxel at its ends
        others = tuple(k for k in range(3) if k != axis)
        before, after = (
            float(c["foreground"][0].numpy().any(axis=others).sum() * c["pixel_mm"][axis]) for c in (case, made)
        )
        assert before == pytest.approx(after, abs=2 * SIDES[axis])


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_the_evaluation_measures_in_the_sides_of_the_axis(case, axis):
    """A mask moved by two voxels along one axis lies twice its side away."""
    batch = collate([{k: v for k, v in case.items() if k != "expected_ml"}])
    said = batch["region_masks"].roll(2, dims=2 + axis)
    pred = {"seg": said.float() * 20 - 10, "cls": torch.zeros(1, 2)}
    results = CaseResults(regions=NAMES)
    target = {key: batch[key] for key in ("label", "diagnosis", "has_mask", "foreground")}
    results.collect(SimpleNamespace(state=SimpleNamespace(batch=batch, output={"pred": pred, "label": target})))
    row = results.rows[0]
    assert row["hd95_mm"] == row["hd95_mm_whole_tumor"] == pytest.approx(2 * SIDES[axis], rel=0.2)
    assert row["tumor_ml"] == pytest.approx(case["expected_ml"])


def test_maps_are_measured_in_millimeters_against_every_region(case):
    batch = collate([{k: v for k, v in case.items() if k != "expected_ml"}])
    net = network()
    size = [-(-n // 4) * 4 for n in batch["image"].shape[2:]]
    widths = [w for n, m in reversed(list(zip(batch["image"].shape[2:], size, strict=True))) for w in (0, m - n)]
    for key in ("image", "label", "foreground", "region_masks"):
        batch[key] = torch.nn.functional.pad(batch[key], widths)
    rows = measure(net, [batch], make_plan(net, ["evidence"], ["tumor_log_odds"]), {"1": "tumor"}, set(), "cpu", NAMES)
    row = next(r for r in rows if (r["method"], r["mask"]) == ("evidence", "true"))
    with torch.no_grad():
        evidence = net.multitask(batch["image"], batch["foreground"])["evidence"]
    on_image = upsample((evidence[:, 1:] - evidence[:, :1]).clamp(min=0).double(), size)[0, 0].numpy()
    peak = np.array(np.unravel_index(on_image.argmax(), on_image.shape))
    grid = np.stack(np.meshgrid(*map(np.arange, size), indexing="ij"), axis=-1)
    center = (on_image[..., None] * grid).sum(axis=(0, 1, 2)) / on_image.sum()
    for k, name in enumerate(NAMES):
        voxels = np.argwhere(batch["region_masks"][0, k].numpy())
        assert row[f"peak_distance_mm_{name}"] == pytest.approx(cdist([peak * SIDES], voxels * SIDES).min())
        apart = np.linalg.norm((center - voxels.mean(axis=0)) * SIDES)
        assert row[f"centroid_distance_mm_{name}"] == pytest.approx(apart, rel=1e-4)
        assert row[f"area_{name}"] == pytest.approx(len(voxels) / grid[..., 0].size)
    assert row["peak_distance_mm"] == row["peak_distance_mm_whole_tumor"] > 0
    assert {r["mask"] for r in rows if "area_tumor_core" in r} == {"true", "predicted"}
    text = format_regions(sorted_rows(localization_table(rows)))
    assert [name in text for name in NAMES] == [True] * 3
    assert f"{row['peak_distance_mm_tumor_core']:.1f} mm" in text
