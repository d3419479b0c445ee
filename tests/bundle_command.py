"""``python -m monai.bundle`` in this process: a start of Python with MONAI takes longer than most of what it then does.

What a process of its own shows (exit status, what is printed at an error) is tested in tests/configs/test_configs.py,
tests/bundle/test_release.py and tests/command.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import fire
import monai.bundle
import pytest

VERBS = ("run", "verify_metadata", "verify_net_in_out", "ckpt_export")


def monai_bundle(*command: str) -> None:
    """``python -m monai.bundle COMMAND...``."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [str(Path(monai.bundle.__file__).parent / "__main__.py"), *command])
        patch.setattr(sys, "excepthook", sys.excepthook)
        patch.setattr(sys, "path", list(sys.path))
        fire.Fire({verb: getattr(monai.bundle, verb) for verb in VERBS}, command=list(command))


def bundle_run(files: Sequence[Any], *arguments: str, **values: Any) -> None:
    """``python -m monai.bundle run --config_file FILES --name value ... ARGUMENTS``, with no logging of its own."""
    given = [f"--{name}={value}" for name, value in values.items()]
    monai_bundle(
        "run", "--config_file", str([str(file) for file in files]), "--logging_file", "False", *given, *arguments
    )
