"""What a DICOM header must say to be read, each rule on both sides of its limit."""

from __future__ import annotations

import numpy as np
import pydicom
import pydicom.uid
import pytest
from pydicom.sequence import Sequence

from tests.transforms.dicom_files import STRAIGHT, dataset, enhanced, save, with_pixels, write_slice
from transforms import dicom
from transforms.dicom import Header, _distance, _plain, find_stacks, is_dicom, read_dicom, read_header, read_series
from transforms.limits import DEFAULT_LIMITS, ReadLimits, Refused, TooLarge

PIXELS = np.random.default_rng(0).integers(0, 4000, (5, 8, 6)).astype(np.uint16)  # slices, rows, columns
RAS = np.diag([-1.0, -1, 1, 1])
HEIGHTS = [(0, 0, 3.0 * k) for k in range(5)]


def element(group: bytes, length: int, order: str = "little") -> bytes:
    """The start of an element of implicit kind."""
    return group + b"\x05\0" + length.to_bytes(4, order)


@pytest.mark.parametrize(
    ("head", "expected"),
    [
        (bytes(128) + b"DICM", True),
        (bytes(127) + b"DICM\0", False),
        (b"II*\0" + bytes(124) + b"DICM", True),
        (b"\x02\0\0\0UL\x04\0", True),
        (b"\x08\0\x05\0CS\x0a\0", True),
        (b"\0\x08\0\x05CS\0\x0a", True),
        (b"\0\x02\0\0UL\0\x04", True),
        (b"\x03\0\0\0UL\x04\0", False),
        (b"\x08\0\x05\0CS\x0a", False),  # seven bytes
        (b"\x08\0\x05\0ul\0\0", False),
        (b"\x08\0\x05\0A1\0\0", False),
        (b"\x08\0\x05\0001A\0\0", False),
        (b"", False),
        (element(b"\x08\0", 10), True),
        (element(b"\x08\0", 2), True),
        (element(b"\x08\0", 0), False),
        (element(b"\x08\0", 11), False),
        (element(b"\x08\0", (1 << 16) - 2), True),
        (element(b"\x08\0", 1 << 16), False),
        (element(b"\0\x08", 10, "big"), True),
        (element(b"\0\x08", 10, "little"), False),
        (element(b"\x08\0", 10, "big"), False),
    ],
)
def test_a_dicom_file_is_known_by_its_preamble_or_its_first_element(head, expected):
    assert is_dicom(head) is expected


def header(uid: str = "1.2.3", directions=STRAIGHT) -> Header:
    about = {"PatientID": "p", "Modality": "MR", "SeriesInstanceUID": uid}
    place = np.zeros((1, 3)), np.asarray([directions]), np.ones((1, 2))
    return Header("a.dcm", about, 6, 8, *place, 0.0, (1.0, 0.0))


def test_a_malformed_uid_is_none():
    assert header("1.2.840.3").uid == "1.2.840.3"
    assert [header(uid).uid for uid in ("", "1.2.x", "1.02.3", "Doe^Jane", "1.2.3 ")] == [""] * 5


def test_files_of_one_stack_share_series_matrix_and_direction():
    one = header().series
    assert one == ("1.2.3", 8, 6, STRAIGHT)
    assert header(directions=(1, 0.0004, 0, -0.0004, 1, -0.0)).series == one
    assert header(directions=(1, 0.0006, 0, 0, 1, 0)).series != one
    assert header("1.2.4").series != one
    assert hash(one) == hash(header(directions=(1, -0.0, 0, 0, 1, 0)).series)


def refusal(path) -> str:
    with pytest.raises(Refused) as caught:
        read_header(path)
    return str(caught.value).replace(str(path), "").removeprefix("file  ")


