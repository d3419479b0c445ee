"""Datalist of 2D slices of NIfTI volumes: `<patient>/*flair*.nii.gz` with `<patient>/*seg*.nii.gz`."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from fnmatch import fnmatch
from pathlib import Path

import nibabel as nib
import numpy as np
from nibabel.filebasedimages import ImageFileError
from numpy.typing import NDArray
from skimage.filters import threshold_otsu
from tqdm import tqdm

from scripts.datalists.schema import DEFAULT_FRACTIONS, Datalist, Item, Report, assemble

logger = logging.getLogger(__name__)

ORIENTATION = "LPS"


def load_oriented(path: Path | str, axis_codes: str = ORIENTATION) -> tuple[NDArray, NDArray[np.float64]]:
    """Read a NIfTI volume with its axes permuted and flipped to the given codes, without interpolation.

    In LPS the indices rise to the patient's left, to posterior and to superior: nibabel's `as_closest_canonical`, but
    to LPS in place of RAS, and what MONAI's `Orientation(axcodes="LPS")` gives.

    Returns:
        The array (X, Y, Z), scaled by the header, and the 4 x 4 affine (mm, RAS world) that goes with it.

    Raises:
        ValueError: when the file is no NIfTI image of three dimensions.
        OSError: when it cannot be read.
    """
    try:
        image = nib.load(path)
        data = np.asarray(image.dataobj)  # type: ignore[attr-defined]
    except (ImageFileError, EOFError) as error:
        raise ValueError(f"{Path(path).name} is no readable NIfTI file: {error}") from error
    if data.ndim == 4 and data.shape[3] == 1:
        data = data[..., 0]
    if data.ndim != 3:
        raise ValueError(f"{Path(path).name} has {data.ndim} dimensions {data.shape}, expected 3")
    affine = image.affine  # type: ignore[attr-defined]
    turn = nib.orientations.ornt_transform(
        nib.orientations.io_orientation(affine), nib.orientations.axcodes2ornt(tuple(axis_codes))
    )
    oriented = nib.orientations.apply_orientation(data, turn)
    return oriented, affine @ nib.orientations.inv_ornt_aff(turn, data.shape)


def choose_slices(
    tumor_area: NDArray[np.float64],
    foreground_share: NDArray[np.float64],
    tumor_slices: int,
    normal_slices: int,
    min_tumor_area: float,
    min_foreground: float,
    margin: int = 1,
) -> tuple[list[int], list[int]]:
    """Choose slices of one volume, spread evenly over those that qualify.

    A tumor slice has at least `min_tumor_area`; a normal one has no tumor pixel, nor has a slice up to `margin` away.
    Both have at least `min_foreground`. Slices with less tumor than the minimum are neither.

    Args:
        tumor_area: (Z,) share of tumor pixels of each slice.
        foreground_share: (Z,) share of pixels of the head of each slice.
        tumor_slices: at most so many slices with tumor.
        normal_slices: at most so many without.
        min_tumor_area: share of the slice, more than 0.
        min_foreground: share of the slice.
        margin: slices between tumor and a normal slice.

    Returns:
        Indices of tumor slices, and of normal slices, each rising.
    """
    head = foreground_share >= min_foreground
    touched = np.convolve(tumor_area > 0, np.ones(2 * margin + 1), mode="same") > 0.5
    if 2 * margin + 1 > len(tumor_area):  # numpy would return the kernel's length
        touched = np.full(len(tumor_area), bool((tumor_area > 0).any()))

    def spread(candidates: NDArray, count: int) -> list[int]:
        if len(candidates) <= count:
            return candidates.tolist()
        # Middles of `count` equal stretches, so that the ends are not always chosen.
        return candidates[((np.arange(count) + 0.5) * len(candidates) / count).astype(int)].tolist()

    return (
        spread(np.nonzero(head & (tumor_area >= min_tumor_area))[0], tumor_slices),
        spread(np.nonzero(head & ~touched)[0], normal_slices),
    )


def _one_file(folder: Path, pattern: str, what: str) -> Path:
    """The one file that matches; a patient's name in front is not looked at, as it may hold 'seg' or 'flair' itself."""
    names = {path: path.name.lower().removeprefix(folder.name.lower()) for path in folder.iterdir() if path.is_file()}
    files = sorted(path for path, name in names.items() if fnmatch(name, pattern.lower()))
    if len(files) != 1:
        raise ValueError(f"expected one {what} file {pattern!r}, found {len(files)}: {[path.name for path in files]}")
    return files[0]


