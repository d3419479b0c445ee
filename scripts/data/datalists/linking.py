"""Which items of a list show the same person: by patient, group, file or content, and by near-duplicates."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from scripts.data.datalists.clusters import Item, components, patient_key
from scripts.data.datalists.fingerprints import fingerprint
from scripts.data.datalists.folders import IMAGE_SUFFIXES
from scripts.data.datalists.near_duplicates import MAX_DISTANCE, Distances, group_near_duplicates, places
from transforms.loading import LoadCased


def picture_of(item: Item, dataset_dir: Path | str) -> tuple[NDArray[np.uint8], str]:
    """Fingerprint (uint8 (672,)) and content hash of what the item shows: picture, or slice of a volume.

    A slice and its export as a picture get the same fingerprint, whatever the file types.

    Raises:
        ValueError: when the image cannot be read.
    """
    about: dict[Any, Any] = {key: item[key] for key in ("image", "slice", "plane") if key in item}
    root = Path(dataset_dir)
    named = about["image"] if isinstance(about["image"], list) else [about["image"]]
    pixels = LoadCased()({**about, "image": [str(root / path) for path in named[:1]]})["image"][0].numpy()
    return hashes_of(pixels)


def hashes_of(pixels: NDArray[np.float32]) -> tuple[NDArray[np.uint8], str]:
    """Fingerprint (uint8 (672,)) and content hash of loaded gray values (X, Y)."""
    content = hashlib.sha256(str(pixels.shape).encode() + np.ascontiguousarray(pixels).tobytes()).hexdigest()
    return fingerprint(Image.fromarray(np.ascontiguousarray(pixels.T, dtype=np.float32))), content


def file_order(items: Sequence[Item], dataset_dir: Path | str) -> NDArray[np.int64]:
    """Places of items in the order of the files of their folders, int64 (N,), for `group_near_duplicates`.

    Only pictures without a known patient have neighbors; every other item stands alone, a thousand places from the
    next. All pictures of a folder count, also those that are in no list.
    """
    root = Path(dataset_dir)
    folders: dict[Path, list[str]] = {}
    for item in items:
        if _in_order(item) and (folder := (root / item["image"]).parent) not in folders:
            folders[folder] = [path.as_posix() for path in folder.iterdir() if _is_picture(path)]
    known = places(folders.values())
    alone = max(known.values(), default=0)
    positions = []
    for k, item in enumerate(items):
        place = known.get((root / item["image"]).as_posix()) if _in_order(item) else None
        positions.append(alone + 1000 * (k + 1) if place is None else place)
    return np.array(positions, dtype=np.int64)


def _in_order(item: Item) -> bool:
    return "patient" not in item and "slice" not in item and isinstance(item["image"], str)


def _is_picture(path: Path) -> bool:
    return path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith(".")


def linked(
    items: Sequence[Item],
    hashes: NDArray,
    contents: Sequence[str],
    max_distance: int = MAX_DISTANCE,
    order: NDArray[np.int64] | None = None,
    same_patients: bool = False,
    index: Path | None = None,
) -> tuple[NDArray[np.int64], Distances]:
    """Components of items that must stay on one side: same patient, group, file or content, or near-duplicates.

    Patients are identified by source and number, as two sources may both count from 1.

    Args:
        items: (N) items.
        hashes: fingerprints, uint8 (N, 672), see `picture_of`.
        contents: (N) content hashes.
        max_distance: bits by which near-duplicates may differ.
        order: (N) places, see `file_order`: pictures next to each other may differ by more bits.
        same_patients: equal patient numbers are one person whatever the source.
        index: folder of the near-duplicates that are known, see `group_near_duplicates`.

    Returns:
        Component number of every item, int64 (N,), in order of first appearance, and the distances used.
    """
    persons = [str(item["patient"]) if same_patients and "patient" in item else patient_key(item) for item in items]
    names = {name: k for k, name in enumerate(dict.fromkeys(persons))}
    people = np.array([-1 if person is None else names[person] for person in persons])
    groups, used = group_near_duplicates(hashes, max_distance, people=people, order=order, index=index)
    keys = []
    for item, person, content, group in zip(items, persons, contents, groups.tolist(), strict=True):
        links: list[tuple[str, str]] = [("patient", person)] if person is not None else []
        links += [("group", str(item["group"]))] if "group" in item else []
        links += [("image", path) for path in ([item["image"]] if isinstance(item["image"], str) else item["image"])]
        keys.append([*links, ("content", content), ("near", str(group))])
    return components(keys), used
