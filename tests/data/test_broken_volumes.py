"""Cases of several sequences that cannot be used: one sentence each, and nothing half-written."""

from __future__ import annotations

import shutil

import nibabel as nib
import numpy as np
import pytest

from scripts.data.datalists import nifti_cases
from scripts.data.datalists.slices import SliceRule
from scripts.data.preprocessing import make_preprocessing

RULE = SliceRule(planes=(), regions={"whole_tumor": [1, 2, 3, 4], "tumor_core": [1, 3, 4]})


def change(path, shift=0.0, crop=0, fill=None):
    image = nib.load(path)
    data, affine = np.asarray(image.dataobj), image.affine.copy()
    affine[0, 3] += shift
    data = np.full_like(data, fill) if fill is not None else data[: data.shape[0] - crop]
    nib.save(nib.Nifti1Image(data, affine), path)


def shifted_sequence(case):
    change(next(case.glob("*_t2.nii.gz")), shift=8.0)


def smaller_sequence(case):
    change(next(case.glob("*_t1ce.nii.gz")), crop=2)


def shifted_label(case):
    change(next(case.glob("*_seg.nii.gz")), shift=8.0)


def missing_sequence(case):
    next(case.glob("*_t1.nii.gz")).unlink()


def no_head(case):
    change(next(case.glob("*_flair.nii.gz")), fill=7)


@pytest.mark.parametrize(
    ("fault", "sentence"),
    [
        (shifted_sequence, "_flair.nii.gz and v000-with_t2.nii.gz are not on the same grid: their corners"),
        (smaller_sequence, "v000-with_t1ce.nii.gz (22, 28, 19) are not on the same grid"),
        (shifted_label, "v000-with_seg.nii.gz are not on the same grid"),
        (missing_sequence, "T1"),
        (no_head, "v000-with_flair.nii.gz is constant: every voxel is 7"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_a_case_that_cannot_be_used_is_reported_in_one_sentence(pairs, tmp_path, fault, sentence):
    shutil.copytree(pairs, tmp_path / "data")
    fault(tmp_path / "data" / "v000-with")
    datalist, report = nifti_cases(
        tmp_path / "data", rule=RULE, channels=("FLAIR", "T1", "T1ce", "T2"), patient_pattern=r"v\d+", progress=False
    )
    assert [name for name, _ in report.unusable] == ["v000-with"]
    assert sentence in report.unusable[0][1]
    assert "\n" not in report.unusable[0][1]
    kept = [str(item["image"]) for part in ("training", "validation", "test") for item in datalist[part]]
    assert len(kept) == 5
    assert not any("v000-with/" in images for images in kept)


@pytest.mark.parametrize(
    ("fault", "sentence"),
    [
        (shifted_sequence, "are not on the same grid: their corners"),
        (smaller_sequence, "channels differ in size"),
        (shifted_label, "have the same size, but are not on the same grid"),
        (missing_sequence, "_t1.nii.gz"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_the_pipeline_refuses_what_a_datalist_did_not_see(pairs, tmp_path, fault, sentence):
    shutil.copytree(pairs, tmp_path / "data")
    case = tmp_path / "data" / "v000-with"
    item = {
        "image": [str(case / f"v000-with_{name}.nii.gz") for name in ("flair", "t1", "t1ce", "t2")],
        "label": str(case / "v000-with_seg.nii.gz"),
        "regions": RULE.regions,
    }
    pipeline = make_preprocessing((16, 16, 16), trace=False, spacing_mm=8.0)
    pipeline(dict(item))
    fault(case)
    with pytest.raises(ValueError, match=sentence.replace(".", r"\.")) as caught:
        pipeline(dict(item))
    assert "\n" not in str(caught.value)


def test_a_patch_larger_than_the_volume_is_filled_with_air(pairs):
    case = pairs / "v000-with"
    found = make_preprocessing((64, 64, 64), trace=False, spacing_mm=8.0)(
        {"image": str(case / "v000-with_flair.nii.gz")}
    )
    assert found["image"].shape == (1, 64, 64, 64)


def test_a_volume_without_a_head_is_refused_by_name(tmp_path):
    path = tmp_path / "empty_flair.nii.gz"
    nib.save(nib.Nifti1Image(np.full((24, 24, 24), 3.0, np.float32), np.eye(4)), path)
    with pytest.raises(ValueError, match=r"empty_flair\.nii\.gz.*"):
        make_preprocessing((16, 16, 16), trace=False, spacing_mm=1.0)({"image": str(path)})
