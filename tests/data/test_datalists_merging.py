"""Several sources as one list: classes, modality, folders, and near-duplicates across sources and formats."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from scripts.data import datalists
from scripts.data.datalists.linking import file_order, linked
from scripts.data.datalists.merging import join_classes
from scripts.data.datalists.near_duplicates import close_to_training
from scripts.phantoms.dataset import phantom_slice


def picture(index: int) -> Image.Image:
    image, _ = phantom_slice([78, index], False, (96, 96), level_mm=-20 + 17 * (index % 5))
    return Image.fromarray(np.rint(image.T * 255).astype(np.uint8))


@pytest.fixture(scope="module")
def pool() -> list[Image.Image]:
    return [picture(index) for index in range(12)]


def listed(name: str, items: dict[str, list[dict]], classes: tuple[str, ...] = ("no_tumor", "tumor"), modality="FLAIR"):
    return {
        "name": name,
        "modality": {"0": modality},
        "classes": {str(k): text for k, text in enumerate(classes)},
        **{split: [{"source": name, **item} for item in items.get(split, [])] for split in datalists.SPLITS},
    }


def saved(image: Image.Image, path: Path) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, **({"quality": 70} if path.suffix == ".jpg" else {}))
    return path.name


def sides(datalist: dict) -> dict[str, str]:
    return {item["image"]: split for split in datalists.SPLITS for item in datalist[split]}


def test_copies_across_sources_formats_and_mirrorings_land_on_one_side(tmp_path, pool):
    a, b, c = tmp_path / "a", tmp_path / "b", tmp_path / "c"
    for k in range(6):
        saved(pool[k], a / f"{k}.png")
    saved(pool[0].resize((150, 140), Image.Resampling.BICUBIC), b / "again0.jpg")  # recoded and resized
    saved(pool[1].transpose(Image.Transpose.FLIP_LEFT_RIGHT), b / "mirrored1.jpg")
    saved(pool[2].rotate(12, resample=Image.Resampling.BICUBIC), b / "turned2.png")
    saved(pool[7], b / "new.png")
    c.mkdir()
    stack = np.stack([np.asarray(pool[k], np.float32).T for k in (8, 3, 9)], axis=-1)  # slice 1 is picture 3
    nib.save(nib.Nifti1Image(stack, np.diag([-1.0, -1, 5, 1])), c / "v.nii.gz")
    first = listed("a", {"training": [{"image": f"{k}.png", "diagnosis": 0} for k in range(6)]})
    second = listed("b", {"test": [{"image": path.name, "diagnosis": 0} for path in sorted(b.iterdir())]})
    third = listed("c", {"validation": [{"image": "v.nii.gz", "slice": 1, "diagnosis": 0, "patient": "p"}]})
    merged, report = datalists.merge_sources([first, second, third], [a, b, c], progress=False)
    where = sides(merged)
    assert {name for name, split in where.items() if split == "test"} == {"b/new.png"}
    assert merged["validation"] == []  # the slice moved to its copy
    groups = {item["image"]: item["group"] for item in merged["training"]}
    for one, other in (
        ("0.png", "b/again0.jpg"),
        ("1.png", "b/mirrored1.jpg"),
        ("2.png", "b/turned2.png"),
        ("3.png", "c/v.nii.gz"),
    ):
        assert groups[f"a/{one}"] == groups[other], other
    assert len(set(groups.values())) == 6
    index = tmp_path / "index"
    for lists, folders in (([first, third], [a, c]), ([first, second, third], [a, b, c])):
        again, _ = datalists.merge_sources(lists, folders, root=tmp_path, near_index=index, progress=False)
    assert {**again, "name": merged["name"]} == merged
    assert report.figures["groups_across_sources"] == 4
    assert [report.figures[key] for key in ("found", "used", "refused")] == [11, 11, 0]
    assert ("c/v.nii.gz", "moved from validation to training: linked to images there") in report.notes
    datalists.validate(merged, tmp_path)


def test_the_same_pixels_in_two_classes_are_refused_and_counted(tmp_path, pool):
    for k in range(3):
        saved(pool[k], tmp_path / f"x{k}.png")
    saved(pool[0], tmp_path / "other.png")
    saved(pool[1].convert("RGB"), tmp_path / "same.png")
    (tmp_path / "torn.png").write_bytes((tmp_path / "x0.png").read_bytes()[:200])
    first = listed("a", {"training": [{"image": f"x{k}.png", "diagnosis": 0} for k in range(3)]})
    second = listed(
        "b",
        {"training": [{"image": "other.png", "diagnosis": 1}, {"image": "same.png", "diagnosis": 0},
                      {"image": "torn.png", "diagnosis": 1}, {"image": "x2.png", "diagnosis": 0}]},
    )  # fmt: skip
    merged, report = datalists.merge_sources([first, second], [tmp_path], progress=False)
    assert set(sides(merged)) == {"x1.png", "x2.png", "same.png"}
    reasons = dict(report.unusable)
    assert (
        reasons["x0.png"] == reasons["other.png"] == "the same pixels stand in two classes: a: x0.png and b: other.png"
    )
    assert "torn.png cannot be read as a picture" in reasons["torn.png"]
    assert reasons["x2.png"] == "is in the lists twice, of a and b"
    assert [report.figures[key] for key in ("found", "used", "refused")] == [7, 3, 4]


def test_resplit_is_stratified_seeded_and_without_overlap(tmp_path, pool):
    lists = []
    for source in ("a", "b"):
        items = []
        for k, image in enumerate(pool if source == "a" else [p.transpose(Image.Transpose.ROTATE_180) for p in pool]):
            if source == "b":  # other pictures, not turned copies
                image = picture(100 + k)
            items.append({"image": saved(image, tmp_path / source / f"{source}{k}.png"), "diagnosis": k % 2})
        lists.append(listed(source, {"training": items}))
    folders = [tmp_path / "a", tmp_path / "b"]
    merged, _ = datalists.merge_sources(lists, folders, resplit=True, seed=3, progress=False)
    again, _ = datalists.merge_sources(lists, folders, resplit=True, seed=3, progress=False)
    assert merged == again
    assert datalists.merge_sources(lists, folders, resplit=True, seed=4, progress=False)[0] != merged
    for split, least in (("training", 3), ("validation", 1), ("test", 1)):
        counts = Counter((item["source"], item["diagnosis"]) for item in merged[split])
        assert all(counts[source, k] >= least for source in "ab" for k in (0, 1)), (split, counts)


def test_classes_are_joined_by_name_and_generic_ones_refused():
    brats = listed("brats", {"training": [{"image": "a", "diagnosis": 1}]}, ("none", "glioma"))
    brisc = listed("brisc", {"training": [{"image": "b", "diagnosis": 2}]}, ("no_tumor", "meningioma", "glioma"))
    healthy = listed("healthy", {"training": [{"image": "c", "diagnosis": 0}]})
    assert join_classes([brats, brisc, healthy]) == (["none", "glioma", "meningioma"], [[0, 1], [0, 2, 1], [0, -1]])
    assert join_classes([healthy, healthy]) == (["no_tumor", "tumor"], [[0, 1], [0, 1]])
    vague = listed("vague", {"training": [{"image": "d", "diagnosis": 1}]})
    with pytest.raises(ValueError, match=r"class 'tumor' of vague does not say which of \['glioma'\]"):
        join_classes([brats, vague])
    assert join_classes([brats, vague, brisc], binary=True) == (["no_tumor", "tumor"], [[0, 1], [0, 1], [0, 1, 1]])


def test_modality_and_folders_are_checked(tmp_path):
    one, two = listed("a", {}), listed("b", {}, modality="T1")
    with pytest.raises(ValueError, match=r"modality differ: .* Pass --mixed_modality"):
        datalists.merge_sources([one, two], [tmp_path], progress=False)
    with pytest.raises(ValueError, match="different numbers of channels"):
        datalists.merge_sources([one, {**two, "modality": {"0": "T1", "1": "T2"}}], [tmp_path], mixed_modality=True)
    with pytest.raises(ValueError, match="one for each of 2 lists; got 3"):
        datalists.merge_sources([one, one], [tmp_path] * 3)
    with pytest.raises(ValueError, match="is not inside the dataset folder"):
        datalists.merge_sources([one, one], [tmp_path], root=tmp_path / "x")
    with pytest.raises(ValueError, match="nothing to merge"):
        datalists.merge_sources([], [tmp_path])


def test_brains_of_two_known_patients_are_joined_only_as_copies():
    hashes = np.zeros((4, 256), dtype=bool)
    hashes[1, :20] = True
    hashes[2, :8] = True
    hashes[3, 100:120] = True
    people = np.array([0, 1, 2, -1])
    assert datalists.group_near_duplicates(hashes)[0].tolist() == [0, 0, 0, 0]
    assert datalists.group_near_duplicates(hashes[:3], people=people[:3])[0].tolist() == [0, 1, 0]
    # Item 3 is of unknown patient: near to all but 1 (40 bits away: at the limit, so joined as well).
    assert datalists.group_near_duplicates(hashes, 39, people=people)[0].tolist() == [0, 1, 0, 0]


def scattered(folder: Path, images: list[Image.Image]) -> dict[str, list[dict]]:
    """Four pictures in a list's test part, validation, training and again test: two copies of one, one of another."""
    for k, image in enumerate(images):
        saved(image, folder / f"{k}.png")
    parts = ("test", "test", "training", "validation")
    return {part: [{"image": f"{k}.png", "diagnosis": 0} for k in range(4) if parts[k] == part] for part in parts}


