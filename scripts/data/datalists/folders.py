"""Datalist of a folder of pictures by class: `images/<class>/*`, optionally `masks/<same stem>.png`."""

from __future__ import annotations

import difflib
import hashlib
import logging
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from tqdm import tqdm

from scripts.data.datalists.patients import find_patients
from scripts.data.datalists.picture_groups import Picture, picture_items
from scripts.data.datalists.plans import Builder, Plan
from scripts.data.datalists.schema import DEFAULT_FRACTIONS, SPLITS, Datalist, Report
from scripts.data.datalists.similarity import (
    CLOSE_DISTANCE,
    MAX_DISTANCE,
    close_to_training,
    fingerprint,
    places,
)
from scripts.data.datalists.splits import assemble
from scripts.data.datalists.units import units
from transforms.masks import binary_mask, check_tumor, read_mask_picture
from transforms.pictures import PICTURE_SUFFIXES, read_picture
from transforms.reading import file_kind

logger = logging.getLogger(__name__)

NO_TUMOR_NAMES = ("no_tumor", "notumor", "no_tumour", "notumour", "no", "healthy", "normal", "negative", "control")
FOLDERS = ("images", "masks", "foregrounds")
IMAGE_SUFFIXES = tuple(PICTURE_SUFFIXES)
MIN_SIDE = 32
NO_PATIENTS = (
    "no patient known from the names: near-duplicates and neighbors in the order of names stay on one side; "
    "--patient_pattern or --patients says who they are"
)


def class_names(folders: Sequence[str]) -> list[str]:
    """Sort class folders by name, the one for no tumor first.

    Raises:
        ValueError: when not exactly one folder has a recognized no-tumor name, or there is no other class.
    """
    spelled = {name: name.lower().replace("-", "_").replace(" ", "_") for name in folders}
    healthy = [name for name in sorted(folders) if spelled[name] in NO_TUMOR_NAMES]
    if len(healthy) != 1:
        raise ValueError(
            f"expected exactly one class folder without tumor, named one of {', '.join(NO_TUMOR_NAMES)}; "
            f"got {len(healthy)} among {sorted(folders)}"
        )
    others = sorted(name for name in folders if name != healthy[0])
    if not others:
        raise ValueError(f"expected at least one class folder besides {healthy[0]!r}, got none")
    return [healthy[0], *others]


def _read_mask(path: Path, size: tuple[int, int]) -> NDArray[np.bool_]:
    """A mask, bool (X, Y), read as training reads it."""
    drawn = binary_mask(read_mask_picture(path), path.name, picture=True) > 0
    if drawn.shape != size:
        raise ValueError(f"mask {path.name} is {drawn.shape[0]} x {drawn.shape[1]}, image {size[0]} x {size[1]}")
    return drawn


def _notes(path: Path, mode: str, kind: str | None) -> tuple[str, ...]:
    """What is unusual about a usable file."""
    notes = []
    if mode not in ("L", "RGB"):
        notes.append(f"mode {mode}, read as one gray channel")
    if kind is not None and kind != PICTURE_SUFFIXES[path.suffix.lower()]:
        notes.append(f"a {kind} file by its content, whatever its name says")
    if not path.name.isascii() or " " in path.name:
        notes.append("its name holds spaces or letters beyond ASCII; used as it is")
    return tuple(notes)


