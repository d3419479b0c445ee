"""Drawn pictures, alone and in folders by class."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from scripts.phantoms.dataset import phantom_slice


def picture(index: int, size: int = 96, tumor: bool = False) -> Image.Image:
    image, _ = phantom_slice([77, index], tumor, (size, size), level_mm=-20 + 17 * (index % 5))
    return Image.fromarray(np.rint(image.T * 255).astype(np.uint8))


def fill(folder: Path, classes: dict[str, list[Image.Image]]) -> Path:
    for name, images in classes.items():
        (folder / "images" / name).mkdir(parents=True)
        for k, image in enumerate(images):
            image.save(folder / "images" / name / f"{name}{k:02d}.png")
    return folder


def gray(index: int, tumor: bool = True) -> tuple[np.ndarray, np.ndarray]:
    """A phantom slice of 96 x 96 pixels as rows and columns, uint8, and its mask."""
    image, mask = phantom_slice([83, index], tumor, (96, 96), level_mm=-20 + 17 * (index % 5))
    return np.rint(image.T * 255).astype(np.uint8), np.asarray(mask).T.reshape(96, 96) > 0


def draw(pixels: np.ndarray, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return path
