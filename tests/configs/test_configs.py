"""Every shipped config runs on a small case, as `python -m monai.bundle run` would run it."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import os
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
import yaml
from monai.bundle import ConfigWorkflow
from monai.data import MetaTensor
from PIL import Image

from scripts.__main__ import main as command
from scripts.command.locations import CONFIGS, ROOT
from scripts.command.workflows import run_config
from scripts.data.preprocessing import make_training_pipeline, resolve_items
from scripts.explain.methods import METHODS
from scripts.inference.results import inference_items
from scripts.measures.metrics import balanced_accuracy
from scripts.runs import folder as runs
from tests.bundle_command import bundle_run, monai_bundle


@pytest.fixture(scope="module")
def evaluated(small_run):
    for name in ("ours", "baseline"):
        common = {"run_dir": str(small_run.run(name)), **small_run.paths}
        run_config("evaluate.yaml", uncertainty_cases=2, robustness_cases=2, **common)
        run_config("explain.yaml", test_cases=1, gallery_cases=1, **common)
    return small_run


def test_metrics_equal_the_cases_averaged_by_hand(evaluated):
    folder = evaluated.run("ours") / "evaluation"
    metrics = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))["test"]["overall"]
    with open(folder / "cases.csv", encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    dice = [float(row["dice"]) for row in rows if row["dice"]]
    assert metrics["segmentation"]["dice"]["n"] == len(dice) > 0
    assert metrics["segmentation"]["dice"]["mean"] == pytest.approx(np.mean(dice))
    diagnosis = np.array([int(row["diagnosis"]) for row in rows])
    predicted = np.array([int(row["predicted"]) for row in rows])
    assert metrics["classification"]["balanced_accuracy"] == pytest.approx(balanced_accuracy(diagnosis, predicted))
    assert metrics["classification"]["majority_accuracy"] == pytest.approx(max(np.bincount(diagnosis)) / len(rows))


def test_an_evaluation_by_shards_is_that_of_one_process(small_run, tmp_path):
    given = ["evaluate", "--run_dir", str(small_run.run("ours")), "--extras", "[]", "--batch_size", "3"]
    given += [token for name, path in small_run.paths.items() for token in (f"--{name}", path)]
    command([*given, "--out", str(tmp_path / "one")])
    for shard in (["--shard", "2/2"], ["--shard", "1/2"], ["--merge"]):
        command([*given, "--out", str(tmp_path / "two"), *shard])
    for name in ("cases.csv", "patients.csv", "metrics.json"):
        assert (tmp_path / "two" / name).read_bytes() == (tmp_path / "one" / name).read_bytes()
    assert not (tmp_path / "two" / "ledger").exists()


def test_localization_has_the_required_layers_baselines_and_no_energy_in_air_at_the_layer(evaluated):
    table = json.loads((evaluated.run("ours") / "explanations" / "localization.json").read_text(encoding="utf-8"))
    rows = {
        (r["method"], r["layer"]): r for r in table if (r["source"], r["class"], r["mask"]) == ("all", "all", "true")
    }
    for layer in ("bottleneck", "downsamples.0", "downsamples.1", "upsamples.0", "upsamples.1", "upsamples.2"):
        assert ("gradcam", layer) in rows
        assert ("hirescam", layer) in rows
    assert {"uniform", "random"} <= {method for method, _ in rows}
    evidence = rows["evidence", "evidence"]
    assert evidence["background_energy_layer"] == 0
    assert rows["uniform", "none"]["tumor_energy"] == pytest.approx(rows["uniform", "none"]["tumor_area"])


def test_explanations_write_overlays_and_maps_on_the_original_grid(evaluated):
    folder = evaluated.run("ours") / "explanations"
    gallery = json.loads((folder / "gallery.json").read_text(encoding="utf-8"))
    assert any(entry["diagnosis"] > 0 for entry in gallery)
    assert any(entry["diagnosis"] == 0 for entry in gallery)
    for entry in gallery:
        assert (folder / entry["overlay"]).is_file()
    volumes = {p.name.removesuffix(".nii.gz"): p for p in (evaluated.dataset_dir / "patients").rglob("*flair.nii.gz")}
    checked = 0
    for path in (folder / "maps").iterdir():
        for stem, volume in volumes.items():
            if path.name.startswith(stem):
                source, written = nib.as_closest_canonical(nib.load(volume)), nib.load(path)
                assert written.shape[:2] == source.shape[:2]
                assert np.allclose(nib.as_closest_canonical(written).affine[:2, :2], source.affine[:2, :2])
                checked += 1
    assert checked


@pytest.fixture(scope="module")
def three_cases(small_run, tmp_path_factory) -> dict[str, str]:
    """The small data, of which three are tested: two tumors with masks, and none."""
    content = json.loads(small_run.datalist_file.read_text(encoding="utf-8"))
    tumors = [item for item in content["test"] if item["diagnosis"] and item.get("label")]
    content["test"] = [*tumors[:2], next(item for item in content["test"] if not item["diagnosis"])]
    file = tmp_path_factory.mktemp("three") / "list.json"
    file.write_text(json.dumps(content), encoding="utf-8")
    return {**small_run.paths, "datalist_file": str(file)}


@pytest.mark.parametrize("run", ["ours", "baseline"])
def test_explaining_by_all_methods_writes_every_file_and_prints_the_sorted_table(
    small_run, three_cases, run, tmp_path, capsys
):
    out = tmp_path / "explanations"
    options = {
        "integrated_gradients": {"n_steps": 2},
        "smoothgrad": {"n_samples": 1},
        "occlusion": {"window": 32, "stride": 32},
    }
    values = {"methods": "all", "slow_cases": 1, "options": options, "gallery_cases": 1, "test_cases": 1}
    run_config("explain.yaml", run_dir=str(small_run.run(run)), output_dir=str(out), **values, **three_cases)
    table = json.loads((out / "localization.json").read_text(encoding="utf-8"))
    found = {row["method"] for row in table} - {"uniform", "random", "oracle"}
    assert found == set(METHODS) - ({"evidence"} if run == "baseline" else set())
    assert len({row["layer"] for row in table if row["method"] == "scorecam"}) >= 5
    assert {row["mask"] for row in table} >= {"true"}
    slow = [row for row in table if row["method"] == "occlusion" and row["source"] == row["class"] == "all"]
    assert all(row["n"] == 1 for row in slow if row["mask"] == "true")
    targets = ("tumor_log_odds", "segmentation_1_predicted")
    printed = [line.split() for line in capsys.readouterr().out.splitlines()]
    energy = [float(line[line.index("%") - 1]) for line in printed if len(line) > 5 and line[2] in targets]
    assert len(energy) == sum((r["mask"], r["source"], r["class"]) == ("true", "all", "all") for r in table) > 40
    assert energy == sorted(energy, reverse=True)
    for name in ("localization.png", "faithfulness.json", "faithfulness.png", "cases.csv", "galleries.json"):
        assert (out / name).stat().st_size > 0
    assert {p.stem for p in (out / "methods").iterdir()} == set(targets)
    for entry in json.loads((out / "galleries.json").read_text(encoding="utf-8")):
        assert (out / entry["file"]).is_file()


def test_the_same_image_feeds_training_and_inference_bit_for_bit(small_run):
    datalist = runs.read_datalist(str(small_run.datalist_file), str(small_run.dataset_dir))
    item = next(i for i in datalist["test"] if i["source"] == "singles")
    item = resolve_items([item], small_run.dataset_dir)[0]
    trained = make_training_pipeline((64, 64), augment=False)(dict(item))["image"]
    inference = ConfigWorkflow(
        workflow_type="infer", config_file=str(CONFIGS / "inference.yaml"), meta_file=str(CONFIGS / "metadata.json"),
        logging_file=False, spatial_size=[64, 64], input=item["image"],
    )  # fmt: skip
    inference.initialize()
    inferred = inference.preprocessing(inference_items(item["image"])[0])["image"]
    assert isinstance(inferred, MetaTensor)
    assert torch.equal(trained, inferred.as_tensor())


def test_training_and_shipped_weights_are_of_one_design():
    """Size, classes and the kind of evidence are the shipped weights'; a release writes them into train.yaml too."""
    train_config, overlay, inference = (
        yaml.safe_load((CONFIGS / name).read_text(encoding="utf-8"))
        for name in ("train.yaml", "counterfactual.yaml", "inference.yaml")
    )
    train_config["network_def"]["evidence"] = overlay["network_def#evidence"]
    sizes = {"kernel_size", "strides", "upsample_kernel_size", "filters", "evidence_levels"}
    own, shipped = (config["network_def"] for config in (train_config, inference))
    assert own.keys() == shipped.keys()
    assert {key: own[key] for key in own.keys() - sizes} == {key: shipped[key] for key in own.keys() - sizes}


