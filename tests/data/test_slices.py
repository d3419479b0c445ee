"""Which slices of a volume are taken: planes, counts, and their order."""

from __future__ import annotations

from collections import Counter

import nibabel as nib
import numpy as np
import pytest

from scripts.data import datalists
from scripts.data.datalists.slices import SliceRule, qualifying_slices, share_out, spread
from scripts.data.datalists.volumes import load_oriented
from scripts.data.preprocessing import resolve_items
from tests.data.lists import items_of
from tests.data.volume_files import save, scan, tumor
from tests.transforms.images import disc, head
from transforms.loading import LoadCased


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


def test_slices_that_qualify_are_found_and_taken_at_even_steps():
    area = np.array([0, 0, 0, 0, 0.001, 0.01, 0.02, 0.03, 0.02, 0.01, 0, 0, 0, 0, 0, 0])
    head = np.array([0.05] + [0.4] * 14 + [0.05])
    tumor, normal = qualifying_slices(area, head, min_tumor_area=0.005, min_foreground=0.1)
    assert tumor == [5, 6, 7, 8, 9]
    assert normal == [1, 2, 11, 12, 13, 14]  # 4 has tumor, 3 and 10 are next to it
    assert qualifying_slices(area, head, 0.5, 0.5) == ([], [])
    assert spread(tumor, 3) == [5, 7, 9]
    assert spread(normal, 4) == [1, 11, 12, 14]
    assert spread(normal, 9) == normal


@pytest.mark.parametrize(
    ("sizes", "count", "expected"),
    [([9, 9], 4, [2, 2]), ([1, 9, 9], 7, [1, 3, 3]), ([9, 9, 9], 2, [1, 0, 1]), ([2, 1], 9, [2, 1]), ([], 3, [])],
)
def test_a_count_is_shared_out_evenly_as_far_as_the_lists_reach(sizes, count, expected):
    assert share_out(sizes, count) == expected


@pytest.mark.parametrize("codes", ["LPS", "RAS", "LAS", "PIR", "ASL"])
def test_slice_counts_upward_in_lps_whatever_the_stored_axes(tmp_path, codes):
    lps = np.random.default_rng(0).integers(0, 99, (4, 5, 6)).astype(np.int16)
    turn = nib.orientations.ornt_transform(
        nib.orientations.axcodes2ornt("LPS"), nib.orientations.axcodes2ornt(tuple(codes))
    )
    affine = np.diag([-1.5, -2.0, 3.0, 1.0]) @ nib.orientations.inv_ornt_aff(turn, lps.shape)
    nib.save(nib.Nifti1Image(nib.orientations.apply_orientation(lps, turn), affine), tmp_path / "x.nii.gz")
    array, oriented = load_oriented(tmp_path / "x.nii.gz")
    np.testing.assert_array_equal(array, lps)
    np.testing.assert_allclose(oriented[:3, :3], np.diag([-1.5, -2.0, 3.0]))
