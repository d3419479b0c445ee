from __future__ import annotations

import copy
import json
import os
from collections import Counter
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from scripts.__main__ import main as command
from scripts.data import datalists
from scripts.data.datalists.folders import class_names
from scripts.data.datalists.similarity import places
from scripts.data.datalists.slices import qualifying_slices, share_out, spread
from scripts.data.datalists.volumes import load_oriented
from scripts.phantoms.dataset import make_phantoms, phantom_slice


def picture(index: int, size: int = 96, tumor: bool = False) -> Image.Image:
    image, _ = phantom_slice([77, index], tumor, (size, size), level_mm=-20 + 17 * (index % 5))
    return Image.fromarray(np.rint(image.T * 255).astype(np.uint8))


@pytest.fixture(scope="module")
def pool() -> list[Image.Image]:
    return [picture(index) for index in range(24)]


def fill(folder: Path, classes: dict[str, list[Image.Image]]) -> Path:
    for name, images in classes.items():
        (folder / "images" / name).mkdir(parents=True)
        for k, image in enumerate(images):
            image.save(folder / "images" / name / f"{name}{k:02d}.png")
    return folder


def minimal() -> dict:
    return {
        "name": "x",
        "modality": {"0": "FLAIR"},
        "classes": {"0": "no_tumor", "1": "tumor"},
        "training": [{"image": "a.png", "diagnosis": 0, "patient": "p1"}],
        "validation": [{"image": "b.png", "diagnosis": 1, "patient": "p2"}],
        "test": [{"image": "c.png", "label": "m.png", "patient": "p3", "slice": 4}],
    }


# Schema


def test_a_wrong_item_key_names_item_and_nearest_key():
    broken = minimal()
    broken["validation"][0]["lable"] = "m.png"
    with pytest.raises(ValueError, match=r"validation\[0\]: unknown key 'lable'; nearest: 'label'"):
        datalists.validate(broken)


def test_a_wrong_top_key_names_the_nearest():
    broken = minimal()
    broken["train"] = broken.pop("training")
    with pytest.raises(ValueError, match=r"unknown key 'train'; nearest: 'training'"):
        datalists.validate(broken)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d.pop("test"), r"key 'test' is missing"),
        (lambda d: d["test"].append("c.png"), r"test\[1\]: expected an object with 'image', got str"),
        (lambda d: d["training"][0].pop("image"), r"training\[0\]: 'image' must be a path"),
        (lambda d: d["training"][0].pop("diagnosis"), r"training\[0\] \(a.png\): needs 'label' or 'diagnosis'"),
        (lambda d: d["training"][0].update(diagnosis=2), r"'diagnosis' must be a whole number from -1 to 1, got 2"),
        (lambda d: d["training"][0].update(diagnosis=True), r"'diagnosis' must be a whole number .* got True"),
        (lambda d: d["test"][0].update(slice=-1), r"'slice' must be a whole number of 0 or more, got -1"),
        (lambda d: d["training"][0].update(patient=7), r"'patient' must be a non-empty text, got 7"),
        (lambda d: d.update(classes={"0": "only"}), r"'classes' must map"),
        (lambda d: d["test"][0].update(patient="p1"), r"patient 'p1' is in both training and test"),
        (lambda d: d["test"][0].update(image="./a.png"), r"image 'a.png' is in both training and test"),
    ],
)
def test_a_broken_datalist_is_refused_with_the_place(change, message):
    broken = minimal()
    datalists.validate(broken)
    change(broken)
    with pytest.raises(ValueError, match=message):
        datalists.validate(broken)


def test_groups_must_not_overlap():
    broken = minimal()
    broken["training"][0]["group"] = broken["test"][0]["group"] = "g-1"
    with pytest.raises(ValueError, match="group 'g-1' is in both training and test"):
        datalists.assert_no_overlap(broken)


def test_missing_files_are_counted_and_the_first_is_named(tmp_path):
    for name in ("a.png", "c.png"):
        (tmp_path / name).touch()
    with pytest.raises(FileNotFoundError, match=r"validation\[0\] names 'b.png'.*\(2 files missing\)"):
        datalists.validate(minimal(), tmp_path)


