"""A run folder without a training: random weights whose mask and probability are neither empty nor sure."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import yaml
from monai.bundle import ConfigParser

from scripts import phantoms
from scripts.data import datalists
from scripts.data.preprocessing import make_preprocessing
from tests.scans import NETWORK

CLASSES = {2: {"0": "no_tumor", "1": "tumor"}, 4: {"0": "no_tumor", "1": "glioma", "2": "meningioma", "3": "pituitary"}}


def make_pictures(folder: Path) -> Path:
    """Phantom pictures with a datalist ``list.json`` beside; the datalist."""
    phantoms.make_phantoms(folder, seed=5, patients=0, singles=12, progress=False)
    datalist, _ = datalists.image_folder(folder / "singles", name="made pictures", progress=False)
    datalists.write(datalist, folder / "list.json")
    return folder / "list.json"


def make_run(
    folder: Path, datalist_file: Path, size: int = 64, num_classes: int = 2, seed: int = 0, **network: Any
) -> Path:
    """Write ``config.yaml``, ``model.pt`` and ``network.yaml`` of a run; the run folder."""
    definition = {
        **NETWORK,
        "filters": [4, 8, 8],
        "normalization": "foreground",
        "head": "evidence",
        "evidence_levels": 2,
        "evidence_channels": 8,
        **network,
    }
    data = datalist_file.parent / "singles"
    config = {
        "dataset_dir": str(data),
        "datalist_file": str(datalist_file),
        "spatial_size": [size, size],
        "num_classes": num_classes,
        "network_def": definition,
    }
    torch.manual_seed(seed)
    built = ConfigParser(config).get_parsed_content("network_def").eval()
    _undecided(built, next((data / "images").rglob("*.png")), size)
    stage = folder / "stage3_joint"
    stage.mkdir(parents=True)
    torch.save(built.state_dict(), stage / "model.pt")
    (stage / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False), encoding="utf-8")
    overlay = {**config, "classes": CLASSES[num_classes], "weights": str(stage / "model.pt")}
    (folder / "network.yaml").write_text(yaml.safe_dump(overlay, sort_keys=False), encoding="utf-8")
    return folder


def _undecided(network: torch.nn.Module, picture: Path, size: int) -> None:
    """Shift the biases so that a third of the head is tumor and the probability of a tumor is a half."""
    image = make_preprocessing(size)({"image": str(picture)})["image"][None].as_tensor()
    with torch.no_grad():
        network.head.evidence.conv.weight.mul_(50)  # starts near "no evidence"
        output = network.multitask(image)
        margin = (output["seg"][:, 1] - output["seg"][:, 0])[image[:, 0] != 0]
        network.output_block.conv.conv.bias[1] -= margin.quantile(2 / 3)
        network.head.bias[0] += output["cls"][0, 1:].logsumexp(0) - output["cls"][0, 0]
