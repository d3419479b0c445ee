"""The verb ``page``: Streamlit with the page, in a process of its own."""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

from scripts.command.locations import ROOT
from scripts.command.verbs import Outcome, inference_overlays

__all__ = ["command", "execute"]

# Uploads are limited as by the service; nothing is reported to Streamlit's makers.
SETTINGS = {
    "server.headless": "true",
    "server.address": "127.0.0.1",
    "server.maxUploadSize": "64",
    "client.toolbarMode": "minimal",
    "browser.gatherUsageStats": "false",
}


def command(arguments: argparse.Namespace) -> list[str]:
    """The command line of Streamlit; what follows ``--`` is the page's."""
    settings = {**SETTINGS, "server.port": str(arguments.port)}
    streamlit = [sys.executable, "-m", "streamlit", "run", str(Path("bundle", "page.py"))]
    own = [token for overlay in inference_overlays(arguments) for token in ("--overlay", str(overlay.absolute()))]
    for name in ("weights", "device", "prevalence"):
        if (value := getattr(arguments, name)) is not None:
            own += [f"--{name}", str(value.absolute() if isinstance(value, Path) else value)]
    return [*streamlit, *(token for key, value in settings.items() for token in (f"--{key}", value)), "--", *own]


def execute(arguments: argparse.Namespace) -> Outcome:
    """The verb ``page``: until it is interrupted.

    Raises:
        ValueError: when Streamlit ends by itself.
    """
    status = subprocess.run(command(arguments), cwd=ROOT).returncode
    if status:
        raise ValueError(f"the page ended with status {status}; see above")
    return Outcome()
