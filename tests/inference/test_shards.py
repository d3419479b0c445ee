"""Predictions by manifest: every input once, whatever is killed, fails or is begun twice."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from scripts.__main__ import main as command
from scripts.inference import ray_actors
from scripts.inference.ledger import Ledger, entries, journals
from scripts.inference.manifest import Manifest, prepare, result_place
from scripts.inference.merging import merge
from scripts.inference.ray_actors import ShardActor, run_ray
from scripts.inference.result_table import columns
from scripts.inference.shards import run_local, run_shard
from scripts.inference.slurm_jobs import run_slurm
from scripts.runs import lock
from tests.inference.stub_predictor import CLASSES, Stub
from tests.scans import ROOT, head, save_picture, write_overlay

NAMES = [f"p{k:02d}.png" for k in range(20)]


@pytest.fixture
def made(tmp_path):
    def make(names=NAMES, out="out") -> Manifest:
        table = tmp_path / "inputs.csv"
        table.write_text("".join(f"{name},{k}\n" for k, name in enumerate(["image", *names])), encoding="utf-8")
        return prepare(table, tmp_path / out)

    return make


def table(out: Path) -> list[dict[str, str]]:
    with open(out / "results.csv", encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def states(out: Path) -> list[tuple[int, str, int]]:
    return [(row, state, number) for file in journals(out / "ledger") for _, row, state, number, _ in entries(file)]


def test_a_table_becomes_a_manifest_of_whole_paths_in_its_order(made, tmp_path):
    manifest = made(["b.png", "deep/a.png", "/elsewhere/c.nii.gz"])
    paths = [tmp_path / "b.png", tmp_path / "deep/a.png", Path("/elsewhere/c.nii.gz")]
    assert list(manifest.images()) == list(enumerate(paths))
    assert manifest.rows == 3
    assert [result_place(row, path) for row, path in enumerate(paths)][1:] == ["0000/0000001_a", "0000/0000002_c"]
    assert len({result_place(row, Path("a.png")).split("/")[0] for row in range(0, 1_000_000, 500)}) == 1000


def test_a_parquet_file_is_read_like_a_csv(made, tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")
    arrow = pytest.importorskip("pyarrow")
    parquet.write_table(arrow.table({"age": [1, 2], "image": ["a.png", "b.png"]}), tmp_path / "in.parquet")
    assert [path.name for _, path in prepare(tmp_path / "in.parquet", tmp_path / "o").images()] == ["a.png", "b.png"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("file\na.png\n", r"has no column 'image'; it has 'file'"),
        ("image\na.png\nb.png\na.png\n", r"names .*a.png twice \(inputs 0 and 2, counted from 0\)"),
        ("image,age\na.png,1\n,2\n", r"input 1, counted from 0, names no image"),
        ("image\n", r"names no image"),
    ],
)
def test_tables_that_are_no_manifest_are_refused(tmp_path, content, message):
    (tmp_path / "in.csv").write_text(content)
    with pytest.raises(ValueError, match=message):
        prepare(tmp_path / "in.csv", tmp_path / "out")
    assert not list(tmp_path.glob("out/*"))
    assert not list(tmp_path.glob("out/.*"))


def test_a_manifest_that_changed_or_is_another_is_refused(made, tmp_path):
    made()
    with pytest.raises(ValueError, match=r"holds results of .*inputs.csv as it was before, not of"):
        made(NAMES[1:])
    (tmp_path / "other.csv").write_text("image\na.png\n")
    with pytest.raises(ValueError, match=r"holds results of .*inputs.csv, not of .*other.csv"):
        prepare(tmp_path / "other.csv", tmp_path / "out")


def test_shards_give_the_table_of_one_process_byte_for_byte(made, tmp_path):
    whole, cut = made([*NAMES, "bad.png"], "one"), made([*NAMES, "bad.png"], "three")
    run_shard(Stub(), whole, (1, 1))
    for number in (3, 1, 2):
        run_shard(Stub(), cut, (number, 3))
    assert merge(tmp_path / "one")[1] == {"done": 20, "refused": 1}
    merge(tmp_path / "three")
    assert (tmp_path / "one" / "results.csv").read_bytes() == (tmp_path / "three" / "results.csv").read_bytes()
    assert [Path(row["image"]).name for row in table(tmp_path / "one")] == [*NAMES, "bad.png"]


def test_a_failure_is_tried_again_up_to_the_stated_number_and_a_refusal_is_not(made, tmp_path):
    manifest = made(["a.png", "flaky.png", "broken.png", "bad.png"])
    stub = Stub(flaky=2)
    run_shard(stub, manifest, (1, 1), tries=3)
    assert stub.seen == [
        "a.png",
        "flaky.png",
        "broken.png",
        "bad.png",
        "flaky.png",
        "broken.png",
        "flaky.png",
        "broken.png",
    ]
    assert merge(tmp_path / "out")[1] == {"done": 2, "refused": 1, "failed": 1}
    rows = table(tmp_path / "out")
    assert [row["status"] for row in rows] == ["done", "done", "failed", "refused"]
    assert [row["error"] for row in rows] == ["", "", "no memory", "no image"]
    stub.seen.clear()
    run_shard(stub, manifest, (1, 1), tries=3)
    assert stub.seen == []
    run_shard(stub, manifest, (1, 1), tries=5)
    assert stub.seen == ["broken.png", "broken.png"]


def test_what_is_under_way_at_an_interruption_is_taken_back(made, tmp_path):
    manifest = made(["a.png", "stop.png", "b.png"])
    with pytest.raises(KeyboardInterrupt):
        run_shard(Stub(), manifest, (1, 1))
    assert states(tmp_path / "out") == [(0, "begun", 0), (0, "done", 0), (1, "begun", 0), (1, "back", 0)]
    with pytest.raises(ValueError, match=r"2 of 3 inputs of .* are not finished yet \(first: .*stop.png, number 1\)"):
        merge(tmp_path / "out")
    assert not (tmp_path / "out" / "results.csv").exists()


def test_a_line_that_was_not_finished_is_cut_off_and_its_input_done_again(made, tmp_path):
    manifest = made(NAMES[:3])
    run_shard(Stub(), manifest, (1, 1))
    (journal,) = journals(tmp_path / "out" / "ledger")
    content = journal.read_bytes()
    journal.write_bytes(content[:-9])
    with pytest.raises(ValueError, match="1 of 3 inputs"):
        merge(tmp_path / "out")
    stub = Stub()
    run_shard(stub, manifest, (1, 1))
    assert stub.seen == [NAMES[2]]
    assert merge(tmp_path / "out")[1] == {"done": 3}
    journal.write_bytes(content.replace(b'{"row": 1, "state": "done"', b'{"raw": 1, "state": "done"'))
    with pytest.raises(ValueError, match=r"journal.jsonl is damaged at byte \d+"):
        merge(tmp_path / "out")


def test_an_input_that_is_finished_twice_is_refused_and_how_to_go_on_is_said(made, tmp_path):
    manifest = made(NAMES[:4])
    for number in (1, 2):
        run_shard(Stub(), manifest, (number, 2))
    one, two = journals(tmp_path / "out" / "ledger")
    two.write_bytes(two.read_bytes() + one.read_bytes().splitlines(keepends=True)[-1])
    with pytest.raises(ValueError, match=r"input 2 stands twice as finished, in .*1-of-2.* and .*2-of-2"):
        merge(tmp_path / "out")
    two.unlink()
    run_shard(Stub(), manifest, (2, 2))
    assert merge(tmp_path / "out")[1] == {"done": 4}


def test_other_weights_and_shards_of_another_number_at_work_are_refused(made, tmp_path, monkeypatch):
    manifest = made()
    run_shard(Stub(), manifest, (1, 2))
    with pytest.raises(ValueError, match=r"made otherwise \(version differ\)"):
        run_shard(Stub(made_by={"version": "other"}), manifest, (2, 2))
    monkeypatch.setattr(lock, "holder", lambda folder: "process 7 on there" if folder.name == "shard-1-of-2" else None)
    run_shard(Stub(), manifest, (2, 2))
    with pytest.raises(ValueError, match=r"process 7 on there works on .*shard-1-of-2, which is no shard of 3"):
        run_shard(Stub(), manifest, (1, 3))


def test_shards_of_another_number_go_on_where_the_others_were(made, tmp_path):
    manifest = made()
    run_shard(Stub(), manifest, (1, 2))
    stub = Stub()
    for number in (1, 2, 3):
        run_shard(stub, manifest, (number, 3))
    assert sorted(stub.seen) == NAMES[1::2]
    assert merge(tmp_path / "out")[1] == {"done": 20}


def test_an_input_that_kills_its_process_is_named_and_the_others_are_done(made, tmp_path):
    """The process of the machine is started again, three times for the same input."""
    manifest = made([*NAMES[:5], "deadly.png", *NAMES[5:9]])
    run_local(Stub(), manifest, 2)
    assert merge(tmp_path / "out")[1] == {"done": 9, "failed": 1}
    row = table(tmp_path / "out")[5]
    assert row["error"] == "the process ended 3 times while this image was read or predicted"
    assert states(tmp_path / "out").count((5, "begun", 0)) == 3


DRIVER = """
import sys
from pathlib import Path
from scripts.inference.manifest import opened
from scripts.inference.result_table import columns
from scripts.inference.shards import run_local
from tests.inference.stub_predictor import Stub
run_local(Stub(seconds=0.05), opened(Path(sys.argv[1])), 2)
"""


def test_after_the_death_of_the_driver_nothing_is_lost_or_done_twice(made, tmp_path):
    out = tmp_path / "out"
    manifest = made([f"{k:03d}.png" for k in range(200)])
    driver = subprocess.Popen([sys.executable, "-c", DRIVER, str(out)], cwd=ROOT, stderr=subprocess.PIPE)
    assert driver.stderr is not None
    while not any(state == "done" for _, state, _ in states(out)):
        assert driver.poll() is None
        os.read(driver.stderr.fileno(), 1)  # it shows its progress
    driver.send_signal(signal.SIGKILL)
    driver.wait()
    stub = Stub()
    for number in (1, 2):
        run_shard(stub, manifest, (number, 2), wait_s=20)
    final = [row for row, state, _ in states(out) if state == "done"]
    assert sorted(final) == list(range(200))
    assert 0 < len(stub.seen) < 200
    assert merge(out)[1] == {"done": 200}


def test_the_command_predicts_a_manifest_by_shards_like_a_folder(tmp_path, capsys):
    overlay = write_overlay(tmp_path)
    (tmp_path / "in").mkdir()
    for k in range(3):
        save_picture(tmp_path / "in" / f"{k}.png", head(seed=k)[:, :, 4])
    (tmp_path / "in" / "x.png").write_bytes(b"\x89PNG\r\n\x1a\nno")
    (tmp_path / "in.csv").write_text("image\n" + "".join(f"in/{name}.png\n" for name in ("2", "x", "0", "1")))
    given, out = ["predict", str(tmp_path / "in.csv"), "--out", str(tmp_path / "out")], tmp_path / "out"
    for number in (2, 1):
        assert command([*given, "--overlay", str(overlay), "--shard", f"{number}/2"]) == 0
    assert command([*given, "--merge"]) == 1
    assert "4 inputs: 3 done, 1 refused, 0 failed" in capsys.readouterr().out
    command(["predict", str(tmp_path / "in"), "--out", str(tmp_path / "plain"), "--overlay", str(overlay)])
    by_shards, plain = ({row["image"]: row for row in table(tmp_path / name)} for name in ("out", "plain"))
    assert [Path(image).name for image in by_shards] == ["2.png", "x.png", "0.png", "1.png"]
    for image, row in plain.items():
        assert {**row, "name": "", "overlay": ""} == {**by_shards[image], "name": "", "overlay": ""}
    assert (out / by_shards[str(tmp_path / "in" / "0.png")]["overlay"]).is_file()
    result = json.loads((out / "0000" / "0000002_0_result.json").read_text())
    assert result["row"]["status"] == "done"
    for wrong in ("0/2", "3/2", "1"):
        with pytest.raises(ValueError, match="--shard is a number and how many there are"):
            command([*given, "--shard", wrong])
    with pytest.raises(ValueError, match="holds the ledger of a prediction by manifest"):
        command(["predict", str(tmp_path / "in"), "--out", str(out), "--overlay", str(overlay)])


def test_the_ledger_counts_what_was_begun_and_not_finished(made, tmp_path):
    manifest = made()
    with Ledger(manifest.path.parent, (1, 1), 20, {}, columns(CLASSES)) as ledger:
        ledger.begin(4)
        ledger.begin(5)
        ledger.take_back(5)
    with Ledger(manifest.path.parent, (1, 1), 20, {}, columns(CLASSES)) as ledger:
        assert [ledger.tried(row) for row in (3, 4, 5)] == [0, 1, 0]
        assert not ledger.settled(4)
    assert not (tmp_path / "out" / "ledger" / "shard-1-of-1" / lock.FILE).exists()


def test_jobs_of_submitit_give_the_same_table(made, tmp_path):
    """By submitit's processes of this machine, which run the jobs as those of Slurm are run."""
    pytest.importorskip("submitit", reason="submitit is not installed (the extra 'slurm')")
    names = [*NAMES[:6], "bad.png", "broken.png"]
    run_slurm(Stub(), made(names, "jobs"), 2, 2, {"timeout_min": 5}, cluster="local")
    run_shard(Stub(), made(names, "one"), (1, 1), tries=2)
    assert merge(tmp_path / "jobs")[1] == merge(tmp_path / "one")[1] == {"done": 6, "refused": 1, "failed": 1}
    assert (tmp_path / "jobs" / "results.csv").read_bytes() == (tmp_path / "one" / "results.csv").read_bytes()


