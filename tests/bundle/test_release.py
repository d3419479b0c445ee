"""The release holds the bundle alone, passes MONAI's checks, and two of them live in one process."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch
import yaml

from bundle import monai_checks
from bundle.config_values import set_values
from bundle.model_card import evaluated, model_card
from bundle.release import NAME, ROOT, content, find_weights, release, write_zip
from tests.bundle.made_run import make_pictures, make_run


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
def test_make_label_releases_again_where_a_release_is_there(tmp_path):
    shutil.copyfile(ROOT / "Makefile", tmp_path / "Makefile")
    (tmp_path / "dist" / NAME).mkdir(parents=True)
    for name in ("setup.cfg", "constraints.txt", "requirements-label.txt", "bundle/label_environment.py"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    for run_dir, asked in (("", ""), ("runs/mine", ' --run_dir "runs/mine"')):
        printed = subprocess.run(
            ["make", "-n", "label", f"RUN={run_dir}", "OUT=elsewhere"], cwd=tmp_path, capture_output=True, text=True,
            env={key: value for key, value in os.environ.items() if not key.startswith("MAKE")},
        ).stdout  # fmt: skip
        before, _, after = printed.partition("-m scripts release")
        assert after.split("\n")[0].rstrip() == asked
        assert "-m scripts label" in after
        assert "-m scripts label" not in before


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> Path:
    return make_pictures(tmp_path_factory.mktemp("pictures"))


@pytest.fixture(scope="module")
def run(pictures, tmp_path_factory) -> Path:
    return make_run(
        tmp_path_factory.mktemp("run"), pictures, num_classes=4,
        kernel_size=[3] * 4, strides=[1, 2, 2, 2], upsample_kernel_size=[2] * 3, filters=[4, 4, 8, 8],
    )  # fmt: skip


@pytest.fixture(scope="module")
def released(run, tmp_path_factory) -> tuple[Path, str]:
    """The folder, and what the release printed. MONAI's commands run in it: verify_metadata, verify_net_in_out,
    ckpt_export, load and check_properties of both workflows."""
    out = tmp_path_factory.mktemp("dist")
    done = subprocess.run(
        [sys.executable, "-m", "scripts", "release", "--run_dir", str(run), "--out", str(out)],
        cwd=ROOT, capture_output=True, text=True, encoding="utf-8",
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return out / NAME, done.stdout


def test_every_check_of_monai_passes(released):
    lines = [line.split()[:2] for line in released[1].splitlines() if line.startswith(("ok", "FAILED"))]
    assert lines == [["ok", check.__name__] for check in monai_checks.CHECKS]


def test_it_holds_the_bundle_and_nothing_of_tests_runs_data_or_benchmarks(released):
    folder, _ = released
    tops = {path.name for path in folder.iterdir()}
    assert tops == {"configs", "scripts", "transforms", "models", "docs", "LICENSE"}
    assert {path.name for path in (folder / "models").iterdir()} == {"model.pt", "model.ts"}
    docs = {path.name for path in (folder / "docs").iterdir()}
    assert {"README.md", "data_license.txt"} <= docs
    assert "shipped_weights.md" not in docs, "these are other weights"
    python = {path.relative_to(folder).as_posix() for path in folder.rglob("*.py")}
    assert all(name.startswith(("scripts/", "transforms/")) for name in python)
    assert {"scripts/__init__.py", "scripts/explain/cam.py", "transforms/masking.py"} <= python
    assert not list(folder.rglob("__pycache__"))
    assert not (folder / "configs" / "smoke.yaml").exists()


def test_the_zip_file_holds_the_same_bytes(released):
    folder, _ = released
    with zipfile.ZipFile(folder.with_suffix(".zip")) as archive:
        packed = {info.filename: archive.read(info) for info in archive.infolist()}
    lying = {path.relative_to(folder.parent).as_posix(): path.read_bytes() for path in folder.rglob("*.*")}
    assert {name: data for name, data in packed.items() if not name.endswith("LICENSE")} == lying


def test_the_same_content_gives_the_same_zip_file(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "x.txt").write_text("x")
    write_zip(tmp_path / "a", tmp_path / "first.zip")
    (tmp_path / "a" / "x.txt").touch()
    write_zip(tmp_path / "a", tmp_path / "second.zip")
    assert (tmp_path / "first.zip").read_bytes() == (tmp_path / "second.zip").read_bytes()


def test_values_of_the_run_stand_in_both_configs_and_the_stride_in_the_metadata(released, run):
    folder, _ = released
    wanted = yaml.safe_load((run / "network.yaml").read_text(encoding="utf-8"))
    inference, train = (
        yaml.safe_load((folder / "configs" / f"{name}.yaml").read_text(encoding="utf-8"))
        for name in ("inference", "train")
    )
    later = {"out_channels": "$len(@regions) if @regions else 2", "regions": "@regions"}  # than the made run
    later["window"] = "$list(@spatial_size) if @spacing_mm else None"
    for key, value in {**wanted, "network_def": {**wanted["network_def"], **later}}.items():
        if key in ("spatial_size", "network_def", "classes"):
            assert inference[key] == train[key] == value
    assert (inference["regions"], inference["spacing_mm"], train["spacing_mm"]) == (None, None, None)
    assert train["regions"].startswith("$stated_regions.given(")
    built = json.loads((folder / "configs" / "infer.json").read_text(encoding="utf-8"))["network_def"]
    assert (built["out_channels"], built["regions"], built["window"]) == (2, None, None)
    assert inference["num_classes"] == 4
    meta = json.loads((folder / "configs" / "metadata.json").read_text(encoding="utf-8"))
    assert meta["network_data_format"]["inputs"]["image"]["spatial_shape"] == ["8*n", "8*n"]
    assert "made pictures" in meta["data_source"]
    assert "input_description" not in meta, "that of the shipped weights"
    assert torch.load(folder / "models" / "model.pt", weights_only=True).keys() == find_weights_keys(run)


def find_weights_keys(run: Path):
    return torch.load(run / "stage3_joint" / "model.pt", weights_only=True).keys()


def test_data_terms_and_model_card_are_those_of_the_run(released):
    docs = released[0] / "docs"
    if not (ROOT / "docs" / "data_license.txt").is_file():
        assert "made pictures" in (docs / "data_license.txt").read_text(encoding="utf-8")
    if not (ROOT / "docs" / "README.md").is_file():
        card = (docs / "README.md").read_text(encoding="utf-8")
        assert "Not evaluated" in card
        assert "3: pituitary" in card


def test_model_card_gives_the_figures_of_the_evaluation(tmp_path):
    (tmp_path / "evaluation").mkdir()
    measured = {
        "segmentation": {"dice": {"n": 7, "mean": 0.8123, "ci95": [0.7, 0.9]}},
        "classification": {"n": 12, "balanced_accuracy": 0.75, "balanced_accuracy_ci95": [0.6, 0.85], "roc_auc": None},
    }
    (tmp_path / "evaluation" / "metrics.json").write_text(json.dumps({"test": {"overall": measured}}))
    figures = evaluated(tmp_path)
    assert figures["dice"] == {"value": 0.8123, "ci95": [0.7, 0.9], "n": 7, "part": "test"}
    assert set(figures) == {"dice", "balanced_accuracy"}
    meta = json.loads((ROOT / "configs" / "metadata.json").read_text(encoding="utf-8"))
    taken = {"classes": {"0": "no_tumor", "1": "tumor"}, "spatial_size": [64, 64], "network_def": {"in_channels": 1}}
    card = model_card(meta, taken, figures)
    assert "| Dice over tumor cases | 0.812 [0.700, 0.900] | 7 test images |" in card
    assert "| Balanced accuracy | 0.750 [0.600, 0.850] | 12 test images |" in card
    assert "resized to 64 x 64." in card
    assert "--input image.jpg" in card
    assert "Slices of one channel, volumes slice by slice." in card


def test_model_card_of_volumes_and_without_an_interval():
    meta = json.loads((ROOT / "configs" / "metadata.json").read_text(encoding="utf-8"))
    taken = {"classes": {"0": "no_tumor", "1": "tumor"}, "spatial_size": [96, 96, 64], "spacing_mm": 1.5}
    alone = {"dice": {"value": 0.5, "ci95": [None, None], "n": 1, "part": "test"}}
    card = model_card(meta, {**taken, "network_def": {"in_channels": 2}}, alone)
    assert "| Dice over tumor cases | 0.500 | 1 test images |" in card
    assert "resampled to 1.5 mm, in windows of 96 x 96 x 64." in card
    assert "--input \"['channel0.nii.gz','channel1.nii.gz']\"" in card
    assert "Volumes of 2 channels, in the order of the training." in card
    acquired = model_card(meta, {**taken, "spacing_mm": "acquired", "network_def": {"in_channels": 1}}, {})
    assert "; on the voxels that it has, in windows of 96 x 96 x 64." in acquired
    assert "--input image.nii.gz" in acquired


def test_without_weights_it_says_what_to_do(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no weights to release.*make bundle RUN="):
        find_weights(None, root=tmp_path)
    with pytest.raises(FileNotFoundError, match="holds no trained stage"):
        find_weights(tmp_path)


def test_a_name_that_monai_label_would_misread_is_refused(tmp_path):
    for name in ("brain_tumor", "tumor_classification_segmentation"):
        with pytest.raises(ValueError, match="_segmentation"):
            release(tmp_path, name=name)


def test_files_over_25_mb_an_old_version_and_a_missing_file_fail(released, tmp_path, monkeypatch):
    folder = tmp_path / NAME
    shutil.copytree(released[0], folder)
    monkeypatch.chdir(folder)
    monkeypatch.setattr(monai_checks, "MAX_BYTES", 10_000)
    with pytest.raises(monai_checks.Failure, match=r"larger than 25 MB.*model"):
        monai_checks.files()
    (folder / "docs" / "data_license.txt").unlink()
    with pytest.raises(monai_checks.Failure, match=r"missing: docs/data_license.txt"):
        monai_checks.files()
    meta = json.loads((folder / "configs" / "metadata.json").read_text(encoding="utf-8"))
    meta["changelog"]["99.0.0"] = "later"
    (folder / "configs" / "metadata.json").write_text(json.dumps(meta))
    with pytest.raises(monai_checks.Failure, match="not the newest entry"):
        monai_checks.changelog()


def test_comments_and_order_of_a_config_stay():
    text = (ROOT / "configs" / "inference.yaml").read_text(encoding="utf-8")
    changed = set_values(text, {"spatial_size": [96, 96], "network_def#filters": [2, 4, 8, 16]})
    different = [(a, b) for a, b in zip(text.splitlines(), changed.splitlines(), strict=True) if a != b]
    assert [b.strip() for _, b in different] == ["spatial_size: [96, 96]", "filters: [2, 4, 8, 16]"]
    with pytest.raises(KeyError, match="no 'network_def#width'"):
        set_values(text, {"network_def#width": 3})


def test_content_leaves_out_what_is_not_the_bundles():
    tops = {path.parts[0] for path in content(ROOT)}
    assert tops == {"configs", "scripts", "transforms", "LICENSE", "docs"}


def other_version(folder: Path, target: Path) -> Path:
    """A copy of a release whose transforms and scripts give other results."""
    shutil.copytree(folder, target)
    masking = target / "transforms" / "masking.py"
    masking.write_text(masking.read_text(encoding="utf-8") + "\nVERSION = 'other'\n", encoding="utf-8")
    intensity = target / "transforms" / "intensity.py"
    source = intensity.read_text(encoding="utf-8")
    intensity.write_text(
        source + "\n_first = NormalizeForegroundd.__call__\n\n\ndef _doubled(self, data):\n"
        "    item = _first(self, data)\n    item[self.keys[0]] = item[self.keys[0]] * 2\n    return item\n\n\n"
        "NormalizeForegroundd.__call__ = _doubled\n",
        encoding="utf-8",
    )
    results = target / "scripts" / "inference" / "postprocessing.py"
    results.write_text(
        results.read_text(encoding="utf-8")
        + "\n_verdict = RestoreScand.verdict\nRestoreScand.verdict = lambda self, *a: "
        "{**_verdict(self, *a), 'version': 'other'}\n",
        encoding="utf-8",
    )
    meta = json.loads((target / "configs" / "metadata.json").read_text(encoding="utf-8"))
    meta.update(version="0.2.0", changelog={**meta["changelog"], "0.2.0": "other"})
    (target / "configs" / "metadata.json").write_text(json.dumps(meta), encoding="utf-8")
    return target


# As monailabel.tasks.infer.bundle does: the bundle's folder first on the path, `scripts` unloaded, config parsed again.
TOGETHER = """
import json, sys
import torch
from monai.bundle import ConfigParser

