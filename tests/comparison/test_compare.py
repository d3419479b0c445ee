"""The comparison: differences by hand, rows of stages and seeds, what is missing, and what is refused."""

from __future__ import annotations

import base64
import csv
import json
import math
import re

import pytest
import torch
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.summary.writer.record_writer import RecordWriter

from scripts.__main__ import main as command
from scripts.command.errors import one_sentence_errors
from scripts.command.files import write_json
from scripts.comparison import comparison_files
from scripts.comparison.compare import read_models, write_comparison
from scripts.comparison.comparison import compare, difference, value_of
from scripts.comparison.trained_models import MEASURES, check_comparable, expand, read_model, stale, training_seconds
from scripts.measures.claims import verdict
from scripts.networks.multitask_dynunet import MultiTaskDynUNet
from scripts.runs.artifacts import EVALUATION, KEY, mark, weights_sha256
from scripts.runs.documents import format_number
from tests.made_runs import NETWORK, case_rows, made_evaluation, made_model, made_stage, map_rows

BY_NAME = {measure.name: measure for measure in MEASURES}
THREE = {
    "stage1_segmentation": {"train_classification": False, "cls_weight": 0.0},
    "stage2_classification": {
        "train_segmentation": False,
        "seg_weight": 0.0,
        "initial_weights": "$@run_dir + '/stage1_segmentation/model.pt'",
    },
    "stage3_joint": {"initial_weights": "$@run_dir + '/stage2_classification/model.pt'"},
}


def made_run(folder, seed=0, energy=(0.9, 0.7, 0.5), **given):
    """Three stages; stages 1 and 3 evaluated."""
    for stage, config in THREE.items():
        made_stage(folder / stage, seed, run_dir="moved/from/elsewhere", **config)
    made_evaluation(folder, case_rows(**given), map_rows(energy))
    made_evaluation(folder / "stage1_segmentation", case_rows(dice=[0.7, 0.5, 0.4]))
    return folder


def test_values_by_hand():
    model = made_model()
    assert value_of(model, BY_NAME["dice"]) == (pytest.approx(1.9 / 3), 3)
    assert value_of(model, BY_NAME["balanced_accuracy"]) == (pytest.approx((2 / 3 + 1) / 2), 5)
    assert value_of(model, BY_NAME["roc_auc"]) == (1.0, 5)
    assert value_of(model, BY_NAME["pointing_game"]) == (pytest.approx(2 / 3), 3)


def test_a_paired_difference_by_hand():
    reference = made_model()
    found, measured = difference([made_model("other", dice=[0.9, 0.8, 0.6])], [reference], BY_NAME["dice"])
    assert found["difference"] == measured.difference == pytest.approx(0.4 / 3)
    # Patient a gains 0.1 and 0.2 in two slices, patient b 0.1: the sums about the mean are 0.1 / 3 apart from 0
    error = math.sqrt(2 * 2 * (0.1 / 3) ** 2 / 9)
    assert measured.error == pytest.approx(error)
    # One more patient lies as far from the mean on either side: their sum by the number of slices a patient.
    away = 0.1 / 3 * 2 / 3
    wide = away / 3 + 12.706 * math.sqrt((2 * error**2 + away**2 * 2 / 3) / 6)
    assert found["ci95"] == pytest.approx([0.4 / 3 - wide, 0.4 / 3 + wide], rel=1e-3)
    assert (found["n"], found["groups"]) == (3, 2)
    back, _ = difference([reference], [made_model("other", dice=[0.9, 0.8, 0.6])], BY_NAME["dice"])
    assert back["difference"] == pytest.approx(-0.4 / 3)


def test_a_difference_that_is_the_same_for_all_is_no_claim():
    """Two patients changed alike: what a third would do is not known."""
    result = compare([made_model(), made_model("other", dice=[0.9, 0.7, 0.6])])
    entry = result["rows"][1]["difference"]["dice"]
    assert entry["difference"] == pytest.approx(0.1)
    assert (entry["claim"], entry["needed"]) == ("not settled", None)


