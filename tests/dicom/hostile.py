"""Two hundred broken or hostile DICOM files, the same every time: what each is, its bytes, and what is to become of it.

Each begins as one sound slice. `files` says "refused", "read" (its pixels are those of the sound slice) or "either",
where bytes were changed at random places.
"""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import pydicom
import pydicom.uid as uids
from PIL import Image
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate

from tests.dicom.series import ABOUT
from tests.transforms.dicom_files import STRAIGHT, dataset, with_pixels

SIZE = 64
U16 = struct.Struct("<H")
U32 = struct.Struct("<L")
ENDLESS = 0xFFFFFFFF
HUGE = 0xFFFFFFF0
PLACE = {"ImagePositionPatient": [0, 0, 0], "ImageOrientationPatient": list(STRAIGHT), "PixelSpacing": [1.5, 1.0]}
_NESTED = struct.pack("<HH2sHL", 0x0009, 0x1001, b"SQ", 0, ENDLESS) + struct.pack("<HHL", 0xFFFE, 0xE000, ENDLESS)
_ENDED = struct.pack("<HHL", 0xFFFE, 0xE00D, 0) + struct.pack("<HHL", 0xFFFE, 0xE0DD, 0)


def pixels() -> np.ndarray:
    """Of the sound slice, (rows, columns)."""
    rows, columns = np.mgrid[:SIZE, :SIZE]
    inside = np.hypot(rows - 30, columns - 34) < 22
    return (1 + inside * (rows * 13 + columns * 7 + 200)).astype(np.uint16)


def sound(**elements: Any) -> Dataset:
    """The slice that all begin as."""
    made = dataset(**{**PLACE, **ABOUT})
    made.file_meta.MediaStorageSOPInstanceUID = made.SOPInstanceUID = uids.UID("2.25.4711")
    made = with_pixels(made, pixels())
    for key, value in elements.items():
        if value is None:
            delattr(made, key)
        else:
            setattr(made, key, value)
    return made


def content(made: Dataset) -> bytes:
    file = io.BytesIO()
    made.save_as(file, enforce_file_format=True)
    return file.getvalue()


def raw(**texts: str) -> bytes:
    """The sound file with the bytes of some elements, whatever they say."""
    made = sound()
    for key, text in texts.items():
        text += " " * (len(text) % 2)
        tag = pydicom.tag.Tag(pydicom.datadict.tag_for_keyword(key))
        vr = pydicom.datadict.dictionary_VR(tag)
        made[tag] = pydicom.dataelem.RawDataElement(tag, vr, len(text), text.encode(), 0, False, True)
    return content(made)


def places(data: bytes) -> list[tuple[str, str, int]]:
    """Keyword, kind of value and place of the value of each element."""
    read = pydicom.dcmread(io.BytesIO(data))
    raws = [read.get_item(tag) for tag in list(read.keys())]
    return [(pydicom.datadict.keyword_for_tag(one.tag) or str(one.tag), one.VR, one.value_tell) for one in raws]


def with_length(data: bytes, kind: str, place: int, length: int) -> bytes:
    """Another length of the value at a place."""
    if kind in pydicom.valuerep.EXPLICIT_VR_LENGTH_32:
        return data[: place - 4] + U32.pack(length) + data[place:]
    return data[: place - 2] + U16.pack(length & 0xFFFF) + data[place:]


def before_pixels(data: bytes, more: bytes) -> bytes:
    """Elements put in front of the pixels."""
    at = data.index(b"\xe0\x7f\x10\x00OW")
    return data[:at] + more + data[at:]


def syntax(made: Dataset, uid: str, frames: list[bytes] | None = None, elements: bytes | None = None) -> bytes:
    """The file under a transfer syntax, its pixels as they are, or packed."""
    made.file_meta.TransferSyntaxUID = uids.ExplicitVRLittleEndian
    if frames is not None:
        made.PixelData = encapsulate(frames)
    if elements is not None:
        made.PixelData = elements
    if frames is not None or elements is not None:
        made["PixelData"].VR = "OB"
        made["PixelData"].is_undefined_length = True
        made.file_meta.TransferSyntaxUID = uids.RLELossless  # any that is packed, to be written so
    data, own = content(made), made.file_meta.TransferSyntaxUID
    text = uid.encode() + b"\0" * (len(uid) % 2)
    head = b"\x02\x00\x10\x00UI"
    return data.replace(
        head + U16.pack(len(own) + len(own) % 2) + own.encode() + b"\0" * (len(own) % 2),
        head + U16.pack(len(text)) + text,
    )


