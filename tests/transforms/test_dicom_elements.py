"""No more of a DICOM file is held than it is long, and pydicom says nothing of its own."""

from __future__ import annotations

import io
import logging
import warnings
import zlib

import numpy as np
import pydicom
import pytest

from tests.transforms.dicom_files import write_slice
from transforms import dicom_elements
from transforms.dicom_elements import _Bounded, _check_inflated, quietly, read_elements
from transforms.limits import Refused

PIXELS = np.arange(48, dtype=np.uint16).reshape(8, 6)


def deflated(content: bytes) -> bytes:
    packer = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    return packer.compress(content) + packer.flush()


def test_more_than_a_file_holds_is_never_asked_for(tmp_path):
    content = bytes(range(200))
    (tmp_path / "a").write_bytes(content)
    with _Bounded(tmp_path / "a") as file:
        assert file.read(1 << 40) == content, "a terabyte would be set aside by Python"
        assert file.read(1 << 40) == b""
        file.seek(5)
        assert file.read(3) == content[5:8]
        assert file.read(1 << 40) == content[8:]
        file.seek(500)
        assert file.read(1 << 40) == b""


class Asked(io.BufferedReader):
    """Notes what a file is asked for."""

    sizes: list[int]

    def read(self, size: int | None = -1, /) -> bytes:
        self.sizes.append(size)
        return super().read(size)


class BoundedAndAsked(_Bounded, Asked):
    """A bounded file, and what it asks for in turn."""


@pytest.mark.parametrize("place", [0, 150, 200, 300])
def test_what_is_set_aside_is_at_most_what_is_left_or_64_kibibytes(tmp_path, place):
    (tmp_path / "a").write_bytes(bytes(200))
    with BoundedAndAsked(tmp_path / "a") as file:
        file.sizes = []
        for size in (10, 1 << 16, (1 << 16) + 1, 1 << 40):
            file.seek(place)
            file.read(size)
        assert file.sizes[0] == 10
        assert file.sizes[1] <= 1 << 16
        assert file.sizes[2:] == [max(0, 200 - place)] * 2


@pytest.mark.parametrize("size", [None, -1])
def test_the_rest_of_a_file_is_read_where_it_can_be_inflated(tmp_path, size):
    content = b"head" + deflated(bytes(1000))
    (tmp_path / "a").write_bytes(content)
    with _Bounded(tmp_path / "a") as file:
        assert file.read(4) == b"head"
        assert file.read(size) == content[4:]
        file.seek(5)
        with pytest.raises(zlib.error):
            file.read()
        file.seek(0)
        assert file.read(0) == b""


def test_what_inflates_to_exactly_the_limit_is_taken_and_a_byte_more_is_not(monkeypatch):
    monkeypatch.setattr(dicom_elements, "_INFLATED", 1000)
    monkeypatch.setattr(dicom_elements, "_CHUNK", 300)
    _check_inflated(deflated(bytes(1000)), "a.dcm")
    _check_inflated(deflated(bytes(10)) + bytes(5000), "a.dcm")  # what follows the end is no part of it
    _check_inflated(b"", "a.dcm")
    with pytest.raises(Refused, match=r"file a.dcm is packed as a whole \(deflated\) and unpacks to more than"):
        _check_inflated(deflated(bytes(1001)), "a.dcm")


def test_elements_are_those_asked_for_and_pixels_are_left_out_unless_asked_for(tmp_path):
    path = write_slice(tmp_path / "a.dcm", PIXELS)
    whole = read_elements(path)
    assert whole.PatientID == "p1"
    assert "PixelData" not in whole
    assert read_elements(path, pixels=True).PixelData == PIXELS.tobytes()
    few = read_elements(path, ("Rows", "PixelData"), pixels=True)
    assert {element.keyword for element in few} >= {"Rows", "PixelData"}
    assert "PatientID" not in few
    assert "Columns" not in few
    path.write_bytes(path.read_bytes()[132:])
    assert read_elements(path).Rows == 8, "without the preamble"


def test_what_cannot_be_opened_is_an_error_of_the_system_and_all_else_a_refusal(tmp_path, monkeypatch):
    with pytest.raises(FileNotFoundError):
        read_elements(tmp_path / "gone.dcm")
    path = write_slice(tmp_path / "a.dcm", PIXELS)
    for error, refusal in (
        (ValueError("of pydicom"), "is a damaged DICOM file"),
        (OSError("of pydicom, without a number"), "is a damaged DICOM file"),
        (Refused("ours; do this"), "^ours; do this$"),
    ):
        monkeypatch.setattr(pydicom, "dcmread", lambda *_, error=error, **__: (_ for _ in ()).throw(error))
        with pytest.raises(Refused, match=refusal):
            read_elements(path)


def test_pydicom_is_quiet_within_and_as_it_was_after():
    logger = logging.getLogger("pydicom")
    before = logger.level
    logger.setLevel(logging.INFO)

    def fail() -> None:
        with quietly():
            assert logger.level == logging.CRITICAL
            warnings.warn("of pydicom", stacklevel=1)
            raise RuntimeError

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            with pytest.raises(RuntimeError):
                fail()
            with pytest.raises(UserWarning):
                warnings.warn("heard again", stacklevel=1)
        assert logger.level == logging.INFO
    finally:
        logger.setLevel(before)
