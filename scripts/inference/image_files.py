"""The images of a folder: pictures, volumes and folders of DICOM files, links followed, results of ours left out."""

from __future__ import annotations

import os
import zlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from scripts.inference.result_names import DICOM, HEADERS, SUFFIXES, shown
from scripts.pictures.overlays import MARK

__all__ = ["FoundImages", "find_images", "fingerprint", "is_result"]

# Files that belong to a header of the same name.
_BODIES = (".img", ".img.gz", ".raw", ".raw.gz", ".zraw", ".mat", ".hdr")
_NOT_DICOM = ("dicomdir",)


@dataclass
class FoundImages:
    """What a folder holds.

    Attributes:
        images: pictures, volumes and folders of DICOM files, in order.
        failed: links, files and folders that cannot be read, each with the reason.
        results: files that an earlier prediction wrote.
        others: how many files of each suffix are no images by name.
        again: folders that links lead to a second time, which are read once.
    """

    images: list[Path] = field(default_factory=list)
    failed: list[tuple[Path, str]] = field(default_factory=list)
    results: list[Path] = field(default_factory=list)
    others: Counter[str] = field(default_factory=Counter)
    again: list[Path] = field(default_factory=list)

    def notes(self) -> Iterator[str]:
        """What was left out, a sentence a reason."""
        if self.results:
            yield f"{len(self.results)} files are results of TumorLens and left out (first: {shown(self.results[0])})"
        if self.again:
            yield f"{len(self.again)} links lead to folders that are read already (first: {shown(self.again[0])})"
        if self.others:
            kinds = ", ".join(f"{count} {shown(suffix)}" for suffix, count in self.others.most_common(5))
            yield f"{sum(self.others.values())} files are no images by their names ({kinds}) and left out"


def find_images(folder: Path, out: Path | None = None) -> FoundImages:
    """Look for images under a folder and in folders that links lead to; what lies under ``out`` is left out.

    A folder counts as a DICOM series where a file in it is named or begins like a DICOM file.

    Raises:
        FileNotFoundError: when the folder does not exist.
        ValueError: when it holds no image.
    """
    if folder.is_symlink() and not folder.exists():
        raise FileNotFoundError(f"{folder} is a link to {os.readlink(folder)}, which does not exist")
    if folder.is_file():
        if is_result(folder):
            raise ValueError(f"{folder} is a result of TumorLens, no image to predict")
        return FoundImages([folder])
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} is not a folder")
    listing = FoundImages()
    seen = {_identity(folder)}

    def unreadable(error: OSError) -> None:
        listing.failed.append((Path(error.filename), f"the folder cannot be opened: {error.strerror}"))

    for root, folders, files in os.walk(folder, followlinks=True, onerror=unreadable):
        here = Path(root)
        folders[:] = [name for name in sorted(folders) if _enter(here / name, out, seen, listing)]
        _sort_files(here, [name for name in sorted(files) if not name.startswith(".")], listing)
    if not listing.images and not listing.failed:
        left = "; ".join(listing.notes())
        raise ValueError(
            f"{folder} holds no image ({', '.join(SUFFIXES)} or a folder of DICOM files){'; ' if left else ''}{left}"
        )
    return listing


def _identity(folder: Path) -> tuple[int, int]:
    status = folder.stat()
    return status.st_dev, status.st_ino


def _enter(folder: Path, out: Path | None, seen: set[tuple[int, int]], images: FoundImages) -> bool:
    """Whether to look into a folder: not into hidden ones, the results, or one that was looked into before."""
    if folder.name.startswith(".") or (out is not None and folder.resolve() == out.resolve()):
        return False
    identity = _identity(folder)
    if identity in seen:
        images.again.append(folder)
        return False
    seen.add(identity)
    return True


def _sort_files(folder: Path, names: list[str], images: FoundImages) -> None:
    dicom = False
    for name in names:
        path = folder / name
        if path.is_symlink() and not path.exists():
            images.failed.append((path, f"is a link to {os.readlink(path)}, which does not exist"))
        elif name.lower().endswith(DICOM):
            dicom = True
        elif name.lower().endswith(SUFFIXES):
            (images.results if is_result(path) else images.images).append(path)
        elif name.lower() not in _NOT_DICOM and _begins_as_dicom(path):
            dicom = True
        elif not (folder / f"{path.stem.removesuffix('.img')}.hdr").exists():  # the image file of a pair
            images.others[path.suffix.lower() or "without suffix"] += 1
    if dicom:
        images.images.append(folder)


def _begins_as_dicom(path: Path) -> bool:
    try:
        with open(path, "rb") as file:
            return file.read(132)[128:] == b"DICM"
    except OSError:
        return False  # counted among the files that are no images by name


def is_result(path: Path) -> bool:
    """Whether a file says in its first bytes that it is a mask, a heatmap or an overlay that was written here."""
    try:
        with open(path, "rb") as file:
            head = file.read(1024)
    except OSError:
        return False  # an image that cannot be opened; its reader says why
    if head.startswith(b"\x1f\x8b"):
        try:
            head = zlib.decompressobj(31).decompress(head, 1024)
        except zlib.error:
            return False  # damaged; its reader says so
    return MARK.encode() in head


def fingerprint(path: Path) -> dict[str, list[int]]:
    """Size and time of the last change of each file that an image consists of.

    Raises:
        OSError: when one cannot be looked at.
    """
    if path.is_dir():
        files = sorted(p for p in path.iterdir() if p.is_file())
    else:
        files = [path]
        if path.name.lower().endswith((*HEADERS, ".mhd", ".img")):
            base = path.name.split(".")[0]
            files += sorted(p for p in path.parent.glob(f"{_literal(base)}.*") if p.name.lower().endswith(_BODIES))
    return {shown(file.name): [(status := file.stat()).st_size, status.st_mtime_ns] for file in files}


def _literal(name: str) -> str:
    return "".join(f"[{c}]" if c in "*?[" else c for c in name)