def jpeg_2000(size: int = SIZE) -> bytes:
    values = np.zeros((size, size), np.uint16)
    values[: min(size, SIZE), : min(size, SIZE)] = pixels()[:size, :size]
    file = io.BytesIO()
    Image.fromarray(values).save(file, "JPEG2000", irreversible=False, no_jp2=True)
    return file.getvalue()


def jpeg() -> bytes:
    file = io.BytesIO()
    Image.fromarray((pixels() >> 3).astype(np.uint8)).save(file, "JPEG", quality=95)
    return file.getvalue()


def rle(values: np.ndarray) -> bytes:
    made = sound()
    with_pixels(made, values).compress(uids.RLELossless)
    return next(pydicom.encaps.generate_frames(made.PixelData, number_of_frames=1))


def nested(depth: int, ended: bool = True) -> bytes:
    return _NESTED * depth + (_ENDED * depth if ended else b"")


def nested_by_length(depth: int) -> bytes:
    made = b""
    for _ in range(depth):
        item = struct.pack("<HHL", 0xFFFE, 0xE000, len(made)) + made
        made = struct.pack("<HH2sHL", 0x0009, 0x1001, b"SQ", 0, len(item)) + item
    return made


def deflated(elements: bytes, meta: bytes) -> bytes:
    packing = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    return meta + packing.compress(elements) + packing.flush()


def files() -> Iterator[tuple[str, bytes, str]]:
    """Name, bytes and what is to become of each."""
    data = content(sound())
    yield "sound", data, "read"
    yield from cut(data)
    yield from lengths(data)
    yield from sizes()
    yield from packed(data)
    yield from bombs(data)
    yield from values()
    yield from junk(data)
    yield from chance(data)


def cut(data: bytes) -> Iterator[tuple[str, bytes, str]]:
    for k in range(32):
        at = len(data) * k // 32
        yield f"cut after {at} bytes", data[:at], "refused"
    for less in (1, 2, 100):
        yield f"last {less} bytes cut", data[:-less], "refused"


