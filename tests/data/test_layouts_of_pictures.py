"""What is read of recognized pictures: class folders, TCGA, MATLAB, nnU-Net."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest

from scripts.__main__ import main as command
from scripts.data import datalists
from scripts.data.datalists.recognition import recognized
from tests.data.lists import built, items_of
from tests.data.picture_folders import draw, gray
from tests.data.trees import touch
from transforms.loading import LoadCased


def loaded(root: Path, item: dict) -> tuple[np.ndarray, np.ndarray]:
    found = LoadCased()({"image": str(root / item["image"]), "label": str(root / item["label"])})
    return found["image"][0].numpy(), found["label"][0].numpy()


def test_class_folders_with_masks_beside_the_images_in_any_parts(tmp_path):
    for k in range(12):
        kind, tumor = ("notumor", False) if k < 4 else ("glioma", True)
        part = "Training" if k % 2 else "Testing"
        pixels, mask = gray(k, tumor)
        draw(pixels, tmp_path / part / kind / f"Tr-{kind}_{k:04d}.jpg")
        if k in (4, 5):
            draw((mask * 255).astype(np.uint8), tmp_path / part / kind / f"Tr-{kind}_{k:04d}_mask.png")
    for number in (1, 2):
        draw((mask * 255).astype(np.uint8), tmp_path / "Training" / "glioma" / f"Tr-glioma_0011_mask_{number}.png")
    draw((mask * 255).astype(np.uint8), tmp_path / "Training" / "glioma" / "other_mask.png")
    plan = recognized.plan(tmp_path, progress=False)
    assert plan.taken[:4] == [
        "layout = pictures: class folders, or images with masks: <name>_mask.* beside them, or masks/ beside images/",
        "class 0 = notumor: 4 images", "class 1 = glioma: 7 images", "mask = *_mask.png in 2 of 11 images",
    ]  # fmt: skip
    assert dict(plan.report.unusable) == {
        "Training/glioma/Tr-glioma_0011.jpg": "has 2 masks (Tr-glioma_0011_mask_1.png, Tr-glioma_0011_mask_2.png): "
        "one of each is needed",
        "Training/glioma/other_mask.png": "a mask by its name, and no image of its stem is there",
    }
    datalist = plan.build()
    assert datalist["classes"] == {"0": "notumor", "1": "glioma"}
    masks = {item["image"]: item["label"] for item in items_of(datalist) if "label" in item}
    assert masks == {
        "Testing/glioma/Tr-glioma_0004.jpg": "Testing/glioma/Tr-glioma_0004_mask.png",
        "Training/glioma/Tr-glioma_0005.jpg": "Training/glioma/Tr-glioma_0005_mask.png",
    }


def test_slices_of_tcga_give_the_flair_of_three_images_and_the_patient(tmp_path, monkeypatch):
    folder, frames = tmp_path / "kaggle_3m", {}
    for k, case in enumerate(("TCGA_CS_4941_19960909", "TCGA_DU_5849_19950405", "TCGA_FG_6692_20020606")):
        for number in (1, 2, 3):
            pixels, mask = gray(10 * k + number, number > 1)
            frames[f"{case}/{case}_{number}"] = pixels
            color = np.stack([255 - pixels, pixels, pixels // 2], axis=2)
            draw(color, folder / case / f"{case}_{number}.tif")
            draw((mask * 255).astype(np.uint8), folder / case / f"{case}_{number}_mask.tif")
    touch(folder, "README.md", "data.csv")
    out = tmp_path / "lgg.json"
    command(["datalist", "build", "--folder", str(folder), "--out", str(out), "--dry_run"])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["kaggle_3m"]
    with pytest.raises(ValueError, match="among the images: give an --out outside"):
        recognized.plan(folder, unpack=folder / "x")
    command(["datalist", "build", "--folder", str(folder), "--out", str(out)])
    datalist = datalists.read(out, tmp_path / "lgg_pictures")
    assert datalist["modality"] == {"0": "FLAIR"}
    items = items_of(datalist)
    assert {item["patient"] for item in items} == {"TCGA_CS_4941", "TCGA_DU_5849", "TCGA_FG_6692"}
    assert len(items) == 9
    for item in items:
        stem = item["image"].removesuffix(".png")
        image, mask = loaded(tmp_path / "lgg_pictures", item)
        assert np.array_equal(image, frames[stem].T)
        assert item["diagnosis"] == int(mask.any()) == int(not stem.endswith("_1"))


def test_images_and_masks_in_two_folders_say_the_class_by_the_mask(tmp_path):
    for k in range(6):
        pixels, mask = gray(40 + k, k > 2)
        draw(pixels, tmp_path / "train" / "images" / f"{k}.png")
        draw((mask * 255).astype(np.uint8), tmp_path / "train" / "masks" / f"{k}.png")
    draw(pixels, tmp_path / "train" / "images" / "9.png")
    items, report = built(tmp_path)
    assert {item["image"]: item["diagnosis"] for item in items} == {
        f"train/images/{k}.png": int(k > 2) for k in range(6)
    }
    assert all(item["label"] == item["image"].replace("images", "masks") for item in items)
    assert "patient" not in items[0]
    assert dict(report.unusable) == {
        "train/images/9.png": "has no mask, and no folder is named as a class without tumor"
    }


def matlab(path: Path, image: np.ndarray, mask: np.ndarray, label: int, patient: str) -> Path:
    """A file as MATLAB 7.3 writes it: HDF5 behind 512 bytes of text, columns first."""
    h5py = pytest.importorskip("h5py")
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w", userblock_size=512) as file:
        file["cjdata/image"], file["cjdata/tumorMask"] = image.T, mask.T.astype(np.uint8)
        file["cjdata/label"] = np.array([[float(label)]])
        file["cjdata/PID"] = np.array([[ord(letter)] for letter in patient], np.uint16)
    with path.open("r+b") as file:
        file.write(b"MATLAB 7.3 MAT-file, Platform: PCWIN64".ljust(124) + b"\x00\x02IM")
    return path


def test_matlab_slices_give_image_mask_class_and_patient(tmp_path, caplog):
    folder, given = tmp_path / "cheng", {}
    for k in range(9):
        pixels, mask = gray(60 + k)
        image = pixels.astype(np.int16) * 40
        label = k % 3 + 1
        given[f"{('meningioma', 'glioma', 'pituitary')[k % 3]}/set_{k // 5}/{k}.png"] = (image, mask)
        matlab(folder / f"set_{k // 5}" / f"{k}.mat", image, mask, label, f"10{k // 3}36{'0A'[k % 2]}")
    touch(folder, "README.txt", "cvind.mat")
    matlab(folder / "damaged.mat", image, mask, 1, "5").write_bytes(b"MATLAB 7.3 MAT-file, damaged")
    matlab(folder / "label.mat", image, mask, 4, "5")
    out = tmp_path / "cheng.json"
    command(["datalist", "build", "--folder", str(folder), "--out", str(out)])
    assert "no item of class no_tumor" in caplog.text
    datalist = datalists.read(out, tmp_path / "cheng_pictures")
    items = items_of(datalist)
    assert datalist["classes"] == {"0": "no_tumor", "1": "meningioma", "2": "glioma", "3": "pituitary"}
    assert len({item["patient"] for item in items}) == 6
    for item in items:
        image, mask = loaded(tmp_path / "cheng_pictures", item)
        assert np.array_equal(image, given[item["image"]][0].T)
        assert np.array_equal(mask > 0, given[item["image"]][1].T)
        assert item["image"].startswith(datalist["classes"][str(item["diagnosis"])])
    written = json.loads((tmp_path / "cheng.report.json").read_text(encoding="utf-8"))
    assert {entry["file"]: entry["reason"].split(":")[0] for entry in written["unusable"]} == {
        "README.txt": "no .mat file of MATLAB 7.3",
        "cvind.mat": "no .mat file of MATLAB 7.3",
        "damaged.mat": "damaged.mat is damaged",
        "label.mat": "label.mat has the label 4, expected 1 to 3",
    }


def test_a_picture_whose_name_is_not_utf8_ends_no_class_folder(tmp_path):
    for k in range(6):
        draw(gray(80 + k, k > 2)[0], tmp_path / "images" / ("glioma" if k > 2 else "healthy") / f"{k}.png")
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/images/glioma/caf\xe9.png")).write_bytes(b"x")
    Path(tmp_path / "images" / "healthy" / ("x" * 251 + ".png")).write_bytes(b"x")
    plan = recognized.plan(tmp_path, progress=False)
    assert plan.taken[0].startswith("layout = image_folder: ")
    assert dict(plan.report.unusable)["images/glioma/caf\\xe9.png"] == "its name is not UTF-8; rename it"
    assert len(plan.report.unusable) == 2
    assert len(items_of(plan.build())) == 6


@pytest.mark.parametrize("listed", [False, True])
def test_pictures_of_nnunet_have_their_masks_in_the_folder_of_labels(tmp_path, listed):
    for k in range(6):
        pixels, mask = gray(90 + k, k > 2)
        draw(pixels, tmp_path / "imagesTr" / f"brain_{k}_0000.png")
        draw(mask.astype(np.uint8), tmp_path / "labelsTr" / f"brain_{k}.png")
    draw(pixels, tmp_path / "imagesTs" / "brain_9_0000.png")
    if listed:
        about = {"channel_names": {"0": "T1"}, "labels": {"background": 0, "tumor": 1}, "numTraining": 6}
        (tmp_path / "dataset.json").write_text(json.dumps({**about, "file_ending": ".png"}), encoding="utf-8")
    plan = recognized.plan(tmp_path)
    assert plan.taken[0].startswith("layout = pictures: ")
    items = items_of(plan.build())
    assert {item["image"]: (item["label"], item["diagnosis"]) for item in items} == {
        f"imagesTr/brain_{k}_0000.png": (f"labelsTr/brain_{k}.png", int(k > 2)) for k in range(6)
    }
    assert ("imagesTs/brain_9_0000.png", "has no mask, and no folder is named as a class without tumor") in (
        plan.report.unusable
    )
    draw(pixels, tmp_path / "imagesTr" / "brain_5_0001.png")
    plan = recognized.plan(tmp_path)
    assert dict(plan.report.unusable)["imagesTr/brain_5_0000.png"] == (
        "has the stem of 2 images (brain_5_0000.png, brain_5_0001.png): one of each is needed"
    )
