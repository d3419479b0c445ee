"""Datalist from a list in the form of the Medical Segmentation Decathlon: `dataset.json` with images and labels."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from scripts.data.datalists.naming import patient_of, patient_of_folder, stem_of
from scripts.data.datalists.plans import Builder, Plan, took
from scripts.data.datalists.schema import (
    DEFAULT_FRACTIONS,
    SPLITS,
    Datalist,
    Item,
    Report,
    assemble,
    read_json,
    validate,
)
from scripts.data.datalists.slices import Case, SliceRule
from scripts.data.datalists.volumes import BINARY, check_folder, collect

logger = logging.getLogger(__name__)


def _entries(content: dict[str, Any]) -> list[tuple[str, Any]]:
    """(part, entry) of every entry of the list; parts are the lists of entries, whatever their names."""
    parts = [key for key in (*SPLITS, "testing") if isinstance(content.get(key), list)]
    if not parts:
        raise ValueError(f"no list of items; expected some of {', '.join(SPLITS)}, keys are {sorted(content)}")
    return [(part, entry) for part in parts for entry in content[part]]


def _first(entry: Any) -> Path | None:
    """The first image's path of an entry, None without one."""
    image = entry.get("image") if isinstance(entry, dict) else None
    named = image[0] if isinstance(image, list) and image else image
    return Path(named) if isinstance(named, str) and named else None


def _patients(entries: Sequence[Any]) -> list[str]:
    """The patient of each entry: as given, else by the file's name, or by its folder where names are not unique."""
    firsts = [_first(entry) for entry in entries]
    stems = Counter(stem_of(path) for path in firsts if path)
    folders = {path.parent.as_posix() for path in firsts if path}
    names = Counter(folder.rsplit("/", 1)[-1] for folder in folders)
    found = []
    for entry, path in zip(entries, firsts, strict=True):
        given = entry.get("patient") if isinstance(entry, dict) else None
        if given or path is None:
            found.append(str(given or ""))
        else:
            folder = path.parent.as_posix()
            found.append(patient_of(stem_of(path)) if stems[stem_of(path)] == 1 else patient_of_folder(folder, names))
    return found


def _case(entry: Any, root: Path, patient: str) -> Case:
    """The case of one entry; a ValueError says why it cannot be used."""
    if isinstance(entry, str):
        raise ValueError("has no mask: nothing to train or to measure on")
    if not isinstance(entry, dict) or not entry.get("image"):
        raise ValueError(f"expected an object with 'image', got {entry!r}")
    if not entry.get("label"):
        raise ValueError("has no mask: nothing to train or to measure on")
    named = entry["image"] if isinstance(entry["image"], list) else [entry["image"]]
    images = [root / path for path in named]
    for path in [*images, root / entry["label"]]:
        if not path.exists():
            raise ValueError(f"{path} does not exist")
    brain = entry.get("foreground")
    return Case(patient, images, root / entry["label"], root / brain if brain else None, stacked=len(images) == 1)


@Builder
def decathlon(
    file: Path | str,
    *,
    name: str | None = None,
    root: Path | str | None = None,
    seed: int = 0,
    fractions: Sequence[float] = DEFAULT_FRACTIONS,
    classes: Sequence[str] = BINARY,
    rule: SliceRule | None = None,
    progress: bool = True,
) -> Plan:
    """Build a datalist from `dataset.json` of the Medical Segmentation Decathlon or the like.

    Its form is `{"modality": {...}, "training": [{"image": path, "label": path}], "test": [path]}`. An image is a
    file of one channel, a 4D file of several (Task01), or a list of files. If a `validation` with masks is there, the
    parts stay as they are, but for a patient who stands in several: the whole patient goes to the first of training,
    validation and test, as in `merge_sources`, and the report notes every case that moves. Else all cases with masks
    are split anew by patient.

    Args:
        file: the list, or the folder with `dataset.json`. Paths in it are relative to its folder.
        name: of the datalist and source; the list's own if not given.
        root: `dataset_dir`, to which paths are relative in the result; the list's folder if not given.
        seed, fractions, classes, rule, progress: as in `nifti_cases`.

    Raises:
        FileNotFoundError: when the list does not exist.
        ValueError: when it is no JSON or no such list, and as `nifti_cases`.
    """
    file = Path(file) / "dataset.json" if Path(file).is_dir() else Path(file)
    if not file.is_file():
        raise FileNotFoundError(f"no list at {file}")
    folder, root = check_folder(file.parent, root)
    content = read_json(file)
    if not isinstance(content, dict):
        raise ValueError(f"{file}: expected an object with 'training', got {type(content).__name__}")
    name = str(name or content.get("name") or folder.resolve().name)
    report, cases = Report(), []
    parts: dict[tuple[str, ...], str] = {}
    entries = _entries(content)
    patients = _patients([entry for _, entry in entries])
    for k, ((part, entry), patient) in enumerate(zip(entries, patients, strict=True)):
        where = entry if isinstance(entry, str) else f"{part} {k}"
        if isinstance(entry, dict) and entry.get("image"):
            where = str(entry["image"][0] if isinstance(entry["image"], list) else entry["image"])
        try:
            case = _case(entry, folder, patient)
            images = _images(path.relative_to(root).as_posix() for path in case.images)
            parts[images] = "test" if part == "testing" else part
            cases.append((where, case))
        except ValueError as error:
            report.reject(where, str(error).replace(f"{folder}/", ""))
    modality = [str(text) for text in dict(content.get("modality") or {"0": "MRI"}).values()]
    taken = [
        took(
            f"image ({', '.join(modality)})",
            [(case.images[0], stem_of(case.images[0])) for _, case in cases],
            len(entries),
            "entries",
        ),
        took("mask", [(case.label, stem_of(case.label)) for _, case in cases if case.label], len(entries), "entries"),
    ]

    def finish() -> Datalist:
        items, found = collect(cases, rule or SliceRule(), root, name, report, progress)
        if "validation" in parts.values():
            return _as_given(name, classes, modality, items, parts, report)
        return assemble(name, classes, items, fractions, modality=modality, seed=seed, strata=found.strata)

    return Plan(taken, report, finish)


def _images(value: str | Iterable[str]) -> tuple[str, ...]:
    return (value,) if isinstance(value, str) else tuple(value)


def _as_given(
    name: str,
    classes: Sequence[str],
    modality: Sequence[str],
    items: Sequence[Item],
    parts: dict[tuple[str, ...], str],
    report: Report,
) -> Datalist:
    """The parts as given (by the images of a case), each patient whole in the first that holds a usable case of him."""
    first: dict[str, str] = {}
    for item in items:
        part = parts[_images(item["image"])]
        first[item["patient"]] = min(first.get(item["patient"], part), part, key=SPLITS.index)
    moved: Counter[str] = Counter()
    for images, patient in {_images(item["image"]): item["patient"] for item in items}.items():
        part, chosen = parts[images], first[patient]
        if part != chosen:
            moved[f"{part} to {chosen}"] += 1
            report.note(images[0], f"moved from {part} to {chosen}: patient {patient} has cases there")
    report.figures["moved"] = dict(sorted(moved.items()))
    if moved:
        logger.warning("%s: cases moved to keep patients in one part: %s", name, dict(sorted(moved.items())))
    datalist: Datalist = {
        "name": name,
        "modality": {str(k): text for k, text in enumerate(modality)},
        "classes": {str(k): text for k, text in enumerate(classes)},
        **{split: [] for split in SPLITS},
    }
    for item in items:
        datalist[first[item["patient"]]].append(item)
    validate(datalist, origin=name)
    return datalist