@pytest.mark.parametrize(
    ("elements", "reason"),
    [
        ({"SOPClassUID": pydicom.uid.MediaStorageDirectoryStorage}, "is a DICOMDIR"),
        ({"DirectoryRecordSequence": Sequence([])}, "is a DICOMDIR"),
        ({"SOPClassUID": "1.2.x"}, "is a DICOM object of class a class that is none, no image of anatomy"),
        ({"Modality": None}, "is a DICOM object of modality not stated (MR Image Storage), no slice of MR, CT or PT"),
        ({"Modality": "MR+"}, "is a DICOM object of modality not stated"),
        ({"ImageType": "MOSAIC"}, "is a mosaic"),
        ({"ImageType": ["ORIGINAL", "mosaic"]}, "is a mosaic"),
        ({"BurnedInAnnotation": "yes"}, "says that text is burned into its pixels"),
        ({"ImageOrientationPatient": None}, "does not say where its pixels lie"),
        ({"ImageOrientationPatient": [1, 0, 0, 0, 1]}, "does not say where its pixels lie"),
        ({"ImagePositionPatient": [1, 0]}, "does not say where its pixels lie"),
        ({"PixelSpacing": 1}, "is a damaged DICOM file"),
        ({"PixelSpacing": [1, -1]}, "has a place that is none"),
        ({"PixelSpacing": [1, 0]}, "has a place that is none"),
        ({"ImagePositionPatient": ["nan", "0", "0"]}, "has a place that is none"),
        ({"ImageOrientationPatient": ["nan", "0", "0", "0", "1", "0"]}, "has a place that is none"),
        ({"PixelSpacing": ["inf", "1"]}, "has a place that is none"),
        ({"ImageOrientationPatient": [1.02, 0, 0, 0, 1, 0]}, "has a place that is none"),
        ({"ImageOrientationPatient": [0.98, 0, 0, 0, 1, 0]}, "has a place that is none"),
        ({"NumberOfFrames": 1 << 16}, "does not say where each of its 65536 frames lies"),
        ({"NumberOfFrames": (1 << 16) + 1}, "says that it holds 65,537 frames, at most 65,536 are read"),
    ],
)
def test_a_slice_that_is_none_is_refused(tmp_path, elements, reason):
    pydicom.config.settings.writing_validation_mode = pydicom.config.IGNORE
    try:
        path = write_slice(tmp_path / "a.dcm", PIXELS[0], **elements)
    finally:
        pydicom.config.settings.writing_validation_mode = None
    assert refusal(path).startswith(reason)


@pytest.mark.parametrize(
    "elements",
    [
        {"SOPClassUID": None},  # the class of the file's meta elements stands
        {"SOPClassUID": pydicom.uid.CTImageStorage, "Modality": "CT"},
        {"SOPClassUID": pydicom.uid.PositronEmissionTomographyImageStorage, "Modality": "PT"},
        {"SamplesPerPixel": None},
        {"SamplesPerPixel": 0},
        {"NumberOfFrames": None},
        {"NumberOfFrames": "1"},
        {"BurnedInAnnotation": "NO"},
        {"ImageType": ["ORIGINAL", "PRIMARY", "M"]},
        {"ImageOrientationPatient": [1.005, 0, 0, 0, 1, 0]},
        {"ImageOrientationPatient": [0.995, 0, 0, 0, 1, 0]},
        {"RescaleSlope": 0},  # said by some programs that mean none
    ],
)
def test_a_sound_slice_is_read(tmp_path, elements):
    made = dataset(
        **{"ImagePositionPatient": [1, 2, 3], "ImageOrientationPatient": list(STRAIGHT), "PixelSpacing": [1.5, 1.0]}
    )
    with_pixels(made, PIXELS[0])
    made.NumberOfFrames = 1
    for key, value in elements.items():
        if value is None:
            delattr(made, key)
        else:
            setattr(made, key, value)
    found = read_header(save(made, tmp_path / "a.dcm"))
    assert (found.rows, found.columns, found.scale) == (8, 6, (1.0, 0.0))
    assert found.positions.tolist() == [[1, 2, 3]]
    assert found.spacing.tolist() == [[1.5, 1.0]]
    assert found.about == {"PatientID": "p1", "Modality": made.Modality, "SeriesInstanceUID": made.SeriesInstanceUID}


def test_three_values_a_pixel_are_colors_whatever_they_are_called(tmp_path):
    made = pydicom.dcmread(write_slice(tmp_path / "a.dcm", PIXELS[0]))
    made.SamplesPerPixel = 3
    made.save_as(tmp_path / "a.dcm")
    assert refusal(tmp_path / "a.dcm").startswith("is in color (MONOCHROME2), expected gray")


