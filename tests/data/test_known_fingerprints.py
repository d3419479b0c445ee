"""Fingerprints on disk: found by the state of a file, and refused where they are something else."""

from __future__ import annotations

import os

import numpy as np
import pytest

from scripts.data.datalists.fingerprints import SIZE
from scripts.data.datalists.known_fingerprints import FILE, VERSION, KnownFingerprints, key_of, write

PRINTS = np.random.default_rng(0).integers(0, 256, (3, SIZE)).astype(np.uint8)
CONTENTS = [f"{k:064x}" for k in (7, 8, 9)]


@pytest.fixture
def root(tmp_path):
    for k in range(3):
        (tmp_path / f"{k}.png").write_bytes(b"x" * (k + 1))
    return tmp_path


def kept(root, numbers=(0, 1), name=FILE):
    rows = [(key_of({"image": f"{k}.png"}, root), PRINTS[k], CONTENTS[k]) for k in numbers]
    assert write(root / name, rows) == len(numbers)
    return root / name


def test_what_was_written_is_found_and_nothing_else(root):
    known = KnownFingerprints([kept(root), kept(root, (2,), "more.npz")])
    for k in range(3):
        for item in ({"image": f"{k}.png", "diagnosis": 1}, {"image": [f"{k}.png", "other.png"]}):
            bits, content = known.of(item, root)
            assert np.array_equal(bits, PRINTS[k])
            assert content == CONTENTS[k]
    assert known.of({"image": "0.png", "slice": 0}, root) is None, "a slice is something else"
    assert known.of({"image": "gone.png"}, root) is None
    assert KnownFingerprints().of({"image": "0.png"}, root) is None
    assert KnownFingerprints([kept(root, ())]).of({"image": "0.png"}, root) is None


def test_a_file_that_has_changed_is_not_known(root):
    known = KnownFingerprints([kept(root)])
    os.utime(root / "1.png", ns=(1, 1))
    assert known.of({"image": "1.png"}, root) is None
    assert known.of({"image": "0.png"}, root) is not None


def test_a_key_is_of_the_file_the_slice_and_the_plane(root):
    items = [
        {"image": "0.png"},
        {"image": "1.png"},
        {"image": "0.png", "slice": 1},
        {"image": "0.png", "slice": 2},
        {"image": "0.png", "slice": 1, "plane": "coronal"},
    ]
    keys = [key_of(item, root) for item in items]
    assert len(set(keys)) == len(items)
    assert {len(key) for key in keys} == {32}
    assert key_of({"image": "0.png", "patient": "p"}, root) == keys[0]
    with pytest.raises(ValueError, match="cannot be read"):
        key_of({"image": "gone.png"}, root)


def test_a_file_that_is_none_is_refused(root):
    with pytest.raises(FileNotFoundError, match="python -m scripts fingerprint writes it"):
        KnownFingerprints([root / "gone.npz"])
    columns = {"keys": np.zeros((1, 32)), "fingerprints": np.zeros((1, SIZE)), "contents": np.zeros((1, 32))}
    wrong = [
        {**columns, "version": VERSION + 1},
        {**columns, "version": VERSION - 1},
        {**columns, "version": VERSION, "keys": np.zeros((1, 31))},
        {**columns, "version": VERSION, "fingerprints": np.zeros((1, SIZE + 1))},
        columns,
    ]
    for content in wrong:
        np.savez(root / "wrong.npz", **content)
        with pytest.raises(ValueError, match="holds no fingerprints of this version"):
            KnownFingerprints([root / "wrong.npz"])
    (root / "wrong.npz").write_bytes(b"PK")
    with pytest.raises(ValueError, match="holds no fingerprints of this version"):
        KnownFingerprints([root / "wrong.npz"])
    np.savez(root / "right.npz", version=VERSION, **{k: v.astype(np.uint8) for k, v in columns.items()})
    KnownFingerprints([root / "right.npz"])
