"""What file names of the public collections say: channel, mask, brain mask, patient."""

from __future__ import annotations

import re
from collections.abc import Mapping
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
# The name of a time point of a patient: BraTS-GLI-00007-001, sub-01_ses-2, patient01_study1.
_TIME_POINT = re.compile(
    r"^(?P<brats>brats-[a-z]+-\d{5})-\d{3}$|^(?P<other>.+?)[_/-](study|ses|session|visit|tp|time)[_-]?\d+$",
    re.IGNORECASE,
)


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
    found = {_TOKENS[token] for token in tokens if token in _TOKENS}
    for first in ("foreground", "label", "FLAIR", "T1ce"):
        if first in found:
            return first
    if "T1" in found and _CONTRAST & set(tokens):
        return "T1ce"
    return next(iter(found)) if len(found) == 1 else None


def patient_of_folder(folder: str, names: Mapping[str, int]) -> str:
    """The patient of a case's folder: by its own name, or by its path where several are called the same.

    >>> names = {"p1": 1, "study1": 1, "study2": 1, "flair": 2}
    >>> [patient_of_folder(folder, names) for folder in ("HGG/p1", "p2/study1", "p2/study2", "p3/flair")]
    ['p1', 'p2', 'p2', 'p3/flair']

    Args:
        folder: path relative to the folder of all cases, with "/".
        names: how many folders of cases have each name.
    """
    name = folder.rsplit("/", 1)[-1]
    return patient_of(name if names.get(name, 0) <= 1 and not only_time_point(name) else folder)


def only_time_point(name: str) -> bool:
    """Whether a folder's name says a time point and no patient.

    >>> only_time_point("ses-1"), only_time_point("study2"), only_time_point("p1_study2"), only_time_point("p1/study2")
    (True, True, False, False)
    """
    return _TIME_POINT.match(f"x_{name}") is not None and _TIME_POINT.match(name) is None


def patient_of(name: str) -> str:
    """The patient's name without the number of the time point: all time points stay on one side of a split.

    >>> patient_of("BraTS-GLI-00007-001"), patient_of("patient01_study1"), patient_of("BraTS20_Training_355")
    ('BraTS-GLI-00007', 'patient01', 'BraTS20_Training_355')
    >>> patient_of("p7/visit-2")
    'p7'
    """
    match = _TIME_POINT.match(name)
    return name if match is None else str(match["brats"] or match["other"])