@pytest.mark.parametrize("missing", ["Rows", "Columns", "PhotometricInterpretation"])
def test_an_object_without_the_size_or_the_meaning_of_its_pixels_is_refused(tmp_path, missing):
    made = pydicom.dcmread(write_slice(tmp_path / "a.dcm", PIXELS[0]))
    delattr(made, missing)
    made.save_as(tmp_path / "a.dcm")
    reason = "is in color (not stated)" if missing[0] == "P" else "is a DICOM object without an image"
    assert refusal(tmp_path / "a.dcm").startswith(reason)


def test_a_capture_is_read_where_position_direction_and_spacing_are_all_stated(tmp_path):
    kind = pydicom.uid.SecondaryCaptureImageStorage
    assert read_header(write_slice(tmp_path / "a.dcm", PIXELS[0], SOPClassUID=kind)).rows == 8
    for missing in ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing"):
        path = write_slice(tmp_path / "b.dcm", PIXELS[0], SOPClassUID=kind, **{missing: None})
        assert refusal(path).startswith("is a DICOM object of modality MR (Secondary Capture Image Storage)")


def test_text_of_a_header_is_told_only_where_it_is_a_short_code():
    assert [_plain(text) for text in ("MR", "PALETTE COLOR", "YBR_FULL_422", "A" * 16)] == [
        "MR", "PALETTE COLOR", "YBR_FULL_422", "A" * 16,
    ]  # fmt: skip
    assert [_plain(text) for text in ("A" * 17, "Doe^Jane", "M\u00fcller", "", "a.b", " ")] == [""] * 6


# Objects of many frames


def frames_of(path):
    return read_dicom(path, DEFAULT_LIMITS)


def test_a_frame_has_its_own_place_before_the_shared_one(tmp_path):
    made = enhanced(PIXELS, HEIGHTS)
    shared = made.SharedFunctionalGroupsSequence[0]
    measures = made.PerFrameFunctionalGroupsSequence
    for frame in measures:
        own = pydicom.Dataset()
        own.PixelSpacing, own.SliceThickness = [0.5, 0.25], 3.0
        frame.PixelMeasuresSequence = Sequence([own])
    assert shared.PixelMeasuresSequence[0].PixelSpacing == [1.5, 1.0]
    array, affine = frames_of(save(made, tmp_path / "e.dcm"))
    assert np.allclose(affine, RAS @ np.diag([0.25, 0.5, 3.0, 1.0]))
    assert np.array_equal(array, PIXELS.transpose(2, 1, 0))


def test_of_many_frames_what_stands_outside_the_groups_says_nothing(tmp_path):
    made = enhanced(PIXELS, HEIGHTS)
    del made.PerFrameFunctionalGroupsSequence[3].PlanePositionSequence
    made.ImagePositionPatient = [0, 0, 9.0]
    reason = "does not say where its pixels lie (position, direction or spacing is missing in frame 4)"
    assert refusal(save(made, tmp_path / "e.dcm")).startswith(reason)
    single = enhanced(PIXELS[:1], HEIGHTS[:1])
    del single.PerFrameFunctionalGroupsSequence[0].PlanePositionSequence
    single.ImagePositionPatient = [7, 8, 9]
    assert read_header(save(single, tmp_path / "s.dcm")).positions.tolist() == [[7, 8, 9]]


def test_each_frame_has_a_place_or_none_is_read(tmp_path):
    made = enhanced(PIXELS, HEIGHTS)
    made.PerFrameFunctionalGroupsSequence = made.PerFrameFunctionalGroupsSequence[:4]
    assert refusal(save(made, tmp_path / "e.dcm")).startswith("does not say where each of its 5 frames lies")


def test_frames_have_one_scale_whose_parts_may_lack(tmp_path):
    made = enhanced(PIXELS, HEIGHTS, scales=[2.0] * 5)
    for frame in made.PerFrameFunctionalGroupsSequence:
        frame.PixelValueTransformationSequence[0].RescaleIntercept = -7
    assert read_header(save(made, tmp_path / "e.dcm")).scale == (2.0, -7.0)
    assert frames_of(tmp_path / "e.dcm")[0].max() == 2 * PIXELS.max() - 7.0
    for frame in made.PerFrameFunctionalGroupsSequence:
        scale = frame.PixelValueTransformationSequence[0]
        del scale.RescaleSlope
        del scale.RescaleIntercept
    assert read_header(save(made, tmp_path / "e.dcm")).scale == (1.0, 0.0)
    path = write_slice(tmp_path / "a.dcm", PIXELS[0], RescaleSlope=0.5, RescaleIntercept=3)
    assert read_header(path).scale == (0.5, 3.0)


