"""Which slices of a volume are taken: planes, counts, and their order."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import nibabel as nib
import numpy as np
import pytest

from scripts.data import datalists
from scripts.data.datalists.slices import (
    Case,
    Findings,
    SliceRule,
    case_candidates,
    limit_slices,
    qualifying_slices,
    share_out,
    spread,
)
from scripts.data.datalists.volumes import load_oriented
from scripts.data.preprocessing import resolve_items
from tests.data.lists import items_of
from tests.data.volume_files import LPS, SHAPE, save, scan, tumor
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


@pytest.mark.parametrize(
    "rule",
    [{"tumor_slices": -1}, {"normal_slices": -1}, {"min_tumor_area": 0}, {"min_tumor_area": 1}, {"min_tumor_area": -1}],
)
def test_counts_and_shares_of_a_rule_have_their_range(rule):
    with pytest.raises(ValueError, match="slice counts must be 0 or more and min_tumor_area between 0 and 1"):
        SliceRule(**rule)
    SliceRule(tumor_slices=0, normal_slices=0, min_tumor_area=1e-9)


def test_what_is_just_enough_qualifies_and_short_volumes_are_whole():
    area = np.array([0.0, 0.0, 0.005, 0.0, 0.0])
    head = np.array([0.1, 0.0999, 0.1, 0.5, 0.1])
    assert qualifying_slices(area, head, 0.005, 0.1) == ([2], [0, 4])
    assert qualifying_slices(area, head, 0.0051, 0.1) == ([], [0, 4]), "with less tumor it is neither"
    assert qualifying_slices(area, head, 0.005, 0.1, margin=0) == ([2], [0, 3, 4])
    assert qualifying_slices(area, head, 0.005, 0.0, margin=2) == ([2], [])
    assert qualifying_slices(area[1:3], head[2:4], 0.005, 0.1) == ([1], []), "two slices: both are beside the tumor"
    assert qualifying_slices(area[:2], head[2:4], 0.005, 0.1) == ([], [0, 1])
    assert qualifying_slices(area[2:3], head[2:3], 0.005, 0.1) == ([0], [])


def items(*views: tuple[str, int, int], plane: str = "axial") -> list[dict]:
    """Slices of volumes: (image, first slice, diagnosis) of ten each."""
    return [
        {"image": image, "slice": first + k, "diagnosis": kind, **({} if plane == "axial" else {"plane": plane})}
        for image, first, kind in views
        for k in range(10)
    ]


def test_a_patients_slices_are_shared_out_among_volumes_and_planes():
    every = [*items(("a", 0, 1), ("b", 0, 1), ("a", 20, 0)), *items(("a", 0, 1), plane="coronal"), {"image": "c"}]
    taken = limit_slices(every, SliceRule(tumor_slices=6, normal_slices=1))
    assert [item for item in every if item in taken] == taken, "in the order given"
    views = [(item["image"], item.get("plane"), item.get("diagnosis")) for item in taken]
    assert {view: views.count(view) for view in views} == {
        ("a", None, 1): 2, ("b", None, 1): 2, ("a", "coronal", 1): 2, ("a", None, 0): 1, ("c", None, None): 1,
    }  # fmt: skip
    assert [item["slice"] for item in taken if item["image"] == "b"] == [2, 7], "the middles of halves"
    assert limit_slices(every, SliceRule(tumor_slices=0, normal_slices=0)) == [{"image": "c"}]
    unknown = limit_slices(items(("a", 0, -1)), SliceRule(tumor_slices=9, normal_slices=2))
    assert len(unknown) == 2, "of an unknown class as without a tumor"


def case(folder, label=None, foreground=None, image=None, **options) -> Case:
    paths = {"flair": scan(1) if image is None else image, "seg": label, "brain": foreground}
    files = {name: save(data, folder / f"{name}.nii.gz") for name, data in paths.items() if data is not None}
    return Case("p", [files["flair"]], files.get("seg"), files.get("brain"), **options)


def candidates(case: Case, folder, rule: SliceRule | None = None, findings: Findings | None = None) -> list[dict]:
    return case_candidates(case, rule or SliceRule(), folder, "source", findings or Findings())


def test_a_case_gives_the_slices_that_qualify_with_its_files(tmp_path):
    findings = Findings()
    found = candidates(case(tmp_path, tumor(), np.ones(SHAPE)), tmp_path, findings=findings)
    about = {"image": "flair.nii.gz", "label": "seg.nii.gz", "foreground": "brain.nii.gz"}
    about |= {"patient": "p", "source": "source"}
    assert all({key: item[key] for key in about} == about and "plane" not in item for item in found)
    with_tumor = [item["slice"] for item in found if item["diagnosis"] == 1]
    share = (tumor() > 0).mean(axis=(0, 1))
    assert with_tumor == np.flatnonzero(share >= 0.003).tolist()
    first, last = np.flatnonzero(share > 0)[[0, -1]]
    normal = [item["slice"] for item in found if item["diagnosis"] == 0]
    assert normal == [k for k in range(SHAPE[2]) if k < first - 1 or k > last + 1]
    assert findings.labels == {0, 1}
    assert findings.strata == {"patient source: p": "tumor"}
    beside = findings.left_out["axial slices without tumor beside one with"]
    assert beside == SHAPE[2] - len(normal) - int((share > 0).sum())
    assert findings.left_out["axial slices with less than 0.003 of tumor"] == int(((share > 0) & (share < 0.003)).sum())
    with pytest.raises(ValueError, match=r"the same voxels as flair\.nii\.gz"):
        candidates(case(tmp_path, tumor()), tmp_path, findings=findings)


def test_a_case_without_a_mask_is_of_the_class_that_is_known(tmp_path):
    for kind in (0, -1):
        assert {item["diagnosis"] for item in candidates(case(tmp_path, diagnosis=kind), tmp_path)} == {kind}
        (whole,) = candidates(case(tmp_path, diagnosis=kind), tmp_path, SliceRule(()))
        assert whole == {"image": "flair.nii.gz", "diagnosis": kind, "patient": "p", "source": "source"}
    (healthy,) = candidates(case(tmp_path, tumor() * 0), tmp_path, SliceRule(()))
    (ill,) = candidates(case(tmp_path, tumor()), tmp_path, SliceRule(()))
    assert (healthy["diagnosis"], ill["diagnosis"]) == (0, 1)


def test_the_tumor_of_any_volume_makes_the_stratum_of_its_patient(tmp_path):
    findings = Findings()
    for k, label in enumerate((tumor() * 0, tumor(), tumor() * 0)):
        folder = tmp_path / str(k)
        candidates(case(folder, label, image=scan(k)), tmp_path, findings=findings)
    assert findings.strata == {"patient source: p": "tumor"}
    assert len(findings.contents) == 3


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"image": np.full(SHAPE, 3.0)}, r"flair\.nii\.gz is constant: every voxel is 3"),
        ({"image": np.arange(np.prod(SHAPE)).reshape(SHAPE) % 4}, "holds only the values 0, 1, 2, 3: a mask, no image"),
        ({"image": np.where(scan(1) > 90, np.nan, scan(1))}, "values that are not finite"),
        ({"image": scan(1)[:15]}, "has 15 x 48 pixels a slice, at least 16 are needed"),
        ({"label": tumor(5)}, "holds the labels 5; expected some of"),
        ({"label": tumor()[:40]}, "are not on the same grid"),
        ({"label": (scan(1) > 0) * 1.0}, "of the head: a mask of the brain, or inverted, no tumor"),
        ({"foreground": np.zeros(SHAPE)}, r"brain\.nii\.gz is empty"),
        ({"label": tumor(), "foreground": 1 - tumor()}, r"100% of the tumor lies outside brain\.nii\.gz"),
    ],
)
def test_a_case_that_cannot_be_used_says_why(tmp_path, options, reason):
    with pytest.raises(ValueError, match=reason):
        candidates(case(tmp_path, **options), tmp_path)


def test_five_values_and_sixteen_pixels_are_an_image_and_half_a_tumor_in_the_head_is_enough(tmp_path):
    five = np.arange(np.prod(SHAPE)).reshape(SHAPE) % 5
    candidates(case(tmp_path / "a", image=five), tmp_path, SliceRule(()))
    candidates(case(tmp_path / "b", image=scan(1)[:16], diagnosis=0), tmp_path, SliceRule(()))
    inside = np.ones(SHAPE)
    where = np.argwhere(tumor() > 0)
    inside[tuple(where[: len(where) // 2].T)] = 0
    candidates(case(tmp_path / "c", tumor(), inside), tmp_path, SliceRule(()))
    inside[tuple(where[: len(where) // 2 + 2].T)] = 0
    with pytest.raises(ValueError, match="of the tumor lies outside"):
        candidates(case(tmp_path / "d", tumor(), inside), tmp_path, SliceRule(()))


def test_air_that_is_not_0_needs_a_brain_mask_or_the_users_word(tmp_path):
    shifted = scan(1) - 50.0
    with pytest.raises(ValueError, match=r"the air of flair\.nii\.gz is -50, not 0"):
        candidates(case(tmp_path, image=shifted), tmp_path)
    for given, rule in (({"foreground": np.ones(SHAPE)}, SliceRule()), ({}, SliceRule(shifted_air=True))):
        findings = Findings()
        candidates(case(tmp_path / str(len(given)), image=shifted, **given), tmp_path, rule, findings)
        assert findings.normalized == 1
    assert candidates(case(tmp_path / "plain"), tmp_path)


def test_no_slice_that_qualifies_is_said_with_what_there_is(tmp_path):
    with pytest.raises(ValueError, match=r"no axial slice has 0\.9 of head .*most head 0\.\d+, most tumor 0\.0"):
        candidates(case(tmp_path, tumor()), tmp_path, SliceRule(min_foreground=0.9))


def test_channels_of_one_file_are_all_checked_and_the_first_is_looked_at(tmp_path):
    both = np.stack([scan(1), scan(2)], axis=-1)
    stacked = replace(case(tmp_path, tumor(), image=both), stacked=True)
    assert candidates(stacked, tmp_path) == candidates(case(tmp_path / "one", tumor()), tmp_path / "one")
    with pytest.raises(ValueError, match="has 4 dimensions"):
        candidates(replace(stacked, stacked=False), tmp_path)
    both[..., 1] = 7
    with pytest.raises(ValueError, match="is constant"):
        candidates(replace(case(tmp_path / "two", image=both), stacked=True), tmp_path)
    with pytest.raises(ValueError, match="names no image"):
        candidates(Case("p", []), tmp_path)


def test_channels_lie_on_one_grid_and_have_one_content(tmp_path):
    files = [save(scan(k), tmp_path / f"{k}.nii.gz") for k in (1, 2)]
    beside = LPS.copy()
    beside[0, 3] = 5.0
    moved = save(scan(2), tmp_path / "moved.nii.gz", beside)
    contents = []
    for images in ([files[0]], files, files[::-1]):
        findings = Findings()
        candidates(Case("p", images), tmp_path, findings=findings)
        contents.append(next(iter(findings.contents)))
    assert len(set(contents)) == 3
    with pytest.raises(ValueError, match=r"1\.nii\.gz and moved\.nii\.gz are not on the same grid"):
        candidates(Case("p", [files[0], moved]), tmp_path)
