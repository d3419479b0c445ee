"""Every kind of picture is a row, with its share flagged; a volume is what its slices vote for."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks import scope as benchmark
from scripts.evaluation.contrasts import CHANGES
from scripts.evaluation.outsiders import OUTSIDERS
from scripts.evaluation.scope_fit import features_of, prepared_items
from scripts.inference import scope
from scripts.inference.pipeline import Inference
from scripts.inference.scope_features import probe
from tests.scans import head, oblique, save, write_overlay


@pytest.fixture(scope="module")
def inference(tmp_path_factory):
    """A tiny network whose scope was fitted on 24 slices of drawn heads."""
    folder = tmp_path_factory.mktemp("scope")
    loaded = Inference(overlay=write_overlay(folder))
    items = [{"image": slice_of(i), "name": f"head {i}"} for i in range(24)]
    prepared = [item for _, item in prepared_items(items, loaded.preprocessing[0].pipeline)]
    own = features_of(loaded.network, [(item["image"], item["foreground"]) for item in prepared])
    scope.fit(own, own, own + 3 * own.std(axis=0) + 0.1, probe(loaded.network)).save(folder / scope.FILE)
    return Inference(overlay=folder / "network.yaml")


def slice_of(seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    plane = head()[:, :, 4].astype(np.float32)
    return (plane + (plane > 0) * rng.normal(0, 4, plane.shape))[None].astype(np.float32)


def test_each_foreign_kind_is_a_row_and_left_out_kinds_are_named(inference):
    rows = benchmark.pictures(inference, [{"image": slice_of(30 + i), "name": f"own {i}"} for i in range(4)], 2)
    by_name = {row["name"]: row for row in rows}
    assert list(by_name) == ["inside", *CHANGES, *OUTSIDERS, "all fitted with", "all left out of the fit"]
    assert by_name["knee (drawn)"]["kind"] == by_name["FLAIR-like"]["kind"] == benchmark.LEFT_OUT
    assert by_name["inverted"]["kind"] == benchmark.FITTED
    assert by_name["air alone"]["recognized"] == 1.0, "refused"
    assert by_name["all left out of the fit"]["n"] == sum(
        row["n"] - row["refused"]
        for row in rows
        if row["kind"] == benchmark.LEFT_OUT and not row["name"].startswith("all")
    )


def test_a_volume_is_flagged_by_the_vote_of_its_slices(inference, tmp_path):
    file = save(tmp_path / "volume.nii.gz", head(), oblique())
    (row,) = benchmark.volumes(inference, [file])
    assert (row["score"] > 1) == (row["flagged_share"] > scope.VOTE)
    assert row["volume"] == f"{tmp_path.name}/volume.nii.gz"
    text = benchmark.table([{"name": "inside", "kind": "inside", "n": 4, "recognized": 0.25, "auroc": None}], [row])
    assert "| inside | inside | 4 | 25.0% |  |" in text
    assert f"| all | 1 volumes | | {int(row['score'] > 1)} |" in text
