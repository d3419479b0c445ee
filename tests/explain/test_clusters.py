"""What is resampled together: patients, groups that join them, and cases that have neither."""

from __future__ import annotations

import numpy as np
import pytest

from scripts.data.datalists.clusters import clusters as clusters_of_items
from scripts.explain.clusters import clusters


def test_a_group_that_shows_up_late_joins_patients_that_were_apart():
    rows = [
        {"source": "a", "patient": "p1", "name": "x"},
        {"source": "b", "patient": "p7", "group": "g", "name": "y"},
        {"source": "a", "patient": "p1", "group": "g", "name": "z"},
        {"source": "c", "patient": "", "group": "g", "name": "w"},
    ]
    assert clusters(rows) == [("patient", "a: p1")] * 4


def test_a_cluster_is_called_after_its_first_case():
    rows = [{"group": "g"}, {"patient": "p"}, {"patient": "p", "group": "g"}, {"patient": "q"}]
    assert clusters(rows) == [("group", "g")] * 3 + [("patient", "q")]


@pytest.mark.parametrize("seed", range(20))
def test_clusters_are_those_of_a_datalist(seed):
    """Results and datalists join patients and groups by code of their own: no case may move between them."""
    rng = np.random.default_rng(seed)
    rows = []
    for k in range(40):
        row = {"name": f"i{k}", "image": f"i{k}", "source": rng.choice(["a", "b", ""])}
        if rng.random() < 0.6:
            row["patient"] = f"p{rng.integers(12)}"
        if rng.random() < 0.5:
            row["group"] = f"g{rng.integers(12)}"
        rows.append(row)
    names = [" ".join(cluster) for cluster in clusters(rows) if cluster[0] != "case"]
    owners = [owner for owner in clusters_of_items(rows) if not owner.startswith("image ")]
    assert names == owners
    assert len(set(clusters(rows))) == len(set(clusters_of_items(rows)))
    assert 5 < len(set(owners)) < len(owners), "some must be joined, and not all"


def test_patients_of_one_number_and_files_of_one_name_in_two_sources_are_two():
    rows = [{"source": source, "patient": patient, "name": "x"} for patient in ("p1", "") for source in "ab"]
    assert clusters(rows) == [("patient", "a: p1"), ("patient", "b: p1"), ("case", "a: x"), ("case", "b: x")]


def test_a_case_that_has_no_name_is_refused():
    with pytest.raises(ValueError, match="without patient, group and name cannot be resampled"):
        clusters([{"source": "a", "patient": "", "group": None}])
