"""Which file an error names, and what a plain tensor keeps of what it was."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from monai.data import MetaTensor

from transforms.describe import Untraced, describe, file_of, spacing_of

NAMED = MetaTensor(torch.zeros(1, 2, 2), meta={"filename_or_obj": "p/a.png"})
VOLUME = MetaTensor(torch.zeros(1, 2, 3, 4), affine=np.diag([-1.0, 1.5, 3, 1]), meta={"filename_or_obj": "p/v.nii"})


@pytest.mark.parametrize(
    ("item", "text"),
    [
        ({"image": "p/a.png"}, "file p/a.png"),
        ({"image": Path("p/a.png")}, "file p/a.png"),
        ({"image": ["p/t1.nii", "p/t2.nii"], "name": "p1"}, "file p/t1.nii"),
        ({"image": (Path("p/t1.nii"),)}, "file p/t1.nii"),
        ({"image": NAMED, "name": "p1"}, "file p/a.png"),
        ({"image": torch.zeros(1), "image_meta_dict": {"filename_or_obj": "p/b.png"}}, "file p/b.png"),
        ({"image": torch.zeros(1), "name": "p1"}, "file p1"),
        ({"image": np.zeros(3), "name": "p1"}, "file p1"),
        ({"image": [], "name": "p1"}, "file p1"),
        ({"name": "p1"}, "file p1"),
        ({"name": 7}, "file 7"),
        ({"image": "p/v.nii", "slice": 73}, "file p/v.nii, slice 73"),
        ({"image": "p/v.nii", "slice": 0}, "file p/v.nii, slice 0"),
        ({"image": "p/v.nii", "slice": None}, "file p/v.nii"),
        ({"image": np.zeros(3)}, "the item under 'image'"),
        ({"name": ""}, "the item under 'image'"),
        ({}, "the item under 'image'"),
        ({"slice": 4}, "the item under 'image', slice 4"),
    ],
)
def test_an_item_is_named_by_its_file_else_by_its_name(item, text):
    assert describe(item) == text


def test_another_key_may_hold_the_file():
    assert describe({"label": "p/m.png", "image": "p/a.png"}, "label") == "file p/m.png"
    assert describe({"image": "p/a.png"}, "label") == "the item under 'label'"


@pytest.mark.parametrize(
    ("item", "path"),
    [
        ({"image": NAMED, "image_meta_dict": {"filename_or_obj": "other"}}, "p/a.png"),
        ({"image": torch.zeros(1), "image_meta_dict": {"filename_or_obj": Path("p/b.png")}}, "p/b.png"),
        ({"image": torch.zeros(1), "image_meta_dict": {}}, None),
        ({"image": torch.zeros(1), "image_meta_dict": "p/b.png"}, None),
        ({"image": MetaTensor(torch.zeros(1))}, None),
        ({}, None),
    ],
)
def test_the_file_of_a_tensor_is_that_of_its_metadata(item, path):
    assert file_of(item) == path


def test_spacing_is_that_of_a_volume_with_metadata():
    assert spacing_of(VOLUME) == (1.0, 1.5, 3.0)
    assert all(type(side) is float for side in spacing_of(VOLUME))
    assert spacing_of(NAMED) is None
    assert spacing_of(VOLUME.as_tensor()) is None


def test_plain_tensors_keep_the_name_of_the_file_and_the_spacing_of_the_image():
    coarse = MetaTensor(torch.ones(1, 2, 3, 4), affine=np.diag([9.0, 9, 9, 1]), meta={"filename_or_obj": "p/m.nii"})
    item = {"image": VOLUME, "label": coarse, "foreground": torch.ones(1), "slice": 3}
    out = Untraced(["image", "label", "foreground", "missing"])(item)
    assert type(out["image"]) is type(out["label"]) is torch.Tensor
    assert torch.equal(out["label"], coarse.as_tensor())
    assert out["foreground"] is item["foreground"]
    assert out["spacing_mm"] == (1.0, 1.5, 3.0)
    assert out["image_meta_dict"] == {"filename_or_obj": "p/v.nii"}
    assert out["label_meta_dict"] == {"filename_or_obj": "p/m.nii"}
    assert set(out) == {*item, "spacing_mm", "image_meta_dict", "label_meta_dict"}
    assert isinstance(item["image"], MetaTensor), "the item itself is left alone"
    assert describe(out) == "file p/v.nii, slice 3"


def test_of_pictures_and_of_masks_no_spacing_is_kept():
    assert "spacing_mm" not in Untraced("image")({"image": NAMED})
    assert "spacing_mm" not in Untraced(["image", "label"])({"label": VOLUME})
