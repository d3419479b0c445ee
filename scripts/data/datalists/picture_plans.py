"""From pictures whose files and masks are known to a datalist: read, refuse, group, split."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from tqdm import tqdm

from scripts.data.datalists.clusters import clusters, contradictions
from scripts.data.datalists.fingerprints import fingerprint
from scripts.data.datalists.near_duplicates import CLOSE_DISTANCE, MAX_DISTANCE, close_to_training, places
from scripts.data.datalists.patients import Patients
from scripts.data.datalists.picture_groups import Picture, picture_items
from scripts.data.datalists.plans import Plan
from scripts.data.datalists.schema import DEFAULT_FRACTIONS, SPLITS, Datalist, Report
from scripts.data.datalists.splits import assemble, with_a_share
from transforms.masks import binary_mask, check_tumor, read_mask_picture
from transforms.pictures import PICTURE_SUFFIXES, read_picture
from transforms.reading import file_kind

MIN_SIDE = 32
NO_PATIENTS = (
    "no patient known from the names: near-duplicates and neighbors in the order of names stay on one side; "
    "--patient_pattern or --patients says who they are"
)


@dataclass(frozen=True)
class PictureFiles:
    """A picture and what belongs to it.

    Attributes:
        path: of the picture.
        kind: name of its class; None: the mask says which of two.
        mask: of the tumor.
        foreground: of the head or brain.
    """

    path: Path
    kind: str | None
    mask: Path | None = None
    foreground: Path | None = None


@dataclass
class Settings:
    """What all builders of pictures take: see `scripts.data.datalists.folders.image_folder`."""

    folder: Path
    root: Path
    name: str
    limit: int | None = None
    seed: int = 0
    fractions: Sequence[float] = DEFAULT_FRACTIONS
    max_distance: int = MAX_DISTANCE
    modality: str = "MRI"
    progress: bool = True

    def __post_init__(self) -> None:
        if self.limit is not None and self.limit < 1:
            raise ValueError(f"limit must be 1 or more, got {self.limit}")

    def where(self, path: Path) -> str:
        """A path inside the folder."""
        return path.relative_to(self.folder).as_posix()


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


def _inspect(picture: PictureFiles, root: Path, classes: Sequence[str]) -> Picture:
    """Read one picture and its masks; a ValueError or OSError says why it cannot be used."""
    path, mask, foreground, kind = picture.path, picture.mask, picture.foreground, picture.kind
    if path.is_symlink() and not path.exists():
        raise ValueError("a symbolic link that leads nowhere")
    if (content := file_kind(path)) not in ("picture", "other"):
        builder = "dicom_series" if content == "dicom" else "nifti_cases or nifti_volumes"
        raise ValueError(f"a volume by its content ({content}); build the list with {builder}")
    pixels = read_picture(path)
    with Image.open(path) as opened:
        mode, form = opened.mode, opened.format
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
        if kind == classes[0] and tumor.any():
            raise ValueError(f"mask {mask.name} shows a tumor, the class says there is none")
        if kind not in (None, classes[0]) and not tumor.any():
            raise ValueError(f"mask {mask.name} is empty, the class says there is a tumor")
        kind = kind or classes[int(tumor.any())]
    if kind is None:
        raise ValueError("has no mask, and no folder says its class")
    if foreground is not None and not _read_mask(foreground, size).any():
        raise ValueError(f"foreground mask {foreground.name} is empty")
    return Picture(
        name=path.relative_to(root).as_posix(),
        kind=kind,
        mask=None if mask is None else mask.relative_to(root).as_posix(),
        foreground=None if foreground is None else foreground.relative_to(root).as_posix(),
        hash=fingerprint(Image.fromarray(np.ascontiguousarray(pixels.T))),  # as when lists are merged
        content=hashlib.sha256(str(size).encode() + pixels.tobytes()).hexdigest(),
        mode=mode,
        notes=_notes(path, mode, form),
    )


def _draw(files: dict[str, list[PictureFiles]], limit: int, seed: int) -> dict[str, list[PictureFiles]]:
    """A seeded subset of `limit` files, shared among the classes in proportion to their size (largest remainders)."""
    total = sum(len(pictures) for pictures in files.values())
    if limit >= total:
        return files
    share = {name: limit * len(pictures) / total for name, pictures in files.items()}
    count = {name: int(value) for name, value in share.items()}
    for name in sorted(share, key=lambda name: (count[name] - share[name], name))[: limit - sum(count.values())]:
        count[name] += 1
    rng = np.random.default_rng(seed)
    return {
        name: [pictures[k] for k in sorted(rng.permutation(len(pictures))[: count[name]])]
        for name, pictures in sorted(files.items())
    }


def plan_pictures(
    candidates: Sequence[PictureFiles],
    classes: Sequence[str],
    people: Patients,
    settings: Settings,
    report: Report,
    taken: Sequence[str],
    prepare: Callable[[PictureFiles], PictureFiles] = lambda one: one,
) -> Plan:
    """The plan of a datalist of pictures.

    Args:
        candidates: the pictures; those of one class side by side.
        classes: names, no tumor first.
        people: patients by path inside the folder, of none, some or all.
        settings: of the builder.
        report: takes what cannot be used, figures and notes.
        taken: lines of the plan.
        prepare: called for each picture when it is read; gives the files to read in place of those found.
    """
    relative_path = settings.where
    listed = len(candidates) + len(report.unusable)
    homes: dict[Path, list[str]] = {}
    for one in candidates:
        homes.setdefault(one.path.parent, []).append(relative_path(one.path))
    order = places(homes.values())
    chosen = list(candidates)
    if settings.limit is not None:
        kinds: dict[str, list[PictureFiles]] = {}
        for one in candidates:
            kinds.setdefault(one.kind or "", []).append(one)
        drawn = _draw(kinds, settings.limit, settings.seed)
        for kind, images in kinds.items():
            text = f"images{f' of class {kind}' if kind else ''} beyond the limit of {settings.limit}"
            report.leave_out(text, len(images) - len(drawn[kind]))
        chosen = [one for kind in kinds for one in drawn[kind]]
    said = people.sentence("images") if people.of else NO_PATIENTS

    def finish() -> Datalist:
        pictures, by_name, place = [], {}, {}
        for one in tqdm(chosen, desc=settings.name, unit="image", disable=not settings.progress):
            try:
                picture = _inspect(prepare(one), settings.root, classes)
            except (ValueError, OSError) as error:
                report.reject(relative_path(one.path), str(error).replace(f"{settings.folder}/", ""))
                continue
            pictures.append(picture)
            place[picture.name] = order[relative_path(one.path)]
            if relative_path(one.path) in people.of:
                by_name[picture.name] = people.of[relative_path(one.path)]
        pictures = _without_contradictions(pictures, report)
        _check_classes(pictures, candidates, classes, settings.folder, report)
        items = picture_items(pictures, place, by_name, classes, settings.name, settings.max_distance, report)
        left = listed - len(items) - len(report.unusable)
        report.figures |= {"found": listed, "used": len(items), "refused": len(report.unusable), "beyond_limit": left}
        owners = [*zip(items, clusters(items), strict=True)]
        strata = {owner: f"{item['diagnosis']} {'label' in item}" for item, owner in reversed(owners)}
        datalist = assemble(
            settings.name, classes, items, settings.fractions, modality=settings.modality, seed=settings.seed,
            strata=strata,
        )  # fmt: skip
        fingerprints = {picture.name: picture.hash for picture in pictures}
        listed_items = [(item["image"], split) for split in SPLITS for item in datalist[split]]
        report.figures[f"test_within_{CLOSE_DISTANCE}_bits_of_training"] = close_to_training(
            np.array([fingerprints[image] for image, _ in listed_items]),
            [split for _, split in listed_items],
            [image in by_name for image, _ in listed_items],
        )
        for split in with_a_share(settings.fractions):
            present = {item["diagnosis"] for item in datalist[split]}
            for k, kind in enumerate(classes):
                if k not in present:
                    report.note(split, f"has no image of class {kind}: too few groups")
        return datalist

    return Plan([*taken, said], report, finish)


def _check_classes(
    pictures: Sequence[Picture],
    candidates: Sequence[PictureFiles],
    classes: Sequence[str],
    folder: Path,
    report: Report,
) -> None:
    """Refuse a list in which a class that has images has none that can be used, or no image at all can."""
    present = {picture.kind for picture in pictures}
    expected = {one.kind for one in candidates} - {None} or {classes[1]}
    if lacking := [kind for kind in classes if kind in expected - present]:
        raise ValueError(
            f"no usable image of class {', '.join(lacking)} in {folder}: {len(pictures)} usable in all, "
            f"{len(report.unusable)} unusable"
            + (f", first: {': '.join(report.unusable[0])}" if report.unusable else "")
        )


def _without_contradictions(pictures: list[Picture], report: Report) -> list[Picture]:
    """Drop, with a report, the pictures of `contradictions`."""
    refused = contradictions([picture.content for picture in pictures], [picture.kind for picture in pictures])
    for picture in pictures:
        if picture.content in refused:
            kinds = sorted(pictures[k].kind for k in refused[picture.content])
            report.reject(picture.name, f"the same pixels stand in classes {', '.join(kinds)}")
    return [picture for picture in pictures if picture.content not in refused]
