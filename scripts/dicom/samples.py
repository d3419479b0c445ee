"""Series of drawn heads as a scanner would send them, to try an archive with."""

from __future__ import annotations

import uuid
from pathlib import Path

import numpy as np
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import UID, ExplicitVRLittleEndian, MRImageStorage

from scripts.phantoms.head import draw_head, render, with_tumor

__all__ = ["write_sample"]

SIZE = 128
SPACING_MM = 1.8
SLICES_MM = tuple(range(-30, 51, 5))


def write_sample(folder: Path, number: int) -> list[Path]:
    """Write one axial series; even numbers have a tumor.

    Args:
        folder: made if absent.
        number: of the patient; the same number gives the same files.

    Returns:
        the files, from the lowest slice to the highest.
    """
    rng = np.random.default_rng(number)
    person = draw_head(rng)
    if number % 2 == 0:
        person = with_tumor(person, rng, radius_mm=20.0)
    line = (np.arange(SIZE, dtype=np.float32) - (SIZE - 1) / 2) * np.float32(SPACING_MM)
    signal = render(person, line, line, np.array(SLICES_MM, np.float32)).signal
    noisy = np.hypot(signal + rng.normal(0, 0.02, signal.shape), rng.normal(0, 0.02, signal.shape))
    pixels = np.clip(noisy * 1000, 0, 4095).astype(np.uint16)
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for k, level in enumerate(SLICES_MM):
        made = _slice(number, k)
        made.ImagePositionPatient = [round(float(line[0]), 4), round(float(line[0]), 4), float(level)]
        made.PixelData = pixels[:, :, k].T.tobytes()
        paths.append(folder / f"{k:03d}.dcm")
        made.save_as(paths[-1], enforce_file_format=True)
    return paths


def _uid(*names: object) -> UID:
    return UID(f"2.25.{uuid.uuid5(uuid.NAMESPACE_OID, f'TumorLens sample {names}').int}")


def _slice(number: int, k: int) -> Dataset:
    made = Dataset()
    made.file_meta = FileMetaDataset()
    made.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    made.file_meta.MediaStorageSOPClassUID = made.SOPClassUID = MRImageStorage
    made.file_meta.MediaStorageSOPInstanceUID = made.SOPInstanceUID = _uid(number, k)
    made.StudyInstanceUID, made.SeriesInstanceUID = _uid(number, "study"), _uid(number, "series")
    made.FrameOfReferenceUID, made.PositionReferenceIndicator = _uid(number, "frame"), ""
    made.PatientName, made.PatientID = f"Phantom^Number {number}", f"PHANTOM-{number}"
    made.PatientBirthDate, made.PatientSex, made.ReferringPhysicianName = "", "O", ""
    made.StudyDate, made.StudyTime, made.StudyID, made.AccessionNumber = "20260101", "120000", str(number), ""
    made.Modality, made.Manufacturer, made.SeriesNumber, made.InstanceNumber = "MR", "TumorLens", 1, k + 1
    made.SeriesDescription, made.PatientPosition, made.BodyPartExamined = "drawn head, axial FLAIR", "HFS", "BRAIN"
    made.ImageType = ["ORIGINAL", "PRIMARY", "OTHER"]
    made.ScanningSequence, made.SequenceVariant, made.ScanOptions, made.MRAcquisitionType = "IR", "SK", "", "2D"
    made.EchoTime, made.RepetitionTime, made.InversionTime, made.EchoTrainLength = 120, 9000, 2500, 16
    made.SliceThickness, made.PixelSpacing = 5, [SPACING_MM, SPACING_MM]
    made.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
    made.Rows = made.Columns = SIZE
    made.SamplesPerPixel, made.PhotometricInterpretation, made.PixelRepresentation = 1, "MONOCHROME2", 0
    made.BitsAllocated, made.BitsStored, made.HighBit = 16, 16, 15
    return made