def test_write_then_read_restores_and_a_broken_list_is_not_written(tmp_path):
    datalists.write(minimal(), tmp_path / "lists" / "x.json")
    assert datalists.read(tmp_path / "lists" / "x.json") == minimal()
    broken = minimal()
    broken["test"][0]["patient"] = "p1"
    with pytest.raises(ValueError, match="both training and test"):
        datalists.write(broken, tmp_path / "lists" / "y.json")
    assert [path.name for path in (tmp_path / "lists").iterdir()] == ["x.json"]


def test_read_names_a_missing_and_a_torn_file(tmp_path):
    with pytest.raises(FileNotFoundError, match="no datalist at"):
        datalists.read(tmp_path / "no.json")
    (tmp_path / "torn.json").write_text('{"name": ')
    with pytest.raises(ValueError, match=r"torn\.json is no JSON file"):
        datalists.read(tmp_path / "torn.json")


def test_merge_joins_split_by_split_and_refuses_other_classes_and_shared_patients(caplog):
    other = copy.deepcopy(minimal())
    for k, split in enumerate(datalists.SPLITS):
        other[split][0].update(image=f"z{k}.png", patient=f"q{k}", source="second")
    merged = datalists.merge([minimal(), other], name="both")
    assert merged["name"] == "both"
    assert [[item["patient"] for item in merged[split]] for split in datalists.SPLITS] == [
        ["p1", "q0"],
        ["p2", "q1"],
        ["p3", "q2"],
    ]
    with pytest.raises(ValueError, match="classes differ"):
        datalists.merge([minimal(), {**other, "classes": {"0": "no_tumor", "1": "glioma"}}])
    assert "patient numbers" not in caplog.text
    other["test"][0]["patient"] = "p1"  # of the second source: another person than p1 of no source
    assert len(datalists.merge([minimal(), other])["test"]) == 2
    assert "1 patient numbers stand in several sources (first: 'p1' in (no source) and second)" in caplog.text
    first = minimal()
    first["training"][0]["source"] = "second"
    with pytest.raises(ValueError, match="patient 'second: p1' is in both training and test"):
        datalists.merge([first, other])


def test_summary_counts_items_masks_and_patients():
    datalist = minimal()
    datalist["training"].append({"image": "d.png", "label": "n.png", "diagnosis": 0, "patient": "p1"})
    assert datalists.summary(datalist) == [
        {"split": "training", "source": "", "class": "no_tumor", "items": 2, "with_mask": 1, "units": 1},
        {"split": "validation", "source": "", "class": "tumor", "items": 1, "with_mask": 0, "units": 1},
        {"split": "test", "source": "", "class": "unknown", "items": 1, "with_mask": 1, "units": 1},
    ]


# Splits


def test_units_are_dealt_in_the_given_shares_per_stratum_whatever_their_order():
    strata = {f"u{k:03d}": "a" if k < 100 else "b" for k in range(140)}
    sides = datalists.split_units(strata, (0.6, 0.15, 0.25), seed=4)
    counts = Counter((strata[name], side) for name, side in sides.items())
    assert [counts["a", side] for side in datalists.SPLITS] == [60, 15, 25]
    assert [counts["b", side] for side in datalists.SPLITS] == [24, 6, 10]
    assert datalists.split_units(dict(reversed(strata.items())), (0.6, 0.15, 0.25), seed=4) == sides
    assert datalists.split_units(strata, (0.6, 0.15, 0.25), seed=5) != sides


def test_large_units_do_not_all_land_in_training():
    strata = {f"u{k}": "a" for k in range(120)}
    sizes = {f"u{k}": 5 if k < 20 else 1 for k in range(120)}
    sides = datalists.split_units(strata, (0.6, 0.15, 0.25), sizes=sizes)
    large = Counter(sides[f"u{k}"] for k in range(20))
    assert [large[side] for side in datalists.SPLITS] == [12, 3, 5]


def test_three_units_reach_all_three_splits():
    assert sorted(datalists.split_units(dict.fromkeys("abc", "s")).values()) == sorted(datalists.SPLITS)


@pytest.mark.parametrize("fractions", [(0.5, 0.5), (0.5, 0.5, 0.5), (1.0, 0.0, 0.0)])
def test_fractions_must_be_three_that_sum_to_one(fractions):
    with pytest.raises(ValueError, match="three positive numbers that sum to 1"):
        datalists.split_units({"a": "s"}, fractions)


# Near-duplicates


