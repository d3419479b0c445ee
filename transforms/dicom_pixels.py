"""Pixels of one DICOM file: what is packed is unpacked only where its size is that of the header."""

from __future__ import annotations

import io
import os
import tempfile
import warnings

import itk
import numpy as np
import pydicom
from pydicom import encaps
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import UID, ImplicitVRLittleEndian, RLELossless

from transforms.dicom_elements import quietly, read_elements
from transforms.itk_files import without_warnings
from transforms.limits import Refused, refused

__all__ = ["read_frames"]

_OLD = int(pydicom.__version__.partition(".")[0]) < 3  # MONAI Label's environment; the rest is the same in both
_DESCRIBING = (
    "Rows", "Columns", "NumberOfFrames", "SamplesPerPixel", "PhotometricInterpretation", "BitsAllocated", "BitsStored",
    "HighBit", "PixelRepresentation",
)  # fmt: skip
_UNPACKED_ANYWAY = 1 << 26  # bytes that packed pixels may take whatever they are packed to
_MOST_PACKED = 1000  # times that more may be larger than what they are packed to; those of scanners are 2 to 10
_JPEG_2000 = b"\xff\x4f\xff\x51"
_SIZES = {*range(0xC0, 0xD0), 0xF7} - {0xC4, 0xC8, 0xCC}  # markers of JPEG and JPEG-LS that the size follows


def read_frames(path: str | os.PathLike[str], frames: int, rows: int, columns: int) -> np.ndarray:
    """Read the stored values of one file.

    pydicom unpacks what is not compressed, or run-length encoded; ITK the kinds of JPEG, of a file that holds nothing
    but them and what describes them.

    Args:
        path: the file.
        frames, rows, columns: of its header.

    Returns:
        float32 (frames, rows, columns), large values bright.

    Raises:
        ValueError: When they are cut short, of another size than the header says, packed in a way that is not known
            here, or to less than can be. Names the file and says what to do.
    """
    with quietly(), without_warnings():
        warnings.filterwarnings("error", "The decoded RLE segment")  # is longer than the size says
        try:
            dataset = read_elements(path, (*_DESCRIBING, "PixelData"), pixels=True)
            packing = UID(getattr(dataset, "file_meta", Dataset()).get("TransferSyntaxUID", ImplicitVRLittleEndian))
            size = frames * rows * columns * int(dataset.BitsAllocated) // 8
            if size > _UNPACKED_ANYWAY and size > _MOST_PACKED * len(dataset.PixelData):
                raise refused(
                    path, f"says that {len(dataset.PixelData):,} bytes hold {size:,} bytes of pixels", "export it again"
                )
            packed = packing.is_compressed
            if not packed and any(dataset.PixelData[size:]):  # zeros are padding
                raise refused(path, f"holds more pixels than the {rows} x {columns} of its header", "export it again")
            plain = not packed or packing == RLELossless
            array = np.asarray(dataset.pixel_array) if plain else _by_itk(dataset, path, frames)
        except Refused:
            raise
        except Exception as error:  # both raise many kinds, ITK with a page of C++ source lines
            raise refused(
                path, "has pixels that cannot be read: it is cut short, or packed in a way that is not known here",
                "copy it again, or export it without compression",
            ) from error  # fmt: skip
    if array.size != frames * rows * columns:
        raise refused(path, f"holds {array.shape} pixels, its header says {(frames, rows, columns)}", "export it again")
    array = array.reshape(frames, rows, columns).astype(np.float32)
    if dataset.PhotometricInterpretation == "MONOCHROME1":  # small values are bright
        array = (-1.0 if dataset.PixelRepresentation else 2.0 ** int(dataset.BitsStored) - 1) - array
    return array


def _by_itk(dataset: Dataset, path: str | os.PathLike[str], frames: int) -> np.ndarray:
    """Unpack the kinds of JPEG."""
    packed = _split(dataset.PixelData, frames)
    for one in packed:
        size = _packed_size(one)
        if size is not None and size != (dataset.Rows, dataset.Columns):
            raise refused(
                path, f"holds packed pixels of {size[0]:,} x {size[1]:,}, its header says {dataset.Rows:,} x "
                f"{dataset.Columns:,}", "export it again",
            )  # fmt: skip
    made = Dataset()
    made.file_meta = FileMetaDataset()
    made.file_meta.TransferSyntaxUID = dataset.file_meta.TransferSyntaxUID
    made.SOPClassUID = pydicom.uid.SecondaryCaptureImageStorage
    if frames > 1:
        made.SOPClassUID = pydicom.uid.MultiFrameGrayscaleWordSecondaryCaptureImageStorage
    made.SOPInstanceUID = made.file_meta.MediaStorageSOPInstanceUID = UID("2.25.1")
    made.file_meta.MediaStorageSOPClassUID = made.SOPClassUID
    for key in _DESCRIBING:
        if key in dataset:  # values and not elements: what is set below would be set in the dataset as well
            setattr(made, key, dataset[key].value)
    made.PhotometricInterpretation = "MONOCHROME2"  # turned over by the caller, where need be
    made.PixelData = encaps.encapsulate(packed)
    made["PixelData"].VR = "OB"
    with tempfile.TemporaryDirectory() as folder:
        place = os.path.join(folder, "packed.dcm")
        _write(made, place)
        reader = itk.ImageFileReader[itk.Image[itk.F, 3]].New(FileName=place, ImageIO=itk.GDCMImageIO.New())
        reader.Update()
        return np.array(itk.array_view_from_image(reader.GetOutput()))


def _split(pixels: bytes, frames: int) -> list[bytes]:
    if _OLD:
        return list(encaps.generate_pixel_data_frame(pixels, frames))
    return list(encaps.generate_frames(pixels, number_of_frames=frames))


def _write(made: Dataset, place: str) -> None:
    if _OLD:
        made.is_little_endian, made.is_implicit_VR = True, False
        made.save_as(place, write_like_original=False)
    else:
        made.save_as(place, enforce_file_format=True)


def _packed_size(packed: bytes) -> tuple[int, int] | None:
    """Rows and columns of a JPEG, JPEG-LS or JPEG 2000 stream by its own header; None where it has none."""
    if packed.startswith(_JPEG_2000):
        right, bottom, left, top = (int.from_bytes(packed[n : n + 4], "big") for n in (8, 12, 16, 20))
        return bottom - top, right - left
    file = io.BytesIO(packed)
    if file.read(2) != b"\xff\xd8":
        return None
    while (mark := file.read(4))[:1] == b"\xff":
        if mark[1] in _SIZES:
            header = file.read(5)
            return int.from_bytes(header[1:3], "big"), int.from_bytes(header[3:5], "big")
        file.seek(int.from_bytes(mark[2:4], "big") - 2, os.SEEK_CUR)
    return None
