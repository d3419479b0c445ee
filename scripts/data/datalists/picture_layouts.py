"""Datalist of pictures in folders by class or patient, with masks beside the images or in folders beside theirs."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from scripts.data.datalists.folders import IMAGE_SUFFIXES, NO_TUMOR_NAMES, class_names
from scripts.data.datalists.near_duplicates import MAX_DISTANCE
from scripts.data.datalists.patients import find_patients
from scripts.data.datalists.picture_plans import PictureFiles, Settings, plan_pictures
from scripts.data.datalists.plans import Builder, Plan, took
from scripts.data.datalists.schema import DEFAULT_FRACTIONS, Report
from scripts.data.datalists.unpacking import is_tcga_slice, unpack_channel, unpack_folder
from scripts.data.datalists.volumes import BINARY
from scripts.data.datalists.walking import check_folder, walk

# Folders that hold parts of a collection, and say neither class nor patient.
_PARTS = re.compile(
    r"(images?|labels?)(Tr|Ts)|images?|train(ing)?|test(ing)?|val(id(ation)?)?|data(set)?|all", re.IGNORECASE
)
_MASK_FOLDER = re.compile(r"masks?|segmentations?|seg|ground_?truths?|annotations?", re.IGNORECASE)
# nnU-Net's folders, where a channel's number stands behind the case's name.
_NNUNET = {"imagesTr": "Tr", "imagesTs": "Ts", "labelsTr": "Tr", "labelsTs": "Ts"}
_MASK_NAME = re.compile(r"(?P<stem>.+?)[_-](?:mask|seg|segmentation)(?P<number>[_-]?\d+)?$", re.IGNORECASE)


def pair(folder: Path, files: Sequence[Path], report: Report) -> list[PictureFiles]:
    """Images with their masks: `<stem>_mask` beside `<stem>`, or `masks/<stem>` for `images/<stem>`, or nnU-Net's.

    What is neither is refused in the report, and so are a mask without an image and an image with several masks.
    """
    images: dict[tuple[str, ...], list[Path]] = {}
    masks: dict[tuple[str, ...], list[Path]] = {}
    for path in files:
        *above, _ = path.relative_to(folder).parts
        if path.suffix.lower() not in IMAGE_SUFFIXES:
            report.reject(path.relative_to(folder).as_posix(), f"not one of {', '.join(IMAGE_SUFFIXES)}")
            continue
        if above and above[-1] in _NNUNET:
            stem = re.sub(r"_\d{4}$", "", path.stem) if above[-1].startswith("images") else path.stem
            kind = images if above[-1].startswith("images") else masks
            kind.setdefault((*above[:-1], _NNUNET[above[-1]], stem), []).append(path)
            continue
        named, apart = _MASK_NAME.match(path.stem), any(_MASK_FOLDER.fullmatch(part) for part in above)
        stem = named["stem"] if named else path.stem
        home = tuple(
            part for part in above if not _MASK_FOLDER.fullmatch(part) and part.lower() not in ("image", "images")
        )
        (masks if named or apart else images).setdefault((*home, stem), []).append(path)
    pairs = []
    for key, paths in images.items():
        drawn = masks.pop(key, [])
        if len(drawn) > 1 or len(paths) > 1:
            several = f"{len(drawn)} masks" if len(drawn) > 1 else f"the stem of {len(paths)} images"
            for path in paths:
                names = ", ".join(one.name for one in (drawn if len(drawn) > 1 else paths)[:4])
                report.reject(path.relative_to(folder).as_posix(), f"has {several} ({names}): one of each is needed")
        else:
            pairs.append(PictureFiles(paths[0], None, drawn[0] if drawn else None))
    for path in sorted(path for paths_of in masks.values() for path in paths_of):
        report.reject(path.relative_to(folder).as_posix(), "a mask by its name, and no image of its stem is there")
    return sorted(pairs, key=lambda one: one.path)


def class_folder(path: str) -> str | None:
    """The folder that says the class of a picture: the last that is not a part of the collection.

    >>> class_folder("Training/glioma/a.jpg"), class_folder("glioma/images/a.jpg"), class_folder("train/a.jpg")
    ('glioma', 'glioma', None)
    """
    named = [part for part in path.split("/")[:-1] if not _PARTS.fullmatch(part)]
    return named[-1] if named else None


def has_classes(paths: Sequence[str]) -> bool:
    """Whether one of the folders of pictures is named as a class without tumor."""
    spelled = {str(class_folder(path)).lower().replace("-", "_").replace(" ", "_") for path in paths}
    return bool(spelled & set(NO_TUMOR_NAMES))


@Builder
def pictures(
    folder: Path | str,
    *,
    name: str | None = None,
    root: Path | str | None = None,
    limit: int | None = None,
    seed: int = 0,
    fractions: Sequence[float] = DEFAULT_FRACTIONS,
    classes: Sequence[str] = BINARY,
    max_distance: int = MAX_DISTANCE,
    modality: str | None = None,
    patient_pattern: str | None = None,
    patients: Path | str | None = None,
    unpack: Path | str | None = None,
    progress: bool = True,
) -> Plan:
    """Build a datalist of pictures by class folder, or with a mask each.

    Where a folder is named as a class without tumor (`no_tumor`, `healthy`, ...) the folders are the classes, whatever
    parts (`Training`, `Testing`, `images`) they lie in: all are split again. Else every picture needs a mask, and the
    mask says whether there is a tumor. Masks are `<stem>_mask.*` beside the image, or `masks/<stem>.*` for
    `images/<stem>.*`. Color slices of TCGA-LGG hold the images before contrast, FLAIR, and after contrast as red, green
    and blue: the FLAIR image is written to `unpack` and listed.

    Args:
        folder, name, root, limit, seed, fractions, max_distance, patient_pattern, patients, progress: as in
            `image_folder`; folders with a number in their names may be patients too, where there are no class folders.
        classes: names of no tumor and tumor, where masks say it.
        modality: what the images are; MRI, or FLAIR for TCGA-LGG.
        unpack: folder for what is written, of TCGA-LGG.

    Raises:
        FileNotFoundError: when there is no such folder.
        ValueError: as `image_folder`; and when there are neither masks nor class folders, or no `unpack` where needed.
    """
    folder, _ = check_folder(folder, root)
    report = Report()
    images = pair(folder, walk(folder, report), report)
    paths = {one: one.path.relative_to(folder).as_posix() for one in images}
    tcga = sum(is_tcga_slice(path) for path in paths.values())
    if tcga and tcga < len(images):
        raise ValueError(
            f"{folder} holds {tcga} slices of TCGA-LGG among {len(images)} pictures: give a folder of its own"
        )
    by_class = has_classes(list(paths.values()))
    taken = []
    if by_class:
        classes = class_names(sorted({kind for path in paths.values() if (kind := class_folder(path))}))
        for one in images:
            if class_folder(paths[one]) is None:
                report.reject(paths[one], "not in a class folder")
        images = [replace(one, kind=class_folder(paths[one])) for one in images if class_folder(paths[one])]
        for k, kind in enumerate(classes):
            taken.append(f"class {k} = {kind}: {sum(one.kind == kind for one in images)} images")
    else:
        for one in images:
            if one.mask is None:
                report.reject(paths[one], "has no mask, and no folder is named as a class without tumor")
        images = [one for one in images if one.mask is not None]
        taken.append(f"class 0 = {classes[0]}, 1 = {classes[1]}: whether the mask is empty")
    if not images:
        raise ValueError(
            f"{folder} holds no pictures by class (a folder named {NO_TUMOR_NAMES[0]}) and none with a mask "
            f"(<name>_mask.png beside it, or masks/<name>.png): {len(report.unusable)} files cannot be used"
        )
    taken.append(took("mask", [(one.mask, one.path.stem) for one in images if one.mask], len(images), "images"))
    target, prepare = root, (lambda one: one)
    if tcga:
        target = unpack_folder(unpack, root, folder)
        taken.append(
            f"FLAIR = green of red, green and blue in {len(images)} of {len(images)} images, written to {target}"
        )
        prepare = unpack_channel(folder, target, 1)
    settings = Settings(
        folder, Path(target or folder), name or folder.resolve().name, limit, seed, fractions, max_distance,
        modality or ("FLAIR" if tcga else "MRI"), progress,
    )  # fmt: skip
    named = [settings.where(one.path) for one in images]
    folders = {class_folder(path) or "" for path in named}
    of_patients = not by_class and len(folders) > 1 and all(re.search(r"\d", text) for text in folders)
    people = find_patients(named, pattern=patient_pattern, table=patients, known_only=not of_patients)
    return plan_pictures(images, classes, people, settings, report, taken, prepare)
