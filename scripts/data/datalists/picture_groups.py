"""Pictures of a class folder as items: patients where they are known, else groups of near-duplicates and neighbors."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from scripts.data.datalists.clusters import Item, components
from scripts.data.datalists.near_duplicates import group_near_duplicates
from scripts.data.datalists.schema import Report


@dataclass(frozen=True)
class Picture:
    """A usable picture: its file and class, masks beside it, fingerprint, hash of its pixels, mode, what is unusual."""

    name: str
    kind: str
    mask: str | None
    foreground: str | None
    hash: NDArray[np.uint8]
    content: str
    mode: str
    notes: tuple[str, ...]


def picture_items(
    pictures: list[Picture],
    order: dict[str, int],
    by_name: Mapping[str, str],
    classes: Sequence[str],
    name: str,
    max_distance: int,
    report: Report,
) -> list[Item]:
    """Items of pictures with their patients, where known, and groups of near-duplicates; figures go into the report.

    Args:
        pictures: usable ones.
        order: place of each in the order of names, see `places`.
        by_name: patients by the names of pictures.
        classes: names, no tumor first.
        name: of the source.
        max_distance: bits by which near-duplicates may differ.
        report: takes figures and notes.
    """
    contents = {content: k for k, content in enumerate(dict.fromkeys(picture.content for picture in pictures))}
    same = np.array([contents[picture.content] for picture in pictures])
    hashes = np.array([picture.hash for picture in pictures])
    persons = [by_name.get(picture.name) for picture in pictures]
    numbers = {person: k for k, person in enumerate(dict.fromkeys(persons))}
    alone = max(order.values(), default=0)
    near, used = group_near_duplicates(
        hashes,
        max_distance,
        same,
        people=np.array([-1 if person is None else numbers[person] for person in persons]),
        # Where the patient is known, what lies beside a picture says nothing.
        order=np.array(
            [
                order[picture.name] if person is None else alone + 1000 * (k + 1)
                for k, (picture, person) in enumerate(zip(pictures, persons, strict=True))
            ]
        ),
    )
    keys = [
        [("near", str(group)), *([("patient", person)] if person else [])]
        for group, person in zip(near.tolist(), persons, strict=True)
    ]
    groups = components(keys)
    sizes = np.bincount(groups)
    kinds: dict[int, set[str]] = {}
    for picture, group in zip(pictures, groups.tolist(), strict=True):
        kinds.setdefault(group, set()).add(picture.kind)
    mixed = sum(len(members) > 1 for members in kinds.values())
    report.figures = {
        "images": len(pictures),
        "unusable": len(report.unusable),
        "exact_duplicates": len(pictures) - len(contents),
        "groups": len(sizes),
        "largest_group": int(sizes.max()),
        "images_in_groups_of_several": int(sizes[sizes > 1].sum()),
        "groups_of_several_classes": mixed,
        "patients": len(numbers) - (None in numbers),
        **used.figures(),
    }
    if used.upright < max_distance:
        report.note(
            name,
            f"near-duplicate distance lowered from {max_distance} to {used.upright:g} bits: farther ones chain, or "
            "unrelated images are as much alike",
        )
    report.figures["modes"] = dict(Counter(picture.mode for picture in pictures))
    for picture in pictures:
        for text in picture.notes:
            report.note(picture.name, text)
    items: list[Item] = []
    for picture, group, person in zip(pictures, groups, persons, strict=True):
        item: Item = {"image": picture.name, "diagnosis": classes.index(picture.kind), "source": name}
        if picture.mask is not None:
            item["label"] = picture.mask
        if picture.foreground is not None:
            item["foreground"] = picture.foreground
        if person is not None:
            item["patient"] = person
        items.append({**item, "group": f"{name}-{group:05d}"})
    return items
