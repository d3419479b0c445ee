"""Small DICOM files, written element by element."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pydicom.uid
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.sequence import Sequence
from pydicom.uid import ExplicitVRLittleEndian, generate_uid

STRAIGHT = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)
SERIES = generate_uid(entropy_srcs=["series"])


def dataset(kind: Any = pydicom.uid.MRImageStorage, modality: str = "MR", **elements: Any) -> FileDataset:
    """A DICOM object of a class; None removes an element."""
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = kind
    meta.MediaStorageSOPInstanceUID = generate_uid()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    made = FileDataset("", {}, file_meta=meta, preamble=bytes(128))
    made.SOPClassUID, made.SOPInstanceUID = kind, meta.MediaStorageSOPInstanceUID
    made.PatientID, made.Modality = "p1", modality
    made.SeriesInstanceUID, made.StudyInstanceUID = SERIES, generate_uid(entropy_srcs=["study"])
    for key, value in elements.items():
        setattr(made, key, value)
    return made


def with_pixels(made: FileDataset, pixels: np.ndarray) -> FileDataset:
    """Put pixels (rows, columns) or (frames, rows, columns) into an object."""
    made.Rows, made.Columns = pixels.shape[-2:]
    made.SamplesPerPixel, made.PhotometricInterpretation = 1, made.get("PhotometricInterpretation", "MONOCHROME2")
    made.BitsAllocated = made.BitsStored = 8 * pixels.itemsize
    made.HighBit, made.PixelRepresentation = made.BitsStored - 1, int(pixels.dtype.kind == "i")
    made.PixelData = pixels.tobytes()
    return made


def save(made: FileDataset, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    made.save_as(path, enforce_file_format=True)
    return path


def write_slice(
    path: Path, pixels: np.ndarray, position: Any = (0, 0, 0), orientation: Any = STRAIGHT, spacing: Any = (1.5, 1.0),
    **elements: Any,
) -> Path:  # fmt: skip
    """One MR slice, pixels (rows, columns)."""
    place = {"ImagePositionPatient": list(position), "ImageOrientationPatient": list(orientation),
             "PixelSpacing": list(spacing)}  # fmt: skip
    made = dataset(**{**place, **elements})
    for key in [key for key, value in elements.items() if value is None]:
        delattr(made, key)
    return save(with_pixels(made, pixels), path)


def enhanced(pixels: np.ndarray, positions: Any, orientation: Any = STRAIGHT, scales: Any = None) -> FileDataset:
    """An enhanced MR object; pixels (frames, rows, columns) in the order of the positions."""

    def item(**elements: Any) -> Dataset:
        made = Dataset()
        for key, value in elements.items():
            setattr(made, key, value)
        return made

    made = with_pixels(dataset(pydicom.uid.EnhancedMRImageStorage, NumberOfFrames=len(pixels)), pixels)
    measures = item(PixelSpacing=[1.5, 1.0], SliceThickness=3.0)
    shared = item(
        PlaneOrientationSequence=Sequence([item(ImageOrientationPatient=list(orientation))]),
        PixelMeasuresSequence=Sequence([measures]),
    )
    frames = []
    for k, position in enumerate(positions):
        frame = item(PlanePositionSequence=Sequence([item(ImagePositionPatient=list(position))]))
        if scales is not None:
            frame.PixelValueTransformationSequence = Sequence(
                [item(RescaleSlope=scales[k], RescaleIntercept=0, RescaleType="US")]
            )
        frames.append(frame)
    made.SharedFunctionalGroupsSequence = Sequence([shared])
    made.PerFrameFunctionalGroupsSequence = Sequence(frames)
    return made
