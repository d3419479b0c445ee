"""Formats whose files may name other files: archives and headers, so that nothing but the upload itself is read."""

from __future__ import annotations

import io
import re
import zipfile
import zlib
from pathlib import Path

from transforms.limits import TooLarge

__all__ = ["FormatRefused", "unpack_dicom", "whole_metaimage", "whole_nrrd"]

_CHUNK = 1 << 20
_LONGEST_HEADER = 1 << 16
_WORDS = re.compile(rb"[\w .,+()\"/-]+")
# What says how the values lie; names of other files, offsets into the file and comments are none of it.
_METAIMAGE = {
    "ObjectType", "ObjectSubType", "NDims", "BinaryData", "BinaryDataByteOrderMSB", "ElementByteOrderMSB",
    "CompressedData", "CompressedDataSize", "TransformMatrix", "Orientation", "Rotation", "Offset", "Position",
    "Origin", "CenterOfRotation", "AnatomicalOrientation", "ElementSpacing", "ElementSize", "DimSize",
    "ElementNumberOfChannels", "ElementType",
}  # fmt: skip
_NRRD = {
    "type", "dimension", "space", "space dimension", "sizes", "space directions", "space origin", "space units",
    "kinds", "endian", "encoding", "spacings", "centers", "centerings", "units", "thicknesses", "measurement frame",
    "axis mins", "axis maxs",
}  # fmt: skip
_ENCODINGS = (b"raw", b"gzip", b"gz")


class FormatRefused(ValueError):
    """A file of a format, or of a kind of it, that is not taken."""


def whole_metaimage(data: bytes) -> bytes:
    """A MetaImage file whose values follow its header, with nothing in the header but what describes them.

    Raises:
        FormatRefused: when the values lie in another file.
    """
    lines: list[bytes] = []
    start = 0
    while start < min(len(data), _LONGEST_HEADER):
        end = data.find(b"\n", start)
        line, start = data[start : end if end >= 0 else len(data)].strip(), end + 1 if end >= 0 else len(data)
        name, equals, value = (part.strip() for part in line.partition(b"="))
        key = name.decode("ascii", "replace")
        if key == "ElementDataFile":
            if value != b"LOCAL":
                raise FormatRefused("the values of the MetaImage lie in another file; send a single .mha file")
            return b"\n".join([*lines, b"ElementDataFile = LOCAL", b""]) + data[start:]
        if equals and key in _METAIMAGE and _WORDS.fullmatch(value):
            lines.append(name + b" = " + value)
    raise FormatRefused("the file is no whole MetaImage: its header does not end; send a single .mha file")


def whole_nrrd(data: bytes) -> bytes:
    """The same for NRRD.

    Raises:
        FormatRefused: when the values lie in another file, or are not raw or gzipped.
    """
    match = re.search(rb"\r?\n\r?\n", data[:_LONGEST_HEADER])
    if match is None:
        raise FormatRefused("the file is no whole NRRD: its header does not end; send a single .nrrd file")
    first, *lines = data[: match.start()].splitlines()
    if not re.fullmatch(rb"NRRD000\d", first):
        raise FormatRefused("the file is no NRRD of a version that is read here")
    kept = [first]
    for line in lines:
        name, colon, value = (part.strip() for part in line.partition(b":"))
        key = name.decode("ascii", "replace").lower()
        if key.replace(" ", "") == "datafile":
            raise FormatRefused("the values of the NRRD lie in another file; send a single .nrrd file")
        if key == "encoding" and value.lower() not in _ENCODINGS:
            raise FormatRefused(f"the NRRD is encoded as {value.decode('ascii', 'replace')!r}; expected raw or gzip")
        if colon and key in _NRRD and not value.startswith(b"=") and _WORDS.fullmatch(value):
            kept.append(key.encode() + b": " + value)
    return b"\n".join(kept) + b"\n\n" + data[match.end() :]


def unpack_dicom(data: bytes, folder: Path, most_files: int, most_bytes: int) -> None:
    """Write the DICOM files of a zip archive into a folder, under numbers; other files stay out.

    Raises:
        TooLarge: when it holds or unpacks to too much.
        FormatRefused: when it holds no DICOM file, or is packed in another way than usual.
        ValueError: when it is damaged.
    """
    written, count = 0, 0
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            entries = [entry for entry in archive.infolist() if not entry.is_dir()]
            if len(entries) > most_files:
                raise TooLarge(f"the zip archive holds {len(entries):,} files, at most {most_files:,} are read")
            for entry in entries:
                if entry.flag_bits & 1 or entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                    raise FormatRefused("the zip archive is encrypted or packed in an unusual way; pack it again")
                with archive.open(entry) as file:
                    head = file.read(1024)
                    if head[128:132] != b"DICM" or b"1.2.840.10008.1.2.1.99" in head or _is_index(entry.filename):
                        written += len(head)
                        continue
                    count += 1
                    with open(folder / f"{count:05d}.dcm", "wb") as target:
                        while head:
                            written += len(head)
                            if written > most_bytes:
                                raise TooLarge(f"the zip archive unpacks to more than {most_bytes >> 20} MiB")
                            target.write(head)
                            head = file.read(_CHUNK)
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError, NotImplementedError) as error:
        raise ValueError(f"the zip archive is damaged: {error}") from error
    if not count:
        raise FormatRefused("the zip archive holds no DICOM file; send other images one by one")


def _is_index(name: str) -> bool:
    return name.rsplit("/", 1)[-1].upper() == "DICOMDIR"
