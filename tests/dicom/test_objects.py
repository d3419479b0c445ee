"""Objects beside a series: right place, right words, the same UIDs again, no names where not wanted."""

from __future__ import annotations

import shutil
import subprocess

import numpy as np
import pydicom
import pytest

from scripts.dicom.samples import write_sample
from scripts.dicom.sources import Source
from scripts.dicom.writing import write_objects
from tests.dicom.series import GEOMETRIES, write_series
from tests.transforms.dicom_files import enhanced, save
from transforms.grids import orient
from transforms.reading import read_volume

hd = pytest.importorskip("highdicom", reason="highdicom (the extra dicom) is not installed")

MADE_BY = {"version": "0.2.0", "weights_sha256": "ab" * 32, "config_sha256": "cd" * 32}
RESULT = {
    "tumor_probability": 0.875,
    "threshold": 0.4,
    "verdict": "tumor",
    "reasons": [],
    "predicted_class": "glioma",
    "class_probabilities": {"no_tumor": 0.125, "glioma": 0.625, "meningioma": 0.25},
    "flags": [{"code": "slices_without_head", "message": "2 of 5 slices show no head and were not read"}],
}
USE = "Research on imaging."
LPS = np.diag([-1.0, -1, 1, 1])


def prediction(folder, axes="LPS"):
    """A mask of two labels and evidence on the grid of a series, the axes in any order."""
    array, affine = read_volume(folder, "dicom")
    array, affine = orient(array, affine, axes)
    rng = np.random.default_rng(1)
    mask = (rng.random(array.shape) > 0.7).astype(np.uint8) * rng.integers(1, 3, array.shape).astype(np.uint8)
    return mask, rng.random(array.shape).astype(np.float32), affine


def write(folder, out, mask, evidence, affine, **options):
    made_by = {**MADE_BY, **options.pop("made_by", {})}
    return write_objects(folder, mask, evidence, affine, RESULT, made_by, out / "case", USE, **options)


def volume_of(image, **how):
    """Array and affine to RAS of an image object, as highdicom reads them."""
    volume = image.get_volume(**how)
    return volume.array, LPS @ volume.affine


def on_grid(array, affine, like_affine, shape):
    """Values of an array at the voxels of another grid; every one of them must be met exactly."""
    index = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), axis=-1).reshape(-1, 3)
    points = np.c_[index, np.ones(len(index))] @ (np.linalg.inv(affine) @ like_affine).T
    assert np.abs(points - np.rint(points)).max() < 0.05
    return array[tuple(np.rint(points[:, :3]).astype(int).T)].reshape(shape)


def segment_masks(path, affine, shape):
    """Labels of a Segmentation on a grid, read frame by frame where each says that it lies."""
    seg = hd.seg.segread(path)
    made = np.zeros(shape, np.uint8)
    shared = seg.SharedFunctionalGroupsSequence[0]
    row, column = np.reshape(shared.PlaneOrientationSequence[0].ImageOrientationPatient, (2, 3)).astype(float)
    down, right = map(float, shared.PixelMeasuresSequence[0].PixelSpacing)
    frames = seg.pixel_array.reshape(-1, seg.Rows, seg.Columns)
    for frame, group in zip(frames, seg.PerFrameFunctionalGroupsSequence, strict=True):
        first = np.array(group.PlanePositionSequence[0].ImagePositionPatient, float)
        holder = group if "SegmentIdentificationSequence" in group else shared  # of a single segment
        number = holder.SegmentIdentificationSequence[0].ReferencedSegmentNumber
        for r, c in np.argwhere(frame):
            place = LPS @ np.append(first + c * right * row + r * down * column, 1)
            voxel = np.linalg.inv(affine) @ place
            assert np.abs(voxel - np.rint(voxel)).max() < 0.05
            made[tuple(np.rint(voxel[:3]).astype(int))] = number
    return made


