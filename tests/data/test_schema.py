"""Datalists that are wrong are refused with the place; those that are right are written, read, joined, counted."""

from __future__ import annotations

import copy

import pytest

from scripts.data import datalists
from tests.data.lists import minimal


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
        {"split": "training", "source": "", "class": "no_tumor", "items": 2, "with_mask": 1, "clusters": 1},
        {"split": "validation", "source": "", "class": "tumor", "items": 1, "with_mask": 0, "clusters": 1},
        {"split": "test", "source": "", "class": "unknown", "items": 1, "with_mask": 1, "clusters": 1},
    ]
