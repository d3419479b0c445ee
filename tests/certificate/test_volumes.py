"""Certificates of volumes: asked where voxels are cubes, refused in one sentence where they cannot be."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from functools import cache

import nibabel as nib
import numpy as np
import pytest

from scripts.certificate.bundle_run import BundleRun
from scripts.certificate.cases import Case, Host, uneven
from scripts.certificate.certificate import certify
from scripts.certificate.certify import certify_run
from scripts.certificate.models import ExternalModel
from scripts.certificate.questions import Plan
from scripts.certificate.settings import Settings
from scripts.interventions import Turn
from scripts.networks.multitask_dynunet import MultiTaskDynUNet
from scripts.phantoms.head import draw_head, render, with_tumor
from tests.made_runs import NETWORK, made_stage

MM = 5.0


@cache
def volume(seed: int, kind: int, mm: float = MM) -> Case:
    """A head with a large bright tumor, or without, in voxels of ``mm``."""
    head = draw_head(np.random.default_rng([seed, 0]))
    if kind:
        head = with_tumor(head, np.random.default_rng([seed, 1]), 10.0, radius_mm=20.0)
        solid = replace(head.tumors[0], core_share=0.85, necrosis_share=0.0, edema_contrast=1.1, core_contrast=1.3)
        head = replace(head, tumors=(solid,))
    shape = (round(220 / mm), round(220 / mm), round(170 / mm))
    axes = [((np.arange(n) - (n - 1) / 2) * mm).astype(np.float32) for n in shape]
    drawn = render(head, *axes)
    noise = np.random.default_rng([seed, 3]).normal(0, 0.02, drawn.signal.shape)
    image = np.where(drawn.head, np.maximum(drawn.signal + noise, 0.01), 0).astype(np.float32)[None] * 85
    mask = drawn.tumor & drawn.head if kind else None
    return Case(f"volume {seed}", f"person {seed}", "phantoms", kind, image, drawn.head, mask)


def cases() -> list[Case]:
    return [volume(1, 1), volume(2, 1), volume(501, 0), volume(502, 0)]


def own() -> BundleRun:
    network = MultiTaskDynUNet(3, 1, 2, [3, 3, 3], [1, 2, 2], [2, 2], filters=[2, 4, 4], evidence_channels=4).eval()
    return BundleRun(network, [16, 16, 16], ["no_tumor", "tumor"], "x")


def test_a_network_of_volumes_is_asked_everything_that_volumes_have(tmp_path):
    content = certify(own(), cases(), tmp_path, "own", "person", infills=("poisson",), harmless=1, probes=1)
    assert content["counts"]["tumors"] == content["counts"]["healthy"] == 2
    rows = {(row["test"], row["measure"]): row for row in content["rows"] if row["part"] == "all"}
    assert {test for test, _ in rows} == {"removal", "transplant", "fade"}
    assert rows["removal", "mask at the place"]["n"] == 2
    assert np.isfinite(rows["transplant", "mask's overlap"]["after"])
    assert {row["change"] for row in content["checks"]} >= {"mirroring", "75 % of the pixels a side"}
    reasons = {row["reason"] for row in content["left_out"]}
    assert "JPEG grid: JPEG blocks are of pictures, not of volumes" in reasons
    assert not [reason for reason in reasons if reason.startswith("refused")]
    assert (tmp_path / "examples.png").is_file()
    assert {one["verdict"] for one in content["statements"]} == {"withheld"}


@pytest.mark.parametrize("sides", [(MM, 4.0), (4.0, MM)])
def test_a_moved_tumor_has_the_same_share_of_the_head_whatever_the_voxels(sides):
    """Sizes are in mm of the heads: voxels of another size in the host change nothing."""
    tumor, head = volume(1, 1, sides[0]), volume(501, 0, sides[1])
    plan = Plan([tumor], [head], ("poisson",), harmless=0, probes=0)
    plan.hosts = [Host(head, Turn())]
    moved = next(q for q in plan.about(tumor) if q.test == "transplant" and not q.control)
    assert moved.picture.shape == head.image.shape
    share, before = moved.place.sum() / head.foreground.sum(), tumor.mask.sum() / tumor.foreground.sum()
    assert share == pytest.approx(before, rel=0.15)
    in_mm = moved.place.sum() * sides[1] ** 3 / (tumor.mask.sum() * sides[0] ** 3)
    heads = head.foreground.sum() * sides[1] ** 3 / (tumor.foreground.sum() * sides[0] ** 3)
    assert in_mm == pytest.approx(heads, rel=0.15)
    assert tumor.margin * sides[0] == pytest.approx(head.margin * sides[1], abs=max(sides))


def test_voxels_that_are_no_cubes_are_left_out_with_the_reason(tmp_path):
    assert uneven((1.0, 1.05, 0.98)) == ""
    assert uneven((1.0, 1.0, 5.0)) == "its voxels of 1 x 1 x 5 mm are no cubes: resample it"
    assert uneven((float("nan"),) * 3) == "the size of its voxels is not known"
    case, items = volume(1, 1), []
    for name, sides in (("cubes", (MM, MM, MM)), ("slices", (MM, MM, 2 * MM))):
        for key, array in (("image", case.image[0]), ("label", case.mask.astype(np.uint8))):
            nib.save(
                nib.Nifti1Image(array, np.diag([-sides[0], -sides[1], sides[2], 1])), tmp_path / f"{name}_{key}.nii"
            )
        files = {key: str(tmp_path / f"{name}_{key}.nii") for key in ("image", "label")}
        items.append({**files, "name": name, "diagnosis": 1})
    left_out: Counter[str] = Counter()
    kept = own().cases(items, left_out)
    assert [case.name for case in kept] == ["cubes"]
    np.testing.assert_allclose(kept[0].image, case.image, rtol=1e-5)
    assert left_out == {"a volume: its voxels of 5 x 5 x 10 mm are no cubes: resample it": 1}


def test_patches_and_models_of_others_are_refused_in_a_sentence(tmp_path):
    made_stage(tmp_path / "run", num_classes=2, network_def={**NETWORK, "spatial_dims": 3}, spacing_mm=1.0)
    with pytest.raises(
        ValueError, match=r"was trained on patches \(spacing_mm: 1\.0\) and answers in windows; certified"
    ):
        certify_run(tmp_path / "run", tmp_path, tmp_path / "list.json")
    plan = Plan([volume(1, 1)], [], ("poisson",), harmless=0, probes=0)
    model = ExternalModel(lambda batch: [[0.5, 0.5]], Settings(), "x", "model")
    with pytest.raises(ValueError, match=r"model takes pictures, got an array of shape \(1, 44, 44, 34\)"):
        model.answer([next(iter(plan))])
