"""The release: a self-contained MONAI bundle in a folder and a zip file, checked by MONAI's own commands.

::

    python -m scripts release --run_dir runs/mine   # weights and values of a run
    python -m scripts release                         # models/model.pt and the configs as they are
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from monai.bundle import ConfigParser

from bundle import model_card
from bundle.arguments import NAME
from bundle.config_values import set_values
from scripts.command.files import whole, whole_folder, write_json
from scripts.command.verbs import Outcome
from scripts.data.datalists.regions import own_values
from scripts.inference import scope
from scripts.runs import folder as runs
from scripts.runs.checkpoint_files import WEIGHTS, load_weights
from scripts.runs.prevalence import training_prevalence

logger = logging.getLogger(__name__)

ROOT = Path(__file__).resolve().parents[1]
# What belongs to the bundle; everything else of the checkout (tests, runs, data, benchmarks) does not.
# Overlays of experiments (configs/*/) are of the checkout too.
CONTENT = {
    "configs": ("*.yaml", "*.json", "*.conf"),
    "scripts": ("**/*.py", "**/*.j2", "**/*.pt"),
    "transforms": ("**/*.py",),
}
LEFT_OUT = {"configs/smoke.yaml"}  # of the tests
DOCS = ("README.md", "shipped_weights.md", "data_license.txt", "metadata.schema.json")
VALUES = ("spatial_size", "num_classes", "network_def", "classes", "training_prevalence")
OF_REGIONS = ("out_channels", "regions", "window")  # of a network, which follow from them
OF_VOLUMES = ("regions", "spacing_mm")  # null where they do not apply
# One time for all files, so that the same content gives the same zip file.
ZIP_TIME = (1980, 1, 1, 0, 0, 0)


@dataclass
class Weights:
    """Weights to release, the config values they need, and what is known about them.

    Attributes:
        path: a plain state dict.
        values: by id of ``inference.yaml``.
        data_source: a sentence on the training data; None: the shipped weights, which ``metadata.json`` and ``docs``
            describe.
        figures: from `bundle.model_card.evaluated`.
    """

    path: Path
    values: dict[str, Any] = field(default_factory=dict)
    data_source: str | None = None
    figures: dict[str, Any] = field(default_factory=dict)


def find_weights(run: Path | None, root: Path = ROOT) -> Weights:
    """Weights of a run's last stage, or those in ``models``.

    Raises:
        FileNotFoundError: when there are none.
    """
    if run is None:
        path = root / "models" / WEIGHTS
        if not path.is_file():
            raise FileNotFoundError(
                f"no weights to release: {path} does not exist; give the run that trained them, "
                "as in: make bundle RUN=runs/demo/ours"
            )
        shipped = yaml.safe_load((root / "configs" / "inference.yaml").read_text(encoding="utf-8"))
        return Weights(path, {key: shipped[key] for key in (*VALUES, *OF_VOLUMES)})
    folder = runs.last_stage(run)
    config = yaml.safe_load((folder / runs.CONFIG).read_text(encoding="utf-8"))
    overlay = run / "network.yaml"
    if overlay.is_file():
        classes = yaml.safe_load(overlay.read_text(encoding="utf-8"))["classes"]
    else:
        classes = runs.read_datalist(config["datalist_file"], config["dataset_dir"])["classes"]
    values = {key: config[key] for key in VALUES if key not in ("classes", "training_prevalence")}
    values |= {"classes": dict(classes), "training_prevalence": training_prevalence(folder)}
    values |= {key: config.get(key) for key in OF_VOLUMES}
    return Weights(folder / WEIGHTS, values, model_card.data_description(config), model_card.evaluated(run))


def content(root: Path) -> Iterator[Path]:
    """Files of the checkout that belong to the bundle, relative to ``root``, in order."""
    for folder, patterns in CONTENT.items():
        paths = {path for pattern in patterns for path in (root / folder).glob(pattern)}
        for path in sorted(paths):
            name = path.relative_to(root)
            if name.as_posix() not in LEFT_OUT and "__pycache__" not in name.parts:
                yield name
    yield Path("LICENSE")
    for doc in DOCS:
        if (root / "docs" / doc).is_file():
            yield Path("docs", doc)


def completed(definition: Mapping[str, Any], shipped: Mapping[str, Any]) -> dict[str, Any]:
    """A network's definition, where it is of a run from before there were regions and windows with these values too."""
    if "regions" in definition or definition.get("out_channels") != 2:
        return dict(definition)
    return {**definition, **{key: shipped["network_def"][key] for key in OF_REGIONS if key in shipped["network_def"]}}