def test_groups_join_over_chains_and_by_content():
    hashes = np.zeros((5, 256), dtype=bool)
    hashes[1, :40] = True  # 40 bits from 0
    hashes[2, :80] = True  # 40 bits from 1, 80 from 0
    hashes[3, 100:141] = True  # 41 bits from 0
    hashes[4, 128:] = True
    assert datalists.group_near_duplicates(hashes)[0].tolist() == [0, 0, 0, 1, 2]
    assert datalists.group_near_duplicates(hashes, 39)[0].tolist() == [0, 1, 2, 3, 4]
    same = np.array([0, 1, 2, 3, 0])
    assert datalists.group_near_duplicates(hashes, 39, same)[0].tolist() == [0, 1, 2, 3, 0]


def test_neighbors_in_the_order_of_files_may_differ_more():
    hashes = np.zeros((4, 256), dtype=bool)
    hashes[1, :68] = True  # 68 bits from 0
    hashes[2, 100:169] = True  # 69 bits from 0
    hashes[3, 32:100] = True  # 68 bits from 0, 64 from 1
    assert datalists.group_near_duplicates(hashes)[0].tolist() == [0, 1, 2, 3]
    assert datalists.group_near_duplicates(hashes, order=np.array([1, 0, 2, 9]))[0].tolist() == [0, 0, 1, 2]
    assert datalists.group_near_duplicates(hashes, order=np.array([1, 8, 7, 3]))[0].tolist() == [0, 1, 2, 0]
    assert datalists.group_near_duplicates(hashes, order=np.array([1, 4, 7, 10]))[0].tolist() == [0, 1, 2, 3]
    views = np.random.default_rng(0).integers(0, 2, (2, 5, 256)).astype(bool)
    views[1, 3] = views[0, 1]  # the turned head, mirrored
    views[1, 3, :61] ^= True  # 61 bits of 0.9 * 68
    assert datalists.group_near_duplicates(views)[0].tolist() == [0, 1]
    assert datalists.group_near_duplicates(views, order=np.array([5, 6]))[0].tolist() == [0, 0]


def test_the_order_of_names_counts_numbers_by_value(tmp_path, pool):
    folder = fill(tmp_path, {"no_tumor": pool[:12], "tumor": pool[12:]})
    tumors = folder / "images" / "tumor"
    names = [path.name for path in sorted(tumors.iterdir())]
    for k, name in enumerate(names):
        (tumors / name).rename(tumors / f"scan {k + 1}.png")
    files = [path.relative_to(folder).as_posix() for path in sorted(tumors.iterdir())]
    assert files[:2] == ["images/tumor/scan 1.png", "images/tumor/scan 10.png"]
    found = places([files, ["other.png"]])
    assert [found[f"images/tumor/scan {k + 1}.png"] for k in range(12)] == list(range(1000, 1012))
    assert found["other.png"] == 2011


def test_a_chain_through_most_images_lowers_the_distance():
    hashes = np.zeros((60, 512), dtype=bool)
    for k in range(60):
        hashes[k, : 8 * k] = True  # neighbors differ by 8 bits
    groups, distance = datalists.group_near_duplicates(hashes, 24)
    assert (distance.upright, distance.turned) == (0, 0)
    assert groups.tolist() == list(range(60))
    hashes[1] = hashes[0]
    groups, _ = datalists.group_near_duplicates(hashes, 24)
    assert groups[0] == groups[1]
    assert groups.max() == 58


def test_hash_ignores_mode_and_depth(pool):
    expected = datalists.perceptual_hash(pool[0])
    for mode in ("RGB", "RGBA", "P"):
        np.testing.assert_array_equal(datalists.perceptual_hash(pool[0].convert(mode)), expected)
    deep = Image.fromarray(np.asarray(pool[0]).astype(np.uint16) * 257)
    assert (datalists.perceptual_hash(deep) != expected).sum() <= 6
    assert (datalists.perceptual_hash(pool[1]) != expected).sum() > 40


