"""A real MONAI Label server in a process of its own, and what is asked of it over HTTP."""

from __future__ import annotations

import json
import os
import subprocess
import time
import uuid
from pathlib import Path
from typing import Any

from bundle.label import ENVIRONMENT, Label
from bundle.label_sampling import Server
from bundle.release import ROOT
from tests.ports import free_port

PATIENCE = 600.0  # seconds until the server answers, or a training ends, on a busy machine


class RunningServer(Server):
    """Started on a free port from the checkout's folder, as documented; stop it with `stop`."""

    def __init__(self, label: Label, log: Path, **settings: str):
        port = free_port()
        super().__init__(f"http://127.0.0.1:{port}")
        environment = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "VIRTUAL_ENV")}
        # No way out: what it does, it does offline.
        environment |= dict.fromkeys(("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"), "http://127.0.0.1:9")
        environment |= {"no_proxy": "127.0.0.1", "NO_PROXY": "127.0.0.1"}
        environment["MONAI_LABEL_SESSION_PATH"] = str(log.parent / "sessions")
        environment |= settings
        self.log = log
        with open(log, "w", encoding="utf-8") as output:
            self.process = subprocess.Popen(
                label.command(ENVIRONMENT / "bin" / "python", port),
                cwd=ROOT, stdout=output, stderr=subprocess.STDOUT, env=environment,
            )  # fmt: skip
        self.wait(lambda: self.json("GET", "/info/"), "the server does not answer")

    def wait(self, ready: Any, what: str) -> Any:
        """Ask until an answer is not None and no error."""
        end = time.monotonic() + PATIENCE
        while time.monotonic() < end:
            if self.process.poll() is not None:
                raise RuntimeError(f"the server ended with {self.process.returncode}:\n{self.tail()}")
            try:
                answer = ready()
            except ValueError:
                answer = None
            if answer is not None:
                return answer
            select_pause()
        raise RuntimeError(f"{what} after {PATIENCE:.0f} s:\n{self.tail()}")

    def tail(self) -> str:
        return self.log.read_text(encoding="utf-8", errors="replace")[-4000:]

    def stop(self) -> None:
        self.process.terminate()
        try:
            self.process.wait(60)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def upload(self, method: str, path: str, field: str, file: Path, **query: str) -> Any:
        """Send a file as a form's field."""
        mark = uuid.uuid4().hex
        head = f'--{mark}\r\nContent-Disposition: form-data; name="{field}"; filename="{file.name}"\r\n\r\n'
        body = head.encode() + file.read_bytes() + f"\r\n--{mark}--\r\n".encode()
        answer = self.send(method, path, body, f"multipart/form-data; boundary={mark}", **query)
        return json.loads(answer)

    def mask(self, model: str, image: str, target: Path, **params: Any) -> Path:
        """The result file of an inference."""
        form = {"params": json.dumps(params)}
        target.write_bytes(self.request("POST", f"/infer/{model}", form, image=image, output="image"))
        return target

    def train(self, model: str, **params: Any) -> dict[str, Any]:
        """Train in the background, as 3D Slicer does, and wait; the finished task."""
        body = json.dumps({"device": "cpu", **params}).encode()
        self.send("POST", f"/train/{model}", body, "application/json")

        def done() -> Any:
            task = self.json("GET", "/train/")
            return None if task["status"] in ("SUBMITTED", "PENDING", "RUNNING") else task

        return self.wait(done, "the training did not end")


def select_pause() -> None:
    """A short wait between two questions."""
    time.sleep(0.5)
