"""DICOM: slices of anatomy in their place, and everything else refused by modality and class."""

from __future__ import annotations

import shutil
import subprocess

import numpy as np
import pydicom
import pydicom.uid
import pytest
from pydicom.uid import UID, RLELossless

from scripts.data import datalists
from tests.transforms.dicom_files import STRAIGHT, dataset, enhanced, save, with_pixels, write_slice
from tests.transforms.images import head
from transforms.limits import ReadLimits
from transforms.reading import file_kind, read_volume

PIXELS = np.random.default_rng(0).integers(0, 4000, (5, 8, 6)).astype(np.uint16)  # slices, rows, columns
RAS = np.diag([-1.0, -1, 1, 1])


def read(path, **options):
    return read_volume(path, file_kind(path), **options)


def tilted() -> np.ndarray:
    """Directions of columns, rows and slices as columns of a matrix."""
    a, b = np.deg2rad(20), np.deg2rad(-9)
    one = np.array([[1, 0, 0], [0, np.cos(a), -np.sin(a)], [0, np.sin(a), np.cos(a)]])
    return one @ np.array([[np.cos(b), -np.sin(b), 0], [np.sin(b), np.cos(b), 0], [0, 0, 1]])


def test_an_oblique_series_is_stacked_by_place_and_not_by_name(tmp_path):
    turn, first = tilted(), np.array([-10.0, 20, 30])
    for k, name in enumerate(["d", "a", "e", "b", "c"]):
        write_slice(tmp_path / f"{name}.dcm", PIXELS[k], first + 4 * k * turn[:, 2], turn[:, :2].T.ravel())
    array, affine = read(tmp_path)
    assert np.array_equal(array, PIXELS.transpose(2, 1, 0))
    expected = np.eye(4)
    expected[:3, :3], expected[:3, 3] = turn * [1.0, 1.5, 4.0], first  # columns are 1 mm apart, rows 1.5
    assert np.allclose(affine, RAS @ expected, atol=1e-5)


def test_a_series_from_head_to_foot_has_the_same_place_for_each_voxel(tmp_path):
    for folder, order in (("up", range(5)), ("down", range(4, -1, -1))):
        for number, k in enumerate(order):
            write_slice(tmp_path / folder / f"{number}.dcm", PIXELS[k], (0, 0, 3.0 * k))
    (one, place), (two, other) = read(tmp_path / "up"), read(tmp_path / "down")
    assert np.array_equal(one, two)
    assert np.array_equal(place, other)


def test_each_slice_has_its_own_scale_and_small_values_may_be_bright(tmp_path):
    slopes = [1.0, 0.37, 2.5, 1e-3, 1.0]
    for k, slope in enumerate(slopes):
        scale = {"RescaleSlope": slope, "RescaleIntercept": -3.0 * k}
        write_slice(tmp_path / "scaled" / f"{k}.dcm", PIXELS[k], (0, 0, 3.0 * k), **scale)
        write_slice(
            tmp_path / "mono1" / f"{k}.dcm", PIXELS[k], (0, 0, 3.0 * k), PhotometricInterpretation="MONOCHROME1"
        )
    expected = PIXELS * np.reshape(slopes, (5, 1, 1)) - 3.0 * np.arange(5)[:, None, None]
    assert np.allclose(read(tmp_path / "scaled")[0], expected.transpose(2, 1, 0), rtol=1e-6)
    assert np.array_equal(read(tmp_path / "mono1")[0], 65535 - PIXELS.transpose(2, 1, 0).astype(np.float32))


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.uint16])
@pytest.mark.parametrize("way", ["plain", "implicit", "big endian", "rle", "tiff in front", "no preamble"])
def test_every_way_to_store_a_slice_gives_the_same_values(tmp_path, dtype, way):
    pixels = (PIXELS[0] % 250).astype(dtype) - (100 if np.dtype(dtype).kind == "i" else 0)
    path = write_slice(tmp_path / "s.dcm", pixels.astype(dtype), SliceThickness=5.0)
    made = pydicom.dcmread(path)
    if way == "implicit":
        made.file_meta.TransferSyntaxUID = pydicom.uid.ImplicitVRLittleEndian
        made.save_as(path, implicit_vr=True, little_endian=True)
    elif way == "big endian":
        made.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRBigEndian
        made.PixelData = pixels.astype(np.dtype(dtype).newbyteorder(">")).tobytes()
        made["PixelData"].VR = "OB" if pixels.itemsize == 1 else "OW"  # words of 8-bit pixels would be swapped
        path.unlink()
        pydicom.dcmwrite(path, made, implicit_vr=False, little_endian=False, force_encoding=True)
    elif way == "rle":
        made.compress(RLELossless)
        made.save_as(path)
    elif way == "tiff in front":
        made.preamble = b"II*\0" + bytes(124)
        made.save_as(path)
    elif way == "no preamble":
        path.write_bytes(path.read_bytes()[132:])
    assert file_kind(path) == "dicom"
    array, affine = read(path)
    assert np.array_equal(array[..., 0], pixels.T)
    assert np.allclose(affine, RAS @ np.diag([1.0, 1.5, 5.0, 1.0]))


