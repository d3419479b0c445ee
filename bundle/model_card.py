"""What a release says about itself: data terms and a minimal model card, from its metadata and its run alone."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from scripts.data.datalists import schema as datalists
from transforms.cropping import ACQUIRED

ROWS = (
    ("Dice over tumor cases", "segmentation", "dice"),
    ("Balanced accuracy", "classification", "balanced_accuracy"),
    ("ROC AUC of tumor against none", "classification", "roc_auc"),
)


def data_description(config: Mapping[str, Any]) -> str:
    """One sentence on the data that a stage was trained on, from the datalist that its config names.

    Raises:
        FileNotFoundError: when the datalist is not there any more.
    """
    path = Path(str(config["datalist_file"]))
    if not path.is_file():
        raise FileNotFoundError(
            f"the run was trained on {path}, which is not there: a release says what its weights were trained on"
        )
    datalist = datalists.read(str(path))
    rows = datalists.summary(datalist)
    sources = ", ".join(sorted({str(row["source"] or "unnamed") for row in rows}))
    counts = ", ".join(
        f"{sum(row['items'] for row in rows if row['split'] == part)} {part}" for part in datalists.SPLITS
    )
    text = f"datalist {datalist.get('name', 'unnamed')!r}, source {sources}; images: {counts}"
    return f"{text}. {datalist['description']}" if datalist.get("description") else text


def evaluated(run: Path) -> dict[str, Any]:
    """Figures of ``evaluation/metrics.json`` of a run, {} if it was not evaluated: value, interval and number."""
    path = run / "evaluation" / "metrics.json"
    if not path.is_file():
        return {}
    part, content = next(iter(json.loads(path.read_text(encoding="utf-8")).items()))
    metrics: dict[str, Any] = {}
    for _, group, name in ROWS:
        measured = content["overall"].get(group, {})
        value = measured.get(name)
        if isinstance(value, Mapping):
            entry = {"value": value.get("mean"), "ci95": value.get("ci95"), "n": value.get("n")}
        else:
            entry = {"value": value, "ci95": measured.get(f"{name}_ci95"), "n": measured.get("n")}
        if entry["value"] is not None:
            metrics[name] = {**entry, "part": part}
    return metrics


def data_license(description: str) -> str:
    """Text of ``docs/data_license.txt``."""
    return (
        "This bundle holds no images of patients.\n\n"
        f"Its weights were trained on: {description}\n\n"
        "The terms of those data are their publishers' and are not changed by this bundle; read them before using the\n"
        "weights. Images drawn by scripts.phantoms are under the license of the bundle (Apache-2.0, see LICENSE).\n"
    )


def model_card(meta: Mapping[str, Any], inference: Mapping[str, Any], figures: Mapping[str, Any]) -> str:
    """Text of ``docs/README.md``.

    Args:
        meta: content of ``metadata.json``.
        inference: content of ``inference.yaml``.
        figures: from `evaluated`.
    """
    rows = [
        f"| {title} | {_number(figures[name])} | {figures[name]['n']} {figures[name]['part']} images |"
        for title, _, name in ROWS
        if name in figures
    ]
    table = ["| measure | value [95 % interval] | on |", "|---|---|---|", *rows]
    classes = ", ".join(f"{number}: {name}" for number, name in inference["classes"].items())
    return "\n".join(
        [
            f"# {meta['name']}",
            "",
            meta["description"],
            "",
            f"Version {meta['version']}, {meta['license']}. {meta['authors']}.",
            "",
            "## Intended use",
            "",
            meta["intended_use"],
            "",
            "## Data",
            "",
            f"Trained on: {meta['data_source']} Terms: `data_license.txt`.",
            "",
            "## Input and output",
            "",
            f"Input: {meta['image_classes']}; {_grid(inference)}.",
            f"Output: {meta['pred_classes']}; classes {classes}; evidence of a tumor on the image's grid.",
            "",
            "## Performance",
            "",
            *(table if rows else ["Not evaluated. Evaluate it on your own data before any use."]),
            "",
            "## Commands",
            "",
            "From the folder of this bundle:",
            "",
            f"    python -m monai.bundle run --config_file configs/inference.yaml --input {_example(inference)}",
            "    python -m scripts train --dataset_dir DIR --datalist_file LIST.json --run_dir runs/mine",
            "",
            "In Python: `monai.bundle.load(name, bundle_dir=PARENT, workflow_type='infer')`, with this folder current.",
            "In MONAI Label: copy this folder into `model/` of the app `monaibundle`.",
            "",
            "## Limits",
            "",
            _taken(inference),
            "Results on scanners, sequences and patients unlike those of the training are not known.",
            "A map that lies in the tumor does not prove a right reason.",
            "",
        ]
    )


def _grid(inference: Mapping[str, Any]) -> str:
    size = " x ".join(map(str, inference["spatial_size"]))
    spacing = inference.get("spacing_mm")
    if not spacing:
        return f"resized to {size}"
    if spacing == ACQUIRED:
        return f"on the voxels that it has, in windows of {size}"
    sides = spacing if isinstance(spacing, list) else [spacing]
    return f"resampled to {' x '.join(f'{side:g}' for side in sides)} mm, in windows of {size}"


def _example(inference: Mapping[str, Any]) -> str:
    """What stands for an image in the example: a file a channel."""
    channels, whole = inference["network_def"]["in_channels"], len(inference["spatial_size"]) == 3
    if channels == 1:
        return "image.nii.gz" if whole else "image.jpg"
    return f'"[{",".join(repr(f"channel{k}.nii.gz") for k in range(channels))}]"'


def _taken(inference: Mapping[str, Any]) -> str:
    channels = inference["network_def"]["in_channels"]
    of = "one channel" if channels == 1 else f"{channels} channels, in the order of the training"
    return f"Volumes of {of}." if len(inference["spatial_size"]) == 3 else f"Slices of {of}, volumes slice by slice."


def _number(entry: Mapping[str, Any]) -> str:
    low, high = entry.get("ci95") or (None, None)  # of fewer than two patients there is no interval
    interval = "" if low is None or high is None else f" [{low:.3f}, {high:.3f}]"
    return f"{entry['value']:.3f}{interval}"