@pytest.mark.parametrize("axes", ["LPS", "SRA"])
@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_mask_and_evidence_read_back_are_those_that_were_predicted(tmp_path, geometry, axes):
    folder = write_series(tmp_path / "in", geometry)
    mask, evidence, affine = prediction(folder, axes)
    seg, pm, _ = write(folder, tmp_path, mask, evidence, affine)
    assert np.array_equal(segment_masks(seg, affine, mask.shape), mask)
    if geometry not in ("one slice", "slices a little uneven"):  # those are no volume of even slices for highdicom
        array, place = volume_of(hd.seg.segread(seg), combine_segments=True)
        assert np.array_equal(on_grid(array, place, affine, mask.shape), mask)
        array, place = volume_of(hd.imread(pm), apply_real_world_transform=True)
        assert np.array_equal(on_grid(array, place, affine, mask.shape), evidence)


def moved(affine, **change):
    """An affine that is wrong in one way."""
    made = affine.copy()
    if "flip" in change:
        axis, count = change["flip"], change["count"]
        made[:, 3] += made[:, axis] * (count - 1)
        made[:, axis] *= -1
    if "shift" in change:
        made[:, 3] += made[:, change["shift"]]
    return made


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("geometry", ["axial", "sagittal", "oblique"])
def test_a_mask_of_another_place_is_not_read_back_as_the_same(tmp_path, geometry, axis):
    """The round trip would see a mask that is mirrored; one that is shifted is refused."""
    folder = write_series(tmp_path / "in", geometry)
    mask, evidence, affine = prediction(folder)
    wrong = moved(affine, flip=axis, count=mask.shape[axis])
    seg = write(folder, tmp_path, mask, evidence, wrong)[0]
    assert not np.array_equal(segment_masks(seg, affine, mask.shape), mask)
    assert np.array_equal(segment_masks(seg, affine, mask.shape), np.flip(mask, axis))
    with pytest.raises(ValueError, match=r"the result's grid .* is not that of its 5 frames"):
        write(folder, tmp_path, mask, evidence, moved(affine, shift=axis))


def test_a_grid_of_another_size_or_scale_is_refused(tmp_path):
    folder = write_series(tmp_path / "in", "axial")
    mask, evidence, affine = prediction(folder)
    with pytest.raises(ValueError, match="is not that of its 5 frames of 8 x 6"):
        write(folder, tmp_path, mask[:, :, :4], evidence[:, :, :4], affine)
    with pytest.raises(ValueError, match="is not that of its 5 frames of 8 x 6"):
        write(folder, tmp_path, mask, evidence, affine @ np.diag([2.0, 1, 1, 1]))


def test_a_tumor_on_the_left_lies_on_the_left(tmp_path):
    for geometry in ("axial", "coronal", "both turned over", "oblique"):
        folder = write_series(tmp_path / geometry, geometry)
        mask, evidence, affine = prediction(folder)
        mask[:] = 0
        center = (affine @ [*(np.array(mask.shape) - 1) / 2, 1])[0]
        grid = np.stack(np.meshgrid(*map(np.arange, mask.shape), indexing="ij"), axis=-1)
        left = grid @ affine[0, :3] + affine[0, 3] < center - 1  # RAS: the patient's left is negative
        mask[left] = 1
        seg = hd.seg.segread(write(folder, tmp_path / geometry, mask, evidence, affine)[0])
        volume = seg.get_volume(combine_segments=True)
        places = np.argwhere(volume.array) @ volume.affine[0, :3] + volume.affine[0, 3]
        assert len(places) == left.sum()
        assert places.min() > -center  # LPS: the patient's left is positive


def test_an_enhanced_object_has_its_frames_in_its_own_order(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 4000, (5, 8, 6)).astype(np.uint16)
    order = [3, 0, 4, 1, 2]
    made = enhanced(pixels, [(0, 0, 3.0 * k) for k in order])
    made.FrameOfReferenceUID = hd.UID()
    path = save(made, tmp_path / "e.dcm")
    mask, evidence, affine = prediction(path)
    seg = write(path, tmp_path, mask, evidence, affine)[0]
    assert np.array_equal(segment_masks(seg, affine, mask.shape), mask)
    frames = Source.read(path).frames(mask, affine)
    assert np.array_equal(frames[0], mask[:, :, 3].T)


