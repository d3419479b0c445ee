"""Jobs of Slurm by submitit: the table of one process, whatever is preempted, requeued or canceled."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from scripts.inference import slurm_jobs
from scripts.inference.manifest import Manifest, prepare
from scripts.inference.merging import merge
from scripts.inference.shards import run_shard
from scripts.inference.slurm_jobs import run_slurm
from tests.inference.slurm_cluster import Unavailable, slurm_cluster
from tests.inference.stub_predictor import Stub

pytest.importorskip("submitit", reason="submitit is not installed (the extra 'slurm')")

NAMES = [f"p{k:02d}.png" for k in range(4)] + ["bad.png", "broken.png"]
SETTINGS = {"timeout_min": 60}  # submitit takes a signal in the last ten minutes for a job whose time is over


def own_job() -> str | None:
    """Number of the job that this process is; one of an array shares SLURM_JOB_ID with the whole array."""
    array = os.environ.get("SLURM_ARRAY_JOB_ID")
    return os.environ.get("SLURM_JOB_ID") if array is None else f"{array}_{os.environ['SLURM_ARRAY_TASK_ID']}"


@dataclass
class Disturbed(Stub):
    """In its first job it is preempted with notice at ``noticed``, requeued without at ``requeued``, or canceled."""

    def stream(self, todo):
        """What `Stub` answers, in the end."""
        for image, name in todo:
            job = own_job()
            if job is not None and not int(os.environ.get("SLURM_RESTART_COUNT", "0")):
                if image.name == "noticed.png":
                    os.kill(os.getpid(), signal.SIGUSR2)
                if image.name in ("requeued.png", "canceled.png"):
                    command = ["scontrol", "requeue"] if image.name == "requeued.png" else ["scancel"]
                    subprocess.run([*command, job], check=True)
                    time.sleep(60)  # it is killed before
                    raise RuntimeError(f"job {job} goes on after it was {image.stem}")
            yield from super().stream([(image, name)])


@pytest.fixture(scope="module")
def slurm():
    """A cluster of one node; the path of its configuration is in the environment."""
    folder = Path(tempfile.mkdtemp(prefix="slurm"))
    before = os.environ.get("SLURM_CONF")
    try:
        with slurm_cluster(folder) as config:
            os.environ["SLURM_CONF"] = str(config)
            yield
    except Unavailable as error:
        pytest.skip(str(error))
    finally:
        os.environ.pop("SLURM_CONF", None)
        if before is not None:
            os.environ["SLURM_CONF"] = before
        shutil.rmtree(folder)


def manifest(folder: Path, names: list[str], out: str) -> Manifest:
    (folder / "in.csv").write_text("\n".join(["image", *names]) + "\n", encoding="utf-8")
    return prepare(folder / "in.csv", folder / out)


def merged(folder: Path, out: str, done: int) -> bytes:
    assert merge(folder / out)[1] == {"done": done, "refused": 1, "failed": 1}
    return (folder / out / "results.csv").read_bytes()


def test_preempted_and_requeued_jobs_of_slurm_give_the_table_of_one_process(tmp_path, slurm):
    """Shard 1 is told before, and takes back what is under way; shard 2 is killed, and its input counts a try."""
    names = [*NAMES[:2], "noticed.png", "requeued.png", *NAMES[2:]]
    run_slurm(Disturbed(), manifest(tmp_path, names, "jobs"), 2, 2, SETTINGS)
    run_shard(Disturbed(), manifest(tmp_path, names, "one"), (1, 1), tries=2)
    assert merged(tmp_path, "jobs", 6) == merged(tmp_path, "one", 6)
    journals = [(tmp_path / f"jobs/ledger/shard-{k}-of-2/journal.jsonl").read_text() for k in (1, 2)]
    assert [journal.count('"back"') for journal in journals] == [1, 0]
    assert journals[0].count('{"row": 2, "state": "begun"}') == 2, "it was not preempted"
    assert journals[1].count('{"row": 3, "state": "begun"}') == 2, "it was not requeued"


def test_a_canceled_job_is_an_error_and_what_it_left_is_done_by_another(tmp_path, slurm, monkeypatch):
    """Without ``sacct``, which this cluster has not."""
    monkeypatch.setattr(slurm_jobs, "LAG_S", 5)
    names = [*NAMES[:3], "canceled.png", *NAMES[3:]]
    given = manifest(tmp_path, names, "jobs")
    with pytest.raises(
        OSError, match=r"1 of 1 jobs failed, first that of shard 1 \(it left the queue without a result"
    ):
        run_slurm(Disturbed(), given, 1, 2, SETTINGS)
    with pytest.raises(ValueError, match=r"4 of 7 inputs of .* are not finished yet"):
        merge(tmp_path / "jobs")
    stub = Disturbed()
    for number in (1, 2):
        run_shard(stub, given, (number, 2), tries=2)
    run_shard(Disturbed(), manifest(tmp_path, names, "one"), (1, 1), tries=2)
    assert "p00.png" not in stub.seen
    assert merged(tmp_path, "jobs", 5) == merged(tmp_path, "one", 5)
