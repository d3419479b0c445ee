"""Whether an item is of one plane, and which, where it or the name of its file says so."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transforms.reading import file_kind

_NAMES = {
    "axial": ("ax", "axi", "axial", "tra", "trans", "transverse", "transversal"),
    "coronal": ("co", "cor", "coronal"),
    "sagittal": ("sa", "sag", "sagittal"),
}
_WORDS = {word: plane for plane, words in _NAMES.items() for word in words}


def is_flat(item: Mapping[str, Any]) -> bool:
    """Whether an item, its path absolute, is a slice or a picture and no whole volume.

    Raises:
        ValueError: when its file cannot be read, see `transforms.reading.file_kind`.
    """
    return "slice" in item or file_kind(_files(item)[0]) == "picture"


def plane_of(item: Mapping[str, Any]) -> str:
    """The plane that the item states; of a slice without one axial; else that of the only word for one in its name.

    Words of two letters count behind another word alone: ``co_1.png`` may be a control.

    >>> plane_of({"image": "images/p07_ax_t1.jpg"}), plane_of({"image": "a.nii.gz", "slice": 4, "plane": "coronal"})
    ('axial', 'coronal')
    >>> plane_of({"image": "sagittal/1.jpg"}), plane_of({"image": "sag_to_cor.png"}), plane_of({"image": "co_1.png"})
    ('', '', '')
    """
    if "plane" in item or "slice" in item:
        return str(item.get("plane", "axial"))
    words = re.split(r"[^a-z]+", Path(str(_files(item)[0])).name.lower())
    named = [word for word in words if word in _WORDS]
    if len({_WORDS[word] for word in named}) != 1 or (named == words[:1] and len(words[0]) == 2):
        return ""
    return _WORDS[named[0]]


def _files(item: Mapping[str, Any]) -> list[Any]:
    return list(item["image"]) if isinstance(item["image"], (list, tuple)) else [item["image"]]
