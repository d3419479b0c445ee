"""Answers for the page: a stream of messages, each some JSON and the arrays that it names.

A message is the length of its JSON (4 bytes, little-endian), the JSON, and the content of its ``arrays``: NIfTI files
on the grid of the image, so that what is shown is what is downloaded. Arrays that are mostly 0 are gzipped.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Mapping
from typing import Any

import nibabel as nib
import numpy as np
import torch

from bundle.predictions import Heatmap, Prediction
from scripts.inference.postprocessing import shown_evidence
from scripts.inference.results import verdict_in_words
from scripts.pictures import overlays

__all__ = ["Gray", "heatmap_message", "message", "prediction_message"]


class Gray:
    """Gray values of an image as it was read.

    Args:
        array: (rows, columns) of a picture, (X, Y[, Z[, C]]) of a volume.
        affine: 4x4 of a volume; None: a picture.
        name: of the user's file.
        located: whether the file says where its voxels lie.
        dicom: whether it is DICOM, so that DICOM objects can refer to it.
    """

    def __init__(
        self, array: np.ndarray, affine: np.ndarray | None, name: str, located: bool, dicom: bool = False
    ) -> None:
        self.array, self.affine, self.name, self.located, self.dicom = array, affine, name, located, dicom

    @property
    def channels(self) -> int:
        """Volumes of a 4D file."""
        return self.array.shape[3] if self.array.ndim == 4 else 1

    def shown(self, channel: int | None) -> np.ndarray:
        """One volume of it."""
        return self.array[..., channel or 0] if self.array.ndim == 4 else self.array


def message(content: Mapping[str, Any], arrays: Mapping[str, tuple[bytes, bool]] | None = None) -> bytes:
    """One message of a stream.

    Args:
        content: JSON.
        arrays: by name: the file, and whether it is gzipped here.
    """
    packed = {
        name: gzip.compress(data, compresslevel=1, mtime=0) if zipped else data
        for name, (data, zipped) in (arrays or {}).items()
    }
    listed = [{"name": name, "bytes": len(data), "gzip": (arrays or {})[name][1]} for name, data in packed.items()]
    head = json.dumps({**content, "arrays": listed}).encode()
    return b"".join([len(head).to_bytes(4, "little"), head, *packed.values()])


def file_of(array: np.ndarray, affine: np.ndarray, picture: bool, unit: str = "") -> bytes:
    """An array on the image's grid as a NIfTI file; of a picture (columns, rows, 1), without a place in space.

    Args:
        array: (rows, columns) of a picture, or (X, Y[, Z]).
        affine: of a volume.
        picture: what it is of.
        unit: of a map, at most 15 letters.
    """
    array = array.T if picture else array
    array = array if array.ndim == 3 else array[:, :, None]
    image = nib.Nifti1Image(np.ascontiguousarray(array), None if picture else affine)
    if unit:
        image.header["intent_name"] = unit
        image.header["descrip"] = overlays.MARK
    return image.to_bytes()


def windows(values: np.ndarray) -> list[dict[str, Any]]:
    """Windows to begin with, by the percentiles of what is not air: MR values have no unit.

    Args:
        values: gray values.

    Returns:
        {name, low, high} each, the usual one first.
    """
    lowest, highest = float(values.min()), float(values.max())
    tissue = values[values > lowest + 0.05 * (float(np.percentile(values, 99.5)) - lowest)]
    if not tissue.size:
        return [{"name": "whole range", "low": lowest, "high": highest if highest > lowest else lowest + 1}]
    first, quarter, middle, most, all_ = (float(value) for value in np.percentile(tissue, [1, 25, 50, 99.5, 100]))
    presets = {
        "head": (min(first, lowest + 0.02 * (most - lowest)), most),
        "brain, more contrast": (quarter, most),
        "bright parts": (middle, all_),
        "whole range": (lowest, highest),
    }
    return [{"name": name, "low": low, "high": high} for name, (low, high) in presets.items() if high > low]


def prediction_message(prediction: Prediction, gray: Gray, channel: int | None, seconds: float) -> bytes:
    """The answer about an image, with its gray values, mask and evidence."""
    picture, affine = gray.affine is None, prediction.affine
    values = gray.shown(channel)
    words = verdict_in_words(prediction.to_json())
    arrays = {"image": (file_of(values.astype(np.float32), affine, picture), False)}
    for name, mask, evidence in (
        ("", prediction.mask, prediction.evidence),
        ("raw_", prediction.raw_mask, prediction.raw_evidence),
    ):
        arrays[f"{name}mask"] = (file_of((mask > 0).astype(np.uint8), affine, picture, "tumor"), True)
        if evidence is not None:
            shown = shown_evidence(torch.from_numpy(evidence)).numpy()
            arrays[f"{name}evidence"] = (file_of(shown, affine, picture, "evidence 0-1"), True)
    return message(
        {
            "stage": "done",
            "words": words[0].upper() + words[1:],
            "result": {**prediction.to_json(), "source": gray.name},
            "views": None if prediction.uncertainty is None else prediction.uncertainty.views,
            "picture": picture,
            "located": gray.located,
            "dicom": gray.dicom,
            "channels": gray.channels,
            "channel": channel,
            "windows": windows(values),
            "seconds": round(seconds, 3),
        },
        arrays,
    )


def heatmap_message(heatmap: Heatmap, gray: Gray) -> bytes:
    """A map of an image."""
    picture = gray.affine is None
    said = {key: getattr(heatmap, key) for key in ("method", "layer", "target", "empty", "slices")}
    said["message"] = heatmap.message[0].upper() + heatmap.message[1:]
    unit = "evidence 0-1" if heatmap.method == "evidence" else "share of max"
    array = file_of(heatmap.map.astype(np.float32), heatmap.affine, picture, unit)
    return message({"stage": "done", **said}, {"map": (array, True)})