def test_a_group_moves_to_the_first_part_it_reaches_into_wherever_most_of_it_is(tmp_path, pool):
    copies = [pool[0], pool[0].resize((120, 110)), pool[0].resize((140, 150)), pool[1]]  # two tested on, one trained on
    saved(pool[1].resize((130, 130)), tmp_path / "4.png")
    parts = scattered(tmp_path, copies)
    parts["test"].append({"image": "4.png", "diagnosis": 0})
    merged, report = datalists.merge_sources([listed("a", parts)], [tmp_path], progress=False)
    assert sides(merged) == {"0.png": "training", "1.png": "training", "2.png": "training",
                             "3.png": "validation", "4.png": "validation"}  # fmt: skip
    assert report.figures["moved"] == {"test to training": 2, "test to validation": 1}
    assert report.figures["test_within_48_bits_of_training_as_given"] == pytest.approx(2 / 3, abs=1e-4)
    assert report.figures["test_within_48_bits_of_training"] is None  # nothing is left to test on
    assert ("0.png", "moved from test to training: linked to images there") in report.notes
    trained = {item["image"] for item in parts["training"]}
    assert not trained & {item["image"] for part in ("validation", "test") for item in merged[part]}


def test_without_patients_neighbors_in_the_order_of_names_are_joined_as_when_built(tmp_path, pool):
    """The places are those in the folder: a picture that is in no list keeps two others apart."""
    bits = np.zeros((4, 5, 256), dtype=bool)
    for k in range(1, 4):
        bits[k, :, 40 * k : 40 * k + 30] = True  # 60 bits from each other but for the first, which is 30 away
        bits[k, :, :15] = True
    for name in ("p2.png", "p9.png", "p10.png", "p11.png", "p12.png", ".p13.png", "p14.txt"):
        (tmp_path / name).touch()
    pictures = [{"image": name} for name in ("p2.png", "p10.png", "p12.png")]
    assert np.diff(file_order(pictures, tmp_path)).tolist() == [2, 2]
    known = [{"image": "p9.png", "patient": "a"}, {"image": "p10.png", "slice": 3}, {"image": ["p11.png", "p12.png"]}]
    assert np.abs(np.diff(file_order([*known, *pictures], tmp_path))[:3]).min() >= 999
    contents = ["a", "b", "c"]
    order = file_order(pictures, tmp_path)
    assert linked(pictures, bits[1:], contents)[0].tolist() == [0, 1, 2]
    assert linked(pictures, bits[1:], contents, order=order)[0].tolist() == [0, 0, 0]
    far = [{"image": name} for name in ("p2.png", "p11.png", "p14.png")]
    assert linked(far[:2], bits[1:3], contents[:2], order=file_order(far[:2], tmp_path))[0].tolist() == [0, 1]


