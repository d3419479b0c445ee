"""Makes the environment of MONAI Label start, and says whether it does; run by its own interpreter.

::

    .venv-label/bin/python -m bundle.label_environment
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import subprocess
import sys
from pathlib import Path

# Of torchvision, monailabel 0.8.5 needs make_grid and save_image in torchvision.utils, which are plain Python.
REDUCED = '''"""Reduced by TumorLens (bundle.label_environment): this wheel's compiled operators need PyTorch with CUDA.

Only torchvision.utils is left to be imported, which is all that MONAI Label uses.
"""

from . import utils
from .version import __version__
'''


def starts(statement: str) -> str | None:
    """None if a statement runs in a new interpreter, else the last line of its error."""
    done = subprocess.run([sys.executable, "-c", statement], capture_output=True, text=True, encoding="utf-8")
    return None if done.returncode == 0 else (done.stderr.strip().splitlines() or ["no message"])[-1]


def mend_torchvision() -> bool:
    """Reduce torchvision to what MONAI Label uses where its compiled part cannot load; True if that was needed.

    The package index has torchvision for Linux with CUDA alone; beside PyTorch without CUDA its import fails with
    "operator torchvision::nms does not exist".

    Raises:
        RuntimeError: when it is not installed, or fails for another reason.
    """
    error = starts("import torchvision")
    if error is None:
        return False
    spec = importlib.util.find_spec("torchvision")
    if spec is None or spec.origin is None:
        raise RuntimeError("torchvision is not installed; install requirements-label.txt first")
    if "torchvision::nms" not in error:
        raise RuntimeError(f"torchvision does not import: {error}")
    Path(spec.origin).write_text(REDUCED, encoding="utf-8")
    return True


def main() -> int:
    """Command line."""
    try:
        if mend_torchvision():
            print("torchvision reduced to torchvision.utils: PyTorch here is without CUDA")
    except RuntimeError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    reason = starts("import monailabel.app, monailabel.tasks.infer.bundle, monailabel.tasks.train.bundle")
    if reason is not None:
        print(f"error: MONAI Label does not import: {reason}", file=sys.stderr)
        return 1
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in ("monailabel", "monai", "torch"))
    print(f"MONAI Label imports: {versions}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