@pytest.mark.parametrize("tool", [["dcmcjpeg"], ["dcmcjpeg", "+el"], ["dcmcjpls"], ["dcmcrle"]], ids=" ".join)
def test_slices_that_the_tools_of_dcmtk_compress_give_the_same_values(tmp_path, tool):
    """JPEG lossless of two kinds, JPEG-LS, run lengths."""
    if shutil.which(tool[0]) is None:
        pytest.skip(f"{tool[0]} (Debian's dcmtk) is not installed")
    path = write_slice(tmp_path / "plain.dcm", PIXELS[0], SliceThickness=5.0)
    packed = tmp_path / "packed.dcm"
    subprocess.run([*tool, str(path), str(packed)], check=True, capture_output=True)
    assert pydicom.dcmread(packed).file_meta.TransferSyntaxUID.is_compressed
    assert np.array_equal(read(packed)[0], read(path)[0])


def test_frames_of_an_enhanced_object_are_sorted_by_place(tmp_path):
    order = [3, 0, 4, 1, 2]
    path = save(enhanced(PIXELS[order], [(0, 0, 3.0 * k) for k in order]), tmp_path / "e.dcm")
    array, affine = read(path)
    assert np.array_equal(array, PIXELS.transpose(2, 1, 0))
    assert np.allclose(affine, RAS @ np.diag([1.0, 1.5, 3.0, 1.0]))
    scaled = save(enhanced(PIXELS, [(0, 0, 3.0 * k) for k in range(5)], scales=[0.5] * 5), tmp_path / "s.dcm")
    assert np.allclose(read(scaled)[0], PIXELS.transpose(2, 1, 0) * 0.5)
    uneven = save(enhanced(PIXELS, [(0, 0, 3.0 * k) for k in range(5)], scales=[1, 1, 2, 1, 1]), tmp_path / "u.dcm")
    with pytest.raises(ValueError, match=r"u.dcm holds frames of several intensity scales; convert it with dcm2niix"):
        read(uneven)


U = pydicom.uid
OTHERS = {
    "SEG": (U.SegmentationStorage, "SEG", "modality SEG .Segmentation Storage."),
    "RTDOSE": (U.RTDoseStorage, "RTDOSE", "modality RTDOSE .RT Dose Storage."),
    "RTSTRUCT": (U.RTStructureSetStorage, "RTSTRUCT", "modality RTSTRUCT .RT Structure Set Storage."),
    "PR": (U.GrayscaleSoftcopyPresentationStateStorage, "PR", "modality PR .Grayscale Softcopy Presentation State"),
    "SR": (U.BasicTextSRStorage, "SR", "modality SR .Basic Text SR Storage."),
    "KO": (U.KeyObjectSelectionDocumentStorage, "KO", "modality KO .Key Object Selection"),
    "OT": (U.SecondaryCaptureImageStorage, "OT", "modality OT .Secondary Capture Image Storage."),
    "REG": (U.SpatialRegistrationStorage, "REG", "modality REG .Spatial Registration Storage."),
    "map named MR": (U.ParametricMapStorage, "MR", "class Parametric Map Storage, no image of anatomy"),
    "SEG named MR": (U.SegmentationStorage, "MR", "class Segmentation Storage, no image of anatomy"),
    "spectrum": (U.MRSpectroscopyStorage, "MR", "class MR Spectroscopy Storage, no image of anatomy"),
    "US": (U.UltrasoundImageStorage, "US", "modality US .Ultrasound Image Storage."),
    "no modality": (U.MRImageStorage, "", "modality not stated .MR Image Storage."),
}


