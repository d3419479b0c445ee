"""Read one image file, whatever its name says: the content decides the format."""

from __future__ import annotations

import gzip
import os
import threading
import zlib
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import itk
import nibabel as nib
import numpy as np
from monai.transforms import LoadImage
from PIL import Image, UnidentifiedImageError

# What names of images end with; the content decides all the same. Pictures with the format that Pillow calls them.
PICTURE_SUFFIXES = {
    ".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".bmp": "BMP", ".tif": "TIFF", ".tiff": "TIFF", ".gif": "GIF",
    ".webp": "WEBP", ".jp2": "JPEG2000", ".j2k": "JPEG2000",
}  # fmt: skip
VOLUME_SUFFIXES = (".nii", ".nii.gz", ".mha", ".mhd", ".nrrd", ".mgz", ".mgh")
_PICTURES = (
    b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"BM", b"GIF8", b"II*\0", b"MM\0*",
    b"\0\0\0\x0cjP  \r\n", b"\xff\x4f\xff\x51",  # JPEG 2000: in a container, bare
)  # fmt: skip
_MGH = b"\0\0\0\1"  # version 1 of FreeSurfer's format, big endian
_HEADER_SIZES = {348: nib.Nifti1Image, 540: nib.Nifti2Image}
# ITK reports by how many millimeters slice distances differ; beyond this share of the distance a slice is missing.
_MAX_UNEVEN = 0.1


def file_kind(path: str | os.PathLike[str]) -> str:
    """Tell ``"picture"`` (PNG, JPEG, ...), ``"nifti"`` (NIfTI, MGH; compressed or not) or ``"other"`` by the content.

    Raises:
        ValueError: When the file does not exist, cannot be opened, is empty, or is damaged at the start.
    """
    if Path(path).is_dir():
        return "other"
    try:
        with open(path, "rb") as file:
            head = file.read(512)
    except FileNotFoundError as error:
        raise ValueError(f"file {path} does not exist") from error
    except OSError as error:
        raise ValueError(f"file {path} cannot be opened: {error.strerror}") from error
    if not head:
        raise ValueError(f"file {path} is empty")
    if head.startswith(_PICTURES) or (head.startswith(b"RIFF") and head[8:12] == b"WEBP"):
        return "picture"
    if head.startswith(b"\x1f\x8b"):
        try:
            head = zlib.decompressobj(31).decompress(head)
        except zlib.error as error:
            raise ValueError(f"file {path} is damaged: {error}") from error
    sizes = {int.from_bytes(head[:4], "little"), int.from_bytes(head[:4], "big")}
    return "nifti" if sizes & set(_HEADER_SIZES) or head.startswith(_MGH) else "other"


def read_picture(path: str | os.PathLike[str], brightest: bool = False) -> np.ndarray:
    """Read a PNG, JPEG, ... of any mode as one gray channel.

    Colors become luminance, transparency shows black, palettes are resolved, 16-bit and float values are kept.

    Args:
        path: the file.
        brightest: take the brightest color channel in place of the luminance (masks may be drawn in red).

    Returns:
        float32 (X, Y), X along the width (MONAI's convention), in the file's own range (mode "1": 0 and 1).

    Raises:
        ValueError: When the file cannot be decoded, or holds several frames.
    """
    try:
        with Image.open(path) as image:
            frames = getattr(image, "n_frames", 1)
            if frames > 1:
                raise ValueError(f"it holds {frames} frames, expected one picture; save the frames one by one")
            image.load()
            pixels = _gray(image, brightest)
    except (OSError, SyntaxError, ValueError, UnidentifiedImageError, Image.DecompressionBombError) as error:
        raise ValueError(f"file {path} cannot be read as a picture: {error}") from error
    return np.ascontiguousarray(pixels.T, dtype=np.float32)


def _gray(image: Image.Image, brightest: bool) -> np.ndarray:
    if image.mode in ("1", "L", "F") or image.mode.startswith("I"):
        return np.asarray(image)
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, (0, 0, 0, 255)), image)
    image = image.convert("RGB")
    return np.asarray(image).max(axis=2) if brightest else np.asarray(image.convert("L"))


def read_volume(path: str | os.PathLike[str], kind: str) -> tuple[np.ndarray, np.ndarray]:
    """Read a NIfTI file (``kind="nifti"``), a folder of one DICOM series, or what else MONAI's readers know (MHA, ...).

    Returns:
        float32 (X, Y[, Z[, C]]) in the file's own orientation, and its 4x4 affine to RAS+ millimeters.

    Raises:
        ValueError: When the file cannot be read, or its affine says nothing (zero, singular, not finite).
    """
    if Path(path).is_dir():
        array, affine, _ = read_series(path)
        return array, affine
    array, affine = _read_file(path, kind)
    if not np.isfinite(affine).all() or abs(np.linalg.det(affine[:3, :3])) < 1e-9:
        raise ValueError(
            f"file {path} has no usable affine: its voxels have no size or direction "
            f"({np.array2string(affine[:3, :3], precision=3, separator=', ').replace(chr(10), '')}); mend the header"
        )
    return array, affine