def test_less_is_better_where_it_is():
    reference = made_model()
    more = made_model("other")
    for row, value in zip(more.maps.values(), (0.2, 0.2, 0.3), strict=False):
        row["background_energy"] = str(value)
    found, measured = difference([more], [reference], BY_NAME["background_energy"])
    assert found["difference"] > 0.1
    assert verdict(measured, BY_NAME["background_energy"].higher, 0.01, 1)["claim"] == "worse"
    assert not BY_NAME["background_energy"].higher


def test_balanced_accuracy_and_auc_are_paired_by_case():
    reference = made_model()
    same = made_model("other", probability=[0.95, 0.85, 0.45, 0.35, 0.25])  # decides and ranks alike
    for name in ("balanced_accuracy", "roc_auc"):
        found, measured = difference([same], [reference], BY_NAME[name])
        assert (found["difference"], measured.false_if_higher) == (0.0, 1.0)
    worse = made_model("other", probability=[0.9, 0.4, 0.4, 0.3, 0.2])
    assert difference([worse], [reference], BY_NAME["balanced_accuracy"])[0]["difference"] == pytest.approx(-1 / 6)


def test_seeds_that_both_have_are_paired():
    reference = [made_model(seed=0), made_model(seed=1, dice=[0.6, 0.4, 0.3])]
    other = [made_model("other", seed=1, dice=[0.7, 0.5, 0.4]), made_model("other", seed=2, dice=[0.0, 0.0, 0.0])]
    found, _ = difference(other, reference, BY_NAME["dice"])
    assert found["seeds"] == [1]
    assert found["difference"] == pytest.approx(0.1)
    assert found["by_seed"] == pytest.approx([0.1])
    unrelated, _ = difference([other[1]], [reference[0]], BY_NAME["dice"])
    assert unrelated["by_seed"] is None
    assert unrelated["difference"] == pytest.approx(-1.9 / 3)


def test_rows_are_means_over_seeds_with_their_range():
    result = compare([made_model(seed=1, dice=[0.6, 0.4, 0.3]), made_model(seed=0), made_model("other")])
    row = result["rows"][0]
    assert row["seeds"] == [0, 1]
    dice = row["measures"]["dice"]
    assert dice["by_seed"] == pytest.approx([1.9 / 3, 1.3 / 3])
    assert [dice[k] for k in ("mean", "min", "max")] == pytest.approx([1.6 / 3, 1.3 / 3, 1.9 / 3])
    assert row["difference"] == {}
    assert result["rows"][1]["difference"]["dice"]["seeds"] == [0]


def test_what_a_model_was_not_trained_for_is_said_and_is_no_zero(tmp_path):
    segmenting = made_model("segmenting", tasks=["segmentation"], method=None, layer=None)
    classifying = made_model("classifying", tasks=["classification"], dice=[None] * 3)
    result = compare([made_model(), segmenting, classifying])
    rows = {row["name"]: row for row in result["rows"]}
    assert rows["segmenting"]["measures"]["roc_auc"] == {"missing": "not trained for classification"}
    assert rows["segmenting"]["map"] is None
    assert rows["classifying"]["measures"]["dice"] == {"missing": "not trained for segmentation"}
    assert rows["classifying"]["difference"].get("dice") is None
    comparison_files.write(result, tmp_path, "comparison")
    with open(tmp_path / "model_comparison.csv", encoding="utf-8", newline="") as file:
        table = {row["model"]: row for row in csv.DictReader(file)}
    assert table["classifying"]["dice"] == table["classifying"]["dice_difference"] == ""
    assert table["classifying"]["missing"] == "not trained for segmentation"
    assert float(table["ours"]["dice"]) == pytest.approx(1.9 / 3)
    printed = comparison_files.table(result)
    line = next(text for text in printed.splitlines() if text.startswith("classifying"))
    assert line.split()[5] == "n/a"  # name, seeds, parameters, minutes and their unit, Dice
    assert "not trained for segmentation" in printed


def test_drops_are_shown_with_what_may_be_said_of_them():
    result = compare([made_model(), made_model("other", dice=[0.7, 0.5, 0.4])])
    assert "-0.100 [n/a, n/a] not settled" in comparison_files.table(result)


