"""Read DICOM: only objects that are slices of anatomy, each frame in its place."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from pydicom.dataset import Dataset
from pydicom.uid import RE_VALID_UID, UID

from transforms.dicom_elements import quietly, read_elements
from transforms.dicom_pixels import read_frames
from transforms.limits import ReadLimits, Refused, refused

# Objects whose pixels are slices of a body; every other class and modality is refused.
_SLICES = {
    pydicom.uid.MRImageStorage, pydicom.uid.EnhancedMRImageStorage, pydicom.uid.LegacyConvertedEnhancedMRImageStorage,
    pydicom.uid.CTImageStorage, pydicom.uid.EnhancedCTImageStorage, pydicom.uid.LegacyConvertedEnhancedCTImageStorage,
    pydicom.uid.PositronEmissionTomographyImageStorage, pydicom.uid.EnhancedPETImageStorage,
    pydicom.uid.LegacyConvertedEnhancedPETImageStorage,
}  # fmt: skip
_MODALITIES = ("MR", "CT", "PT")
# Distances of slices may differ by this share; beyond it a slice is missing.
_MAX_UNEVEN = 0.1
# A stack may lean this far from the normal of its slices, as a share of the distance (3 degrees).
_MAX_TILT = 0.05
_MAX_FRAMES = 1 << 16  # looked at before the pixels are
_GROUPS = (b"\x02\x00", b"\x08\x00", b"\x00\x02", b"\x00\x08")
_ABOUT = ("PatientID", "Modality", "SeriesInstanceUID")
# All that is looked at of a header: nothing else of a file is held.
_READ = (
    *_ABOUT, "SOPClassUID", "DirectoryRecordSequence", "ImageType", "BurnedInAnnotation", "Rows", "Columns",
    "NumberOfFrames", "SamplesPerPixel", "PhotometricInterpretation", "ImagePositionPatient",
    "ImageOrientationPatient", "PixelSpacing", "SpacingBetweenSlices", "SliceThickness", "RescaleSlope",
    "RescaleIntercept", "SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence",
)  # fmt: skip


@dataclass
class Header:
    """What the header of one DICOM file says, and where each of its frames lies.

    Attributes:
        path: the file.
        about: text of a few elements by keyword ("PatientID", "Modality", ...); "" where one is not there.
        columns, rows: of each frame.
        positions: (F, 3) place of the first pixel of each frame, LPS+ mm.
        directions: (F, 6) cosines of the rows and columns.
        spacing: (F, 2) mm between rows and between columns.
        thickness: mm between slices as stated, for a single one.
        scale: factor and summand from stored values to those that are meant.
    """

    path: str
    about: dict[str, str]
    columns: int
    rows: int
    positions: np.ndarray
    directions: np.ndarray
    spacing: np.ndarray
    thickness: float
    scale: tuple[float, float]

    @property
    def uid(self) -> str:
        """UID of the series; "" where it is missing or malformed."""
        uid = self.about["SeriesInstanceUID"]
        return uid if re.fullmatch(RE_VALID_UID, uid) else ""

    @property
    def series(self) -> tuple[Any, ...]:
        """What all files of a stack share: series, matrix and direction of the slices."""
        directions = np.round(self.directions[0].astype(float), 3)
        return self.about["SeriesInstanceUID"], self.rows, self.columns, tuple(directions.tolist())


def is_dicom(head: bytes) -> bool:
    """Whether the first bytes are those of a DICOM file, with the preamble or without (it may hold a TIFF header)."""
    if head[128:132] == b"DICM":
        return True
    if head[:2] not in _GROUPS or len(head) < 8:
        return False
    explicit = head[4:6].isalpha() and head[4:6].isupper()
    length = int.from_bytes(head[4:8], "little" if head[0] else "big")
    return explicit or (0 < length < 1 << 16 and length % 2 == 0)


def read_header(path: str | os.PathLike[str]) -> Header:
    """Read the header of a DICOM file.

    Raises:
        ValueError: When it is no slice of anatomy (by its class or modality), is in color or a mosaic, does not say
            where its pixels lie, or is damaged. Names the file and says what to do.
    """
    dataset = read_elements(path, _READ)
    with quietly():
        try:
            _refuse_others(dataset, path)
            return _header(dataset, path)
        except Refused:
            raise
        except Exception as error:  # pydicom raises many kinds on damaged elements; all mean the same here
            raise refused(path, "is a damaged DICOM file", "copy or export it again") from error


def _refuse_others(dataset: Dataset, path: str | os.PathLike[str]) -> None:
    """Raise for what is no gray slice of a body."""
    meta = getattr(dataset, "file_meta", Dataset())
    uid = UID(str(dataset.get("SOPClassUID", "") or meta.get("MediaStorageSOPClassUID", "")))
    modality = str(dataset.get("Modality", "") or "")
    if uid == pydicom.uid.MediaStorageDirectoryStorage or "DirectoryRecordSequence" in dataset:
        raise refused(path, "is a DICOMDIR, the index of a medium", "give the folder of one series")
    name = (uid.name if uid.is_valid else "a class that is none") if uid else "no class stated"
    if (uid and uid not in _SLICES and not _has_place(dataset)) or modality not in _MODALITIES:
        raise refused(
            path,
            f"is a DICOM object of modality {_plain(modality) or 'not stated'} ({name}), no slice of MR, CT or PT",
            "give the series of the images",
        )
    if uid and uid not in _SLICES and uid != pydicom.uid.SecondaryCaptureImageStorage:
        raise refused(path, f"is a DICOM object of class {name}, no image of anatomy", "give the series of the images")
    if "Rows" not in dataset or "Columns" not in dataset:
        raise refused(path, "is a DICOM object without an image", "give the series of the images")
    colors, photometric = int(dataset.get("SamplesPerPixel", 1) or 1), str(dataset.get("PhotometricInterpretation", ""))
    if colors != 1 or not photometric.startswith("MONOCHROME"):
        raise refused(
            path, f"is in color ({_plain(photometric) or 'not stated'}), expected gray", "give the original series"
        )
    if str(dataset.get("BurnedInAnnotation", "")).strip().upper() == "YES":
        raise refused(path, "says that text is burned into its pixels", "give the series as the scanner sent it")
    if "MOSAIC" in [str(part).upper() for part in _parts(dataset.get("ImageType"))]:
        raise refused(
            path,
            "is a mosaic: a whole volume tiled into one picture",
            "convert it with dcm2niix and give the NIfTI file",
        )


def _plain(text: str) -> str:
    """A header value if it is a short code, else "": free text may hold a patient's name."""
    return text if len(text) <= 16 and text.isascii() and text.replace(" ", "").replace("_", "").isalnum() else ""


