"""A Slurm cluster of one node on this machine, in a folder of its own, for tests."""

from __future__ import annotations

import getpass
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.ports import free_port

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "squeue", "scontrol", "scancel")
START_S, END_S = 30.0, 20.0

# Processes are tracked by their parents, as control groups belong to the machine. A requeued job starts again once its
# credential is over.
CONFIG = """
ClusterName=tests
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller}
SlurmdPort={node}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=3
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
JobAcctGatherType=jobacct_gather/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
KillWait=2
NodeName={host} NodeHostname={host} NodeAddr=127.0.0.1 CPUs={cores} State=UNKNOWN
PartitionName=all Nodes={host} Default=YES MaxTime=INFINITE State=UP
"""


class Unavailable(RuntimeError):
    """Slurm cannot be started here."""


@contextmanager
def slurm_cluster(folder: Path) -> Iterator[Path]:
    """Start Slurm, and end all of it with the context; the path of its ``slurm.conf``.

    Args:
        folder: empty; of a short path, as it holds a socket.

    Raises:
        Unavailable: when a program is not installed, or the node does not become idle; says why.
    """
    absent = [name for name in PROGRAMS if _program(name) is None]
    if absent:
        raise Unavailable(f"Slurm is not installed ({absent[0]} is absent; Debian: slurm-wlm munge)")
    (folder / "state").mkdir()
    (folder / "spool").mkdir()
    key, config = folder / "munge.key", folder / "slurm.conf"
    key.write_bytes(os.urandom(1024))
    key.chmod(0o400)
    config.write_text(
        CONFIG.format(
            host=socket.gethostname().partition(".")[0],
            controller=free_port(),
            node=free_port(),
            user=getpass.getuser(),
            folder=folder,
            cores=os.cpu_count(),
        )
    )
    munge = ["--foreground", "--force", f"--key-file={key}", f"--socket={folder}/munge.socket"]
    munge += [f"--{name}-file={folder}/munged.{name}" for name in ("pid", "log", "seed")]
    environment = {**os.environ, "SLURM_CONF": str(config)}
    processes: list[subprocess.Popen[bytes]] = []
    try:
        for name, arguments in (("munged", munge), ("slurmctld", ["-D"]), ("slurmd", ["-D"])):
            with open(folder / f"{name}.out", "wb") as log:
                command = [str(_program(name)), *arguments]
                processes.append(subprocess.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT))
            if name == "munged":
                _until(folder / "munge.socket", processes[0])
        _until_idle(environment, processes, folder)
        yield config
        subprocess.run(["scancel", "--me", "--signal=KILL"], env=environment, check=False, timeout=END_S)
        subprocess.run(["scancel", "--me"], env=environment, check=False, timeout=END_S)
        until = time.monotonic() + END_S
        while _said(["squeue", "--noheader"], environment) and time.monotonic() < until:
            time.sleep(0.5)
    finally:
        for process in reversed(processes):
            process.terminate()
        for process in reversed(processes):
            try:
                process.wait(END_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _program(name: str) -> str | None:
    return shutil.which(name, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")


def _said(command: list[str], environment: dict[str, str]) -> str:
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False).stdout.strip()


def _until(path: Path, process: subprocess.Popen[bytes]) -> None:
    until = time.monotonic() + START_S
    while not path.exists():
        if process.poll() is not None or time.monotonic() > until:
            raise Unavailable(f"munged does not start: {(path.parent / 'munged.out').read_text()[-300:]}")
        time.sleep(0.05)


def _until_idle(environment: dict[str, str], processes: list[subprocess.Popen[bytes]], folder: Path) -> None:
    until = time.monotonic() + START_S
    while (state := _said(["sinfo", "--noheader", "--format=%T"], environment)) != "idle":
        ended = [process.args[0] for process in processes if process.poll() is not None]  # type: ignore[index]
        if ended or time.monotonic() > until:
            logs = " ".join((folder / f"{name}.out").read_text()[-300:] for name in ("slurmctld", "slurmd"))
            raise Unavailable(f"Slurm does not start ({ended or state or 'no answer'}): {logs}")
        time.sleep(0.2)
