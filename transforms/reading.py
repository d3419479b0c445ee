"""Read one image file, whatever its name says: the content decides the format."""

from __future__ import annotations

import os
import threading
import zlib
from collections import OrderedDict
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pydicom

from transforms.dicom import is_dicom, read_dicom, read_series
from transforms.grids import orient
from transforms.itk_files import itk_format, read_itk
from transforms.limits import DEFAULT_LIMITS, ReadLimits, refused
from transforms.nifti import GZIP, MGH, header_size, pair_header, read_nifti, unpacked
from transforms.pictures import is_picture

# What names of volumes end with; the content decides all the same.
VOLUME_SUFFIXES = (".nii", ".nii.gz", ".mha", ".mhd", ".nrrd", ".mgz", ".mgh")
# Axes may differ from right angles by this much (the cosine of 87 degrees): more is a shear, no rotation.
_MAX_SHEAR = 0.05
_NOT_READ = {
    b"\x1f\x8b": "a gzipped file, and no NIfTI or MGH when unpacked",
    b"BZh": "a bzip2 file", b"PK\x03\x04": "a zip archive",
    b"\x89HDF": "an HDF5 file (MINC, MATLAB)", b"CDF": "a MINC file", b"# === DATA": "the header of a PAR/REC pair",
    b"TRACK": "a file of streamlines", b"mrtrix": "an MRtrix file", b"<?xml": "an XML file", b"MATLAB": "a MATLAB file",
    b"%PDF": "a PDF", b"{": "a text file", b"MATRIX": "an ECAT file",
}  # fmt: skip
_READ = "PNG, JPEG, BMP, TIFF, WebP, JPEG 2000, NIfTI, Analyze, MGH, MHA, NRRD or DICOM"


def file_kind(path: str | os.PathLike[str]) -> str:
    """Say by its first bytes what a file is, gzipped or not.

    Returns:
        "picture" (PNG, JPEG, ...), "nifti" (NIfTI, Analyze, MGH), "dicom", "MetaImage", "NRRD", or "other"; a folder is
        "dicom".

    Raises:
        ValueError: When the file does not exist, cannot be opened, is empty, or is damaged at the start.
    """
    if Path(path).is_dir():
        return "dicom"
    try:
        with open(path, "rb") as file:
            head = file.read(544)
    except FileNotFoundError as error:
        raise ValueError(f"file {path} does not exist; look at its name and folder") from error
    except OSError as error:
        raise refused(path, f"cannot be opened: {error.strerror}", "give yourself the right to read it") from error
    if not head:
        raise refused(path, "is empty", "copy or export it again")
    if is_dicom(head):  # before pictures: a DICOM file may begin with the header of a TIFF
        return "dicom"
    if is_picture(head):
        return "picture"
    if head.startswith(GZIP):
        try:
            head = zlib.decompressobj(31).decompress(head, 544)
        except zlib.error as error:
            raise refused(path, "is damaged: its gzip stream cannot be unpacked", "copy or export it again") from error
        if is_dicom(head):
            return "other"
    if header_size(head) or head.startswith(MGH) or pair_header(path):
        return "nifti"
    return itk_format(head) or "other"


def read_volume(
    path: str | os.PathLike[str], kind: str, limits: ReadLimits = DEFAULT_LIMITS
) -> tuple[np.ndarray, np.ndarray]:
    """Read a volume of the kind that `file_kind` says; of DICOM a folder of one series, or one file.

    Args:
        path: the file or folder.
        kind: as `file_kind` says.
        limits: what is larger is refused by its header, before anything is unpacked.

    Returns:
        float32 (X, Y[, Z[, C]]) in the file's own orientation, and its 4x4 affine to RAS+ millimeters.

    Raises:
        ValueError: When the file cannot be read or is too large, or its affine says nothing (zero, singular, not
            finite), is sheared, or its unit cannot be right. Names the file and says what to do.
    """
    try:
        array, affine = _read(path, kind, limits)
    except OSError as error:
        raise refused(path, f"cannot be opened: {error.strerror}", "give yourself the right to read it") from error
    except MemoryError as error:
        raise refused(path, "does not fit into memory", "cut it or resample it") from error
    if not np.isfinite(affine).all() or abs(np.linalg.det(_directions(affine))) < 0.1:
        raise ValueError(
            f"file {path} has no usable affine: its voxels have no size or direction "
            f"({np.array2string(affine[:3, :3], precision=3, separator=', ').replace(chr(10), '')}); fix the header"
        )
    angles = np.abs(_directions(affine).T @ _directions(affine) - np.eye(3)).max()
    if angles > _MAX_SHEAR:
        raise refused(
            path, f"is sheared: its axes stand {np.degrees(np.arccos(angles)):.0f} degrees to each other, expected 90",
            "resample it to a grid of right angles",
        )  # fmt: skip
    return array, affine


