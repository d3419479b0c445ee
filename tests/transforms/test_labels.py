"""What the mask of a tumor says of an item, and the item as training takes it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from monai.data import MetaTensor

from transforms.labels import Finalized, LabelCoveraged, case_name, label_coverage, slice_suffix

HEAD = torch.tensor([[[1, 1, 1, 0], [1, 1, 0, 0]]], dtype=torch.uint8)
TUMOR = torch.tensor([[[0, 1, 1, 1], [0, 0, 0, 0]]], dtype=torch.uint8)


def test_coverage_is_the_share_of_the_tumor_in_the_foreground():
    assert label_coverage(TUMOR, HEAD) == 2 / 3
    assert label_coverage(TUMOR * 0.2, HEAD * 7) == 2 / 3, "non-zero counts, whatever the value"
    assert label_coverage(TUMOR * 0, HEAD) == 1.0
    assert label_coverage(TUMOR, HEAD * 0) == 0.0
    assert label_coverage(MetaTensor(TUMOR), MetaTensor(HEAD)) == 2 / 3


def test_coverage_and_voxels_are_those_of_the_first_region():
    regions = torch.cat([TUMOR, 1 - TUMOR])
    out = LabelCoveraged()({"label": regions, "foreground": HEAD})
    assert (out["label_coverage"], out["tumor_voxels"]) == (2 / 3, 3)
    assert type(out["tumor_voxels"]) is int
    other = LabelCoveraged("seg", "brain")({"seg": TUMOR, "brain": HEAD})
    assert (other["label_coverage"], other["tumor_voxels"]) == (2 / 3, 3)
    assert LabelCoveraged()({"foreground": HEAD}).keys() == {"foreground"}


def named(path: str | None) -> MetaTensor:
    return MetaTensor(torch.zeros(1), meta={} if path is None else {"filename_or_obj": path})


@pytest.mark.parametrize(
    ("item", "name"),
    [
        ({"name": "p1", "image": named("a/b.nii")}, "p1"),
        ({"name": 7, "slice": 3}, "7"),
        ({"name": "", "image": named("a/b.nii.gz")}, "b"),
        ({"image": named("a/b.c.nii.gz"), "slice": 12}, "b.c_s012"),
        ({"image": named("a/b.png")}, "b"),
        ({"image": named("a/series")}, "series"),
        ({"image": named("a.b/series.gz")}, "series"),
        ({"image": named(None), "slice": 0, "plane": "sagittal"}, "case_sag000"),
        ({}, "case"),
    ],
)
def test_a_case_is_named_by_its_name_else_by_its_file_and_slice(item, name):
    assert case_name(item) == name


def test_the_key_of_the_image_may_be_another():
    assert case_name({"scan": named("a/b.nii")}, "scan") == "b"


def test_slices_of_one_volume_have_names_of_their_own():
    assert slice_suffix({"slice": 0}) == "_s000"
    assert slice_suffix({"slice": np.int64(1234), "plane": "axial"}) == "_s1234"
    assert slice_suffix({"slice": 5, "plane": ""}) == "_s005"
    assert slice_suffix({"slice": None, "plane": "coronal"}) == ""


def item(**more) -> dict:
    return {"image": MetaTensor(torch.ones(1, 2, 4, dtype=torch.float64)), "foreground": HEAD * 3, **more}


def test_an_item_without_a_mask_has_an_empty_one_and_nothing_is_known():
    out = Finalized(2)(item())
    assert list(out) == [
        "image", "foreground", "label", "has_mask", "diagnosis", "source", "patient", "group", "name", "label_coverage",
    ]  # fmt: skip
    assert type(out["image"]) is torch.Tensor
    assert out["image"].dtype == torch.float32
    assert torch.equal(out["foreground"], HEAD)
    assert out["label"].dtype == out["foreground"].dtype == torch.uint8
    assert out["label"].shape == (1, 2, 4)
    assert not out["label"].any()
    about = {key: out[key] for key in list(out)[3:]}
    assert about == {
        "has_mask": False, "diagnosis": -1, "source": "unknown", "patient": "", "group": "", "name": "case",
        "label_coverage": 1.0,
    }  # fmt: skip


def test_what_an_item_states_is_kept_as_text_and_numbers():
    out = Finalized(4)(
        item(label=TUMOR * 0.9, diagnosis=np.int64(3), source="brats", patient=17, group=0, name="x",
             label_coverage=np.float32(0.5))
    )  # fmt: skip
    assert torch.equal(out["label"], TUMOR)
    assert (out["has_mask"], out["diagnosis"], out["source"], out["patient"], out["group"]) == (
        True, 3, "brats", "17", "0",
    )  # fmt: skip
    assert type(out["diagnosis"]) is int
    assert (out["name"], out["label_coverage"]) == ("x", 0.5)
    assert type(out["label_coverage"]) is float


def test_a_mask_is_cut_at_one_half_and_more_than_that_is_tumor():
    label = torch.tensor([[[0.0, 0.49, 0.5, 0.51], [1, 2, 0, 0]]])
    assert Finalized(2)(item(label=label))["label"].tolist() == [[[0, 0, 0, 1], [1, 1, 0, 0]]]


def test_of_several_regions_the_label_is_the_first():
    regions = {"whole": [1, 2], "core": [2]}
    masks = torch.cat([TUMOR, TUMOR * 0])
    out = Finalized(2)(item(label=masks, regions=regions))
    assert torch.equal(out["region_masks"], masks)
    assert torch.equal(out["label"], TUMOR)
    without = Finalized(2)(item(regions=regions))
    assert without["region_masks"].shape == (2, 2, 4)
    assert not without["region_masks"].any()
    assert without["label"].shape == (1, 2, 4)
    assert "region_masks" not in Finalized(2)(item(label=TUMOR, regions={"whole": [1]}))


def test_an_item_that_is_free_of_lesions_has_a_known_mask():
    assert Finalized(2)(item(lesion_free=True))["has_mask"] is True
    assert Finalized(2)(item(lesion_free=False))["has_mask"] is False
    assert Finalized(2)(item(label=TUMOR, lesion_free=False))["has_mask"] is True


@pytest.mark.parametrize(
    ("classes", "voxels", "has_mask", "expected"),
    [
        (2, 0, True, 0), (2, 1, True, 1), (3, 0, True, 0), (3, 1, True, -1), (None, 0, True, 0), (2, 5, False, -1),
        (None, 5, False, -1),
    ],
)  # fmt: skip
def test_a_diagnosis_that_is_not_stated_follows_from_the_mask(classes, voxels, has_mask, expected):
    label = {"label": TUMOR * 0} if has_mask else {}  # what counts are the voxels of the original grid
    assert Finalized(classes)(item(tumor_voxels=voxels, **label))["diagnosis"] == expected


def test_a_tumor_without_a_diagnosis_needs_the_number_of_classes():
    with pytest.raises(
        ValueError, match=r"file p1: no diagnosis, and a tumor in the mask is class 1 only if there are"
    ):
        Finalized()(item(label=TUMOR, tumor_voxels=1, name="p1"))


@pytest.mark.parametrize(("classes", "value"), [(2, -1), (2, 0), (2, 1), (3, 2), (None, 99)])
def test_a_stated_diagnosis_is_a_class_or_unknown(classes, value):
    assert Finalized(classes)(item(diagnosis=value))["diagnosis"] == value


@pytest.mark.parametrize(
    ("classes", "value", "most"),
    [(2, 2, "1"), (3, 3, "2"), (2, -2, "1"), (2, True, "1"), (2, 1.0, "1"), (2, "1", "1"), (None, -2, "inf")],
)
def test_what_is_no_class_is_refused(classes, value, most):
    with pytest.raises(
        ValueError, match=rf"diagnosis {value!r} is not a class; expected an integer from 0 to {most}, or"
    ):
        Finalized(classes)(item(diagnosis=value))


def test_no_tumor_against_a_mask_with_tumor_is_refused():
    assert Finalized(2)(item(label=TUMOR, diagnosis=0, tumor_voxels=0))["diagnosis"] == 0
    assert Finalized(2)(item(label=TUMOR, diagnosis=1, tumor_voxels=9))["diagnosis"] == 1
    with pytest.raises(ValueError, match=r"diagnosis 0 \(no tumor\), but its mask has 1 tumor voxels"):
        Finalized(2)(item(label=TUMOR, diagnosis=0, tumor_voxels=1))


def test_two_classes_are_the_fewest():
    assert Finalized(2).num_classes == 2
    for few in (1, 0):
        with pytest.raises(ValueError, match=r"num_classes must be 2 or more .*, got"):
            Finalized(few)


@pytest.mark.parametrize("missing", ["image", "foreground"])
def test_without_image_or_foreground_no_item_is_made(missing):
    broken = {**item(), missing: None, "name": Path("p1")}
    with pytest.raises(ValueError, match="no 'image' or 'foreground'"):
        Finalized(2)(broken)


def test_keys_may_be_other_ones():
    out = Finalized(2, "scan", "seg", "brain")({"scan": torch.ones(1, 2, 4), "seg": TUMOR, "brain": HEAD})
    assert {"scan", "seg", "brain"} <= set(out)
    assert torch.equal(out["seg"], TUMOR)
