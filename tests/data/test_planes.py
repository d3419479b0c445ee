"""The plane that an item or its file's name says."""

from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from scripts.data.planes import is_flat, plane_of


@pytest.mark.parametrize(
    ("name", "plane"),
    [
        ("brisc2025_train_00011_gl_ax_t1.jpg", "axial"),
        ("brisc2025_train_00450_gl_co_t1.jpg", "coronal"),
        ("brisc2025_train_00450_gl_sa_t1.jpg", "sagittal"),
        ("p1-Sagittal-007.png", "sagittal"),
        ("T1_TRA_SE.png", "axial"),
        ("cor12.png", "coronal"),
        ("Tr-me_0012.jpg", ""),
        ("co_001.png", ""),
        ("p_co_001.png", "coronal"),
        ("max.jpg", ""),
        ("ax_and_cor.png", ""),
        ("axial/001.jpg", ""),
    ],
)
def test_of_a_picture_the_name_of_its_file_says_it(name, plane):
    assert plane_of({"image": f"images/{name}"}) == plane


def test_of_a_slice_its_plane_holds_whatever_the_name_says():
    item = {"image": "cor_t1.nii.gz", "slice": 3}
    assert plane_of(item) == "axial"
    assert plane_of({**item, "plane": "sagittal"}) == "sagittal"


def test_of_several_files_the_first_says_it():
    assert plane_of({"image": ["a_sag_flair.png", "a_sag_t1.png"]}) == "sagittal"


def test_a_picture_whose_datalist_states_the_plane_has_that():
    assert plane_of({"image": "p_sag.png", "plane": "coronal"}) == "coronal"


def test_a_picture_and_a_slice_are_flat_and_a_volume_is_not(tmp_path):
    picture, volume = tmp_path / "a.png", tmp_path / "a.nii.gz"
    Image.fromarray(np.zeros((4, 4), np.uint8)).save(picture)
    nib.Nifti1Image(np.zeros((4, 4, 4), np.float32), np.eye(4)).to_filename(volume)
    assert is_flat({"image": picture})
    assert is_flat({"image": [picture, picture]})
    assert is_flat({"image": volume, "slice": 0})
    assert not is_flat({"image": volume})
    assert not is_flat({"image": [volume, volume]})
