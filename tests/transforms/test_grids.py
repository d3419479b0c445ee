"""Equal grids: one rule in mm, alike in every orientation and in every place that compares two files."""

from __future__ import annotations

import itertools
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from scripts.data import datalists
from scripts.inference.scans import PrepareScand
from tests.transforms.images import disc, head
from transforms.grids import grid_gap_mm, off_grid, orient, tolerance_mm
from transforms.loading import LoadCased

SHAPE = (48, 40, 16)
LPS = np.diag([-1.0, -1, 3, 1])
CODES = ["".join(code) for axes in (("LR", "AP", "SI"), ("SI", "LR", "AP"), ("AP", "SI", "LR"))
         for code in itertools.product(*axes)]  # fmt: skip


def rotated(degrees: float) -> np.ndarray:
    """Rotation about the patient's long axis."""
    angle, turn = np.deg2rad(degrees), np.eye(4)
    turn[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    return turn


def shifted(mm: float) -> np.ndarray:
    shift = np.eye(4)
    shift[0, 3] = mm
    return shift


def save(path: Path, array: np.ndarray, affine: np.ndarray, codes: str = "LPS") -> str:
    """Write a volume, given in LPS, in another orientation."""
    turned, own = orient(array, affine, codes)
    nib.save(nib.Nifti1Image(np.ascontiguousarray(turned), own), path)
    return str(path)


def spot(shape=SHAPE) -> np.ndarray:
    return disc(shape, 5, (20, 18, 8)).astype(np.uint8)


def test_the_gap_is_the_farthest_corner_and_the_tolerance_a_tenth_of_the_smallest_voxel():
    assert grid_gap_mm((11, 5, 5), np.eye(4), np.diag([1.01, 1, 1, 1])) == pytest.approx(0.1)
    assert grid_gap_mm((101, 5, 5), np.eye(4), rotated(1)) == pytest.approx(
        2 * np.sin(np.deg2rad(0.5)) * np.hypot(100, 4)
    )
    assert tolerance_mm(np.diag([-0.5, 1, 6, 1])) == pytest.approx(0.05)
    assert off_grid((9, 9, 9), np.eye(4), shifted(0.1 - 1e-9)) == ""
    assert off_grid((9, 9, 9), np.eye(4), shifted(2.5)).startswith(
        "their corners lie up to 2.5 mm apart, at most 0.1 mm"
    )


@pytest.mark.parametrize("codes", CODES)
def test_what_is_taken_as_rounding_is_the_same_in_every_orientation(tmp_path, codes):
    image = save(tmp_path / "i.nii", head(SHAPE, 16)[0].astype(np.float32), LPS, codes)
    load = LoadCased(spatial_dims=3)
    near = save(tmp_path / "near.nii", spot(), shifted(0.09) @ LPS, codes)
    assert int(load({"image": image, "label": near})["label"].sum()) == int(spot().sum())
    for name, affine, mm in (
        ("moved", shifted(0.11) @ LPS, "0.11 mm"),
        ("turned", rotated(0.5) @ LPS, "0.533 mm"),  # 61.1 mm from the first voxel to the farthest
        ("longer", LPS @ np.diag([1.01, 1, 1, 1]), "0.47 mm"),
    ):
        label = save(tmp_path / f"{name}.nii", spot(), affine, codes)
        with pytest.raises(ValueError, match=f"{name}.nii .* corners lie up to {mm} apart"):
            load({"image": image, "label": label})


def test_a_mask_may_be_stored_in_any_orientation_of_the_grid(tmp_path):
    image = save(tmp_path / "i.nii", head(SHAPE, 16)[0].astype(np.float32), LPS)
    for codes in CODES[::5]:
        label = save(tmp_path / "l.nii", spot(), LPS, codes)
        loaded = LoadCased()({"image": image, "label": label, "slice": 8})["label"]
        assert np.array_equal(loaded[0].numpy(), spot()[:, :, 8])


def test_channels_foreground_and_merged_cases_follow_the_same_rule(tmp_path):
    scan, inside = head(SHAPE, 16)
    one = save(tmp_path / "a.nii", scan.astype(np.float32), LPS)
    near, far = (save(tmp_path / f"{mm}.nii", scan.astype(np.float32), shifted(mm) @ LPS) for mm in (0.09, 0.11))
    brain = [save(tmp_path / f"m{mm}.nii", inside.astype(np.uint8), shifted(mm) @ LPS, "RAS") for mm in (0.09, 0.11)]
    assert LoadCased()({"image": [one, near], "slice": 8})["image"].shape[0] == 2
    prepare = PrepareScand((32, 32), in_channels=2)
    assert prepare({"image": [one, near]})["image"].shape[0] == 2
    for act in (lambda: LoadCased()({"image": [one, far], "slice": 8}), lambda: prepare({"image": [one, far]})):
        with pytest.raises(ValueError, match=r"0\.11.nii.* are not on the same grid: their corners lie up to 0\.11 mm"):
            act()
    single = PrepareScand((32, 32))
    assert single({"image": one, "foreground": brain[0]})["image"].shape[0] == 1
    with pytest.raises(ValueError, match=r"m0\.11.nii are not on the same grid: their corners lie up to 0\.11 mm"):
        single({"image": one, "foreground": brain[1]})


def test_a_datalist_says_by_how_many_mm_a_mask_is_off(tmp_path):
    for k, mm in enumerate((0, 0.05, 0, 2.5)):
        case = tmp_path / f"case{k}"
        case.mkdir()
        save(case / "flair.nii.gz", head(SHAPE, 16, k)[0].astype(np.float32), LPS, "RAS")
        save(case / "seg.nii.gz", spot(), shifted(mm) @ LPS, "LAS")
    _, report = datalists.nifti_cases(tmp_path, progress=False)
    assert [name for name, _ in report.unusable] == ["case3"]
    assert (
        "flair.nii.gz and seg.nii.gz are not on the same grid: their corners lie up to 2.5 mm" in report.unusable[0][1]
    )
