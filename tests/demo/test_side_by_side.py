"""Jobs at the same time: their output, their share of the cores, and how they end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from functools import partial

import pytest
import torch

from scripts.demo.side_by_side import progress, side_by_side


def write_threads(file, other):
    """Say how many threads there are, and wait for the other job: only side by side do both end."""
    file.write_text(str(torch.get_num_threads()), encoding="utf-8")
    print(f"wrote {file.name}", flush=True)
    until = time.monotonic() + 60
    while not other.is_file():
        assert time.monotonic() < until
        time.sleep(0.05)


def fail(how):
    """End in one of the ways in which a job can."""
    print("all is well", flush=True)
    if how == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    if how == "sentence":
        raise ValueError("no such image: a.png")
    raise ZeroDivisionError


def write_and_sleep(file):
    """Say which process this is, and stay."""
    file.write_text(str(os.getpid()), encoding="utf-8")
    time.sleep(120)


def test_jobs_run_at_once_on_their_share_of_the_threads_and_print_to_their_logs(tmp_path):
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    try:
        files = [tmp_path / "a", tmp_path / "b"]
        jobs = {"A": partial(write_threads, *files), "B": partial(write_threads, *files[::-1])}
        logs = {name: tmp_path / "logs" / name for name in jobs}
        side_by_side(jobs, logs)
    finally:
        torch.set_num_threads(before)
    assert [file.read_text(encoding="utf-8") for file in files] == ["2", "2"]
    assert "wrote a" in logs["A"].read_text(encoding="utf-8")
    assert "wrote b" not in logs["A"].read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("how", "kind", "said"),
    [
        ("sentence", ValueError, "no such image: a.png"),
        ("killed", RuntimeError, r"bad ended with -9; .*bad.log ends with\n[\s\S]*all is well"),
        ("fault", RuntimeError, r"bad ended with 1; .*bad.log ends with\n[\s\S]*ZeroDivisionError"),
    ],
)
def test_the_first_failure_ends_all_jobs_and_says_why(tmp_path, how, kind, said):
    file = tmp_path / "pid"
    jobs = {"stays": partial(write_and_sleep, file), "bad": partial(fail, how)}
    with pytest.raises(kind, match=said):
        side_by_side(jobs, {name: tmp_path / f"{name}.log" for name in jobs})
    if file.is_file():
        with pytest.raises(ProcessLookupError):
            os.kill(int(file.read_text(encoding="utf-8")), 0)


def test_jobs_end_with_the_process_that_started_them(tmp_path):
    program = tmp_path / "program.py"
    program.write_text(
        "import sys\nfrom functools import partial\nfrom pathlib import Path\n"
        "from scripts.demo.side_by_side import side_by_side\nfrom tests.demo.test_side_by_side import write_and_sleep\n"
        "if __name__ == '__main__':\n"
        "    folder = Path(sys.argv[1])\n"
        "    side_by_side({'one': partial(write_and_sleep, folder / 'pid')}, {'one': folder / 'log'})\n",
        encoding="utf-8",
    )
    environment = {**os.environ, "PYTHONPATH": os.getcwd()}
    started = subprocess.Popen([sys.executable, program, tmp_path], env=environment)
    try:
        until = time.monotonic() + 120
        while not (tmp_path / "pid").is_file() or not (tmp_path / "pid").read_text(encoding="utf-8"):
            assert time.monotonic() < until
            assert started.poll() is None
            time.sleep(0.1)
    finally:
        started.kill()
        started.wait()
    job = int((tmp_path / "pid").read_text(encoding="utf-8"))
    until = time.monotonic() + 30
    while True:
        try:
            os.kill(job, 0)
        except ProcessLookupError:
            break
        assert time.monotonic() < until, "the job outlives the process that started it"
        time.sleep(0.1)


def test_progress_is_the_last_bar_or_the_last_line(tmp_path):
    log = tmp_path / "log"
    assert progress(log) == "begins"
    log.write_text("")
    assert progress(log) == "begins"
    log.write_text("wrote 3 files\n\n")
    assert progress(log) == "wrote 3 files"
    log.write_text("21:47:32 INFO scripts.training.precision: float32 on cpu\n")
    assert progress(log) == "float32 on cpu"
    bars = (
        "stage1:  10%|#   | 38/384 [00:30<04:00, 1.63batch/s]",
        "stage1:  79%|### | 303/384 [05:05<00:49, 1.63batch/s]",
    )
    log.write_text("begun\n" + "\r".join(bars))
    assert progress(log) == "stage1 79 %, 00:49 left"
