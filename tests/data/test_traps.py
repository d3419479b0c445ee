"""The traps of public brain-tumor collections: on made files always, on real ones where they are at hand.

Real images are found by the environment variable TUMORLENS_DATA (fixture `real_data`).
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from PIL import Image

from scripts.checks.verification import Verifier
from scripts.data import datalists
from scripts.data.datalists.fingerprints import unpacked
from scripts.data.datalists.patients import find_patients
from scripts.data.preprocessing import check_network_input, make_preprocessing
from tests.transforms.images import disc, head, overlap
from transforms.foreground import air_level, foreground_mask
from transforms.loading import LoadCased
from transforms.masks import binary_mask
from transforms.pictures import read_picture
from transforms.reading import read_volume

AFFINE = np.diag([-1.0, -1, 3, 1])


def save(array: np.ndarray, path: Path, mode: str = "L", **options) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.ascontiguousarray(np.clip(array, 0, 255).astype(np.uint8).T)).convert(mode).save(path, **options)
    return str(path)


def volume(array: np.ndarray, path: Path, affine: np.ndarray = AFFINE) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(np.asarray(array), affine), path)
    return str(path)


def unlike(seed: int) -> np.ndarray:
    """A head (160, 160) that is no near-duplicate of another seed's."""
    image, _ = head()
    rng = np.random.default_rng(seed)
    for _ in range(25):
        image[disc((160, 160), rng.uniform(6, 18), tuple(rng.uniform(45, 115, 2)))] = rng.uniform(20, 190)
    return image


def enter(path: str, **item) -> dict:
    """Through the pipeline to the network's door."""
    ready = make_preprocessing(96)({"image": path, **item})
    check_network_input(ready["image"][None], ready["foreground"][None])
    return ready


# The same pictures under many names


def test_copies_under_other_names_classes_and_mirrored_are_grouped(tmp_path):
    for k in range(12):
        save(unlike(k), tmp_path / "images" / ("no_tumor" if k < 6 else "tumor") / f"p{k}.png")
    save(unlike(0)[::-1], tmp_path / "images" / "no_tumor" / "Tr-no_0815.jpg", quality=70)
    save(unlike(7), tmp_path / "images" / "tumor" / "copy (1).png", mode="RGB")
    save(unlike(8), tmp_path / "images" / "no_tumor" / "moved.png")
    datalist, report = datalists.image_folder(tmp_path, progress=False)
    group = {Path(i["image"]).name: i["group"] for split in datalists.SPLITS for i in datalist[split]}
    assert group["Tr-no_0815.jpg"] == group["p0.png"]
    assert group["copy (1).png"] == group["p7.png"]
    assert report.figures["groups"] == 11
    assert {name for name, _ in report.unusable} == {"images/no_tumor/moved.png", "images/tumor/p8.png"}


