"""What file names of the public collections say: channel, mask, brain mask."""

from __future__ import annotations

import re
from pathlib import Path

from transforms.reading import VOLUME_SUFFIXES

CHANNELS = ("FLAIR", "T1", "T1ce", "T2")
# Names of 2013 ("MR_Flair", "MR_T1c", "OT"), 2018 to 2021 ("_flair", "_t1ce", "_seg"), 2023 ("-t2f", "-t1n", "-t1c").
_TOKENS = {
    "flair": "FLAIR", "t2f": "FLAIR", "t1": "T1", "t1n": "T1", "t1w": "T1", "t1c": "T1ce", "t1ce": "T1ce",
    "t1gd": "T1ce", "t1post": "T1ce", "t1contrast": "T1ce", "ct1": "T1ce", "t1pre": "T1", "t2": "T2", "t2w": "T2",
    "truth": "label", "gtv": "label", "tumormask": "label", "segmentations": "label", "seg": "label", "segm": "label",
    "segmentation": "label", "ot": "label", "otmulticlass": "label",
    "brainmask": "foreground",
}  # fmt: skip
_CONTRAST = {"ce", "gd", "c", "post", "contrast"}


def volume_suffix(path: Path) -> str | None:
    """The suffix of a file of volumes (".nii.gz", ...), None for another file."""
    name = path.name.lower()
    return next((suffix for suffix in sorted(VOLUME_SUFFIXES, key=len, reverse=True) if name.endswith(suffix)), None)


def stem_of(path: Path) -> str:
    """File name without the suffix of volumes."""
    return path.name[: -len(volume_suffix(path) or path.suffix) or None]


def role(path: Path, patient: str = "") -> str | None:
    """Say what a file of a case is: a channel ("FLAIR", "T1", "T1ce", "T2"), "label", "foreground", or None: unclear.

    The patient's name in front is not looked at, as it may hold "seg" or "flair" itself.

    >>> [role(Path(f"BraTS-GLI-00000-000-{x}.nii.gz"), "BraTS-GLI-00000-000") for x in ("t2f", "t1c", "t1n", "seg")]
    ['FLAIR', 'T1ce', 'T1', 'label']
    >>> role(Path("VSD.Brain.XX.O.MR_T1c.54514.mha")), role(Path("OTMultiClass.nii.gz")), role(Path("brain_mask.nii"))
    ('T1ce', 'label', 'foreground')
    """
    if volume_suffix(path) is None:
        return None
    stem = stem_of(path).lower().removeprefix(patient.lower())
    tokens = [token for token in re.split(r"[^a-z0-9]+", stem) if token]
    if "brain_mask" in stem or "brain-mask" in stem:
        return "foreground"
    roles = {_TOKENS[token] for token in tokens if token in _TOKENS}
    for first in ("foreground", "label", "FLAIR", "T1ce"):
        if first in roles:
            return first
    if "T1" in roles and _CONTRAST & set(tokens):
        return "T1ce"
    return next(iter(roles)) if len(roles) == 1 else None