def test_patients_of_equal_numbers_in_two_sources_are_two_people(tmp_path, pool, caplog):
    lists = []
    for source, start in (("site_a", 0), ("site_b", 6)):
        items = {}
        for k, split in enumerate(("training", "validation", "test")):
            patient = f"sub-{(k + start // 6) % 3:02d}"  # the second site's numbers stand in other parts
            image = saved(pool[start + k], tmp_path / source / f"{source}{k}.png")
            items[split] = [{"image": image, "diagnosis": 0, "patient": patient}]
        lists.append(listed(source, items))
    folders = [tmp_path / "site_a", tmp_path / "site_b"]
    merged, report = datalists.merge_sources(lists, folders, progress=False)
    assert [len(merged[split]) for split in datalists.SPLITS] == [2, 2, 2]
    assert report.figures["moved"] == {}
    assert report.figures["patient_numbers_in_several_sources"] == 3
    assert ("patient sub-00", "stands in the sources site_a, site_b; taken for different people") in report.notes
    assert "pass --same_patients if they are one" in caplog.text
    assert len({row["clusters"] for row in datalists.summary(merged)}) == 1
    assert len({datalists.cluster(item) for split in datalists.SPLITS for item in merged[split]}) == 6
    joined, report = datalists.merge_sources(lists, folders, same_patients=True, progress=False)
    where = {(item["source"], item["patient"]): split for split in datalists.SPLITS for item in joined[split]}
    assert all(where["site_a", number] == where["site_b", number] for number in ("sub-00", "sub-01", "sub-02"))
    assert len({item["group"] for split in datalists.SPLITS for item in joined[split]}) == 3
    assert joined["test"] == []  # sub-02 is tested on in one list and validated on in the other
    assert report.figures["moved"] == {"test to training": 1, "test to validation": 1, "validation to training": 1}
    assert {text for _, text in report.notes if text.startswith("stands")} == {
        "stands in the sources site_a, site_b; taken for one person, as --same_patients says"
    }


