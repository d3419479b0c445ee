"""ONNX Runtime in place of torch: the same results within the stated tolerance, after every change of the network."""

from __future__ import annotations

import copy
import json
import pickle

import numpy as np
import pytest
import torch

from bundle.predictor import Predictor
from scripts.__main__ import main as command
from scripts.inference import backends, scope
from scripts.inference.pipeline import Inference
from scripts.inference.scope_features import features, probe
from tests.scans import head, oblique, save, save_picture, write_overlay

SIZE = (48, 40)  # not that of the scope's probe
runtime = pytest.importorskip("onnxruntime", reason="the export extra is not installed")
pytest.importorskip("onnx", reason="the export extra is not installed")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("backends")


@pytest.fixture(scope="module")
def overlay(folder):
    return write_overlay(folder, SIZE)


@pytest.fixture(scope="module")
def both(overlay):
    return [Inference(overlay=overlay, device="cpu", backend=name) for name in backends.BACKENDS]


@pytest.fixture(scope="module")
def picture(folder):
    return save_picture(folder / "a.png", head(seed=3)[:, :, 5])


def assert_near(found, expected):
    assert set(found) == set(expected)
    for name, value in expected.items():
        assert found[name].shape == value.shape
        assert (found[name] - value).abs().max() < backends.TOLERANCE, name


def test_outputs_are_those_of_torch_of_pictures_volumes_and_batches(both, folder, picture):
    stock, other = both
    volume = save(folder / "v.nii.gz", head(seed=1), oblique())
    for image in (picture, volume):
        item = stock.prepare({"image": str(image)})
        assert_near(other.infer(item), stock.infer(item))
        assert other.infer(item)["evidence"].abs().max() > 0
    items = [stock.prepare({"image": str(image)}) for image in (picture, volume)]
    for found, expected in zip(other.infer_together(items), stock.infer_together(items), strict=True):
        assert_near(found, expected)
    result = [one.finish(items[0], one.infer(items[0]))["result"] for one in both]
    assert result[0]["verdict"] == result[1]["verdict"]
    assert result[0]["tumor_voxels"] == result[1]["tumor_voxels"]


def test_a_network_that_was_written_to_is_traced_again(both, picture):
    network = copy.deepcopy(both[0].network)
    image = both[0].prepare({"image": str(picture)})["image"].as_tensor()[None]
    other = backends.OnnxNetwork(network, SIZE)
    with torch.no_grad():
        for change in (lambda: None, lambda: network.head.evidence.conv.weight.mul_(-0.5),
                       lambda: network.shift_classes(torch.tensor([2.0, 0.0, -1.0]))):  # fmt: skip
            change()
            for name, value in network.multitask(image).items():
                assert (other.multitask(image)[name] - value).abs().max() < 1e-3, name
    first = other._current()
    assert other._current() is first
    assert (pickle.loads(pickle.dumps(other)).multitask(image)["cls"] - other.multitask(image)["cls"]).abs().max() == 0


def test_the_scope_is_scored_in_the_same_pass(both, tmp_path, picture):
    network = both[0].network
    drawn = torch.randn(24, 1, *SIZE, generator=torch.Generator().manual_seed(2))
    own = features(network, drawn)
    scope.fit(own, own, own + 5, probe(network)).save(tmp_path / scope.FILE)
    image = both[0].prepare({"image": str(picture)})["image"].as_tensor()[None]
    scores = []
    for one in both:
        scorer = scope.ScopeScorer(tmp_path / "model.pt")
        inferer = type(one.inferer)(4, scorer)
        scores.append(inferer(image, one.runner)["scope"])
    encode = network.encode
    counted: list[int] = []
    network.encode = lambda x, foreground=None: counted.append(len(x)) or encode(x, foreground)
    try:
        inferer(image, both[1].runner)
    finally:
        del network.encode
    assert counted == []
    np.testing.assert_allclose(scores[1], scores[0], rtol=1e-3)


def test_results_say_which_backend_made_them_and_are_not_taken_for_anothers(overlay, folder, picture):
    out = folder / "predicted"
    given = ["predict", str(picture), "--out", str(out), "--overlay", str(overlay), "--device", "cpu"]
    stated, modified = [], []
    for more in ([], ["--backend", "onnxruntime"], ["--backend", "onnxruntime"]):
        assert command([*given, *more]) == 0
        stated.append(json.loads((out / "a_result.json").read_text())["made_by"]["backend"])
        modified.append((out / "a_result.json").stat().st_mtime_ns)
    assert stated == ["torch", *[f"onnxruntime {runtime.__version__}"] * 2]
    assert modified[0] < modified[1] == modified[2]
    stock, predictor = (Predictor(overlay=overlay, backend=name) for name in backends.BACKENDS)
    assert [stock.backend, predictor.backend] == stated[:2]
    assert predictor.predict(picture).probability == pytest.approx(stock.predict(picture).probability, abs=1e-4)


def test_what_it_cannot_run_is_refused(both, overlay, monkeypatch):
    with pytest.raises(ValueError, match="no backend 'tpu'; there are torch, onnxruntime"):
        Inference(overlay=overlay, device="cpu", backend="tpu")
    network, other = both[0].network, backends.OnnxNetwork(both[0].network, SIZE)
    image = torch.zeros(1, 1, *SIZE)
    with pytest.raises(ValueError, match="use torch to hold one fixed"):
        other.encode(image, image)
    with pytest.raises(ValueError, match=r"takes images of \(48, 40\), got \(32, 48\)"):
        other.encode(torch.zeros(1, 1, 32, 48))
    monkeypatch.setattr(network, "window", [16, 16])
    with pytest.raises(ValueError, match="this network takes windows"):
        backends.OnnxNetwork(network, SIZE)
    monkeypatch.setattr(network, "window", None)
    monkeypatch.setattr(backends, "TOLERANCE", 0.0)
    with pytest.raises(ValueError, match=r"output \w+ of onnxruntime differs by"):
        backends.OnnxNetwork(network, SIZE).multitask(torch.randn(1, 1, *SIZE))
