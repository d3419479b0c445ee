"""The hash of what an item shows: of its pixels and their arrangement, whatever file and name they come in."""

from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from scripts.data.content import content_sha256

PIXELS = np.arange(24, dtype=np.uint8).reshape(4, 6)  # rows


@pytest.fixture
def volume(tmp_path) -> str:
    """Four slices of pixels of their own, in LPS."""
    data = np.arange(3 * 5 * 4, dtype=np.float32).reshape(3, 5, 4)
    nib.save(nib.Nifti1Image(data, np.diag([-1.0, -1.0, 1.0, 1.0])), tmp_path / "v.nii.gz")
    return str(tmp_path / "v.nii.gz")


def test_equal_pixels_in_another_shape_are_other_content(tmp_path):
    for name, pixels in (("a", PIXELS), ("b", PIXELS.reshape(6, 4)), ("c", PIXELS[::-1]), ("d", PIXELS)):
        Image.fromarray(np.ascontiguousarray(pixels)).save(tmp_path / f"{name}.png")
    found = {name: content_sha256({"image": str(tmp_path / f"{name}.png")}) for name in "abcd"}
    assert found["a"] == found["d"]
    assert len(set(found.values())) == 3
    assert all(len(digest) == 64 for digest in found.values())


def test_a_volume_counts_whole_and_its_slices_each_by_plane(volume):
    whole = content_sha256({"image": volume})
    slices = {
        (plane, k): content_sha256({"image": volume, "slice": k, **({"plane": plane} if plane else {})})
        for plane, count in (("", 4), ("coronal", 5), ("sagittal", 3))
        for k in range(count)
    }
    assert len({whole, *slices.values()}) == 1 + 4 + 5 + 3
    assert content_sha256({"image": volume, "slice": 2, "plane": "axial"}) == slices["", 2]
    about = {"diagnosis": 1, "patient": "p", "label": "no_such_file.nii.gz"}
    assert content_sha256({"image": volume, "slice": 2, **about}) == slices["", 2], "what is shown counts alone"


def test_of_several_channels_the_first_counts_and_a_slice_is_that_of_a_picture(tmp_path, volume):
    assert content_sha256({"image": (volume, "no_such_file")}) == content_sha256({"image": volume})
    plane = nib.load(volume).get_fdata()[:, :, 1].astype(np.uint8)  # (X, Y)
    Image.fromarray(np.ascontiguousarray(plane.T)).save(tmp_path / "slice.png")
    assert content_sha256({"image": str(tmp_path / "slice.png")}) == content_sha256({"image": volume, "slice": 1})
    with pytest.raises(ValueError, match="gone"):
        content_sha256({"image": str(tmp_path / "gone.png")})
