"""Threads that wait sleep, and memory that tensors give back stays with the process."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

from scripts.command.locations import ROOT

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
print(os.environ.get("OMP_WAIT_POLICY"), resident() - before)
"""


def run(kind: str, **environment: str) -> tuple[str, float]:
    """OMP_WAIT_POLICY of a process, and MB that it still holds after it gave back a block of 64 MB."""
    given = {"PYTHONPATH": str(ROOT), "PATH": "", **environment}
    command = [sys.executable, "-c", PROGRAM, kind]
    policy, kept = subprocess.run(command, env=given, capture_output=True, text=True, check=True).stdout.split()
    return policy, float(kept)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries have no mallopt")
def test_memory_is_kept_and_waiting_threads_sleep():
    policy, kept = run("tuned")
    assert policy == "PASSIVE"
    assert kept > 60
    policy, kept = run("untuned")
    assert policy == "None"
    assert kept < 4


def test_what_the_environment_sets_stays():
    assert run("tuned", OMP_WAIT_POLICY="ACTIVE")[0] == "ACTIVE"
    assert run("tuned", MALLOC_MMAP_THRESHOLD_="65536")[1] < 4
