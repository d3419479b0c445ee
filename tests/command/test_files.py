"""Files and folders are written whole or not at all, whoever else writes them at the same time."""

from __future__ import annotations

import errno
import os
import re
import time
from pathlib import Path

import pytest
import torch

from scripts.command.files import remove_partial, whole, whole_folder, write_bytes, write_text
from scripts.command.locations import ROOT
from scripts.runs.checkpoint_files import save_atomic


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_two_writers_of_one_file_do_not_meet_and_the_last_one_wins(tmp_path):
    path = tmp_path / "new" / "model.pt"
    with whole(path) as first:
        first.write_bytes(b"first")
        with whole(path) as second:
            second.write_bytes(b"second")
            assert names(path.parent) == sorted([first.name, second.name])
            assert str(os.getpid()) in first.name
        assert path.read_bytes() == b"second"
    assert path.read_bytes() == b"first"
    assert names(path.parent) == ["model.pt"]


def test_an_error_leaves_the_old_file_and_nothing_else(tmp_path):
    path = write_text("old\r\n", tmp_path / "a.txt")
    with pytest.raises(TypeError), whole(path) as place:
        place.write_text(3)
    assert path.read_bytes() == b"old\r\n"
    assert names(tmp_path) == ["a.txt"]


@pytest.mark.parametrize("value", [b"x" * 100_000, torch.zeros(1_000_000)])
def test_a_full_disk_is_named_with_the_path(tmp_path, value):
    path = tmp_path / "model.pt"

    def save() -> None:
        with whole(path) as place:
            os.symlink("/dev/full", place)
            with open(place, "wb") as file:
                file.write(value) if isinstance(value, bytes) else torch.save(value, file)

    with pytest.raises(OSError, match=f"{re.escape(os.strerror(errno.ENOSPC))}.*{re.escape(str(path))}") as caught:
        save()
    assert (caught.value.errno, caught.value.filename) == (errno.ENOSPC, str(path))
    assert names(tmp_path) == []


def test_errors_that_name_their_own_file_and_errors_of_no_file_stay(tmp_path):
    with pytest.raises(FileNotFoundError, match="absent"), whole(tmp_path / "a") as place:
        place.write_bytes((tmp_path / "absent").read_bytes())
    with pytest.raises(RuntimeError, match="of something else"), whole(tmp_path / "a"):
        raise RuntimeError("of something else")


def test_a_name_as_long_as_the_system_allows_can_be_written(tmp_path):
    write_bytes(b"1", tmp_path / ("n" * 255))
    assert names(tmp_path) == ["n" * 255]


def test_home_is_expanded(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    write_text("a", "~/runs/a.txt")
    assert (tmp_path / "runs" / "a.txt").read_text() == "a"


def test_a_folder_takes_the_place_of_the_old_one_or_leaves_it(tmp_path):
    folder = tmp_path / "data"
    for text in ("one", "two"):
        with whole_folder(folder) as place:
            assert place.name == "data"
            (place / f"{text}.txt").write_text(text)
    assert names(folder) == ["two.txt"]
    with pytest.raises(KeyError), whole_folder(folder) as place:
        raise KeyError("stopped")
    assert names(folder) == ["two.txt"]
    assert names(tmp_path) == ["data"]


def test_what_killed_processes_left_is_deleted_by_age(tmp_path):
    old, new, own = tmp_path / ".1.ab.partial", tmp_path / ".2.cd.partial", tmp_path / "image.partial"
    for path in (old, new, own):
        path.write_bytes(b"")
    os.utime(old, (time.time() - 7200,) * 2)
    remove_partial(tmp_path, older_than_s=3600)
    assert names(tmp_path) == sorted([new.name, own.name])
    remove_partial(tmp_path)
    assert names(tmp_path) == [own.name]


def test_weights_are_saved_through_it(tmp_path):
    save_atomic({"a": torch.ones(2)}, tmp_path / "model.pt")
    assert torch.equal(torch.load(tmp_path / "model.pt", weights_only=True)["a"], torch.ones(2))
    assert names(tmp_path) == ["model.pt"]


def test_nothing_else_renames_a_file_into_its_place():
    """One way to write a file whole: every other one would need a name that no other process takes."""
    found = {
        path.relative_to(ROOT).as_posix()
        for package in ("transforms", "scripts", "bundle", "benchmarks")
        for path in (ROOT / package).rglob("*.py")
        if re.search(r"os\.(replace|rename)\(|\.partial\b", path.read_text(encoding="utf-8"))
    }
    own = {"scripts/command/files.py", "scripts/runs/checkpoint_files.py", "scripts/runs/lock.py", "bundle/shipping.py"}
    assert found - own == set()
