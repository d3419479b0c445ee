"""Datalist from a list in the form of the Medical Segmentation Decathlon: `dataset.json` with images and labels."""

from __future__ import annotations

import glob
import json
import logging
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from scripts.data.datalists.channels import planned, write_channels
from scripts.data.datalists.clusters import Item
from scripts.data.datalists.naming import role, stem_of, volume_suffix
from scripts.data.datalists.plans import Builder, Plan, took
from scripts.data.datalists.regions import Regions
from scripts.data.datalists.schema import DEFAULT_FRACTIONS, SPLITS, Datalist, Report, read_json, validate
from scripts.data.datalists.slices import Case, SliceRule
from scripts.data.datalists.splits import assemble
from scripts.data.datalists.unpacking import unpack_folder
from scripts.data.datalists.volumes import BINARY, collect, name_patients
from scripts.data.datalists.walking import check_folder

logger = logging.getLogger(__name__)

_CHANNEL = re.compile(r"(?P<case>.+)_\d{4}$")


def _entries(content: dict[str, Any], folder: Path) -> list[tuple[str, Any]]:
    """(part, entry) of every entry of the list; parts are the lists of entries, whatever their names.

    nnU-Net's later form lists no training cases, or as `dataset`: {case: {images, label}}.
    """
    parts = [key for key in (*SPLITS, "testing") if isinstance(content.get(key), list)]
    if parts:
        return [(part, _channel_files(entry, folder)) for part in parts for entry in content[part]]
    if isinstance(content.get("dataset"), dict):
        return [
            ("training", {"image": entries.get("images"), "label": entries.get("label")})
            for entries in content["dataset"].values()
            if isinstance(entries, dict)
        ]
    if (folder / "imagesTr").is_dir():
        return _listed(folder)
    raise ValueError(f"no list of items; expected some of {', '.join(SPLITS)}, keys are {sorted(content)}")


def _channel_files(entry: Any, folder: Path) -> Any:
    """An entry of nnU-Net's first form: `imagesTr/a.nii.gz` stands for `imagesTr/a_0000.nii.gz` and its like."""
    image = entry.get("image") if isinstance(entry, dict) else None
    if not isinstance(image, str) or (folder / image).exists():
        return entry
    path = Path(image)
    stem, suffix = stem_of(path), path.name[len(stem_of(path)) :]
    files = sorted((folder / path.parent).glob(f"{glob.escape(stem)}_[0-9][0-9][0-9][0-9]{suffix}"))
    return {**entry, "image": [file.relative_to(folder).as_posix() for file in files]} if files else entry


def _listed(folder: Path) -> list[tuple[str, Any]]:
    """Entries of `imagesTr` and `labelsTr` (and `imagesTs`, `labelsTs`): a file a case, or `<case>_0000` a channel."""
    entries: list[tuple[str, Any]] = []
    for end in ("Tr", "Ts"):
        names = {path.name: path for path in _volumes(folder / f"labels{end}")}
        labels = {stem_of(path): f"labels{end}/{name}" for name, path in names.items()}
        cases: dict[str, list[str]] = {}
        for path in _volumes(folder / f"images{end}"):
            stem = stem_of(path)
            channel = None if stem in labels else _CHANNEL.match(stem)
            cases.setdefault(channel["case"] if channel else stem, []).append(f"images{end}/{path.name}")
        for case, images in cases.items():
            entries.append(("training", {"image": images, "label": labels.pop(case, None)}))
        entries += [("training", {"image": None, "label": label}) for label in labels.values()]
    return entries


def _volumes(folder: Path) -> list[Path]:
    files = sorted(folder.iterdir()) if folder.is_dir() else []
    return [path for path in files if volume_suffix(path) and not path.name.startswith(".")]


def _channels(content: dict[str, Any], entries: Sequence[tuple[str, Any]]) -> list[str]:
    """Names of the channels, in their order: `modality` of the Decathlon, `channel_names` of nnU-Net, or numbers."""
    named = content.get("channel_names") or content.get("modality")
    if named is None:
        images = [entry.get("image") for _, entry in entries if isinstance(entry, dict)]
        count = max((len(image) for image in images if isinstance(image, list)), default=1)
        return ["MRI"] if count == 1 else [f"channel {k}" for k in range(count)]
    if not isinstance(named, dict) or not named:
        raise ValueError(f"expected the names of channels as an object, got {named!r}")
    return [str(named[key]) for key in sorted(named, key=lambda key: (len(key), key))]


