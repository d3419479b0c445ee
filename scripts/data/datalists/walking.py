"""Every file below a folder, links followed, and what cannot be listed named with its reason."""

from __future__ import annotations

import os
from collections import deque
from pathlib import Path

from scripts.data.datalists.schema import Report

# Results are named after the image, with more at the end, and file systems take 255 bytes.
MAX_NAME_BYTES = 200


def check_folder(folder: Path | str, root: Path | str | None) -> tuple[Path, Path]:
    """The folder and `dataset_dir` (the folder itself if not given).

    Raises:
        FileNotFoundError: when there is no such folder.
        ValueError: when the folder lies outside `root`.
    """
    folder = Path(folder)
    root = folder if root is None else Path(root)
    if not folder.is_dir():
        raise FileNotFoundError(f"no folder {folder}")
    if not folder.is_relative_to(root):
        raise ValueError(f"{folder} is not inside the dataset folder {root}")
    return folder, root


def walk(folder: Path, report: Report) -> list[Path]:
    """Every file below a folder, sorted; names that start with a dot are skipped.

    Links to folders are followed, each folder once. What cannot be listed is refused in the report: a link to a folder
    that is listed already, a folder that cannot be opened, and names as `name_reason` says.
    """
    files: list[Path] = []
    listed: dict[str, Path] = {}
    folders, links = deque([folder]), deque[Path]()
    while folders or links:  # links last: a folder is listed at its own place where it is inside
        current = folders.popleft() if folders else links.popleft()
        real = os.path.realpath(current)
        if real in listed:
            report.reject(_shown(current, folder), f"a link to {_shown(listed[real], folder)}, which is listed already")
            continue
        listed[real] = current
        for path in visible(current, folder, report):
            if path.is_dir():
                (links if path.is_symlink() else folders).append(path)
            else:
                files.append(path)
    return sorted(files)


def visible(start: Path, folder: Path, report: Report) -> list[Path]:
    """What lies in a folder, sorted; names with a dot in front are skipped, those of `name_reason` refused."""
    try:
        names = sorted(os.listdir(start))
    except OSError as error:
        report.reject(_shown(start, folder), f"cannot be opened: {error.strerror}")
        return []
    paths = []
    for name in names:
        if name.startswith("."):
            continue
        if reason := name_reason(name):
            report.reject(_shown(start / name, folder), reason)
        else:
            paths.append(start / name)
    return paths


def name_reason(name: str) -> str | None:
    """Why a file or folder of this name cannot stand in a datalist; None if it can.

    >>> name_reason("a.nii"), name_reason(250 * "x")[:30]
    (None, 'its name is 250 bytes long, at')
    """
    size = len(os.fsencode(name))
    if any("\udc80" <= letter <= "\udcff" for letter in name):
        return "its name is not UTF-8; rename it"
    if size > MAX_NAME_BYTES:
        return f"its name is {size} bytes long, at most {MAX_NAME_BYTES} leave room for names of results; rename it"
    return 'its name holds a backslash, which datalists take for "/"; rename it' if "\\" in name else None


def printable(name: str) -> str:
    """A name whose bytes that are not UTF-8 are written as numbers: a name in Latin-1 as `caf\\xe9.png`."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def _shown(path: Path, folder: Path) -> str:
    return printable(path.relative_to(folder).as_posix())
