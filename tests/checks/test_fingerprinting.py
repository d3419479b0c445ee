"""Fingerprints by shards are those of one process, and a merge that takes them is the merge that reads the images."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from scripts.__main__ import main as command
from scripts.data.datalists import merging
from scripts.data.datalists.known_fingerprints import FILE, KnownFingerprints
from scripts.data.datalists.linking import picture_of
from tests.data.test_datalists_merging import listed, picture, saved

ENTRIES = [{"image": f"{k}.png", "diagnosis": 0} for k in range(5)]


@pytest.fixture
def sources(tmp_path) -> tuple[Path, Path]:
    """A list of pictures, one of them torn, and a list of slices and of a copy."""
    a, b = tmp_path / "a", tmp_path / "b"
    for k in range(5):
        saved(picture(k), a / f"{k}.png")
    (a / "4.png").write_bytes((a / "4.png").read_bytes()[:200])
    saved(picture(1).resize((150, 140)), b / "again1.jpg")
    stack = np.stack([np.asarray(picture(k), np.float32).T for k in (8, 3, 9)], axis=-1)
    nib.save(nib.Nifti1Image(stack, np.diag([-1.0, -1, 5, 1])), b / "v.nii.gz")
    slices = [{"image": "v.nii.gz", "slice": k, "diagnosis": 0, "patient": "p"} for k in (1, 2)]
    lists = {"a": {"training": ENTRIES}, "b": {"test": [*slices, {"image": "again1.jpg", "diagnosis": 0}]}}
    for name, items in lists.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(listed(name, items)))
    return a, b


def fingerprint(tmp_path: Path, name: str, out: Path, *more: str) -> int:
    given = ["--dataset_dir", str(tmp_path / name), "--datalist_file", str(tmp_path / f"{name}.json")]
    return command(["fingerprint", *given, "--out", str(out), *more])


def test_shards_write_what_one_process_writes(tmp_path, sources, capsys):
    assert fingerprint(tmp_path, "a", tmp_path / "one") == 1, "an image was skipped"
    assert "4 fingerprints, 1 images not read" in capsys.readouterr().out
    for shard in ("2/2", "1/2"):
        assert fingerprint(tmp_path, "a", tmp_path / "shards", "--shard", shard) == 0
    assert fingerprint(tmp_path, "a", tmp_path / "shards", "--merge") == 1
    assert (tmp_path / "shards" / FILE).read_bytes() == (tmp_path / "one" / FILE).read_bytes()
    assert not (tmp_path / "shards" / "ledger").exists()
    known = KnownFingerprints([tmp_path / "one" / FILE])
    for k in range(4):
        bits, content = known.of({"image": f"{k}.png"}, tmp_path / "a")
        expected, same = picture_of({"image": f"{k}.png"}, tmp_path / "a")
        assert (bits == expected).all()
        assert content == same
    assert known.of({"image": "4.png"}, tmp_path / "a") is None


def test_a_merge_with_fingerprints_reads_only_what_is_new_or_has_changed(tmp_path, sources, monkeypatch):
    read: list[str] = []
    monkeypatch.setattr(merging, "picture_of", lambda item, root: read.append(item["image"]) or picture_of(item, root))
    lists = [str(tmp_path / f"{name}.json") for name in "ab"]
    merge = ["datalist", "merge", *lists, "--dataset_dir", *map(str, sources)]

    def merged(name: str, *more: str) -> tuple[bytes, bytes, list[str]]:
        read.clear()
        out = tmp_path / name / "both.json"
        assert command([*merge, "--out", str(out), *more]) == 0
        return out.read_bytes(), out.with_name("both.report.json").read_bytes(), sorted(read)

    whole = merged("whole")
    assert len(whole[2]) == 8
    prints = []
    for name in "ab":
        prints.append(str(tmp_path / f"prints_{name}"))
        assert fingerprint(tmp_path, name, Path(prints[-1]), "--processes", "2") == int(name == "a")
    assert merged("known", "--fingerprints", *prints) == (*whole[:2], ["a/4.png"])
    assert merged("half", "--fingerprints", prints[0]) == (
        *whole[:2],
        ["a/4.png", "b/again1.jpg", "b/v.nii.gz", "b/v.nii.gz"],
    )
    saved(picture(7), sources[0] / "0.png")
    changed = merged("changed", "--fingerprints", *prints)
    assert changed[2] == ["a/0.png", "a/4.png"]
    assert changed[:2] == merged("read")[:2]


def test_what_is_no_file_of_fingerprints_is_said_to_be_none(tmp_path, sources):
    with pytest.raises(FileNotFoundError, match="python -m scripts fingerprint writes it"):
        KnownFingerprints([tmp_path / FILE])
    (tmp_path / FILE).write_bytes(b"PK no")
    with pytest.raises(ValueError, match="holds no fingerprints of this version"):
        KnownFingerprints([tmp_path / FILE])
    np.savez(tmp_path / FILE, version=1, keys=np.zeros((2, 32), np.uint8), contents=np.zeros((2, 3), np.uint8),
             fingerprints=np.zeros((2, 672), np.uint8))  # fmt: skip
    with pytest.raises(ValueError, match="holds no fingerprints of this version"):
        KnownFingerprints([tmp_path / FILE])
    shutil.rmtree(sources[0])
    sources[0].mkdir()
    with pytest.raises(ValueError, match=r"none of 5 images of .* can be read"):
        fingerprint(tmp_path, "a", tmp_path / "out")
    assert not (tmp_path / "out" / FILE).exists()
