"""An image that a run knows is known under any name, in any folder and file type."""

from __future__ import annotations

import gzip
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from scripts.command.files import write_json
from scripts.data.content import content_sha256
from scripts.runs.seen import FILE, count_seen, seen_by, write_seen
from tests.made_runs import made_stage


def picture(path: Path, seed: int, **options) -> dict[str, str]:
    pixels = np.random.default_rng(seed).integers(0, 256, size=(24, 20), dtype=np.uint8)
    Image.fromarray(pixels).save(path, **options)
    return {"image": str(path)}


@pytest.fixture
def volume(tmp_path) -> Path:
    array = np.random.default_rng(5).integers(0, 999, size=(12, 10, 4)).astype(np.int16)
    nib.save(nib.Nifti1Image(array, np.eye(4)), tmp_path / "v.nii")
    return tmp_path / "v.nii"


def test_content_is_that_of_the_pixels(tmp_path, volume):
    first = picture(tmp_path / "a.png", 1)
    assert content_sha256(first) == content_sha256(picture(tmp_path / "b.bmp", 1))
    assert content_sha256(first) == content_sha256(picture(tmp_path / "c.png", 1, compress_level=0))
    assert content_sha256(first) != content_sha256(picture(tmp_path / "d.png", 2))
    (tmp_path / "w.nii.gz").write_bytes(gzip.compress(volume.read_bytes(), 1))
    slices = [content_sha256({"image": str(volume), "slice": k}) for k in range(4)]
    assert len(set(slices)) == 4
    assert content_sha256({"image": [str(tmp_path / "w.nii.gz"), "unread"], "slice": 2}) == slices[2]
    assert content_sha256({"image": str(volume), "slice": 2, "plane": "coronal"}) not in slices


def test_what_a_run_was_trained_and_selected_on_is_counted_wherever_it_lies_now(tmp_path, volume):
    run = tmp_path / "run"
    for name in ("stage1_segmentation", "stage2_classification"):
        made_stage(run / name)
    trained = [picture(tmp_path / "t.png", 1), {"image": str(volume), "slice": 1}]
    write_seen(run / "stage1_segmentation", training=trained, validation=[picture(tmp_path / "v.png", 2)])
    write_seen(run / "stage2_classification", training=[picture(tmp_path / "u.png", 3)], validation=[])
    assert len(seen_by(run)) == 4
    moved = tmp_path / "moved"
    shutil.move(run, moved)
    for path in ("t.png", "v.png", "u.png"):
        (tmp_path / path).unlink()
    items = [
        picture(tmp_path / "other.bmp", 1),  # trained on
        picture(tmp_path / "x.png", 2),  # selected on
        picture(tmp_path / "t.png", 9),  # another image under the name of one
        {"image": str(volume), "slice": 1},
        {"image": str(volume), "slice": 2},
    ]
    assert count_seen(moved, items) == 3


def test_a_run_that_says_nothing_is_read_from_its_datalist_or_is_not_known(tmp_path, caplog):
    picture(tmp_path / "a.png", 1)
    picture(tmp_path / "b.png", 2)
    item = {"diagnosis": 0, "patient": "p"}
    parts = {"training": [{"image": "a.png", **item}], "validation": [{"image": "b.png", **item, "patient": "q"}]}
    write_json({"classes": {"0": "no_tumor", "1": "tumor"}, **parts, "test": []}, tmp_path / "list.json")
    where = {"datalist_file": str(tmp_path / "list.json"), "dataset_dir": str(tmp_path)}
    made_stage(tmp_path / "known" / "joint", **where)
    made_stage(tmp_path / "unknown" / "joint", **{**where, "datalist_file": str(tmp_path / "gone.json")})
    other = [picture(tmp_path / "copy.png", 2), picture(tmp_path / "c.png", 3)]
    assert count_seen(tmp_path / "known", other) == 1
    assert count_seen(tmp_path / "unknown", other) is None
    assert "not known which images" in caplog.text
    assert not (tmp_path / "known" / "joint" / FILE).exists()
