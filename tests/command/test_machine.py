"""Threads that wait sleep, and memory that tensors give back stays with the process."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest

from scripts.command.locations import ROOT
from tests.scans import head, save_picture

PROGRAM = """
import os, resource, sys
if sys.argv[1] == "tuned":
    from scripts.command.machine import tune_process
    tune_process()
def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize() / 2**20
before = resident()
block = b"x" * 2**26
del block
print(os.environ.get("OMP_WAIT_POLICY"), resident() - before, os.environ.get("OPENBLAS_NUM_THREADS"))
"""
# CPU seconds of this thread and of all others while images are prepared, augmented and predicted, one torch thread.
OTHERS = """
import sys, time
import numpy as np, torch
torch.set_num_threads(1)
from scripts.data.preprocessing import make_training_pipeline
from scripts.inference.pipeline import Inference
inference, pipeline = Inference(device="cpu"), make_training_pipeline([160, 160], augment=True)
item = {"image": sys.argv[1]}
def once():
    prepared = inference.prepare(dict(item))
    inference.finish(prepared, inference.infer(prepared))
    pipeline(dict(item))
once()
time.sleep(0.5)  # what was woken while loading has gone to sleep
own, every = time.thread_time(), time.process_time()
for _ in range(8):
    once()
own, every = time.thread_time() - own, time.process_time() - every
print(own, every - own)
"""


def run(kind: str, **environment: str) -> tuple[str, float, str]:
    """OMP_WAIT_POLICY, MB that are still held after 64 were given back, and OPENBLAS_NUM_THREADS of a process."""
    given = {"PYTHONPATH": str(ROOT), "PATH": "", **environment}
    command = [sys.executable, "-c", PROGRAM, kind]
    policy, kept, blas = subprocess.run(command, env=given, capture_output=True, text=True, check=True).stdout.split()
    return policy, float(kept), blas


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries have no mallopt")
def test_memory_is_kept_and_waiting_threads_sleep():
    policy, kept, blas = run("tuned")
    assert (policy, blas) == ("PASSIVE", "1")
    assert kept > 60
    policy, kept, blas = run("untuned")
    assert (policy, blas) == ("None", "None")
    assert kept < 4


def test_what_the_environment_sets_stays():
    assert run("tuned", OMP_WAIT_POLICY="ACTIVE")[0] == "ACTIVE"
    assert run("tuned", MALLOC_MMAP_THRESHOLD_="65536")[1] < 4
    assert run("tuned", OPENBLAS_NUM_THREADS="3")[2] == "3"


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="with one core there are no other threads to wake")
def test_nothing_of_an_image_wakes_threads_that_then_wait_at_full_speed(tmp_path):
    """Also where nobody tuned the process: BLAS threads wait by spinning, and take the core of another process."""
    save_picture(tmp_path / "a.png", head(seed=0)[:, :, 4])
    done = subprocess.run(
        [sys.executable, "-c", OTHERS, str(tmp_path / "a.png")],
        env={"PYTHONPATH": str(ROOT), "PATH": "", "HOME": str(tmp_path)}, capture_output=True, text=True, cwd=ROOT,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    own, others = map(float, done.stdout.split())
    assert own > 0.1
    assert others < 0.1 * own
