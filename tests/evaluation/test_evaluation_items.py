from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from scipy.special import softmax

from scripts.command.locations import CONFIGS
from scripts.data.datalists.schema import write
from scripts.data.preprocessing import collate, make_training_pipeline
from scripts.evaluation.items import (
    EvaluationDataset,
    at_prevalence,
    compare_classes,
    evaluated_items,
    output_folder,
    prevalence_used,
    provenance,
    volume_rule,
)
from scripts.runs.folder import load_run, read_datalist
from tests.made_runs import made_stage


def disk(width: int, height: int) -> np.ndarray:
    x, y = np.meshgrid(np.arange(width), np.arange(height), indexing="ij")
    rng = np.random.default_rng(0)
    inside = ((x - width / 2) / (0.35 * width)) ** 2 + ((y - height / 2) / (0.35 * height)) ** 2 < 1
    return inside * (150 + 40 * np.sin(x / 9.0) + 5 * rng.standard_normal((width, height)))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("items")
    volume = np.stack([disk(160, 120)] * 3, axis=2).astype(np.float32)
    nib.save(nib.Nifti1Image(volume, np.diag([1.5, 1.25, 6.0, 1.0])), root / "v.nii.gz")
    Image.fromarray(disk(160, 120).T.clip(0, 255).astype(np.uint8)).save(root / "p.png")
    return root


DATALIST = {
    "name": "two",
    "classes": {"0": "no_tumor", "1": "tumor"},
    "training": [{"image": "p.png", "diagnosis": 0, "source": "x"}],
    "validation": [],
    "test": [{"image": "v.nii.gz", "slice": 1, "diagnosis": 1, "source": "x", "patient": "v"}],
}


def test_pixels_of_the_network_grid_are_measured_in_millimeters(folder):
    items = evaluated_items(DATALIST, "all", str(folder))
    data = EvaluationDataset(items, make_training_pipeline((64, 64), augment=False, num_classes=2))
    picture, volume = data[0], data[1]
    plain = make_training_pipeline((64, 64), augment=False, num_classes=2)(items[1])
    assert torch.equal(plain["image"], volume["image"]), "the same pixels as without measuring"
    head = volume["foreground"][0].any(1).sum(), volume["foreground"][0].any(0).sum()
    # The disk is 112 x 84 pixels of 1.5 x 1.25 mm, wherever it was cropped and however it was scaled.
    assert float(head[0] * volume["pixel_mm"][0]) == pytest.approx(0.7 * 160 * 1.5, rel=0.06)
    assert float(head[1] * volume["pixel_mm"][1]) == pytest.approx(0.7 * 120 * 1.25, rel=0.06)
    assert volume["pixel_area"] == pytest.approx(float(volume["pixel_mm"].prod()) / (1.5 * 1.25))
    assert volume["slice_mm"] == pytest.approx(6.0)
    assert volume["head_share"] == pytest.approx(np.pi * 0.35**2, rel=0.06), "of the whole slice, not of the crop"
    assert (volume["slice"], volume["volume"]) == (1, "v.nii.gz axial")
    assert bool(torch.isnan(picture["pixel_mm"]).all()), "a PNG has no millimeters"
    assert (picture["slice"], picture["volume"]) == (-1, "")
    assert collate([picture, volume])["pixel_mm"].shape == (2, 2)


def test_a_run_is_evaluated_at_a_given_prevalence(tmp_path):
    made_stage(tmp_path / "joint")
    known = {"classes": {"0": "no_tumor", "1": "tumor"}, "training_prevalence": {"tumor": 0.8, "no_tumor": 0.2}}
    (tmp_path / "network.yaml").write_text(yaml.safe_dump(known), encoding="utf-8")
    network, _, _ = load_run(tmp_path)
    assert prevalence_used(at_prevalence(network, tmp_path, None), tmp_path) is None
    moved = at_prevalence(network, tmp_path, 0.1)
    np.testing.assert_allclose(moved.class_shift, np.log([0.9 / 0.2, 0.1 / 0.8]), rtol=1e-6)
    assert prevalence_used(moved, tmp_path) == pytest.approx({"no_tumor": 0.9, "tumor": 0.1}, abs=1e-6)


