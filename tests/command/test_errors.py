"""What a user can get wrong ends in one sentence that names the case, a non-zero exit, and nothing half-written."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from scripts.command.errors import sentence
from scripts.command.locations import ROOT
from scripts.command.workflows import run_config
from scripts.data.preprocessing import make_preprocessing, make_training_pipeline
from scripts.demo.demo import demo
from scripts.explain.targets import TumorLogOdds
from scripts.runs import folder as runs
from scripts.training.train import train
from tests.explain.nets import cam_maps


def head(size=96):
    """A bright disk with texture on black, as a picture."""
    y, x = np.mgrid[:size, :size]
    disk = ((x - size / 2) ** 2 + (y - size / 2) ** 2 < (0.35 * size) ** 2) * (140 + 40 * np.sin(x / 5))
    return Image.fromarray(disk.astype(np.uint8))


def sentence_of(call) -> str:
    with pytest.raises(Exception) as caught:  # noqa: PT011 - the sentence is asserted by the callers
        call()
    text = sentence(caught.value)
    assert text is not None, f"not an error a user can fix: {caught.value!r}"
    return text


def test_missing_input_file(tmp_path):
    text = sentence_of(lambda: run_config("inference.yaml", input=str(tmp_path / "gone.jpg"), weights=None))
    assert "gone.jpg is not a file" in text


def test_unreadable_image(tmp_path):
    path = tmp_path / "broken.png"
    path.write_bytes(b"\x89PNG\r\n\x1a\nnot really")
    assert "broken.png" in sentence_of(lambda: make_preprocessing(64)({"image": str(path)}))


def test_image_without_any_foreground(tmp_path):
    path = tmp_path / "black.png"
    Image.new("L", (80, 80)).save(path)
    text = sentence_of(lambda: make_preprocessing(64)({"image": str(path)}))
    assert "black.png" in text
    assert "foreground" in text or "constant" in text


def test_mask_of_another_size(tmp_path):
    head(96).save(tmp_path / "a.png")
    Image.new("L", (40, 50)).save(tmp_path / "m.png")
    item = {"image": str(tmp_path / "a.png"), "label": str(tmp_path / "m.png"), "diagnosis": 1}
    text = sentence_of(lambda: make_training_pipeline(64, augment=False, num_classes=2)(item))
    assert "96" in text
    assert "40" in text
    assert "m.png" in text


def test_datalist_with_a_wrong_key(small_data, tmp_path):
    content = json.loads(small_data.datalist_file.read_text(encoding="utf-8"))
    content["training"][0]["lable"] = "x.png"
    path = tmp_path / "wrong.json"
    path.write_text(json.dumps(content))
    text = sentence_of(lambda: runs.read_datalist(str(path), str(small_data.dataset_dir)))
    assert "lable" in text
    assert "label" in text.replace("lable", "")


def test_required_path_that_is_not_given():
    assert sentence_of(lambda: runs.read_datalist(None, ".")).startswith("datalist_file is required")


def test_wrong_layer_name_names_the_nearest(small_run):
    import torch

    network, _, _ = runs.load_run(small_run.run("ours"))
    image = torch.rand(1, 1, 64, 64) + 0.1
    text = sentence_of(lambda: cam_maps(network, image, "bottlenek", TumorLogOdds(), "gradcam", {"output": "cls"}))
    assert "bottlenek" in text
    assert "nearest: 'bottleneck'" in text


def test_run_that_was_not_trained(tmp_path, small_data):
    text = sentence_of(lambda: run_config("evaluate.yaml", run_dir=str(tmp_path), **small_data.paths))
    assert "holds no trained stage" in text


def test_weights_of_another_network(small_run):
    path = str(small_run.run("baseline") / "stage3_joint" / "model.pt")
    text = sentence_of(lambda: run_config("inference.yaml", input=__file__, weights=path))
    assert "does not fit MultiTaskDynUNet" in text


def test_demo_on_a_folder_without_images(tmp_path):
    assert "images" in sentence_of(lambda: demo(tmp_path / "out", tmp_path))
    assert not (tmp_path / "out").exists()


def test_stage_without_a_mask_in_the_training_part(small_data, tmp_path):
    content = json.loads(small_data.datalist_file.read_text(encoding="utf-8"))
    for item in content["training"]:
        item.pop("label", None)
        item.setdefault("diagnosis", 0)
    content["no_tumor_means_no_lesion"] = False
    path = tmp_path / "maskless.json"
    path.write_text(json.dumps(content))
    text = sentence_of(
        lambda: train(tmp_path / "run", ["configs/smoke.yaml"], dataset_dir=str(small_data.dataset_dir),
                      datalist_file=str(path))
    )  # fmt: skip
    assert "no item with a mask" in text
    assert not list((tmp_path / "run").rglob("model.pt"))


@pytest.mark.parametrize(
    "command",
    [
        [
            "-m",
            "scripts",
            "train",
            "--dataset_dir",
            "gone",
            "--datalist_file",
            "gone.json",
            "--run_dir",
            "runs/none",
        ],
        ["-m", "monai.bundle", "run", "--config_file", "configs/inference.yaml", "--input", "gone.jpg"],
    ],
)
def test_command_lines_end_with_the_sentence_alone(command):
    environment = {k: v for k, v in os.environ.items() if k != "TUMORLENS_TRACEBACK"}
    result = subprocess.run(
        [sys.executable, *command], cwd=ROOT, capture_output=True, text=True, encoding="utf-8", env=environment
    )
    assert result.returncode != 0
    assert result.stderr.strip().splitlines()[-1].startswith("error: ")
    assert "Traceback" not in result.stderr
