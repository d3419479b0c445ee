"""Join datalists of several sources: classes by name, one folder, and near-duplicates across sources on one side."""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from scripts.data.datalists.clusters import Item, contradictions, paths, shared_numbers, warn_shared
from scripts.data.datalists.known_fingerprints import KnownFingerprints
from scripts.data.datalists.linking import file_order, linked, picture_of
from scripts.data.datalists.near_duplicates import CLOSE_DISTANCE, MAX_DISTANCE, close_to_training
from scripts.data.datalists.schema import DEFAULT_FRACTIONS, NO_LESION, SPLITS, Datalist, Report, validate
from scripts.data.datalists.splits import split_clusters

logger = logging.getLogger(__name__)

# Class names that do not say which tumor: they cannot stand beside names that do.
GENERIC = ("tumor", "tumour", "yes", "positive", "abnormal", "lesion")


def join_classes(datalists: Sequence[Datalist], binary: bool = False) -> tuple[list[str], list[list[int]]]:
    """Classes of several lists as one, by name: the first is no tumor, whatever the lists call it.

    A list whose "tumor" class has no item (healthy people) takes the names of the others.

    Args:
        datalists: the lists.
        binary: no tumor against any tumor.

    Returns:
        Class names, and for every list the new number of each of its classes.

    Raises:
        ValueError: when "tumor" stands beside names of tumors.
    """
    if binary:
        return ["no_tumor", "tumor"], [[min(k, 1) for k in range(len(one["classes"]))] for one in datalists]
    holders: dict[str, str] = {}
    for one in datalists:
        present = {item.get("diagnosis", 1) for split in SPLITS for item in one[split]}
        for k in range(1, len(one["classes"])):
            if k in present:
                holders.setdefault(one["classes"][str(k)], str(one.get("name", "unnamed")))
    generic = [name for name in holders if name.lower() in GENERIC]
    if generic and len(holders) > 1:
        others = sorted(set(holders) - set(generic))
        raise ValueError(
            f"class {generic[0]!r} of {holders[generic[0]]} does not say which of {others} it is: "
            "build that list with --classes no_tumor NAME, or pass --binary for tumor against none"
        )
    every = list(dict.fromkeys(one["classes"][str(k)] for one in datalists for k in range(1, len(one["classes"]))))
    named = [name for name in every if name in holders or name.lower() not in GENERIC] or every
    classes = [datalists[0]["classes"]["0"], *named]
    numbers = {name: k for k, name in enumerate(classes) if k}
    return classes, [
        [0, *(numbers.get(one["classes"][str(k)], -1) for k in range(1, len(one["classes"])))] for one in datalists
    ]


def _modality(datalists: Sequence[Datalist], mixed: bool) -> dict[str, str]:
    """The modality of each channel; several only if the user allows it."""
    names = [dict(one.get("modality", {"0": "MRI"})) for one in datalists]
    if len({len(channels) for channels in names}) > 1:
        raise ValueError(
            f"the lists have different numbers of channels: {[list(channels.values()) for channels in names]}"
        )
    if any(channels != names[0] for channels in names) and not mixed:
        raise ValueError(
            f"modality differ: {[list(channels.values()) for channels in names]}; the network would learn the modality "
            "in place of the tumor where classes go along with it. Pass --mixed_modality if that is what you want"
        )
    return {key: " or ".join(dict.fromkeys(channels[key] for channels in names)) for key in names[0]}


def _collect(
    datalists: Sequence[Datalist], roots: Sequence[Path], root: Path, numbers: Sequence[Sequence[int]], report: Report
) -> tuple[list[Item], list[str]]:
    """All items with paths relative to `root` and new class numbers, and the split of each."""
    items, sides = [], []
    named: dict[str, str] = {}
    for one, own_root, new in zip(datalists, roots, numbers, strict=True):
        for split in SPLITS:
            for item in one[split]:
                moved = _moved(item, own_root, root)
                if moved.get("diagnosis", -1) >= 0:
                    moved["diagnosis"] = new[moved["diagnosis"]]
                moved.setdefault("source", str(one.get("name", "unnamed")))
                key = f"{moved['image']} {moved.get('plane')} {moved.get('slice')}"
                if key in named:
                    report.reject(paths(moved)[0], f"is in the lists twice, of {named[key]} and {moved['source']}")
                    continue
                named[key] = moved["source"]
                items.append(moved)
                sides.append(split)
    return items, sides


