"""The changes are what they say, and a change of the verdict is counted."""

from __future__ import annotations

import numpy as np

from benchmarks import invariance
from scripts.inference.pipeline import Inference
from tests.scans import head, write_overlay


def picture():
    return np.arange(40 * 30, dtype=np.int64).reshape(40, 30).astype(np.uint8)


def test_borders_lie_where_they_say():
    framed = invariance.bordered(picture(), (1, 0, 0, 1), 128, 5)
    assert framed.shape == (45, 35)
    assert (framed[:5] == 128).all()
    assert (framed[:, 30:] == 128).all()
    assert np.array_equal(framed[5:, :30], picture())


def test_every_change_comes_with_the_picture_it_is_measured_against():
    rows = list(invariance.changes(picture(), np.random.default_rng(0)))
    names = [name for name, _, _ in rows]
    assert len(set(names)) == len(names) == 3 * 12 + len(invariance.OTHERS)
    for name, before, after in rows:
        assert before.shape == (40, 30)
        if "jpeg:" in name:  # a border that was cut off again leaves the file's own pixels
            side = next(sides for place, sides in invariance.SIDES.items() if name.endswith(place))
            corner = [after.shape[axis] - 40 + 10 * axis if side[axis] else 0 for axis in (0, 1)]
            corner = [n // (1 + side[axis + 2]) for axis, n in enumerate(corner)]
            assert np.array_equal(before, after[corner[0] : corner[0] + 40, corner[1] : corner[1] + 30])
        if "lossless" in name:
            assert after.size > before.size
            assert np.array_equal(before, picture())
        if name == "16 bits":
            assert np.array_equal(after // 257, before)


def test_a_verdict_that_changes_is_counted(monkeypatch):
    def brightness(_, array):
        return (0.4 if array.mean() < 100 else 0.6), 0.5

    monkeypatch.setattr(invariance, "probability", brightness)
    rows = {row["change"]: row for row in invariance.measure(None, [np.full((20, 20), 60, np.uint8)])}
    white = [row for name, row in rows.items() if name.startswith("border, lossless: white")]
    assert any(row["flips"] == 1 and abs(row["maximum"] - 0.2) < 1e-9 for row in white)
    assert all(row["flips"] == 0 for name, row in rows.items() if "lossless: black" in name)
    text = invariance.table(list(rows.values()))
    assert "MISSED" in text


def test_a_picture_and_its_bordered_copy_go_through_the_pipeline_of_inference(tmp_path):
    inference = Inference(overlay=write_overlay(tmp_path))
    plane = head()[:, :, 4].astype(np.float32)
    plane = np.uint8(255 * plane / plane.max())
    (before, threshold), (after, _) = (
        invariance.probability(inference, picture)
        for picture in (plane, invariance.bordered(plane, (1, 0, 1, 1), 255, 9))
    )
    assert 0 < before < 1
    assert 0 < threshold < 1
    assert abs(after - before) < 1e-3