@pytest.fixture
def two_nodes():
    """Address of a Ray cluster of two nodes of one CPU each, on this machine."""
    utils = pytest.importorskip("ray.cluster_utils", reason="Ray is not installed (the extra 'ray')")
    about = {"num_cpus": 1, "object_store_memory": ray_actors.OBJECT_STORE}
    cluster = utils.Cluster(initialize_head=True, head_node_args={**about, "include_dashboard": False})
    cluster.add_node(**about)
    yield cluster.address
    cluster.shutdown()


def test_actors_on_two_nodes_of_ray_give_the_same_table(made, tmp_path, two_nodes):
    """An actor that is lost is started again; the input that ended it is named."""
    names = [*NAMES[:6], "bad.png", "broken.png", "deadly.png", *NAMES[6:9]]
    run_ray(Stub(), made(names, "actors"), 2, 1, {"address": two_nodes})
    counts = {"done": 9, "refused": 1, "failed": 2}
    assert merge(tmp_path / "actors")[1] == counts
    rows = table(tmp_path / "actors")
    assert rows[8]["error"] == "the process ended 1 times while this image was read or predicted"
    one = made(names, "one")
    with Ledger(one.path.parent, (1, 1), 12, Stub().made_by, Stub().columns, 1) as ledger:
        ledger.begin(8)  # as a process that ended there leaves it
    run_shard(Stub(), one, (1, 1), tries=1)
    assert merge(tmp_path / "one")[1] == counts
    assert (tmp_path / "actors" / "results.csv").read_bytes() == (tmp_path / "one" / "results.csv").read_bytes()