def test_the_same_person_of_two_sources_is_found_by_the_pictures(tmp_path, pool):
    first = listed("a", {"training": [{"image": saved(pool[0], tmp_path / "a.png"), "diagnosis": 0, "patient": "1"}]})
    copied = saved(pool[0].convert("RGB"), tmp_path / "b.png")
    second = listed("b", {"test": [{"image": copied, "diagnosis": 0, "patient": "77"}]})
    merged, report = datalists.merge_sources([first, second], [tmp_path], progress=False)
    assert merged["test"] == []
    assert report.figures["groups_across_sources"] == 1
    assert report.figures["moved"] == {"test to training": 1}


def test_test_images_near_to_training_are_a_figure_of_the_report():
    hashes = np.zeros((6, 5, 256), dtype=bool)
    rng = np.random.default_rng(1)
    hashes[:] = rng.integers(0, 2, hashes.shape)
    hashes[1, 0] = hashes[0, 0]
    hashes[1, 0, :48] ^= True  # at the limit
    hashes[2, 3] = hashes[0, 1]  # mirrored
    hashes[2, 3, :43] ^= True  # 43 of 0.9 * 48
    hashes[3, 0] = hashes[0, 0]
    hashes[3, 0, :49] ^= True  # one bit too many
    hashes[5] = hashes[4]
    sides = ["training", "test", "test", "test", "validation", "test"]
    assert close_to_training(hashes, sides) == 0.5
    known = [True, True, False, True, True, True]  # the first two are strangers: alike, and no leak
    assert close_to_training(hashes, sides, known) == 0.25
    assert close_to_training(hashes[:2], ["test", "test"]) is None


def test_slices_of_one_volume_stay_together_without_a_patient():
    items = [{"image": "v.nii.gz", "slice": k} for k in (3, 60)] + [{"image": ["w.nii.gz", "v.nii.gz"]}]
    hashes = np.random.default_rng(0).integers(0, 2, (3, 5, 256)).astype(bool)
    assert linked(items, hashes, ["a", "b", "c"])[0].tolist() == [0, 0, 0]


def test_one_source_name_in_two_folders_is_said(tmp_path, pool, caplog):
    lists = []
    for k, folder in enumerate(("x", "y")):
        name = saved(pool[k], tmp_path / folder / "a.png")
        lists.append(listed("train", {"training": [{"image": name, "diagnosis": 0, "group": "train-00000"}]}))
    _, report = datalists.merge_sources(lists, [tmp_path / "x", tmp_path / "y"], progress=False)
    assert [name for name, text in report.notes if "groups and patients of one number" in text] == ["train"]
    assert "build one of them with another --name" in caplog.text
    assert report.figures["groups"] == 1