def lengths(data: bytes) -> Iterator[tuple[str, bytes, str]]:
    known = {key: (kind, place) for key, kind, place in places(data)}
    for key in ("Rows", "Columns", "ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "BitsAllocated"):
        for length in (0, 1, 0xFFFE):
            yield f"{key} of {length} bytes", with_length(data, *known[key], length), "refused"
    for length in (0, 1, 7, ENDLESS):
        yield f"pixels of {length} bytes", with_length(data, *known["PixelData"], length), "refused"
    for length in (0x7FFFFFFE, HUGE):  # all that the size asks for is there
        yield f"pixels of {length} bytes", with_length(data, *known["PixelData"], length), "read"
        yield f"pixels of {length} bytes, cut", with_length(data, *known["PixelData"], length)[:-200], "refused"
    for key in ("PatientName", "SOPInstanceUID", "StudyDate"):
        yield f"{key} of 65534 bytes", with_length(data, *known[key], 0xFFFE), "refused"


def sizes() -> Iterator[tuple[str, bytes, str]]:
    for rows, columns in ((65535, 65535), (65535, 1), (0, 64), (64, 0), (30000, 30000), (63, 64), (64, 65)):
        yield f"{rows} x {columns}, plain", content(sound(Rows=rows, Columns=columns)), "refused"
        for name, uid, frame in (
            ("RLE", uids.RLELossless, rle(pixels())), ("JPEG 2000", uids.JPEG2000Lossless, jpeg_2000()),
        ):  # fmt: skip
            yield f"{rows} x {columns}, {name}", syntax(sound(Rows=rows, Columns=columns), uid, [frame]), "refused"
    for number in ("-1", "99999999999", "3", "65535", "abc", "1e5"):
        yield f"{number} frames", raw(NumberOfFrames=number), "refused"


def packed(data: bytes) -> Iterator[tuple[str, bytes, str]]:
    yield "RLE", syntax(sound(), uids.RLELossless, [rle(pixels())]), "read"
    yield "JPEG 2000", syntax(sound(), uids.JPEG2000Lossless, [jpeg_2000()]), "read"
    for name in (
        "RLELossless", "JPEGBaseline8Bit", "JPEGLosslessSV1", "JPEGLSLossless", "JPEG2000Lossless", "HTJ2KLossless",
        "MPEG2MPML", "DeflatedExplicitVRLittleEndian", "ImplicitVRLittleEndian", "ExplicitVRBigEndian",
    ):  # fmt: skip
        expected = "read" if name == "ImplicitVRLittleEndian" else "refused"  # each element says its kind
        yield f"plain, called {name}", syntax(sound(), getattr(uids, name)), expected
    yield "RLE, called plain", syntax(sound(), uids.ExplicitVRLittleEndian, [rle(pixels())]), "refused"
    for name, uid in (("unknown", "1.2.3.4"), ("no", ""), ("no UID at all", "x" * 19)):
        yield f"transfer syntax {name}", syntax(sound(), uid), "either"
    stream = jpeg_2000()
    for name, frames in {
        "cut": [stream[: len(stream) // 2]],
        "of 500 x 500": [jpeg_2000(500)],
        "of 4 billion columns": [stream[:8] + b"\xff\xff\xff\xf0" + stream[12:]],
        "empty": [b"\0\0"],
        "noise": [np.random.default_rng(0).bytes(2000)],
    }.items():
        yield f"JPEG 2000 stream {name}", syntax(sound(), uids.JPEG2000Lossless, frames), "refused"
    eight = {"BitsAllocated": 8, "BitsStored": 8, "HighBit": 7}
    stream = jpeg()
    at = stream.index(b"\xff\xc0")
    for name, frames in {
        "cut": [stream[:100]],
        "of 65500 x 65500": [stream[: at + 5] + struct.pack(">HH", 65500, 65500) + stream[at + 9 :]],
        "in a circle": [stream[:2] + b"\xff\xe0\x00\x00" * 50],
    }.items():
        yield f"JPEG stream {name}", syntax(sound(**eight), uids.JPEGBaseline8Bit, frames), "refused"
    header = struct.pack("<16L", 2, 64, 0xFFFFFFF0, *[0] * 13)
    for name, frames in {
        "of 4 billion segments": [struct.pack("<16L", HUGE, *[0] * 15) + bytes(100)],
        "with segments beyond its end": [header + bytes(100)],
        "cut": [rle(pixels())[:100]],
        "of zeros": [bytes(200)],
    }.items():
        yield f"RLE {name}", syntax(sound(), uids.RLELossless, frames), "refused"
    item = struct.pack("<HHL", 0xFFFE, 0xE000, 0)
    for name, elements in {
        "no fragment": item,
        "a fragment of 4 GB": item + struct.pack("<HHL", 0xFFFE, 0xE000, HUGE) + bytes(64),
        "an endless fragment": item + struct.pack("<HHL", 0xFFFE, 0xE000, ENDLESS) + bytes(64),
        "something else between": item + struct.pack("<HHL", 0x0010, 0x0010, 8) + bytes(64),
        "an offset table of noise": struct.pack("<HHL4L", 0xFFFE, 0xE000, 16, 9, 99, 1 << 31, 3),
    }.items():
        yield f"packed pixels with {name}", syntax(sound(), uids.JPEG2000Lossless, elements=elements), "refused"


def bombs(data: bytes) -> Iterator[tuple[str, bytes, str]]:
    data = syntax(sound(), uids.DeflatedExplicitVRLittleEndian)
    at = data.index(b"\x08\x00\x08\x00CS")  # the first element that is packed
    meta, elements = data[:at], data[at:]

    def bomb(start: bytes, mebibytes: int) -> bytes:
        packing = zlib.compressobj(1, zlib.DEFLATED, -zlib.MAX_WBITS)
        first = packing.compress(start) + packing.flush(zlib.Z_FULL_FLUSH)
        zeros = packing.compress(bytes(1 << 20)) + packing.flush(zlib.Z_FULL_FLUSH)  # may be repeated
        return meta + first + zeros * mebibytes + packing.flush()

    yield "deflated", deflated(elements, meta), "read"
    yield "deflated 300 MiB behind the pixels", bomb(elements, 300), "refused"
    junk_element = struct.pack("<HH2sHL", 0x0009, 0x1001, b"OB", 0, 300 << 20)
    yield "deflated 300 MiB in a private element", bomb(elements[:400] + junk_element, 300), "refused"
    yield "deflated, cut", deflated(elements, meta)[:-300], "refused"
    yield (
        "deflated, noise in it",
        deflated(elements, meta)[:700] + bytes(50) + deflated(elements, meta)[750:],
        "refused",
    )
    run = struct.pack("<16L", 1, 64, *[0] * 14) + b"\x81\x00" * 100
    large = sound(Rows=32768, Columns=32768)
    yield "RLE of 2 GiB in 264 bytes", syntax(large, uids.RLELossless, [run]), "refused"


def values() -> Iterator[tuple[str, bytes, str]]:
    for key, texts in {
        "ImagePositionPatient": ("nan\\0\\0", "0\\inf\\0", "a\\b\\c", "0\\0", "1e999\\0\\0"),
        "ImageOrientationPatient": (
            "0\\0\\0\\0\\0\\0", "1\\0\\0\\1\\0\\0", "nan\\0\\0\\0\\1\\0", "1\\0\\0", "9\\0\\0\\0\\9\\0",
        ),
        "PixelSpacing": ("0\\0", "-1\\1", "nan\\nan", "inf\\1", "x", "1"),
        "RescaleSlope": ("nan", "inf", "1e39", "x"),
        "RescaleIntercept": ("-inf", "y"),
    }.items():  # fmt: skip
        for text in texts:
            yield f"{key} {text}".replace("\\", ","), raw(**{key: text}), "refused"
    for key, numbers in {
        "BitsAllocated": (0, 1, 7, 12, 64, 65535),
        "SamplesPerPixel": (2, 3, 65535),
    }.items():
        for number in numbers:
            yield f"{key} {number}", content(sound(**{key: number})), "refused"
    for key in ("Rows", "PixelData", "BitsAllocated", "PixelRepresentation", "ImagePositionPatient", "Modality"):
        yield f"no {key}", content(sound(**{key: None})), "refused"
    for text in ("RGB", "PALETTE COLOR", "YBR_FULL", "x"):
        yield f"colors {text}", content(sound(PhotometricInterpretation=text)), "refused"
    yield "text burned in", content(sound(BurnedInAnnotation="YES")), "refused"


def junk(data: bytes) -> Iterator[tuple[str, bytes, str]]:
    noise = np.random.default_rng(1)
    yield "noise behind the pixels", data + noise.bytes(5000), "read"
    large = struct.pack("<HH2sHL", 0x0009, 0x1001, b"OB", 0, 8 << 20) + bytes(8 << 20)
    yield "8 MiB of a private element", before_pixels(data, large), "read"
    many = b"".join(struct.pack("<HH2sH", 0x0009 + 2 * (k >> 16), k & 0xFFFF, b"SH", 0) for k in range(20_000))
    yield "20,000 private elements", before_pixels(data, many), "read"
    unknown = struct.pack("<HH2sHL", 0x0009, 0x1001, b"UN", 0, ENDLESS) + noise.bytes(400)
    yield "a private element without an end", before_pixels(data, unknown), "refused"
    for kind in (b"ZZ", b"\0\0", b"\xff\xfe"):
        element = struct.pack("<HH2sH", 0x0009, 0x1001, kind, 4) + b"abcd"
        yield f"a private element of kind {kind!r}", before_pixels(data, element), "either"
    for depth in (10, 100, 2000, 50_000):
        expected = "read" if depth <= 100 else "refused"
        yield f"{depth} sequences in each other", before_pixels(data, nested(depth)), expected
        yield f"{depth} sequences in each other, endless", before_pixels(data, nested(depth, False)), "refused"
    for depth in (10, 1000):
        yield f"{depth} sequences in each other, by length", before_pixels(data, nested_by_length(depth)), "read"
    for kind in ("SegmentationStorage", "RTStructureSetStorage", "BasicTextSRStorage", "EncapsulatedPDFStorage"):
        yield f"called {kind}", content(sound(SOPClassUID=getattr(uids, kind))), "refused"
    yield "nothing but the mark", bytes(128) + b"DICM", "refused"
    yield "noise after the mark", bytes(128) + b"DICM" + noise.bytes(4000), "refused"
    yield "zeros after the mark", bytes(128) + b"DICM" + bytes(4000), "refused"


def chance(data: bytes) -> Iterator[tuple[str, bytes, str]]:
    """Noise at random places of the header."""
    rng = np.random.default_rng(2)
    end = data.index(b"\xe0\x7f\x10\x00OW") + 12
    for k in range(40):
        changed = bytearray(data)
        for at in rng.integers(132, end, 6):
            changed[at] = rng.integers(256)
        yield f"noise in the header {k}", bytes(changed), "either"
