"""Entries of a list in the Decathlon's and nnU-Net's forms, their channels and their cases."""

from __future__ import annotations

from pathlib import Path

import pytest

from scripts.data.datalists import decathlon as module
from tests.data.trees import touch


def test_parts_are_the_lists_of_entries(tmp_path):
    content = {"training": [1, 2], "testing": ["a"], "numTraining": 2, "validation": {}, "labels": {}}
    assert module._entries(content, tmp_path) == [("training", 1), ("training", 2), ("testing", "a")]
    later = {"dataset": {"c1": {"images": ["a", "b"], "label": "m"}, "c2": {"label": "n"}, "c3": "x"}}
    assert module._entries(later, tmp_path) == [
        ("training", {"image": ["a", "b"], "label": "m"}), ("training", {"image": None, "label": "n"}),
    ]  # fmt: skip
    with pytest.raises(ValueError, match=r"expected some of training, validation, test, keys are \['labels', 'x'\]"):
        module._entries({"x": 1, "labels": {}}, tmp_path)


def test_files_of_channels_stand_for_the_name_in_the_list(tmp_path):
    folder = touch(
        tmp_path, *(f"imagesTr/a_{k:04d}.nii.gz" for k in (1, 0)), "imagesTr/a_1.nii.gz", "imagesTr/b.nii.gz"
    )
    entry = {"image": "imagesTr/a.nii.gz", "label": "m"}
    named = [f"imagesTr/a_{k:04d}.nii.gz" for k in (0, 1)]
    assert module._channel_files(entry, folder) == {"image": named, "label": "m"}
    for other in ({"image": "imagesTr/b.nii.gz"}, {"image": "imagesTr/c.nii.gz"}, {"image": ["x"]}, "x", {}):
        assert module._channel_files(other, folder) == other


def test_without_a_list_the_folders_say_the_cases(tmp_path):
    folder = touch(
        tmp_path,
        "imagesTr/a_0000.nii.gz", "imagesTr/a_0001.nii.gz", "imagesTr/b.nii.gz", "imagesTr/x_0000.nii.gz",
        "imagesTr/.h.nii.gz", "imagesTr/n.txt", "labelsTr/a.nii.gz", "labelsTr/b.nii.gz", "labelsTr/x_0000.nii.gz",
        "labelsTr/lone.nii.gz", "imagesTs/t_0000.nii.gz",
    )  # fmt: skip
    assert module._entries({}, folder) == [
        ("training", {"image": ["imagesTr/a_0000.nii.gz", "imagesTr/a_0001.nii.gz"], "label": "labelsTr/a.nii.gz"}),
        ("training", {"image": ["imagesTr/b.nii.gz"], "label": "labelsTr/b.nii.gz"}),
        ("training", {"image": ["imagesTr/x_0000.nii.gz"], "label": "labelsTr/x_0000.nii.gz"}),
        ("training", {"image": None, "label": "labelsTr/lone.nii.gz"}),
        ("training", {"image": ["imagesTs/t_0000.nii.gz"], "label": None}),
    ]


def test_channels_are_named_by_the_list_in_their_order_or_numbered():
    names = {str(k): f"c{k}" for k in (10, 2, 0)}
    assert module._channels({"modality": names}, []) == ["c0", "c2", "c10"]
    assert module._channels({"channel_names": {"0": "T1"}, "modality": names}, []) == ["T1"]
    images = [{"image": "a"}, {"image": ["a", "b", "c"]}, {"image": ["a"]}, "x"]
    assert module._channels({}, [("training", entry) for entry in images]) == ["channel 0", "channel 1", "channel 2"]
    assert module._channels({}, [("training", images[0])]) == module._channels({}, []) == ["MRI"]
    for wrong in ("T1", ["T1"]):
        with pytest.raises(ValueError, match="expected the names of channels as an object"):
            module._channels({"modality": wrong}, [])


def test_chosen_channels_are_known_by_their_words():
    named = ["FLAIR", "T1w", "t1gd", "T2w"]
    assert module._numbers(named, None) == [0, 1, 2, 3]
    assert module._numbers(named, ["T2", "FLAIR"]) == [3, 0]
    assert module._numbers(named, ["T1ce"]) == [2]
    with pytest.raises(ValueError, match="0 channels are T2; the list names FLAIR"):
        module._numbers(["FLAIR"], ["FLAIR", "T2"])
    with pytest.raises(ValueError, match="2 channels are T1; the list names T1, T1w"):
        module._numbers(["T1", "T1w"], ["T1"])


@pytest.mark.parametrize(
    ("entry", "first", "whole"),
    [
        ({"image": "a/p_0000.nii.gz", "label": "l/p.nii.gz"}, "a/p.nii.gz", False),
        ({"image": ["a/p_0000.nii.gz", "a/p_0001.nii.gz"], "label": "l/p.nii.gz"}, "a/p.nii.gz", False),
        ({"image": "a/p_0000.nii.gz", "label": "l/p_0000.nii.gz"}, "a/p_0000.nii.gz", True),
        ({"image": "a/p.nii.gz", "label": "l/p.nii.gz"}, "a/p.nii.gz", True),
        ({"image": ["a/p.nii.gz"], "label": "l/p.nii.gz"}, "a/p.nii.gz", True),
        ({"image": ["a/p.nii.gz", "a/q.nii.gz"], "label": "l/p.nii.gz"}, "a/p.nii.gz", False),
    ],
)
def test_the_first_image_is_named_without_the_number_of_its_channel(entry, first, whole):
    assert module._first(entry) == Path(first)
    assert module._in_one_file(entry) == whole


@pytest.mark.parametrize("entry", ["x", {}, {"image": []}, {"image": ""}, {"image": None}, {"image": [3]}])
def test_an_entry_without_an_image_has_no_first(entry):
    assert module._first(entry) is None


def test_a_case_has_the_chosen_channels_of_all(tmp_path):
    touch(tmp_path, "a", "b", "c", "m", "f")
    entry = {"image": ["a", "b", "c"], "label": "m", "foreground": "f"}
    case = module._case(entry, tmp_path, [2, 0], 3)
    assert (case.images, case.label, case.foreground) == (
        [tmp_path / "c", tmp_path / "a"],
        tmp_path / "m",
        tmp_path / "f",
    )
    assert not case.stacked
    one = module._case({"image": "a", "label": "m"}, tmp_path, [2], 3)
    assert (one.images, one.foreground, one.stacked) == ([tmp_path / "a"], None, True)
    for wrong, reason in (
        ("a", "has no mask"),
        ({"image": "a"}, "has no mask"),
        ({"image": "a", "label": None}, "has no mask"),
        ({"label": "m"}, "expected an object with 'image'"),
        ({"image": ["a", "b"], "label": "m"}, "has 2 of the list's 3 channels"),
        ({"image": ["a"], "label": "m"}, "has 1 of the list's 3 channels"),
        ({"image": "gone", "label": "m"}, "gone does not exist"),
        ({"image": "a", "label": "gone"}, "gone does not exist"),
    ):
        with pytest.raises(ValueError, match=reason):
            module._case(wrong, tmp_path, [0], 3)
