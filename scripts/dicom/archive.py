"""A real archive to try with: Orthanc and its DICOMweb plug-in on this machine alone, with drawn heads in it."""

from __future__ import annotations

import argparse
import json
import logging
import shutil
import signal
import socket
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

from scripts.command.verbs import Outcome
from scripts.dicom.samples import write_sample
from scripts.dicom.viewer import HOST, serving

__all__ = ["PLUGINS", "available", "running", "upload"]

logger = logging.getLogger(__name__)

PLUGINS = Path("/usr/share/orthanc/plugins")  # of Debian's package
_START_S = 30
# Without a proxy, whatever the environment says: the archive is on this machine.
_opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))


def available() -> str:
    """What is missing to run the archive, in words; "" when nothing is."""
    if shutil.which("Orthanc") is None:
        return "Orthanc is not installed; install it with apt-get install orthanc orthanc-dicomweb"
    if not (PLUGINS / "libOrthancDicomWeb.so").exists():
        return "Orthanc has no DICOMweb plug-in; install it with apt-get install orthanc-dicomweb"
    return ""


@contextmanager
def running(folder: Path, port: int = 0) -> Iterator[str]:
    """Run an archive as long as the block does.

    Args:
        folder: of its database, log and configuration.
        port: of HTTP; 0: any that is free.

    Yields:
        its address, "http://127.0.0.1:PORT"; DICOMweb is at "/dicom-web".

    Raises:
        ValueError: when it is not installed or does not start; says where its log lies.
    """
    if missing := available():
        raise ValueError(missing)
    folder.mkdir(parents=True, exist_ok=True)
    port = port or _free_port()
    config = {
        "Name": "TumorLens", "StorageDirectory": str(folder / "db"), "IndexDirectory": str(folder / "db"),
        "HttpPort": port, "DicomServerEnabled": False, "RemoteAccessAllowed": False, "AuthenticationEnabled": False,
        "OverwriteInstances": True, "Plugins": [str(PLUGINS / "libOrthancDicomWeb.so")],
        "DicomWeb": {"Enable": True, "Root": "/dicom-web/"},
    }  # fmt: skip
    (folder / "orthanc.json").write_text(json.dumps(config), encoding="utf-8")
    with open(folder / "orthanc.log", "wb") as log:
        process = subprocess.Popen(["Orthanc", str(folder / "orthanc.json")], stdout=log, stderr=log)
    try:
        _wait(process, f"http://{HOST}:{port}/system", folder / "orthanc.log")
        yield f"http://{HOST}:{port}"
    finally:
        process.terminate()
        process.wait()


def upload(address: str, files: Iterable[Path]) -> None:
    """Store files in a running archive; what it holds already is replaced."""
    for path in files:
        _opener.open(urllib.request.Request(f"{address}/instances", path.read_bytes(), method="POST")).close()


def _free_port() -> int:
    with socket.socket() as free:
        free.bind((HOST, 0))
        return int(free.getsockname()[1])


def _wait(process: subprocess.Popen[bytes], url: str, log: Path) -> None:
    end = time.monotonic() + _START_S
    while process.poll() is None and time.monotonic() < end:
        try:
            _opener.open(url, timeout=2).close()
            return
        except (urllib.error.URLError, TimeoutError):
            time.sleep(0.1)
    raise ValueError(f"Orthanc did not start; its log is {log}")


def execute(arguments: argparse.Namespace) -> Outcome:
    """The verb ``archive``: run until interrupted."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # ended otherwise, it would leave Orthanc behind
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        with running(folder, arguments.port) as address:
            for number in range(arguments.samples):
                upload(address, write_sample(folder / "samples" / str(number), number))
            logger.info("archive with %d series: %s, DICOMweb at %s/dicom-web", arguments.samples, address, address)
            with serving(address) if arguments.viewer else nullcontext() as page:
                if page:
                    logger.info("viewer: %s", page)
                logger.info("stop it with Ctrl-C; what it holds is deleted then")
                try:
                    while True:
                        time.sleep(3600)
                except KeyboardInterrupt:
                    logger.info("stopped")
    return Outcome()
