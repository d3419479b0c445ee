"""First steps of every config under ``monai.bundle run``."""

from __future__ import annotations

import os
import sys
from typing import Any

import torch

from scripts.command.devices import check_device
from scripts.command.errors import quiet, report
from scripts.command.overrides import bundle_command
from scripts.command.workflows import running_config

__all__ = ["begin", "start"]


def start() -> None:
    """Quiet logs, errors in one sentence, overrides checked.

    MONAI wraps an error in one more for each config item and transform between it and the user. Set the environment
    variable ``TUMORLENS_TRACEBACK=1`` to see them all. A program that runs the config from Python keeps its own
    exception hook.

    Raises:
        ValueError: when the command line overrides an id that none of its config files has (names the nearest), or
            holds a value that MONAI would read otherwise than it was meant.
    """
    quiet()
    command = bundle_command(sys.argv)
    if command is None:
        running_config()
        return
    if not os.environ.get("TUMORLENS_TRACEBACK") and sys.excepthook is sys.__excepthook__:
        sys.excepthook = report
    command.check()


def begin(device: str | torch.device, **paths: Any) -> None:
    """See that the device is there and the paths are what was asked for, before work starts.

    Args:
        device: of the config.
        paths: by config id; None where they are not given.

    Raises:
        ValueError: when the device is not there, or MONAI's command line or config parser made another of a path.
    """
    check_device(device)
    for name, value in paths.items():
        for path in value if isinstance(value, (list, tuple)) else [value]:
            if path is not None and not isinstance(path, (str, os.PathLike)):
                raise ValueError(f"--{name} was read as the {type(path).__name__} {path!r}; write ./{path}")
            text = str(path or "")
            if "::" in text and not os.path.exists(text):
                raise ValueError(
                    f"--{name} was read as {text}: MONAI's config parser cannot take # in a path; "
                    "python -m scripts can, or choose another name"
                )
            if text.startswith("~"):
                raise ValueError(f"--{name}={text}: the shell leaves ~ after =; write --{name} {text}")
