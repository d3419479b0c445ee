"""Files from strangers: bounded in bytes and content, known by content, stored under names of our own."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from bundle.upload_formats import FormatRefused, unpack_dicom, whole_metaimage, whole_nrrd
from transforms.limits import ReadLimits, TooLarge
from transforms.reading import file_kind

__all__ = ["KINDS", "UploadLimits", "UploadRefused", "in_form_words", "stored"]

KINDS = "PNG, JPEG, BMP, TIFF, WebP, JPEG 2000, NIfTI, MGH, MHA, NRRD, DICOM or a zip archive of one DICOM series"
_ZIP = b"PK\x03\x04"
# A single NIfTI file ends its header with one of these; the others would name a second file.
_NIFTI_MAGIC = {348: (344, b"n+1"), 540: (4, b"n+2")}


@dataclass(frozen=True)
class UploadLimits:
    """What the service accepts.

    Attributes:
        bytes: of one file, as sent.
        unpacked_bytes: of a zip archive once unpacked.
        files: in a zip archive.
        read: of the image that a file says it holds; looked at before anything is unpacked.
    """

    bytes: int = 64 << 20
    unpacked_bytes: int = 512 << 20
    files: int = 2048
    read: ReadLimits = field(default_factory=lambda: ReadLimits(pixels=16 << 20, voxels=64 << 20, side=4096))


class UploadRefused(ValueError):
    """An upload that is not processed.

    Attributes:
        status: of HTTP: 413 too large, 415 not an image that is read here, 422 damaged or unfit.
    """

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status = status


@contextmanager
def stored(data: bytes, limits: UploadLimits) -> Iterator[Path]:
    """Check what an upload is and keep it in a temporary file, whose name nothing of the request decides.

    How large the image is that it holds is looked at when it is read, see `transforms.limits.ReadLimits`.

    Args:
        data: the file's content.
        limits: see `UploadLimits`.

    Yields:
        the file, or the folder of a DICOM series; it is deleted afterwards.

    Raises:
        UploadRefused: when the content is empty, too large, damaged at the start, names another file, or is none of
            `KINDS`.
    """
    if not data:
        raise UploadRefused(422, "the file is empty")
    if len(data) > limits.bytes:
        raise UploadRefused(413, f"the file is larger than {limits.bytes >> 20} MiB")
    with tempfile.TemporaryDirectory(prefix="upload") as folder:
        path = Path(folder) / "image"
        try:
            if data.startswith(_ZIP):
                path.mkdir()
                unpack_dicom(data, path, limits.files, limits.unpacked_bytes)
            else:
                path = _store(data, path)
        except TooLarge as error:
            raise UploadRefused(413, str(error)) from error
        except FormatRefused as error:
            raise UploadRefused(415, str(error)) from error
        except ValueError as error:
            raise UploadRefused(422, in_form_words(str(error), path, "the file")) from error
        yield path


def in_form_words(reason: str, path: Path, field_name: str) -> str:
    """A reason that names one of our temporary files, with the form's field in its place."""
    for prefix in ("file ", "folder ", ""):
        reason = reason.replace(f"{prefix}{path}", field_name)
    return reason


def _store(data: bytes, path: Path) -> Path:
    path.write_bytes(data)
    kind = file_kind(path)
    if kind == "other":
        raise FormatRefused(f"the file is no image that is read here; expected {KINDS}")
    if kind == "MetaImage":
        data = whole_metaimage(data)
    elif kind == "NRRD":
        data = whole_nrrd(data)
    elif kind == "nifti":
        _check_single(data)
    elif kind == "dicom" and b"1.2.840.10008.1.2.1.99" in data[:1024]:
        raise FormatRefused("the DICOM file is packed as a whole (deflated); send it unpacked")
    suffix = {"MetaImage": ".mha", "NRRD": ".nrrd", "nifti": ".nii", "dicom": ".dcm"}.get(kind, ".png")
    named = path.with_suffix(suffix)
    named.write_bytes(data)
    path.unlink()
    return named


def _check_single(data: bytes) -> None:
    """Refuse one half of a pair of header and image."""
    for size, (offset, magic) in _NIFTI_MAGIC.items():
        known = size in (int.from_bytes(data[:4], "little"), int.from_bytes(data[:4], "big"))
        if known and data[offset : offset + 3] != magic:
            raise FormatRefused("the file is one half of a NIfTI or Analyze pair; send a single .nii or .nii.gz")
