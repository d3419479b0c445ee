"""What the page shows and hands out, as plain functions: volumes for the viewer, pictures, the verdict in words."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from typing import Any

import nibabel as nib
import numpy as np
from PIL import Image
from scipy.ndimage import binary_erosion, generate_binary_structure

from bundle.predictor import Explanation, Prediction
from scripts.explain.gradients import INPUT
from scripts.explain.methods import METHODS
from scripts.inference.results import verdict_in_words
from scripts.pictures import overlays

# Below this a heatmap is transparent: 2 % of the scale.
FAINT = 0.02
# The world's axis across each plane.
ACROSS = {"sagittal": 0, "coronal": 1, "axial": 2}


def verdict(prediction: Prediction) -> str:
    """The answer in one sentence, with probability and threshold."""
    numbers = f"tumor probability {prediction.probability:.1%}, threshold {prediction.threshold:.1%}"
    words = verdict_in_words(prediction.to_json())
    return f"{words[0].upper()}{words[1:]} ({numbers})"


def caption(explanation: Explanation) -> str:
    """What is drawn over the image, in one or two sentences."""
    where = "" if explanation.layer in ("", explanation.method) else f" at {explanation.layer}"
    message = explanation.message[0].upper() + explanation.message[1:]
    target = explanation.target.replace("_", " ")
    return f"Heatmap: {explanation.method.replace('_', ' ')}{where}, target: {target}. {message}."


def as_nifti(array: np.ndarray, affine: np.ndarray, low: float, high: float) -> bytes:
    """An array as an uncompressed NIfTI file whose header fixes the range shown.

    Without it the viewer stretches every map to its own extremes, and noise looks like a finding.

    Args:
        array: (rows, columns) of a picture, or (X, Y, Z).
        affine: of a volume; a picture is laid out upright.
        low, high: values shown as nothing and as the strongest color; both 0: the viewer chooses (for images).
    """
    if array.ndim == 2:
        array, affine = picture_volume(array)
    image = nib.Nifti1Image(np.ascontiguousarray(array), affine)
    image.header["cal_min"], image.header["cal_max"] = low, high
    if high > low:  # a map or a mask of ours, not the image
        image.header["descrip"] = overlays.MARK
    return image.to_bytes()


def picture_volume(array: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A picture (rows, columns) as a volume of one slice, columns to the right and rows downward on the screen."""
    return array.T[:, ::-1, None], np.eye(4)


def layers(
    prediction: Prediction, heatmap: np.ndarray | None, mask_opacity: float, heat_opacity: float
) -> list[dict[str, Any]]:
    """Overlays for the viewer: heatmap below, outline of the mask above, which leaves the heatmap its colors.

    Args:
        prediction: of the image.
        heatmap: float32 in [0, 1] on the image's grid, or None.
        mask_opacity, heat_opacity: 0 to 1; a layer of opacity 0 is left out.
    """
    found: list[dict[str, Any]] = []
    if heatmap is not None and heat_opacity > 0:
        data = as_nifti(heatmap.astype(np.float32), prediction.affine, FAINT, 1.0)
        found.append({"name": "heatmap.nii", "data": data, "colormap": "inferno", "opacity": heat_opacity})
    if mask_opacity > 0 and prediction.mask.any():
        data = as_nifti(outline(prediction).astype(np.float32), prediction.affine, 0.5, 1.0)
        found.append({"name": "mask.nii", "data": data, "colormap": "blue2cyan", "opacity": mask_opacity})
    return found


def outline(prediction: Prediction) -> np.ndarray:
    """Pixels of the mask that touch others in its slice, bool on the mask's grid."""
    mask = prediction.mask > 0
    across = ACROSS.get(prediction.plane or "")
    axes = nib.orientations.io_orientation(prediction.affine)[: mask.ndim, 0]
    cross = generate_binary_structure(mask.ndim, 1)
    for axis in range(mask.ndim):
        if across is not None and axes[axis] == across:
            cross &= np.indices(cross.shape)[axis] == 1
    return mask & ~binary_erosion(mask, cross)


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
            "space. Other methods explain other layers."
        )
    if method == "lrp":
        return [*layers, INPUT], "Relevance: the parts of the score. At inner layers it lies best on tumors."
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


def shown_slice(prediction: Prediction) -> int:
    """Of a volume's third axis: the slice with most of the mask, else the middle one."""
    per_slice = prediction.mask.reshape(-1, prediction.mask.shape[-1]).sum(axis=0)
    return int(per_slice.argmax()) if per_slice.any() else prediction.mask.shape[-1] // 2


def overlay_png(image: np.ndarray, prediction: Prediction, heatmap: np.ndarray | None) -> bytes:
    """Image, heatmap and predicted mask as one PNG; of a volume the slice of `shown_slice`, as stored.

    Args:
        image: gray values on the prediction's grid, (rows, columns) or (X, Y, Z).
        prediction: of the image.
        heatmap: float32 in [0, 1] on the grid, or None for none.
    """
    mask = (prediction.mask > 0).astype(np.uint8)
    heat = np.zeros(mask.shape, np.float32) if heatmap is None else heatmap
    if mask.ndim == 2:
        planes = [np.asarray(part).T for part in (image, heat, mask)]
    else:
        number = shown_slice(prediction)
        planes = [np.asarray(part)[..., number] for part in (image, heat, mask)]
    plane = planes[0].astype(np.float32)
    plane = plane - plane.min()
    if not plane.any():
        plane = plane + 1
    picture = overlays.overlay(plane[None], planes[1][None], predicted=planes[2][None])
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, format="PNG", pnginfo=overlays.marked())
    return buffer.getvalue()


def result_json(prediction: Prediction, explanation: Explanation | None, source: str, model: Mapping[str, Any]) -> str:
    """Everything but the arrays, for the download."""
    answer = {**prediction.to_json(), "source": source, "model": dict(model)}
    if explanation is not None:
        answer["explanation"] = {
            "method": explanation.method,
            "layer": explanation.layer,
            "target": explanation.target,
            "empty": explanation.empty,
            "message": explanation.message,
        }
    return json.dumps(answer, indent=2)
