"""Files from strangers: bounded in bytes, pixels and voxels, told by content, stored under names of our own."""

from __future__ import annotations

import io
import math
import tempfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
from nibabel.spatialimages import HeaderDataError
from PIL import Image, UnidentifiedImageError
from starlette.types import ASGIApp, Message, Receive, Scope, Send

PICTURE_SUFFIXES = {"PNG": ".png", "JPEG": ".jpg", "BMP": ".bmp", "TIFF": ".tif"}
_PICTURES = (b"\x89PNG", b"\xff\xd8\xff", b"BM", b"II*\0", b"MM\0*")
_GZIP = b"\x1f\x8b"
_NIFTI_HEADERS = {348: nib.Nifti1Header, 540: nib.Nifti2Header}
# A single file of either version ends its header with one of these; a pair (.hdr with .img) would name another file.
_SINGLE_FILE_MAGIC = {348: (344, b"n+1\0"), 540: (4, b"n+2\0\r\n\x1a\n")}
_CHUNK = 1 << 20


@dataclass(frozen=True)
class UploadLimits:
    """What the service accepts.

    Attributes:
        bytes: of a request's body, as sent.
        unpacked_bytes: of a gzipped file once unpacked.
        side: pixels or voxels along one axis.
        pixels: of a picture.
        voxels: of a volume, all channels.
    """

    bytes: int = 64 << 20
    unpacked_bytes: int = 512 << 20
    side: int = 4096
    pixels: int = 16 << 20
    voxels: int = 128 << 20


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
    """Check an upload and keep it in a temporary file, whose name nothing of the request decides.

    Args:
        data: the file's content.
        limits: see `UploadLimits`.

    Yields:
        the file; it is deleted afterwards.

    Raises:
        UploadRefused: when the content is empty, too large, damaged at the start, or no PNG, JPEG, BMP, TIFF or NIfTI.
    """
    if not data:
        raise UploadRefused(422, "the file is empty")
    if data.startswith(_GZIP):
        content, suffix = _unpack(data, limits), ".nii"
        _check_nifti(content, limits, packed=True)
    elif _header_size(data) in _NIFTI_HEADERS:
        content, suffix = data, ".nii"
        _check_nifti(content, limits, packed=False)
    else:
        content, suffix = data, _check_picture(data, limits)
    with tempfile.TemporaryDirectory(prefix="upload") as folder:
        path = Path(folder) / f"image{suffix}"
        path.write_bytes(content)
        yield path


def _header_size(data: bytes) -> int:
    little, big = int.from_bytes(data[:4], "little"), int.from_bytes(data[:4], "big")
    return big if big in _NIFTI_HEADERS else little


def _unpack(data: bytes, limits: UploadLimits) -> bytes:
    """Unpack gzip, piece by piece, so that a bomb is noticed before it goes off."""
    unpacker = zlib.decompressobj(31)
    out = io.BytesIO()
    rest = data
    try:
        while rest and not unpacker.eof:
            out.write(unpacker.decompress(rest, _CHUNK))
            if out.tell() > limits.unpacked_bytes:
                raise UploadRefused(413, f"the file unpacks to more than {limits.unpacked_bytes >> 20} MiB")
            rest = unpacker.unconsumed_tail
    except zlib.error as error:
        raise UploadRefused(422, f"the gzipped file is damaged: {error}") from error
    if not unpacker.eof:
        raise UploadRefused(422, "the gzipped file is cut short")
    return out.getvalue()


def _check_nifti(data: bytes, limits: UploadLimits, packed: bool) -> None:
    size = _header_size(data)
    if size not in _NIFTI_HEADERS:
        raise UploadRefused(415, "the gzipped file is no NIfTI volume" if packed else "the file is no NIfTI volume")
    offset, magic = _SINGLE_FILE_MAGIC[size]
    if data[offset : offset + len(magic)] != magic:
        raise UploadRefused(415, "the file is one half of a NIfTI pair or damaged; send a single .nii or .nii.gz file")
    try:
        header = _NIFTI_HEADERS[size].from_fileobj(io.BytesIO(data))
        shape = header.get_data_shape()
        item_bytes = header.get_data_dtype().itemsize
    except (HeaderDataError, ValueError, OverflowError, TypeError) as error:
        raise UploadRefused(422, f"the NIfTI header is damaged: {error}") from error
    if not shape or any(n < 1 for n in shape):
        raise UploadRefused(422, f"the NIfTI header says shape {tuple(shape)}; expected sizes of at least 1")
    if max(shape) > limits.side or math.prod(shape) > limits.voxels:
        raise UploadRefused(
            413, f"the volume has shape {tuple(shape)}; at most {limits.side} a side and {limits.voxels:,} voxels"
        )
    needed = math.prod(shape) * item_bytes
    if len(data) < needed:
        raise UploadRefused(422, f"the file is cut short: its header promises {needed:,} bytes of voxels")


def _check_picture(data: bytes, limits: UploadLimits) -> str:
    """Suffix of a picture of an accepted format and size; pixels are not decoded."""
    try:
        with Image.open(io.BytesIO(data), formats=list(PICTURE_SUFFIXES)) as image:
            (width, height), kind = image.size, str(image.format)
    except UnidentifiedImageError as error:
        if data.startswith(_PICTURES):
            raise UploadRefused(422, "the picture is damaged at its start") from error
        raise UploadRefused(
            415, f"the file is no image that is read here; expected {', '.join(PICTURE_SUFFIXES)} or NIfTI"
        ) from error
    except Image.DecompressionBombError as error:
        raise UploadRefused(413, f"the picture is too large: {error}") from error
    except Exception as error:  # Pillow's parsers raise many kinds on damaged headers; all mean the same here
        raise UploadRefused(422, f"the picture is damaged: {error}") from error
    if max(width, height) > limits.side or width * height > limits.pixels:
        raise UploadRefused(
            413, f"the picture has {width} x {height} pixels; at most {limits.side} a side and {limits.pixels:,} in all"
        )
    return PICTURE_SUFFIXES[kind]


class BodyLimit:
    """ASGI middleware that answers 413 to a body above a number of bytes, announced or not, without reading on.

    Args:
        app: the wrapped application.
        limit_bytes: of a request's body.
    """

    def __init__(self, app: ASGIApp, limit_bytes: int) -> None:
        self.app, self.limit_bytes = app, limit_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, counting."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        announced = dict(scope["headers"]).get(b"content-length", b"")
        if announced.isdigit() and int(announced) > self.limit_bytes:
            await self._refuse(send)
            return
        received, refused, started = 0, False, False

        async def counted() -> Message:
            nonlocal received, refused
            message = await receive()
            received += len(message.get("body", b""))
            if received > self.limit_bytes:
                refused = True
                return {"type": "http.disconnect"}
            return message

        async def watched(message: Message) -> None:
            nonlocal started
            if refused and not started:
                return
            started = True
            await send(message)

        try:
            await self.app(scope, counted, watched)
        except Exception:
            if not refused:
                raise
        if refused and not started:
            await self._refuse(send)

    async def _refuse(self, send: Send) -> None:
        reason = f'{{"detail":"the request is larger than {self.limit_bytes >> 20} MiB"}}'.encode()
        headers = [(b"content-type", b"application/json"), (b"connection", b"close")]
        await send({"type": "http.response.start", "status": 413, "headers": headers})
        await send({"type": "http.response.body", "body": reason})