def _inspect(path: Path, mask: Path | None, foreground: Path | None, root: Path, healthy: bool) -> Picture:
    """Read one picture and its masks; a ValueError or OSError says why it cannot be used."""
    if path.is_symlink() and not path.exists():
        raise ValueError("a symbolic link that leads nowhere")
    if file_kind(path) == "nifti":
        raise ValueError("a NIfTI volume by its content; build it with nifti_cases or nifti_volumes")
    pixels = read_picture(path)
    with Image.open(path) as opened:
        mode, kind = opened.mode, opened.format
    size = pixels.shape  # upright: EXIF may turn what is stored
    if min(size) < MIN_SIDE:
        raise ValueError(f"{size[0]} x {size[1]} pixels, at least {MIN_SIDE} on each side are needed")
    if not np.isfinite(pixels).all():
        raise ValueError(f"{int((~np.isfinite(pixels)).sum())} pixels are not finite (NaN or infinite)")
    if pixels.min() == pixels.max():
        raise ValueError(f"every pixel is {pixels.flat[0]:g}")
    if mask is not None:
        tumor = _read_mask(mask, size)
        check_tumor(tumor, mask.name)
        if healthy and tumor.any():
            raise ValueError(f"mask {mask.name} shows a tumor, the class says there is none")
        if not healthy and not tumor.any():
            raise ValueError(f"mask {mask.name} is empty, the class says there is a tumor")
    if foreground is not None and not _read_mask(foreground, size).any():
        raise ValueError(f"foreground mask {foreground.name} is empty")
    return Picture(
        name=path.relative_to(root).as_posix(),
        kind=path.parent.name,
        mask=None if mask is None else mask.relative_to(root).as_posix(),
        foreground=None if foreground is None else foreground.relative_to(root).as_posix(),
        hash=fingerprint(Image.fromarray(np.ascontiguousarray(pixels.T))),  # as when lists are merged
        content=hashlib.sha256(str(size).encode() + pixels.tobytes()).hexdigest(),
        mode=mode,
        notes=_notes(path, mode, kind),
    )


def _draw(files: dict[str, list[Path]], limit: int, seed: int) -> dict[str, list[Path]]:
    """A seeded subset of `limit` files, shared among the classes in proportion to their size (largest remainders)."""
    total = sum(len(own) for own in files.values())
    if limit >= total:
        return files
    share = {name: limit * len(own) / total for name, own in files.items()}
    count = {name: int(value) for name, value in share.items()}
    for name in sorted(share, key=lambda name: (count[name] - share[name], name))[: limit - sum(count.values())]:
        count[name] += 1
    rng = np.random.default_rng(seed)
    return {
        name: [own[k] for k in sorted(rng.permutation(len(own))[: count[name]])] for name, own in sorted(files.items())
    }


def _list_images(folder: Path, classes: Sequence[str], report: Report) -> dict[str, list[Path]]:
    """Candidate images by class; other files are reported, names that start with a dot skipped."""
    files: dict[str, list[Path]] = {}
    for path in _visible(folder / "images"):
        if not path.is_dir():
            report.reject(path.relative_to(folder).as_posix(), "not in a class folder")
    for name in classes:
        files[name] = []
        for path in _visible(folder / "images" / name):
            where = path.relative_to(folder).as_posix()
            if path.is_dir():
                report.reject(where, "a folder inside a class folder")
            elif path.suffix.lower() not in IMAGE_SUFFIXES:
                report.reject(where, f"not one of {', '.join(IMAGE_SUFFIXES)}")
            else:
                files[name].append(path)
    return files


def _visible(folder: Path) -> list[Path]:
    return [path for path in sorted(folder.iterdir()) if not path.name.startswith(".")] if folder.is_dir() else []


def _list_others(folder: Path, report: Report) -> None:
    """Report what else lies in the folder and holds pictures: masks in `mask/` would be overlooked without a word."""
    for path in _visible(folder):
        if path.name in FOLDERS and path.is_dir():
            continue
        found = [path] if path.is_file() else sorted(path.rglob("*")) if path.is_dir() else []
        count = sum(one.is_file() and one.suffix.lower() in IMAGE_SUFFIXES for one in found)
        if not count:
            continue
        if path.is_dir():
            near = difflib.get_close_matches(path.name.lower(), FOLDERS, n=1, cutoff=0.0)[0]
            text = f"a folder of {count} image files that is not looked at; known are {', '.join(FOLDERS)}"
            report.reject(path.name, f"{text}, nearest: {near!r}")
        else:
            report.reject(path.name, f"a picture beside the folders {', '.join(FOLDERS)}")


