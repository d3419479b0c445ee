"""The loaded bundle in words and numbers, the same for service and page."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bundle.predictor import Predictor
from scripts.explain.methods import METHODS

NOTICE = "For research on imaging. Not a medical device, not for diagnosis, triage or treatment."


def read_metadata(bundle_root: Path) -> dict[str, Any]:
    """``configs/metadata.json`` of a bundle."""
    return json.loads((bundle_root / "configs" / "metadata.json").read_text(encoding="utf-8"))


def describe_model(predictor: Predictor, metadata: Mapping[str, Any]) -> dict[str, Any]:
    """What is loaded, as service and page tell it: classes, thresholds, input, layers, intended use."""
    network = predictor.network
    return {
        "name": metadata["name"],
        "version": str(metadata["version"]),
        "task": metadata["task"],
        "intended_use": metadata.get("intended_use", NOTICE),
        "classes": predictor.classes,
        "threshold": float(network.threshold),
        "temperature": float(network.temperature),
        "mask_thresholds": predictor.mask_thresholds,
        "prevalence": predictor.prevalence,
        "backend": predictor.backend,
        "input_size_pixels": list(predictor.spatial_size),
        "input_channels": int(network.in_channels),
        "parameters": sum(parameter.numel() for parameter in network.parameters()),
        "methods": list(METHODS),
        "default_layer": network.default_cam_layer,
        "layers": ["input_block", *(f"downsamples.{i}" for i in range(len(network.downsamples))), "bottleneck"]
        + [f"upsamples.{i}" for i in range(len(network.upsamples))]
        + (["head.features"] if network.has_evidence else []),
        "notice": NOTICE,
    }
