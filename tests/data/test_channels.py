"""Channels of a file of several are written as volumes of their own, with values, grid and masks as they are."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from scripts.data.datalists.channels import planned, write_channels
from scripts.data.datalists.slices import Case

AFFINE = np.diag([1.0, 2.0, 3.0, 1.0])


def stacked(folder: Path, data: np.ndarray, masks: bool = True) -> Case:
    (folder / "imagesTr").mkdir(parents=True)
    nib.save(nib.Nifti1Image(data, AFFINE), folder / "imagesTr" / "B_001.nii.gz")
    for name in ("seg.nii.gz", "brain.nii.gz") if masks else ():
        (folder / name).write_bytes(name.encode())
    label, brain = (folder / "seg.nii.gz", folder / "brain.nii.gz") if masks else (None, None)
    return Case("p", [folder / "imagesTr" / "B_001.nii.gz"], label, brain, 0, stacked=True)


def values(whole: bool = True) -> np.ndarray:
    data = np.random.default_rng(0).integers(-9, 99, (4, 5, 6, 3)).astype(np.float32)
    return data if whole else data + 0.5


def test_channels_have_the_values_and_the_grid_and_masks_are_copied(tmp_path):
    case = stacked(tmp_path / "in", values())
    written = planned(case, tmp_path / "in", tmp_path / "out", ["FLAIR", "T2"])
    assert written.images == [tmp_path / "out" / "imagesTr" / f"B_001_{name}.nii.gz" for name in ("FLAIR", "T2")]
    assert (written.label, written.foreground) == (tmp_path / "out/seg.nii.gz", tmp_path / "out/brain.nii.gz")
    assert (written.stacked, written.patient, written.diagnosis) == (False, "p", 0)
    write_channels(case, written, [0, 2], 3)
    for number, path in zip((0, 2), written.images, strict=True):
        image = nib.load(path)
        assert np.array_equal(image.get_fdata(), values()[..., number])
        assert np.array_equal(image.affine, AFFINE)
        assert image.get_data_dtype() == np.int16
    assert written.label.read_bytes() == b"seg.nii.gz"
    assert written.foreground.read_bytes() == b"brain.nii.gz"


@pytest.mark.parametrize(
    ("value", "kind"),
    [(32767, np.int16), (32768, np.float32), (-32768, np.int16), (-32769, np.float32), (0.5, np.float32)],
)
def test_numbers_beyond_16_bits_and_fractions_stay_what_they_are(tmp_path, value, kind):
    data = values()
    data[0, 0, 0, 1] = value
    case = stacked(tmp_path / "in", data, masks=False)
    written = planned(case, tmp_path / "in", tmp_path / "out", ["T1"])
    assert (written.label, written.foreground) == (None, None)
    write_channels(case, written, [1], 3)
    image = nib.load(written.images[0])
    assert image.get_data_dtype() == kind
    assert np.array_equal(image.get_fdata(), data[..., 1])


@pytest.mark.parametrize(("shape", "total"), [((4, 5, 6, 3), 4), ((4, 5, 6), 3)])
def test_a_file_of_other_channels_is_refused(tmp_path, shape, total):
    case = stacked(tmp_path / "in", np.zeros(shape, np.float32), masks=False)
    written = planned(case, tmp_path / "in", tmp_path / "out", ["T1"])
    with pytest.raises(ValueError, match=f"expected 4 dimensions, the last of {total} channels"):
        write_channels(case, written, [0], total)
    assert not (tmp_path / "out").exists()
