"""Stored values of DICOM files: packed in every way, turned over, padded, cut short, or not what the header says."""

from __future__ import annotations

import io
import struct

import numpy as np
import pydicom
import pytest
from PIL import Image
from pydicom import encaps
from pydicom.encaps import encapsulate
from pydicom.uid import JPEG2000Lossless, JPEGBaseline8Bit, RLELossless

from tests.transforms.dicom_files import save, write_slice
from transforms.dicom_pixels import _packed_size, read_frames
from transforms.limits import Refused

PIXELS = np.random.default_rng(0).integers(0, 250, (8, 6)).astype(np.uint8)  # rows, columns


def packed(pixels: np.ndarray, kind: str = "JPEG2000", **options) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind, **({"no_jp2": True} if kind == "JPEG2000" else {}), **options)
    return file.getvalue()


def written(path, pixels, streams, syntax=JPEG2000Lossless, **elements):
    made = pydicom.dcmread(write_slice(path, pixels, **elements))
    made.file_meta.TransferSyntaxUID = syntax
    if len(streams) > 1:
        made.NumberOfFrames = len(streams)
    made.PixelData = encapsulate(streams)
    made["PixelData"].VR = "OB"
    return save(made, path)


def test_pixels_that_are_not_packed_are_float_frames_of_rows_and_columns(tmp_path):
    frames = read_frames(write_slice(tmp_path / "a.dcm", PIXELS), 1, 8, 6)
    assert frames.dtype == np.float32
    assert np.array_equal(frames, PIXELS[None])


@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int16])
def test_where_small_values_are_bright_they_are_turned_over(tmp_path, photometric, dtype):
    pixels = PIXELS.astype(dtype)
    path = write_slice(tmp_path / "a.dcm", pixels, PhotometricInterpretation=photometric)
    stored = pixels.astype(np.float32)
    largest = {np.uint8: 255, np.uint16: 65535, np.int16: -1}[dtype]  # two's complement: the inverse of all bits
    assert np.array_equal(read_frames(path, 1, 8, 6)[0], stored if photometric[-1] == "2" else largest - stored)


def test_what_is_turned_over_is_of_the_bits_that_are_stored(tmp_path):
    made = pydicom.dcmread(
        write_slice(tmp_path / "a.dcm", PIXELS.astype(np.uint16), PhotometricInterpretation="MONOCHROME1")
    )
    made.BitsStored, made.HighBit = 12, 11
    assert np.array_equal(read_frames(save(made, tmp_path / "a.dcm"), 1, 8, 6)[0], 4095 - PIXELS.astype(np.float32))


def test_padding_is_no_pixels_and_more_pixels_than_stated_are_refused(tmp_path):
    made = pydicom.dcmread(write_slice(tmp_path / "a.dcm", PIXELS))
    made.PixelData = PIXELS.tobytes() + bytes(4)
    assert np.array_equal(read_frames(save(made, tmp_path / "a.dcm"), 1, 8, 6)[0], PIXELS)
    made.PixelData = PIXELS.tobytes() + b"\0\0\0\1"
    with pytest.raises(Refused, match="holds more pixels than the 8 x 6 of its header"):
        read_frames(save(made, tmp_path / "a.dcm"), 1, 8, 6)


def test_runs_of_bytes_are_unpacked(tmp_path):
    made = pydicom.dcmread(write_slice(tmp_path / "a.dcm", PIXELS.astype(np.uint16)))
    made.compress(RLELossless)
    made.save_as(tmp_path / "a.dcm")
    assert np.array_equal(read_frames(tmp_path / "a.dcm", 1, 8, 6)[0], PIXELS)


@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
@pytest.mark.parametrize("count", [1, 3])
def test_frames_of_jpeg_2000_are_unpacked_in_their_order(tmp_path, photometric, count):
    frames = np.random.default_rng(1).integers(0, 250, (count, 40, 36)).astype(np.uint8)
    path = written(tmp_path / "a.dcm", frames[0], [packed(f) for f in frames], PhotometricInterpretation=photometric)
    expected = frames if photometric == "MONOCHROME2" else 255 - frames
    assert np.array_equal(read_frames(path, count, 40, 36), expected)


@pytest.mark.skipif(pydicom.__version__ < "3", reason="pydicom 2 has the old calls alone")
def test_calls_that_pydicom_deprecates_are_left_alone(tmp_path, monkeypatch):
    frame = np.arange(40 * 36, dtype=np.uint8).reshape(40, 36)
    path = written(tmp_path / "a.dcm", frame, [packed(frame)])
    save_as = pydicom.Dataset.save_as

    def strict(self, name, *, enforce_file_format=False):
        return save_as(self, name, enforce_file_format=enforce_file_format)

    monkeypatch.setattr(pydicom.Dataset, "save_as", strict)
    monkeypatch.setattr(encaps, "generate_pixel_data_frame", None, raising=False)
    assert np.array_equal(read_frames(path, 1, 40, 36)[0], frame)


