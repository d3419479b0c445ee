"""What the tests of data share; nothing of it is to be changed."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from scripts.phantoms.dataset import make_phantoms
from scripts.phantoms.sequences import write_pair
from tests.data.picture_folders import picture


@pytest.fixture(scope="session")
def pairs(tmp_path_factory):
    """Three coarse phantom heads of four sequences, with and without their tumors."""
    folder = tmp_path_factory.mktemp("pairs")
    for k in range(3):
        write_pair(folder, [5, k], f"v{k:03d}", (8.0, 8.0, 8.0))
    return folder


@pytest.fixture(scope="session")
def pool() -> list[Image.Image]:
    """Unlike drawn slices without tumor."""
    return [picture(index) for index in range(24)]


@pytest.fixture(scope="session")
def phantoms(tmp_path_factory) -> Path:
    """A set of ten patients with volumes and twelve single images."""
    path = tmp_path_factory.mktemp("datalists") / "set"
    make_phantoms(path, seed=1, patients=10, singles=12, progress=False)
    return path
