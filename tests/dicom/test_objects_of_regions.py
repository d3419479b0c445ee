"""Regions in DICOM objects: a segment each, by name and code, overlapping as the regions do."""

from __future__ import annotations

import shutil
import subprocess

import numpy as np
import pydicom
import pytest

from scripts.data.datalists.regions import SCHEMES
from scripts.dicom.segmentation import mask_segments
from scripts.dicom.writing import write_objects
from tests.dicom.series import write_series
from tests.dicom.test_objects import MADE_BY, RESULT, USE, content, on_grid, prediction, volume_of

hd = pytest.importorskip("highdicom", reason="highdicom (the extra dicom) is not installed")

REGIONS = {**SCHEMES["brats2024"], "necrosis": [1], "edema": [2]}
NEOPLASM = ("108369006", "SCT")
CODES = [
    NEOPLASM, NEOPLASM, ("C113842", "NCIt"), ("RESECTION_CAVITY", "99TUMORLENS"), ("6574001", "SCT"),
    ("79654002", "SCT"),
]  # fmt: skip


def test_long_names_share_neither_code_nor_more_characters_than_dicom_allows():
    names = ["non_enhancing_tumor_core", "non_enhancing_tumor_rim", "x" * 90]
    segments = mask_segments(np.zeros((2, 2), np.uint8), {name: [k] for k, name in enumerate(names, start=1)})
    codes = [segment.kind.value for segment in segments]
    assert len(set(codes)) == 3
    assert max(map(len, codes)) <= 16
    assert max(len(segment.label) for segment in segments) <= 64


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Objects of a mask with the values 0 to 4 on an oblique series."""
    folder = tmp_path_factory.mktemp("regions")
    series = write_series(folder / "in", "oblique")
    _, evidence, affine = prediction(series)
    mask = np.random.default_rng(2).integers(0, 5, evidence.shape).astype(np.uint8)
    result = {**RESULT, "regions": {name: {"labels": values} for name, values in REGIONS.items()}}
    paths = write_objects(series, mask, evidence, affine, result, MADE_BY, folder / "case", USE)
    empty = write_objects(series, 0 * mask, evidence, affine, result, MADE_BY, folder / "empty", USE)
    return mask, affine, paths, empty


def test_each_region_is_a_segment_by_its_name_and_code(made):
    seg = pydicom.dcmread(made[2][0])
    assert [one.SegmentLabel for one in seg.SegmentSequence] == [name.replace("_", " ") for name in REGIONS]
    types = [one.SegmentedPropertyTypeCodeSequence[0] for one in seg.SegmentSequence]
    assert [(code.CodeValue, code.CodingSchemeDesignator) for code in types] == CODES
    assert types[3].CodeMeaning == "resection cavity"
    assert seg.SegmentSequence[1].TrackingID == "TumorLens tumor core"


def test_each_segment_is_the_mask_of_its_region_also_where_they_overlap(made):
    mask, affine, paths, _ = made
    seg = hd.seg.segread(paths[0])
    for number, values in enumerate(REGIONS.values(), 1):
        array, grid = volume_of(seg, segment_numbers=[number], combine_segments=True)
        assert np.array_equal(on_grid(array, grid, affine, mask.shape) > 0, np.isin(mask, values))


def test_the_report_has_the_volume_of_every_region_under_its_concept(made):
    mask, affine, paths, _ = made
    said = content(pydicom.dcmread(paths[2]))
    voxel_ml = abs(np.linalg.det(affine[:3, :3])) / 1000
    volumes = [value for name, value in said if name == "Volume"]
    assert volumes == [(round(float(np.isin(mask, v).sum()) * voxel_ml, 4), "mL") for v in REGIONS.values()]
    findings = [value for name, value in said if name == "Finding"]
    assert findings[-6:] == ["Neoplasm", "Neoplasm", "Enhancing Lesion", "resection cavity", "Necrosis", "Edema"]
    assert ("Tracking Identifier", "TumorLens enhancing tumor") in said


def test_an_empty_mask_has_a_segment_for_every_region_all_the_same(made):
    seg = hd.seg.segread(made[3][0])
    assert [one.SegmentLabel for one in seg.SegmentSequence] == [name.replace("_", " ") for name in REGIONS]
    assert not seg.pixel_array.any()


def test_the_validator_of_dicom3tools_finds_no_error(made):
    if shutil.which("dciodvfy") is None:
        pytest.skip("dciodvfy (Debian's dicom3tools) is not installed")
    for path in made[2] + made[3]:
        done = subprocess.run(["dciodvfy", "-new", str(path)], capture_output=True, text=True, check=False)
        errors = [line for line in (done.stdout + done.stderr).splitlines() if line.startswith("Error")]
        assert errors == [], path.name
