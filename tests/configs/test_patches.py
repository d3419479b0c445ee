"""The way of volumes in patches from a folder to an answer: datalist, training, evaluation, inference."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
import yaml

from bundle.release import find_weights, release, write_configs
from scripts.command.errors import sentence
from scripts.command.locations import CONFIGS
from scripts.command.workflows import run_config
from scripts.data import datalists
from scripts.data.datalists.regions import SCHEMES, own_values
from scripts.data.preprocessing import make_training_pipeline
from scripts.evaluation.explanation_plan import make_plan
from scripts.evaluation.items import measured_regions
from scripts.evaluation.robustness import NOT_OF_PATCHES, left_out
from scripts.inference.pipeline import Inference
from scripts.inference.postprocessing import paint
from scripts.networks.regions import region_masks
from scripts.networks.windows import stitched
from scripts.phantoms.sequences import SEQUENCES, write_pair
from scripts.runs import folder as runs
from scripts.training.monai_label import CaseDataset
from scripts.training.train import train
from tests.data.test_broken_volumes import missing_sequence, no_head, shifted_sequence, smaller_sequence

CHANNELS = ("FLAIR", "T1", "T1ce", "T2")
REGIONS = ["whole_tumor", "tumor_core", "enhancing_tumor"]
SPACING_MM = 10.0  # a head takes several windows, but not dozens
SMALL: dict[str, Any] = {
    "spatial_size": [16, 16, 16], "spacing_mm": SPACING_MM, "network_def#filters": [4, 4, 8, 8],
    "patches_per_epoch": 10,
}  # fmt: skip


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("patches")
    for k in range(4):
        write_pair(folder / "data", [7, k], f"v{k:03d}", (SPACING_MM,) * 3)
    rule = datalists.SliceRule(planes=(), regions=SCHEMES["brats2012"])
    datalist, _ = datalists.nifti_cases(
        folder / "data", rule=rule, channels=CHANNELS, patient_pattern=r"v\d+", progress=False
    )
    datalists.write(datalist, folder / "list.json")
    paths = {"dataset_dir": str(folder / "data"), "datalist_file": str(folder / "list.json")}
    overlays = [CONFIGS / "volumetric_patches.yaml", CONFIGS / "smoke.yaml"]
    train(folder / "run", overlays, (runs.JOINT,), max_epochs=1, val_interval=1, batch_size=2, **SMALL, **paths)
    run_config("evaluate.yaml", run_dir=str(folder / "run"), extras=[], **paths)
    run_config("explain.yaml", run_dir=str(folder / "run"), tests=[], gallery_cases=1, **paths)
    files = [str(folder / "data" / file) for file in datalist["test"][0]["image"]]
    run_config("inference.yaml", [folder / "run" / "network.yaml"], input=files, output_dir=str(folder / "out"))
    return {"folder": folder, "datalist": datalist, "files": files}


def test_the_run_knows_its_regions_its_window_and_its_spacing(trained):
    network, config, _ = runs.load_run(trained["folder"] / "run")
    assert (network.regions, network.window, network.out_channels) == (REGIONS, [16, 16, 16], 3)
    assert config["regions"] == SCHEMES["brats2012"]
    overlay = yaml.safe_load((trained["folder"] / "run" / "network.yaml").read_text(encoding="utf-8"))
    assert (overlay["regions"], overlay["spacing_mm"]) == (SCHEMES["brats2012"], SPACING_MM)


def test_the_evaluation_measures_every_region_of_every_case(trained):
    folder = trained["folder"] / "run" / "evaluation"
    metrics = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))["test"]["overall"]
    assert list(metrics["regions"]) == REGIONS
    with open(folder / "cases.csv", encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(trained["datalist"]["test"])
    for name in REGIONS:
        dice = [float(row[f"dice_{name}"]) for row in rows if row[f"dice_{name}"]]
        figure = metrics["regions"][name]["dice"]
        assert figure["n"] == len(dice) == sum(row[f"region_{name}"] == "1.0" for row in rows)
        assert not dice or figure["mean"] == pytest.approx(np.mean(dice))
    assert [row["dice"] for row in rows] == [row["dice_whole_tumor"] for row in rows]


def test_the_explanation_measures_every_region_of_every_case_in_millimeters(trained):
    folder = trained["folder"] / "run" / "explanations"
    table = json.loads((folder / "localization.json").read_text(encoding="utf-8"))
    with open(folder / "cases.csv", encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    for row in (r for r in table if (r["source"], r["class"], r["mask"]) == ("all", "all", "true")):
        assert list(row["regions"]) == REGIONS
        keys = ("method", "layer", "target", "mask")
        cases = [r for r in rows if float(r["tumor_area"]) and all(r[key] == row[key] for key in keys)]
        for name, found in row["regions"].items():
            own = [r for r in cases if float(r[f"area_{name}"])]
            assert found["n"] == len(own)
            known = [float(r[f"peak_distance_mm_{name}"]) for r in own if r[f"peak_distance_mm_{name}"]]
            assert found["peak_distance_mm"] == (pytest.approx(np.mean(known)) if known else None)
        assert row["regions"]["whole_tumor"]["energy"] == pytest.approx(row["tumor_energy"])
    uniform = next(r for r in table if r["method"] == "uniform" and r["mask"] == "true")
    assert uniform["peak_distance_mm"] > SPACING_MM  # of voxels all over the grid


def test_inference_says_what_the_evaluation_said_in_the_files_own_labels(trained):
    result = json.loads(next((trained["folder"] / "out").glob("*_result.json")).read_text(encoding="utf-8"))
    name = Path(trained["files"][0]).name.removesuffix(".nii.gz")
    with open(trained["folder"] / "run" / "evaluation" / "cases.csv", encoding="utf-8", newline="") as file:
        row = next(row for row in csv.DictReader(file) if row["name"] == name)
    assert result["tumor_probability"] == pytest.approx(float(row["tumor_probability"]), abs=1e-5)
    mask = nib.load(next((trained["folder"] / "out").glob("*_mask.nii.gz")))
    source = nib.load(trained["files"][0])
    assert mask.shape == source.shape
    assert np.allclose(mask.affine, source.affine)
    values = np.asarray(mask.dataobj)
    assert set(np.unique(values)) <= {0, 1, 2, 4}
    assert list(result["regions"]) == REGIONS
    for region, about in result["regions"].items():
        assert about["voxels"] == int(np.isin(values, SCHEMES["brats2012"][region]).sum())
        assert about["ml"] == pytest.approx(about["voxels"] * SPACING_MM**3 / 1000)
    assert result["tumor_voxels"] == result["regions"]["whole_tumor"]["voxels"]


def test_mirroring_is_one_word_of_evaluation_and_inference(trained, tmp_path):
    folder = trained["folder"]
    paths = {"dataset_dir": str(folder / "data"), "datalist_file": str(folder / "list.json")}
    run_config(
        "evaluate.yaml", run_dir=str(folder / "run"), extras=[], mirror_axes=[0, 2], output_dir=str(tmp_path), **paths
    )
    overlay, files = [folder / "run" / "network.yaml"], trained["files"]
    run_config("inference.yaml", overlay, input=files, output_dir=str(tmp_path / "out"), mirror_axes=[0, 2])
    result = json.loads(next((tmp_path / "out").glob("*_result.json")).read_text(encoding="utf-8"))
    found = []
    for place in (tmp_path, folder / "run" / "evaluation"):
        with open(place / "cases.csv", encoding="utf-8", newline="") as file:
            rows = {row["name"]: float(row["tumor_probability"]) for row in csv.DictReader(file)}
        found.append(rows[Path(files[0]).name.removesuffix(".nii.gz")])
    assert result["tumor_probability"] == pytest.approx(found[0], abs=1e-5)
    assert abs(found[0] - found[1]) > 1e-5
    metrics = json.loads((tmp_path / "metrics.json").read_text(encoding="utf-8"))
    mirrored = (
        "predictions are means over images mirrored along the axes 0, 2 (mirror_axes); threshold, temperature and"
    )
    assert sum(note.startswith(mirrored) for note in metrics["notes"]) == 1
    with pytest.raises(RuntimeError) as caught:
        run_config("inference.yaml", overlay, input=files, output_dir=str(tmp_path / "no"), mirror_axes=[3])
    assert str(sentence(caught.value)).startswith("mirror_axes are spatial axes from 0 to 2")


def test_masks_of_inference_and_evaluation_begin_at_the_thresholds_of_the_weights(trained):
    inference = Inference(overlay=trained["folder"] / "run" / "network.yaml", device="cpu")
    item = inference.prepare({"image": trained["files"]})
    output = inference.infer(item)
    # Between the probabilities of this little network, so that each region has a part of the head.
    between = [float(p[p > 0].median()) for p in output["regions"][0]]
    found = {}
    for name, thresholds in (("half", [0.5] * 3), ("between", between), ("none", [1 - 1e-6] * 3)):
        inference.network.mask_threshold.copy_(torch.tensor(thresholds))
        done = inference.finish(item, inference.infer(item))
        assert list(done["result"]["mask_thresholds"].values()) == pytest.approx(thresholds, abs=1e-6)
        found[name] = [int(np.isin(done["raw_pred"].numpy(), v).sum()) for v in SCHEMES["brats2012"].values()]
        masks = region_masks(torch.logit(output["regions"]), True, inference.network.mask_threshold)[0]
        assert found[name][0] > 0 or not bool(masks[0].any())
    assert list(done["result"]["mask_thresholds"]) == REGIONS
    assert found["none"] == [0, 0, 0]
    assert found["between"][0] > found["half"][0]
    metrics = json.loads((trained["folder"] / "run" / "evaluation" / "metrics.json").read_text(encoding="utf-8"))
    assert metrics["mask_thresholds"] == dict.fromkeys(REGIONS, 0.5), "too few validation cases for others"
    manifest = json.loads((trained["folder"] / "run" / "joint" / "manifest.json").read_text(encoding="utf-8"))
    assert "of the 10 patients with it that a threshold of its own takes" in manifest["mask_thresholds"]


def test_the_answer_does_not_depend_on_the_step_of_the_windows(trained):
    """Each window has its own statistics, so it does a little: what is allowed is stated in docs/volumes.md."""
    network, _, _ = runs.load_run(trained["folder"] / "run")
    torch.manual_seed(0)
    image = torch.zeros(1, 4, 32, 32, 16)
    image[:, :, 2:28, 3:30, 1:15] = torch.randn(1, 4, 26, 27, 14)
    with torch.no_grad():
        found = [torch.softmax(stitched(network, image, overlap=share)["cls"], 1)[0, 1] for share in (0.5, 0.75)]
    assert float(abs(found[0] - found[1])) < 0.05


def test_a_network_of_patches_is_explained_by_what_windows_can_be_joined_of(trained):
    network, _, _ = runs.load_run(trained["folder"] / "run")
    assert make_plan(network).methods == ("evidence",)
    assert make_plan(network, ["gradcam"], layers=["bottleneck"]).methods == ("gradcam",)
    with pytest.raises(ValueError, match="methods: occlusion cannot explain a network of patches"):
        make_plan(network, ["evidence", "occlusion"])
    assert NOT_OF_PATCHES in left_out(["scope"], 3, patches=True)


def test_a_release_names_each_region_by_the_value_it_is_painted_in_as_monai_label_reads_it(trained, tmp_path):
    shutil.copytree(CONFIGS, tmp_path / "configs")
    write_configs(tmp_path, find_weights(trained["folder"] / "run"))
    meta = json.loads((tmp_path / "configs" / "metadata.json").read_text(encoding="utf-8"))["network_data_format"]
    named = {"0": "background", "2": "whole_tumor", "1": "tumor_core", "4": "enhancing_tumor"}
    assert meta["outputs"]["pred"]["channel_def"] == named
    assert meta["outputs"]["pred"]["num_channels"] == 3
    assert meta["inputs"]["image"]["num_channels"] == 4
    train_config = yaml.safe_load((tmp_path / "configs" / "train.yaml").read_text(encoding="utf-8"))
    assert train_config["regions"] == SCHEMES["brats2012"]


def test_a_label_of_monai_label_has_the_regions_of_the_bundle(trained):
    files = trained["datalist"]["test"][0]
    images = [str(trained["folder"] / "data" / file) for file in files["image"]]
    label = str(trained["folder"] / "data" / files["label"])
    transform = make_training_pipeline((16, 16, 16), False, 2, spacing_mm=SPACING_MM)
    dataset = CaseDataset(
        [{"image": images, "label": label}], transform, progress=False, slices={}, spatial_dims=3,
        regions=SCHEMES["brats2012"],
    )  # fmt: skip
    found = dataset[0]
    assert found["region_masks"].shape[0] == len(REGIONS)
    assert torch.equal(found["region_masks"][:1], found["label"])


def test_a_run_is_not_evaluated_on_other_regions(trained):
    network, _, _ = runs.load_run(trained["folder"] / "run")
    assert measured_regions(network, trained["datalist"]) == REGIONS
    assert measured_regions(network, {**trained["datalist"], "regions": {"tumor": [1]}}) == REGIONS
    with pytest.raises(ValueError, match="states whole_tumor, tumor_core, enhancing_tumor, resection_cavity"):
        measured_regions(network, {"regions": SCHEMES["brats2024"]})


@pytest.mark.parametrize(
    ("scheme", "values"),
    [("brats2012", [2, 1, 4]), ("brats2017", [2, 1, 4]), ("brats2023", [2, 1, 3]), ("brats2024", [2, 1, 3, 4]),
     ("msd_task01", [1, 2, 3]), ("tumor", [1])],
)  # fmt: skip
def test_a_region_is_painted_in_the_value_that_it_has_alone(scheme, values):
    assert own_values(SCHEMES[scheme]) == values


def test_painting_inverts_the_reading_where_the_scheme_allows_it():
    label = torch.tensor([0, 1, 2, 4, 2])
    regions = SCHEMES["brats2017"]
    probability = torch.stack([torch.isin(label, torch.tensor(values)).float() for values in regions.values()])
    assert torch.equal(paint(probability, regions), label.to(torch.uint8))


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        (shifted_sequence, "are not on the same grid: their corners"),
        (smaller_sequence, "v000-with_t1ce.nii.gz"),
        (missing_sequence, "v000-with_t1.nii.gz is not a file"),
        (no_head, "v000-with_flair.nii.gz"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_inference_says_in_one_sentence_what_is_wrong_and_writes_nothing(trained, tmp_path, fault, words):
    case = tmp_path / "v000-with"
    shutil.copytree(trained["folder"] / "data" / "v000-with", case)
    files = [str(case / f"v000-with_{name}.nii.gz") for name in SEQUENCES]
    fault(case)
    overlay = [trained["folder"] / "run" / "network.yaml"]
    with pytest.raises(Exception) as caught:  # noqa: PT011 - the sentence is asserted below
        run_config("inference.yaml", overlay, input=files, output_dir=str(tmp_path / "out"))
    said = sentence(caught.value)
    assert said is not None
    assert words in said
    assert "\n" not in said
    assert not [path for path in (tmp_path / "out").rglob("*") if path.is_file()]


def test_inference_with_too_few_sequences_names_how_many_it_takes(trained, tmp_path):
    overlay = [trained["folder"] / "run" / "network.yaml"]
    with pytest.raises(Exception) as caught:  # noqa: PT011 - the sentence is asserted below
        run_config("inference.yaml", overlay, input=trained["files"][:3], output_dir=str(tmp_path / "out"))
    said = sentence(caught.value)
    assert said is not None
    assert "4" in said
    assert not [path for path in (tmp_path / "out").rglob("*") if path.is_file()]


def test_regions_that_the_config_does_not_name_are_refused(trained, tmp_path):
    overlay = yaml.safe_load((trained["folder"] / "run" / "network.yaml").read_text(encoding="utf-8"))
    weights = trained["folder"] / "run" / overlay["weights"]
    other = {**overlay, "regions": SCHEMES["brats2024"], "weights": str(weights)}
    (tmp_path / "network.yaml").write_text(yaml.safe_dump(other), encoding="utf-8")
    with pytest.raises(RuntimeError) as caught:
        run_config("inference.yaml", [tmp_path / "network.yaml"], input=trained["files"], output_dir=str(tmp_path))
    assert "output_block" in str(caught.value.__cause__)


def test_a_release_of_volumes_passes_its_checks(trained, tmp_path, capsys):
    folder = release(tmp_path, trained["folder"] / "run", "volumes_segmentation")
    lines = capsys.readouterr().out
    assert "ok      workflows" in lines
    assert "FAILED" not in lines
    meta = json.loads((folder / "configs" / "metadata.json").read_text(encoding="utf-8"))
    assert meta["image_classes"].startswith("4-channel MR volumes, air set to exactly 0")
    assert meta["task"].endswith("in 3D MRI volumes")
    assert meta["pred_classes"] == f"3 channels with a sigmoid each: {', '.join(REGIONS)}"
    assert meta["label_classes"].endswith("regions: whole_tumor 1, 2, 3, 4; tumor_core 1, 3, 4; enhancing_tumor 4")
    assert meta["data_type"] == "nifti, mha, nrrd, dicom"
    assert meta["network_data_format"]["inputs"]["image"]["is_patch_data"] is True
    labels = meta["network_data_format"]["outputs"]["pred"]["channel_def"]
    assert labels == {
        "0": "background",
        **{str(v): n for n, v in zip(REGIONS, own_values(SCHEMES["brats2012"]), strict=True)},
    }
