"""Collections whose files are not one gray picture each: what is looked at is written as pictures and listed.

TCGA-LGG as color slices (before contrast, FLAIR, after contrast), and Cheng's brain tumors as `.mat` of MATLAB 7.3.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from scripts.data.datalists.near_duplicates import MAX_DISTANCE
from scripts.data.datalists.patients import Patients
from scripts.data.datalists.picture_plans import PictureFiles, Settings, plan_pictures
from scripts.data.datalists.plans import Builder, Plan
from scripts.data.datalists.schema import DEFAULT_FRACTIONS, Report
from scripts.data.datalists.walking import check_folder, walk

try:
    import h5py
except ImportError:  # the extra "mat": only this collection needs it, and says so
    h5py = None

_TCGA = re.compile(r"(?:.*/)?TCGA_[A-Z]{2}_[A-Z0-9]{4}_\d{8}_\d+\.tiff?$", re.IGNORECASE)
_MATLAB = b"MATLAB 7.3 MAT-file"
# Cheng's numbers of the tumors; there are no slices without one.
CLASSES = ("no_tumor", "meningioma", "glioma", "pituitary")


def is_tcga_slice(path: str) -> bool:
    """Whether a path is that of a slice of TCGA-LGG: `TCGA_CS_4941_19960909/TCGA_CS_4941_19960909_1.tif`."""
    return _TCGA.match(path) is not None


def unpack_folder(unpack: Path | str | None, root: Path | str | None, folder: Path) -> Path:
    """The folder that pictures are written to: `dataset_dir` of the list.

    Raises:
        ValueError: when it is not given, is not `root`, or lies in the folder of the images.
    """
    if unpack is None:
        raise ValueError("these images are written as pictures first: give the folder for them as unpack")
    if root is not None and Path(root) != Path(unpack):
        raise ValueError(f"these images are written to {unpack}, which is their dataset_dir: leave --root out")
    if Path(unpack).resolve().is_relative_to(folder.resolve()):
        raise ValueError(f"pictures would be written to {unpack}, among the images: give an --out outside {folder}")
    return Path(unpack)


def unpack_channel(folder: Path, target: Path, channel: int) -> Callable[[PictureFiles], PictureFiles]:
    """A function that writes one color of a picture, and its mask, below `target` and says where."""

    def prepare(picture: PictureFiles) -> PictureFiles:
        pixels = np.asarray(Image.open(picture.path))
        if pixels.ndim != 3 or pixels.shape[2] != 3:
            raise ValueError(f"has shape {pixels.shape}, expected three colors: before contrast, FLAIR, after contrast")
        image = _write(pixels[:, :, channel], (target / picture.path.relative_to(folder)).with_suffix(".png"))
        mask = None
        if picture.mask is not None:
            drawn = np.asarray(Image.open(picture.mask))
            mask = _write(drawn, (target / picture.mask.relative_to(folder)).with_suffix(".png"))
        return replace(picture, path=image, mask=mask)

    return prepare


def _write(pixels: NDArray[Any], path: Path) -> Path:
    """Write whole numbers of 8 or 16 bits as PNG, others as TIFF of float32; values stay as they are."""
    path.parent.mkdir(parents=True, exist_ok=True)
    low, high = float(pixels.min()), float(pixels.max())
    if low >= 0 and high <= 65535 and np.array_equal(pixels, np.rint(pixels)):
        Image.fromarray(pixels.astype(np.uint8 if high <= 255 else np.uint16)).save(path)
        return path
    path = path.with_suffix(".tif")
    Image.fromarray(pixels.astype(np.float32)).save(path)
    return path


@dataclass(frozen=True)
class _Slice:
    """A slice of Cheng's: number of the tumor, patient."""

    label: int
    patient: str


def is_matlab(path: Path) -> bool:
    """Whether a file is of MATLAB 7.3, by its content."""
    if path.suffix.lower() != ".mat" or not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(len(_MATLAB)) == _MATLAB


def _opened(path: Path) -> Any:
    if h5py is None:
        raise ValueError(f"{path.name} is read by h5py, which is not installed: pip install 'tumorlens[mat]'")
    try:
        return h5py.File(path, "r")
    except OSError as error:
        raise ValueError(f"{path.name} is damaged: {error}") from error


