"""Datalist of a folder of pictures by class: `images/<class>/*`, optionally `masks/<same stem>.png`."""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from scripts.data.datalists.near_duplicates import MAX_DISTANCE
from scripts.data.datalists.patients import find_patients
from scripts.data.datalists.picture_plans import PictureFiles, Settings, plan_pictures
from scripts.data.datalists.plans import Builder, Plan
from scripts.data.datalists.schema import DEFAULT_FRACTIONS, Report
from scripts.data.datalists.walking import check_folder, visible
from transforms.pictures import PICTURE_SUFFIXES

NO_TUMOR_NAMES = ("no_tumor", "notumor", "no_tumour", "notumour", "no", "healthy", "normal", "negative", "control")
FOLDERS = ("images", "masks", "foregrounds")
IMAGE_SUFFIXES = tuple(PICTURE_SUFFIXES)


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


def _list_images(folder: Path, classes: Sequence[str], report: Report) -> dict[str, list[Path]]:
    """Candidate images by class; other files are reported, names that start with a dot skipped."""
    files: dict[str, list[Path]] = {}
    for path in _inside(folder / "images", folder, Report(quiet=True)):
        if not path.is_dir():
            report.reject(path.relative_to(folder).as_posix(), "not in a class folder")
    for name in classes:
        files[name] = []
        for path in _inside(folder / "images" / name, folder, report):
            relative = path.relative_to(folder).as_posix()
            if path.is_dir():
                report.reject(relative, "a folder inside a class folder")
            elif path.suffix.lower() not in IMAGE_SUFFIXES:
                report.reject(relative, f"not one of {', '.join(IMAGE_SUFFIXES)}")
            else:
                files[name].append(path)
    return files


def _inside(subfolder: Path, folder: Path, report: Report) -> list[Path]:
    return visible(subfolder, folder, report) if subfolder.is_dir() else []


def _list_others(folder: Path, report: Report) -> None:
    """Report what else lies in the folder and holds pictures: masks in `mask/` would be overlooked without a word."""
    for path in _inside(folder, folder, report):
        if path.name in FOLDERS and path.is_dir():
            continue
        files = [path] if path.is_file() else sorted(path.rglob("*")) if path.is_dir() else []
        count = sum(one.is_file() and one.suffix.lower() in IMAGE_SUFFIXES for one in files)
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
    stems = Counter(path.stem for paths in files.values() for path in paths)
    masks: dict[str, Path] = {}
    for path in _inside(folder / kind, folder, report):
        relative = path.relative_to(folder).as_posix()
        if path.is_dir():
            report.reject(relative, f"a folder inside {kind}; masks lie in {kind} itself")
        elif path.suffix.lower() != ".png":
            report.reject(relative, "a mask must be a .png")
        elif stems[path.stem] == 0:
            report.reject(relative, f"no image has the stem {path.stem!r}")
        else:
            masks[path.stem] = path
    for name, images in files.items():
        unclear = [path for path in images if stems[path.stem] > 1 and path.stem in masks]
        for path in unclear:
            report.reject(path.relative_to(folder).as_posix(), f"several images share the mask {masks[path.stem].name}")
        files[name] = [path for path in images if path not in unclear]
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
    follow each other in the order of names (see `scripts.data.datalists.near_duplicates`), form a `group`, which is
    never split. The split is stratified by class and by having a mask. Every file that is not used is in the report;
    another folder with pictures beside these (`mask`, say) is one line of it, with the nearest of the three names.

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
            used, or a class has none left.
    """
    folder, root = check_folder(folder, root)
    settings = Settings(
        folder, root, name or folder.resolve().name, limit, seed, fractions, max_distance, modality, progress
    )
    if not (folder / "images").is_dir():
        raise FileNotFoundError(f"{folder} has no folder 'images' with one folder per class inside")
    report = Report()
    classes = class_names([path.name for path in visible(folder / "images", folder, report) if path.is_dir()])
    _list_others(folder, report)
    files = _list_images(folder, classes, report)
    masks = _list_masks(folder, "masks", files, report)
    foregrounds = _list_masks(folder, "foregrounds", files, report)
    chosen = [
        PictureFiles(path, kind, masks.get(path.stem), foregrounds.get(path.stem))
        for kind in classes
        for path in files[kind]
    ]
    people = find_patients(
        [settings.where(one.path) for one in chosen], pattern=patient_pattern, table=patients, known_only=True
    )
    taken = [f"class {k} = {kind}: {len(files[kind])} images of images/{kind}" for k, kind in enumerate(classes)]
    for what, count in (
        ("mask", sum(one.mask is not None for one in chosen)),
        ("foreground", sum(one.foreground is not None for one in chosen)),
    ):
        taken.append(f"{what} = {what}s/<stem of the image>.png of {count} of {len(chosen)} images")
    return plan_pictures(chosen, classes, people, settings, report, taken)
