"""Series that archives would take, of a head drawn in noise, in every orientation."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from pydicom.uid import generate_uid

from tests.transforms.dicom_files import write_slice

# As an archive's own: what a series says of its patient and study.
ABOUT = {
    "PatientName": "Doe^Jane",
    "PatientID": "MRN-4711",
    "PatientBirthDate": "19700102",
    "PatientSex": "F",
    "StudyDate": "20240305",
    "StudyTime": "101112",
    "StudyID": "S1",
    "AccessionNumber": "ACC-99",
    "ReferringPhysicianName": "House^Gregory",
    "FrameOfReferenceUID": generate_uid(entropy_srcs=["frame"]),
    "PositionReferenceIndicator": "",
    "Manufacturer": "Phantom",
    "SeriesNumber": 3,
    "ImageType": ["ORIGINAL", "PRIMARY", "M"],
    "ScanningSequence": "SE",
    "SequenceVariant": "NONE",
    "ScanOptions": "",
    "MRAcquisitionType": "2D",
    "EchoTime": "10",
    "EchoTrainLength": "1",
    "RepetitionTime": "500",
    "SliceThickness": 3.0,
    "Laterality": "",
}


def rotation(x: float, y: float, z: float) -> np.ndarray:
    """Turns about the axes in degrees, one after the other."""
    made = np.eye(3)
    for axis, degrees in enumerate((x, y, z)):
        c, s = np.cos(np.deg2rad(degrees)), np.sin(np.deg2rad(degrees))
        turn = np.eye(3)
        i, j = [k for k in range(3) if k != axis]
        turn[[i, i, j, j], [i, j, i, j]] = c, -s, s, c
        made = turn @ made
    return made


# Directions of the columns and rows (LPS), mm between rows and between columns, places of the slices in mm.
EVEN = tuple(3.0 * k for k in range(5))
STRAIGHT = np.eye(3)
GEOMETRIES: dict[str, tuple[np.ndarray, tuple[float, float], tuple[float, ...]]] = {
    "axial": (STRAIGHT, (1.0, 1.0), EVEN),
    "axial, oblong pixels": (STRAIGHT, (1.5, 0.8), EVEN),
    "axial, from head to foot": (STRAIGHT, (1.0, 1.0), EVEN[::-1]),
    "sagittal": (STRAIGHT[:, [1, 2, 0]], (1.0, 1.0), EVEN),
    "sagittal, rows upside down": (np.array([[0.0, 0, -1], [1, 0, 0], [0, -1, 0]]), (1.0, 1.0), EVEN),
    "coronal": (np.array([[1.0, 0, 0], [0, 0, 1], [0, -1, 0]]), (1.2, 1.0), EVEN),
    "oblique": (rotation(20, -9, 5), (1.5, 1.0), EVEN),
    "doubly oblique coronal": (rotation(70, 25, -15), (0.9, 1.1), EVEN),
    "rows and columns exchanged": (STRAIGHT[:, [1, 0, 2]] * [1, 1, -1], (1.0, 1.3), EVEN),
    "both turned over": (STRAIGHT * [-1, -1, 1], (1.0, 1.0), EVEN),
    "slices a little uneven": (STRAIGHT, (1.0, 1.0), (0.0, 3.02, 5.95, 9.0, 12.0)),
    "one slice": (STRAIGHT, (1.0, 1.0), (0.0,)),
}


def write_series(folder: Path, geometry: str, pixels: np.ndarray | None = None, **elements: object) -> Path:
    """Write one series; pixels (slices, rows, columns) in the order of the places; names are in no order of place."""
    turn, spacing, places = GEOMETRIES[geometry]
    if pixels is None:
        pixels = np.random.default_rng(0).integers(0, 4000, (len(places), 8, 6)).astype(np.uint16)
    across = np.cross(turn[:, 0], turn[:, 1])
    for k, place in enumerate(places):
        write_slice(
            folder / f"{(k * 7) % 11:02d}.dcm", pixels[k], np.array([-10.0, 20.0, 30.0]) + place * across,
            turn[:, :2].T.ravel(), spacing, **{**ABOUT, "InstanceNumber": k + 1, **elements},
        )  # fmt: skip
    return folder