def test_a_scale_that_is_no_number_is_refused(tmp_path):
    path = write_slice(tmp_path / "a.dcm", PIXELS[0], RescaleSlope=1e38)
    with pytest.raises(Refused, match="has a scale of intensity that is none"):
        frames_of(path)


@pytest.mark.parametrize(
    ("stated", "mm"),
    [
        ({"SliceThickness": 4.0}, 4.0),
        ({"SpacingBetweenSlices": 5.0, "SliceThickness": 4.0}, 5.0),
        ({}, 1.0),
        ({"SliceThickness": -2.0}, 1.0),
        ({"SliceThickness": 0.0}, 1.0),
    ],
)
def test_a_single_slice_is_as_thick_as_its_header_says(tmp_path, stated, mm):
    assert np.allclose(
        frames_of(write_slice(tmp_path / "a.dcm", PIXELS[0], **stated))[1], RAS @ np.diag([1.0, 1.5, mm, 1])
    )
    made = enhanced(PIXELS[:1], HEIGHTS[:1])
    measures = made.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0]
    del measures.SliceThickness
    for key, value in stated.items():
        setattr(measures, key, value)
    assert frames_of(save(made, tmp_path / "e.dcm"))[1][2, 2] == mm


@pytest.mark.parametrize(("degrees", "taken"), [(0.5, True), (0.7, False)])
def test_slices_of_several_directions_are_refused(tmp_path, degrees, taken):
    made = enhanced(PIXELS, HEIGHTS)  # cosines may differ by 0.01: 0.57 degrees
    angle, turned = np.deg2rad(degrees), pydicom.Dataset()
    turned.ImageOrientationPatient = [round(float(v), 6) for v in
                                      (np.cos(angle), np.sin(angle), 0, -np.sin(angle), np.cos(angle), 0)]  # fmt: skip
    made.PerFrameFunctionalGroupsSequence[2].PlaneOrientationSequence = Sequence([turned])
    path = save(made, tmp_path / "e.dcm")
    if taken:
        assert frames_of(path)[0].shape == (6, 8, 5)
    else:
        with pytest.raises(Refused, match="holds slices of several directions or pixel sizes"):
            frames_of(path)


@pytest.mark.parametrize(("factor", "taken"), [(1.009, True), (1.011, False), (0.991, True), (0.989, False)])
@pytest.mark.parametrize("axis", [0, 1])
def test_slices_of_several_pixel_sizes_are_refused(tmp_path, factor, taken, axis):
    for k in range(3):
        spacing = [1.5, 1.0]
        spacing[axis] = round(spacing[axis] * (factor if k == 1 else 1), 6)
        write_slice(tmp_path / f"{k}.dcm", PIXELS[k], HEIGHTS[k], spacing=spacing)
    if taken:
        assert read_series(tmp_path, DEFAULT_LIMITS)[0].shape == (6, 8, 3)
    else:
        with pytest.raises(Refused, match="holds slices of several directions or pixel sizes"):
            read_series(tmp_path, DEFAULT_LIMITS)


# Stacks


def spaced(along, lean: float = 0.0, stated: float = 0.0) -> float:
    """Distance of slices at these heights, shifted to the side by a share of their height."""
    along = np.asarray(along, float)
    positions = along[:, None] * np.array([lean, 0, 1])
    return _distance(positions, along, np.array([0.0, 0, 1]), stated, "a")


def test_the_distance_of_slices_is_that_of_the_first_and_last_by_their_number():
    assert spaced([0, 3, 6.1, 9]) == 3.0
    assert spaced([-4, 1]) == 5.0
    assert spaced([7], stated=2.5) == 2.5
    assert spaced([7]) == 1.0
    assert spaced([7], stated=-1) == 1.0
    assert spaced([0, 3, 6], stated=9.0) == 3.0


@pytest.mark.parametrize(
    ("heights", "reason"),
    [
        ([0, 3, 6, 9.29], None),
        ([0, 10, 20, 31], None),
        ([0, 3, 6, 9.31], "a slice is missing or doubled: distances differ by 0.31 mm at 4 slices"),
        ([0, 0.0011, 0.0022], None),
        ([0, 0.0009, 0.0018], "holds 3 slices at one place"),
        ([0, 3, 3, 6, 6, 9], "holds 3 slices at one place"),
    ],
)
def test_slices_are_as_far_apart_as_each_other(heights, reason):
    if reason is None:
        assert spaced(heights) > 0
    else:
        with pytest.raises(Refused, match=reason):
            spaced(heights)