def test_every_number_of_the_section_is_the_one_of_the_json(tmp_path):
    seeds = [made_model(seed=0), made_model(seed=1, dice=[0.6, 0.4, 0.3]), made_model("other", dice=[0.7, 0.5, 0.1])]
    comparison_files.write(compare(seeds), tmp_path, "comparison")
    page = (tmp_path / "section.html").read_text(encoding="utf-8")
    content = json.loads((tmp_path / "comparison.json").read_text(encoding="utf-8"))
    found = re.findall(r'data-source="comparison.json#([^"]+)" data-value="([^"]*)" data-kind="(\w+)">([^<]*)<', page)
    assert len(found) > 20
    for pointer, value, kind, text in found:
        there = content
        for token in pointer.split("/")[1:]:
            there = there[int(token)] if isinstance(there, list) else there[token]
        assert float(value) == there
        assert text.replace("&lt;", "<").replace("&gt;", ">") == format_number(there, kind)
    for picture in ("model_comparison.png", "paired_differences.png"):
        assert (tmp_path / picture).read_bytes().startswith(b"\x89PNG")
        assert base64.b64encode((tmp_path / picture).read_bytes()).decode() in page


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"datalist": "a" * 64}, "trained on different datalists"),
        ({"evaluated": "a" * 64}, "evaluated on different datalists"),
        ({"size": [128, 128]}, r"images of \[64, 64\] and \[128, 128\] pixels"),
        (
            {"names": "12346"},
            "evaluated on different cases: 1 stand only in the first, 1 only in the second .one is '5'",
        ),
        ({"energy": [0.9, 0.7]}, "measured on different cases: 1 stand only in the first"),
    ],
)
def test_what_can_not_be_compared_is_refused_with_the_reason(changed, reason):
    with pytest.raises(ValueError, match=reason):
        check_comparable([made_model(), made_model("other", **changed)])


def test_other_diagnoses_and_one_seed_twice_are_refused():
    other = made_model("other")
    other.cases["s", "3"]["diagnosis"] = "0"
    with pytest.raises(ValueError, match="disagree on the true diagnosis of 1 cases, first '3'"):
        check_comparable([made_model(), other])
    again = made_model()
    again.folder = again.folder / "again"
    with pytest.raises(ValueError, match="both 'ours' with seed 0"):
        check_comparable([made_model(), again])
    with pytest.raises(ValueError, match="reference is one of ours, got 'theirs'"):
        compare([made_model()], "theirs")


def test_a_run_is_read_with_its_stages(tmp_path):
    run = made_run(tmp_path / "ours")
    stage, last = read_models([run])
    assert (stage.name, last.name) == ("ours, stage 1", "ours")  # stage 2 was not evaluated
    assert (stage.tasks, last.tasks) == ({"segmentation"}, {"segmentation", "classification"})
    assert (stage.seconds, last.seconds) == (30.0, 90.0)
    network = MultiTaskDynUNet(**{k: v for k, v in NETWORK.items() if k != "_target_"} | {"num_classes": 2})
    sizes = {part: sum(p.numel() for p in network.parameters_of(part)) for part in ("encoder", "decoder", "head")}
    assert stage.parameters == sizes["encoder"] + sizes["decoder"]
    assert last.parameters == sum(sizes.values())
    assert (stage.method, last.method, last.layer) == (None, "evidence", "evidence")
    assert value_of(stage, BY_NAME["dice"])[0] == pytest.approx(1.6 / 3)


def test_seed_folders_are_seeds_of_one_model(tmp_path):
    for seed in (1, 0):
        made_run(tmp_path / "ours" / f"seed{seed}", seed)
    assert [(name, path.name) for name, path in expand([tmp_path / "ours"])] == [("ours", "seed0"), ("ours", "seed1")]
    assert [model.seed for model in read_models([tmp_path / "ours"], stages=False)] == [0, 1]
    with pytest.raises(FileNotFoundError, match="nowhere is not a folder"):
        expand([tmp_path / "nowhere"])