@pytest.mark.parametrize("geometry", ["axial", "oblique", "slices a little uneven", "one slice"])
@pytest.mark.parametrize("empty", [False, True])
def test_the_validator_of_dicom3tools_finds_no_error(tmp_path, geometry, empty):
    if shutil.which("dciodvfy") is None:
        pytest.skip("dciodvfy (Debian's dicom3tools) is not installed")
    folder = write_series(tmp_path / "in", geometry)
    mask, evidence, affine = prediction(folder)
    evidence *= 4 * (not empty)
    for anonymous in (False, True):
        for path in write(
            folder, tmp_path, mask * (not empty), evidence, affine, anonymous=anonymous, in_segments=True
        ):
            done = subprocess.run(["dciodvfy", "-new", str(path)], capture_output=True, text=True, check=False)
            errors = [line for line in (done.stdout + done.stderr).splitlines() if line.startswith("Error")]
            assert errors == [], path.name
    broken = pydicom.dcmread(path)
    del broken.Modality
    broken.save_as(path)
    done = subprocess.run(["dciodvfy", "-new", str(path)], capture_output=True, text=True, check=False)
    assert "Error" in done.stderr


def test_the_validator_finds_no_error_in_objects_of_an_enhanced_one(tmp_path):
    if shutil.which("dciodvfy") is None:
        pytest.skip("dciodvfy (Debian's dicom3tools) is not installed")
    pixels = np.random.default_rng(0).integers(0, 4000, (5, 8, 6)).astype(np.uint16)
    made = enhanced(pixels, [(0, 0, 3.0 * k) for k in (3, 0, 4, 1, 2)])
    made.FrameOfReferenceUID = hd.UID()
    path = save(made, tmp_path / "e.dcm")
    mask, evidence, affine = prediction(path)
    for object_path in write(path, tmp_path, mask, 4 * evidence, affine, in_segments=True):
        done = subprocess.run(["dciodvfy", "-new", str(object_path)], capture_output=True, text=True, check=False)
        errors = [line for line in (done.stdout + done.stderr).splitlines() if line.startswith("Error")]
        assert errors == [], object_path.name


@pytest.mark.parametrize("geometry", ["axial", "oblique", "one slice"])
def test_the_tools_of_dcmtk_read_every_object(tmp_path, geometry):
    if shutil.which("dsrdump") is None:
        pytest.skip("dcmdump and dsrdump (Debian's dcmtk) are not installed")
    paths = write(tmp_path / "in", tmp_path, *prediction(write_series(tmp_path / "in", geometry)))

    def said(tool, path):
        done = subprocess.run([tool, str(path)], capture_output=True, text=True, check=True)
        assert [line for line in done.stderr.splitlines() if line.startswith(("E:", "F:"))] == [], path.name
        return done.stdout

    for path, kind in zip(paths, ("SegmentationStorage", "ParametricMapStorage", "EnhancedSRStorage"), strict=True):
        text = said("dcmdump", path)
        assert f"={kind}" in text
        assert str(pydicom.dcmread(path).SOPInstanceUID) in text
    report = said("dsrdump", paths[2])
    assert "Imaging Measurement Report" in report
    assert "<contains TEXT:" in report or "<contains CODE:" in report


def test_the_validator_finds_no_error_in_drawn_samples(tmp_path):
    if shutil.which("dciodvfy") is None:
        pytest.skip("dciodvfy (Debian's dicom3tools) is not installed")
    path = write_sample(tmp_path, 0)[3]
    done = subprocess.run(["dciodvfy", "-new", str(path)], capture_output=True, text=True, check=False)
    assert [line for line in done.stderr.splitlines() if line.startswith("Error")] == []


@pytest.mark.parametrize("geometry", ["axial", "oblique", "rows and columns exchanged"])
def test_evidence_as_segments_is_the_map_in_steps_and_changes_no_other_object(tmp_path, geometry):
    folder = write_series(tmp_path / "in", geometry)
    mask, evidence, affine = prediction(folder)
    evidence *= 4
    plain = write(folder, tmp_path / "plain", mask, evidence, affine)
    made = write(folder, tmp_path / "more", mask, evidence, affine, in_segments=True)
    steps = np.digitize(evidence, [np.log(3), np.log(19)]).astype(np.uint8)
    assert set(np.unique(steps)) == {0, 1, 2}
    assert [path.name for path in made[:3]] == [path.name for path in plain]
    assert np.array_equal(segment_masks(made[3], affine, mask.shape), steps)
    assert [uids_of(path) for path in made[:3]] == [uids_of(path) for path in plain]
    found = pydicom.dcmread(made[3])
    assert [one.SegmentLabel for one in found.SegmentSequence] == [
        "evidence, odds from 3 to 1", "evidence, odds from 19 to 1"
    ]  # fmt: skip
    assert not {found.SOPInstanceUID, found.SeriesInstanceUID} & {uid for path in plain for uid in uids_of(path)[:2]}


