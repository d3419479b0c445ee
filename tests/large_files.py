"""Names tracked files over 1 MB, as pre-commit and the tests ask: ``python -m tests.large_files``.

Large files stay in a repository's history for good, and pictures and weights get in by accident.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LIMIT_BYTES = 1_000_000
ALLOWED = ("models/model.pt",)


def git(root: Path, *arguments: str, stdin: str | None = None) -> str:
    """Output of a git command.

    Raises:
        RuntimeError: when git fails, with what it said.
    """
    done = subprocess.run(["git", *arguments], cwd=root, input=stdin, capture_output=True, text=True, encoding="utf-8")
    if done.returncode:
        raise RuntimeError(f"git {arguments[0]} in {root}: {done.stderr.strip()}")
    return done.stdout


def large_files(root: Path = ROOT, limit_bytes: int = LIMIT_BYTES) -> dict[str, int]:
    """Size in bytes of each file in git's index that is larger than the limit and not allowed to be.

    The index, not the folder, is looked at: that is what a commit would hold.

    Raises:
        RuntimeError: when ``root`` is no git checkout.
    """
    entries = [entry.split("\t", 1) for entry in git(root, "ls-files", "--stage", "-z").split("\0") if entry]
    blobs = [(name, fields.split()[1]) for fields, name in entries if not fields.startswith("160000")]
    sizes = git(root, "cat-file", "--batch-check=%(objectsize)", stdin="".join(f"{blob}\n" for _, blob in blobs))
    found = {name: int(size) for (name, _), size in zip(blobs, sizes.split(), strict=True)}
    return {name: size for name, size in found.items() if size > limit_bytes and name not in ALLOWED}


def main(root: Path = ROOT) -> int:
    """Print each large file; 1 if there is one, else 0."""
    found = large_files(root)
    for name, size in sorted(found.items()):
        print(f"{name}: {size / 1e6:.1f} MB, more than {LIMIT_BYTES / 1e6:.0f} MB; keep it out of git", file=sys.stderr)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