def unload():
    for name in [n for n in sys.modules if n == "scripts" or n.startswith("scripts.")]:
        del sys.modules[name]

def predict(folder, image):
    sys.path.insert(0, folder)
    unload()
    parser = ConfigParser()
    parser.read_config(folder + "/configs/inference.yaml")
    parser["bundle_root"] = folder
    parser["output_dir"] = None
    parts = []
    for name in ("network", "preprocessing", "inferer", "postprocessing"):
        unload()
        parts.append(parser.get_parsed_content(name))
    sys.path.remove(folder)
    network, preprocessing, inferer, postprocessing = parts
    item = preprocessing({"image": image, "device": "cpu"})
    output = inferer(item["image"][None], network.eval())
    item["pred"] = {key: value[0] for key, value in output.items()}
    item = postprocessing(item)
    result = {key: value for key, value in item["result"].items() if key != "evidence"}
    return {"result": result, "transforms": sys.modules["transforms"].__path__[0]}

image, folders = sys.argv[1], sys.argv[2:]
print(json.dumps([predict(folder, image) for folder in folders]))
"""


def together(image: Path, *folders: Path) -> list[dict]:
    done = subprocess.run(
        [sys.executable, "-c", TOGETHER, str(image), *map(str, folders)],
        cwd=folders[0].parent, capture_output=True, text=True, encoding="utf-8",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


def test_two_versions_in_one_process_each_use_their_own_transforms_and_scripts(released, pictures, tmp_path):
    first = shutil.copytree(released[0], tmp_path / "first_segmentation")
    second = other_version(first, tmp_path / "second_segmentation")
    image = next((pictures.parent / "singles" / "images").rglob("*.png"))
    alone = together(image, second)
    mixed = together(image, first, second, first, second)
    assert mixed[0] == mixed[2]
    assert mixed[1] == mixed[3] == alone[0]
    assert "version" not in mixed[0]["result"]
    assert mixed[1]["result"]["version"] == "other"
    assert mixed[0]["result"]["tumor_probability"] != mixed[1]["result"]["tumor_probability"]
    assert [Path(r["transforms"]).parent.name for r in mixed] == [first.name, second.name] * 2