def uids_of(path):
    found = []
    pydicom.dcmread(path).walk(lambda _, element: found.append(str(element.value)) if element.VR == "UI" else None)
    return found


def test_the_same_input_and_weights_give_the_same_uids_and_others_do_not(tmp_path):
    folder = write_series(tmp_path / "in", "axial")
    parts = prediction(folder)
    one = write(folder, tmp_path / "a", *parts)
    again = write(folder, tmp_path / "b", *parts)
    other = write(folder, tmp_path / "c", *parts, made_by={"weights_sha256": "ef" * 32})
    for first, second, third in zip(one, again, other, strict=True):
        assert uids_of(first) == uids_of(second)
        assert pydicom.dcmread(first).SOPInstanceUID != pydicom.dcmread(third).SOPInstanceUID
        assert pydicom.dcmread(first).SeriesInstanceUID != pydicom.dcmread(third).SeriesInstanceUID
    assert len({pydicom.dcmread(path).SOPInstanceUID for path in one + other}) == 6


def test_all_objects_refer_to_patient_study_place_and_slices_of_the_series(tmp_path):
    folder = write_series(tmp_path / "in", "axial")
    source = [pydicom.dcmread(path) for path in folder.iterdir()]
    for path in write(folder, tmp_path, *prediction(folder)):
        made = pydicom.dcmread(path)
        for key in ("PatientID", "PatientName", "StudyInstanceUID", "AccessionNumber"):
            assert made[key].value == source[0][key].value
        assert {dataset.SOPInstanceUID for dataset in source} <= set(uids_of(path))
        if made.Modality != "SR":
            assert made.FrameOfReferenceUID == source[0].FrameOfReferenceUID


def test_codes_and_units_are_those_of_the_standard(tmp_path):
    folder = write_series(tmp_path / "in", "axial")
    seg, pm, _ = map(pydicom.dcmread, write(folder, tmp_path, *prediction(folder)))
    assert [segment.SegmentNumber for segment in seg.SegmentSequence] == [1, 2]
    first = seg.SegmentSequence[0]
    assert first.SegmentedPropertyTypeCodeSequence[0].CodeValue == "108369006"
    assert first.AnatomicRegionSequence[0].CodeValue == "12738006"
    assert seg.SegmentationType == "BINARY"
    mapping = pm.SharedFunctionalGroupsSequence[0].RealWorldValueMappingSequence[0]
    assert mapping.MeasurementUnitsCodeSequence[0].CodeValue == "1"
    assert "1.1 odds of 3 to 1" in mapping.LUTExplanation
    assert (mapping.DoubleFloatRealWorldValueFirstValueMapped, mapping.DoubleFloatRealWorldValueLastValueMapped) == (
        0.0,
        6.0,
    )


def content(item, found=None):
    """(name, value) of every item of a report, depth first."""
    found = [] if found is None else found
    for inner in item.get("ContentSequence", []):
        name = inner.ConceptNameCodeSequence[0].CodeMeaning if "ConceptNameCodeSequence" in inner else ""
        if inner.ValueType == "NUM":
            measured = inner.MeasuredValueSequence[0]
            found.append((name, (float(measured.NumericValue), measured.MeasurementUnitsCodeSequence[0].CodeValue)))
        elif inner.ValueType == "CODE":
            found.append((name, inner.ConceptCodeSequence[0].CodeMeaning))
        elif inner.ValueType == "TEXT":
            found.append((name, inner.TextValue))
        content(inner, found)
    return found


