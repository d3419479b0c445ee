"""App and sample studies for MONAI Label are made without its environment."""

from __future__ import annotations

import runpy
import sys
import types
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import yaml

from bundle import label_environment, label_sampling
from bundle.label import SAMPLE_APP, STRATEGY, Label, prepare, prepare_app
from bundle.label_sampling import entropy, score_images, uncertainty
from bundle.samples import LABELED, SAMPLES, VOLUMES
from scripts.command.locations import CONFIGS

STOCK = "class MyApp:\n    def init_strategies(self):\n        return {'first': 1, 'random': 2}\n"


@pytest.fixture
def environment(tmp_path) -> Path:
    app = tmp_path / "venv" / SAMPLE_APP
    (app / "model").mkdir(parents=True)
    (app / "model" / "left_behind.txt").write_text("x")
    (app / "main.py").write_text(STOCK)
    return tmp_path / "venv"


@pytest.fixture
def released(tmp_path) -> Path:
    folder = tmp_path / "dist" / "some_segmentation"
    (folder / "configs").mkdir(parents=True)
    (folder / "configs" / "inference.yaml").write_text("a: 1\n")
    for name in ("runs", "scripts/runs"):
        (folder / name).mkdir(parents=True)
    (folder / "scripts" / "runs" / "folder.py").write_text("")
    return folder


def test_the_app_is_the_stock_one_with_the_bundles_in_its_model_folder(environment, released, tmp_path):
    prepare_app(tmp_path / "app", [released], environment)
    assert (tmp_path / "app" / "main.py").read_text() == STOCK
    assert [p.name for p in (tmp_path / "app" / "model").iterdir()] == ["some_segmentation"]
    bundle = tmp_path / "app" / "model" / "some_segmentation"
    assert not (bundle / "runs").exists(), "results"
    assert (bundle / "scripts" / "runs" / "folder.py").is_file(), "code"
    assert not (tmp_path / "app" / "bin").exists()


def test_a_prevalence_stands_in_the_inference_config_of_the_app(environment, released, tmp_path):
    """The config that the network is built by (tests/measures/test_prevalence.py says what it does there)."""
    config = released / "configs" / "inference.yaml"
    text = CONFIGS.joinpath("inference.yaml").read_text(encoding="utf-8")
    config.write_text(text, encoding="utf-8")
    prepare_app(tmp_path / "app", [released], environment, prevalence="0.1")
    shares = yaml.safe_load(
        (tmp_path / "app" / "model" / released.name / "configs" / "inference.yaml").read_text(encoding="utf-8")
    )["prevalence"]
    assert shares["no_tumor"] == pytest.approx(0.9)
    assert sum(shares.values()) == pytest.approx(1)
    assert config.read_text(encoding="utf-8") == text
    before = sorted((tmp_path / "app").rglob("*"))
    with pytest.raises(ValueError, match="prevalence: no class lymphoma"):
        prepare_app(tmp_path / "app", [released], environment, prevalence="lymphoma=0.1")
    assert sorted((tmp_path / "app").rglob("*")) == before, "an app that worked still stands"


def test_the_tool_that_writes_labels_as_dicom_lies_where_the_server_looks_for_it(environment, released, tmp_path):
    (environment / "bin").mkdir()
    (environment / "bin" / "itkimage2segimage").write_text("tool")
    prepare_app(tmp_path / "app", [released], environment)
    assert (tmp_path / "app" / "bin" / "itkimage2segimage").read_text() == "tool"


