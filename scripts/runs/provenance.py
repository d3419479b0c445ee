"""How something was made: by what command, of what code, with what versions and on what machine."""

from __future__ import annotations

import os
import platform
import shlex
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

__all__ = ["CHANGES", "circumstances", "command_line", "commit", "machine"]

CHANGES = "+changes"  # behind the commit of a checkout that is not as committed
PACKAGES = ("torch", "monai", "numpy", "pytorch-ignite", "nibabel", "itk", "scikit-learn", "scikit-image", "scipy")


def circumstances() -> dict[str, Any]:
    """By what command, of what code, with what versions and on what machine this process makes something."""
    return {
        "command": command_line(),
        "commit": commit(),
        "versions": {name: metadata.version(name) for name in PACKAGES},
        "python": platform.python_version(),
        "machine": machine(),
    }


def command_line() -> str:
    """This process as a shell takes it: ``python -m`` where a module was started, arguments quoted."""
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    program = sys.argv[:1] if spec is None else ["python", "-m", spec.name.removesuffix(".__main__")]
    return shlex.join([*program, *sys.argv[1:]])


def machine() -> str:
    """System, processor, cores and GPU of this machine."""
    import torch  # a lock asks for the command alone, and processes that only count take locks too

    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    return f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores, {gpu}"


def commit() -> str | None:
    """Commit of the bundle's checkout, with CHANGES if it is not clean; None outside git."""
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return None
    head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=root, capture_output=True, text=True, encoding="utf-8")
    status = subprocess.run(
        ["git", "status", "--porcelain"], cwd=root, capture_output=True, text=True, encoding="utf-8"
    )
    if head.returncode:
        return None
    return head.stdout.strip() + (CHANGES if status.stdout.strip() else "")
