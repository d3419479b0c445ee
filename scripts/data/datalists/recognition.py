"""Which layout a folder has, by the names in it: one command for all of them.

A folder of which two layouts could be right is refused, and so is one that fits none: a wrong guess is worse.
"""

from __future__ import annotations

import inspect
import json
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from scripts.data.datalists.decathlon import decathlon
from scripts.data.datalists.dicom import dicom_series
from scripts.data.datalists.folders import FOLDERS as FOLDER_NAMES
from scripts.data.datalists.folders import IMAGE_SUFFIXES, NO_TUMOR_NAMES, image_folder
from scripts.data.datalists.layouts import BY_NAME, FOLDERS, find_layouts, group_files, sort_roles
from scripts.data.datalists.naming import volume_suffix
from scripts.data.datalists.picture_layouts import has_classes, pair, pictures
from scripts.data.datalists.plans import Builder, Plan
from scripts.data.datalists.schema import Report
from scripts.data.datalists.unpacking import cheng, is_matlab
from scripts.data.datalists.volumes import nifti_cases
from scripts.data.datalists.walking import check_folder, walk

# Larger JSON files are not opened to see whether they list boxes.
MAX_JSON_BYTES = 200_000_000
OTHERS: dict[str, tuple[Builder[...], str]] = {
    "decathlon": (decathlon, "dataset.json or imagesTr and labelsTr: Medical Segmentation Decathlon, nnU-Net"),
    "dicom_series": (dicom_series, "a folder a DICOM series"),
    "image_folder": (image_folder, "images/<class>/* with masks/<same stem>.png"),
    "pictures": (pictures, "class folders, or images with masks: <name>_mask.* beside them, or masks/ beside images/"),
    "cheng": (cheng, "Cheng's brain tumors: .mat files of MATLAB 7.3"),
}
NAMES = (*BY_NAME, *OTHERS)
_YOLO = re.compile(r"\d+(?: +-?[\d.]+(?:e-?\d+)?){4,}")


def find(folder: Path, files: Sequence[Path]) -> str:
    """The name of a folder's layout.

    Args:
        folder: the folder.
        files: all in it.

    Raises:
        ValueError: when several layouts fit, or none; says what is there.
    """
    paths = [path.relative_to(folder).as_posix() for path in files]
    layouts = find_layouts(paths)
    below = {path[: path.index("/imagesTr/")] for path in paths if "/imagesTr/" in path}
    if below and not layouts:
        raise ValueError(f"{folder} holds {len(below)} folders with imagesTr: give one of them, such as {min(below)}")
    listed = {path for path in paths if path.startswith(("imagesTr/", "labelsTr/"))}
    drawn_only = bool(listed) and all(Path(path).suffix.lower() in IMAGE_SUFFIXES for path in listed)
    if (listed or _is_list(folder / "dataset.json")) and not drawn_only:
        layouts["decathlon"] = sum(path.startswith(("imagesTr/", "labelsTr/")) for path in paths)
    volumes = [path for path in files if volume_suffix(path)]
    drawn = [path for path in files if path.suffix.lower() in IMAGE_SUFFIXES]
    if not layouts:
        _refuse_boxes(folder, files)
        layouts = {
            "dicom_series": int(any(_is_dicom(path) for path in files)),
            "cheng": sum(is_matlab(path) for path in files),
            FOLDERS.name: _masked_cases(folder, volumes),
            **_of_pictures(folder, drawn),
        }
        layouts = {name: count for name, count in layouts.items() if count}
    if len(layouts) > 1:
        shown = " and ".join(f"{name} ({count})" for name, count in layouts.items())
        raise ValueError(f"{folder} may be of the layouts {shown}: choose with --layout NAME, or give one folder of it")
    if not layouts:
        raise ValueError(f"{folder} {_unknown(files, volumes, drawn)}")
    return next(iter(layouts))


def _unknown(files: Sequence[Path], volumes: Sequence[Path], drawn: Sequence[Path]) -> str:
    """Why a folder fits no layout, and what to do."""
    if volumes:
        return (
            f"holds {len(volumes)} volumes of no known layout, and no folder with a mask (seg) beside a FLAIR, T1, "
            "T1ce or T2: volumes of people without a tumor are taken by nifti_volumes, masks of other names by "
            "nifti_cases --label_pattern"
        )
    if drawn:
        return (
            f"holds {len(drawn)} pictures of no known layout: expected folders by class, one of them named "
            f"{', '.join(NO_TUMOR_NAMES)}, or a mask <name>_mask.png beside each image, or masks/<name>.png for "
            "images/<name>.png"
        )
    suffixes = Counter(path.suffix.lower() or "no suffix" for path in files)
    shown = ", ".join(f"{count} {suffix}" for suffix, count in suffixes.most_common(5)) or "nothing"
    return f"fits no known layout: it holds {shown}; known are {', '.join(NAMES)}, see docs/data.md"