def write_inference_config(folder: Path, weights: Weights) -> ConfigParser:
    """Write the values of the weights into ``configs/inference.yaml``, and what follows from them into metadata.json.

    MONAI Label takes its labels from there, as values in the mask: of several regions those that each is painted in.

    Returns:
        the parsed ``inference.yaml``.

    Raises:
        ValueError: when the weights do not fit the network.
    """
    inference, meta_file = (folder / "configs" / name for name in ("inference.yaml", "metadata.json"))
    text = inference.read_text(encoding="utf-8")
    values = {**weights.values, "network_def": completed(weights.values["network_def"], yaml.safe_load(text))}
    inference.write_text(set_values(text, values), encoding="utf-8")
    parser = ConfigParser()
    parser.read_config(str(inference))
    network = parser.get_parsed_content("network_def")
    load_weights(network, weights.path)
    strides: list[int] = network.total_stride
    meta = json.loads(meta_file.read_text(encoding="utf-8"))
    if weights.data_source is not None:
        meta["data_source"] = weights.data_source
        meta.pop("eval_metrics", None)
    if weights.figures:
        meta["eval_metrics"] = weights.figures
    image, pred = meta["network_data_format"]["inputs"]["image"], meta["network_data_format"]["outputs"]["pred"]
    for part in (image, pred):
        part["spatial_shape"] = [f"{stride}*n" for stride in strides]
        part["is_patch_data"] = bool(parser.get_parsed_content("spacing_mm"))
    channels, taken = parser.get_parsed_content("network_def#in_channels"), "slices"
    if len(strides) == 3:
        taken, meta["data_type"] = "volumes", "nifti, mha, nrrd, dicom"
        meta["task"] = meta["task"].replace("2D MRI slices", "3D MRI volumes")
    pictures = f"{'single' if channels == 1 else channels}-channel MR {taken}"
    meta["image_classes"] = meta["image_classes"].replace("single-channel MR slices", pictures)
    if image["num_channels"] != channels:
        image.update(num_channels=channels, channel_def={str(i): f"channel {i}" for i in range(channels)})
    if (regions := parser.get_parsed_content("regions")) and len(regions) > 1:
        named = {
            "0": "background",
            **{str(value): name for name, value in zip(regions, own_values(regions), strict=True)},
        }
        pred.update(num_channels=len(regions), channel_def=named)
        meta["pred_classes"] = f"{len(regions)} channels with a sigmoid each: {', '.join(regions)}"
        stated = "; ".join(f"{name} {', '.join(map(str, labels))}" for name, labels in regions.items())
        meta["label_classes"] = f"single channel, 0 is none; label values of the regions: {stated}"
    meta_file.write_text(json.dumps(meta, indent=4, ensure_ascii=False) + "\n", encoding="utf-8")
    return parser


def write_configs(folder: Path, weights: Weights) -> None:
    """Write the values of the weights into the released configs."""
    parser = write_inference_config(folder, weights)
    train = folder / "configs" / "train.yaml"
    # The number of classes follows from the datalist or, in MONAI Label, from the classes.
    config = {key: value for key, value in weights.values.items() if key not in ("num_classes", "training_prevalence")}
    config["network_def"] = completed(config["network_def"], yaml.safe_load(train.read_text(encoding="utf-8")))
    if config.get("regions") is None:  # those of the datalist, then
        config.pop("regions", None)
    train.write_text(set_values(train.read_text(encoding="utf-8"), config), encoding="utf-8")
    # monai.bundle.load reads JSON alone and builds the network from <workflow_type>.json.
    raw = yaml.safe_load((folder / "configs" / "inference.yaml").read_text(encoding="utf-8"))
    computed = [key for key in ("num_classes", *OF_REGIONS) if key in raw["network_def"]]
    values = {key: parser.get_parsed_content(f"network_def#{key}") for key in computed}
    definition = {**raw["network_def"], **values}
    write_json({"bundle_root": ".", "network_def": definition}, folder / "configs" / "infer.json")


