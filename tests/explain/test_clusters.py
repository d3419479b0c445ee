"""What is resampled together: patients, groups that join them, and cases that have neither."""

from __future__ import annotations

import pytest

from scripts.explain.clusters import clusters


def test_a_group_that_shows_up_late_joins_patients_that_were_apart():
    rows = [
        {"source": "a", "patient": "p1", "name": "x"},
        {"source": "b", "patient": "p7", "group": "g", "name": "y"},
        {"source": "a", "patient": "p1", "group": "g", "name": "z"},
        {"source": "c", "patient": "", "group": "g", "name": "w"},
    ]
    assert clusters(rows) == [("patient", "a: p1")] * 4


def test_patients_of_one_number_and_files_of_one_name_in_two_sources_are_two():
    rows = [{"source": source, "patient": patient, "name": "x"} for patient in ("p1", "") for source in "ab"]
    assert clusters(rows) == [("patient", "a: p1"), ("patient", "b: p1"), ("case", "a: x"), ("case", "b: x")]


def test_a_case_that_has_no_name_is_refused():
    with pytest.raises(ValueError, match="without patient, group and name cannot be resampled"):
        clusters([{"source": "a", "patient": "", "group": None}])
