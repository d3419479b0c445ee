"""Several sequences as channels, and whole volumes: from the datalist to evaluation, maps, report and inference."""

from __future__ import annotations

import csv
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import yaml
from monai.bundle import ConfigWorkflow
from PIL import Image

from scripts.command.errors import sentence
from scripts.command.locations import CONFIGS, ROOT
from scripts.command.workflows import run_config
from scripts.data import datalists
from scripts.data.preprocessing import make_preprocessing, make_training_pipeline
from scripts.evaluation.contrasts import CHANGES
from scripts.evaluation.items import EvaluationDataset, evaluated_items
from scripts.evaluation.outsiders import OUTSIDERS
from scripts.evaluation.scope_evaluation import write_scope
from scripts.pictures import overlays
from scripts.report.report import write_report
from scripts.runs import folder as runs
from scripts.training.train import train
from tests.scans import head, oblique, save

CHANNELS = ("FLAIR", "T1", "T1ce", "T2")
# Gain of the head's values and what the tumor adds, by sequence: T2 is by far the loudest, T1 shows the tumor dark.
LOOKS = {"flair": (1.0, 120.0), "t1": (0.8, -60.0), "t1ce": (1.1, 80.0), "t2": (12.0, 1500.0)}
SHAPE, SPACING = (30, 34, 14), (1.0, 1.1, 3.0)