def _numbers(named: Sequence[str], channels: Sequence[str] | None) -> list[int]:
    """The numbers of the chosen channels: all, if none are chosen."""
    if channels is None:
        return list(range(len(named)))
    known = [role(Path(f"x_{text}.nii")) for text in named]
    lacking = [channel for channel in channels if known.count(channel) != 1]
    if lacking:
        raise ValueError(f"{known.count(lacking[0])} channels are {lacking[0]}; the list names {', '.join(named)}")
    return [known.index(channel) for channel in channels]


def _first(entry: Any) -> Path | None:
    """The first image's path of an entry, without nnU-Net's number of the channel; None without one."""
    image = entry.get("image") if isinstance(entry, dict) else None
    named = image[0] if isinstance(image, list) and image else image
    if not isinstance(named, str) or not named:
        return None
    path, channel = Path(named), _CHANNEL.match(stem_of(Path(named)))
    if channel and stem_of(Path(str(entry.get("label")))) == channel["case"]:
        return path.with_name(channel["case"] + path.name[len(stem_of(path)) :])
    return path


def _case(entry: Any, root: Path, numbers: Sequence[int], total: int) -> Case:
    """The case of one entry with the channels of these numbers of all; a ValueError says why it cannot be used."""
    if isinstance(entry, str):
        raise ValueError("has no mask: nothing to train or to measure on")
    if not isinstance(entry, dict) or not entry.get("image"):
        raise ValueError(f"expected an object with 'image', got {entry!r}")
    if not entry.get("label"):
        raise ValueError("has no mask: nothing to train or to measure on")
    named = entry["image"] if isinstance(entry["image"], list) else [entry["image"]]
    images = [root / path for path in named]
    if isinstance(entry["image"], list) and len(images) != total:
        raise ValueError(f"has {len(images)} of the list's {total} channels")
    if len(images) > 1:
        images = [images[k] for k in numbers]
    for path in [*images, root / entry["label"]]:
        if not path.exists():
            raise ValueError(f"{path} does not exist")
    brain = entry.get("foreground")
    return Case("", images, root / entry["label"], root / brain if brain else None, stacked=len(named) == 1)


