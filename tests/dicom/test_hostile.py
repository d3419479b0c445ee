"""Two hundred broken or hostile files: each is refused in one sentence or read rightly, in little memory."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest

from scripts.inference.batches import PARTS
from tests.dicom.hostile import files, pixels
from tests.inference.test_predict import run
from tests.scans import ROOT, write_overlay
from transforms.reading import read_volume

MEBIBYTES = 384  # that the address space of the reader may grow by
READER = f"""
import json, pathlib, resource, sys
from transforms.reading import file_kind, read_volume
folder = pathlib.Path(sys.argv[1])
def read(path):
    array, _ = read_volume(path, file_kind(path))
    return array
for name in sys.argv[2:]:
    read(folder / name)  # libraries are loaded now, and not below
pages = int(pathlib.Path("/proc/self/statm").read_text().split()[0])
most = pages * resource.getpagesize() + ({MEBIBYTES} << 20)
resource.setrlimit(resource.RLIMIT_AS, (most, most))
for path in sorted(folder.iterdir()):
    try:
        array = read(path)
        print(json.dumps([path.name, "read", list(array.shape)]))
    except ValueError as error:
        print(json.dumps([path.name, "refused", str(error)]))
"""


@pytest.fixture(scope="module")
def hostile(tmp_path_factory):
    """The folder of the files, and of each its name and what is to become of it."""
    folder, known = tmp_path_factory.mktemp("hostile"), []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of pydicom, about what is written on purpose
        for number, (name, data, expected) in enumerate(files()):
            (folder / f"{number:03d}.dcm").write_bytes(data)
            known.append((name, expected))
    return folder, known


def test_each_file_is_read_rightly_or_refused_by_name_in_one_sentence_and_little_memory(hostile):
    folder, known = hostile
    assert len(known) >= 200
    assert len({name for name, _ in known}) == len(known)
    warm = [f"{k:03d}.dcm" for k, (name, _) in enumerate(known) if name in ("sound", "RLE", "JPEG 2000")]
    done = subprocess.run(
        [sys.executable, "-c", READER, str(folder), *warm], capture_output=True, text=True, cwd=ROOT, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(answers) == len(known)
    wrong = []
    for (name, expected), (file, answer, said) in zip(known, answers, strict=True):
        wrong += [(name, answer, said)] * (expected not in (answer, "either"))
        if answer == "refused":
            assert said.startswith(f"file {folder / file} "), said
            assert said.isprintable(), said
            assert not any(word in said.lower() for word in ("itk", "gdcm", "pydicom", "errno", "doe^", "4711")), said
        else:
            assert said == [64, 64, 1], name
    assert wrong == []


def test_what_is_read_of_them_is_what_the_slice_holds(hostile):
    folder, known = hostile
    for number, (name, expected) in enumerate(known):
        if expected == "read":
            array, _ = read_volume(folder / f"{number:03d}.dcm", "dicom")
            assert np.array_equal(array[..., 0].T, pixels()), name


def test_of_none_of_them_results_are_stored_half(hostile, tmp_path, caplog):
    folder, known = hostile
    pytest.importorskip("highdicom", reason="highdicom (the extra dicom) is not installed")
    for path in folder.iterdir():
        (tmp_path / "in" / path.stem).mkdir(parents=True)
        (tmp_path / "in" / path.stem / "a.dcm").hardlink_to(path)
    with caplog.at_level(logging.INFO):
        status, rows = run(tmp_path / "in", tmp_path / "out", write_overlay(tmp_path), "--dicom", "--assess_anyway")
    assert status == 1
    assert len(rows) == len(known)
    good = {name for name, row in rows.items() if not row["error"]}
    assert "000" in good
    assert not any("Error" in row["error"] or row["status"] == "failed" for row in rows.values())
    kept = {path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").rglob("*") if path.is_file()}
    endings = [end for end in (*PARTS, "_result.json") if end not in ("_mask.png", "_segments.dcm")]
    tables = {f"results.{kind}" for kind in ("csv", "html", "json")}
    assert kept == {f"{name}{end}" for name in good for end in endings} | tables
    assert not any(word in caplog.text for word in ("Doe", "Jane", "4711", "ACC-99"))


def test_a_folder_of_sound_and_broken_slices_is_no_series_with_holes(hostile, tmp_path):
    """A slice that cannot be read leaves a hole, which is refused, or names what is wrong."""
    folder, _ = hostile
    for k, number in enumerate((0, 5, 20)):
        (tmp_path / f"{k}.dcm").write_bytes((folder / f"{number:03d}.dcm").read_bytes())
    with pytest.raises(ValueError, match=rf"(file|folder) {Path(tmp_path)}.*; "):
        read_volume(tmp_path, "dicom")
