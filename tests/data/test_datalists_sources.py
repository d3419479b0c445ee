"""Datalists of volumes: BraTS-style cases of every year, volumes of one class, DICOM series, Decathlon lists."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import itk
import nibabel as nib
import numpy as np
import pytest

from scripts.__main__ import main as command
from scripts.data import datalists
from scripts.data.datalists.naming import role
from scripts.data.datalists.slices import SliceRule
from scripts.data.preprocessing import make_preprocessing, resolve_items
from tests.transforms.images import disc, head
from transforms.loading import LoadCased

LPS = np.diag([-1.0, -1.0, 3.0, 1.0])
SHAPE = (48, 48, 16)


def scan(seed: int) -> np.ndarray:
    return head(SHAPE, 20, seed)[0]


def tumor(value: float = 1) -> np.ndarray:
    """A ball in slices 5 to 9."""
    return disc(SHAPE, 5, (20, 24, 7)).astype(np.float32) * value


def save(array: np.ndarray, path: Path, affine: np.ndarray = LPS) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".mha":
        image = itk.image_from_array(np.ascontiguousarray(np.asarray(array, np.float32).T))
        image.SetSpacing(np.abs(np.diag(affine))[:3].tolist())
        itk.imwrite(image, str(path))  # ITK's own axes are LPS
        return path
    nib.save(nib.Nifti1Image(np.asarray(array, np.float32), affine), path)
    return path


def items_of(datalist: dict) -> list[dict]:
    return [item for split in datalists.SPLITS for item in datalist[split]]


def write_series(folder: Path, array: np.ndarray, direction: np.ndarray, patient: str, kind: str = "MR") -> None:
    """A DICOM series of (X, Y, Z) with spacing 1 x 1.5 x 4 mm; file names do not tell the order."""
    folder.mkdir(parents=True)
    spacing, origin = np.array([1.0, 1.5, 4.0]), np.array([-10.0, 20.0, 30.0])
    for k in range(array.shape[2]):
        place = origin + direction[:, 2] * spacing[2] * k
        plane = itk.image_from_array(np.ascontiguousarray(array[:, :, k].T[None]).astype(np.int16))
        plane.SetSpacing(spacing.tolist())
        plane.SetOrigin(place.tolist())
        plane.SetDirection(itk.matrix_from_array(direction))
        tags = plane.GetMetaDataDictionary()
        uid = "1.2.3." + str(sum(map(ord, folder.as_posix())))
        tags["0008|0060"], tags["0010|0020"], tags["0020|000e"], tags["0020|000d"] = kind, patient, uid, uid + ".1"
        tags["0020|0032"] = "\\".join(f"{value:.6f}" for value in place)
        tags["0020|0037"] = "\\".join(f"{value:.8f}" for value in [*direction[:, 0], *direction[:, 1]])
        tags["0020|0013"] = str(k + 1)
        writer_io = itk.GDCMImageIO.New()
        writer_io.KeepOriginalUIDOn()
        writer = itk.ImageFileWriter.New(plane)
        writer.SetImageIO(writer_io)
        writer.SetFileName(str(folder / f"{(k * 7) % 17:03d}.dcm"))
        writer.Update()


def tilted(angle: float = 0.3) -> np.ndarray:
    c, s = np.cos(angle), np.sin(angle)
    return np.array([[1, 0, 0], [0, c, -s], [0, s, c]])


# Names


@pytest.mark.parametrize(
    ("name", "patient", "expected"),
    [
        ("BraTS2021_00000_t1ce.nii.gz", "BraTS2021_00000", "T1ce"),
        ("Brats18_2013_2_1_t1.nii.gz", "Brats18_2013_2_1", "T1"),
        ("BraTS-GLI-00000-000-t2w.nii.gz", "BraTS-GLI-00000-000", "T2"),
        ("BraTS-GLI-00000-000-t2f.nii.gz", "BraTS-GLI-00000-000", "FLAIR"),
        ("BraTS-GLI-00000-000-t1n.nii.gz", "BraTS-GLI-00000-000", "T1"),
        ("VSD.Brain.XX.O.MR_Flair.54512.mha", "", "FLAIR"),
        ("VSD.Brain_3more.XX.O.OT.54517.mha", "", "label"),
        ("Flair_subtrMeanDivStd.nii.gz", "brats_2013_pat0003_1", "FLAIR"),
        ("W39_1998.09.19_Segm.nii", "BraTS20_Training_355", "label"),
        ("brainmask.nii.gz", "", "foreground"),
        ("seg_flair.nii.gz", "seg", "FLAIR"),  # a patient called seg
        ("sub-01_T2_FLAIR.nii.gz", "", "FLAIR"),
        ("x_t1_gd.nii.gz", "", "T1ce"),
        ("x_t1_t2.nii.gz", "", None),
        ("notes_flair.txt", "", None),
    ],
)
def test_names_of_every_year_are_understood(name, patient, expected):
    assert role(Path(name), patient) == expected


def test_three_styles_channels_labels_and_time_points(tmp_path):
    styles = {
        "HGG/BraTS20_001": ("BraTS20_001_flair.nii.gz", "BraTS20_001_t1ce.nii.gz", "BraTS20_001_seg.nii.gz", 4),
        "BraTS-GLI-00007-000": ("BraTS-GLI-00007-000-t2f.nii.gz", "BraTS-GLI-00007-000-t1c.nii.gz", "x-seg.nii.gz", 3),
        "BraTS-GLI-00007-001": ("BraTS-GLI-00007-001-t2f.nii.gz", "BraTS-GLI-00007-001-t1c.nii.gz", "x-seg.nii.gz", 2),
        "old": ("VSD.Brain.XX.O.MR_Flair.1.mha", "VSD.Brain.XX.O.MR_T1c.2.mha", "VSD.Brain.XX.O.OT.3.mha", 1),
    }
    for seed, (case, (flair, contrast, label, value)) in enumerate(styles.items()):
        save(scan(seed), tmp_path / case / flair)
        save(scan(seed) * 2, tmp_path / case / contrast)
        save(tumor(value), tmp_path / case / label)
    datalist, report = datalists.nifti_cases(
        tmp_path, channels=("T1ce", "FLAIR"), rule=SliceRule(tumor_slices=2, normal_slices=1), progress=False
    )
    assert report.unusable == []
    assert report.figures["labels"] == [0, 1, 2, 3, 4]
    assert datalist["modality"] == {"0": "T1ce", "1": "FLAIR"}
    items = items_of(datalist)
    # Per patient, not per case: the two time points of one patient give two and one together.
    count = Counter((item["patient"], item["diagnosis"]) for item in items)
    assert count == {
        (patient, k): n for patient in ("BraTS20_001", "BraTS-GLI-00007", "old") for k, n in ((1, 2), (0, 1))
    }
    assert {item["patient"] for item in items} == {"BraTS20_001", "BraTS-GLI-00007", "old"}
    first = next(item for item in items if item["patient"] == "BraTS20_001" and item["diagnosis"] == 1)
    assert first["image"] == ["HGG/BraTS20_001/BraTS20_001_t1ce.nii.gz", "HGG/BraTS20_001/BraTS20_001_flair.nii.gz"]
    loaded = LoadCased()(
        {**first, "image": [str(tmp_path / p) for p in first["image"]], "label": str(tmp_path / first["label"])}
    )
    assert loaded["image"].shape == (2, 48, 48)
    assert (loaded["image"][0] == 2 * loaded["image"][1]).all()
    assert int(loaded["label"].sum()) == int((tumor()[:, :, first["slice"]] > 0).sum())


def test_labels_beyond_four_and_fractions_are_refused(tmp_path):
    for k in range(3):
        save(scan(k), tmp_path / f"ok{k}" / "flair.nii.gz")
        save(tumor(0.99999997), tmp_path / f"ok{k}" / "seg.nii.gz")
    for name, value in (("five", 5), ("half", 0.5), ("minus", -1)):
        save(scan(ord(name[0])), tmp_path / name / "flair.nii.gz")
        save(tumor(value), tmp_path / name / "seg.nii.gz")
    _, report = datalists.nifti_cases(tmp_path, progress=False)
    reasons = dict(report.unusable)
    assert set(reasons) == {"five", "half", "minus"}
    assert reasons["half"].startswith("seg.nii.gz holds the labels 0.5; expected some of (0, 1, 2, 3, 4)")
    assert [report.figures[key] for key in ("found", "used", "refused")] == [6, 3, 3]


# Files that were normalized before


def test_shifted_air_needs_a_brain_mask_or_the_users_word(tmp_path):
    for k in range(3):
        image, inside = head(SHAPE, 20, k)
        z = (image - image[inside].mean()) / image[inside].std() - 3 * ~inside
        save(z, tmp_path / f"p{k}" / "flair.nii.gz")
        save(tumor(), tmp_path / f"p{k}" / "seg.nii.gz")
        if k:
            save(inside * 0.99999997, tmp_path / f"p{k}" / "brainmask.nii.gz")
    datalist, report = datalists.nifti_cases(tmp_path, progress=False)
    assert [name for name, _ in report.unusable] == ["p0"]
    assert "not 0: it was normalized before; take the original file, put a brain mask" in report.unusable[0][1]
    item = items_of(datalist)[0]
    assert item["foreground"] == f"{item['patient']}/brainmask.nii.gz"
    keys = ("image", "label", "foreground")
    ready = make_preprocessing(64)({**item, **{key: str(tmp_path / item[key]) for key in keys}})
    inside = ready["foreground"][0] != 0
    assert (ready["image"][0][~inside] == 0).all()
    assert abs(float(ready["image"][0][inside].mean())) < 0.2
    taken, report = datalists.nifti_cases(tmp_path, rule=SliceRule(shifted_air=True), progress=False)
    assert report.unusable == []
    assert report.figures["normalized_before"] == 3
    assert len({item["patient"] for item in items_of(taken)}) == 3


# Planes


def test_planes_show_the_tumor_where_it_is(tmp_path):
    iso = np.diag([-1.0, -1.0, 1.0, 1.0])
    ball = disc((40, 44, 36), 6, (12, 30, 20))
    for k in range(3):
        save(head((40, 44, 36), 16, k)[0], tmp_path / f"p{k}" / "flair.nii.gz", iso)
        save(ball, tmp_path / f"p{k}" / "seg.nii.gz", iso)
    rule = SliceRule(("axial", "coronal", "sagittal"), tumor_slices=3, normal_slices=0)
    datalist, _ = datalists.nifti_cases(tmp_path, rule=rule, progress=False)
    found = {item.get("plane", "axial"): item for item in items_of(datalist) if item["patient"] == "p0"}
    # Middles of the ball; superior is the first row of coronal and sagittal pictures: 35 - 20 = 15.
    assert {plane: item["slice"] for plane, item in found.items()} == {"axial": 20, "coronal": 30, "sagittal": 12}
    names = [item["name"] for item in resolve_items(items_of(datalist), tmp_path)]
    assert len(set(names)) == 9
    assert {"p0_flair_s020", "p0_flair_cor030", "p0_flair_sag012"} <= set(names)
    for plane, center in {"axial": (12, 30), "coronal": (12, 15), "sagittal": (30, 15)}.items():
        item = found[plane]
        loaded = LoadCased()({**item, "image": str(tmp_path / item["image"]), "label": str(tmp_path / item["label"])})
        assert np.argwhere(loaded["label"][0].numpy()).mean(axis=0).round().tolist() == list(center)
        place = loaded["label"].affine.numpy() @ [*center, 0, 1]
        assert np.allclose(place, iso @ [12, 30, 20, 1])  # the same point of the patient


def test_counts_hold_for_a_patient_over_time_points_and_planes(tmp_path):
    iso = np.diag([-1.0, -1.0, 1.0, 1.0])
    ball = disc((40, 44, 36), 6, (12, 30, 20))
    for k, name in enumerate(["p0_study1", "p0_study2", "p0_study3", "p1_study1", "p2_study1"]):
        save(head((40, 44, 36), 16, k)[0], tmp_path / name / "flair.nii.gz", iso)
        save(ball, tmp_path / name / "seg.nii.gz", iso)
    rule = SliceRule(("axial", "sagittal"), tumor_slices=7, normal_slices=2)
    datalist, report = datalists.nifti_cases(tmp_path, rule=rule, progress=False)
    own = [item for item in items_of(datalist) if item["patient"] == "p0"]
    views = Counter((item["image"], item.get("plane", "axial")) for item in own if item["diagnosis"])
    assert sorted(views.values()) == [1, 1, 1, 1, 1, 2]  # seven from three volumes in two planes
    assert sum(item["diagnosis"] == 0 for item in own) == 2
    for patient in ("p1", "p2"):
        views = Counter(
            item.get("plane", "axial")
            for item in items_of(datalist)
            if item["diagnosis"] and item["patient"] == patient
        )
        assert sorted(views.values()) == [3, 4]
    assert report.figures["slices_that_qualify"] > len(items_of(datalist)) == 27


def test_a_plane_of_long_pixels_is_refused_with_their_size(tmp_path):
    for k in range(3):
        save(scan(k), tmp_path / f"p{k}" / "flair.nii.gz")
        save(tumor(), tmp_path / f"p{k}" / "seg.nii.gz")
    with pytest.raises(ValueError, match=r"coronal planes of flair\.nii\.gz have pixels of 1\.00 x 3\.00 mm"):
        datalists.nifti_cases(tmp_path, rule=SliceRule(("coronal",)), progress=False)
    with pytest.raises(ValueError, match="unknown plane 'oblique'"):
        SliceRule(("oblique",))


def test_whole_volumes_have_no_slice(tmp_path):
    for k in range(3):
        save(scan(k), tmp_path / f"p{k}" / "flair.nii.gz")
        save(tumor() if k else tumor() * 0, tmp_path / f"p{k}" / "seg.nii.gz")
    datalist, _ = datalists.nifti_cases(tmp_path, rule=SliceRule(()), progress=False)
    assert sorted((item["patient"], item["diagnosis"]) for item in items_of(datalist)) == [
        ("p0", 0),
        ("p1", 1),
        ("p2", 1),
    ]
    assert not any("slice" in item for item in items_of(datalist))


# Volumes of one class


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


def test_cases_that_give_no_slice_are_counted_with_their_files(tmp_path):
    for k, name in enumerate(("p1_study1", "p1_study2", "p1_study3", "p2", "p3")):
        save(scan(k), tmp_path / name / "flair.nii.gz")
        save(tumor(), tmp_path / name / "seg.nii.gz")
    rule = SliceRule(tumor_slices=1, normal_slices=1)
    _, report = datalists.nifti_cases(tmp_path, rule=rule, progress=False)
    assert report.figures["beyond_limit"] == len(report.notes) > 0
    assert report.figures["used"] + report.figures["beyond_limit"] == report.figures["found"] == 5
    files = report.figures["files"]
    assert files["in_cases_beyond_limit"] == 2 * report.figures["beyond_limit"]
    assert files["used"] == 2 * report.figures["used"]
    assert sum(value for key, value in files.items() if key != "found") == files["found"] == 10


def test_two_patients_leave_a_split_empty_and_say_so(tmp_path, caplog):
    for k in range(2):
        save(scan(k), tmp_path / f"p{k}.nii.gz")
    datalist, _ = datalists.nifti_volumes(tmp_path, progress=False)
    assert [len(datalist[split]) > 0 for split in datalists.SPLITS] == [True, True, False]
    assert "2 patients or groups are too few to split: nothing in test" in caplog.text


# DICOM


def test_oblique_dicom_series_with_mask(tmp_path):
    direction = tilted()
    for k in range(3):
        write_series(tmp_path / f"visit{k}" / f"s{k}", scan(k), direction, patient=f"MRN-77-{min(k, 1)}")
    affine = np.eye(4)
    affine[:3, :3] = direction * [1, 1.5, 4]
    affine[:3, 3] = [-10, 20, 30]
    affine = np.diag([-1.0, -1, 1, 1]) @ affine
    save(tumor(), tmp_path / "masks" / "s0.nii.gz", affine)
    save(tumor(), tmp_path / "masks" / "nobody.nii.gz", affine)
    write_series(tmp_path / "ct", scan(8), np.eye(3), patient="c", kind="CT")
    write_series(tmp_path / "gap", scan(7), np.eye(3), patient="g")
    (tmp_path / "gap" / "007.dcm").unlink()
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "readme.txt").write_text("x")
    (tmp_path / "visit0" / "s0" / "notes.txt").write_text("x")
    datalist, report = datalists.dicom_series(
        tmp_path, masks=tmp_path / "masks", rule=SliceRule(tumor_slices=1, normal_slices=1), progress=False
    )
    reasons = dict(report.unusable)
    assert set(reasons) == {"ct", "gap", "empty", "masks/nobody.nii.gz"}
    assert reasons["ct"] == "modality 'CT', expected MR"
    assert "a slice is missing or doubled: distances differ by 4 mm at 15 slices" in reasons["gap"]
    assert "empty holds 0 DICOM series" in reasons["empty"]
    assert ("visit0/s0/notes.txt", "lies beside a series and is no part of it") in report.notes
    assert [report.figures[key] for key in ("found", "used", "refused", "beyond_limit")] == [7, 2, 4, 1]
    idle = [name for name, text in report.notes if text.startswith("no slice taken: at most 1 with and")]
    assert idle == ["visit1/s1"]
    items = items_of(datalist)
    assert len({item["patient"] for item in items}) == 2  # the second and third series are of one patient
    assert "MRN" not in json.dumps(datalist)
    masked = [item for item in items if "label" in item]
    assert sorted(item["diagnosis"] for item in masked) == [0, 1]
    assert {item["diagnosis"] for item in items if "label" not in item} == {-1}
    item = next(item for item in masked if item["diagnosis"] == 1)
    loaded = LoadCased()({**item, "image": str(tmp_path / item["image"]), "label": str(tmp_path / item["label"])})
    assert np.array_equal(loaded["image"][0].numpy(), scan(0)[:, :, item["slice"]].astype(np.int16))
    assert np.allclose(loaded["image"].affine.numpy() @ [3, 4, 0, 1], affine @ [3, 4, item["slice"], 1], atol=1e-4)
    assert int(loaded["label"].sum()) == int((tumor()[:, :, item["slice"]] > 0).sum())


# Lists in the form of the Decathlon


def test_decathlon_list_with_4d_images(tmp_path):
    for k in range(4):
        save(np.stack([scan(k), scan(k) + 1], axis=-1), tmp_path / "imagesTr" / f"BRATS_{k:03d}.nii.gz")
        save(tumor(3), tmp_path / "labelsTr" / f"BRATS_{k:03d}.nii.gz")
    entries = [
        {"image": f"./imagesTr/BRATS_{k:03d}.nii.gz", "label": f"./labelsTr/BRATS_{k:03d}.nii.gz"} for k in range(4)
    ]
    content = {
        "name": "BRATS", "modality": {"0": "FLAIR", "1": "T1w"}, "labels": {"0": "background", "1": "edema"},
        "training": [*entries, {"image": "./imagesTr/BRATS_999.nii.gz", "label": "./labelsTr/BRATS_999.nii.gz"}],
        "test": ["./imagesTs/BRATS_485.nii.gz"],
    }  # fmt: skip
    (tmp_path / "dataset.json").write_text(json.dumps(content))
    datalist, report = datalists.decathlon(tmp_path, rule=SliceRule(tumor_slices=1, normal_slices=1), progress=False)
    assert dict(report.unusable) == {
        "./imagesTs/BRATS_485.nii.gz": "has no mask: nothing to train or to measure on",
        "./imagesTr/BRATS_999.nii.gz": "imagesTr/BRATS_999.nii.gz does not exist",
    }
    assert datalist["modality"] == {"0": "FLAIR", "1": "T1w"}
    items = items_of(datalist)
    assert len(items) == 8
    assert items[0]["image"].startswith("imagesTr/BRATS_")
    loaded = LoadCased()({"image": str(tmp_path / items[0]["image"]), "slice": items[0]["slice"]})["image"]
    assert float((loaded[1] - loaded[0]).min()) == 1
    datalists.validate(datalist, tmp_path)
    (tmp_path / "dataset.json").write_text("[1")
    with pytest.raises(ValueError, match=r"dataset.json is no JSON file"):
        datalists.decathlon(tmp_path, progress=False)


def test_decathlon_list_with_validation_keeps_its_parts(tmp_path):
    for k in range(3):
        save(scan(k), tmp_path / f"p{k}.nii.gz")
        save(tumor(), tmp_path / f"m{k}.nii.gz")
    parts = {
        part: [{"image": f"p{k}.nii.gz", "label": f"m{k}.nii.gz"}]
        for k, part in enumerate(("test", "training", "validation"))
    }
    (tmp_path / "list.json").write_text(json.dumps(parts))
    datalist, _ = datalists.decathlon(tmp_path / "list.json", progress=False)
    assert {part: {item["patient"] for item in datalist[part]} for part in datalists.SPLITS} == {
        "test": {"p0"}, "training": {"p1"}, "validation": {"p2"}
    }  # fmt: skip


def decathlon_file(folder: Path, parts: dict[str, list[str]]) -> Path:
    """A list with these cases, made where they are not yet."""
    for k, name in enumerate(dict.fromkeys(name for names in parts.values() for name in names)):
        if not (folder / name).exists():
            save(scan(k), folder / name / "flair.nii.gz")
            save(tumor(), folder / name / "seg.nii.gz")
    entries = {
        part: [{"image": f"{name}/flair.nii.gz", "label": f"{name}/seg.nii.gz"} for name in names]
        for part, names in parts.items()
    }
    (folder / "dataset.json").write_text(json.dumps(entries))
    return folder / "dataset.json"


def test_a_patient_in_two_parts_of_a_decathlon_list_goes_whole_to_the_first_and_that_is_said(tmp_path, caplog):
    names = {"training": ["p1_study1", "p2"], "validation": ["p3_study1"], "testing": ["p1_study2", "p3_study2", "p4"]}
    datalist, report = datalists.decathlon(decathlon_file(tmp_path, names), progress=False)
    assert {part: {item["patient"] for item in datalist[part]} for part in datalists.SPLITS} == {
        "training": {"p1", "p2"}, "validation": {"p3"}, "test": {"p4"}
    }  # fmt: skip
    assert {item["image"] for item in datalist["training"]} >= {"p1_study1/flair.nii.gz", "p1_study2/flair.nii.gz"}
    assert report.notes == [
        ("p1_study2/flair.nii.gz", "moved from test to training: patient p1 has cases there"),
        ("p3_study2/flair.nii.gz", "moved from test to validation: patient p3 has cases there"),
    ]
    assert report.figures["moved"] == {"test to training": 1, "test to validation": 1}
    assert "cases moved to keep patients in one part" in caplog.text


def test_a_case_that_cannot_be_used_moves_no_patient(tmp_path):
    names = {"training": ["p1_study1", "p2"], "validation": ["p3"], "test": ["p1_study2"]}
    file = decathlon_file(tmp_path, names)
    save(tumor(9), tmp_path / "p1_study1" / "seg.nii.gz")  # refused for its labels
    datalist, report = datalists.decathlon(file, progress=False)
    assert [name for name, _ in report.unusable] == ["p1_study1/flair.nii.gz"]
    assert {item["patient"] for item in datalist["test"]} == {"p1"}
    assert report.figures["moved"] == {}


def test_each_source_by_one_command(tmp_path):
    for k in range(3):
        save(scan(k), tmp_path / "cases" / f"p{k}" / "flair.nii.gz")
        save(tumor(), tmp_path / "cases" / f"p{k}" / "seg.nii.gz")
        save(scan(10 + k), tmp_path / "healthy" / f"h{k}.nii.gz")
        write_series(tmp_path / "dicom" / f"d{k}", scan(20 + k), tilted(), f"d{k}")
    (tmp_path / "cases" / "dataset.json").write_text(
        json.dumps({"training": [{"image": f"p{k}/flair.nii.gz", "label": f"p{k}/seg.nii.gz"} for k in range(3)]})
    )
    commands = {
        "nifti_cases": ["--folder", "cases", "--tumor-slices", "1", "--classes", "no_tumor", "glioma"],
        "nifti_volumes": ["--folder", "healthy"],
        "dicom_series": ["--folder", "dicom", "--diagnosis", "no_tumor", "--normal-slices", "2"],
        "decathlon": ["--file", "cases/dataset.json", "--whole-volumes"],
    }
    counts = {}
    for name, (flag, where, *rest) in commands.items():
        out = tmp_path / f"{name}.json"
        command(["datalist", name, flag, str(tmp_path / where), "--root", str(tmp_path), *rest, "--out", str(out)])
        counts[name] = len(items_of(datalists.read(out, tmp_path)))
        assert json.loads((tmp_path / f"{name}.report.json").read_text(encoding="utf-8"))["figures"]["used"] == 3
    assert counts == {"nifti_cases": 12, "nifti_volumes": 9, "dicom_series": 6, "decathlon": 3}
    merged = ["nifti_cases.json", "nifti_volumes.json"]
    arguments = ["datalist", "merge", *(str(tmp_path / name) for name in merged), "--out", str(tmp_path / "mix.json")]
    command([*arguments, "--dataset-dir", str(tmp_path)])
    mix = datalists.read(tmp_path / "mix.json", tmp_path)
    assert list(mix["classes"].values()) == ["no_tumor", "glioma"]
    assert len(items_of(mix)) == 21
    for option in ("--resplit", "--same_patients"):
        with pytest.raises(ValueError, match=f"^--{option[2:].replace('-', '_')} needs --dataset_dir"):
            command([*arguments, option])


def test_files_of_one_name_are_told_apart_by_their_folders_and_visits_stay_together(tmp_path):
    cases = ("p0/visit1", "p0/visit2", "p1/visit1", "p2/visit3", "p3")
    for k, case in enumerate(cases):
        save(scan(k), tmp_path / case / "flair.nii.gz")
        save(tumor(), tmp_path / case / "seg.nii.gz")
    entries = [{"image": f"{case}/flair.nii.gz", "label": f"{case}/seg.nii.gz"} for case in cases]
    (tmp_path / "dataset.json").write_text(json.dumps({"training": entries}))
    listed, _ = datalists.decathlon(tmp_path, progress=False)
    (tmp_path / "dataset.json").unlink()
    found, _ = datalists.nifti_cases(tmp_path, progress=False)
    for datalist in (listed, found):
        patients = {str(item["image"]).rsplit("/", 1)[0]: item["patient"] for item in items_of(datalist)}
        assert patients == {"p0/visit1": "p0", "p0/visit2": "p0", "p1/visit1": "p1", "p2/visit3": "p2", "p3": "p3"}
        assert {len({i["patient"] for i in datalist[split]}) > 0 for split in datalists.SPLITS} == {True}
