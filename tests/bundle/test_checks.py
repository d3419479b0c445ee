"""The diagnostic command passes on a sound bundle and names what is wrong with a broken one."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from bundle.checks import Checks, Failure, run
from bundle.config_values import set_values
from bundle.parity import label_input
from bundle.predictor import Predictor
from bundle.release import ROOT
from bundle.samples import HEALTHY, HEALTHY_VOLUME, PICTURE, SAMPLES, VOLUME, draw_samples
from scripts.__main__ import main as command
from tests.bundle.made_run import make_pictures, make_run


@pytest.fixture(scope="module")
def samples(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("samples")
    draw_samples(folder)
    return folder


@pytest.fixture(scope="module")
def made(tmp_path_factory, samples) -> Path:
    """Random weights of a seed whose probabilities tell the samples apart, with a threshold between them."""
    run_dir = tmp_path_factory.mktemp("run") / "run"
    make_run(run_dir, make_pictures(tmp_path_factory.mktemp("pictures")), seed=55)
    predictor = Predictor(overlay=run_dir / "network.yaml")
    found = {name: predictor.predict(samples / name).probability for name in SAMPLES}
    low = max(p for name, p in found.items() if not SAMPLES[name])
    high = min(p for name, p in found.items() if SAMPLES[name])
    assert low < high, "another seed is needed"
    path = run_dir / "stage3_joint" / "model.pt"
    torch.save({**torch.load(path, weights_only=True), "threshold": torch.tensor((low + high) / 2)}, path)
    return run_dir


@pytest.fixture
def sound(made, samples, tmp_path) -> Checks:
    """Checks of a copy of the configs with the made weights; MONAI Label left out."""
    root = tmp_path / "root"
    shutil.copytree(ROOT / "configs", root / "configs")
    (root / "models").mkdir()
    shutil.copyfile(made / "stage3_joint" / "model.pt", root / "models" / "model.pt")
    overlay = yaml.safe_load((made / "network.yaml").read_text(encoding="utf-8"))
    values = {key: overlay[key] for key in ("spatial_size", "num_classes", "network_def", "classes")}
    config = root / "configs" / "inference.yaml"
    config.write_text(set_values(config.read_text(encoding="utf-8"), values), encoding="utf-8")
    return Checks(root, samples, out=tmp_path / "out", label_python=tmp_path / "absent")


def with_weights(sound: Checks, **changed: torch.Tensor) -> Checks:
    path = sound.root / "models" / "model.pt"
    state = torch.load(path, weights_only=True)
    torch.save({**state, **{name.replace("__", "."): value for name, value in changed.items()}}, path)
    return sound


def lines(capsys) -> dict[str, tuple[str, str]]:
    """{check: (word, finding)} of what was printed."""
    return {line[8:20].strip(): (line[:8].strip(), line[20:]) for line in capsys.readouterr().out.splitlines()}


def test_a_sound_bundle_passes_every_check_and_its_overlay_is_kept(sound, capsys):
    assert run(sound)
    found = lines(capsys)
    assert list(found) == [name for name, _ in sound.all()]
    assert {word for word, _ in found.values()} == {"ok"}
    assert "MultiTaskDynUNet" in found["load"][1]
    assert found["parity"][1].startswith("inference, training")
    assert found["parity"][1].endswith("not installed: MONAI Label") == (not sound.label_python.is_file())
    picture = np.asarray(Image.open(sound.out / "overlay.png")).astype(int)
    assert (picture[..., 0] - picture[..., 2]).max() > 20  # something is red


def test_the_command_ends_with_1_and_says_why_where_there_are_no_weights(tmp_path, capsys):
    shutil.copytree(ROOT / "configs", tmp_path / "configs")
    assert command(["check", "--bundle_root", str(tmp_path)]) == 1
    printed = capsys.readouterr().out.splitlines()
    assert len(printed) == 3  # without a bundle the other checks are not tried
    assert printed[0].startswith("FAILED  load")
    assert "model.pt" in printed[0]
    assert printed[1] == "at least one check failed"


def test_weights_that_are_not_finite_and_dead_convolutions_are_named(sound):
    name = "input_block__conv1__conv__weight"
    state = torch.load(sound.root / "models" / "model.pt", weights_only=True)
    weight = state[name.replace("__", ".")]
    with pytest.raises(Failure, match=r"1 convolutions are all 0, first: input_block\.conv1"):
        with_weights(sound, **{name: torch.zeros_like(weight)}).keys()
    with pytest.raises(ValueError, match=r"holds values that are not finite \(input_block\.conv1"):
        with_weights(sound, **{name: torch.full_like(weight, float("nan"))}).keys()


def test_a_threshold_that_decides_nothing_is_named(sound):
    with pytest.raises(Failure, match="threshold 1 is not between 0 and 1"):
        with_weights(sound, threshold=torch.tensor(1.0)).keys()


def test_evidence_without_variation_fails(sound):
    weight = torch.load(sound.root / "models" / "model.pt", weights_only=True)["head.evidence.conv.weight"]
    with pytest.raises(Failure, match="the evidence is the same everywhere"):
        with_weights(sound, head__evidence__conv__weight=torch.zeros_like(weight)).maps()


@pytest.mark.parametrize(("threshold", "wrong"), [(0.001, [HEALTHY, HEALTHY_VOLUME]), (0.999, [PICTURE, VOLUME])])
def test_a_wrong_verdict_on_a_sample_fails(sound, capsys, threshold, wrong):
    assert not run(with_weights(sound, threshold=torch.tensor(threshold)))
    word, finding = lines(capsys)["prediction"]
    assert word == "FAILED"
    assert finding.startswith("the verdict on 2 of 4 samples is wrong: ")
    assert [name for name in SAMPLES if f"{name}: tumor" in finding] == sorted(wrong, key=list(SAMPLES).index)


def test_a_cancelled_map_fails(samples):
    checks_of_shipped = Checks(ROOT, samples, layer="encoder_early")
    checks_of_shipped.all = lambda: [("layer", checks_of_shipped.layer_for_cam)]
    assert not run(checks_of_shipped)
    with pytest.raises(ValueError, match="gradients of every channel cancel"):
        checks_of_shipped.layer_for_cam()


def test_an_empty_map_fails(sound):
    weight = torch.load(sound.root / "models" / "model.pt", weights_only=True)["head.evidence.conv.weight"]
    sound = with_weights(sound, head__evidence__conv__weight=torch.zeros_like(weight))
    with pytest.raises(Failure, match=r"Grad-CAM at head\.features of phantom_tumor\.png: nothing speaks"):
        sound.layer_for_cam()


def test_a_prediction_that_does_not_depend_on_the_image_fails(sound):
    weight = torch.load(sound.root / "models" / "model.pt", weights_only=True)["head.evidence.conv.weight"]
    with pytest.raises(Failure, match="do not depend on the image"):
        with_weights(sound, head__evidence__conv__weight=torch.zeros_like(weight)).predict()


def test_a_training_that_prepares_images_otherwise_fails(sound):
    train = sound.root / "configs" / "train.yaml"
    text = train.read_text(encoding="utf-8")
    crop = "    - _target_: scripts.data.preprocessing.CropToForegroundd\n"
    assert crop in text
    train.write_text(text.replace(crop, crop + "      margin: 0\n"), encoding="utf-8")
    with pytest.raises(Failure, match=r"phantom_tumor\.png: training feeds the network otherwise.*values differ"):
        sound.parity()


def test_a_wrong_layer_is_an_error_with_the_nearest_name(sound, capsys):
    sound.layer = "bottlenek"
    assert not run(sound)
    word, finding = lines(capsys)["layer"]
    assert word == "FAILED"
    assert "bottleneck" in finding


def test_metadata_that_monai_label_would_misread_fails(sound):
    path = sound.root / "configs" / "metadata.json"
    meta = json.loads(path.read_text(encoding="utf-8"))
    meta["network_data_format"]["outputs"]["pred"]["channel_def"] = {"0": "tumor"}
    path.write_text(json.dumps(meta), encoding="utf-8")
    with pytest.raises(Failure, match="expected 2 labels, of which 0 is background"):
        sound.metadata()
    meta["network_data_format"]["outputs"] = {"seg": meta["network_data_format"]["outputs"]["pred"]}
    path.write_text(json.dumps(meta), encoding="utf-8")
    with pytest.raises(Failure, match=r"'seg'.*needs 'image' and 'pred'"):
        sound.metadata()


def test_the_users_own_volume_is_checked(sound):
    sound.image = sound.samples / VOLUME
    assert sound.predict().startswith(VOLUME)
    assert "evidence varies" in sound.maps()
    assert sound.layer_for_cam().startswith("head.features")


def test_label_environment_that_fails_is_an_error_with_its_last_words(sound, tmp_path):
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\necho broken environment >&2\nexit 3\n")
    python.chmod(0o755)
    with pytest.raises(RuntimeError, match="broken environment"):
        label_input(python, sound.files, sound.root, sound.samples / PICTURE)