def test_part_is_checked(folder):
    with pytest.raises(ValueError, match="part is one of training, validation, test, all, got 'tets'"):
        evaluated_items(DATALIST, "tets", str(folder))


def test_classes_are_matched_by_name_not_by_number():
    found = compare_classes(["no_tumor", "glioma", "meningioma"], 3, ["healthy", "Meningioma", "glioma"])
    assert (found.names, found.index, found.binary) == (["no_tumor", "glioma", "meningioma"], [0, 2, 1], False)
    assert [found.diagnosis(k) for k in (-1, 0, 1, 2)] == [-1, 0, 2, 1]
    assert found.notes == []


def test_missing_classes_are_said():
    found = compare_classes(["no_tumor", "glioma", "meningioma"], 3, ["no_tumor", "glioma"])
    assert found.index == [0, 1]
    assert found.notes == ["the datalist has no class meningioma, which the run may predict"]


def test_unknown_tumors_are_compared_as_any_tumor_and_keep_their_probability():
    found = compare_classes(["no_tumor", "glioma", "meningioma"], 3, ["no_tumor", "metastasis", "glioma"])
    assert (found.names, found.index, found.binary) == (["no_tumor", "tumor"], [0, 1, 1], True)
    assert "metastasis" in found.notes[0]
    assert "any tumor against none" in found.notes[0]
    logits = np.array([[0.3, 1.0, -2.0], [2.0, 0.5, 0.4]])
    for temperature in (0.5, 2.0):
        joined = softmax(found.logits(logits, temperature) / temperature, axis=1)
        np.testing.assert_allclose(joined[:, 0], softmax(logits / temperature, axis=1)[:, 0])


def test_classes_that_can_not_be_matched_are_refused_with_the_reason():
    with pytest.raises(ValueError, match="3 classes whose names its run does not hold, the datalist has 2"):
        compare_classes(None, 3, ["no_tumor", "tumor"])
    assert compare_classes(None, 2, ["a", "b"]).notes == ["classes matched by their order"]


def test_another_datalist_is_written_beside_and_what_was_seen_in_training_is_counted(small_run, tmp_path):
    run = small_run.run("ours")
    assert output_folder(run, small_run.datalist_file) == str(run / "evaluation")
    assert output_folder(run, small_run.datalist_file, "validation") == str(run / "evaluation_validation")
    datalist = read_datalist(str(small_run.datalist_file), str(small_run.dataset_dir))
    other = {**datalist, "test": datalist["training"][:3] + datalist["test"][:2], "training": [], "name": "other"}
    write(other, tmp_path / "other.json")
    assert output_folder(run, tmp_path / "other.json") == str(run / "evaluation_other")
    items = evaluated_items(other, "test", str(small_run.dataset_dir))
    found = provenance(run, other, str(tmp_path / "other.json"), items)
    assert (found["own"], found["seen"], found["datalist"]) == (False, 3, "other")
    with pytest.raises(ValueError, match="run_dir is required"):
        output_folder(None, "x.json")


def test_a_volume_is_judged_by_the_values_of_inference(tmp_path):
    made_stage(tmp_path / "joint")
    shipped = yaml.safe_load((CONFIGS / "inference.yaml").read_text(encoding="utf-8"))
    rule = volume_rule(tmp_path)
    assert (rule.share, rule.min_foreground) == (shipped["volume_share"], shipped["min_foreground"])
    (tmp_path / "network.yaml").write_text("volume_share: 0.5\nmin_foreground: 0.0\n", encoding="utf-8")
    for run in (tmp_path, tmp_path / "joint"):
        rule = volume_rule(run)
        assert (rule.share, rule.min_foreground) == (0.5, 0.0)
