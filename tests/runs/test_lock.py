"""One training in a folder at a time, and locks of processes that are gone."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time

import pytest

from scripts.command.locations import CONFIGS, ROOT
from scripts.runs import lock
from scripts.runs.checkpoint_files import CHECKPOINT, WEIGHTS, read_checkpoint
from scripts.training.train import train_stage
from tests.stages import killed

SMOKE = CONFIGS / "smoke.yaml"
HOLD = """
import sys
from scripts.runs import lock
lock.acquire(sys.argv[1])
print("held", flush=True)
sys.stdin.readline()
"""


@pytest.fixture
def other(tmp_path):
    """Another process that holds the folder until its input ends."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)],
        cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()


def owner(folder) -> dict:
    return json.loads((folder / lock.FILE).read_text(encoding="utf-8"))


def test_a_folder_that_another_process_holds_is_refused_in_a_sentence_until_it_ends(other, tmp_path):
    with pytest.raises(ValueError, match=f"is in use by process {other.pid} on .* since 20") as caught:
        lock.acquire(tmp_path)
    assert "choose another run_dir" in str(caught.value)
    assert str(tmp_path / lock.FILE) in str(caught.value)
    other.communicate("\n")
    assert not (tmp_path / lock.FILE).exists(), "given free as the process ends"
    lock.acquire(tmp_path)
    assert owner(tmp_path)["pid"] == os.getpid()
    lock.acquire(tmp_path)  # the same process again
    lock.release(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_killed_process_gives_its_folder_up_and_what_it_was_writing_is_deleted(other, tmp_path, caplog):
    other.kill()
    other.wait()
    (tmp_path / ".17.ab.partial").write_bytes(b"half")
    (tmp_path / "own.partial").write_bytes(b"")
    assert owner(tmp_path)["pid"] == other.pid
    with caplog.at_level("INFO"):
        lock.acquire(tmp_path)
    assert f"process {other.pid}" in caplog.text
    assert sorted(p.name for p in tmp_path.iterdir()) == [lock.FILE, "own.partial"]
    lock.release(tmp_path)


@pytest.mark.parametrize(
    ("change", "stale"),
    [
        ({"start": "1"}, True),  # the number was given to another process
        ({"boot": "another"}, True),  # before the machine was started again
        ({"pid": 2**22 + 5}, True),  # no process has it
        ({}, False),
    ],
)
def test_what_the_lock_says_is_compared_with_the_process_of_its_number(other, tmp_path, change, stale):
    (tmp_path / lock.FILE).write_text(json.dumps({**owner(tmp_path), **change}), encoding="utf-8")
    if stale:
        lock.acquire(tmp_path)
        lock.release(tmp_path)
    else:
        with pytest.raises(ValueError, match="is in use by process"):
            lock.acquire(tmp_path)


@pytest.mark.parametrize(("age", "stale"), [(0, False), (lock.STALE_S + 5, True), (-3600, False)])
def test_a_lock_of_another_machine_counts_until_it_was_not_renewed_for_minutes(other, tmp_path, age, stale):
    path = tmp_path / lock.FILE
    other.kill()  # it would renew the lock
    other.wait()
    path.write_text(json.dumps({**owner(tmp_path), "place": "node17 ", "host": "node17"}), encoding="utf-8")
    os.utime(path, (time.time() - age,) * 2)
    if stale:
        lock.acquire(tmp_path)
        lock.release(tmp_path)
    else:
        with pytest.raises(ValueError, match="on node17"):
            lock.acquire(tmp_path)


def test_a_lock_that_is_just_being_written_is_refused_and_an_old_empty_one_is_not(tmp_path):
    path = tmp_path / lock.FILE
    path.write_text("", encoding="utf-8")
    with pytest.raises(ValueError, match="is in use by another process"):
        lock.acquire(tmp_path)
    os.utime(path, (0, 0))
    lock.acquire(tmp_path)
    lock.release(tmp_path)


def test_a_held_lock_is_renewed(tmp_path, monkeypatch):
    monkeypatch.setattr(lock, "_held", {tmp_path / lock.FILE: os.getpid(), tmp_path / "gone": os.getpid()})
    (tmp_path / lock.FILE).write_text("{}", encoding="utf-8")
    os.utime(tmp_path / lock.FILE, (0, 0))
    monkeypatch.setattr(lock.time, "sleep", lambda _: lock._held.clear())
    lock._renew()
    assert time.time() - (tmp_path / lock.FILE).stat().st_mtime < 60


def test_a_forked_process_does_not_give_its_parents_folder_free(tmp_path):
    lock.acquire(tmp_path)
    assert not killed(lambda: lock.release(tmp_path))
    assert owner(tmp_path)["pid"] == os.getpid()
    lock.release(tmp_path)


def test_a_second_training_in_a_run_folder_is_refused_and_changes_nothing(small_data, tmp_path):
    options = {**small_data.paths, "run_dir": str(tmp_path), "max_epochs": 1, "cache_dir": None}
    stage = train_stage("stage1_segmentation", [SMOKE], options)
    assert not (stage / lock.FILE).exists()
    state = read_checkpoint(stage)
    before = {path: path.read_bytes() for path in (stage / WEIGHTS, stage / CHECKPOINT)}
    manifest = json.loads((stage / "manifest.json").read_text(encoding="utf-8"))
    manifest.pop("finished")  # as while it is trained
    (stage / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    running = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(stage)], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert running.stdout.readline() == "held\n"
    with pytest.raises((ValueError, RuntimeError)) as caught:
        train_stage("stage1_segmentation", [SMOKE], options)
    assert f"process {running.pid}" in str(caught.value.__cause__ or caught.value)
    assert {path: path.read_bytes() for path in before} == before
    running.kill()
    running.wait()
    train_stage("stage1_segmentation", [SMOKE], options)
    assert read_checkpoint(stage)["epoch"] == state["epoch"]
    assert "finished" in json.loads((stage / "manifest.json").read_text(encoding="utf-8"))


def test_truncated_weights_are_never_kept_as_finished(small_data, tmp_path):
    options = {**small_data.paths, "run_dir": str(tmp_path), "max_epochs": 1, "cache_dir": None}
    stage = train_stage("stage1_segmentation", [SMOKE], options)
    whole = (stage / WEIGHTS).read_bytes()
    manifest = (stage / "manifest.json").read_text(encoding="utf-8")
    for text in (manifest, json.dumps({k: v for k, v in json.loads(manifest).items() if k != "finished"})):
        (stage / "manifest.json").write_text(text, encoding="utf-8")
        (stage / WEIGHTS).write_bytes(whole[: len(whole) // 2])
        with pytest.raises(ValueError, match=r"model\.pt is not readable .* truncated; delete .* to train this stage"):
            train_stage("stage1_segmentation", [SMOKE], options)
        (stage / WEIGHTS).write_bytes(whole)
        assert train_stage("stage1_segmentation", [SMOKE], options) == stage
        assert "finished" in json.loads((stage / "manifest.json").read_text(encoding="utf-8"))