def _note_shared_names(datalists: Sequence[Datalist], roots: Sequence[Path], report: Report) -> None:
    """Note sources of one name, whose groups and patients would be linked by their numbers."""
    homes: dict[str, Path] = {}
    for one, root in zip(datalists, roots, strict=True):
        sources = {
            str(item.get("source") or one.get("name", "unnamed"))
            for split in SPLITS
            for item in one[split]
            if "group" in item or "patient" in item
        }
        for source in sorted(sources):
            if homes.setdefault(source, root) != root:
                text = f"the source's name in {homes[source]} and in {root}: "
                text += "groups and patients of one number count as one"
                logger.warning("%s is %s; build one of them with another --name if they are two", source, text)
                report.note(source, text)


def _note_shared_numbers(items: Sequence[Item], joined: bool, report: Report) -> int:
    """Say which patient numbers stand in several sources, and what they are taken for; how many there are."""
    shared = shared_numbers(items)
    what = "one person, as --same_patients says" if joined else "different people"
    for number, sources in shared.items():
        report.note(f"patient {number}", f"stands in the sources {', '.join(sources)}; taken for {what}")
    if not joined:
        warn_shared(shared, "pass --same_patients if they are one")
    return len(shared)


def _moved(item: Item, old: Path, new: Path) -> Item:
    def move(path: str) -> str:
        return Path(os.path.relpath(old / path, new)).as_posix()

    moved = dict(item)
    for key in ("image", "label", "foreground"):
        if key in moved:
            value = moved[key]
            moved[key] = move(value) if isinstance(value, str) else [move(path) for path in value]
    return moved


def merge_sources(
    datalists: Sequence[Datalist],
    dataset_dirs: Sequence[Path | str],
    *,
    root: Path | str | None = None,
    name: str | None = None,
    binary: bool = False,
    mixed_modality: bool = False,
    resplit: bool = False,
    same_patients: bool = False,
    seed: int = 0,
    fractions: Sequence[float] = DEFAULT_FRACTIONS,
    max_distance: int = MAX_DISTANCE,
    near_index: Path | None = None,
    fingerprints: KnownFingerprints | None = None,
    progress: bool = True,
) -> tuple[Datalist, Report]:
    """Join datalists of several sources and formats into one without a patient or a near-duplicate on two sides.

    Every image is read once and hashed, slices of volumes like pictures. What is linked by patient (source and number:
    equal numbers of two sources are two people), by a group of the lists, or by a near-duplicate (without patients:
    also in the order of names, see `scripts.data.datalists.near_duplicates`) gets one `group`. If a group lies in
    several splits it moves, whole, to the first of training, validation and test in which it has an item: what was
    trained on is never tested on, and weights that were trained with the lists can be tested with the result. The very
    same pixels in two classes are refused, both.

    Args:
        datalists: the lists.
        dataset_dirs: of each, or one for all.
        root: `dataset_dir` of the result; if not given the deepest folder that holds all.
        name: of the result.
        binary: make the classes no tumor and tumor; else classes are joined by name.
        mixed_modality: allow lists of different modality.
        resplit: split all again, stratified by class, source and having a mask, in place of keeping the lists' splits.
        same_patients: equal patient numbers are one person whatever the source (lists of one study, for instance).
        seed, fractions: of the new split.
        max_distance: bits of 256 by which near-duplicates may differ.
        near_index: folder of the pairs that earlier merges found; images that it has not are compared with its own.
        fingerprints: of images that need not be read.
        progress: show a progress bar.

    Returns:
        The datalist and the report.

    Raises:
        ValueError: when there is no list, classes or modality do not fit, or an image cannot be read.
    """
    if not datalists:
        raise ValueError("nothing to merge: expected at least one datalist")
    roots = [Path(path).resolve() for path in dataset_dirs] * (len(datalists) if len(dataset_dirs) == 1 else 1)
    if len(roots) != len(datalists):
        raise ValueError(f"expected one dataset folder, or one for each of {len(datalists)} lists; got {len(roots)}")
    common = Path(root).resolve() if root is not None else Path(os.path.commonpath(roots))
    outside = [path for path in roots if not path.is_relative_to(common)]
    if outside:
        raise ValueError(f"{outside[0]} is not inside the dataset folder {common}")
    report = Report()
    classes, numbers = join_classes(datalists, binary)
    modality = _modality(datalists, mixed_modality)
    regions = datalists[0].get("regions")
    if any(one.get("regions") != regions for one in datalists):
        raise ValueError(f"regions differ: {[one.get('regions') for one in datalists]}; state the same in all lists")
    items, sides = _collect(datalists, roots, common, numbers, report)
    _note_shared_names(datalists, roots, report)
    read, hashes, contents = [], [], []
    for item, side in zip(tqdm(items, desc="near-duplicates", unit="image", disable=not progress), sides, strict=True):
        try:
            bits, content = (fingerprints.of(item, common) if fingerprints else None) or picture_of(item, common)
        except (ValueError, OSError) as error:
            report.reject(paths(item)[0], str(error).replace(f"{common}/", ""))
            continue
        read.append((item, side))
        hashes.append(bits)
        contents.append(content)
    kept = _without_contradictions(read, contents, report)
    if not kept:
        raise ValueError(f"nothing left to merge: {len(report.unusable)} of {len(items)} images cannot be used")
    items, sides = [read[k][0] for k in kept], [read[k][1] for k in kept]
    order = file_order(items, common)
    bits_kept = np.array(hashes)[kept]
    groups, used = linked(items, bits_kept, [contents[k] for k in kept], max_distance, order, same_patients, near_index)
    original_sides, known = sides, ["patient" in item for item in items]
    sides = _resplit(items, groups, fractions, seed) if resplit else _settle(items, groups, sides, report)
    merged: dict[str, Any] = {
        "name": name or "+".join(str(one.get("name", "unnamed")) for one in datalists),
        "modality": modality,
        "classes": {str(k): text for k, text in enumerate(classes)},
        **({"regions": regions} if regions else {}),
        **({} if all(one.get(NO_LESION, True) for one in datalists) else {NO_LESION: False}),
        **{split: [] for split in SPLITS},
    }
    for item, group, side in zip(items, groups, sides, strict=True):
        merged[side].append({**item, "group": f"m-{group:05d}"})
    report.figures |= {
        "found": sum(len(one[split]) for one in datalists for split in SPLITS),
        "used": len(kept),
        "refused": len(report.unusable),
        "groups": int(groups.max()) + 1,
        "largest_group": int(np.bincount(groups).max()),
        "groups_across_sources": _across(items, groups),
        **used.figures(),
        "patient_numbers_in_several_sources": _note_shared_numbers(items, same_patients, report),
        f"test_within_{CLOSE_DISTANCE}_bits_of_training": close_to_training(bits_kept, sides, known),
        f"test_within_{CLOSE_DISTANCE}_bits_of_training_as_given": close_to_training(bits_kept, original_sides, known),
    }
    validate(merged)
    return merged, report


