"""Which plane an item shows, where it or the name of its file says so."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

PLANES = {
    "axial": ("ax", "axi", "axial", "tra", "trans", "transverse", "transversal"),
    "coronal": ("co", "cor", "coronal"),
    "sagittal": ("sa", "sag", "sagittal"),
}
_WORDS = {word: plane for plane, words in PLANES.items() for word in words}


def view_of(item: Mapping[str, Any]) -> str:
    """The plane of a slice, or of a picture whose name holds one word for one; "" where nothing says it.

    >>> view_of({"image": "images/p07_ax_t1.jpg"}), view_of({"image": "a.nii.gz", "slice": 4, "plane": "coronal"})
    ('axial', 'coronal')
    >>> view_of({"image": "sagittal/001.jpg"}), view_of({"image": "sag_to_cor.png"})
    ('', '')
    """
    if "slice" in item:
        return str(item.get("plane", "axial"))
    files = item["image"] if isinstance(item["image"], (list, tuple)) else [item["image"]]
    words = re.split(r"[^a-z]+", Path(str(files[0])).name.lower())
    planes = {_WORDS[word] for word in words if word in _WORDS}
    return planes.pop() if len(planes) == 1 else ""
