"""Prediction with the tumor removed from one image, as the certificate removes it, and with its control.

The predicted tumor is painted over with healthy tissue by an infill that no training saw, and the image is predicted
again. The control paints over healthy tissue of the same shape elsewhere, and leaves the tumor. Volumes are painted
slice by slice, in the plane in which they are read.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import nibabel as nib
import numpy as np

from bundle.predictor import Prediction, Predictor
from scripts.interventions.infills import HELD_OUT_INFILLS
from scripts.interventions.interventions import remove
from transforms.foreground import foreground_mask

__all__ = ["Removal", "painted", "removal"]

INFILL = HELD_OUT_INFILLS[0]
SEED = 0
# The world's axis across each plane.
ACROSS = {"sagittal": 0, "coronal": 1, "axial": 2}


@dataclass(frozen=True)
class Removal:
    """A changed image and its prediction.

    Attributes:
        image: gray values on the image's grid.
        prediction: of them; None where nothing could be painted.
        changed: slices that were painted, 1 of a picture.
        left: reason to the number of slices that were left as they were.
    """

    image: np.ndarray
    prediction: Prediction | None
    changed: int
    left: dict[str, int]


def slices_of(prediction: Prediction, array: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Slices (N, rows, columns) of an image and of its mask; N is 1 for a picture."""
    if array.ndim == 2:
        return array[None], (prediction.raw_mask > 0)[None]
    axes = nib.orientations.io_orientation(prediction.affine)[:, 0]
    across = int(np.flatnonzero(axes == ACROSS[prediction.plane or "axial"])[0])
    return np.moveaxis(array, across, 0), np.moveaxis(prediction.raw_mask > 0, across, 0)


def painted(prediction: Prediction, array: np.ndarray, control: bool) -> tuple[np.ndarray, int, dict[str, int]]:
    """The image without its predicted tumor, or the control; slices changed, and why others were not.

    Args:
        prediction: of the image.
        array: float32 (rows, columns) or (X, Y, Z).
        control: paint healthy tissue instead.
    """
    changed = np.array(array, np.float32)
    stack, masks = slices_of(prediction, changed)
    count, left = 0, dict[str, int]()
    for plane, mask in zip(stack, masks, strict=True):
        if not mask.any():
            continue
        try:
            head = foreground_mask(plane)
            image = np.ascontiguousarray(plane, np.float32)[None]
            rng = np.random.default_rng(SEED)
            outcome = remove(image, np.ascontiguousarray(mask), head, rng, INFILL, control=control)
        except ValueError as error:  # no head, or no room
            left[str(error)] = left.get(str(error), 0) + 1
            continue
        plane[...] = outcome.image[0]
        count += 1
    return changed, count, left


def removal(
    predictor: Predictor,
    prediction: Prediction,
    array: np.ndarray,
    affine: np.ndarray | None,
    name: str,
    control: bool,
    progress: Callable[[int, int], None] | None = None,
) -> Removal:
    """Remove the tumor and predict again.

    Args:
        predictor: the bundle.
        prediction: of the image as it is.
        array: gray values of one channel, (rows, columns) of a picture, or (X, Y, Z) with an affine.
        affine: of a volume.
        name: what errors call the image.
        control: paint healthy tissue instead of the tumor.
        progress: called with the slices predicted.

    Raises:
        ValueError: when nothing was predicted to be a tumor.
    """
    if not prediction.raw_mask.any():
        raise ValueError(f"{name}: no tumor was outlined, so there is none to paint over")
    image, changed, left = painted(prediction, array, control)
    if not changed:
        return Removal(image, None, 0, left)
    answer = predictor.predict(image, affine, assess_anyway=True, name=name, progress=progress)
    return Removal(image, answer, changed, left)
