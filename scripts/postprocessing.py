"""From the network's outputs back to the original image: mask, evidence, and the verdict in words and numbers."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

import torch
from monai.data import MetaTensor
from monai.transforms import Invertd, Transform

from scripts.explain.maps import upsample


def like_image(value: torch.Tensor, image: MetaTensor) -> MetaTensor:
    """``value`` with the metadata and applied operations of the preprocessed image, so that it can be inverted."""
    return MetaTensor(value, meta=dict(image.meta), applied_operations=list(image.applied_operations))


class SplitOutputsd(Transform):
    """Takes the inferer's dictionary apart: "pred" and "evidence" as images, the verdict under "result".

    After it, "pred" is (2, H, W[, D]) probabilities and "evidence" (1, H, W[, D]), non-negative, on the network's grid
    with the image's metadata; "result" is a dictionary of plain numbers: ``tumor_probability``, ``threshold``,
    ``tumor_detected`` and ``class_probabilities`` by name.

    Args:
        classes: class names by index, class 0 "no tumor"; without them the classes are called by number.
        image_key: the preprocessed image.
    """

    def __init__(self, classes: Mapping[str, str] | None = None, image_key: str = "image"):
        self.classes, self.image_key = dict(classes or {}), image_key

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Split one item, whose "pred" is the inferer's dictionary without the batch axis."""
        result = dict(data)
        image, output = result[self.image_key], result["pred"]
        probability = [float(p) for p in output["probability"]]
        tumor, threshold = 1.0 - probability[0], float(output["threshold"])
        names = [self.classes.get(str(i), f"class {i}") for i in range(len(probability))]
        result["result"] = {
            "tumor_probability": tumor,
            "threshold": threshold,
            "tumor_detected": tumor >= threshold,
            "class_probabilities": dict(zip(names, probability, strict=True)),
        }
        result["pred"] = like_image(output["seg"], image)
        if "evidence" in output:
            evidence = upsample(output["evidence"][None].float().clamp(min=0), image.shape[1:])
            result["evidence"] = like_image(evidence[0], image)
        return result


def to_original_grid(value: torch.Tensor, image: MetaTensor, preprocessing: Any, nearest: bool = False) -> MetaTensor:
    """Undo the preprocessing's geometry for an array on the network's grid; 0 outside the crop.

    Args:
        value: (C, H, W[, D]) on the grid of ``image``.
        image: the preprocessed image with its applied operations.
        preprocessing: the pipeline that made ``image``.
        nearest: interpolate by nearest neighbor (labels) instead of linearly.
    """
    invert = Invertd(
        keys="value", transform=preprocessing, orig_keys="image", nearest_interp=nearest, to_tensor=True, device="cpu"
    )
    return invert({"image": image, "value": like_image(value, image)})["value"]