def test_resized_and_recoded_copies_land_on_one_side(tmp_path, pool):
    folder = fill(tmp_path, {"no_tumor": pool[:12], "tumor": pool[12:]})
    for kind, start in (("no_tumor", 0), ("tumor", 12)):
        for k in range(0, 12, 2):
            copied = pool[start + k].resize((160, 150), Image.Resampling.BICUBIC)
            copied.save(folder / "images" / kind / f"copy{k:02d}.jpg", quality=60)
    datalist, report = datalists.image_folder(folder, progress=False)
    assert report.figures["images"] == 36
    assert report.figures["groups"] == 24
    assert report.figures["largest_group"] == 2
    where = {item["image"]: (split, item["group"]) for split in datalists.SPLITS for item in datalist[split]}
    for kind in ("no_tumor", "tumor"):
        for k in range(0, 12, 2):
            assert where[f"images/{kind}/{kind}{k:02d}.png"] == where[f"images/{kind}/copy{k:02d}.jpg"]
    datalists.assert_no_overlap(datalist)


# Image folders


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


# Volumes


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


@pytest.fixture(scope="module")
def phantoms(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("datalists") / "set"
    make_phantoms(path, seed=1, patients=10, singles=12, progress=False)
    return path


def test_nifti_cases_split_patients_and_tell_each_slice(phantoms):
    datalist, report = datalists.nifti_cases(phantoms / "patients", root=phantoms, progress=False)
    datalists.validate(datalist, phantoms)
    assert report.unusable == []
    assert report.figures["patients"] == 10
    assert report.figures["healthy_patients"] == 4
    items = [item for split in datalists.SPLITS for item in datalist[split]]
    assert report.figures["tumor_slices"] == sum(item["diagnosis"] for item in items)
    for patient, own in ((p, [i for i in items if i["patient"] == p]) for p in {i["patient"] for i in items}):
        mask, _ = load_oriented(phantoms / "patients" / patient / f"{patient}_seg.nii.gz")
        share = {item["slice"]: mask[..., item["slice"]].mean() for item in own}
        assert all(share[i["slice"]] >= 0.003 if i["diagnosis"] else share[i["slice"]] == 0 for i in own)
        assert sum(item["diagnosis"] for item in own) <= 5
        assert sum(item["diagnosis"] == 0 for item in own) <= 3
    healthy = {f"p{k:03d}" for k in range(10) if k % 5 in (1, 3)}
    assert all(any(item["patient"] in healthy for item in datalist[split]) for split in datalists.SPLITS)
    assert datalists.nifti_cases(phantoms / "patients", root=phantoms, progress=False)[0] == datalist


def test_unusable_patients_are_reported(tmp_path):
    rng = np.random.default_rng(0)
    scan = np.zeros((40, 40, 12), dtype=np.int16)
    scan[8:32, 8:32] = rng.integers(300, 400, (24, 24, 12))
    mask = np.zeros(scan.shape, dtype=np.float64)
    mask[14:20, 14:20, 4:8] = 0.99999997
    affine = np.diag([-1.0, -1.0, 5.0, 1.0])

    def save(patient: str, **volumes: tuple[np.ndarray, np.ndarray]) -> None:
        (tmp_path / patient).mkdir()
        for name, (array, matrix) in volumes.items():
            nib.save(nib.Nifti1Image(array, matrix), tmp_path / patient / f"{patient}_{name}.nii.gz")

    for k in range(3):
        save(f"ok{k}", FLAIR=(scan + np.int16(k) * (scan > 0), affine), seg=(mask, affine))
    save("noseg", flair=(scan, affine))
    save("two", flair=(scan, affine), t2f=(scan, affine), seg=(mask, affine))
    save("twin", flair=(scan + np.int16(1) * (scan > 0), affine), seg=(mask, affine))
    save("grid", flair=(scan, affine), seg=(mask[:30], affine))
    save("moved", flair=(scan, affine), seg=(mask, np.diag([-1.0, -1.0, 4.0, 1.0])))
    save("flat", flair=(scan * 0, affine), seg=(mask, affine))
    save("torn", seg=(mask, affine))
    (tmp_path / "torn" / "torn_flair.nii.gz").write_bytes(b"no gzip")
    (tmp_path / "readme.txt").write_text("x")
    datalist, report = datalists.nifti_cases(tmp_path, progress=False)
    reasons = dict(report.unusable)
    assert set(reasons) == {"noseg", "two", "twin", "grid", "moved", "flat", "torn", "readme.txt"}
    assert "expected one mask (seg) file, found 0" in reasons["noseg"]
    assert reasons["twin"] == "the same voxels as ok1/ok1_FLAIR.nii.gz"
    assert "found 2" in reasons["two"]
    assert "(40, 40, 12) and grid_seg.nii.gz (30, 40, 12) are not on the same grid" in reasons["grid"]
    assert "same grid" in reasons["moved"]
    assert "constant" in reasons["flat"]
    assert {item["patient"] for split in datalists.SPLITS for item in datalist[split]} == {"ok0", "ok1", "ok2"}
    assert [report.figures[key] for key in ("found", "used", "refused")] == [11, 3, 8]
    assert report.figures["files"] == {"found": 21, "used": 6, "beside_used_ones": 0, "in_cases_beyond_limit": 0,
                                      "in_refused_cases": 15}  # fmt: skip
    assert {(i["slice"], i["diagnosis"]) for i in datalist["test"]} == {
        (4, 1), (5, 1), (6, 1), (7, 1), (1, 0), (9, 0), (11, 0)
    }  # fmt: skip


def test_sources_merge_without_overlap_by_the_command_line(phantoms, tmp_path):
    root = ["--root", str(phantoms)]
    command(
        ["datalist", "nifti_cases", "--folder", str(phantoms / "patients"), *root, "--out", str(tmp_path / "a.json")]
    )
    command(
        ["datalist", "image_folder", "--folder", str(phantoms / "singles"), *root, "--out", str(tmp_path / "b.json")]
        + ["--modality", "FLAIR"]
    )
    command(
        ["datalist", "merge", str(tmp_path / "a.json"), str(tmp_path / "b.json"), "--out", str(tmp_path / "c.json")]
    )
    command(["datalist", "check", "--datalist_file", str(tmp_path / "c.json"), "--dataset-dir", str(phantoms)])
    merged = datalists.read(tmp_path / "c.json", phantoms)
    assert {row["source"] for row in datalists.summary(merged)} == {"patients", "singles"}
    assert json.loads((tmp_path / "b.report.json").read_text(encoding="utf-8"))["figures"]["images"] == 12
    with pytest.raises(FileNotFoundError, match=r"^c.json: training\[0\] names 'patients/"):
        command(["datalist", "check", "--datalist_file", str(tmp_path / "c.json"), "--dataset_dir", str(tmp_path)])


@pytest.mark.parametrize("spelling", ["--dataset-dir", "--dataset_dir"])
def test_the_verbs_take_both_spellings_of_the_folder_and_name_a_missing_list(tmp_path, spelling):
    gone = ["--datalist_file", str(tmp_path / "gone.json"), spelling, str(tmp_path)]
    for verb in (["datalist", "check"], ["audit", "--out", str(tmp_path)], ["verify"]):
        with pytest.raises(FileNotFoundError, match=r"^no datalist at .*gone\.json"):
            command([*verb, *gone])
    with pytest.raises(FileNotFoundError, match=r"gone\.json"):
        command(["train", *gone, "--run_dir", str(tmp_path / "run")])


def test_strict_makes_an_unusable_file_an_error_and_writes_no_list(tmp_path, pool):
    folder = fill(tmp_path / "set", {"no": pool[:6], "tumor": pool[6:12]})
    (folder / "images" / "no" / "torn.png").write_text("x")
    arguments = ["datalist", "image_folder", "--folder", str(folder), "--out", str(tmp_path / "x.json")]
    with pytest.raises(ValueError, match=r"1 files cannot be used, first: images/no/torn\.png"):
        command([*arguments, "--strict"])
    assert not (tmp_path / "x.json").exists()
    command(arguments)
    assert (tmp_path / "x.json").exists()


@pytest.mark.skipif("TUMORLENS_DATA" not in os.environ, reason="TUMORLENS_DATA names no folder of real images")
def test_real_images_give_a_stratified_list_without_overlap():
    folder = Path(os.environ["TUMORLENS_DATA"]) / "brisc2025"
    datalist, report = datalists.image_folder(folder, limit=400, progress=False)
    datalists.validate(datalist, folder)
    assert list(datalist["classes"].values()) == ["no_tumor", "glioma", "meningioma", "pituitary"]
    assert sum(len(datalist[split]) for split in datalists.SPLITS) + report.figures["unusable"] == 400
    assert report.figures["largest_group"] <= 20
    total = Counter(item["diagnosis"] for split in datalists.SPLITS for item in datalist[split])
    test = Counter(item["diagnosis"] for item in datalist["test"])
    assert all(0.2 < test[k] / total[k] < 0.3 for k in range(4))
    assert all("label" in item for item in datalist["test"] if item["diagnosis"] > 0)