def _list_masks(folder: Path, kind: str, files: dict[str, list[Path]], report: Report) -> dict[str, Path]:
    """Masks by stem; what belongs to no image is reported, and so are images that share one (and leave `files`)."""
    stems = Counter(path.stem for own in files.values() for path in own)
    masks: dict[str, Path] = {}
    for path in _visible(folder / kind):
        where = path.relative_to(folder).as_posix()
        if path.is_dir():
            report.reject(where, f"a folder inside {kind}; masks lie in {kind} itself")
        elif path.suffix.lower() != ".png":
            report.reject(where, "a mask must be a .png")
        elif stems[path.stem] == 0:
            report.reject(where, f"no image has the stem {path.stem!r}")
        else:
            masks[path.stem] = path
    for name, own in files.items():
        unclear = [path for path in own if stems[path.stem] > 1 and path.stem in masks]
        for path in unclear:
            report.reject(path.relative_to(folder).as_posix(), f"several images share the mask {masks[path.stem].name}")
        files[name] = [path for path in own if path not in unclear]
    return masks


@Builder
def image_folder(
    folder: Path | str,
    *,
    name: str | None = None,
    root: Path | str | None = None,
    limit: int | None = None,
    seed: int = 0,
    fractions: Sequence[float] = DEFAULT_FRACTIONS,
    max_distance: int = MAX_DISTANCE,
    modality: str = "MRI",
    patient_pattern: str | None = None,
    patients: Path | str | None = None,
    progress: bool = True,
) -> Plan:
    """Build a datalist of `folder/images/<class>/*` with optional masks `folder/masks/<same stem>.png`.

    Masks of head or brain of the user's own, where there are some, lie in `folder/foregrounds/<same stem>.png`.
    Names of a known collection say the patient (`scripts.data.datalists.patients`), as do the user's pattern or table;
    numbers of other pictures count pictures. Where patients are unknown near-duplicates, and similar pictures that
    follow each other in the order of names (see `scripts.data.datalists.similarity`), form a `group`, which is never
    split.
    The split is stratified by class and by having a mask. Every file that is not used is in the report; another folder
    with pictures beside these (`mask`, say) is one line of it, with the nearest of the three names.

    Args:
        folder: holds `images` and maybe `masks`.
        name: of the datalist and source; the folder's name if not given.
        root: `dataset_dir`, to which paths are relative; `folder` if not given.
        limit: use only a seeded subset of this many images, in proportion to the classes.
        seed: of subset and split.
        fractions: shares of training, validation and test.
        max_distance: bits of 256 by which near-duplicates may differ.
        modality: what the images are.
        patient_pattern: regular expression that finds the patient in the path of an image inside `folder`.
        patients: CSV file with the columns file and patient.
        progress: show a progress bar.

    Returns:
        The datalist, and the report: what could not be used and why, and figures on the groups.

    Raises:
        FileNotFoundError: when there is no folder `images` with class folders.
        ValueError: when class names are not clear, the limit is below 1, `folder` is outside `root`, no image can be
            used, a class has none left, or there are too few to split.
    """
    folder = Path(folder)
    root = folder if root is None else Path(root)
    name = name or folder.resolve().name
    if limit is not None and limit < 1:
        raise ValueError(f"limit must be 1 or more, got {limit}")
    if not folder.is_relative_to(root):
        raise ValueError(f"{folder} is not inside the dataset folder {root}")
    if not (folder / "images").is_dir():
        raise FileNotFoundError(f"{folder} has no folder 'images' with one folder per class inside")
    found = [path.name for path in (folder / "images").iterdir() if path.is_dir() and not path.name.startswith(".")]
    classes = class_names(found)
    report = Report()
    _list_others(folder, report)
    files = _list_images(folder, classes, report)
    masks = _list_masks(folder, "masks", files, report)
    foregrounds = _list_masks(folder, "foregrounds", files, report)
    order = places([path.relative_to(root).as_posix() for path in own] for own in files.values())
    people = find_patients(
        [path.relative_to(folder).as_posix() for own in files.values() for path in own],
        pattern=patient_pattern, table=patients, known_only=True,
    )  # fmt: skip
    listed = sum(map(len, files.values())) + len(report.unusable)
    if limit is not None:
        drawn = _draw(files, limit, seed)
        for kind in classes:
            report.leave_out(f"images of class {kind} beyond the limit of {limit}", len(files[kind]) - len(drawn[kind]))
        files = drawn

    chosen = [path for kind in classes for path in files[kind]]
    taken = [f"class {k} = {kind}: {len(files[kind])} images of images/{kind}" for k, kind in enumerate(classes)]
    for what, known in (("mask", masks), ("foreground", foregrounds)):
        count = sum(path.stem in known for path in chosen)
        taken.append(f"{what} = {what}s/<stem of the image>.png of {count} of {len(chosen)} images")
    taken.append(people.sentence("images") if people.of else NO_PATIENTS)

    def finish() -> Datalist:
        pictures: list[Picture] = []
        for path in tqdm(chosen, desc=name, unit="image", disable=not progress):
            try:
                own = masks.get(path.stem), foregrounds.get(path.stem)
                pictures.append(_inspect(path, *own, root, path.parent.name == classes[0]))
            except (ValueError, OSError) as error:
                report.reject(path.relative_to(folder).as_posix(), str(error).replace(f"{folder}/", ""))
        pictures = _without_contradictions(pictures, report)
        lacking = [kind for kind in classes if not any(picture.kind == kind for picture in pictures)]
        if lacking:
            raise ValueError(
                f"no usable image of class {', '.join(lacking)} in {folder / 'images'}: {len(pictures)} usable in all, "
                f"{len(report.unusable)} unusable"
                + (f", first: {': '.join(report.unusable[0])}" if report.unusable else "")
            )
        told = {(folder / path).relative_to(root).as_posix(): patient for path, patient in people.of.items()}
        items = picture_items(pictures, order, told, classes, name, max_distance, report)
        left = listed - len(items) - len(report.unusable)
        report.figures |= {"found": listed, "used": len(items), "refused": len(report.unusable), "beyond_limit": left}
        owners = [*zip(items, units(items), strict=True)]
        strata = {owner: f"{item['diagnosis']} {'label' in item}" for item, owner in reversed(owners)}
        datalist = assemble(name, classes, items, fractions, modality=modality, seed=seed, strata=strata)
        fingerprints = {picture.name: picture.hash for picture in pictures}
        listed_items = [(item["image"], split) for split in SPLITS for item in datalist[split]]
        report.figures[f"test_within_{CLOSE_DISTANCE}_bits_of_training"] = close_to_training(
            np.array([fingerprints[image] for image, _ in listed_items]),
            [split for _, split in listed_items],
            [image in told for image, _ in listed_items],
        )
        for split in SPLITS:
            present = {item["diagnosis"] for item in datalist[split]}
            for k, kind in enumerate(classes):
                if k not in present:
                    report.note(split, f"has no image of class {kind}: too few groups")
        return datalist

    return Plan(taken, report, finish)


def _without_contradictions(pictures: list[Picture], report: Report) -> list[Picture]:
    """Drop, with a report, pictures whose very pixels also stand in another class."""
    kinds: dict[str, set[str]] = {}
    for picture in pictures:
        kinds.setdefault(picture.content, set()).add(picture.kind)
    for picture in pictures:
        if len(kinds[picture.content]) > 1:
            report.reject(picture.name, f"the same pixels stand in classes {', '.join(sorted(kinds[picture.content]))}")
    return [picture for picture in pictures if len(kinds[picture.content]) == 1]
