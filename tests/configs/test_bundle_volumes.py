"""Every shipped 3D config by ``python -m monai.bundle run``, from training to inference, on tiny heads.

Four sequences fitted whole (volumetric.yaml with multimodal.yaml) go the same way in tests/configs/test_multimodal.py.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import pytest
import yaml

from scripts.__main__ import main as command
from scripts.command.errors import sentence
from scripts.command.locations import CONFIGS, ROOT
from scripts.data import datalists
from scripts.data.datalists.regions import SCHEMES
from scripts.data.preprocessing import make_preprocessing
from scripts.diagnosis import diagnose
from scripts.phantoms.sequences import write_pair
from scripts.runs import folder as runs
from tests.bundle_command import bundle_run

# Overlay of train.yaml, and how many sequences it is given.
WAYS = {"volumetric": 1, "volumetric_patches": 4}
CHANNELS = ("FLAIR", "T1", "T1ce", "T2")


def bundle(files: list[Path], **values: Any) -> None:
    """``python -m monai.bundle run --config_file FILES --name value ...`` in this process."""
    bundle_run(files, bundle_root=ROOT, **values)


@dataclass
class Run:
    """A trained run and what every other config is given."""

    folder: Path
    paths: dict[str, str]
    files: list[str]
    patches: bool

    def started(self, name: str, **values: Any) -> None:
        bundle([CONFIGS / f"{name}.yaml"], run_dir=self.folder, **self.paths, **values)

    def read(self, name: str) -> Any:
        return json.loads((self.folder / name).read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def heads(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("heads")
    for k in range(3):
        write_pair(folder / "data", [7, k], f"v{k:03d}", (10.0, 10.0, 10.0))
    return folder


@pytest.fixture(scope="module", params=WAYS)
def run(request, heads, tmp_path_factory) -> Run:
    folder, patches = tmp_path_factory.mktemp("run"), "patches" in request.param
    rule = datalists.SliceRule(planes=(), regions=SCHEMES["brats2012"] if patches else SCHEMES["tumor"])
    datalist, _ = datalists.nifti_cases(
        heads / "data", rule=rule, channels=CHANNELS[: WAYS[request.param]], patient_pattern=r"v\d+", progress=False
    )
    datalists.write(datalist, folder / "list.json")
    paths = {"dataset_dir": str(heads / "data"), "datalist_file": str(folder / "list.json")}
    small: dict[str, Any] = {"spatial_size": [16, 16, 16], "max_epochs": 1, "val_interval": 1, "batch_size": 2}
    small |= {"spacing_mm": 10.0, "patches_per_epoch": 4} if patches else {}
    names = ["train", request.param, "smoke"]
    bundle([CONFIGS / f"{name}.yaml" for name in names], run_dir=folder / "run", **paths, **small)
    images = datalist["test"][0]["image"]
    files = [str(heads / "data" / image) for image in ([images] if isinstance(images, str) else images)]
    return Run(folder / "run", paths, files, patches)


def test_every_shipped_config_of_volumes_is_among_them():
    contents = {path.stem: yaml.safe_load(path.read_text(encoding="utf-8")) for path in CONFIGS.glob("*.yaml")}
    volumes = {name for name, content in contents.items() if content.get("network_def#spatial_dims") == 3}
    assert volumes == WAYS.keys()


def test_training_leaves_a_run_that_the_others_take(run):
    network, config, stage = runs.load_run(run.folder)
    assert (stage.name, network.spatial_dims, config["spatial_size"]) == (runs.JOINT, 3, [16, 16, 16])
    assert network.in_channels == len(run.files)
    assert network.window == ([16, 16, 16] if run.patches else None)


def test_evaluation_ends_well_and_says_what_it_did_not_measure(run):
    run.started("evaluate", extras=["robustness", "scope"])
    metrics = run.read("evaluation/metrics.json")
    assert metrics["test"]["overall"]["n"] == 2
    notes = " ".join(metrics["notes"])
    assert "robustness is not measured of whole volumes" in notes
    assert ("scope" in notes) == run.patches


def test_explanations_end_well_and_find_the_order_of_the_layers(run):
    run.started("explain", methods=["evidence"], tests=["randomization"], test_cases=1, gallery_cases=1)
    assert run.read("explanations/localization.json")
    faithfulness = json.dumps(run.read("explanations/faithfulness.json"))
    assert "bottleneck.conv1.conv" in faithfulness, "the layers that are drawn again, in the order in which they run"


def test_diagnosis_ends_well(run):
    run.started("diagnose", images=2)
    diagnosis = run.read("diagnosis/diagnosis.json")
    assert diagnosis["spatial_size"] == [16, 16, 16]
    assert {finding["verdict"] for finding in diagnosis["findings"]} >= {"does not hold"}
    assert ("of each volume one window of 16x16x16, around its tumor or head" in diagnosis["notes"]) == run.patches


def test_the_verb_diagnoses_at_the_spacing_of_the_run(run, monkeypatch):
    asked: list[Any] = []

    def preprocessing(sizes, **settings):
        asked.append((list(sizes), settings["spacing_mm"]))
        return make_preprocessing(sizes, **settings)

    monkeypatch.setattr(diagnose, "make_preprocessing", preprocessing)
    paths = [word for key, value in run.paths.items() for word in (f"--{key}", value)]
    command(["diagnose", "--run_dir", str(run.folder), *paths, "--limit", "1", "--out", str(run.folder / "verb")])
    assert asked == [([16, 16, 16], 10.0 if run.patches else None)]
    assert run.read("verb/diagnosis.json")["spatial_size"] == [16, 16, 16]


def test_inference_ends_on_the_files_grid(run, tmp_path):
    overlay = run.folder / "network.yaml"
    files = run.files if len(run.files) > 1 else run.files[0]
    bundle([CONFIGS / "inference.yaml", overlay], input=files, output_dir=tmp_path)
    source = nib.load(run.files[0])
    for what in ("mask", "evidence"):
        assert nib.load(next(tmp_path.glob(f"*_{what}.nii.gz"))).shape == source.shape
    result = json.loads(next(tmp_path.glob("*_result.json")).read_text(encoding="utf-8"))
    assert ("regions" in result and len(result["regions"] or {}) == 3) == run.patches
    with pytest.raises(Exception) as caught:  # noqa: PT011 - the sentence is asserted below
        bundle([CONFIGS / "inference.yaml", overlay], input=[run.files[0]] * 5, output_dir=tmp_path / "no")
    assert "5" in str(sentence(caught.value))
    assert not (tmp_path / "no").exists() or not list((tmp_path / "no").iterdir())
