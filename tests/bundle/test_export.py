"""Exports give what the network gives, evidence included."""

from __future__ import annotations

import importlib
import json

import numpy as np
import pytest
import torch

from bundle import export
from scripts.inference.inferers import MultiTaskInferer
from scripts.inference.pipeline import Inference
from scripts.inference.scans import PrepareScand
from tests.scans import head, save_picture, write_overlay


@pytest.fixture(scope="module")
def inference(tmp_path_factory):
    return Inference(overlay=write_overlay(tmp_path_factory.mktemp("weights")), device="cpu")


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    prepare = PrepareScand((32, 32))
    paths = [save_picture(folder / f"{i}.png", head(seed=i)[:, :, 3 + i]) for i in range(4)]
    return torch.stack([prepare({"image": str(path)})["image"].as_tensor() for path in paths])


def needs_onnx():
    pytest.importorskip("onnx", reason="the export extra is not installed")
    return pytest.importorskip("onnxruntime", reason="the export extra is not installed")


@pytest.mark.parametrize("batch", [1, 4])
def test_onnx_gives_what_the_network_gives_in_any_batch(inference, images, tmp_path, batch):
    runtime = needs_onnx()
    differences = export.export_onnx(inference, tmp_path / "model.onnx")
    assert max(differences.values()) < 1e-4
    session = runtime.InferenceSession(str(tmp_path / "model.onnx"), providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    assert names == ["seg", "probability", "evidence"]
    found = dict(zip(names, session.run(None, {"image": images[:batch].numpy()}), strict=True))
    expected = inference.inferer(images[:batch], inference.network)
    for name in names:
        assert found[name].shape == tuple(expected[name][:, 0].shape)
        assert np.abs(found[name] - expected[name][:, 0].numpy()).max() < 1e-4
    assert found["evidence"].max() > 0
    assert [p.name for p in tmp_path.iterdir()] == ["model.onnx"]


def test_threshold_and_classes_travel_in_the_file(inference, tmp_path):
    runtime = needs_onnx()
    export.export_onnx(inference, tmp_path / "model.onnx")
    about = runtime.InferenceSession(str(tmp_path / "model.onnx")).get_modelmeta().custom_metadata_map
    assert float(about["threshold"]) == pytest.approx(0.4)
    assert json.loads(about["classes"]) == ["no_tumor", "glioma", "meningioma"]


def test_a_network_without_evidence_and_one_in_3d_are_exported(tmp_path):
    needs_onnx()
    plain = Inference(overlay=write_overlay(tmp_path, head="average_pool"), device="cpu")
    assert sorted(export.export_onnx(plain, tmp_path / "plain.onnx")) == ["probability", "seg"]
    solid = Inference(overlay=write_overlay(tmp_path, (16, 16, 16), spatial_dims=3), device="cpu")
    assert sorted(export.export_onnx(solid, tmp_path / "solid.onnx")) == ["evidence", "probability", "seg"]


def test_an_export_that_differs_is_refused_and_leaves_no_file(inference, tmp_path, monkeypatch):
    needs_onnx()
    monkeypatch.setattr(export, "TOLERANCE", -1.0)
    with pytest.raises(ValueError, match="differs from the network by"):
        export.export_onnx(inference, tmp_path / "model.onnx")
    assert not list(tmp_path.iterdir())


def test_a_missing_package_is_named(inference, tmp_path, monkeypatch):
    def without(name):
        raise ImportError(name)

    monkeypatch.setattr(importlib, "import_module", without)
    with pytest.raises(ValueError, match="onnx is not installed; install the export extra"):
        export.export_onnx(inference, tmp_path / "model.onnx")


def test_torchscript_serves_as_the_network_of_the_inferer(inference, images, tmp_path):
    torch.jit.script(inference.network).save(str(tmp_path / "model.ts"))
    scripted = torch.jit.load(str(tmp_path / "model.ts"))
    expected = MultiTaskInferer(2)(images, inference.network)
    found = MultiTaskInferer(2)(images, scripted)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.allclose(found[name], value, atol=1e-4)
