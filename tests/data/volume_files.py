"""Scans and masks of volumes as files: NIfTI, MetaImage, DICOM series."""

from __future__ import annotations

from pathlib import Path

import itk
import nibabel as nib
import numpy as np

from tests.transforms.images import disc, head

LPS = np.diag([-1.0, -1.0, 3.0, 1.0])
SHAPE = (48, 48, 16)


def scan(seed: int) -> np.ndarray:
    return head(SHAPE, 20, seed)[0]


def tumor(value: float = 1) -> np.ndarray:
    """A ball in slices 5 to 9."""
    return disc(SHAPE, 5, (20, 24, 7)).astype(np.float32) * value


def save(array: np.ndarray, path: Path, affine: np.ndarray = LPS) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".mha":
        image = itk.image_from_array(np.ascontiguousarray(np.asarray(array, np.float32).T))
        image.SetSpacing(np.abs(np.diag(affine))[:3].tolist())
        itk.imwrite(image, str(path))  # ITK's own axes are LPS
        return path
    nib.save(nib.Nifti1Image(np.asarray(array, np.float32), affine), path)
    return path


def write_series(folder: Path, array: np.ndarray, direction: np.ndarray, patient: str, kind: str = "MR") -> None:
    """A DICOM series of (X, Y, Z) with spacing 1 x 1.5 x 4 mm; file names do not tell the order."""
    folder.mkdir(parents=True)
    spacing, origin = np.array([1.0, 1.5, 4.0]), np.array([-10.0, 20.0, 30.0])
    for k in range(array.shape[2]):
        place = origin + direction[:, 2] * spacing[2] * k
        plane = itk.image_from_array(np.ascontiguousarray(array[:, :, k].T[None]).astype(np.int16))
        plane.SetSpacing(spacing.tolist())
        plane.SetOrigin(place.tolist())
        plane.SetDirection(itk.matrix_from_array(direction))
        tags = plane.GetMetaDataDictionary()
        uid = "1.2.3." + str(sum(map(ord, folder.as_posix())))
        tags["0008|0060"], tags["0010|0020"], tags["0020|000e"], tags["0020|000d"] = kind, patient, uid, uid + ".1"
        tags["0020|0032"] = "\\".join(f"{value:.6f}" for value in place)
        tags["0020|0037"] = "\\".join(f"{value:.8f}" for value in [*direction[:, 0], *direction[:, 1]])
        tags["0020|0013"] = str(k + 1)
        writer_io = itk.GDCMImageIO.New()
        writer_io.KeepOriginalUIDOn()
        writer = itk.ImageFileWriter.New(plane)
        writer.SetImageIO(writer_io)
        writer.SetFileName(str(folder / f"{(k * 7) % 17:03d}.dcm"))
        writer.Update()


def tilted(angle: float = 0.3) -> np.ndarray:
    c, s = np.cos(angle), np.sin(angle)
    return np.array([[1, 0, 0], [0, c, -s], [0, s, c]])
