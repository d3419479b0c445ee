"""Files below a folder: sorted, each once, and refused where they cannot stand in a list."""

from __future__ import annotations

import pytest

from scripts.data.datalists.schema import Report
from scripts.data.datalists.walking import MAX_NAME_BYTES, check_folder, name_reason, printable, visible, walk


def test_the_folder_is_the_root_unless_another_holds_it(tmp_path):
    inner = tmp_path / "a"
    inner.mkdir()
    assert check_folder(str(inner), None) == (inner, inner)
    assert check_folder(inner, str(tmp_path)) == (inner, tmp_path)
    with pytest.raises(FileNotFoundError, match="no folder"):
        check_folder(tmp_path / "gone", None)
    with pytest.raises(ValueError, match="is not inside the dataset folder"):
        check_folder(tmp_path, inner)


def test_files_are_listed_once_at_their_own_place(tmp_path):
    for name in ("b/2.png", "b/1.png", "a.png", "c/d/e.png", ".hidden/x.png", "c/.x.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "a_link").symlink_to(tmp_path / "c")  # its name is listed before that of the folder
    outside = tmp_path.parent / f"{tmp_path.name}_outside"
    outside.mkdir()
    (outside / "o.png").touch()
    (tmp_path / "far").symlink_to(outside)
    (outside / "back").symlink_to(tmp_path)
    report = Report(quiet=True)
    found = [path.relative_to(tmp_path).as_posix() for path in walk(tmp_path, report)]
    assert found == ["a.png", "b/1.png", "b/2.png", "c/d/e.png", "far/o.png"]
    assert sorted(report.unusable) == [
        ("a_link", "a link to c, which is listed already"),
        ("far/back", "a link to ., which is listed already"),
    ]


def test_names_that_cannot_stand_in_a_list_are_refused(tmp_path):
    for name in ("x" * MAX_NAME_BYTES, "x" * (MAX_NAME_BYTES + 1), "a\\b", ".hidden", "plain", "\u00e9" * 101):
        (tmp_path / name).touch()
    report = Report(quiet=True)
    assert [path.name for path in visible(tmp_path, tmp_path, report)] == ["plain", "x" * MAX_NAME_BYTES]
    reasons = dict(report.unusable)
    assert "is 201 bytes long" in reasons["x" * (MAX_NAME_BYTES + 1)]
    assert "is 202 bytes long" in reasons["\u00e9" * 101], "bytes count, not letters"
    assert "backslash" in reasons["a\\b"]
    assert name_reason("caf\udce9") == "its name is not UTF-8; rename it"
    assert printable("caf\udce9") == "caf\\xe9"
    assert name_reason("caf\u00e9.png") is None


def test_a_folder_that_cannot_be_opened_is_named(tmp_path):
    report = Report(quiet=True)
    assert visible(tmp_path / "gone", tmp_path, report) == []
    assert report.unusable == [("gone", "cannot be opened: No such file or directory")]
