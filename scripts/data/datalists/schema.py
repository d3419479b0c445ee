"""Datalists: build, merge, check, read and write the JSON files that say what is trained, validated and tested on.

The form is MONAI's decathlon form, with paths relative to `dataset_dir`:

    {"name": ..., "modality": {"0": "FLAIR"}, "classes": {"0": "no_tumor", "1": "glioma"},
     "regions": {"whole_tumor": [1, 2, 4], "tumor_core": [1, 4]},
     "training": [item], "validation": [item], "test": [item]}
    item: {"image": "a.jpg", "label": "mask.png", "diagnosis": 1, "patient": "p017", "source": "x", "slice": 73,
           "plane": "axial", "foreground": "brain.nii.gz", "group": "x-12", "name": "p017_cor073"}

Class 0 is always no tumor. Pictures of class 0 without a mask are trained with an empty one, unless the list says
`"no_tumor_means_no_lesion": false` (other lesions may be in them). `patient` is who it is, a number within its
`source`: equal numbers of two sources are two people (see `patient_key`). Where the patient is unknown, `group` holds
near-duplicates together.
`regions` says which label values of the masks make which region (see `scripts.data.datalists.regions`); without it any
label is tumor, the one region.
Files may be in UTF-8 or UTF-16, with or without a byte order mark; backslashes in paths count as "/".
`slice` counts along the plane's axis of the volume in LPS ("axial" if no plane is named), `foreground` is the user's
own mask of head or brain, `name` the case's name where the file's stem would not do. A DICOM series is its folder.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import logging
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from scripts.command.files import write_text
from scripts.data.datalists.clusters import Item, clusters, images_of, paths, patient_key, shared_numbers, warn_shared
from scripts.data.datalists.regions import check_regions

logger = logging.getLogger(__name__)

Datalist = dict[str, Any]

SPLITS = ("training", "validation", "test")
REQUIRED_KEYS = ("classes", *SPLITS)
NO_LESION = "no_tumor_means_no_lesion"
# What decathlon files may hold besides, kept and not used; `left_out`: counts of what limits left out, by reason;
# `NO_LESION`: whether pictures of class 0 are trained with an empty mask.
OPTIONAL_KEYS = (
    "name",
    "modality",
    "description",
    "reference",
    "licence",
    "license",
    "release",
    "left_out",
    NO_LESION,
    "regions",
)
ITEM_KEYS = ("image", "label", "foreground", "diagnosis", "patient", "source", "slice", "plane", "group", "name")
PLANES = ("axial", "coronal", "sagittal")
DEFAULT_FRACTIONS = (0.60, 0.15, 0.25)


@dataclass
class Report:
    """What a builder met.

    Attributes:
        unusable: (file, reason).
        notes: (file, text).
        figures: counts.
        left_out: what limits left out, by reason.
        quiet: nothing is logged.
    """

    unusable: list[tuple[str, str]] = field(default_factory=list)
    notes: list[tuple[str, str]] = field(default_factory=list)
    figures: dict[str, Any] = field(default_factory=dict)
    left_out: Counter[str] = field(default_factory=Counter)
    quiet: bool = False

    def leave_out(self, reason: str, count: int = 1) -> None:
        """Count what a limit or rule leaves out, by its reason: "slices with tumor beyond 5 of each patient"."""
        if count:
            self.left_out[reason] += count

    def reject(self, name: str, reason: str) -> None:
        """Record a file that cannot be used, and log it."""
        self.unusable.append((name, reason))
        if not self.quiet:
            logger.warning("not used: %s: %s", name, reason)

    def note(self, name: str, text: str) -> None:
        """Record something worth knowing that excludes nothing, and log it for debugging; it goes into the report."""
        self.notes.append((name, text))
        logger.debug("%s: %s", name, text)


def merge(datalists: Sequence[Datalist], name: str | None = None) -> Datalist:
    """Join datalists of several sources, split by split. They must share `dataset_dir`, the classes and the modality.

    Patients of equal numbers in two sources are two people; that there are some is logged.

    Raises:
        ValueError: when there is none, classes or modality differ, or a patient, group or image is in two splits.
    """
    if not datalists:
        raise ValueError("nothing to merge: expected at least one datalist")
    first = datalists[0]
    for other in datalists[1:]:
        for key in ("classes", "modality", "regions"):
            if other.get(key) != first.get(key):
                raise ValueError(
                    f"cannot merge {first.get('name')!r} and {other.get('name')!r}: "
                    f"{key} differ, {first.get(key)} against {other.get(key)}"
                )
    merged = {**first, "name": name or "+".join(str(one.get("name", "unnamed")) for one in datalists)}
    if not all(one.get(NO_LESION, True) for one in datalists):
        merged[NO_LESION] = False
    for split in SPLITS:
        merged[split] = [item for one in datalists for item in one[split]]
    validate(merged)
    shared = shared_numbers([item for split in SPLITS for item in merged[split]])
    warn_shared(shared, "if they are one, merge with --dataset_dir and --same_patients")
    return merged


def assert_no_overlap(datalist: Datalist) -> None:
    """Refuse a datalist in which a patient (of one source), a near-duplicate group or an image file is in two splits.

    Raises:
        ValueError: naming the first offender and both splits.
    """
    seen: dict[tuple[str, str], str] = {}
    for split in SPLITS:
        for item in datalist[split]:
            keys = [("group", str(item["group"]))] if "group" in item else []
            keys += [("patient", str(patient_key(item)))] if "patient" in item else []
            keys += [("image", os.path.normpath(image)) for image in images_of(item)]
            for key in keys:
                if seen.setdefault(key, split) != split:
                    raise ValueError(
                        f"{key[0]} {key[1]!r} is in both {seen[key]} and {split}; split by patient or group"
                    )


def _nearest(key: str, known: Sequence[str]) -> str:
    match = difflib.get_close_matches(key, known, n=1, cutoff=0.0)
    return f"nearest: {match[0]!r}" if match else f"known: {', '.join(known)}"


def _check_item(item: Any, place: str, classes: int) -> None:
    if not isinstance(item, dict):
        raise ValueError(f"{place}: expected an object with 'image', got {type(item).__name__} {item!r}")
    for key in item:
        if key not in ITEM_KEYS:
            raise ValueError(
                f"{place}: unknown key {key!r}; {_nearest(key, ITEM_KEYS)} (known: {', '.join(ITEM_KEYS)})"
            )
    image = item.get("image")
    if not image or not (
        isinstance(image, str) or (isinstance(image, list) and all(isinstance(i, str) for i in image))
    ):
        raise ValueError(f"{place}: 'image' must be a path or a list of paths, got {image!r}")
    if "label" not in item and "diagnosis" not in item:
        raise ValueError(f"{place} ({image}): needs 'label' or 'diagnosis', has neither")
    for key in ("label", "foreground", "patient", "source", "group", "name"):
        if key in item and not (isinstance(item[key], str) and item[key]):
            raise ValueError(f"{place} ({image}): {key!r} must be a non-empty text, got {item[key]!r}")
    if item.get("plane", "axial") not in PLANES:
        raise ValueError(f"{place} ({image}): 'plane' must be one of {', '.join(PLANES)}, got {item['plane']!r}")
    for key, low, high in (("diagnosis", -1, classes - 1), ("slice", 0, None)):
        value = item.get(key, 0)
        if type(value) is not int or value < low or (high is not None and value > high):
            limit = f"from {low} to {high}" if high is not None else f"of {low} or more"
            raise ValueError(f"{place} ({image}): {key!r} must be a whole number {limit}, got {value!r}")


def validate(datalist: Any, dataset_dir: Path | str | None = None, origin: str = "datalist") -> None:
    """Check keys, types, class numbers and overlap, and with `dataset_dir` also that every file exists.

    Raises:
        ValueError: one sentence that names the item and key, and the nearest right key where one is unknown.
        FileNotFoundError: naming the first missing file and how many are missing.
    """
    if not isinstance(datalist, dict):
        raise ValueError(f"{origin}: expected an object with {', '.join(REQUIRED_KEYS)}, got {type(datalist).__name__}")
    known = (*REQUIRED_KEYS, *OPTIONAL_KEYS)
    for key in datalist:
        if key not in known:
            raise ValueError(f"{origin}: unknown key {key!r}; {_nearest(key, known)} (known: {', '.join(known)})")
    for key in REQUIRED_KEYS:
        if key not in datalist:
            raise ValueError(f"{origin}: key {key!r} is missing (needed: {', '.join(REQUIRED_KEYS)})")
    classes = datalist["classes"]
    if not isinstance(classes, dict) or len(classes) < 2 or sorted(classes) != sorted(map(str, range(len(classes)))):
        raise ValueError(f'{origin}: \'classes\' must map "0", "1", ... to at least two names, got {classes!r}')
    if not isinstance(datalist.get(NO_LESION, True), bool):
        raise ValueError(f"{origin}: {NO_LESION!r} is true or false, got {datalist[NO_LESION]!r}")
    if "regions" in datalist:
        check_regions(datalist["regions"], origin)
    for split in SPLITS:
        if not isinstance(datalist[split], list):
            raise ValueError(f"{origin}: {split!r} must be a list of items, got {type(datalist[split]).__name__}")
        for k, item in enumerate(datalist[split]):
            _check_item(item, f"{origin}: {split}[{k}]", len(classes))
    if not any(datalist[split] for split in SPLITS):
        raise ValueError(f"{origin}: no item in {', '.join(SPLITS)}; a datalist lists at least one image")
    assert_no_overlap(datalist)
    if dataset_dir is None:
        return
    root = Path(dataset_dir)
    missing = [
        (f"{split}[{k}]", path)
        for split in SPLITS
        for k, item in enumerate(datalist[split])
        for path in paths(item)
        if not (root / path).exists()
    ]
    if missing:
        raise FileNotFoundError(
            f"{origin}: {missing[0][0]} names {missing[0][1]!r}, which is not in {root} ({len(missing)} files missing)"
        )


def write(datalist: Datalist, path: Path | str) -> None:
    """Check a datalist and write it as JSON; the file appears whole or not at all.

    Raises:
        ValueError: as `validate`.
    """
    validate(datalist)
    _write_json(datalist, Path(path))


def _write_json(content: Any, path: Path) -> None:
    write_text(json.dumps(content, indent=1), path)


def read(path: Path | str, dataset_dir: Path | str | None = None) -> Datalist:
    """Read and check a datalist; with `dataset_dir` also that every file it names exists there.

    Raises:
        FileNotFoundError: when the datalist or a file that it names does not exist.
        ValueError: when it is no JSON, or as `validate`.
    """
    datalist = read_unchecked(path)
    validate(datalist, dataset_dir, origin=Path(path).name)
    return datalist


def read_unchecked(path: Path | str) -> Any:
    """Read a datalist that may break any rule of `validate`, with "/" in the paths of its items.

    Raises:
        FileNotFoundError: when it does not exist.
        ValueError: when it is no JSON.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no datalist at {path}; make one with python -m scripts datalist")
    datalist = read_json(path)
    for split in SPLITS if isinstance(datalist, dict) else ():
        if isinstance(datalist.get(split), list):
            datalist[split] = [_with_slashes(item) for item in datalist[split]]
    return datalist