def _case(folder: Path, image_pattern: str, label_pattern: str) -> tuple[Path, Path, NDArray, NDArray]:
    """Files of one patient, and per slice (LPS, last axis) the share of tumor and of head pixels."""
    image, label = _one_file(folder, image_pattern, "image"), _one_file(folder, label_pattern, "mask")
    if image == label:
        raise ValueError(f"{image.name} matches both {image_pattern!r} and {label_pattern!r}")
    scan, scan_affine = load_oriented(image)
    mask, mask_affine = load_oriented(label)
    if scan.shape != mask.shape or not np.allclose(scan_affine, mask_affine, atol=1e-2):
        raise ValueError(f"{image.name} {scan.shape} and {label.name} {mask.shape} are not on the same grid")
    if not np.isfinite(scan).all() or scan.min() == scan.max():
        raise ValueError(f"{image.name} is constant or not finite")
    # Masks may be float with a maximum of 0.99999997; any label from 1 up is tumor.
    tumor = (mask > 0.5).mean(axis=(0, 1))
    head = (scan > threshold_otsu(scan[::2, ::2])).mean(axis=(0, 1))
    return image, label, tumor, head


def nifti_cases(
    folder: Path | str,
    *,
    name: str | None = None,
    root: Path | str | None = None,
    seed: int = 0,
    fractions: Sequence[float] = DEFAULT_FRACTIONS,
    classes: Sequence[str] = ("no_tumor", "tumor"),
    tumor_slices: int = 5,
    normal_slices: int = 3,
    min_tumor_area: float = 0.003,
    min_foreground: float = 0.10,
    image_pattern: str = "*flair*.nii*",
    label_pattern: str = "*seg*.nii*",
    modality: str = "FLAIR",
    progress: bool = True,
) -> tuple[Datalist, Report]:
    """Build a datalist of 2D axial slices of `folder/<patient>/`, split by patient, stratified by having a tumor.

    `slice` counts along the last axis after orienting the volume to LPS (`load_oriented`). Each volume is read once.
    `diagnosis` is the slice's own: 1 with tumor in it, 0 without.

    Args:
        folder: holds one folder per patient.
        name: of the datalist and source; the folder's name if not given.
        root: `dataset_dir`, to which paths are relative; `folder` if not given.
        seed: of the split.
        fractions: shares of training, validation and test, of the patients' slices.
        classes: names of no tumor and tumor.
        tumor_slices: at most so many slices with tumor per patient, see `choose_slices`.
        normal_slices: at most so many slices without tumor per patient, with or without a tumor elsewhere.
        min_tumor_area: share of a slice's pixels from which it counts as a tumor slice.
        min_foreground: share of a slice's pixels that must be brighter than Otsu's threshold of the volume.
        image_pattern: file name pattern of the image, case ignored; exactly one file must match.
        label_pattern: file name pattern of the mask, case ignored; exactly one file must match.
        modality: what the images are.
        progress: show a progress bar.

    Returns:
        The datalist, and the report: what could not be used and why, and figures.

    Raises:
        FileNotFoundError: when there is no such folder.
        ValueError: when classes are not two, `folder` is outside `root`, no patient can be used, or too few to split.
    """
    folder = Path(folder)
    root = folder if root is None else Path(root)
    name = name or folder.resolve().name
    if len(classes) != 2:
        raise ValueError(f"a mask tells tumor from none: expected two classes, got {list(classes)}")
    if not folder.is_dir():
        raise FileNotFoundError(f"no folder {folder}; expected one folder per patient in it")
    if not folder.is_relative_to(root):
        raise ValueError(f"{folder} is not inside the dataset folder {root}")
    report, items, strata = Report(), [], {}
    entries = [path for path in sorted(folder.iterdir()) if not path.name.startswith(".")]
    for path in tqdm(entries, desc=name, unit="patient", disable=not progress):
        try:
            if not path.is_dir():
                raise ValueError("not in a patient's folder")
            image, label, tumor, head = _case(path, image_pattern, label_pattern)
            chosen = choose_slices(tumor, head, tumor_slices, normal_slices, min_tumor_area, min_foreground)
            if not any(chosen):
                raise ValueError(
                    f"no slice has {min_foreground:g} of head with {min_tumor_area:g} of tumor or none at all "
                    f"(most head {head.max():.3f}, most tumor {tumor.max():.4f})"
                )
        except (ValueError, OSError) as error:
            report.reject(path.relative_to(folder).as_posix(), str(error))
            continue
        base: Item = {"image": image.relative_to(root).as_posix(), "label": label.relative_to(root).as_posix()}
        for diagnosis, indices in ((1, chosen[0]), (0, chosen[1])):
            for k in indices:
                items.append({**base, "diagnosis": diagnosis, "patient": path.name, "source": name, "slice": int(k)})
        strata[f"patient {path.name}"] = "tumor" if tumor.any() else "healthy"
    if not items:
        raise ValueError(
            f"no usable patient among {len(entries)} entries of {folder}"
            + (f", first: {': '.join(report.unusable[0])}" if report.unusable else "")
        )
    report.figures = {
        "patients": len(strata),
        "healthy_patients": sum(stratum == "healthy" for stratum in strata.values()),
        "tumor_slices": sum(item["diagnosis"] for item in items),
        "normal_slices": sum(item["diagnosis"] == 0 for item in items),
        "unusable": len(report.unusable),
    }
    return assemble(name, classes, items, fractions, modality=modality, seed=seed, strata=strata), report
