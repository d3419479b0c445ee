"""Datalist files from other programs: byte order marks, backslashes, other order of keys, nothing in them."""

from __future__ import annotations

import hashlib
import json
import logging

import pytest
import torch

from scripts.checks.verify_data import read_loosely
from scripts.data import datalists
from scripts.runs.folder import finished, read_manifest, stage_items, start_stage
from tests.data.lists import minimal


def windows() -> dict:
    """As `minimal`, its paths as Windows writes them."""
    content = minimal()
    content["training"][0]["image"] = ["sub\\a.png", "sub\\b.png"]
    content["test"][0]["label"] = "masks\\m.png"
    return content


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-32"])
def test_any_unicode_encoding_and_backslashes_are_read(tmp_path, encoding):
    path = tmp_path / "list.json"
    path.write_bytes(json.dumps({**windows(), "name": "Köln"}, ensure_ascii=False).encode(encoding))
    for datalist in (datalists.read(path), read_loosely(path)):
        assert datalist["name"] == "Köln"
        assert datalist["training"][0]["image"] == ["sub/a.png", "sub/b.png"]
        assert datalist["test"][0]["label"] == "masks/m.png"


def test_an_image_named_with_both_slashes_is_one_image(tmp_path):
    content = minimal()
    content["training"][0]["image"], content["validation"][0]["image"] = "sub\\a.png", "sub/a.png"
    path = tmp_path / "list.json"
    path.write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(ValueError, match=r"image 'sub/a.png' is in both training and validation"):
        datalists.read(path)


def test_the_hash_is_of_the_content(tmp_path):
    path, other = tmp_path / "a.json", tmp_path / "b.json"
    path.write_text(json.dumps(windows(), indent=1), encoding="utf-8")
    turned = {key: windows()[key] for key in reversed(windows())}
    turned["training"] = [dict(reversed(item.items())) for item in turned["training"]]
    other.write_bytes(json.dumps(turned).replace("\\\\", "/").encode("utf-8-sig"))
    assert datalists.content_sha256(path) == datalists.content_sha256(other)
    turned["training"][0]["diagnosis"] = 1
    other.write_text(json.dumps(turned), encoding="utf-8")
    assert datalists.content_sha256(path) != datalists.content_sha256(other)


def test_a_stage_goes_on_with_a_list_dumped_again_and_refuses_another(tmp_path):
    path, stage = tmp_path / "list.json", tmp_path / "stage"
    path.write_text(json.dumps(minimal(), indent=1), encoding="utf-8")
    start_stage(stage, str(path), 0, {"a": 1})
    torch.save({}, stage / "model.pt")
    path.write_text(json.dumps(minimal(), sort_keys=True), encoding="utf-8")
    assert finished(stage, {}, str(path)) is False
    path.write_text(json.dumps({**minimal(), "name": "y"}), encoding="utf-8")
    with pytest.raises(ValueError, match="trained with another config \\(the datalist\\)"):
        finished(stage, {}, str(path))


def test_runs_that_noted_the_hash_of_the_bytes_still_know_their_list(tmp_path):
    path = tmp_path / "list.json"
    path.write_bytes(json.dumps(minimal()).encode())
    assert datalists.same_content(path, "a8" * 32) is False
    assert datalists.same_content(path, hashlib.sha256(path.read_bytes()).hexdigest()) is True


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("", "list.json is empty, expected JSON"),
        (" \n", "list.json is empty, expected JSON"),
        ("{", "list.json is no JSON file: "),
        (json.dumps({**minimal(), "training": [], "validation": [], "test": []}), "no item in training, validation"),
    ],
)
def test_a_list_of_nothing_is_one_sentence(tmp_path, content, reason):
    path = tmp_path / "list.json"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(ValueError, match=reason):
        datalists.read(path)


@pytest.mark.parametrize(("content", "reason"), [("", "manifest.json is empty"), ("[]", "got list"), ("x", "no JSON")])
def test_an_empty_or_damaged_manifest_is_one_sentence(tmp_path, content, reason):
    (tmp_path / "manifest.json").write_text(content, encoding="utf-8")
    with pytest.raises(ValueError, match=reason):
        read_manifest(tmp_path)


def test_training_without_a_class_warns(tmp_path, caplog):
    for name in ("a.png", "c.png", "m.png"):
        (tmp_path / name).touch()
    datalist = {**minimal(), "classes": {"0": "no_tumor", "1": "glioma", "2": "meningioma"}}
    targets = {"mask": True, "diagnosis": True}
    with caplog.at_level(logging.WARNING):
        stage_items(datalist, "training", str(tmp_path), targets=targets)
    assert "training: no item of class glioma and meningioma (classes: no_tumor, glioma, meningioma)" in caplog.text
    caplog.clear()
    stage_items({**datalist, "classes": {"0": "no_tumor", "1": "tumor"}}, "test", str(tmp_path), targets=targets)
    assert caplog.text == ""


def test_an_item_with_a_mask_alone_may_be_of_either_of_two_classes():
    datalist = minimal()
    assert datalists.absent_classes(datalist) == ["tumor"]
    datalist["training"].append({"image": "d.png", "label": "d_mask.png"})
    assert datalists.absent_classes(datalist) == []