def read_json(path: Path) -> Any:
    """What a JSON file holds, in UTF-8, UTF-16 or UTF-32, with or without a byte order mark.

    Raises:
        ValueError: when it is empty or no JSON file; names it.
    """
    content = path.read_bytes()
    if not content.strip():
        raise ValueError(f"{path} is empty, expected JSON")
    try:
        return json.loads(content)
    except ValueError as error:
        raise ValueError(f"{path} is no JSON file: {error}") from error


def _with_slashes(item: Any) -> Any:
    """An item with "/" in its paths, which may have been written on Windows; what is no item stays as it is."""
    if not isinstance(item, dict):
        return item
    changed = dict(item)
    for key in ("image", "label", "foreground"):
        value = item.get(key)
        if isinstance(value, str):
            changed[key] = value.replace("\\", "/")
        elif isinstance(value, list):
            changed[key] = [one.replace("\\", "/") if isinstance(one, str) else one for one in value]
    return changed


def content_sha256(path: Path | str) -> str:
    """Hash of what a datalist says, whatever the order of its keys, its indentation and its encoding.

    Raises:
        FileNotFoundError, ValueError: as `read`.
    """
    return hashlib.sha256(json.dumps(read(path), sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def same_content(path: Path | str, sha256: str) -> bool:
    """Whether a datalist is the one of this hash: of its content or, as runs of older versions noted, of its bytes.

    Raises:
        FileNotFoundError, ValueError: as `read`.
    """
    return sha256 in (content_sha256(path), hashlib.sha256(Path(path).read_bytes()).hexdigest())


def absent_classes(datalist: Datalist) -> list[str]:
    """Names of the classes of which the training part has no item; with two, an item of a mask alone may be either."""
    items = datalist["training"]
    if len(datalist["classes"]) == 2 and any("diagnosis" not in item for item in items):
        return []
    present = {item.get("diagnosis", -1) for item in items}
    return [name for key, name in datalist["classes"].items() if int(key) not in present]


def summary(datalist: Datalist) -> list[dict[str, Any]]:
    """Counts as rows {split, source, class, items, with_mask, clusters}; `clusters` counts patients or groups."""
    rows: dict[tuple[str, str, str], list[tuple[Item, str]]] = {}
    for split in SPLITS:
        for item, owner in zip(datalist[split], clusters(datalist[split]), strict=True):
            name = datalist["classes"].get(str(item.get("diagnosis", -1)), "unknown")
            rows.setdefault((split, item.get("source", ""), name), []).append((item, owner))
    order = {text: k for k, text in enumerate([*datalist["classes"].values(), "unknown"])}
    return [
        {
            "split": split,
            "source": source,
            "class": name,
            "items": len(members),
            "with_mask": sum("label" in item for item, _ in members),
            "clusters": len({owner for _, owner in members}),
        }
        for (split, source, name), members in sorted(
            rows.items(), key=lambda row: (SPLITS.index(row[0][0]), row[0][1], order[row[0][2]])
        )
    ]


def write_report(report: Report, path: Path | str) -> None:
    """Write what a builder could not use or left out, its notes and figures, as JSON beside the datalist."""
    content = {
        "figures": report.figures,
        "left_out": dict(report.left_out),
        "unusable": [{"file": name, "reason": reason} for name, reason in report.unusable],
        "notes": [{"file": name, "text": text} for name, text in report.notes],
    }
    _write_json(content, Path(path))
