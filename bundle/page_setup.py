"""What the page is built from: the loaded bundle, what it takes, the maps that it can make, samples, colors."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from bundle.predictor import Predictor
from bundle.samples import PICTURE, SAMPLES, draw_samples
from bundle.service_model import describe_model
from bundle.uploads import KINDS, UploadLimits
from scripts.explain.gradients import INPUT
from scripts.explain.methods import METHODS, SLOW
from scripts.measures.prevalence import in_words
from scripts.pictures.overlays import PREDICTED_COLOR, colorize

__all__ = ["choices", "drawn_samples", "layers_for", "page_setup"]

# The method for a layer of one's choice, by the table of docs/explanation.md: the one that is right at each of them.
RECOMMENDED = "lrp_places"
# Below this share of the scale a map is transparent at first.
FAINT = 0.02


@cache
def drawn_samples() -> dict[str, bytes]:
    """Phantoms drawn by a program, by name."""
    with tempfile.TemporaryDirectory() as folder:
        draw_samples(Path(folder))
        return {name: Path(folder, name).read_bytes() for name in SAMPLES}


def page_setup(predictor: Predictor, metadata: Mapping[str, Any], limits: UploadLimits) -> dict[str, Any]:
    """Everything that the page shows before it is given an image.

    Args:
        predictor: the loaded bundle.
        metadata: of the bundle.
        limits: of uploads.
    """
    model = describe_model(predictor, metadata)
    targets = ["tumor", *predictor.classes[1:], "segmentation"]
    return {
        "model": model,
        "takes": input_in_words(predictor, metadata),
        "kinds": KINDS,
        "limits": {
            "bytes": limits.bytes, "voxels": limits.read.voxels, "pixels": limits.read.pixels, "side": limits.read.side
        },
        "prevalence": None if predictor.prevalence is None else in_words(predictor.prevalence),
        "recommended": RECOMMENDED,
        "maps": {target: _maps(model, target, predictor.network.has_evidence) for target in targets},
        "samples": list(SAMPLES),
        "example": PICTURE,
        "colors": colorize(np.linspace(0, 1, 256)).tolist(),
        "mask_color": list(PREDICTED_COLOR),
        "faint": FAINT,
    }  # fmt: skip


def input_in_words(predictor: Predictor, metadata: Mapping[str, Any]) -> str:
    """What the network takes: of the bundle's own weights the words of its metadata."""
    bundled = predictor.weights.resolve() == (predictor.bundle_root / "models" / "model.pt").resolve()
    if bundled and metadata.get("input_description"):
        return str(metadata["input_description"])
    return "MR images of heads like those of its training: the same sequence, the same kind of patients."


def _maps(model: Mapping[str, Any], target: str, has_evidence: bool) -> list[dict[str, Any]]:
    """The methods that can explain a target, each with its layers, the usual one, and a remark."""
    methods, layers, usual = choices(model, target, has_evidence)
    entries = []
    for method in methods:
        offered, remark = layers_for(method, layers, usual)
        entries.append(
            {"method": method, "layers": offered, "usual": usual, "remark": remark, "one_slice": method in SLOW}
        )
    return entries


def layers_for(method: str, layers: Sequence[str], usual: str) -> tuple[list[str], str]:
    """Layers at which a method has a map, none for one that explains no layer; and what to say about it.

    Grad-CAM with the exact gradient is offered at the one layer that a linear map follows: in front of a normalization
    its gradients cancel (docs/decisions/0002-plain-grad-cam-behind-instance-norm.md).
    """
    if METHODS[method] != "layer":
        return [], ""
    if method == "gradcam":
        return [usual], (
            f"Grad-CAM with exact gradients is offered at {usual} alone: in front of a normalization they cancel over "
            "space. Other methods explain other layers, lrp_places all of them."
        )
    if method == "lrp":
        return [*layers, INPUT], "Relevance: the parts of the score, in the layer's own cells."
    if method == RECOMMENDED:
        return [*layers, INPUT], (
            "Relevance in places of 2 pixels, whatever the layer's cells: the method recommended for a layer of your "
            "choice, as at each of them it lies on tumors."
        )
    return list(layers), ""


def choices(model: Mapping[str, Any], target: str, has_evidence: bool) -> tuple[list[str], list[str], str]:
    """Methods and layers that can explain a target, and the layer to begin with.

    Args:
        model: of `bundle.service_model.describe_model`.
        target: "segmentation", or one of the classifier's.
        has_evidence: whether the network has a map of its own.
    """
    dense = target == "segmentation"
    methods = [m for m in model["methods"] if m != "evidence" or (has_evidence and not dense)]
    apart = "head." if dense else "upsamples."  # what the other output alone is made of
    layers = [layer for layer in model["layers"] if not layer.startswith(apart)]
    return methods, layers, layers[-1] if dense else model["default_layer"]