def is_located(path: str | os.PathLike[str]) -> bool:
    """Whether a volume says which way its axes lie; where it does not, readers assume something.

    Args:
        path: a file or folder that `read_volume` reads.
    """
    kind = file_kind(path)
    if kind == "nifti":
        head = unpacked(path, 544)
        codes = {348: head[252:256], 540: head[344:352]}.get(header_size(head), head[28:30])
        return any(codes)
    if kind == "NRRD":
        return b"space directions" in Path(path).read_bytes()[: 1 << 16].replace(b"\r", b"").partition(b"\n\n")[0]
    if kind == "dicom" and Path(path).is_file():
        dataset = pydicom.dcmread(path, stop_before_pixels=True, force=True)
        return "ImageOrientationPatient" in dataset or "SharedFunctionalGroupsSequence" in dataset
    return True


def _read(path: str | os.PathLike[str], kind: str, limits: ReadLimits) -> tuple[np.ndarray, np.ndarray]:
    if Path(path).is_dir():
        return read_series(path, limits)[:2]
    if kind == "nifti":
        return read_nifti(pair_header(path) or path, limits)
    if kind == "dicom":
        return read_dicom(path, limits)
    if kind in ("MetaImage", "NRRD"):
        return read_itk(path, kind, limits)
    with open(path, "rb") as file:
        head = file.read(16)
    known = next((name for magic, name in _NOT_READ.items() if head.startswith(magic)), "")
    what = f"it is {known}" if known else "its format is unknown"
    raise refused(path, f"cannot be read as an image: {what}", f"save it as one of {_READ}")


def _directions(affine: np.ndarray) -> np.ndarray:
    """Unit vectors of the axes as columns; 0 for an axis without length."""
    sizes = nib.affines.voxel_sizes(affine)
    return affine[:3, :3] / np.where(sizes > 1e-9, sizes, np.inf)


def orient_lps(array: np.ndarray, affine: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Turn a volume so that its axes run to the patient's left, to posterior and to superior; see `grids.orient`."""
    return orient(array, affine, "LPS")


class _VolumeCache:
    """The last few volumes in LPS, so that a volume is read once for all of its slices."""

    def __init__(self, size: int) -> None:
        self.size = size
        self._volumes: OrderedDict[Any, tuple[np.ndarray, np.ndarray]] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, path: str | os.PathLike[str], kind: str) -> tuple[np.ndarray, np.ndarray]:
        """Return array and affine; callers must not write into the array."""
        status = os.stat(path)
        key = (os.path.abspath(path), status.st_mtime_ns, status.st_size)
        with self._lock:  # held while reading: two threads never read the same volume twice
            if key in self._volumes:
                self._volumes.move_to_end(key)
                return self._volumes[key]
            array, affine = read_volume(path, kind)
            if array.ndim < 3:
                array = array[..., None]
            volume = orient_lps(array, affine)
            volume[0].setflags(write=False)
            self._volumes[key] = volume
            while len(self._volumes) > self.size:
                self._volumes.popitem(last=False)
            return volume


# Kinds of files in which masks are cropped to what they mark: those of 3D Slicer, and of MONAI Label from an archive.
CROPPED = ("NRRD",)
volumes = _VolumeCache(size=6)  # four modalities, a label and a mask of one patient