@pytest.fixture(scope="module")
def inferred(small_run, tmp_path_factory):
    out = tmp_path_factory.mktemp("inference")
    image = out / "single.jpg"
    source = next(iter((small_run.dataset_dir / "singles" / "images" / "tumor").iterdir()))
    Image.open(source).convert("L").resize((150, 190)).save(image)
    files = [CONFIGS / "inference.yaml", small_run.run("ours") / "network.yaml"]
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        bundle_run(files, input=str(image), output_dir=str(out / "out"), bundle_root=ROOT)
    return image, out / "out", printed.getvalue()


def test_inference_writes_mask_and_evidence_on_the_original_grid_and_prints_the_probability(inferred):
    image, out, printed = inferred
    mask = np.asarray(Image.open(out / "single_mask.png"))
    assert mask.shape == np.asarray(Image.open(image)).shape == (190, 150)
    assert set(np.unique(mask)) <= {0, 255}
    evidence = np.asarray(nib.load(out / "single_evidence.nii.gz").dataobj)
    assert evidence.shape == (150, 190, 1)
    assert evidence.min() >= 0
    result = json.loads((out / "single_result.json").read_text(encoding="utf-8"))
    assert 0 <= result["tumor_probability"] <= 1
    assert f"probability {result['tumor_probability']:.4f}" in printed
    assert result["tumor_voxels"] == (mask > 0).sum()