def write_patient(folder: Path, name: str, tumor: bool, seed: int) -> None:
    """A case of BraTS: four volumes and a mask, stored as PSR, of an oblique scan."""
    rng, volume = np.random.default_rng(seed), head(SHAPE, seed)
    axes = np.meshgrid(*(np.arange(n) for n in SHAPE), indexing="ij")
    middle = [rng.integers(n * 2 // 5, n * 3 // 5) for n in SHAPE]
    mask = sum(((a - m) / r) ** 2 for a, m, r in zip(axes, middle, (6, 6, 4.5), strict=True)) < 1
    mask &= (volume > 20) & tumor
    (folder / name).mkdir(parents=True)
    for role, (gain, lift) in LOOKS.items():
        values = (gain * volume + lift * mask).astype(np.float32)
        save(folder / name / f"{name}_{role}.nii.gz", values, oblique(SPACING), "PSR")
    save(folder / name / f"{name}_seg.nii.gz", mask.astype(np.uint8), oblique(SPACING), "PSR")


@dataclass
class Trained:
    """A trained, evaluated, explained and reported run."""

    data: Path
    run: Path
    datalist: dict[str, Any]
    datalist_file: Path

    @property
    def test(self) -> list[dict[str, Any]]:
        """Items of the test part, with absolute paths and names."""
        return runs.stage_items(self.datalist, "test", str(self.data))

    def read(self, name: str) -> Any:
        return json.loads((self.run / name).read_text(encoding="utf-8"))

    def table(self, name: str) -> dict[str, dict[str, str]]:
        with open(self.run / name, encoding="utf-8", newline="") as file:
            return {row["name"]: row for row in csv.DictReader(file)}

    def infer(self, files: list[str], out: Path, **values: Any) -> dict[str, Any]:
        """Result of ``configs/inference.yaml`` with the run's overlay."""
        workflow = ConfigWorkflow(
            workflow_type="infer", config_file=[str(CONFIGS / "inference.yaml"), str(self.run / "network.yaml")],
            meta_file=str(CONFIGS / "metadata.json"), logging_file=False, input=files, output_dir=str(out),
            bundle_root=str(ROOT), **values,
        )  # fmt: skip
        workflow.initialize()
        workflow.run()
        return json.loads(next(out.glob("*_result.json")).read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("brats") / "data"
    for i in range(12):
        write_patient(folder, f"BraTS_{i:03d}", tumor=i % 3 > 0, seed=i)
    return folder


def make_run(folder: Path, data: Path, configs: tuple[str, ...], rule: dict[str, Any], **values: Any) -> Trained:
    """Datalist, one epoch of joint training, evaluation with all extras, two methods of explanation, report."""
    datalist, _ = datalists.nifti_cases(
        data, name="brats", channels=CHANNELS, fractions=(0.4, 0.35, 0.25), progress=False, **rule
    )
    datalist_file = folder / "datalist.json"
    datalists.write(datalist, datalist_file)
    paths = {"dataset_dir": str(data), "datalist_file": str(datalist_file)}
    own = [CONFIGS / f"{name}.yaml" for name in configs]
    train(folder / "run", [*own, CONFIGS / "smoke.yaml"], (runs.JOINT,), max_epochs=1, **values, **paths)
    common = {"run_dir": str(folder / "run"), "picture_channel": 2, **paths}
    run_config("evaluate.yaml", robustness_cases=3, uncertainty_cases=6, **common)
    run_config("explain.yaml", methods=["evidence", "hirescam"], gallery_cases=1, test_cases=1, **common)
    write_report(folder, {"run": "run"}, "run/report.html")
    return Trained(data, folder / "run", datalist, datalist_file)


@pytest.fixture(scope="module")
def four(data, tmp_path_factory) -> Trained:
    rule = {"tumor_slices": 5, "normal_slices": 5}
    return make_run(tmp_path_factory.mktemp("four"), data, ("multimodal",), rule, spatial_size=[32, 32])


@pytest.fixture(scope="module")
def volumes(data, tmp_path_factory) -> Trained:
    rule = {"rule": datalists.SliceRule(planes=())}
    configs = ("multimodal", "volumetric")
    return make_run(tmp_path_factory.mktemp("volumes"), data, configs, rule, spatial_size=[32, 32, 32])


def grays(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """A picture and which of its pixels are gray, not part of a colored line or map."""
    picture = np.asarray(Image.open(path).convert("RGB")).astype(int)
    return picture, (picture[..., 0] == picture[..., 1]) & (picture[..., 1] == picture[..., 2])


def test_four_sequences_are_trained_in_the_order_of_the_datalist(four):
    assert four.datalist["modality"] == {str(k): name for k, name in enumerate(CHANNELS)}
    for item in four.test:
        roles = [Path(file).name.removesuffix(".nii.gz").rpartition("_")[2] for file in item["image"]]
        assert roles == ["flair", "t1", "t1ce", "t2"]
    network, config, _ = runs.load_run(four.run)
    assert config["network_def"]["in_channels"] == 4
    assert next(network.parameters()).shape[1] == 4


def test_slices_of_four_sequences_are_diagnosed_at_inference_as_in_the_evaluation(four, tmp_path):
    item = next(item for item in four.test if item["diagnosis"] == 1)
    result = four.infer(item["image"], tmp_path)
    rows = four.table("evaluation/cases.csv")
    own = [i for i in four.test if i["image"] == item["image"]]
    assert result["plane"] == "axial"
    assert len(own) >= 3
    for one in own:
        row = next(r for r in rows.values() if r["patient"] == one["patient"] and int(r["slice"]) == one["slice"])
        assert float(row["tumor_probability"]) == pytest.approx(result["slice_probabilities"][one["slice"]], abs=1e-5)
    source = nib.load(item["image"][0])
    mask, evidence = (nib.load(next(tmp_path.glob(f"*_{what}.nii.gz"))) for what in ("mask", "evidence"))
    assert mask.shape == evidence.shape == source.shape
    assert np.allclose(mask.affine, source.affine, atol=1e-4)
    assert result["tumor_voxels"] == int((np.asarray(mask.dataobj) > 0).sum())
    swapped = four.infer(item["image"][::-1], tmp_path / "swapped")
    assert swapped["class_probabilities"] != result["class_probabilities"], "the order of the files counts"


def test_too_few_files_are_refused_in_a_sentence(four, tmp_path):
    with pytest.raises(RuntimeError) as error:
        four.infer(four.test[0]["image"][:2], tmp_path)
    assert "has 2 channels and the network takes 4: give as many files" in str(sentence(error.value))


def test_pictures_show_the_chosen_sequence(four):
    entry = four.read("evaluation/cases.json")[0]
    assert entry["where"] == "channel 2 of 4"
    _, config, _ = runs.load_run(four.run)
    item = next(i for i in four.test if i["name"] == entry["name"])
    image = np.asarray(make_training_pipeline(config["spatial_size"], augment=False)(item)["image"])
    picture, gray = grays(four.run / "evaluation" / entry["image"])
    assert gray.mean() > 0.3
    scale = overlays.legible_scale(image.shape)
    expected = [overlays.gray_image(image[k : k + 1], scale).astype(int) for k in range(4)]
    assert np.array_equal(picture[gray], expected[2][gray])
    assert all(not np.array_equal(picture[gray], expected[k][gray]) for k in (0, 1, 3))
    assert {e["where"] for e in four.read("explanations/gallery.json")} == {"channel 2 of 4"}
    assert {e["where"] for e in four.read("evaluation/uncertainty.json")["pictures"]} == {"channel 2 of 4"}


def test_every_extra_is_measured_with_four_sequences(four):
    assert four.read("evaluation/metrics.json")["notes"] == []
    robustness = four.read("evaluation/robustness.json")
    assert (robustness["n"], len(robustness["corruptions"])) == (3, 8)
    assert all(
        level["n"] == 3 for one in robustness["corruptions"] for level in one["levels"] if one["name"] != "noise"
    )
    scope = four.read("evaluation/scope.json")
    drawn = {entry["name"]: entry for entry in scope["outside"]}
    assert set(drawn) == {*OUTSIDERS, *CHANGES}
    assert drawn["air alone"]["refused"] == drawn["air alone"]["n"] == 16
    assert drawn["CT (drawn)"]["recognized"] == 1
    assert four.read("evaluation/uncertainty.json")["n"] == 6
    assert set(four.table("evaluation/volumes.csv")) == {
        f"{Path(i['image'][0]).relative_to(four.data)} axial" for i in four.test
    }


def test_maps_of_four_sequences_lie_on_the_slice_of_the_file(four):
    rows = {
        (r["method"], r["layer"]): r
        for r in four.read("explanations/localization.json")
        if (r["mask"], r["source"], r["class"]) == ("true", "all", "all")
    }
    assert {method for method, _ in rows} == {"evidence", "hirescam", "uniform", "random", "oracle"}
    assert rows["uniform", "none"]["tumor_energy"] == pytest.approx(rows["uniform", "none"]["tumor_area"])
    assert rows["evidence", "evidence"]["background_energy_layer"] == 0
    with open(four.run / "explanations" / "cases.csv", encoding="utf-8", newline="") as file:
        measured = {row["name"] for row in csv.DictReader(file)}
    assert measured == {item["name"] for item in four.test}
    entry = four.read("explanations/gallery.json")[0]
    item = next(i for i in four.test if i["name"] == entry["name"])
    written = nib.load(four.run / "explanations" / "maps" / f"{item['name']}_evidence_evidence.nii.gz")
    place = oblique(SPACING)  # of the volume in LPS, as slices are counted
    place[:3, 3] += item["slice"] * place[:3, 2]
    assert written.shape == (*SHAPE[:2], 1)
    assert np.allclose(written.affine, place, atol=1e-3)


def test_a_network_of_one_channel_refuses_images_of_four(four, tmp_path):
    paths = {"dataset_dir": str(four.data), "datalist_file": str(four.datalist_file)}
    with pytest.raises(RuntimeError) as error:
        train(tmp_path, [CONFIGS / "smoke.yaml"], (runs.JOINT,), max_epochs=1, spatial_size=[32, 32], **paths)
    assert str(sentence(error.value)).startswith("images with 4 channel(s) for a network that takes 1: train with")


def test_a_volume_is_one_case_with_its_size_in_milliliters(volumes):
    assert all("slice" not in item for item in volumes.test)
    rows = volumes.table("evaluation/cases.csv")
    assert set(rows) == {item["name"] for item in volumes.test}
    metrics = volumes.read("evaluation/metrics.json")
    for item in volumes.test:
        row, label = rows[item["name"]], nib.load(item["label"])
        ml = float((np.asarray(label.dataobj) > 0).sum() * np.prod(label.header.get_zooms()[:3]) / 1000)
        assert float(row["tumor_ml"]) == pytest.approx(ml, rel=0.15)
        assert (row["tumor_mm2"], row["pixel_mm2"], row["slice"]) == ("", "", "-1")
    by_volume = volumes.table("evaluation/volumes.csv")
    assert set(by_volume) == set(rows)
    for name, row in by_volume.items():
        assert (row["n"], row["tumor_ml"], row["predicted"]) == ("1", rows[name]["tumor_ml"], rows[name]["predicted"])
        assert float(row["score"]) == pytest.approx(float(rows[name]["tumor_probability"]))
    free = [float(rows[i["name"]]["predicted_ml"]) for i in volumes.test if i["diagnosis"] == 0]
    assert metrics["test"]["overall"]["segmentation"]["false_positive_ml"]["mean"] == pytest.approx(np.mean(free))
    assert metrics["test"]["volumes"]["n"] == len(rows)
    assert "one case" in metrics["test"]["volumes"]["diagnosis_rule"]
    assert metrics["areas"] == "tumor volume as a share of the head's volume"


def test_a_joint_run_says_in_the_report_by_what_it_was_selected(volumes):
    page = (volumes.run / "report.html").read_text(encoding="utf-8")
    assert "<td>combined</td>" in page
    assert "labeling.default" not in page


def test_what_is_not_measured_of_volumes_is_said(volumes):
    (note,) = volumes.read("evaluation/metrics.json")["notes"]
    assert note.startswith("robustness is not measured of whole volumes: the corruptions are of 2D images")
    assert volumes.read("evaluation/robustness.json")["unavailable"] == note
    assert volumes.read("evaluation/scope.json")["unavailable"].startswith("a scope takes 20 training images or more")
    assert volumes.read("evaluation/uncertainty.json")["methods"]["test_time_augmentation"]["diagnosis"]["n"] > 0
    page = (volumes.run / "report.html").read_text(encoding="utf-8")
    assert note in page
    assert "false-positive ml" in page
    assert "channel 2 of 4, axial slice" in page


def test_a_scope_of_volumes_is_fitted_and_compared_with_volumes_alone(volumes, tmp_path):
    network, config, stage = runs.load_run(volumes.run)
    often = {**volumes.datalist, **{k: 6 * volumes.datalist[k] for k in ("training", "validation")}}
    size = config["spatial_size"]
    items = evaluated_items(volumes.datalist, "test", str(volumes.data))
    dataset = EvaluationDataset(items, make_training_pipeline(size, augment=False))
    try:
        pipeline = make_preprocessing(size, trace=False)
        found = write_scope(
            network, volumes.run, dataset, pipeline, tmp_path, often, str(volumes.data), True, batch_size=3
        )
        assert (found["training"], found["inside"]["n"]) == (len(often["training"]), len(items))
        assert {entry["name"] for entry in found["outside"]} == set(CHANGES), "no drawn pictures, which are 2D"
        item = volumes.test[0]
        result = volumes.infer(item["image"], tmp_path / "out")
        assert np.isfinite(result["scores"]["scope"])
    finally:
        (stage / "scope.npz").unlink(missing_ok=True)


def test_pictures_of_a_volume_show_the_slice_with_the_most_tumor(volumes):
    _, config, _ = runs.load_run(volumes.run)
    pipeline = make_training_pipeline(config["spatial_size"], augment=False)
    entries = [e for e in volumes.read("explanations/gallery.json") if e["diagnosis"] == 1]
    assert entries
    for entry in entries:
        item = next(i for i in volumes.test if i["name"] == entry["name"])
        case = pipeline(item)
        z = int(case["label"][0].sum(dim=(0, 1)).argmax())
        assert entry["where"] == f"channel 2 of 4, axial slice {z} of 32"
        picture, gray = grays(volumes.run / "explanations" / entry["image"])
        plane = np.asarray(case["image"])[2:3, ..., z]
        expected = overlays.gray_image(plane, overlays.legible_scale(plane.shape)).astype(int)
        assert np.array_equal(picture[gray], expected[gray])
    methods = volumes.run / "explanations" / "methods" / "tumor_log_odds.png"
    assert Image.open(methods).size[0] > 1000


def test_a_map_of_a_volume_lies_on_the_file_and_is_the_evidence_of_inference(volumes, tmp_path):
    item = next(item for item in volumes.test if item["diagnosis"] == 1)
    source = nib.load(item["image"][0])
    written = nib.load(volumes.run / "explanations" / "maps" / f"{item['name']}_evidence_evidence.nii.gz")
    result = volumes.infer(item["image"], tmp_path)
    mask, evidence = (nib.load(next(tmp_path.glob(f"*_{what}.nii.gz"))) for what in ("mask", "evidence"))
    for image in (written, mask, evidence):
        assert image.shape == source.shape
        assert np.allclose(image.affine, source.affine, atol=1e-4)
    raw, said = np.asarray(written.dataobj).ravel().clip(0), np.asarray(evidence.dataobj).ravel()
    assert np.corrcoef(raw, said)[0, 1] > 0.98
    assert said.max() * result["temperature"] == pytest.approx(raw.max(), rel=0.05)
    assert said.max() == pytest.approx(result["evidence_maximum"])
    assert result["tumor_voxels"] == int((np.asarray(mask.dataobj) > 0).sum())
    row = volumes.table("evaluation/cases.csv")[item["name"]]
    assert result["tumor_probability"] == pytest.approx(float(row["tumor_probability"]), abs=1e-5)
    assert (result["plane"], result["slice_probabilities"]) == (None, None)


def test_overlays_are_the_way_to_three_dimensions_and_four_channels():
    for name, values in (
        ("multimodal", {"network_def#in_channels": 4}),
        ("volumetric", {"network_def#spatial_dims": 3}),
    ):
        content = yaml.safe_load((CONFIGS / f"{name}.yaml").read_text(encoding="utf-8"))
        assert content.items() >= values.items()
    assert all(size % 8 == 0 for size in content["spatial_size"])
