"""Read one image file, whatever its name says: the content decides the format."""

from __future__ import annotations

import gzip
import os
import threading
import zlib
from collections import OrderedDict
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from monai.transforms import LoadImage
from PIL import Image, UnidentifiedImageError

_PICTURES = (b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"BM", b"GIF8", b"II*\0", b"MM\0*")
_HEADER_SIZES = {348: nib.Nifti1Image, 540: nib.Nifti2Image}


def file_kind(path: str | os.PathLike[str]) -> str:
    """Tell ``"picture"`` (PNG, JPEG, ...), ``"nifti"`` (compressed or not) or ``"other"`` from the first bytes.

    Raises:
        ValueError: When the file does not exist, cannot be opened, or is empty.
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
    if head.startswith(_PICTURES):
        return "picture"
    if head.startswith(b"\x1f\x8b"):
        head = zlib.decompressobj(31).decompress(head)
    sizes = {int.from_bytes(head[:4], "little"), int.from_bytes(head[:4], "big")}
    return "nifti" if sizes & set(_HEADER_SIZES) else "other"


def read_picture(path: str | os.PathLike[str], brightest: bool = False) -> np.ndarray:
    """Read a PNG, JPEG, ... of any mode as one gray channel.

    Colors become luminance, transparency shows black, palettes are resolved, 16-bit and float values are kept.

    Args:
        path: the file.
        brightest: take the brightest color channel in place of the luminance (masks may be drawn in red).

    Returns:
        float32 (X, Y), X along the width (MONAI's convention), in the file's own range (mode "1": 0 and 1).

    Raises:
        ValueError: When the file cannot be decoded.
    """
    try:
        with Image.open(path) as image:
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
    """Read a NIfTI file (``kind="nifti"``), or what else MONAI's readers know (DICOM folder, MHA, NRRD, ...).

    Returns:
        float32 (X, Y[, Z[, C]]) in the file's own orientation, and its 4x4 affine to RAS+ millimeters.

    Raises:
        ValueError: When the file cannot be read.
    """
    try:
        if kind == "nifti":
            content = Path(path).read_bytes()
            if content.startswith(b"\x1f\x8b"):
                content = gzip.decompress(content)
            size = int.from_bytes(content[:4], "little")
            image = _HEADER_SIZES.get(size, nib.Nifti2Image if size == 0x1C020000 else nib.Nifti1Image).from_bytes(
                content
            )
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