def test_jpeg_is_unpacked(tmp_path):
    smooth = np.add.outer(np.arange(40), np.arange(36)).astype(np.uint8) * 3
    path = written(tmp_path / "a.dcm", smooth, [packed(smooth, "JPEG", quality=100)], JPEGBaseline8Bit)
    assert np.abs(read_frames(path, 1, 40, 36)[0] - smooth).max() <= 2


@pytest.mark.parametrize("shape", [(40, 35), (39, 36)])
def test_packed_pixels_of_another_size_than_the_header_says_are_refused(tmp_path, shape):
    other = np.zeros(shape, np.uint8)
    path = written(tmp_path / "a.dcm", np.zeros((40, 36), np.uint8), [packed(other)])
    with pytest.raises(Refused, match=rf"holds packed pixels of {shape[0]} x {shape[1]}, its header says 40 x 36"):
        read_frames(path, 1, 40, 36)


def test_a_packing_that_is_not_known_is_refused(tmp_path):
    path = written(tmp_path / "a.dcm", PIXELS, [packed(PIXELS)], pydicom.uid.UID("1.2.840.113619.5.2"))
    with pytest.raises(Refused, match="has pixels that cannot be read: it is cut short, or packed in a way"):
        read_frames(path, 1, 8, 6)
    made = pydicom.dcmread(write_slice(tmp_path / "b.dcm", PIXELS))
    made.PixelData = PIXELS.tobytes()[:-6]
    with pytest.raises(Refused, match="cannot be read: it is cut short"):
        read_frames(save(made, tmp_path / "b.dcm"), 1, 8, 6)


@pytest.mark.parametrize(
    ("rows", "frames", "refused"),
    [  # 2 bytes a pixel: what is said to be 64 MiB is not looked at further
        (2, 1 << 23, False),
        (2, (1 << 23) + 1, True),
        (256, 1000, False),  # 128 KiB are said to be a thousand times that
        (256, 1001, True),
    ],
)
def test_pixels_that_are_said_to_be_far_more_than_their_bytes_are_not_unpacked(tmp_path, rows, frames, refused):
    path = write_slice(tmp_path / "a.dcm", np.zeros((rows, rows), np.uint16))
    reason = "says that [0-9,]+ bytes hold [0-9,]+ bytes of pixels" if refused else "its header says"
    with pytest.raises(Refused, match=reason):
        read_frames(path, frames, rows, rows)


HEADER = struct.pack(">BHH", 8, 300, 200)  # bits, rows, columns


@pytest.mark.parametrize("mark", [0xC0, 0xC1, 0xC2, 0xC3, 0xC5, 0xC7, 0xC9, 0xCB, 0xCD, 0xCF, 0xF7])
@pytest.mark.parametrize("before", [b"", b"\xff\xe0\0\x06JFIF", b"\xff\xc4\0\x02\xff\xc8\0\x03a\xff\xcc\0\x04ab"])
def test_the_size_of_a_jpeg_follows_any_of_its_frame_markers_and_no_other(mark, before):
    assert _packed_size(b"\xff\xd8" + before + bytes([0xFF, mark, 0, 11]) + HEADER) == (300, 200)


@pytest.mark.parametrize(
    "stream",
    [
        b"", b"\xff\xd8", b"\xff\xd8\xff\xe0\0\x06JFIF", b"\xff\xd9\xff\xc0\0\x0b" + HEADER,
        b"\xff\xd8\0\xc0\0\x0b" + HEADER, b"\xff\xd8\xff\xbf\0\x02\xff\xd0\0\x02", b"BM" + HEADER,
    ],
)  # fmt: skip
def test_a_stream_without_a_header_states_no_size(stream):
    assert _packed_size(stream) is None


def test_the_size_of_jpeg_2000_is_that_of_its_part_of_the_grid():
    head = (
        b"\xff\x4f\xff\x51" + bytes(4) + struct.pack(">4I", 210, 330, 10, 30) + b"\xff" * 8
    )  # right, bottom, left, top
    assert _packed_size(head) == (300, 200)
    assert _packed_size(packed(np.zeros((40, 36), np.uint8))) == (40, 36)
    assert _packed_size(packed(np.zeros((40, 36), np.uint8), "JPEG")) == (40, 36)
