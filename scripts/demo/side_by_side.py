"""Jobs at the same time, each in a process of its own on its share of the cores, with one line of progress for all.

Two small networks on one core each need half of the processor time that they need one after the other on two: what a
step computes is too little to share.
"""

from __future__ import annotations

import logging
import os
import re
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from multiprocessing import connection, get_context
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from scripts.command.errors import sentence, start_logging
from scripts.command.linked import end_with, start_linked, stop_linked
from scripts.command.machine import tune_process

__all__ = ["side_by_side"]

logger = logging.getLogger(__name__)

LOOK_S, LOG_S = 1.0, 15.0  # between lines of progress, in a terminal and in a log
STOP_S = 10.0
TAIL = 4096  # bytes of a log in which its last line lies
LINES = 5  # of a log, shown when its job fails
_LOGGED = re.compile(r"\d\d:\d\d:\d\d [A-Z]+ [\w.]+: ")  # time, level and module in front of a message
_BAR = re.compile(r"(?P<title>[^:|]+): *(?P<share>\d+)%\|.*?\[[^<\]]*<(?P<left>[\d:?]+)")


@dataclass
class _Job:
    """A process, its end of the pipe, its log, and whether it has finished."""

    process: Any
    link: connection.Connection
    log: Path
    finished: bool = False


def side_by_side(jobs: Mapping[str, Callable[[], object]], logs: Mapping[str, Path]) -> None:
    """Run the jobs at the same time; all end with this process, and with the first that fails.

    Args:
        jobs: by title; sent to their processes.
        logs: file by title that takes what the job prints, behind what is there.

    Raises:
        ValueError: the sentence of an error that the user can fix.
        RuntimeError: when a job ends otherwise, with the last lines of its log.
    """
    context = get_context("spawn")
    threads = max(1, torch.get_num_threads() // len(jobs))
    started: dict[str, _Job] = {}
    look = LOOK_S if sys.stderr.isatty() else LOG_S
    bar, shown = tqdm(bar_format="{desc}{elapsed}"), 0.0
    try:
        for title, work in jobs.items():
            logs[title].parent.mkdir(parents=True, exist_ok=True)
            started[title] = _Job(*start_linked(context, _work, work, logs[title], threads), logs[title])
        while running := [job for job in started.values() if not job.finished]:
            connection.wait([job.link for job in running], timeout=LOOK_S)
            for title, job in started.items():
                _listen(title, job)
            if time.monotonic() - shown < look:
                continue
            shown = time.monotonic()
            lines = [f"{title}: {'done' if job.finished else progress(job.log)}" for title, job in started.items()]
            bar.set_description_str(" | ".join([*lines, ""]))
    finally:
        bar.close()
        for job in started.values():
            if job.finished:  # it has its last lines to write
                job.process.join(STOP_S)
        stop_linked([(job.process, job.link) for job in started.values()], STOP_S)


def progress(log: Path) -> str:
    """How far the job of a log is, "stage1_segmentation 79 %, 00:49 left": by its last line, a progress bar or not."""
    lines = _last_lines(log)
    if not lines:
        return "begins"
    bar = _BAR.match(lines[-1])
    return _LOGGED.sub("", lines[-1])[:60] if bar is None else f"{bar['title']} {bar['share']} %, {bar['left']} left"


def _last_lines(log: Path) -> list[str]:
    if not log.is_file():
        return []
    with log.open("rb") as file:
        file.seek(max(0, os.fstat(file.fileno()).st_size - TAIL))
        text = file.read().decode("utf-8", "replace")
    return [line.strip() for line in re.split(r"[\r\n]", text) if line.strip()]


def _listen(title: str, job: _Job) -> None:
    """Take what a job has said.

    Raises:
        see `side_by_side`.
    """
    if job.finished or not (job.link.poll() or not job.process.is_alive()):
        return
    try:
        error = job.link.recv()
    except (EOFError, ConnectionError):
        job.process.join(STOP_S)
        shown = "\n".join(_last_lines(job.log)[-LINES:])
        raise RuntimeError(f"{title} ended with {job.process.exitcode}; {job.log} ends with\n{shown}") from None
    if error is not None:
        raise ValueError(f"{title}: {error} (all of it in {job.log})")
    job.finished = True


def _work(link: connection.Connection, job: Callable[[], object], log: Path, threads: int) -> None:
    """One process: run the job, its output in the log, and end when the process that started it does."""
    tune_process()
    with log.open("ab") as file:
        for stream in (1, 2):
            os.dup2(file.fileno(), stream)
    start_logging()
    logger.info("begun at %s on %d thread(s)", time.strftime("%Y-%m-%d %H:%M:%S"), threads)
    torch.set_num_threads(threads)
    threading.Thread(target=end_with, args=(link,), daemon=True).start()
    try:
        job()
        link.send(None)
    except Exception as error:
        text = sentence(error)
        if text is None:
            raise
        link.send(text)
