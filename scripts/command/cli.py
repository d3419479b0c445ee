"""First step of every config under ``monai.bundle run``."""

from __future__ import annotations

import os
import sys

from scripts.command.errors import quiet, report
from scripts.command.overrides import bundle_command

__all__ = ["start"]


def start() -> None:
    """Quiet logs, errors in one sentence, overrides checked.

    MONAI wraps an error in one more for each config item and transform between it and the user. Set the environment
    variable ``TUMORLENS_TRACEBACK=1`` to see them all. A program that runs the config from Python keeps its own
    exception hook.

    Raises:
        ValueError: when the command line overrides an id that none of its config files has; names the nearest.
    """
    quiet()
    command = bundle_command(sys.argv)
    if command is None:
        return
    if not os.environ.get("TUMORLENS_TRACEBACK") and sys.excepthook is sys.__excepthook__:
        sys.excepthook = report
    command.check()