def test_the_report_says_verdict_probabilities_volume_flags_model_and_use(tmp_path):
    folder = write_series(tmp_path / "in", "axial, oblong pixels")
    mask, evidence, affine = prediction(folder)
    made = pydicom.dcmread(write(folder, tmp_path, mask, evidence, affine)[2])
    assert made.ContentTemplateSequence[0].TemplateIdentifier == "1500"
    said = content(made)
    volume = round(float((mask == 1).sum()) * 1.5 * 0.8 * 3 / 1000, 4)
    for pair in [
        ("Tumor", "Present"),
        ("Most probable class", "glioma"),
        ("Probability of a tumor", (0.875, "1")),
        ("Probability of class meningioma", (0.25, "1")),
        ("Volume", (volume, "mL")),
        ("Flag", "slices without head"),
        ("Comment", "slices_without_head: 2 of 5 slices show no head and were not read"),
        ("Comment", "Intended use: Research on imaging."),
        ("Algorithm Name", "TumorLens"),
        ("Algorithm Version", "0.2.0"),
        ("Algorithm Parameters", f"weights_sha256 {'ab' * 32}"),
    ]:
        assert pair in said
    assert {seg.SegmentNumber for seg in hd.seg.segread(tmp_path / "case_segmentation.dcm").SegmentSequence} == {1, 2}


def test_the_report_of_an_uncertain_answer_names_no_class(tmp_path, monkeypatch):
    answer = {"verdict": "uncertain", "reasons": ["mask and evidence lie in different places"], "predicted_class": None}
    monkeypatch.setitem(globals(), "RESULT", {**RESULT, **answer})
    folder = write_series(tmp_path / "in", "axial")
    said = content(pydicom.dcmread(write(folder, tmp_path, *prediction(folder))[2]))
    assert ("Tumor", "Uncertain") in said
    assert ("Comment", "uncertain: mask and evidence lie in different places") in said
    assert not [value for name, value in said if name == "Most probable class"]


def test_the_report_says_a_reason_once_and_the_prevalence(tmp_path, monkeypatch):
    message = "the image is unlike those that the network was trained on"
    answer = {
        "verdict": "not assessed", "reasons": [message], "predicted_class": None, "prevalence": {"no": 0.9, "yes": 0.1},
        "flags": [{"code": "outside_scope", "message": message}, {"code": "few_values", "message": "a label map"}],
    }  # fmt: skip
    monkeypatch.setitem(globals(), "RESULT", {**RESULT, **answer})
    folder = write_series(tmp_path / "in", "axial")
    said = content(pydicom.dcmread(write(folder, tmp_path, *prediction(folder))[2]))
    assert [value for name, value in said if message in str(value)] == [f"not assessed: {message}"]
    assert ("Flag", "outside scope") in said
    assert ("Comment", "few_values: a label map") in said
    assert ("Comment", "Prevalence that the probabilities are for: no 0.9, yes 0.1") in said


def test_anonymous_objects_say_nothing_of_the_patient(tmp_path):
    folder = write_series(
        tmp_path / "in", "axial", PatientComments="Jane is a teacher", StudyDescription="Jane's head",
        InstitutionName="St Jane",
    )  # fmt: skip
    words = ("Doe", "Jane", "4711", "19700102", "ACC-99", "House", "20240305")
    named = write(folder, tmp_path / "named", *prediction(folder))
    nameless = write(folder, tmp_path / "nameless", *prediction(folder), anonymous=True)
    assert all(b"Doe^Jane" in path.read_bytes() for path in named)
    for path in nameless:
        text = pydicom.dcmread(path).to_json()
        assert [word for word in words if word in text] == []
        assert not set(uids_of(path)[:2]) & set(uids_of(tmp_path / "named" / path.name)[1:2])


@pytest.mark.parametrize("key", ["FrameOfReferenceUID", "StudyInstanceUID", "SOPInstanceUID"])
def test_a_series_that_cannot_be_referred_to_is_refused_by_the_name_of_the_file(tmp_path, key):
    folder = write_series(tmp_path / "in", "axial")
    parts = prediction(folder)
    path = folder / "00.dcm"
    broken = pydicom.dcmread(path)
    delattr(broken, key)
    broken.save_as(path)
    with pytest.raises(ValueError, match=rf"00.dcm has no {key}, so .*; export it again"):
        write(folder, tmp_path, *parts)
    assert not list(tmp_path.glob("*.dcm"))