def test_sampling_adds_one_strategy_to_those_of_the_stock_app(environment, released, tmp_path, monkeypatch):
    module = types.ModuleType("monailabel.tasks.activelearning.epistemic")
    module.Epistemic = lambda: "epistemic"
    for name in ("monailabel", "monailabel.tasks", "monailabel.tasks.activelearning"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    monkeypatch.setitem(sys.modules, module.__name__, module)
    prepare_app(tmp_path / "app", [released], environment, sampling=True)
    app = runpy.run_path(str(tmp_path / "app" / "main.py"))["MyApp"]()
    assert app.init_strategies() == {"first": 1, "random": 2, STRATEGY: "epistemic"}


def test_sample_studies_hold_labeled_tumors_and_are_not_made_twice(environment, released, tmp_path):
    label = prepare(tmp_path / "out", [released], environment)
    images = {p.name for p in label.studies.iterdir() if p.is_file()}
    assert set(SAMPLES) < images  # those of the page and the checks
    assert len(images) == VOLUMES + len(SAMPLES)
    labels = sorted((label.studies / "labels" / "final").iterdir())
    assert len(labels) == LABELED
    for path in labels:
        mask, image = nib.load(path), nib.load(label.studies / path.name)
        assert np.asarray(mask.dataobj).max() == 1
        assert mask.shape == image.shape
        assert np.allclose(mask.affine, image.affine)
    (label.studies / "mine.nii.gz").write_text("the user's")
    prepare(tmp_path / "out", [released], environment)
    assert (label.studies / "mine.nii.gz").read_text() == "the user's"


def test_the_command_starts_without_the_model_zoo_and_without_sam(tmp_path):
    command = Label(tmp_path / "app", tmp_path / "studies", ["a", "b"]).command("python", 8123)
    assert command[:4] == ["python", "-m", "monailabel.main", "start_server"]
    conf = {command[i + 1]: command[i + 2] for i, word in enumerate(command) if word == "--conf"}
    assert conf == {"models": "a,b", "zoo_source": "local", "sam2": "false"}
    assert command[command.index("--host") + 1] == "127.0.0.1"


def test_what_is_missing_is_said_with_the_command_that_makes_it(environment, released, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"holds no MONAI Label.*make label"):
        prepare_app(tmp_path / "app", [released], tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match=r"no released bundle.*make bundle"):
        prepare_app(tmp_path / "app", [tmp_path / "nowhere"], environment)


def test_uncertainty_is_the_entropy_of_the_classes_or_the_mean_over_the_slices():
    assert entropy([0.25] * 4) == pytest.approx(1)
    assert uncertainty({"class_probabilities": {"a": 0.5, "b": 0.5}, "slice_probabilities": None}) == 1
    assert uncertainty({"class_probabilities": {"a": 1, "b": 0}, "slice_probabilities": [0.5, None, 1.0]}) == 0.5


class Recorded:
    """A server of three images, one of them labeled, that remembers what is written to it."""

    url = "http://recorded"

    def __init__(self):
        self.written: dict[str, str] = {}

    unlabeled = label_sampling.Server.unlabeled

    def infer(self, model, image):
        return {"class_probabilities": {"a": {"x": 0.9, "y": 0.5}[image], "b": 0.1}, "slice_probabilities": None}

    def json(self, method, path, form=None, **query):
        if method == "GET":
            return {"objects": {"x": {"labels": {}}, "y": {"labels": {"original": {}}}, "z": {"labels": {"final": {}}}}}
        self.written[query["image"]] = form["info"]
        return {}


def test_scores_go_to_the_datastore_and_labeled_images_are_left_out():
    server = Recorded()
    ranked = score_images(server, "model")
    assert [name for name, _ in ranked] == ["y", "x"]
    assert set(server.written) == {"x", "y"}
    assert server.written["y"] == f'{{"epistemic_entropy": {ranked[0][1]}}}'


def test_torchvision_is_reduced_only_where_its_operators_cannot_load(tmp_path, monkeypatch):
    spec = types.SimpleNamespace(origin=str(tmp_path / "__init__.py"))
    monkeypatch.setattr(label_environment.importlib.util, "find_spec", lambda name: spec)
    errors = {"import torchvision": None}
    monkeypatch.setattr(label_environment, "starts", lambda statement: errors[statement])
    assert not label_environment.mend_torchvision()
    assert not (tmp_path / "__init__.py").exists()
    errors["import torchvision"] = "RuntimeError: operator torchvision::nms does not exist"
    assert label_environment.mend_torchvision()
    assert "from . import utils" in (tmp_path / "__init__.py").read_text()
    errors["import torchvision"] = "ImportError: no PIL"
    with pytest.raises(RuntimeError, match="no PIL"):
        label_environment.mend_torchvision()
