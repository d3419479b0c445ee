"""Two users of one service: how long a prediction takes while slow explanations of another user wait and run.

    python -m benchmarks.service [--explanations 50] [--rounds 20] [--method occlusion] [--out FILE] [--check]

The service runs with the shipped weights in a process of its own, on a free port of this machine. A phantom picture is
predicted ``rounds`` times while nothing else runs. Then ``explanations`` requests of the slow method are sent at once,
and the picture is predicted as often again, while they wait: a figure is the median of the seconds from request to
answer. At the end explanations still wait, or the run does not count.
"""

from __future__ import annotations

import argparse
import http.client
import json
import logging
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.rows import Row, table
from benchmarks.timing import machine
from bundle.samples import PICTURE, draw_samples
from scripts.command import errors
from scripts.command.files import write_json
from scripts.command.locations import ROOT

logger = logging.getLogger(__name__)

TARGET = 2.0
START_S = 180


class Client:
    """Requests to a service on this machine."""

    def __init__(self, port: int) -> None:
        self.port = port

    def get(self, path: str) -> dict[str, Any]:
        """JSON of an address."""
        return self._answer("GET", path, b"", {})[1]

    def post(self, path: str, image: bytes, **fields: str) -> tuple[int, dict[str, Any]]:
        """Status and JSON of the answer to a form."""
        parts = [f'name="{key}"\r\n\r\n{value}'.encode() for key, value in fields.items()]
        parts.append(b'name="image"; filename="image.png"\r\n\r\n' + image)
        body = (
            b"".join(b"--part\r\nContent-Disposition: form-data; " + part + b"\r\n" for part in parts) + b"--part--\r\n"
        )
        return self._answer("POST", path, body, {"Content-Type": "multipart/form-data; boundary=part"})

    def _answer(self, method: str, path: str, body: bytes, headers: dict[str, str]) -> tuple[int, dict[str, Any]]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=3600)
        try:
            connection.request(method, path, body or None, headers)
            response = connection.getresponse()
            return response.status, json.loads(response.read())
        finally:
            connection.close()


def served(port: int) -> subprocess.Popen:
    """A service on a port, once it answers.

    Raises:
        RuntimeError: when it does not within three minutes.
    """
    process = subprocess.Popen([sys.executable, "-m", "scripts", "serve", "--port", str(port)], cwd=ROOT)
    for _ in range(START_S):
        if process.poll() is not None:
            break
        try:
            Client(port).get("/health")
            return process
        except OSError:
            time.sleep(1)
    process.kill()
    raise RuntimeError(f"the service does not answer within {START_S} s")


def seconds(client: Client, image: bytes, rounds: int) -> list[float]:
    """Of each prediction, from request to answer.

    Raises:
        RuntimeError: when one is refused.
    """
    taken = []
    for _ in range(rounds):
        start = time.perf_counter()
        status, answer = client.post("/predict_multitask", image)
        taken.append(time.perf_counter() - start)
        if status != 200:
            raise RuntimeError(f"a prediction was refused with {status}: {answer}")
    return taken


def measure(explanations: int, rounds: int, method: str) -> list[Row]:
    """The figures.

    Raises:
        RuntimeError: when no explanation waits any more after the last prediction.
    """
    with tempfile.TemporaryDirectory() as folder:
        draw_samples(Path(folder))
        image = (Path(folder) / PICTURE).read_bytes()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    process = served(port)
    try:
        client = Client(port)
        seconds(client, image, 3)
        idle = seconds(client, image, rounds)
        for _ in range(explanations):
            threading.Thread(target=_ask, args=(client, image, {"method": method}), daemon=True).start()
        while client.get("/health")["waiting"]["explanations"] < explanations - 2:
            time.sleep(0.05)
        waiting = client.get("/health")["waiting"]["explanations"]
        busy = seconds(client, image, rounds)
        left = client.get("/health")["waiting"]["explanations"]
    finally:
        process.kill()
        process.wait()
    if not left:
        raise RuntimeError("no explanation waits any more: ask for more of them, or for fewer rounds")
    name = f"{waiting} waiting explanations ({method})"
    return [
        Row("prediction, idle service", 1000 * statistics.median(idle), "ms"),
        Row(f"prediction, {name}", 1000 * statistics.median(busy), "ms"),
        Row(f"prediction, {name} / idle", statistics.median(busy) / statistics.median(idle), target=TARGET),
        Row(f"slowest prediction, {name}", 1000 * max(busy), "ms"),
        Row("explanations that still wait at the end", float(left), ""),
    ]


def _ask(client: Client, image: bytes, fields: dict[str, str]) -> None:
    try:
        client.post("/explain", image, **fields)
    except (OSError, http.client.HTTPException):  # the service is stopped before all are answered
        logger.debug("an explanation was not answered")


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; returns 1 with ``--check`` when the target is missed, else 0."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.service", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument("--explanations", type=int, default=50, help="asked for at once")
    parser.add_argument("--rounds", type=int, default=20, help="predictions, idle and busy")
    parser.add_argument("--method", default="occlusion", help="of the explanations")
    parser.add_argument("--out", help="JSON file to write")
    parser.add_argument("--check", action="store_true", help="exit status 1 when a target is missed")
    args = parser.parse_args(arguments)
    rows = measure(args.explanations, args.rounds, args.method)
    print(f"{machine()}\n\n{table(rows)}")
    if args.out:
        write_json([asdict(row) for row in rows], args.out)
    return int(args.check and not all(row.met for row in rows))


if __name__ == "__main__":
    with errors.one_sentence_errors():
        sys.exit(main())
