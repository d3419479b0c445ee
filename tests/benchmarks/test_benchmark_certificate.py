"""The benchmark of a certificate: what is counted adds up, and a full run alone has a target."""

from __future__ import annotations

import json

import numpy as np
import pytest

from benchmarks import certificate
from scripts.certificate.folders import read_cases
from scripts.certificate.planted import CLASSES


def test_pictures_are_written_as_the_certificate_reads_them(tmp_path):
    assert certificate.write_pictures(tmp_path, 5, 96) == (3, 2)
    left_out = {}
    cases = read_cases(tmp_path / "images", tmp_path / "masks", list(CLASSES), left_out)
    assert [case.kind for case in cases] == [0, 0, 1, 1, 2]
    assert {case.image.shape for case in cases} == {(1, 96, 96)}
    assert all((case.mask is not None) == bool(case.kind) for case in cases)
    assert {case.plane for case in cases} == {"axial"}
    assert left_out == {}


def test_the_model_spends_its_time_and_answers_in_probabilities():
    model = certificate.Slow(20)
    rows = model(np.stack([np.zeros((1, 8, 8)), np.ones((1, 8, 8))]).astype(np.float32))
    assert 0.02 <= model.seconds < 1
    np.testing.assert_allclose(rows.sum(axis=1), 1)
    assert rows[0, 0] > 0.9 > 0.1 > rows[1, 0]


def test_calls_hits_and_minutes_add_up(tmp_path, capsys):
    out = tmp_path / "rows.json"
    assert certificate.main(["--pictures", "5", "--side", "128", "--milliseconds", "5", "--out", str(out)]) == 0
    rows = {row["name"]: row["value"] for row in json.loads(out.read_text())}
    assert rows["pictures certified"] == 5
    assert rows["of these seen by the model"] + rows["of these known before"] == rows["pictures asked about"]
    assert rows["of these seen by the model"] / 16 <= rows["calls"] <= rows["of these seen by the model"]
    assert rows["the model's own, CPU"] * 60 >= 0.005 * rows["calls"]
    whole = rows["the model's own, CPU"] + rows["the rest, CPU"]
    assert whole == pytest.approx(rows["certificate in all, CPU"])
    printed = capsys.readouterr().out
    assert "128 x 128 pixels, 5 ms a call" in printed
    assert "met" not in printed, "the target is that of 200 pictures and 50 ms"
