"""Results in a store by its address: the same files as below --out, each image once, whole or not at all."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import pytest
from fsspec.implementations.memory import MemoryFileSystem

from scripts.__main__ import main as command
from scripts.inference import predict
from scripts.inference.pipeline import Inference
from scripts.inference.stores import ResultStore
from tests.scans import head, save_picture, write_overlay

STORE = "memory://results/of/mine"


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
def memory():
    MemoryFileSystem.store.clear()
    yield MemoryFileSystem
    MemoryFileSystem.store.clear()


def files(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def rows(out: Path) -> list[dict[str, str]]:
    with open(out / "results.csv", encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_a_store_holds_what_the_folder_would_and_the_folder_the_ledger_and_the_table(given, tmp_path):
    address = (tmp_path / "store").as_uri()
    assert command([*given, "--out", str(tmp_path / "plain"), "--processes", "2"]) == 1
    assert command([*given, "--out", str(tmp_path / "out"), "--processes", "2", "--results_to", address]) == 1
    plain, stored, left = (files(tmp_path / name) for name in ("plain", "store", "out"))
    assert rows(tmp_path / "out") == rows(tmp_path / "plain")
    assert {name for name in left if not name.startswith("ledger/")} == {"results.csv"}
    results = {name for name in plain if not name.startswith("ledger/")} - {"results.csv"}
    assert stored.keys() == results
    assert len(results) == 12
    for name, content in stored.items():
        if name.endswith("_result.json"):
            ours, theirs = json.loads(content), json.loads(plain[name])
            assert ours["made_by"].pop("store") == address
            assert ours == theirs
        else:
            assert content == plain[name]


def test_what_is_in_the_store_is_kept_while_it_is_whole(given, tmp_path, seen, memory):
    run = [*given, "--shard", "1/1", "--results_to", STORE, "--out"]
    command([*run, str(tmp_path / "out")])
    assert sorted(seen) == ["0.png", "1.png", "2.png"]
    seen.clear()
    shutil.rmtree(tmp_path / "out")
    memory().rm("/results/of/mine/0000/0000002_0_mask.png")
    command([*run, str(tmp_path / "out")])
    assert seen == ["0.png"]
    save_picture(tmp_path / "in" / "1.png", head(seed=7)[:, :, 4])
    seen.clear()
    shutil.rmtree(tmp_path / "out")
    command([*run, str(tmp_path / "out")])
    assert seen == ["1.png"]


def test_an_image_that_cannot_be_used_any_more_leaves_nothing_in_the_store(given, tmp_path, memory):
    run = [*given, "--shard", "1/1", "--results_to", STORE, "--out"]
    command([*run, str(tmp_path / "out")])
    assert len([name for name in memory.store if "0000003_1" in name]) == 4
    shutil.rmtree(tmp_path / "out")
    (tmp_path / "in" / "1.png").write_bytes(b"\x89PNG\r\n\x1a\nno")
    command([*run, str(tmp_path / "out")])
    assert not [name for name in memory.store if "0000003_1" in name]
    assert len(memory.store) == 8


def test_an_upload_that_fails_is_tried_again_and_is_never_taken_for_whole(
    given, tmp_path, seen, memory, monkeypatch, caplog
):
    put = memory.put_file
    failures = ["evidence", "result.json"]

    def brittle(self, here, there, **more):
        if failures and there.endswith(("2_0_evidence.nii.gz", "2_0_result.json")) and failures[0] in there:
            failures.pop(0)
            raise OSError("the connection was lost")
        return put(self, here, there, **more)

    monkeypatch.setattr(memory, "put_file", brittle)
    run = [*given, "--out", str(tmp_path / "out"), "--results_to", STORE]
    command([*run, "--shard", "1/1"])
    assert seen == ["2.png", "0.png", "1.png", "0.png", "0.png"]
    assert caplog.text.count("the connection was lost") == 2
    assert command([*run, "--merge"]) == 1
    assert [row["status"] for row in rows(tmp_path / "out")] == ["done", "refused", "done", "done"]
    assert ResultStore(STORE).result("0000/0000002_0")["row"]["status"] == "done"


def test_the_place_decides_like_the_weights(given, tmp_path, memory):
    command([*given, "--shard", "1/1", "--out", str(tmp_path / "out"), "--results_to", STORE])
    with pytest.raises(ValueError, match=r"holds results made otherwise \(store differ\)"):
        command([*given, "--shard", "1/1", "--out", str(tmp_path / "out"), "--results_to", "memory://elsewhere"])


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("bucket/prefix", r"a store is an address like s3://bucket/prefix or file:///folder, got bucket/prefix"),
        ("nowhere://bucket", r"store nowhere://bucket: Protocol not known: nowhere"),
        ("smb://host/share", r"store smb://host/share: .*smbprotocol"),
    ],
)
def test_addresses_that_are_none_are_refused_before_anything_is_written(given, tmp_path, address, message):
    with pytest.raises(ValueError, match=message):
        command([*given, "--out", str(tmp_path / "out"), "--results_to", address])
    assert not (tmp_path / "out").exists()


def test_a_password_is_in_no_result_and_no_message():
    with pytest.raises(ValueError, match="store nowhere://host/results: Protocol") as error:
        ResultStore("nowhere://me:secret@host/results/")
    assert "secret" not in str(error.value)
    assert ResultStore("memory://me:secret@host/results/").address == "memory://host/results"


def test_a_folder_alone_keeps_its_results(given, tmp_path):
    with pytest.raises(ValueError, match="--results_to goes with a manifest, --shard or --processes"):
        command(["predict", str(tmp_path / "in"), "--out", str(tmp_path / "out"), "--results_to", STORE])