def write_docs(folder: Path, weights: Weights) -> None:
    """Write data terms and a minimal model card: those of the checkout speak of the shipped weights alone."""
    meta = json.loads((folder / "configs" / "metadata.json").read_text(encoding="utf-8"))
    inference = yaml.safe_load((folder / "configs" / "inference.yaml").read_text(encoding="utf-8"))
    docs = folder / "docs"
    texts = {
        "data_license.txt": lambda: model_card.data_license(meta["data_source"]),
        "README.md": lambda: model_card.model_card(meta, inference, meta.get("eval_metrics", {})),
    }
    for name, text in texts.items():
        if weights.data_source is not None or not (docs / name).is_file():
            (docs / name).write_text(text(), encoding="utf-8")
    if weights.data_source is not None:
        (docs / "shipped_weights.md").unlink(missing_ok=True)


def write_zip(folder: Path, path: Path) -> None:
    """Pack a folder, under its own name, into a zip file; the same content gives the same bytes."""
    with whole(path) as place, zipfile.ZipFile(place, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in sorted(p for p in folder.rglob("*") if p.is_file()):
            info = zipfile.ZipInfo(f"{folder.name}/{file.relative_to(folder).as_posix()}", ZIP_TIME)
            info.compress_type, info.external_attr = zipfile.ZIP_DEFLATED, 0o644 << 16
            archive.writestr(info, file.read_bytes())


def verify(folder: Path) -> None:
    """Run `bundle.monai_checks` in a process of its own; its lines go to standard output.

    Raises:
        ValueError: when a check fails.
    """
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, "-B", str(Path(__file__).with_name("monai_checks.py")), str(folder)],
        capture_output=True, text=True, encoding="utf-8", env=environment,
    )  # fmt: skip
    lines = [line for line in done.stdout.splitlines() if line.startswith(("ok ", "FAILED"))]
    print("\n".join(lines))
    if done.returncode:
        failed = "; ".join(line for line in lines if line.startswith("FAILED")) or done.stderr.strip()[-500:]
        raise ValueError(f"the release does not pass its checks: {failed}")


def release(
    out: Path, run: Path | None = None, name: str = NAME, root: Path = ROOT, metadata: Mapping[str, Any] | None = None
) -> Path:
    """Build, check and pack the release.

    Args:
        out: gets ``<name>/`` and ``<name>.zip``; older ones are replaced once the new ones passed.
        run: run folder whose weights and values are released; None: ``models/model.pt``.
        name: of the folder. MONAI Label reads the task from it: it ends in ``_segmentation``.
        root: checkout.
        metadata: values that replace those of ``metadata.json``.

    Returns:
        the folder.

    Raises:
        FileNotFoundError: when there are no weights.
        ValueError: when the weights do not fit the configs, the name is unfit, or a check fails.
    """
    if not name.endswith("_segmentation") or "classification" in name or "detection" in name:
        raise ValueError(f"a release is named ..._segmentation, as MONAI Label reads the task from it; got {name!r}")
    weights = find_weights(run, root)
    with whole_folder(out / name) as partial:
        _fill(partial, root, weights, metadata)
    folder = out / name
    write_zip(folder, out / f"{name}.zip")
    return folder


def _fill(partial: Path, root: Path, weights: Weights, metadata: Mapping[str, Any] | None) -> None:
    for file in content(root):
        target = partial / file
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(root / file, target)
    (partial / "models").mkdir()
    shutil.copyfile(weights.path, partial / "models" / WEIGHTS)
    if (weights.path.parent / scope.FILE).is_file():
        shutil.copyfile(weights.path.parent / scope.FILE, partial / "models" / scope.FILE)
    path = partial / "configs" / "metadata.json"
    meta = {**json.loads(path.read_text(encoding="utf-8")), **(metadata or {})}
    if weights.data_source is not None:
        meta.pop("input_description", None)  # of the shipped weights alone
    write_json(meta, path)
    write_configs(partial, weights)
    write_docs(partial, weights)
    verify(partial)


def execute(arguments: argparse.Namespace) -> Outcome:
    """The verb ``release``."""
    folder = release(arguments.out, arguments.run_dir, arguments.name)
    archive = folder.with_suffix(".zip")
    return Outcome(f"{archive.name}: {archive.stat().st_size / 2**20:.1f} MB", [folder, archive])