def _content(file: Any, name: str, path: Path) -> NDArray[Any]:
    if f"cjdata/{name}" not in file:
        raise ValueError(f"{path.name} holds no cjdata.{name}: it is no slice of this collection")
    return np.asarray(file[f"cjdata/{name}"][()])


def _read_about(path: Path) -> _Slice:
    with _opened(path) as file:
        label = int(_content(file, "label", path).flat[0])
        number = _content(file, "PID", path).ravel()
    if not 1 <= label < len(CLASSES):
        raise ValueError(f"{path.name} has the label {label}, expected 1 to {len(CLASSES) - 1}")
    text = "".join(chr(int(letter)) for letter in number) if number.dtype.kind == "u" else f"{number[0]:g}"
    if not text.strip():
        raise ValueError(f"{path.name} has an empty patient number (cjdata.PID)")
    return _Slice(label, text.strip())


def _unpack_slice(folder: Path, target: Path) -> Callable[[PictureFiles], PictureFiles]:
    """A function that writes image and mask of a slice below `target`; MATLAB counts down columns first."""

    def prepare(picture: PictureFiles) -> PictureFiles:
        with _opened(picture.path) as file:
            image, mask = _content(file, "image", picture.path).T, _content(file, "tumorMask", picture.path).T
        if image.shape != mask.shape or image.ndim != 2:
            raise ValueError(f"the image has shape {image.shape}, the mask {mask.shape}: expected two equal ones of 2")
        place = target / str(picture.kind) / picture.path.relative_to(folder).with_suffix(".png")
        drawn = ((mask > 0) * 255).astype(np.uint8)
        return replace(
            picture, path=_write(image, place), mask=_write(drawn, place.with_name(f"{place.stem}_mask.png"))
        )

    return prepare


@Builder
def cheng(
    folder: Path | str,
    *,
    name: str | None = None,
    root: Path | str | None = None,
    limit: int | None = None,
    seed: int = 0,
    fractions: Sequence[float] = DEFAULT_FRACTIONS,
    max_distance: int = MAX_DISTANCE,
    modality: str = "T1ce",
    unpack: Path | str | None = None,
    progress: bool = True,
) -> Plan:
    """Build a datalist of Cheng's brain tumors: 3,064 slices of 233 patients as `.mat` files of MATLAB 7.3.

    Each file holds an image, the mask of its tumor, the kind of tumor and the patient. Image and mask are written to
    `unpack` as pictures, with the values that they have. No slice is without a tumor: merge the list with another.

    Args:
        folder, name, root, limit, seed, fractions, max_distance, modality, progress: as in `image_folder`.
        unpack: folder for the pictures.

    Raises:
        FileNotFoundError: when there is no such folder.
        ValueError: when no file can be used, no `unpack` is given, or h5py is not installed.
    """
    folder, _ = check_folder(folder, None)
    target = unpack_folder(unpack, root, folder)
    report = Report()
    known: dict[Path, _Slice] = {}
    for path in walk(folder, report):
        relative_path = path.relative_to(folder).as_posix()
        if not is_matlab(path):
            report.reject(relative_path, "no .mat file of MATLAB 7.3")
            continue
        try:
            known[path] = _read_about(path)
        except ValueError as error:
            report.reject(relative_path, str(error))
    if not known:
        first = f", first: {': '.join(report.unusable[0])}" if report.unusable else ""
        raise ValueError(f"{folder} holds no usable .mat file: {len(report.unusable)} cannot be used{first}")
    files = [
        PictureFiles(path, CLASSES[record.label], path)
        for path, record in sorted(known.items(), key=lambda one: one[1].label)
    ]
    settings = Settings(
        folder, target, name or folder.resolve().name, limit, seed, fractions, max_distance, modality, progress
    )
    counts = Counter(one.kind for one in files)
    taken = [f"class {k} = {kind}: {counts[kind]} images" for k, kind in enumerate(CLASSES)]
    taken.append(f"image, mask and patient = cjdata.image, .tumorMask and .PID, written to {target}")
    of = {settings.where(path): record.patient for path, record in known.items()}
    people = Patients(of, settings.where(files[0].path), origin="cjdata.PID")
    return plan_pictures(files, CLASSES, people, settings, report, taken, _unpack_slice(folder, target))
