"""Results in a store by its address: the same files as below --out, each image once, whole or not at all."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import pytest
from fsspec.implementations.local import LocalFileSystem

from scripts.__main__ import main as command
from scripts.inference import predict
from scripts.inference.pipeline import Inference
from scripts.inference.stores import ResultStore
from tests.scans import head, save_picture, write_overlay


@pytest.fixture
def overlay(tmp_path):
    return write_overlay(tmp_path)


@pytest.fixture
def given(tmp_path, overlay):
    (tmp_path / "in").mkdir()
    for k in range(3):
        save_picture(tmp_path / "in" / f"{k}.png", head(seed=k)[:, :, 4])
    (tmp_path / "in" / "x.png").write_bytes(b"\x89PNG\r\n\x1a\nno")
    (tmp_path / "in.csv").write_text("image\n" + "".join(f"in/{name}.png\n" for name in ("2", "x", "0", "1")))
    return ["predict", str(tmp_path / "in.csv"), "--overlay", str(overlay)]


@pytest.fixture
def seen(monkeypatch):
    names: list[str] = []

    class Counting(Inference):
        def infer(self, item):
            names.append(Path(item["image"].meta["filename_or_obj"]).name)
            return super().infer(item)

    monkeypatch.setattr(predict, "Inference", Counting)
    return names


@pytest.fixture
def store(tmp_path):
    return tmp_path / "store"


def files(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def rows(out: Path) -> list[dict[str, str]]:
    with open(out / "results.csv", encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_a_store_holds_what_the_folder_would_and_the_folder_the_ledger_and_the_table(given, tmp_path, store):
    assert command([*given, "--out", str(tmp_path / "plain"), "--processes", "2"]) == 1
    assert command([*given, "--out", str(tmp_path / "out"), "--processes", "2", "--results_to", store.as_uri()]) == 1
    plain, stored, left = (files(tmp_path / name) for name in ("plain", "store", "out"))
    assert rows(tmp_path / "out") == rows(tmp_path / "plain")
    assert {name for name in left if not name.startswith("ledger/")} == {"results.csv"}
    results = {name for name in plain if not name.startswith("ledger/")} - {"results.csv"}
    assert stored.keys() == results | {"about.json"}
    assert len(results) == 12
    for name in results:
        if name.endswith("_result.json"):
            ours, theirs = json.loads(stored[name]), json.loads(plain[name])
            assert ours["made_by"].pop("store") == store.as_uri()
            assert ours == theirs
        else:
            assert stored[name] == plain[name]


def test_what_is_in_the_store_is_kept_while_it_is_whole(given, tmp_path, seen, store):
    run = [*given, "--shard", "1/1", "--results_to", store.as_uri(), "--out", str(tmp_path / "out")]
    command(run)
    assert sorted(seen) == ["0.png", "1.png", "2.png"]
    for broken in ("0_mask.png", "0_result.json"):
        seen.clear()
        shutil.rmtree(tmp_path / "out")
        if broken.endswith(".json"):
            (store / f"0000/0000002_{broken}").write_text('{"row": ')  # a process was killed
        else:
            (store / f"0000/0000002_{broken}").unlink()
        command(run)
        assert seen == ["0.png"]
    save_picture(tmp_path / "in" / "1.png", head(seed=7)[:, :, 4])
    seen.clear()
    shutil.rmtree(tmp_path / "out")
    command(run)
    assert seen == ["1.png"]


def test_what_was_left_when_a_process_was_killed_after_the_upload_is_deleted(given, tmp_path, seen, store, monkeypatch):
    run = [*given, "--shard", "1/1", "--results_to", store.as_uri(), "--out", str(tmp_path / "out")]
    with monkeypatch.context() as killed:
        unlink = Path.unlink
        killed.setattr(Path, "unlink", lambda self, **more: None if "2_0_" in self.name else unlink(self, **more))
        command(run)
    assert len(list((tmp_path / "out").glob("0000/0000002_0_*"))) == 4
    for journal in (tmp_path / "out").rglob("journal.jsonl"):
        journal.unlink()
    seen.clear()
    command(run)
    assert seen == []
    assert not list((tmp_path / "out").glob("0000/*"))


def test_an_image_that_cannot_be_used_any_more_leaves_nothing_in_the_store(given, tmp_path, store):
    run = [*given, "--shard", "1/1", "--results_to", store.as_uri(), "--out", str(tmp_path / "out")]
    command(run)
    assert len(list(store.rglob("*3_1_*"))) == 4
    shutil.rmtree(tmp_path / "out")
    (tmp_path / "in" / "1.png").write_bytes(b"\x89PNG\r\n\x1a\nno")
    command(run)
    assert not list(store.rglob("*3_1_*"))
    assert len(files(store)) == 9


@pytest.mark.parametrize("error", [OSError("the connection was lost"), RuntimeError("the connection was lost")])
def test_a_store_that_is_away_for_a_while_fails_tries_and_no_run(
    given, tmp_path, seen, store, monkeypatch, caplog, error
):
    away = ["put_file", "put_file", "cat_file"]

    def brittle(name):
        whole = getattr(LocalFileSystem, name)

        def call(self, *args, **more):
            if away and away[0] == name and any("2_0_" in str(arg) for arg in args):
                away.pop(0)
                raise error
            return whole(self, *args, **more)

        monkeypatch.setattr(LocalFileSystem, name, call)

    for name in ("put_file", "cat_file"):
        brittle(name)
    run = [*given, "--out", str(tmp_path / "out"), "--results_to", store.as_uri()]
    command([*run, "--shard", "1/1"])
    assert seen == ["2.png", "0.png", "1.png", "0.png", "0.png"]
    assert caplog.text.count("did not take a file") == 2
    assert "predicted without asking for an earlier result" in caplog.text or "stays in the store" in caplog.text
    assert command([*run, "--merge"]) == 1
    assert [row["status"] for row in rows(tmp_path / "out")] == ["done", "refused", "done", "done"]
    result = ResultStore(store.as_uri()).result("0000/0000002_0")
    assert result is not None
    assert result["row"]["status"] == "done"


def test_results_of_other_inputs_or_made_otherwise_are_never_written_over(given, tmp_path, store):
    run = [*given, "--shard", "1/1", "--results_to", store.as_uri()]
    command([*run, "--out", str(tmp_path / "out")])
    before = files(store)
    with pytest.raises(ValueError, match=r"store .* holds results of another prediction \(overlays differ\)"):
        command([*run, "--out", str(tmp_path / "other"), "--no_overlays"])
    (tmp_path / "in.csv").write_text("image\nin/0.png\n")
    with pytest.raises(ValueError, match=r"store .* holds results of another prediction \(inputs differ\)"):
        command([*run, "--out", str(tmp_path / "third")])
    assert files(store) == before


@pytest.mark.parametrize("first", [True, False])
def test_a_run_does_not_change_its_place(given, tmp_path, store, first):
    to = ["--results_to", store.as_uri()]
    run = [*given, "--shard", "1/1", "--out", str(tmp_path / "out")]
    command([*run, *(to if first else [])])
    with pytest.raises(ValueError, match=r"holds results made otherwise \(store differ\)"):
        command([*run, *([] if first else to)])


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("bucket/prefix", "a store is given by an address like s3://bucket/prefix or file:///folder"),
        ("nowhere://bucket", "store nowhere://bucket: Protocol not known: nowhere"),
        ("smb://host/share", "store smb://host/share: .*smbprotocol"),
        ("file://results", "the store file://results is no whole path; give file:///FOLDER"),
        ("memory://results", "a store in memory ends with the process"),
        ("s3://me:secret@bucket/results", "the address of the store holds a password"),
        ("sftp://me:sec@ret@host/results", "the address of the store holds a password"),
        ("sftp://me:sec/ret@host/results", "the address of the store is none: .* no port"),
        ("file:///dev/null/results", "store file:///dev/null/results can not be written to .*NotADirectoryError"),
    ],
)
def test_addresses_that_are_none_are_refused_before_anything_is_written(given, tmp_path, address, message):
    with pytest.raises((ValueError, OSError), match=message) as error:
        command([*given, "--out", str(tmp_path / "out"), "--results_to", address])
    assert "sec" not in str(error.value)
    assert not (tmp_path / "out").exists()


def test_a_folder_alone_keeps_its_results(given, tmp_path, store):
    with pytest.raises(ValueError, match="--results_to goes with a manifest, --shard or --processes"):
        command(["predict", str(tmp_path / "in"), "--out", str(tmp_path / "out"), "--results_to", store.as_uri()])
    assert not store.exists()
