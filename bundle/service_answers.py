"""Answers of the service: numbers and words as JSON, arrays as files in base64."""

from __future__ import annotations

import base64
import gzip
import io
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch
from PIL import Image

from bundle.predictions import Heatmap, Prediction
from bundle.service_model import NOTICE
from scripts.dicom.writing import object_kind
from scripts.inference.postprocessing import shown_evidence
from scripts.pictures import overlays

__all__ = ["encode_array", "encode_heatmap", "encode_prediction"]


def encode_array(array: np.ndarray, affine: np.ndarray, picture: bool) -> dict[str, Any]:
    """An array as base64: PNG of a picture (uint8; a map in [0, 1] times 255), gzipped NIfTI of a volume."""
    if picture:
        pixels = array if array.dtype == np.uint8 else np.round(np.clip(array, 0, 1) * 255).astype(np.uint8)
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, format="PNG", pnginfo=overlays.marked())
        return {"format": "png", "data": base64.b64encode(buffer.getvalue()).decode()}
    image = nib.Nifti1Image(array, affine)
    image.header["descrip"] = overlays.MARK
    packed = gzip.compress(image.to_bytes(), compresslevel=1, mtime=0)
    return {"format": "nii.gz", "data": base64.b64encode(packed).decode()}


def encode_prediction(prediction: Prediction, name: str | None, arrays: bool) -> dict[str, Any]:
    """The answer of ``/predict_multitask``."""
    answer = {**prediction.to_json(), "source": Path(name or "image").name, "notice": NOTICE, "mask": None}
    answer["evidence"] = None
    if arrays:
        picture = prediction.mask.ndim == 2
        answer["mask"] = encode_array(prediction.mask, prediction.affine, picture)
        if prediction.evidence is not None:
            evidence = prediction.evidence
            if picture:  # 255 steps hold the scale of pictures, not log-odds without an end
                evidence = shown_evidence(torch.from_numpy(evidence)).numpy()
            answer["evidence"] = encode_array(evidence, prediction.affine, picture)
    answer["objects"] = {
        object_kind(path): base64.b64encode(path.read_bytes()).decode() for path in prediction.objects
    } or None
    return answer


def encode_heatmap(heatmap: Heatmap) -> dict[str, Any]:
    """The answer of ``/explain``."""
    return {
        "method": heatmap.method,
        "layer": heatmap.layer,
        "target": heatmap.target,
        "empty": heatmap.empty,
        "message": heatmap.message,
        "slices": heatmap.slices,
        "shape": list(heatmap.map.shape),
        "map": encode_array(heatmap.map, heatmap.affine, heatmap.map.ndim == 2),
        "notice": NOTICE,
    }
