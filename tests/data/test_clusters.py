"""Who the items of a list show."""

from __future__ import annotations

import pytest

from scripts.data.datalists.clusters import (
    cluster,
    clusters,
    components,
    contradictions,
    images_of,
    paths,
    patient_key,
    shared_numbers,
    warn_shared,
)


def test_a_patient_is_a_number_within_its_source():
    assert patient_key({"patient": "1", "source": "a"}) == "a: 1"
    assert patient_key({"patient": "1", "source": ""}) == patient_key({"patient": "1"}) == "1"
    assert patient_key({"source": "a"}) is None


def test_a_cluster_is_called_after_its_first_item_and_joins_over_chains():
    items = [
        {"image": "a", "group": "g"},
        {"image": "b", "group": "g", "patient": "p", "source": "s"},
        {"image": "c", "patient": "p", "source": "s"},
        {"image": "d", "patient": "p", "source": "t"},
        {"image": ["e", "f"]},
        {"image": "e"},
    ]
    assert clusters(items) == ["group g", "group g", "group g", "patient t: p", "image e", "image e"]
    assert [cluster(item) for item in items[:4]] == ["group g", "patient s: p", "patient s: p", "patient t: p"]
    assert clusters([]) == []
    assert components([[1], [2], [], [2, 3], [1], [3]]).tolist() == [0, 1, 2, 1, 0, 1]


def test_numbers_of_several_sources_are_told_in_order(caplog):
    items = [
        {"patient": "2", "source": "b"}, {"patient": "2", "source": "a"}, {"patient": "2", "source": "a"},
        {"patient": "1", "source": "a"}, {"patient": "1"}, {"patient": "3", "source": "a"}, {"source": "b"},
    ]  # fmt: skip
    shared = shared_numbers(items)
    assert shared == {"1": ["(no source)", "a"], "2": ["a", "b"]}
    assert list(shared) == ["1", "2"]
    warn_shared({}, "say so")
    assert not caplog.records
    warn_shared(shared, "say so")
    assert "2 patient numbers stand in several sources (first: '1' in (no source) and a)" in caplog.text
    assert caplog.text.rstrip().endswith("say so")


def test_pixels_of_two_classes_contradict_and_an_unknown_class_does_not():
    contents = ["x", "x", "y", "y", "z", "x", "y"]
    assert contradictions(contents, [0, 0, 1, None, 2, 2, 1]) == {"x": [0, 5]}
    assert contradictions(["x", "x"], [None, None]) == {}
    with pytest.raises(ValueError, match="zip"):
        contradictions(["x"], [])


def test_the_files_of_an_item_are_all_that_it_names():
    item = {"image": ["a", "b"], "label": "m", "foreground": "f", "patient": "p"}
    assert paths(item) == ["a", "b", "m", "f"]
    assert paths({"image": "a", "foreground": "f"}) == ["a", "f"]
    assert images_of({"image": "ab"}) == ["ab"]