def test_runs_that_lack_something_are_refused(tmp_path):
    run = made_run(tmp_path / "ours")
    with pytest.raises(ValueError, match="is of the part test, not 'validation'"):
        read_model("ours", run, "validation")
    made_evaluation(run, case_rows(), map_rows(method="gradcam", layer="bottleneck"))
    with pytest.raises(ValueError, match="no map evidence at evidence; explain the run again"):
        read_model("ours", run)
    made_evaluation(run, case_rows(), [{k: v for k, v in row.items() if k != "mask"} for row in map_rows()])
    with pytest.raises(ValueError, match="has no column mask: written by an older version; run explain again"):
        read_model("ours", run)
    healthy = {**map_rows()[0], "name": "4", "tumor_area": "0.0", "tumor_energy": "", "empty": "1.0"}
    made_evaluation(run, case_rows(), [*map_rows(), healthy])
    assert value_of(read_model("ours", run), BY_NAME["empty"]) == (0.0, 3)  # an empty map is right without a tumor
    made_evaluation(run, [*case_rows(), case_rows()[0]], map_rows())
    with pytest.raises(ValueError, match="stand twice"):
        read_model("ours", run)
    (run / "explanations" / "cases.csv").unlink()
    made_evaluation(run, case_rows())
    with pytest.raises(FileNotFoundError, match="evaluate and explain the run first"):
        read_model("ours", run)
    (run / "evaluation" / "metrics.json").unlink()
    with pytest.raises(FileNotFoundError, match="evaluate the run first"):
        read_model("ours", run)


def test_results_of_other_weights_are_refused_and_of_unknown_ones_noted(tmp_path):
    run = made_run(tmp_path / "run")
    now = weights_sha256(run)
    write_json([{"method": "evidence", KEY: now}], run / "explanations" / "localization.json")
    assert read_model("run", run).notes == [
        "evaluation/metrics.json does not say which weights it is of: written by an older version"
    ]
    mark(run / "evaluation", EVALUATION, now)
    assert read_model("run", run).notes == []
    weights = run / "stage3_joint" / "model.pt"
    torch.save({key: value + 1 for key, value in torch.load(weights).items()}, weights)
    with pytest.raises(ValueError, match=rf"metrics\.json is of other weights \({now[:8]}\) than the run"):
        read_model("run", run)
    mark(run / "evaluation", EVALUATION, weights_sha256(run))
    assert stale(run, "evaluation/metrics.json") == [now], "what says so already keeps its word"


def test_training_time_is_that_of_the_event_files_without_the_pause_between_them(tmp_path):
    stage = made_stage(tmp_path / "stage")
    (stage / "manifest.json").write_text(json.dumps({"seed": 0}), encoding="utf-8")
    for start, end in ((1000.0, 1040.0), (6000.0, 6002.5)):
        with open(stage / f"events.out.tfevents.{start:.0f}", "wb") as file:
            for when in (start, (start + end) / 2, end):
                RecordWriter(file).write(Event(wall_time=when).SerializeToString())
    assert training_seconds(stage) == 42.5
    assert training_seconds(made_stage(tmp_path / "noted")) == 30.0


def test_the_command_prints_the_table_and_names_the_files(tmp_path, capsys):
    made_run(tmp_path / "ours")
    made_run(tmp_path / "other", energy=(0.8, 0.6, 0.4), dice=[0.7, 0.5, 0.4])
    command(["compare", str(tmp_path / "ours"), str(tmp_path / "other"), "--no_stages"])
    printed = capsys.readouterr().out
    assert "difference from ours" in printed
    assert str(tmp_path / "comparison") in printed
    content = json.loads((tmp_path / "comparison" / "comparison.json").read_text(encoding="utf-8"))
    assert [row["name"] for row in content["rows"]] == ["ours", "other"]
    assert content["rows"][1]["difference"]["tumor_energy"]["difference"] == pytest.approx(-0.1)
    written = write_comparison([tmp_path / "other", tmp_path / "ours"], tmp_path / "again")
    assert written["reference"] == "other"
    assert {row["name"] for row in written["rows"]} == {"ours", "ours, stage 1", "other", "other, stage 1"}


def test_the_command_says_in_one_sentence_why_runs_are_refused(tmp_path, capsys):
    made_run(tmp_path / "ours")
    other = made_run(tmp_path / "other")
    made_stage(other / "stage3_joint", datalist="a" * 64, run_dir="x", **THREE["stage3_joint"])
    with pytest.raises(SystemExit), one_sentence_errors():
        command(["compare", str(tmp_path / "ours"), str(other), "--no_stages"])
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert said.startswith("error: ")
    assert "trained on different datalists (ffffffff and aaaaaaaa)" in said
    with pytest.raises(ValueError, match="give both"):
        command(["compare", str(other), "--dataset_dir", "x"])
