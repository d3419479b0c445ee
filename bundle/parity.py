"""What each consumer of the bundle feeds the network for the same file: it has to be the same, bit for bit."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from monai.bundle import ConfigParser
from torch import Tensor

from scripts.command.config_files import read_config
from scripts.data.preprocessing import collate
from scripts.inference.pipeline import slices_first

__all__ = ["LABEL_KEYS", "inference_input", "label_input", "service_probability", "training_input"]

# What MONAI Label puts into an item beside the image.
LABEL_KEYS = {"device": "cpu", "model": "brain_tumor_lens_segmentation", "result_extension": ".nii.gz"}
PREPARE = """
import json, sys
sys.path.insert(0, sys.argv[1])
import torch
from scripts.command.config_files import read_config
from scripts.inference.pipeline import slices_first
parser = read_config(json.loads(sys.argv[2]))
item = {"image": sys.argv[3], "image_path": sys.argv[3], **json.loads(sys.argv[4])}
for step in parser.get_parsed_content("preprocessing").transforms:
    item = step(item)
torch.save(slices_first(item["image"]).contiguous(), sys.argv[5])
"""


def parsed(files: Sequence[Path], root: Path) -> ConfigParser:
    """Config files merged, of a bundle in ``root``."""
    return read_config(files, {"bundle_root": str(root)})


def inference_input(files: Sequence[Path], root: Path, image: Path) -> tuple[Tensor, list[int] | None, str]:
    """Slices (S, C, X, Y) that ``inference.yaml`` makes of a file, which slices of a volume they are, and its plane."""
    item: dict[Any, Any] = {"image": str(image)}
    for step in parsed(files, root).get_parsed_content("preprocessing").transforms:
        item = step(item)
    scan = json.loads(item["image"].meta["scan"])
    places = [p["index"] for p in scan["placements"]] if scan["plane"] else None
    return slices_first(item["image"]), places, scan["plane"]


def training_input(
    train: Path, inference: Sequence[Path], root: Path, image: Path, places: Sequence[int] | None, plane: str
) -> Tensor:
    """The same of the validation pipeline in ``train.yaml``, with the input size of the inference, slice by slice."""
    parser = parsed([train], root)
    parser["spatial_size"] = parsed(inference, root).get_parsed_content("spatial_size")
    pipeline = parser.get_parsed_content("validate#preprocessing")
    items: list[dict[str, Any]] = [{"image": str(image), "diagnosis": 0}]
    if places is not None:
        items = [{**items[0], "slice": place, "plane": plane} for place in places]
    return torch.cat([collate([pipeline(item)])["image"] for item in items])


def label_input(python: Path, files: Sequence[Path], root: Path, image: Path) -> Tensor:
    """The same in the environment of MONAI Label, with the keys that it adds to an item.

    Raises:
        RuntimeError: when that process fails, with the end of what it wrote.
    """
    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder) / "input.pt"
        arguments = [str(root), json.dumps([str(f) for f in files]), str(image), json.dumps(LABEL_KEYS), str(result)]
        done = subprocess.run(
            [str(python), "-B", "-c", PREPARE, *arguments], capture_output=True, text=True, encoding="utf-8"
        )
        if done.returncode:
            raise RuntimeError(f"{python} failed: {done.stderr.strip()[-500:]}")
        return torch.load(result, weights_only=True)


def service_probability(predictor: Any, image: Path) -> float | None:
    """Tumor probability that the service answers with for a file; None where its packages are not installed."""
    installed = {name for name in ("fastapi", "httpx2", "httpx") if importlib.util.find_spec(name)}
    if "fastapi" not in installed or not installed & {"httpx2", "httpx"}:  # either serves the test client
        return None
    client_class: Callable[..., Any] = importlib.import_module("fastapi.testclient").TestClient
    create_app = importlib.import_module("bundle.service").create_app
    with client_class(create_app(predictor), base_url="http://127.0.0.1") as client:
        answer = client.post(
            "/predict_multitask", files={"image": (image.name, image.read_bytes())}, data={"arrays": "false"}
        )
    if answer.status_code != 200:
        raise RuntimeError(f"the service answers {answer.status_code}: {answer.text[:300]}")
    return float(answer.json()["tumor_probability"])