def _parts(value: Any) -> list[Any]:
    return [] if value is None else [value] if isinstance(value, str) else list(value)


def _has_place(dataset: Dataset) -> bool:
    return all(key in dataset for key in ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing"))


def _header(dataset: Dataset, path: str | os.PathLike[str]) -> Header:
    frames = int(str(dataset.get("NumberOfFrames", 1) or 1))
    if frames > _MAX_FRAMES:
        raise refused(
            path, f"says that it holds {frames:,} frames, at most {_MAX_FRAMES:,} are read", "export it again"
        )
    if frames > 1 and len(dataset.get("PerFrameFunctionalGroupsSequence") or []) != frames:
        raise refused(path, f"does not say where each of its {frames} frames lies", "give the original series")
    groups = [_frame_groups(dataset, k) for k in range(frames)]

    def element(k: int, sequence: str, key: str) -> Any:
        for holder in groups[k]:
            items = holder.get(sequence)
            if items and items[0].get(key) is not None:
                return items[0].get(key)
        return dataset.get(key) if frames == 1 else None

    geometry: list[list[Any]] = []
    for k in range(frames):
        values = [
            element(k, "PlanePositionSequence", "ImagePositionPatient"),
            element(k, "PlaneOrientationSequence", "ImageOrientationPatient"),
            element(k, "PixelMeasuresSequence", "PixelSpacing"),
        ]
        lengths = [0 if value is None else len(_parts(value)) for value in values]
        if lengths != [3, 6, 2]:
            raise refused(
                path,
                "does not say where its pixels lie (position, direction or spacing is missing"
                f"{f' in frame {k + 1}' if frames > 1 else ''})",
                "give the original series, or save single slices as PNG",
            )
        geometry.append([np.array([float(n) for n in value]) for value in values])
    scales = {_scale(group, dataset) for group in groups}
    if len(scales) > 1:
        raise refused(path, "holds frames of several intensity scales", "convert it with dcm2niix, give the NIfTI file")
    measures = element(0, "PixelMeasuresSequence", "SpacingBetweenSlices") or dataset.get("SpacingBetweenSlices")
    thickness = measures or element(0, "PixelMeasuresSequence", "SliceThickness") or dataset.get("SliceThickness") or 0
    positions, directions, spacing = (np.array([row[n] for row in geometry]) for n in range(3))
    across = np.cross(directions[0, :3], directions[0, 3:])
    sound = all(np.isfinite(values).all() for values in (positions, directions, spacing))
    if not sound or spacing.min() <= 0 or abs(np.linalg.norm(across) - 1) > 0.01:
        raise refused(path, "has a place that is none: its rows and columns are not at right angles, or have no size",
                       "give the original series")  # fmt: skip
    return Header(
        str(path),
        {key: str(dataset.get(key, "") or "").strip() for key in _ABOUT},
        int(dataset.Columns),
        int(dataset.Rows),
        positions,
        directions,
        spacing,
        float(thickness),
        scales.pop(),
    )


def _frame_groups(dataset: Dataset, frame: int) -> list[Dataset]:
    """The functional groups that hold for one frame, its own before the shared ones."""
    per_frame = dataset.get("PerFrameFunctionalGroupsSequence") or []
    shared = dataset.get("SharedFunctionalGroupsSequence") or []
    return [*per_frame[frame : frame + 1], *shared[:1]]


def _scale(groups: Sequence[Dataset], dataset: Dataset) -> tuple[float, float]:
    for holder in groups:
        items = holder.get("PixelValueTransformationSequence")
        if items:
            return float(items[0].get("RescaleSlope", 1)), float(items[0].get("RescaleIntercept", 0))
    return float(dataset.get("RescaleSlope", 1) or 1), float(dataset.get("RescaleIntercept", 0) or 0)


def find_stacks(folder: str | os.PathLike[str]) -> tuple[list[list[Header]], list[str]]:
    """Find the stacks of slices in a folder (not in folders inside): one for each series, matrix and direction.

    Returns:
        the headers of each, by names of the files, and why other DICOM files are no slices of anatomy.

    Raises:
        ValueError: When the folder cannot be read.
    """
    if not os.access(folder, os.R_OK | os.X_OK):
        raise refused(folder, "cannot be opened", "give yourself the right to read it")
    stacks: dict[tuple[Any, ...], list[Header]] = {}
    reasons = []
    for path in sorted(Path(folder).iterdir()):
        if not path.is_file() or path.name.startswith("."):
            continue
        with open(path, "rb") as file:
            if not is_dicom(file.read(132)):
                continue
        try:
            header = read_header(path)
        except ValueError as error:
            reasons.append(str(error))
            continue
        stacks.setdefault(header.series, []).append(header)
    return list(stacks.values()), reasons


def read_series(folder: str | os.PathLike[str], limits: ReadLimits) -> tuple[np.ndarray, np.ndarray, dict[str, str]]:
    """Read a folder that holds one DICOM series, straight or oblique.

    Returns:
        float32 (X, Y, Z), the 4x4 affine to RAS+ millimeters, and the text of a few elements, see `Header.about`.

    Raises:
        ValueError: When there is not exactly one series of slices of anatomy, it cannot be read or is too large, a
            slice is missing or doubled, or the stack leans. Names the folder and says what to do.
    """
    stacks, reasons = find_stacks(folder)
    if not stacks and reasons:
        raise ValueError(f"folder {folder} holds no DICOM series that is read here; first reason: {reasons[0]}")
    if len(stacks) != 1:
        raise ValueError(
            f"folder {folder} holds {len(stacks)} DICOM series, expected one; give its UID, or each a folder of its own"
            f"{'; found: ' if stacks else ''}{'; '.join(_in_words(headers) for headers in stacks)}"
        )
    headers = stacks[0]
    array, affine = _read_stack(headers, folder, limits)
    return array, affine, headers[0].about


def _in_words(headers: Sequence[Header]) -> str:
    """Size, modality and series of a stack, nothing about the patient."""
    first, count = headers[0], sum(len(header.positions) for header in headers)
    size = f"{first.rows} x {first.columns}"
    named = f"series {first.uid or 'without UID'} ({Path(first.path).name}, ...)"
    return f"{count} slices of {first.about['Modality']}, {size}, {named}"


def read_dicom(path: str | os.PathLike[str], limits: ReadLimits) -> tuple[np.ndarray, np.ndarray]:
    """Read one DICOM file, of one slice or of many (enhanced MR).

    Returns:
        float32 (X, Y, Z) and the 4x4 affine to RAS+ millimeters.

    Raises:
        ValueError: As `read_header` and `read_series`.
    """
    return _read_stack([read_header(path)], path, limits)


def _read_stack(
    headers: Sequence[Header], path: str | os.PathLike[str], limits: ReadLimits
) -> tuple[np.ndarray, np.ndarray]:
    first = headers[0]
    positions = np.concatenate([header.positions for header in headers])
    directions = np.concatenate([header.directions for header in headers])
    spacing = np.concatenate([header.spacing for header in headers])
    limits.check_volume(path, (first.columns, first.rows, len(positions)))
    if np.abs(directions - directions[0]).max() > 0.01 or np.abs(spacing / spacing[0] - 1).max() > 0.01:
        raise refused(path, "holds slices of several directions or pixel sizes", "give each stack a file of its own")
    across = np.cross(directions[0, :3], directions[0, 3:])
    along = positions @ across
    order = np.argsort(along, kind="stable")
    distance = _distance(positions[order], along[order], across, first.thickness, path)
    affine = np.eye(4)
    affine[:3, 0] = directions[0, :3] * spacing[0, 1]
    affine[:3, 1] = directions[0, 3:] * spacing[0, 0]
    affine[:3, 2] = across * distance
    affine[:3, 3] = positions[order[0]]
    array = np.concatenate([_pixels(header) for header in headers])[order].T
    return array, np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine


def _distance(
    positions: np.ndarray, along: np.ndarray, across: np.ndarray, stated: float, path: str | os.PathLike[str]
) -> float:
    """Distance of the slices in mm; what is not evenly and squarely stacked is refused."""
    if len(along) == 1:
        return stated if stated > 0 else 1.0
    steps = np.diff(along)
    distance = float((along[-1] - along[0]) / (len(along) - 1))
    if steps.min() < 1e-3:
        raise refused(
            path, f"holds {int((steps < 1e-3).sum()) + 1} slices at one place: several echoes, times or directions, "
            f"or a slice is missing or doubled", "give each volume a folder of its own",
        )  # fmt: skip
    uneven = float(steps.max() - steps.min())
    if uneven > _MAX_UNEVEN * float(np.median(steps)):
        raise refused(
            path, f"is a DICOM series of which a slice is missing or doubled: distances differ by {uneven:.3g} mm at "
            f"{len(along)} slices", "export the whole series",
        )  # fmt: skip
    drift = (positions[-1] - positions[0]) - across * (along[-1] - along[0])
    if np.linalg.norm(drift) > _MAX_TILT * (along[-1] - along[0]):
        degrees = np.degrees(np.arctan2(np.linalg.norm(drift), along[-1] - along[0]))
        raise refused(path, f"is a stack that leans by {degrees:.1f} degrees (tilted gantry)",
                      "convert it with dcm2niix, which makes it straight")  # fmt: skip
    return distance


def _pixels(header: Header) -> np.ndarray:
    """Frames of one file, float32 (F, rows, columns), in the file's order, on the scale that the header states."""
    array = read_frames(header.path, len(header.positions), header.rows, header.columns)
    with np.errstate(all="ignore"):
        array = header.scale[0] * array + header.scale[1]
    if not np.isfinite(array).all():
        raise refused(header.path, f"has a scale of intensity that is none ({header.scale})", "export it again")
    return array