def _without_contradictions(read: Sequence[tuple[Item, str]], contents: Sequence[str], report: Report) -> list[int]:
    """Indices of the items that are kept, those of `contradictions` left out."""
    refused = contradictions(contents, [item.get("diagnosis") for item, _ in read])
    kept = []
    for k, ((item, _), content) in enumerate(zip(read, contents, strict=True)):
        if content in refused:
            others = " and ".join(f"{read[i][0]['source']}: {paths(read[i][0])[0]}" for i in refused[content])
            report.reject(paths(item)[0], f"the same pixels stand in two classes: {others}")
        else:
            kept.append(k)
    return kept


def _settle(items: Sequence[Item], groups: NDArray, sides: Sequence[str], report: Report) -> list[str]:
    """Sides with every group on one, the first of training, validation and test in which it has an item.

    Not where most of it is: an item that was trained on would land in the test part with its group.
    """
    chosen: dict[int, str] = {}
    for group, side in zip(groups.tolist(), sides, strict=True):
        chosen[group] = min(chosen.get(group, SPLITS[-1]), side, key=SPLITS.index)
    moved: Counter[str] = Counter()
    for item, group, side in zip(items, groups.tolist(), sides, strict=True):
        if chosen[group] != side:
            moved[f"{side} to {chosen[group]}"] += 1
            report.note(paths(item)[0], f"moved from {side} to {chosen[group]}: linked to images there")
    report.figures["moved"] = dict(sorted(moved.items()))
    return [chosen[group] for group in groups.tolist()]


def _resplit(items: Sequence[Item], groups: NDArray, fractions: Sequence[float], seed: int) -> list[str]:
    """A new split, stratified by source, class and having a mask of the group's first item of the highest class."""
    strata: dict[str, str] = {}
    for k in sorted(range(len(items)), key=lambda k: items[k].get("diagnosis", -1)):
        item = items[k]
        strata[f"{groups[k]:09d}"] = f"{item['source']} {item.get('diagnosis', -1)} {'label' in item}"
    sizes = Counter(f"{group:09d}" for group in groups.tolist())
    sides = split_clusters(strata, fractions, sizes=dict(sizes), seed=seed)
    return [sides[f"{group:09d}"] for group in groups.tolist()]


def _across(items: Sequence[Item], groups: NDArray) -> int:
    sources: dict[int, set[str]] = {}
    for item, group in zip(items, groups.tolist(), strict=True):
        sources.setdefault(group, set()).add(item["source"])
    return sum(len(members) > 1 for members in sources.values())