def test_a_stack_leans_by_at_most_three_degrees():
    assert spaced([0, 3, 6], lean=0.049) == 3.0
    assert spaced([0, 3, 6], lean=-0.049) == 3.0
    for lean in (0.051, -0.051):
        with pytest.raises(Refused, match=r"is a stack that leans by 2\.9 degrees"):
            spaced([0, 3, 6], lean=lean)
    with pytest.raises(Refused, match=r"leans by 45\.0 degrees"):
        spaced([100, 103, 106], lean=1.0)


def test_a_stack_lies_where_its_lowest_slice_does(tmp_path):
    turn = np.array([[0.0, 0, 1], [1, 0, 0], [0, 1, 0]])  # columns along y, rows along z, slices along x
    for k in range(4):
        write_slice(tmp_path / f"{k}.dcm", PIXELS[k], (10 - 2 * k, 20, 30), turn[:, :2].T.ravel())
    array, affine, about = read_series(tmp_path, DEFAULT_LIMITS)
    expected = np.eye(4)
    expected[:3, :3], expected[:3, 3] = turn * [1.0, 1.5, 2.0], (4, 20, 30)
    assert np.allclose(affine, RAS @ expected)
    assert np.array_equal(array, PIXELS[3::-1].transpose(2, 1, 0))
    assert about["PatientID"] == "p1"
    assert array.dtype == np.float32
    with pytest.raises(TooLarge, match="holds 6 x 8 x 4 voxels, at most 191"):
        read_series(tmp_path, ReadLimits(voxels=191))
    assert read_series(tmp_path, ReadLimits(voxels=192))[0].shape == (6, 8, 4)


# Folders


def test_stacks_of_a_folder_are_those_of_its_own_files(tmp_path):
    for k in range(2):
        write_slice(tmp_path / f"a{k}.dcm", PIXELS[k], HEIGHTS[k])
        write_slice(tmp_path / f"b{k}.dcm", PIXELS[k, :4], HEIGHTS[k])
    write_slice(tmp_path / ".hidden.dcm", PIXELS[0], SeriesInstanceUID="1.2.3")
    write_slice(tmp_path / "inside" / "c.dcm", PIXELS[0], SeriesInstanceUID="1.2.4")
    (tmp_path / "notes.txt").write_text("no DICOM")
    save(dataset(pydicom.uid.BasicTextSRStorage, "SR"), tmp_path / "report.dcm")
    stacks, reasons = find_stacks(tmp_path)
    assert [[header.path for header in stack] for stack in stacks] == [
        [str(tmp_path / f"{letter}{k}.dcm") for k in range(2)] for letter in "ab"
    ]
    assert len(reasons) == 1
    assert "report.dcm is a DICOM object of modality SR" in reasons[0]
    with pytest.raises(ValueError, match=r"holds 2 DICOM series.* found: 2 slices of MR, 8 x 6, .*; 2 slices of MR, 4"):
        read_series(tmp_path, DEFAULT_LIMITS)


def test_a_folder_without_a_series_says_why_where_it_holds_something_else(tmp_path):
    with pytest.raises(
        ValueError, match=r"holds 0 DICOM series, expected one; give its UID, or each a folder of its own$"
    ):
        read_series(tmp_path, DEFAULT_LIMITS)
    save(dataset(pydicom.uid.BasicTextSRStorage, "SR"), tmp_path / "report.dcm")
    with pytest.raises(
        ValueError, match=r"holds no DICOM series that is read here; first reason: .*report.dcm is a DICOM"
    ):
        read_series(tmp_path, DEFAULT_LIMITS)


def test_a_series_without_a_sound_uid_is_named_so(tmp_path):
    path = write_slice(tmp_path / "a.dcm", PIXELS[0], SeriesInstanceUID="")
    assert dicom._in_words([read_header(path)]) == "1 slices of MR, 8 x 6, series without UID (a.dcm, ...)"
    many = save(enhanced(PIXELS, HEIGHTS), tmp_path / "e.dcm")
    assert dicom._in_words([read_header(many)] * 2).startswith("10 slices of MR, 8 x 6, series 1.2.826")
