"""Volumes of one class, without masks of tumors."""

from __future__ import annotations

import pytest

from scripts.data import datalists
from scripts.data.datalists.slices import SliceRule
from tests.data.lists import items_of
from tests.data.volume_files import SHAPE, save, scan, tumor
from tests.transforms.images import head


def test_volumes_without_masks_are_one_class_and_lesion_masks_no_images(tmp_path):
    for k, name in enumerate(("patient01_study1_FLAIR", "patient01_study2_FLAIR", "patient20_FLAIR", "mni_T1")):
        save(scan(k), tmp_path / f"{name}.nii.gz")
    save(tumor(), tmp_path / "patient20_GOLD.nii.gz")
    save(scan(9) > 0, tmp_path / "mni_T1_brainmask.nii.gz")
    (tmp_path / "LICENSE").write_text("x")
    (tmp_path / "loop.nii.gz").symlink_to(tmp_path / "loop.nii.gz")
    datalist, report = datalists.nifti_volumes(tmp_path, progress=False)
    reasons = dict(report.unusable)
    assert reasons == {
        "LICENSE": "no volume (.nii, .nii.gz, .mha, .mhd, .nrrd, .mgz, .mgh)",
        "loop.nii.gz": "a symbolic link that leads nowhere",
        "patient20_GOLD.nii.gz": "patient20_GOLD.nii.gz holds only the values 0, 1: a mask, no image",
    }
    items = items_of(datalist)
    assert {item["patient"] for item in items} == {"patient01", "patient20", "mni_T1"}
    assert {item["diagnosis"] for item in items} == {0}
    assert not any("label" in item for item in items)
    assert {item.get("foreground") for item in items if item["patient"] == "mni_T1"} == {"mni_T1_brainmask.nii.gz"}
    assert ("mni_T1.nii.gz", "its name says T1, the list FLAIR: look at it") in report.notes
    assert [report.figures[key] for key in ("found", "used", "refused")] == [7, 4, 3]  # and one brain mask: 8 files
    assert report.figures["files"] == {"found": 8, "brain_masks": 1}


def test_each_patient_has_the_brain_mask_of_the_own_folder(tmp_path):
    for k in range(1, 5):
        image, inside = head(SHAPE, 14 + k, k)
        save(image, tmp_path / f"s{k}" / "flair.nii.gz")
        save(inside, tmp_path / f"s{k}" / "flair_brainmask.nii.gz")
    save(scan(8) > 0, tmp_path / "flair_brainmask.nii.gz")  # of nobody
    datalist, report = datalists.nifti_volumes(tmp_path, progress=False)
    assert {item["image"]: item["foreground"] for item in items_of(datalist)} == {
        f"s{k}/flair.nii.gz": f"s{k}/flair_brainmask.nii.gz" for k in range(1, 5)
    }
    assert dict(report.unusable) == {
        "flair_brainmask.nii.gz": "a brain mask without a volume of the same stem in its folder, or a second one of it"
    }
    assert report.figures["files"] == {"found": 9, "brain_masks": 4}


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        (("s1/flair", "s2/flair", "s3/flair"), ("s1", "s2", "s3")),
        (("s1/flair", "s1/t1", "s2/flair"), ("s1", "s1", "s2")),  # two channels of one person
        (("s1/scan_flair", "s2/scan_flair", "s3/other"), ("s1", "s2", "s3")),
        (("s1/visit1_flair", "s1/visit2_flair", "s2/visit1_flair"), ("s1", "s1", "s2")),
        (("s1/scan1", "s1/scan2", "s2/scan1"), ("s1", "s1", "s2")),
        (("s1/visit1/flair", "s1/visit2/flair", "s2/visit1/flair"), ("s1", "s1", "s2")),
        (("ses-1/sub-01_flair", "ses-2/sub-01_flair", "ses-1/sub-02_flair"), ("sub-01", "sub-01", "sub-02")),
        (("a/anat/sub-01_ses-1_flair", "a/anat/sub-01_ses-2_flair", "sub-02"), ("sub-01", "sub-01", "sub-02")),
    ],
)
def test_a_folder_is_the_patient_where_file_names_say_none(tmp_path, files, expected):
    for k, name in enumerate(files):
        save(scan(k), tmp_path / f"{name}.nii.gz")
    datalist, report = datalists.nifti_volumes(tmp_path, rule=SliceRule(normal_slices=2), progress=False)
    patients = {item["image"].removesuffix(".nii.gz"): item["patient"] for item in items_of(datalist)}
    assert patients == dict(zip(files, expected, strict=True))
    assert report.figures["patients"] == len(set(expected))


def test_a_volume_that_gives_no_slice_is_in_the_report(tmp_path):
    for k in range(5):
        save(scan(k), tmp_path / f"p1_study{k}.nii.gz")
    save(scan(9), tmp_path / "p2.nii.gz")
    datalist, report = datalists.nifti_volumes(tmp_path, progress=False)
    taken = {item["image"] for item in items_of(datalist)}
    idle = {name for name, text in report.notes if text.startswith("no slice taken: at most 5 with and 3 without")}
    assert idle | taken == {"p2.nii.gz", *(f"p1_study{k}.nii.gz" for k in range(5))}
    assert len(idle) == 2
    assert not idle & taken
    figures = [report.figures[key] for key in ("found", "used", "refused", "beyond_limit")]
    assert figures == [6, 4, 0, 2]


def test_two_patients_leave_a_split_empty_and_say_so(tmp_path, caplog):
    for k in range(2):
        save(scan(k), tmp_path / f"p{k}.nii.gz")
    datalist, _ = datalists.nifti_volumes(tmp_path, progress=False)
    assert [len(datalist[split]) > 0 for split in datalists.SPLITS] == [True, True, False]
    assert "2 patients or groups are too few to split: nothing in test" in caplog.text
