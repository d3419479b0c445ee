"""Folders of pictures by class, with masks beside them."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from scripts.data import datalists
from scripts.data.datalists.folders import class_names
from tests.data.picture_folders import fill


def test_no_tumor_class_comes_first_and_unknown_names_are_listed():
    assert class_names(["glioma", "No-Tumor", "adenoma"]) == ["No-Tumor", "adenoma", "glioma"]
    with pytest.raises(ValueError, match=r"named one of no_tumor, notumor.*got 0 among \['clear', 'glioma'\]"):
        class_names(["glioma", "clear"])
    with pytest.raises(ValueError, match="got 2 among"):
        class_names(["glioma", "no", "healthy"])


def test_image_folder_makes_the_same_datalist_twice_and_pairs_masks(tmp_path, pool):
    folder = fill(tmp_path / "set", {"healthy": pool[:12], "tumor": pool[12:]})
    (folder / "masks").mkdir()
    for k in range(8):
        mask = np.zeros((96, 96), dtype=np.uint8)
        mask[40:50, 40:50] = 200
        Image.fromarray(mask).save(folder / "masks" / f"tumor{k:02d}.png")
    first, report = datalists.image_folder(folder, root=tmp_path, seed=2, progress=False)
    assert datalists.image_folder(folder, root=tmp_path, seed=2, progress=False)[0] == first
    assert report.unusable == []
    assert first["classes"] == {"0": "healthy", "1": "tumor"}
    items = [item for split in datalists.SPLITS for item in first[split]]
    assert len(items) == 24
    assert {item["image"]: item.get("label") for item in items}[
        "set/images/tumor/tumor03.png"
    ] == "set/masks/tumor03.png"
    assert sum("label" in item for item in items) == 8
    assert {item["source"] for item in items} == {"set"}
    datalists.validate(first, tmp_path)
    # Stratified by class and mask: 12 healthy, 8 with and 4 without a mask.
    rows = {(row["split"], row["class"]): (row["items"], row["with_mask"]) for row in datalists.summary(first)}
    assert rows["training", "healthy"] == (7, 0)
    assert rows["test", "healthy"] == (3, 0)
    assert [rows[split, "tumor"][1] for split in datalists.SPLITS] == [5, 1, 2]


def test_limit_keeps_the_class_shares_and_depends_on_the_seed(tmp_path, pool):
    folder = fill(tmp_path, {"no": pool[:6], "glioma": pool[6:12], "pituitary": pool[12:]})
    datalist, report = datalists.image_folder(folder, limit=12, seed=1, progress=False)
    items = [item for split in datalists.SPLITS for item in datalist[split]]
    assert Counter(item["diagnosis"] for item in items) == {0: 3, 1: 3, 2: 6}
    assert report.figures["images"] == 12
    other, _ = datalists.image_folder(folder, limit=12, seed=2, progress=False)
    assert {item["image"] for split in datalists.SPLITS for item in other[split]} != {item["image"] for item in items}


def test_every_unusable_file_is_reported_with_its_reason(tmp_path, pool):
    folder = fill(tmp_path, {"no_tumor": pool[:8], "tumor": pool[8:16]})
    images, masks = folder / "images", folder / "masks"
    masks.mkdir()
    (images / "tumor" / "torn.png").write_bytes((images / "tumor" / "tumor00.png").read_bytes()[:300])
    (images / "tumor" / "text.jpg").write_text("no picture")
    (images / "tumor" / "notes.txt").write_text("x")
    (images / "stray.png").write_bytes(b"x")
    Image.new("L", (64, 64), 9).save(images / "tumor" / "flat.png")
    pool[0].resize((20, 64)).save(images / "tumor" / "thin.png")
    pool[9].save(images / "no_tumor" / "same_as_tumor01.png")
    Image.new("L", (50, 40), 255).save(masks / "tumor02.png")
    Image.new("L", (96, 96), 0).save(masks / "tumor03.png")
    spot = Image.new("L", (96, 96))
    spot.paste(255, (40, 40, 50, 50))
    spot.save(masks / "no_tumor04.png")
    Image.new("L", (96, 96), 255).save(masks / "nobody.png")
    datalist, report = datalists.image_folder(folder, progress=False)
    reasons = {Path(name).name: reason for name, reason in report.unusable}
    expected = {
        "torn.png": "",
        "text.jpg": "cannot be read as a picture: its content is none",
        "notes.txt": "not one of .png",
        "stray.png": "not in a class folder",
        "flat.png": "every pixel is 9",
        "thin.png": "20 x 64 pixels",
        "same_as_tumor01.png": "the same pixels stand in classes no_tumor, tumor",
        "tumor01.png": "the same pixels stand in classes no_tumor, tumor",
        "tumor02.png": "mask tumor02.png is 50 x 40, image 96 x 96",
        "tumor03.png": "the class says there is a tumor",
        "no_tumor04.png": "the class says there is none",
        "nobody.png": "no image has the stem 'nobody'",
    }
    assert set(reasons) == set(expected)
    for name, part in expected.items():
        assert part in reasons[name], (name, reasons[name])
    used = {item["image"] for split in datalists.SPLITS for item in datalist[split]}
    assert len(used) == 16 - 4
    assert report.figures["unusable"] == 12


def test_pictures_in_folders_of_other_names_are_not_overlooked(tmp_path, pool):
    folder = fill(tmp_path, {"no_tumor": pool[:8], "tumor": pool[8:16]})
    for name, count in (("mask", 3), ("Masks/tumor", 2), ("foreground", 1)):
        (folder / name).mkdir(parents=True)
        for k in range(count):
            Image.new("L", (96, 96), 255).save(folder / name / f"tumor{k:02d}.png")
    (folder / "masks" / "tumor").mkdir(parents=True)
    pool[0].save(folder / "overview.png")
    (folder / "README.txt").write_text("no picture")
    (folder / "lists").mkdir()
    datalist, report = datalists.image_folder(folder, progress=False)
    known = "that is not looked at; known are images, masks, foregrounds, nearest:"
    assert dict(report.unusable) == {
        "mask": f"a folder of 3 image files {known} 'masks'",
        "Masks": f"a folder of 2 image files {known} 'masks'",
        "foreground": f"a folder of 1 image files {known} 'foregrounds'",
        "overview.png": "a picture beside the folders images, masks, foregrounds",
        "masks/tumor": "a folder inside masks; masks lie in masks itself",
    }
    assert [report.figures[key] for key in ("found", "used", "refused", "beyond_limit")] == [21, 16, 5, 0]
    assert not any("label" in item for split in datalists.SPLITS for item in datalist[split])
    assert 0 <= report.figures["test_within_48_bits_of_training"] <= 1


def test_nothing_usable_is_an_error(tmp_path):
    for kind in ("no_tumor", "tumor"):
        (tmp_path / "images" / kind).mkdir(parents=True)
        (tmp_path / "images" / kind / "a.png").write_text("no picture")
    with pytest.raises(
        ValueError, match=r"no usable image of class no_tumor, tumor.*2 unusable, first: images/no_tumor/a.png"
    ):
        datalists.image_folder(tmp_path, progress=False)
    with pytest.raises(FileNotFoundError, match="has no folder 'images'"):
        datalists.image_folder(tmp_path / "images", progress=False)


def test_a_plan_counts_images_masks_and_foregrounds(tmp_path):
    for name in ("images/no/a.png", "images/no/b.png", "images/glioma/c.png", "masks/c.png", "foregrounds/a.png",
                 "foregrounds/c.png", "qqq/x.png"):  # fmt: skip
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    plan = datalists.image_folder.plan(tmp_path)
    assert plan.taken[:4] == [
        "class 0 = no: 2 images of images/no",
        "class 1 = glioma: 1 images of images/glioma",
        "mask = masks/<stem of the image>.png of 1 of 3 images",
        "foreground = foregrounds/<stem of the image>.png of 2 of 3 images",
    ]
    assert plan.taken[4].startswith("no patient known from the names")
    ((name, reason),) = plan.report.unusable
    assert (name, reason.split(", nearest: ")[0]) == (
        "qqq", "a folder of 1 image files that is not looked at; known are images, masks, foregrounds",
    )  # fmt: skip
    named = datalists.image_folder.plan(tmp_path, patient_pattern=".")
    assert named.taken[4].startswith("3 images of 1 patients; patient = 'i'")
