"""Datalists: build, merge, check, read and write the JSON files that say what is trained, validated and tested on.

The form is MONAI's decathlon form, with paths relative to `dataset_dir`:

    {"name": ..., "modality": {"0": "FLAIR"}, "classes": {"0": "no_tumor", "1": "glioma"},
     "training": [item], "validation": [item], "test": [item]}
    item: {"image": "a.jpg", "label": "mask.png", "diagnosis": 1, "patient": "p017", "source": "x", "slice": 73,
           "plane": "axial", "foreground": "brain.nii.gz", "group": "x-12", "name": "p017_cor073"}

Class 0 is always no tumor. `patient` is who it is, a number within its `source`: equal numbers of two sources are two
people (see `patient_key`). Where the patient is unknown, `group` holds near-duplicates together.
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
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from scripts.command.files import write_text

logger = logging.getLogger(__name__)

Item = dict[str, Any]
Datalist = dict[str, Any]

SPLITS = ("training", "validation", "test")
REQUIRED_KEYS = ("classes", *SPLITS)
# What decathlon files may hold besides; kept, not used.
OPTIONAL_KEYS = ("name", "modality", "description", "reference", "licence", "license", "release")
ITEM_KEYS = ("image", "label", "foreground", "diagnosis", "patient", "source", "slice", "plane", "group", "name")
PLANES = ("axial", "coronal", "sagittal")
DEFAULT_FRACTIONS = (0.60, 0.15, 0.25)


@dataclass
class Report:
    """What a builder met: `unusable` and `notes` as (file, reason), and counts in `figures`."""

    unusable: list[tuple[str, str]] = field(default_factory=list)
    notes: list[tuple[str, str]] = field(default_factory=list)
    figures: dict[str, Any] = field(default_factory=dict)

    def reject(self, name: str, reason: str) -> None:
        """Record a file that cannot be used, and log it."""
        self.unusable.append((name, reason))
        logger.warning("not used: %s: %s", name, reason)

    def note(self, name: str, text: str) -> None:
        """Record something worth knowing that excludes nothing, and log it for debugging; it goes into the report."""
        self.notes.append((name, text))
        logger.debug("%s: %s", name, text)


def patient_key(item: Item) -> str | None:
    """Who an item shows, the source before the number, as numbers count within their source; None where unknown.

    >>> patient_key({"patient": "sub-00", "source": "site_a"}), patient_key({"patient": "p1"}), patient_key({})
    ('site_a: sub-00', 'p1', None)
    """
    if "patient" not in item:
        return None
    return f"{item['source']}: {item['patient']}" if item.get("source") else str(item["patient"])


def shared_numbers(items: Sequence[Item]) -> dict[str, list[str]]:
    """Patient numbers that stand in several sources, each with these sources: two people, or one who was seen twice."""
    sources: dict[str, set[str]] = {}
    for item in items:
        if "patient" in item:
            sources.setdefault(str(item["patient"]), set()).add(str(item.get("source") or "(no source)"))
    return {number: sorted(own) for number, own in sorted(sources.items()) if len(own) > 1}


def warn_shared(shared: Mapping[str, Sequence[str]], advice: str) -> None:
    """Log that the numbers of `shared_numbers`, if there are any, are taken for different people, and what to do."""
    if shared:
        number, sources = next(iter(shared.items()))
        logger.warning(
            "%d patient numbers stand in several sources (first: %r in %s) and are taken for different people; %s",
            len(shared), number, " and ".join(sources), advice,
        )  # fmt: skip


def unit(item: Item) -> str:
    """What must stay on one side of a split: the patient, else the near-duplicate group, else the image itself."""
    if "patient" in item:
        return f"patient {patient_key(item)}"
    if "group" in item:
        return f"group {item['group']}"
    return f"image {_images(item)[0]}"


def _images(item: Item) -> list[str]:
    return [item["image"]] if isinstance(item["image"], str) else list(item["image"])


def paths(item: Item) -> list[str]:
    """Every file that an item names: images, label, foreground mask."""
    return [*_images(item), *(item[key] for key in ("label", "foreground") if key in item)]


def split_units(strata: dict[str, str], fractions: Sequence[float] = DEFAULT_FRACTIONS, *, sizes=None, seed: int = 0):
    """Deal units (patients, groups) into training, validation and test.

    Per stratum, the units are shuffled by the seed, then dealt largest first, each to the split that is least
    filled for its share of that stratum's items: sizes mix, and three units reach all three splits. The result does
    not depend on the order of `strata`.

    Args:
        strata: unit name to stratum name (for instance its class).
        fractions: shares of training, validation and test; they sum to 1.
        sizes: unit name to number of items, 1 if not given.
        seed: of the shuffle.

    Returns:
        Unit name to split name.

    Raises:
        ValueError: when the fractions are not three positive numbers that sum to 1.
    """
    if len(fractions) != len(SPLITS) or min(fractions) <= 0 or abs(sum(fractions) - 1) > 1e-6:
        raise ValueError(f"fractions must be three positive numbers that sum to 1 ({SPLITS}), got {tuple(fractions)}")
    sizes = sizes or {}
    chosen: dict[str, str] = {}
    rng = np.random.default_rng(seed)
    for stratum in sorted(set(strata.values())):
        units = sorted(name for name, own in strata.items() if own == stratum)
        units = [units[k] for k in rng.permutation(len(units))]
        units.sort(key=lambda name: -sizes.get(name, 1))
        filled = np.zeros(len(SPLITS))
        for name in units:
            k = int(np.argmin(filled / np.asarray(fractions)))
            chosen[name] = SPLITS[k]
            filled[k] += sizes.get(name, 1)
    return chosen


def assemble(
    name: str,
    classes: Sequence[str],
    items: Sequence[Item],
    fractions: Sequence[float] = DEFAULT_FRACTIONS,
    *,
    modality: str | Sequence[str] = "FLAIR",
    seed: int = 0,
    strata: dict[str, str] | None = None,
) -> Datalist:
    """Split items by `unit` into a valid datalist.

    Args:
        name: of the datalist.
        classes: class names, no tumor first.
        items: all items, with `diagnosis`.
        fractions: shares of training, validation and test.
        modality: of the images, one name or one a channel.
        seed: of the split.
        strata: unit to stratum; by default the most frequent diagnosis of its items.

    With fewer patients or groups than splits, later splits stay empty: a list to be merged with others.

    Raises:
        ValueError: when there are enough patients or groups, and a split comes out empty all the same.
    """
    members: dict[str, list[Item]] = {}
    for item in items:
        members.setdefault(unit(item), []).append(item)
    if strata is None:
        strata = {
            key: str(min(Counter(item["diagnosis"] for item in own).items(), key=lambda pair: (-pair[1], pair[0]))[0])
            for key, own in members.items()
        }
    sizes = {key: len(own) for key, own in members.items()}
    sides = split_units(strata, fractions, sizes=sizes, seed=seed)
    if len(set(sides.values())) < len(SPLITS):  # small strata begin with training, each: deal them as one
        sides = split_units(dict.fromkeys(strata, ""), fractions, sizes=sizes, seed=seed)
    datalist: Datalist = {
        "name": name,
        "modality": {str(k): text for k, text in enumerate([modality] if isinstance(modality, str) else modality)},
        "classes": {str(k): text for k, text in enumerate(classes)},
        **{split: [] for split in SPLITS},
    }
    for item in items:
        datalist[sides[unit(item)]].append(item)
    empty = [split for split in SPLITS if not datalist[split]]
    if empty:
        reason = f"{name}: {len(items)} items of {len(members)} patients or groups are too few to split"
        if len(members) >= len(SPLITS):
            raise ValueError(f"{reason}: no item in {empty}")
        logger.warning("%s: nothing in %s; merge with other lists and --resplit", reason, " and ".join(empty))
    validate(datalist)
    return datalist


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
        for key in ("classes", "modality"):
            if other.get(key) != first.get(key):
                raise ValueError(
                    f"cannot merge {first.get('name')!r} and {other.get('name')!r}: "
                    f"{key} differ, {first.get(key)} against {other.get(key)}"
                )
    merged = {**first, "name": name or "+".join(str(one.get("name", "unnamed")) for one in datalists)}
    for split in SPLITS:
        merged[split] = [item for one in datalists for item in one[split]]
    validate(merged)
    shared = shared_numbers([item for split in SPLITS for item in merged[split]])
    warn_shared(shared, "if they are one, merge with --dataset-dir and --same-patients")
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
            keys += [("image", os.path.normpath(image)) for image in _images(item)]
            for key in keys:
                if seen.setdefault(key, split) != split:
                    raise ValueError(
                        f"{key[0]} {key[1]!r} is in both {seen[key]} and {split}; split by patient or group"
                    )


def _nearest(key: str, known: Sequence[str]) -> str:
    match = difflib.get_close_matches(key, known, n=1, cutoff=0.0)
    return f"nearest: {match[0]!r}" if match else f"known: {', '.join(known)}"


def _check_item(item: Any, where: str, classes: int) -> None:
    if not isinstance(item, dict):
        raise ValueError(f"{where}: expected an object with 'image', got {type(item).__name__} {item!r}")
    for key in item:
        if key not in ITEM_KEYS:
            raise ValueError(
                f"{where}: unknown key {key!r}; {_nearest(key, ITEM_KEYS)} (known: {', '.join(ITEM_KEYS)})"
            )
    image = item.get("image")
    if not image or not (
        isinstance(image, str) or (isinstance(image, list) and all(isinstance(i, str) for i in image))
    ):
        raise ValueError(f"{where}: 'image' must be a path or a list of paths, got {image!r}")
    if "label" not in item and "diagnosis" not in item:
        raise ValueError(f"{where} ({image}): needs 'label' or 'diagnosis', has neither")
    for key in ("label", "foreground", "patient", "source", "group", "name"):
        if key in item and not (isinstance(item[key], str) and item[key]):
            raise ValueError(f"{where} ({image}): {key!r} must be a non-empty text, got {item[key]!r}")
    if item.get("plane", "axial") not in PLANES:
        raise ValueError(f"{where} ({image}): 'plane' must be one of {', '.join(PLANES)}, got {item['plane']!r}")
    for key, low, high in (("diagnosis", -1, classes - 1), ("slice", 0, None)):
        value = item.get(key, 0)
        if type(value) is not int or value < low or (high is not None and value > high):
            limit = f"from {low} to {high}" if high is not None else f"of {low} or more"
            raise ValueError(f"{where} ({image}): {key!r} must be a whole number {limit}, got {value!r}")


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
    """Counts as rows {split, source, class, items, with_mask, units}; `units` counts patients or groups."""
    rows: dict[tuple[str, str, str], list[Item]] = {}
    for split in SPLITS:
        for item in datalist[split]:
            name = datalist["classes"].get(str(item.get("diagnosis", -1)), "unknown")
            rows.setdefault((split, item.get("source", ""), name), []).append(item)
    order = {text: k for k, text in enumerate([*datalist["classes"].values(), "unknown"])}
    return [
        {
            "split": split,
            "source": source,
            "class": name,
            "items": len(items),
            "with_mask": sum("label" in item for item in items),
            "units": len({unit(item) for item in items}),
        }
        for (split, source, name), items in sorted(
            rows.items(), key=lambda row: (SPLITS.index(row[0][0]), row[0][1], order[row[0][2]])
        )
    ]


def write_report(report: Report, path: Path | str) -> None:
    """Write what a builder could not use, its notes and figures, as JSON beside the datalist."""
    content = {
        "figures": report.figures,
        "unusable": [{"file": name, "reason": reason} for name, reason in report.unusable],
        "notes": [{"file": name, "text": text} for name, text in report.notes],
    }
    _write_json(content, Path(path))
