"""What the tests of volumes share."""

from __future__ import annotations

import pytest

from scripts.phantoms.sequences import write_pair


@pytest.fixture(scope="session")
def pairs(tmp_path_factory):
    """Three coarse phantom heads of four sequences, with and without their tumors; not to be changed."""
    folder = tmp_path_factory.mktemp("pairs")
    for k in range(3):
        write_pair(folder, [5, k], f"v{k:03d}", (8.0, 8.0, 8.0))
    return folder