@pytest.mark.parametrize("name", OTHERS)
def test_objects_that_are_no_slices_of_anatomy_are_refused_by_modality_and_class(tmp_path, name):
    kind, modality, reason = OTHERS[name]
    place = {"ImagePositionPatient": [0, 0, 0], "ImageOrientationPatient": list(STRAIGHT), "PixelSpacing": [1, 1]}
    path = save(with_pixels(dataset(kind, modality, **place), PIXELS[0]), tmp_path / "o.dcm")
    with pytest.raises(
        ValueError, match=rf"file .*o.dcm is a DICOM object of {reason}.*; give the series of the images"
    ):
        read(path)
    with pytest.raises(ValueError, match=rf"holds no DICOM series that is read here; first reason: .*{reason}"):
        read(tmp_path)


def test_a_capture_of_slices_is_read_where_it_says_where_they_lie(tmp_path):
    """As workstations export MR; a screenshot says nothing of its place."""
    kind = U.SecondaryCaptureImageStorage
    for k in range(5):
        write_slice(tmp_path / "placed" / f"{k}.dcm", PIXELS[k], (0, 0, 3.0 * k), SOPClassUID=kind)
    assert np.array_equal(read(tmp_path / "placed")[0], PIXELS.transpose(2, 1, 0))
    screenshot = save(with_pixels(dataset(kind, "MR"), PIXELS[0]), tmp_path / "shot.dcm")
    with pytest.raises(ValueError, match=r"file .*shot.dcm is a DICOM object of modality MR .Secondary .*; give"):
        read(screenshot)


@pytest.mark.parametrize(
    ("elements", "reason"),
    [
        (
            {"SamplesPerPixel": 3, "PhotometricInterpretation": "RGB"},
            "is in color .RGB., expected gray; give the original",
        ),
        ({"PhotometricInterpretation": "PALETTE COLOR"}, "is in color .PALETTE COLOR."),
        (
            {"ImageType": ["ORIGINAL", "PRIMARY", "M", "MOSAIC"]},
            "is a mosaic: a whole volume .*; convert it with dcm2niix",
        ),
        ({"BurnedInAnnotation": "YES"}, "says that text is burned into its pixels; give the series as the scanner"),
        ({"ImagePositionPatient": None}, "does not say where its pixels lie .*; give the original series"),
        ({"PixelSpacing": None}, "does not say where its pixels lie .*; give the original series"),
        ({"PixelSpacing": [0, 0]}, "has a place that is none"),
        ({"ImageOrientationPatient": [1, 0, 0, 1, 0, 0]}, "has a place that is none"),
        ({"ImageOrientationPatient": [1, 0, 0]}, "does not say where its pixels lie"),
    ],
)
def test_slices_that_cannot_be_placed_or_are_in_color_are_refused(tmp_path, elements, reason):
    path = write_slice(tmp_path / "s.dcm", PIXELS[0], **elements)
    if "SamplesPerPixel" in elements:  # what writes the pixels sets one
        made = pydicom.dcmread(path)
        made.SamplesPerPixel = 3
        made.save_as(path)
    with pytest.raises(ValueError, match=f"file .*s.dcm {reason}"):
        read(path)


@pytest.mark.parametrize(
    ("places", "reason"),
    [
        ([(0, 0, z) for z in (0, 3, 9, 12, 15)], "a slice is missing or doubled: distances differ by 3 mm at 5 slices"),
        ([(0, 0, z) for z in (0, 3, 3, 6, 9)], "holds 2 slices at one place: several echoes, times or directions"),
        ([(0, z * np.tan(np.deg2rad(10)), z) for z in (0, 3, 6, 9, 12)], "leans by 10.0 degrees .*; convert it"),
    ],
)
def test_stacks_that_are_no_grid_are_refused(tmp_path, places, reason):
    for k, place in enumerate(places):
        write_slice(tmp_path / f"{k}.dcm", PIXELS[k], place)
    with pytest.raises(ValueError, match=f"folder .* {reason}"):
        read(tmp_path)


