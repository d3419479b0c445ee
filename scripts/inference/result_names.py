"""Names of results: of every image its own, whatever the files are called, and names that can be shown anywhere."""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from transforms.pictures import PICTURE_SUFFIXES
from transforms.reading import VOLUME_SUFFIXES

__all__ = [
    "DICOM",
    "HEADERS",
    "RESULT",
    "SUFFIXES",
    "check_free",
    "result_name",
    "result_stems",
    "safe",
    "shown",
    "stem",
]

DICOM = (".dcm", ".ima")
RESULT = "_result.json"  # what follows an image's name in that of its result
HEADERS = (".hdr", ".nhdr")  # of a pair
SUFFIXES = (*PICTURE_SUFFIXES, *VOLUME_SUFFIXES, *HEADERS)
# What is stripped, the longest first: ".nii.gz" before ".gz" would be tried.
_STRIPPED = sorted((*SUFFIXES, *DICOM), key=len, reverse=True)
# Most bytes of a file name are 255; "_evidence.nii.gz" follows, and the hash of a name that was cut.
_BYTES = 255 - len("_evidence.nii.gz") - len("_s0000_c00")


def shown(text: Any) -> str:
    r"""Text that every terminal and file takes: line breaks and bytes that are no UTF-8 are escaped.

    >>> print(shown("a\nb"), shown(Path(os.fsdecode(b"caf\xe9.png"))))
    a\nb caf\udce9.png
    """
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in str(text))


def stem(path: str | Path) -> str:
    """File name without its image suffix ("a.nii.gz" gives "a")."""
    name = Path(path).name
    for suffix in _STRIPPED:
        if name.lower().endswith(suffix):
            return name[: -len(suffix)] or name
    return name


def _own_names(names: Iterable[str]) -> dict[str, str]:
    """Of each file of a folder the stem, or where others would have the same, the whole name."""
    stems = {name: stem(name) for name in names}
    while True:
        counts = Counter(short.casefold() for short in stems.values())
        clashing = [name for name, short in stems.items() if counts[short.casefold()] > 1 and short != name]
        if not clashing:
            return stems
        stems.update({name: name for name in clashing})


def safe(name: str) -> str:
    """The name, or where it is too long or cannot be shown, one that can, with a hash of the whole."""
    plain = "".join(c if c.isprintable() else "_" for c in name)
    if plain == name and len(plain.encode()) <= _BYTES:
        return name
    short = plain.encode()[: _BYTES - 9].decode(errors="ignore")
    return f"{short}_{hashlib.sha256(os.fsencode(name)).hexdigest()[:8]}"


def result_stems(images: Sequence[Path], folder: Path) -> list[str]:
    """Where the results of each image go, relative to the output folder; two images never share a place.

    It is the file's stem; where the image's own folder holds other images of that stem, the whole name ("a.jpg" and
    "a.png"), also when one of them alone is predicted.

    Args:
        images: files, or folders of DICOM files.
        folder: that the images lie in, or the one image.
    """
    base = folder if folder.is_dir() and [folder] != list(images) else folder.parent
    by_folder: dict[Path, set[str]] = {}
    for image in images:
        by_folder.setdefault(image.parent, set()).add(image.name)
    stems: dict[Path, dict[str, str]] = {}
    for parent, names in by_folder.items():
        beside = os.listdir(parent) if parent.is_dir() else []
        stems[parent] = _own_names(names | {name for name in beside if name.lower().endswith((*SUFFIXES, *DICOM))})
    return [
        Path(*(safe(part) for part in image.parent.relative_to(base).parts), safe(stems[image.parent][image.name]))
        .as_posix()
        for image in images
    ]  # fmt: skip


def result_name(item: Mapping[Any, Any], source: str | Path) -> str:
    """Name of an item's results: the file's, and the slice or channel where one was asked for."""
    (name,) = result_stems([Path(source)], Path(source))
    if item.get("slice") is not None:
        name += f"_s{int(item['slice']):03d}"
    if isinstance(item.get("channel"), int):
        name += f"_c{item['channel']}"
    return name


def check_free(result: Path, source: str | Path, argument: str = "output_dir") -> None:
    """Look whose results a place holds, before others are written there.

    Args:
        result: the ``_result.json`` that is to be written.
        source: the image that it is of.
        argument: with which another folder is chosen.

    Raises:
        ValueError: when it holds results of another file, which still exists.
    """
    if not result.is_file():
        return
    try:
        before = Path(str(json.loads(result.read_text(encoding="utf-8"))["image"]))
    except (ValueError, KeyError, TypeError):  # nothing that is ours to keep
        return
    if before.exists() and Path(source).exists() and not before.samefile(source):
        raise ValueError(f"{result} holds the results of {before}; choose another --{argument} for {shown(source)}")
