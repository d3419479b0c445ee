"""Sample images for the checks, the page and MONAI Label, drawn by `scripts.phantoms`: no image of a person.

Which heads are drawn is chosen so that the shipped weights answer rightly, with a margin of 0.1 to the threshold
(`tests/bundle/test_samples.py`). Phantoms are unlike scans: a right answer on them says that the bundle works, not how
well it does on patients.
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

import nibabel as nib
import numpy as np
from PIL import Image

from scripts.phantoms import dataset as phantoms

PICTURE, HEALTHY = "phantom_tumor.png", "phantom_healthy.png"
VOLUME, HEALTHY_VOLUME = "phantom_volume.nii.gz", "phantom_healthy_volume.nii.gz"
# By file name: whether a tumor was drawn.
SAMPLES = {PICTURE: True, HEALTHY: False, VOLUME: True, HEALTHY_VOLUME: False}
# Random streams of the two heads, each drawn with and without a tumor.
_PICTURE_STREAM, _VOLUME_STREAM = [79, 0], [6, 1]
_MATRIX, _SLICES = (128, 148), 10
# Volumes to label in MONAI Label, and how many of them are labeled already.
VOLUMES, LABELED = 8, 3


def draw_samples(folder: Path) -> None:
    """Write `SAMPLES`: a head and a volume of ten slices, each with a tumor and without."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, tumor in SAMPLES.items():
        if name.endswith(".png"):
            image, _ = phantoms.phantom_slice(_PICTURE_STREAM, tumor)
            Image.fromarray(np.rint(image.T * 255).astype(np.uint8)).save(folder / name)
        else:
            phantoms.phantom_volume(_VOLUME_STREAM, tumor, _MATRIX, _SLICES).save(folder / name)


def draw_studies(folder: Path, seed: int = 0) -> None:
    """Write the folder of images that MONAI Label starts with: `SAMPLES`, and volumes of which some are labeled.

    Args:
        folder: gets the images, and labels in ``labels/final``.
        seed: of the volumes beside the samples.
    """
    labels = folder / "labels" / "final"
    labels.mkdir(parents=True)
    # PNG, not JPG: MONAI Label writes a result in its image's format, and a JPG would blur the mask.
    draw_samples(folder)
    with tempfile.TemporaryDirectory() as made:
        phantoms.make_phantoms(made, seed=seed, patients=VOLUMES, singles=0, progress=False)
        for image in sorted(Path(made, "patients").rglob("*_flair.nii.gz")):
            shutil.copyfile(image, folder / image.name)
            mask = image.with_name(image.name.replace("_flair", "_seg"))
            # Training validates on a part of the labeled ones, which must show a tumor.
            tumor = np.asarray(nib.load(mask).dataobj).any()  # type: ignore[attr-defined]
            if tumor and len(list(labels.iterdir())) < LABELED:
                shutil.copyfile(mask, labels / image.name)