def _is_list(path: Path) -> bool:
    """Whether a file is a list of the Decathlon or nnU-Net."""
    content = _read(path) if path.is_file() else None
    return isinstance(content, dict) and bool(
        {"training", "channel_names", "modality"} & set(content)
        and {"labels", "training", "numTraining"} & set(content)
    )


def _read(path: Path) -> Any:
    """What a JSON file holds; None for a damaged or too large one, which is no list of anything."""
    if path.stat().st_size > MAX_JSON_BYTES:
        return None
    try:
        return json.loads(path.read_bytes())
    except ValueError:
        return None


def _is_dicom(path: Path) -> bool:
    if not path.is_file() or volume_suffix(path) or path.suffix.lower() in (*IMAGE_SUFFIXES, ".json", ".txt", ".csv"):
        return False
    if path.suffix.lower() in (".dcm", ".ima"):
        return True
    try:
        with path.open("rb") as file:
            return file.read(132)[128:] == b"DICM"
    except OSError:  # its builder names it
        return False


def _of_pictures(folder: Path, drawn: Sequence[Path]) -> dict[str, int]:
    """`image_folder` where its folders are there and all pictures lie in them, else `pictures` where it has a sign."""
    paths = [path.relative_to(folder).as_posix() for path in drawn]
    inside = [path for path in paths if re.match(r"images/[^/]+/[^/]+$", path)]
    if has_classes(inside) and all(path.split("/")[0] in FOLDER_NAMES for path in paths):
        return {"image_folder": len(inside)}
    if has_classes(paths):
        return {"pictures": len(paths)}
    return {"pictures": sum(one.mask is not None for one in pair(folder, drawn, Report(quiet=True)))}


def _masked_cases(folder: Path, volumes: Sequence[Path]) -> int:
    """How many folders hold a mask and another volume beside it."""
    members, _ = group_files(folder, volumes, FOLDERS)
    roles = [sort_roles(folder, files, FOLDERS, None) for files in members.values()]
    return sum("label" in files and len(files) > 1 for files in roles)


def _refuse_boxes(folder: Path, files: Sequence[Path]) -> None:
    """Refuse collections of boxes: COCO, YOLO and Pascal VOC."""
    pictures = [path for path in files if path.suffix.lower() in IMAGE_SUFFIXES]
    stems = {path.stem for path in pictures}
    for path in files if pictures else ():
        kind = None
        if path.suffix.lower() == ".json":
            content = _read(path)
            kind = "COCO" if isinstance(content, dict) and {"images", "annotations"} <= set(content) else None
        elif path.suffix.lower() == ".txt" and path.stem in stems:
            lines = [line.strip() for line in path.read_text(encoding="utf-8", errors="replace").splitlines()]
            kind = "YOLO" if any(lines) and all(_YOLO.fullmatch(line) for line in lines if line) else None
        elif path.suffix.lower() == ".xml" and path.stem in stems:
            kind = "Pascal VOC" if b"<bndbox>" in path.read_bytes() else None
        if kind:
            raise ValueError(
                f"{folder} holds {len(pictures)} pictures with boxes or polygons ({kind}: {path.relative_to(folder)}), "
                "and a box is no mask: draw them as mask pictures <name>_mask.png beside the images, or sort the "
                "pictures into folders by class (one named no_tumor) to train classification alone"
            )


@Builder
def recognized(
    folder: Path | str, *, layout: str | None = None, unpack: Path | str | None = None, **options: Any
) -> Plan:
    """Build a datalist of a folder in any known layout.

    Args:
        folder: the folder.
        layout: one of `NAMES`; recognized by the names in the folder, if not given.
        unpack: folder for pictures, of layouts whose images are written as pictures first.
        options: of the layout's builder, without those that are not given.

    Raises:
        FileNotFoundError: when there is no such folder.
        ValueError: when no layout or several fit, the layout does not take an option, and as its builder.
    """
    folder = Path(folder)
    check_folder(folder, None)
    said = f"layout = {layout}, as given"
    if layout is None:
        layout = find(folder, walk(folder, Report(quiet=True)))
        said = f"layout = {layout}: {BY_NAME[layout].title if layout in BY_NAME else OTHERS[layout][1]}"
    if layout not in NAMES:
        raise ValueError(f"no layout {layout!r}; known are {', '.join(NAMES)}")
    builder, fixed = (nifti_cases, {"layout": layout}) if layout in BY_NAME else (OTHERS[layout][0], {})
    known = inspect.signature(builder.plan).parameters
    if foreign := [key for key in options if key not in known]:
        raise ValueError(f"the layout {layout} takes no --{foreign[0]}")
    if layout in BY_NAME:
        options = {"channels": None, **options}
    if "unpack" in known:
        options["unpack"] = unpack
    plan = builder.plan(folder, **fixed, **options)
    plan.taken.insert(0, said)
    return plan