@Builder
def decathlon(
    file: Path | str,
    *,
    name: str | None = None,
    root: Path | str | None = None,
    seed: int = 0,
    fractions: Sequence[float] = DEFAULT_FRACTIONS,
    classes: Sequence[str] = BINARY,
    channels: Sequence[str] | None = None,
    rule: SliceRule | None = None,
    patient_pattern: str | None = None,
    patients: Path | str | None = None,
    unpack: Path | str | None = None,
    progress: bool = True,
) -> Plan:
    """Build a datalist from `dataset.json` of the Medical Segmentation Decathlon or the like.

    Its form is `{"modality": {...}, "training": [{"image": path, "label": path}], "test": [path]}`. An image is a
    file of one channel, a 4D file of several (Task01), or a list of files. nnU-Net's raw datasets are read too: in the
    first form (`imagesTr/a.nii.gz` in the list, `a_0000.nii.gz` on disk), in the later (`channel_names`, no list), and
    folders `imagesTr` and `labelsTr` without any list. If a `validation` with masks is there, the parts stay as they
    are, but for a patient who stands in several: the whole patient goes to the first of training, validation and test,
    as in `merge_sources`, and the report notes every case that moves. Else all cases with masks are split again by
    patient.

    Args:
        file: the list, or the folder with `dataset.json`. Paths in it are relative to its folder.
        name: of the datalist and source; the list's own if not given.
        root: `dataset_dir`, to which paths are relative in the result; the list's folder if not given.
        channels: of "FLAIR", "T1", "T1ce", "T2"; all, if not given. Of files that hold all channels, the chosen ones
            are written to `unpack`, which is then the `dataset_dir`.
        seed, fractions, classes, rule, patient_pattern, patients, progress: as in `nifti_cases`.
        unpack: folder for chosen channels of files that hold all.

    Raises:
        FileNotFoundError: when the list does not exist.
        ValueError: when it is no JSON or no such list, and as `nifti_cases`.
    """
    file = Path(file) / "dataset.json" if Path(file).is_dir() else Path(file)
    given_root = root
    folder, root = check_folder(file.parent, root)
    if not file.is_file() and not (folder / "imagesTr").is_dir():
        raise FileNotFoundError(f"no list at {file}, and no folder imagesTr beside it")
    content = read_json(file) if file.is_file() else {}
    if not isinstance(content, dict):
        raise ValueError(f"{file}: expected an object with 'training', got {type(content).__name__}")
    name = str(name or content.get("name") or folder.resolve().name)
    report, cases = Report(), []
    parts: dict[tuple[str, ...], str] = {}
    entries = _entries(content, folder)
    if not entries:
        suffixes = Counter(path.suffix for path in (folder / "imagesTr").glob("[!.]*"))
        shown = ", ".join(f"{count} {suffix}" for suffix, count in suffixes.most_common(3)) or "nothing"
        raise ValueError(f"{file} lists no case: imagesTr holds no volume, but {shown}")
    every = _channels(content, entries)
    numbers = _numbers(every, channels)
    modality = [every[k] for k in numbers]
    whole = {_in_one_file(entry) for _, entry in entries if isinstance(entry, dict) and entry.get("image")}
    split = len(numbers) < len(every) and True in whole
    if split and False in whole:
        raise ValueError(f"{file} lists files of all channels and files of one: channels cannot be chosen of both")
    root = target = unpack_folder(unpack, given_root, folder) if split else root
    listed_patients: dict[str, str] = {}
    named: dict[str, Path] = {}
    sources: dict[str, Case] = {}
    for k, (part, entry) in enumerate(entries):
        case_id = entry if isinstance(entry, str) else f"{part} {k}"
        if isinstance(entry, dict) and entry.get("image"):
            case_id = str(entry["image"][0] if isinstance(entry["image"], list) else entry["image"])
        try:
            case = _case(entry, folder, numbers, len(every))
            if split:
                sources[case_id] = case
                case = planned(case, folder, target, modality)
            images = _images(path.relative_to(root).as_posix() for path in case.images)
            parts[images] = "test" if part == "testing" else part
            cases.append((case_id, case))
            listed_patients |= {case_id: str(entry["patient"])} if entry.get("patient") else {}
            first = _first(entry)
            named |= {case_id: folder / first} if first else {}
        except ValueError as error:
            report.reject(case_id, str(error).replace(f"{folder}/", ""))
    if patient_pattern or patients:
        listed_patients = {}
    cases, said = name_patients(cases, folder, patient_pattern, patients, "cases", listed_patients, named)
    taken = [
        said,
        took(
            f"image ({', '.join(modality)})",
            [(case.images[0], stem_of(case.images[0])) for _, case in cases],
            len(entries),
            "entries",
        ),
        took("mask", [(case.label, stem_of(case.label)) for _, case in cases if case.label], len(entries), "entries"),
    ]
    if split:
        taken.append(
            f"{', '.join(modality)} = of {len(every)} channels in one file, written to {target} with the masks"
        )
    if isinstance(content.get("labels"), dict):
        taken.append(f"values of the masks, any from 1 up is tumor: {json.dumps(content['labels'])}")

    chosen = rule or SliceRule()

    def finish() -> Datalist:
        for case_id, written in list(cases) if split else []:
            try:
                write_channels(sources[case_id], written, numbers, len(every))
            except (ValueError, OSError) as error:
                report.reject(case_id, str(error).replace(f"{folder}/", ""))
                cases.remove((case_id, written))
        items, stats = collect(cases, chosen, root, name, report, progress)
        if "validation" in parts.values():
            return _as_given(name, classes, modality, items, parts, report, chosen.regions)
        return assemble(
            name, classes, items, fractions, modality=modality, seed=seed, strata=stats.strata, regions=chosen.regions
        )

    return Plan(taken, report, finish)


def _in_one_file(entry: dict[str, Any]) -> bool:
    """Whether an entry is a file of all channels: one alone, without nnU-Net's number of a channel."""
    named = [entry["image"]] if isinstance(entry["image"], str) else entry["image"]
    return len(named) == 1 and _first(entry) == Path(named[0])


def _images(value: str | Iterable[str]) -> tuple[str, ...]:
    return (value,) if isinstance(value, str) else tuple(value)


def _as_given(
    name: str,
    classes: Sequence[str],
    modality: Sequence[str],
    items: Sequence[Item],
    parts: dict[tuple[str, ...], str],
    report: Report,
    regions: Regions | None,
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
        **({"regions": regions} if regions else {}),
        **{split: [] for split in SPLITS},
    }
    for item in items:
        datalist[first[item["patient"]]].append(item)
    validate(datalist, origin=name)
    return datalist