def test_a_header_with_damaged_elements_or_too_many_frames_is_one_sentence(tmp_path):
    path = write_slice(tmp_path / "s.dcm", PIXELS[0])
    content = path.read_bytes()
    where = content.index(b"\x28\x00\x10\x00US")  # rows
    path.write_bytes(content[: where + 4] + b"UQ" + content[where + 6 :])
    with pytest.raises(ValueError, match=r"file .*s.dcm is a damaged DICOM file; copy or export it again"):
        read(path)
    for frames, reason in (
        (3, "does not say where each of its 3 frames lies"),
        (10**8, "says that it holds 100,000,000"),
    ):
        write_slice(path, PIXELS[0], NumberOfFrames=frames)
        with pytest.raises(ValueError, match=f"file .*s.dcm {reason}"):
            read(path)


def test_two_series_or_directions_in_a_folder_are_named(tmp_path):
    for k in range(3):
        write_slice(tmp_path / f"a{k}.dcm", PIXELS[k], (0, 0, 3.0 * k))
        write_slice(tmp_path / f"b{k}.dcm", PIXELS[k], (3.0 * k, 0, 0), (0, 1, 0, 0, 0, 1))
    listed = r"found: 3 slices of MR, 8 x 6, series [\d.]+ \(a0.dcm, ...\); 3 slices of MR, .* \(b0.dcm, ...\)$"
    with pytest.raises(
        ValueError, match=rf"holds 2 DICOM series, expected one; give its UID, or each a folder of its own; {listed}"
    ):
        read(tmp_path)


@pytest.mark.parametrize("fault", ["pixels cut", "header cut", "unknown packing", "size"])
def test_damaged_files_are_one_sentence_without_text_of_libraries(tmp_path, fault):
    path = write_slice(tmp_path / "s.dcm", PIXELS[0])
    content = path.read_bytes()
    if fault == "unknown packing":
        made = pydicom.dcmread(path)
        made.file_meta.TransferSyntaxUID = UID("1.2.840.10008.1.2.4.201")  # high-throughput JPEG 2000
        made.PixelData = pydicom.encaps.encapsulate([b"\xff\x4f\xff\x51" + bytes(60)])
        made["PixelData"].VR = "OB"
        made.save_as(path)
    elif fault == "size":
        with pytest.raises(ValueError, match=r"s.dcm holds 6 x 8 x 1 voxels, at most 40 and .*; cut it"):
            read(path, limits=ReadLimits(voxels=40))
        return
    else:
        path.write_bytes(content[: len(content) - 30] if fault == "pixels cut" else content[:200])
    with pytest.raises(ValueError, match=r"file .*s.dcm .*; ") as caught:
        read(path)
    assert "\n" not in str(caught.value)
    assert not any(word in str(caught.value).lower() for word in ("itk", "gdcm", "numpy", "pydicom", "traceback"))


def test_a_datalist_takes_the_images_and_names_what_lies_beside_them(tmp_path):
    for patient in range(3):
        scan = np.clip(head((48, 48, 16), 20, patient)[0], 0, 255).astype(np.uint16)
        folder = tmp_path / f"p{patient}"
        for k in range(16):
            elements = {"PatientID": f"MRN{patient}", "SeriesInstanceUID": f"1.2.3.{patient}"}
            write_slice(folder / f"{k:02}.dcm", scan[:, :, k].T, (0, 0, 3.0 * k), **elements)
        save(dataset(U.BasicTextSRStorage, "SR"), folder / "report.dcm")
    save(with_pixels(dataset(U.SegmentationStorage, "SEG"), PIXELS[0]), tmp_path / "seg" / "seg.dcm")
    datalist, report = datalists.dicom_series(tmp_path, diagnosis=0, progress=False)
    patients = {item["patient"] for split in datalists.SPLITS for item in datalist[split]}
    assert len(patients) == 3
    assert not any("MRN" in patient for patient in patients)
    assert [name for name, _ in report.notes if name.endswith("report.dcm")] == [f"p{k}/report.dcm" for k in range(3)]
    assert [name for name, _ in report.unusable] == ["seg"]
    assert "modality SEG (Segmentation Storage)" in report.unusable[0][1]