def test_inference_of_a_volume_slice_keeps_its_place_in_space(small_run, tmp_path):
    volume = next((small_run.dataset_dir / "patients").rglob("*flair.nii.gz"))
    workflow = ConfigWorkflow(
        workflow_type="infer",
        config_file=[str(CONFIGS / "inference.yaml"), str(small_run.run("ours") / "network.yaml")],
        meta_file=str(CONFIGS / "metadata.json"), logging_file=False,
        input=str(volume), slice=8, output_dir=str(tmp_path), bundle_root=str(ROOT),
    )  # fmt: skip
    workflow.initialize()
    workflow.run()
    mask = nib.load(next(tmp_path.glob("*_mask.nii.gz")))
    evidence = nib.load(next(tmp_path.glob("*_evidence.nii.gz")))
    source = nib.load(volume)
    assert mask.shape == evidence.shape == source.shape
    assert np.allclose(mask.affine, source.affine, atol=1e-4)
    assert np.allclose(evidence.affine, source.affine, atol=1e-4)
    result = json.loads(next(tmp_path.glob("*_result.json")).read_text(encoding="utf-8"))
    assert [i for i, p in enumerate(result["slice_probabilities"]) if p is not None] == [8]


def test_stage_runs_alone_by_monai_bundle(small_data, tmp_path):
    """In a process of its own, which knows the bundle by its folder alone."""
    files = "['configs/train.yaml','configs/stage1_segmentation.yaml','configs/smoke.yaml']"
    result = subprocess.run(
        [sys.executable, "-m", "monai.bundle", "run", "--config_file", files, "--run_dir", str(tmp_path / "alone"),
         "--dataset_dir", str(small_data.dataset_dir), "--datalist_file", str(small_data.datalist_file)],
        cwd=ROOT, capture_output=True, text=True, encoding="utf-8", env={**os.environ, "PYTHONWARNINGS": "ignore"},
    )  # fmt: skip
    assert result.returncode == 0, result.stderr[-3000:]
    stage = tmp_path / "alone" / "stage1_segmentation"
    assert json.loads((stage / "manifest.json").read_text(encoding="utf-8"))["finished"]
    assert yaml.safe_load((stage / "config.yaml").read_text(encoding="utf-8"))["network_def"]["filters"] == [4, 8, 8, 8]
    network, _, _ = runs.load_run(tmp_path / "alone")
    assert network.num_classes == 2


def test_monai_verifies_metadata_and_network_and_exports_torchscript(small_run, tmp_path, monkeypatch):
    """Each ends well in a process of its own when a bundle is released: tests/bundle/test_release.py."""
    checks = (
        ("verify_metadata", "--meta_file", "configs/metadata.json", "--filepath", "docs/metadata.schema.json"),
        ("verify_net_in_out", "network_def", "--meta_file", "configs/metadata.json", "--config_file",
         "configs/inference.yaml", "--n", "4"),
        ("ckpt_export", "network_def", "--filepath", str(tmp_path / "model.ts"), "--ckpt_file",
         str(small_run.run("ours") / "stage3_joint" / "model.pt"), "--meta_file", "configs/metadata.json",
         "--config_file", f"['configs/inference.yaml','{small_run.run('ours') / 'network.yaml'}']"),
    )  # fmt: skip
    monkeypatch.chdir(ROOT)
    for arguments in checks:
        monai_bundle(*arguments)
    scripted = torch.jit.load(str(tmp_path / "model.ts"))
    network, _, _ = runs.load_run(small_run.run("ours"))
    image = torch.rand(1, 1, 64, 64) + 0.1
    with torch.no_grad():
        assert torch.allclose(scripted(image), network(image), atol=1e-5)


def test_required_train_and_infer_properties_are_there(small_run):
    for kind, name in (("train", "train.yaml"), ("infer", "inference.yaml"), ("infer", "evaluate.yaml")):
        workflow = ConfigWorkflow(
            workflow_type=kind, config_file=str(CONFIGS / name), meta_file=str(CONFIGS / "metadata.json"),
            logging_file=False, bundle_root=str(ROOT),
            **({"run_dir": str(small_run.run("ours"))} if name == "evaluate.yaml" else {}),
            **(small_run.paths if name != "inference.yaml" else {"input": str(small_run.datalist_file),
               "weights": None}),
        )  # fmt: skip
        workflow.initialize() if name == "inference.yaml" else workflow.parser.parse(reset=True)
        workflow._is_initialized = True
        assert not workflow.check_properties(), name
    assert Path(small_run.run("ours")).is_dir()
