"""The comparison with nnU-Net without it: a stand-in answers with the true masks; ours has random weights."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import yaml

from benchmarks.beside_nnunet import theirs
from benchmarks.beside_nnunet.__main__ import _table, child_seconds, main, masks_of
from benchmarks.volumes import made_overlay
from scripts.command.files import write_json
from scripts.data import datalists
from scripts.data.datalists.regions import SCHEMES
from scripts.phantoms.sequences import write_pair

REGIONS = list(SCHEMES["brats2012"])
VALUES = ["--spacing_mm", "8", "--spatial_size", "[16,16,16]", "--network_def#filters", "[4,4,8,8]"]
STAND_IN = """#!{python}
import json, shutil, sys
from pathlib import Path
out = Path(sys.argv[2])
(out / "predicted").mkdir()
for label in (out / "raw" / "Dataset001_Beside" / "labelsTs").glob("*.nii.gz"):
    shutil.copy(label, out / "predicted" / label.name)
plan = {{"patch_size": [112, 160, 128], "batch_size": 2}}
values = {{"own_plan": plan, "own_plan_step_s": 109.4, "step_s": 3.571, "steps": 924}}
values |= {{"training_s": 3304.0, "prediction_s": 134.0, "command": sys.argv[1:]}}
(out / "theirs.json").write_text(json.dumps(values))
"""


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> dict[str, Any]:
    """Three heads with and without a tumor, two of them to test; a stand-in for the Python with nnunetv2."""
    folder = tmp_path_factory.mktemp("beside")
    for k in range(3):
        write_pair(folder / "data", [7, k], f"v{k:03d}", (8.0, 8.0, 8.0))
    rule = datalists.SliceRule(planes=(), regions=SCHEMES["brats2012"])
    datalist, _ = datalists.nifti_cases(
        folder / "data", rule=rule, channels=("FLAIR", "T1", "T1ce", "T2"), patient_pattern=r"v\d+", progress=False
    )
    every = [item for part in ("training", "validation", "test") for item in datalist[part]]
    parts = {"training": "v000", "validation": "v001", "test": "v002"}
    datalist |= {part: [item for item in every if item["patient"] == patient] for part, patient in parts.items()}
    datalists.write(datalist, folder / "list.json")
    python = folder / "python"
    python.write_text(STAND_IN.format(python=sys.executable), encoding="utf-8")
    python.chmod(0o755)
    paths = ["--dataset_dir", str(folder / "data"), "--datalist_file", str(folder / "list.json")]
    return {"folder": folder, "test": datalist["test"], "paths": [*paths, "--python", str(python)]}


def trained(out: Path, seconds: float = 77.0) -> Path:
    """A training of ours as if it were finished: random weights that know the regions."""
    (out / "run").mkdir(parents=True)
    overlay = made_overlay(out / "run", 16, [4, 4, 8, 8])
    values = yaml.safe_load(overlay.read_text(encoding="utf-8")) | {"spacing_mm": 8.0, "regions": SCHEMES["brats2012"]}
    overlay.write_text(yaml.safe_dump(values), encoding="utf-8")
    write_json({"training_s": seconds, "values": VALUES}, out / "ours.json")
    return out


@pytest.fixture(scope="module")
def compared(data) -> Path:
    out = trained(data["folder"] / "compared")
    assert main([*data["paths"], "--out", str(out), *VALUES]) == 0
    return out


def test_both_are_measured_on_the_same_cases_by_one_function(data, compared):
    found = json.loads((compared / "beside.json").read_text(encoding="utf-8"))
    assert list(found["cases"]) == ["TumorLens", "nnU-Net"]
    names = [[case["case"] for case in cases] for cases in found["cases"].values()]
    assert names[0] == names[1]
    assert len(names[0]) == len(data["test"]) == 2
    for region in REGIONS[:2]:  # the core of this tumor does not enhance
        figure = found["summaries"]["nnU-Net"][region]["dice"]
        assert figure["mean"] == 1.0, "the true masks, in nnU-Net's numbers and on its grid"
        assert found["summaries"]["TumorLens"][region]["dice"]["n"] == figure["n"]
    assert found["summaries"]["TumorLens"]["whole_tumor"]["dice"]["mean"] < 0.5
    assert found["ours"]["prediction_s"] > 0


def test_nnunet_is_given_our_patch_batch_widths_and_the_time_of_our_training(compared):
    command = json.loads((compared / "theirs.json").read_text(encoding="utf-8"))["command"]
    assert command[0].endswith("theirs.py")
    assert command[2:] == [
        "--seconds", "77.0", "--filters", "4", "4", "8", "8", "--patch", "16", "16", "16", "--batch", "2",
        "--seconds_of_own_plan",
    ]  # fmt: skip


def test_with_seconds_it_gets_so_many_and_what_is_finished_is_kept(data, tmp_path, capsys):
    out = trained(tmp_path / "out")
    arguments = [*data["paths"], "--out", str(out), "--seconds", "12.5", "--batch", "3", *VALUES]
    main(arguments)
    command = json.loads((out / "theirs.json").read_text(encoding="utf-8"))["command"]
    assert command[2:4] == ["--seconds", "12.5"]
    assert command[command.index("--batch") + 1] == "3"
    first = capsys.readouterr().out
    assert "| training, CPU s | 77 | 3304 |" in first
    assert "| prediction, CPU s a case |" in first
    assert "nnU-Net: 924 steps of 3.57 CPU s. Its own plan, patches of [112, 160, 128] in batches of 2" in first
    kept = (out / "theirs.json").stat().st_mtime_ns
    with pytest.raises(ValueError, match="give another --out for other values"):
        main([*arguments, "--max_epochs", "3"])
    assert (out / "theirs.json").stat().st_mtime_ns == kept


def test_the_table_has_a_line_a_region_and_measure_and_says_where_nothing_is_known():
    figure = {"mean": 0.5, "ci95": [0.25, 0.75], "n": 7}
    none = {"mean": None, "ci95": [None, None], "n": 0}
    single = {"mean": 0.125, "ci95": [None, None], "n": 1}
    own = {"whole_tumor": {"dice": figure, "nsd": none, "lesion_f1": single}}
    plan = {"patch_size": [8, 8, 8], "batch_size": 2}
    nnunet = {"training_s": 20, "prediction_s": 30, "steps": 5, "step_s": 1.0, "own_plan": plan, "own_plan_step_s": 9}
    lines = _table({"a": own, "b": own}, ["whole_tumor"], {"training_s": 10, "prediction_s": 9}, nnunet, 3).splitlines()
    assert lines[2:7] == [
        "| whole_tumor: dice (7 cases) | 0.500 [0.250, 0.750] | 0.500 [0.250, 0.750] |",
        "| whole_tumor: nsd (0 cases) | n/a | n/a |",
        "| whole_tumor: lesion_f1 (1 cases) | 0.125 | 0.125 |",
        "| training, CPU s | 10 | 20 |",
        "| prediction, CPU s a case | 3 | 10 |",
    ]


def test_what_cannot_be_compared_is_refused_in_one_sentence(data, tmp_path):
    out = ["--out", str(tmp_path / "out")]
    with pytest.raises(ValueError, match=r"no .*no_such_python: `make nnunet` makes the environment of nnU-Net"):
        main([*data["paths"], "--python", str(tmp_path / "no_such_python"), *out])
    (tmp_path / "out" / "run").mkdir(parents=True)
    with pytest.raises(ValueError, match="was begun before, so its CPU time is not known; give another --out"):
        main([*data["paths"], *out, *VALUES])
    assert not (tmp_path / "out" / "theirs.json").exists()
    with pytest.raises(SystemExit):
        main(["--out", str(tmp_path / "other")])


def test_a_command_that_fails_is_named():
    with pytest.raises(RuntimeError, match="ended with 3"):
        child_seconds([sys.executable, "-c", "raise SystemExit(3)"])
    assert child_seconds([sys.executable, "-c", "sum(range(10**6))"]) > 0


def test_masks_are_read_by_region_with_the_sides_of_the_voxels(tmp_path):
    values = np.zeros((2, 2, 2), np.uint8)
    values[0, 0, 0], values[1, 1, 1] = 1, 4
    nib.save(nib.Nifti1Image(values, np.diag([1.0, 2.0, 3.0, 1.0])), tmp_path / "mask.nii.gz")
    masks, sides = masks_of(tmp_path / "mask.nii.gz", {"whole": [1, 4], "rim": [4]})
    assert masks.sum(dim=(1, 2, 3)).tolist() == [2, 1]
    assert sides.tolist() == [1.0, 2.0, 3.0]


def test_nnunets_plan_is_given_our_network(tmp_path):
    kept = {"architecture": {"arch_kwargs": {"n_stages": 6, "conv_bias": True}}, "spacing": [1, 1, 1]}
    (tmp_path / "plan.json").write_text(json.dumps({"configurations": {"3d_fullres": kept}}), encoding="utf-8")
    theirs.resized(tmp_path / "plan.json", [4, 8, 16], [32, 32, 16], 3)
    plan = json.loads((tmp_path / "plan.json").read_text(encoding="utf-8"))["configurations"]["3d_fullres"]
    assert (plan["patch_size"], plan["batch_size"], plan["spacing"]) == ([32, 32, 16], 3, [1, 1, 1])
    assert plan["architecture"]["arch_kwargs"] == {
        "n_stages": 3, "features_per_stage": [4, 8, 16], "kernel_sizes": [[3, 3, 3]] * 3,
        "strides": [[1, 1, 1], [2, 2, 2], [2, 2, 2]], "n_conv_per_stage": [2] * 3, "n_conv_per_stage_decoder": [2] * 2,
        "conv_bias": True,
    }  # fmt: skip