def _read_file(path: str | os.PathLike[str], kind: str) -> tuple[np.ndarray, np.ndarray]:
    try:
        if kind == "nifti":
            content = Path(path).read_bytes()
            if content.startswith(b"\x1f\x8b"):
                content = gzip.decompress(content)
            size = int.from_bytes(content[:4], "little")
            default = nib.MGHImage if content.startswith(_MGH) else nib.Nifti1Image
            image = _HEADER_SIZES.get(size, nib.Nifti2Image if size == 0x1C020000 else default).from_bytes(content)
            return image.get_fdata(dtype=np.float32, caching="unchanged"), np.asarray(image.affine, np.float64)
        loaded = LoadImage(image_only=True, ensure_channel_first=True)(path)
        affine = np.eye(4)
        affine[: loaded.affine.shape[0], : loaded.affine.shape[1]] = loaded.affine.numpy()
        array = np.moveaxis(loaded.numpy().astype(np.float32), 0, -1)
        return (array[..., 0] if array.shape[-1] == 1 else array), affine
    except Exception as error:  # readers raise whatever they like on damaged files
        cause: BaseException = error
        while cause.__cause__ is not None:
            cause = cause.__cause__
        reason = (str(cause).strip().splitlines() or [type(cause).__name__])[0]
        raise ValueError(f"file {path} cannot be read as an image: {reason}") from error


@contextmanager
def _without_warnings() -> Iterator[None]:
    """Keep ITK quiet: what it warns of is an error of ours."""
    shown = itk.Object.GetGlobalWarningDisplay()
    itk.Object.SetGlobalWarningDisplay(False)
    try:
        yield
    finally:
        itk.Object.SetGlobalWarningDisplay(shown)


def series_files(folder: str | os.PathLike[str]) -> dict[str, list[str]]:
    """Find the DICOM series in a folder (not in folders inside), by ITK: series name to files in order of position.

    Raises:
        ValueError: When the folder cannot be read.
    """
    if not os.access(folder, os.R_OK | os.X_OK):
        raise ValueError(f"folder {folder} cannot be opened")
    names = itk.GDCMSeriesFileNames.New()
    names.SetUseSeriesDetails(True)  # splits a series number that holds several orientations or matrices
    with _without_warnings():
        names.SetDirectory(str(folder))
        return {uid: list(names.GetFileNames(uid)) for uid in names.GetSeriesUIDs()}


def read_series(folder: str | os.PathLike[str]) -> tuple[np.ndarray, np.ndarray, dict[str, str]]:
    """Read a folder that holds one DICOM series, straight or oblique, through ITK.

    Returns:
        float32 (X, Y, Z), the 4x4 affine to RAS+ millimeters (DICOM's and ITK's own axes are LPS+), and the text of the
        DICOM elements of the first file, by tag ("0010|0020" is the patient's number).

    Raises:
        ValueError: When there is not exactly one series, it cannot be read, is in color, or a slice is missing.
    """
    series = series_files(folder)
    if len(series) != 1:
        raise ValueError(
            f"folder {folder} holds {len(series)} DICOM series, expected one; give each series a folder of its own"
        )
    files = next(iter(series.values()))
    try:
        with _without_warnings():
            image = itk.imread(files)
            header = itk.GDCMImageIO.New()
            header.SetFileName(files[0])
            header.ReadImageInformation()
            tags = header.GetMetaDataDictionary()
            about = {key: str(tags[key]).strip() for key in tags.GetKeys() if "|" in key}
    except Exception as error:  # ITK raises RuntimeError with a page of C++ source lines
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise ValueError(f"DICOM series {folder} cannot be read: {reason[-1].strip()}") from error
    if image.GetNumberOfComponentsPerPixel() != 1:
        raise ValueError(
            f"DICOM series {folder} has {image.GetNumberOfComponentsPerPixel()} colors a pixel, expected 1"
        )
    spacing = np.asarray(image.GetSpacing(), np.float64)
    notes = image.GetMetaDataDictionary()
    uneven_key = "ITK_non_uniform_sampling_deviation"
    uneven_mm = float(notes[uneven_key]) if notes.HasKey(uneven_key) else 0.0
    if uneven_mm > _MAX_UNEVEN * spacing[-1]:
        raise ValueError(
            f"DICOM series {folder}: a slice is missing or doubled, distances differ by {uneven_mm:.3g} mm "
            f"at {len(files)} slices"
        )
    array = np.asarray(itk.array_from_image(image), np.float32).T
    affine = np.eye(4)
    affine[:3, :3] = itk.array_from_matrix(image.GetDirection()) * spacing
    affine[:3, 3] = np.asarray(image.GetOrigin())
    return (array[..., None] if array.ndim == 2 else array), np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine, about


def orient_lps(array: np.ndarray, affine: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Turn a volume so that its axes run to the patient's left, to posterior and to superior.

    Args:
        array: (X, Y, Z) or (X, Y, Z, C).
        affine: 4x4, voxel to RAS+ millimeters.
    """
    turn = nib.orientations.ornt_transform(nib.io_orientation(affine), nib.orientations.axcodes2ornt("LPS"))
    turned = nib.orientations.apply_orientation(array, turn)
    return turned, affine @ nib.orientations.inv_ornt_aff(turn, array.shape[:3])


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


volumes = _VolumeCache(size=6)  # four modalities, a label and a mask of one patient
