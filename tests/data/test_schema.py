"""Datalists that are wrong are refused with the place; those that are right are written, read, joined, counted."""

from __future__ import annotations

import copy
import hashlib
import json

import pytest

from scripts.data import datalists
from scripts.data.datalists.schema import Report
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


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d["training"][0].update(diagnosis=-2), r"'diagnosis' must be a whole number from -1 to 1, got -2"),
        (lambda d: d["training"][0].update(diagnosis=1.0), r"got 1\.0"),
        (lambda d: d["training"][0].update(image=["a.png", 3]), "'image' must be a path or a list of paths"),
        (lambda d: d["training"][0].update(image=[]), "'image' must be a path or a list of paths"),
        (lambda d: d["training"][0].update(source=""), "'source' must be a non-empty text, got ''"),
        (lambda d: d["test"][0].update(plane="oblique"), "'plane' must be one of axial, coronal, sagittal"),
        (lambda d: d.update(classes={"0": "a", "2": "b"}), "'classes' must map"),
        (lambda d: d.update(classes=["a", "b"]), "'classes' must map"),
        (lambda d: d.update(no_tumor_means_no_lesion=1), "is true or false, got 1"),
        (lambda d: d.update(regions={"a": []}), "a region is a name"),
        (lambda d: d.update(training={}), "'training' must be a list of items, got dict"),
        (lambda d: d.update(training=[], validation=[], test=[]), "no item in training, validation, test"),
        (lambda d: d["test"][0].update(image=["c.png", "./b.png"]), r"image 'b\.png' is in both validation and test"),
    ],
)  # fmt: skip
def test_values_beyond_their_range_are_refused(change, message):
    broken = minimal()
    change(broken)
    with pytest.raises(ValueError, match=message):
        datalists.validate(broken)


def test_values_at_the_ends_of_their_range_are_taken():
    datalist = minimal()
    datalist["training"][0] |= {"diagnosis": -1, "slice": 0, "plane": "sagittal", "name": "n", "foreground": "f.png"}
    datalist["validation"][0] |= {"diagnosis": 1}
    datalist["test"][0] |= {"image": ["c.png", "d.png"]}
    datalist |= {"no_tumor_means_no_lesion": False, "regions": {"a": [1]}, "description": "x"}
    datalists.validate(datalist)
    datalist["test"] = datalist["validation"] = []
    datalists.validate(datalist)
    with pytest.raises(ValueError, match="list: expected an object with classes, training, validation, test, got list"):
        datalists.validate([], origin="list")


def test_equal_numbers_of_two_sources_are_two_people_and_of_one_source_one():
    datalist = minimal()
    datalist["training"][0] |= {"patient": "1", "source": "a"}
    datalist["test"][0] |= {"patient": "1", "source": "b"}
    datalists.assert_no_overlap(datalist)
    datalist["test"][0]["source"] = "a"
    with pytest.raises(ValueError, match="patient 'a: 1' is in both training and test"):
        datalists.assert_no_overlap(datalist)


def test_a_report_keeps_reasons_notes_and_counts(tmp_path, caplog):
    report = Report()
    report.leave_out("beyond the limit", 2)
    report.leave_out("beyond the limit")
    report.leave_out("nothing", 0)
    report.reject("a.png", "torn")
    report.note("b.png", "odd")
    report.figures["used"] = 3
    assert "not used: a.png: torn" in caplog.text
    assert "odd" not in caplog.text
    quiet = Report(quiet=True)
    quiet.reject("c.png", "torn too")
    assert "torn too" not in caplog.text
    datalists.write_report(report, tmp_path / "r.json")
    assert json.loads((tmp_path / "r.json").read_text()) == {
        "figures": {"used": 3},
        "left_out": {"beyond the limit": 3},
        "unusable": [{"file": "a.png", "reason": "torn"}],
        "notes": [{"file": "b.png", "text": "odd"}],
    }


def test_lists_of_which_one_may_have_other_lesions_may_have_them_all():
    other = copy.deepcopy(minimal())
    for k, split in enumerate(datalists.SPLITS):
        other[split][0].update(image=f"z{k}.png", patient=f"q{k}")
    assert "no_tumor_means_no_lesion" not in datalists.merge([minimal(), other])
    assert (
        datalists.merge([minimal(), {**other, "no_tumor_means_no_lesion": False}])["no_tumor_means_no_lesion"] is False
    )
    assert datalists.merge([minimal(), other])["name"] == "x+x"
    for key, value in (("modality", {"0": "T1"}), ("regions", {"a": [1]})):
        with pytest.raises(ValueError, match=f"{key} differ"):
            datalists.merge([minimal(), {**other, key: value}])
    with pytest.raises(ValueError, match="nothing to merge"):
        datalists.merge([])


def test_a_class_is_absent_where_no_training_item_has_it():
    datalist = minimal()
    assert datalists.absent_classes(datalist) == ["tumor"]
    datalist["training"].append({"image": "d.png", "label": "m.png"})
    assert datalists.absent_classes(datalist) == [], "an item of a mask alone may be of either"
    datalist["classes"]["2"] = "other"
    datalist["training"].append({"image": "e.png", "diagnosis": 2})
    assert datalists.absent_classes(datalist) == ["tumor"]


def test_rows_are_ordered_by_part_source_and_class():
    datalist = {**minimal(), "validation": [], "test": []}
    datalist["training"] = [
        {"image": f"{k}.png", "diagnosis": kind, "source": source, "label": "m"}
        for k, (kind, source) in enumerate([(1, "b"), (-1, "a"), (0, "b"), (1, "a"), (1, "b")])
    ]
    found = [(r["source"], r["class"], r["items"], r["clusters"], r["with_mask"]) for r in datalists.summary(datalist)]
    assert found == [
        ("a", "tumor", 1, 1, 1), ("a", "unknown", 1, 1, 1), ("b", "no_tumor", 1, 1, 1), ("b", "tumor", 2, 2, 2),
    ]  # fmt: skip


def test_the_hash_of_a_list_is_of_what_it_says(tmp_path):
    path = tmp_path / "x.json"
    datalists.write(minimal(), path)
    found = datalists.content_sha256(path)
    path.write_text(json.dumps(dict(reversed(minimal().items())), indent=7))
    assert datalists.content_sha256(path) == found
    assert datalists.same_content(path, found)
    assert datalists.same_content(path, hashlib.sha256(path.read_bytes()).hexdigest())
    assert not datalists.same_content(path, "0" * 64)
    changed = minimal()
    changed["test"][0]["slice"] = 5
    datalists.write(changed, path)
    assert datalists.content_sha256(path) != found