def test_mirrored_copies_of_real_images_are_grouped(real_data):
    names = ["me_ax_t1 1321 1435", "gl_co_t1 443 492", "me_ax_t1 1342 1459", "no_ax_t1 2568 2828"]
    hashes, pairs = [], []
    for name in names:
        kind, *numbers = name.split()
        folder = {"me": "meningioma", "gl": "glioma", "no": "no_tumor"}[kind[:2]]
        for number in numbers:
            path = real_data / "brisc2025" / "images" / folder / f"brisc2025_train_{int(number):05d}_{kind}.jpg"
            with Image.open(path) as image:
                hashes.append(datalists.fingerprint(image))
        pairs += [len(pairs) // 2] * 2
    groups, _ = datalists.group_near_duplicates(np.array(hashes))
    assert groups.tolist() == pairs
    upright, _ = datalists.group_near_duplicates(unpacked(np.array(hashes))[:, 0])
    assert len(set(upright.tolist())) > len(names)  # the upright hash alone misses mirrored copies


# CT among the MRI


def test_ct_is_found_on_made_images(tmp_path):
    noise = np.random.default_rng(0).normal(0, 6, (200, 200))
    ct = np.where(disc((200, 200), 72), 100 + noise, np.where(disc((200, 200), 85), 255, 0))
    save(ct, tmp_path / "ct.png")
    save(unlike(0), tmp_path / "mr.png")
    verifier = Verifier(tmp_path, 64)
    assert "modality" in verifier({"image": "ct.png", "diagnosis": 0}, "training").broken
    assert verifier({"image": "mr.png", "diagnosis": 0}, "training").broken == {}


def test_ct_is_found_on_real_images(real_data):
    verifier = Verifier(real_data / "brisc2025", 64)
    where = "images/no_tumor/brisc2025_train_{}_no_{}_t1.jpg"
    ct = ["02568", "02773", "02802", "02769", "02682", "02670", "02570", "02818", "02800", "02683"]
    for number in ct:
        found = verifier({"image": where.format(number, "ax"), "diagnosis": 0}, "training").broken
        assert "modality" in found, number
    mr = ["no_tumor 02831_no_co", "meningioma 01248_me_ax", "meningioma 01274_me_ax", "pituitary 03549_pi_ax"]
    for name in mr:
        folder, stem = name.split()
        item = {"image": f"images/{folder}/brisc2025_train_{stem}_t1.jpg", "diagnosis": 0}
        assert "modality" not in verifier(item, "training").broken, name


# "No tumor" that is not healthy


def test_other_lesions_stay_no_tumor_and_their_mask_is_no_tumor_mask(tmp_path):
    for k in range(3):
        volume(head((48, 48, 16), 20, k)[0], tmp_path / f"patient{k}_FLAIR.nii.gz")
    volume(disc((48, 48, 16), 4).astype(np.uint8), tmp_path / "patient0_GOLD.nii.gz")
    datalist, report = datalists.nifti_volumes(tmp_path, progress=False)
    items = [item for split in datalists.SPLITS for item in datalist[split]]
    assert {item["diagnosis"] for item in items} == {0}
    assert not any("label" in item or "GOLD" in item["image"] for item in items)
    assert [name for name, _ in report.unusable] == ["patient0_GOLD.nii.gz"]


def test_real_lesion_volumes_are_no_tumor(real_data):
    datalist, report = datalists.nifti_volumes(real_data / "openms", progress=False)
    items = [item for split in datalists.SPLITS for item in datalist[split]]
    assert {item["patient"] for item in items} == {"patient07", "patient01", "patient20"}
    assert {item["diagnosis"] for item in items} == {0}
    assert (
        dict(report.unusable)["mni_patient07_GOLD.nii.gz"]
        == "mni_patient07_GOLD.nii.gz holds only the values 0, 1: a mask, no image"
    )


# Class geometry


def test_size_and_aspect_of_a_class_do_not_reach_the_network_as_shape_or_air(tmp_path):
    small, _ = head((120, 150), 45)
    large, _ = head((320, 320), 140)
    shapes = set()
    for k, image in enumerate((small, large)):
        ready = enter(save(image, tmp_path / f"{k}.png"))
        shapes.add(tuple(ready["image"].shape))
        rows = np.flatnonzero(ready["foreground"][0].any(1).numpy())
        assert rows[-1] - rows[0] + 1 >= 84  # the head fills the square, whatever the file's size
        assert (ready["image"][ready["foreground"] == 0] == 0).all()
    assert shapes == {(1, 96, 96)}


def test_real_images_of_every_class_get_one_specification(real_data):
    for folder in sorted((real_data / "brisc2025" / "images").iterdir()):
        for path in sorted(folder.glob("*.jpg"))[::300]:
            ready = enter(str(path))
            assert ready["image"].dtype == torch.float32
            assert tuple(ready["image"].shape) == (1, 96, 96)


# Burnt-in text, white backgrounds, cut fields of view


@pytest.mark.parametrize("kind", ["text", "white", "cut"])
def test_backgrounds_do_not_become_foreground(kind):
    image, outline = head()
    if kind == "text":
        for x in range(4, 60, 6):
            image[x : x + 3, 6:12] = 255
    elif kind == "white":
        image[~outline] = 255
    else:
        image, outline = image[:, 60:], outline[:, 60:]
    mask = foreground_mask(image[None])
    assert overlap(mask, outline) > 0.95
    assert (outline & ~mask).sum() <= 0.002 * outline.sum()


def test_a_bright_background_is_noted_and_masked(tmp_path):
    image, _ = head()
    save(np.where(disc(image.shape, 70), image, 255), tmp_path / "a.png")
    result = Verifier(tmp_path, 64)({"image": "a.png", "diagnosis": 0}, "training")
    assert result.broken == {"background": "corner mean 1.00, outside the mask"}
    ready = enter(str(tmp_path / "a.png"))
    assert (ready["image"][0, :4, :4] == 0).all()
    assert float(ready["foreground"].float().mean()) < 0.9


def test_real_cut_heads_are_noted_and_lose_no_tumor(real_data):
    verifier = Verifier(real_data / "brisc2025", 64)
    name = "images/no_tumor/brisc2025_train_02953_no_co_t1.jpg"
    assert "cut_head" in verifier({"image": name, "diagnosis": 0}, "training").broken
    stem = "brisc2025_train_03990_pi_co_t1"
    found = verifier(
        {"image": f"images/pituitary/{stem}.jpg", "label": f"masks/{stem}.png", "diagnosis": 3}, "training"
    )
    assert found.measures["mask_inside"] == 1


# Bytes and modes


def test_png_bytes_named_jpg_and_every_mode_give_the_same_picture(tmp_path):
    image = unlike(1)
    reference = read_picture(save(image, tmp_path / "a.png"))
    for k, mode in enumerate(("RGB", "RGBA", "P", "LA")):
        assert np.array_equal(read_picture(save(image, tmp_path / f"{k}.png", mode)), reference), mode
    assert np.array_equal(read_picture(save(image, tmp_path / "b.jpg", format="PNG")), reference)
    deep = Image.fromarray(np.asarray(Image.open(tmp_path / "a.png")).astype(np.uint16) * 257)
    deep.save(tmp_path / "deep.png")
    assert np.array_equal(read_picture(tmp_path / "deep.png"), reference * 257)
    one, two = (enter(str(tmp_path / name))["image"] for name in ("a.png", "deep.png"))
    assert torch.allclose(one, two, atol=1e-4)


# Masks


def test_antialiased_masks_are_cut_in_the_middle():
    assert binary_mask(np.array([[0.0, 1, 126, 127, 128, 254, 255]]), "m.png", picture=True).tolist() == [
        [0, 0, 0, 0, 1, 1, 1]
    ]


def test_float_masks_just_below_one_and_labels_of_every_year_are_tumor(tmp_path):
    labels = np.zeros((4, 4, 6))
    for k, value in enumerate((0.99999997, 1, 2, 3, 4)):
        labels[1, 1, k] = value
    path = volume(labels.astype(np.float64), tmp_path / "seg.nii.gz")
    scan = volume(np.random.default_rng(0).normal(size=(4, 4, 6)).astype(np.float32), tmp_path / "flair.nii.gz")
    for k in range(6):
        label = LoadCased()({"image": scan, "label": path, "slice": k})["label"]
        assert int(label.sum()) == (1 if k < 5 else 0)
        assert label.dtype == torch.uint8


def test_real_masks_are_read_as_tumor_and_brain(real_data):
    case = real_data / "brats2013" / "brats_2013_pat0003_1"
    brain, _ = read_volume(case / "brainmask.nii.gz", "nifti")
    assert 0.9999 < brain.max() <= 1
    assert binary_mask(brain, "brainmask", picture=False).sum() == (brain > 0).sum()
    tumor, _ = read_volume(case / "OTMultiClass.nii.gz", "nifti")
    assert sorted(np.unique(tumor)) == [0, 1, 2, 3, 4]
    _, report = datalists.nifti_cases(real_data / "brats2013", progress=False)
    assert report.figures["labels"] == [0, 1, 2, 3, 4]
    assert report.figures["normalized_before"] == 3


# Orientation


@pytest.mark.parametrize("codes", ["LPS", "LAS", "RAS", "PIR"])
def test_volumes_of_any_orientation_give_one_picture(tmp_path, codes):
    array = np.random.default_rng(0).normal(size=(7, 8, 5)).astype(np.float32)  # as it is in LPS
    turn = nib.orientations.ornt_transform(nib.orientations.axcodes2ornt("LPS"), nib.orientations.axcodes2ornt(codes))
    stored = nib.orientations.apply_orientation(array, turn)
    path = volume(stored, tmp_path / "v.nii", AFFINE @ nib.orientations.inv_ornt_aff(turn, array.shape))
    assert np.array_equal(LoadCased()({"image": path, "slice": 2})["image"][0].numpy(), array[:, :, 2])


def test_real_volumes_of_several_orientations_are_turned_to_lps(real_data):
    codes = Counter()
    for path in sorted(real_data.glob("*/*.nii.gz")):
        codes["".join(nib.aff2axcodes(nib.load(path).affine))] += 1
        image = LoadCased()({"image": str(path), "slice": 20})["image"]
        signs = np.sign(np.diag(image.affine.numpy()[:3, :3])).tolist()
        assert signs == [-1, -1, 1], path  # to the left, to posterior, to superior
    assert {"LAS", "LPS", "RAS"} <= set(codes)


# Air that is not 0


def test_air_below_zero_becomes_zero_with_the_brain_mask(tmp_path):
    image, inside = head((48, 48, 8), 20, 0)
    z = np.where(inside, (image - image[inside].mean()) / image[inside].std(), -4.2).astype(np.float32)
    item = {"slice": 4, "foreground": volume(inside.astype(np.float64) * 0.99999997, tmp_path / "brainmask.nii")}
    ready = enter(volume(z, tmp_path / "z.nii"), **item)
    raw = enter(volume(image.astype(np.float32), tmp_path / "raw.nii"), **item)
    assert (ready["image"][ready["foreground"] == 0] == 0).all()
    assert torch.allclose(ready["image"], raw["image"], atol=1e-3)  # as if it had not been normalized before


def test_real_normalized_volumes_are_recognized_and_handled(real_data):
    for case in sorted((real_data / "brats2013").iterdir()):
        scan, _ = read_volume(case / "Flair_subtrMeanDivStd.nii.gz", "nifti")
        air = air_level(scan)
        assert air is not None
        assert -4 < air < -3
        ready = enter(str(case / "Flair_subtrMeanDivStd.nii.gz"), slice=80, foreground=str(case / "brainmask.nii.gz"))
        assert float(ready["image"][0, 0, 0]) == 0
    for path in [*sorted((real_data / "openms").glob("*FLAIR*")), *sorted((real_data / "healthy").glob("*.nii.gz"))]:
        assert air_level(read_volume(path, "nifti")[0]) is None, path


# Missing patient numbers


def test_without_patients_groups_hold_copies_together_and_with_them_time_points(tmp_path):
    for k in range(12):
        save(unlike(k), tmp_path / "images" / ("no_tumor" if k < 6 else "tumor") / f"p{k}.png")
    datalist, _ = datalists.image_folder(tmp_path, progress=False)
    items = [item for split in datalists.SPLITS for item in datalist[split]]
    assert all("group" in item and "patient" not in item for item in items)
    assert len({datalists.cluster(item) for item in items}) == 12
    assert set(find_patients(["BraTS-GLI-00007-000", "BraTS-GLI-00007-001"]).of.values()) == {"BraTS-GLI-00007"}
    broken = {**datalist, "test": [*datalist["test"], {**datalist["training"][0], "image": "other.png"}]}
    with pytest.raises(ValueError, match="is in both training and test"):
        datalists.assert_no_overlap(broken)