def test_an_actor_that_is_asked_to_stop_takes_back_what_is_under_way(made, tmp_path):
    manifest, actor = made(NAMES[:5]), ShardActor()

    class Stopping(Stub):
        def stream(self, todo):
            for k, found in enumerate(super().stream(todo)):
                if k == 2:
                    actor.stop()
                yield found

    actor.work(Stopping(), manifest, (1, 1), 3, 0)
    assert [row for row, state, _ in states(tmp_path / "out") if state == "done"] == [0, 1, 2]
    run_shard(Stub(), manifest, (1, 1))
    assert merge(tmp_path / "out")[1] == {"done": 5}


def test_engines_without_their_package_and_wrong_settings_are_a_sentence(tmp_path, monkeypatch):
    (tmp_path / "in.csv").write_text("image\na.png\n")
    given = ["predict", str(tmp_path / "in.csv"), "--out", str(tmp_path / "out"), "--engine"]
    with pytest.raises(ValueError, match=r"--slurm takes NAME=VALUE, .*, got 'gpu'"):
        command([*given, "slurm", "--slurm", "gpu"])
    with pytest.raises(ValueError, match="--slurm is for --engine slurm"):
        command([*given, "local", "--slurm", "timeout_min=5"])
    with pytest.raises(ValueError, match="--ray is for --engine ray"):
        command([*given, "slurm", "--ray", "num_gpus=1"])
    monkeypatch.setitem(sys.modules, "submitit", None)
    with pytest.raises(ValueError, match="--engine slurm needs submitit: pip install"):
        command([*given, "slurm"])
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ValueError, match="--engine ray needs Ray: pip install"):
        command([*given, "ray"])
    assert not (tmp_path / "out").exists()
