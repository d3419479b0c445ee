from __future__ import annotations

import csv
import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from ignite.engine import Engine, Events
from scipy.special import softmax

from scripts.evaluation.answers import answer_summary, evidence_of_case, joined_columns
from scripts.evaluation.evaluation import CaseResults, by_area, by_class, decided, summarize, write_evaluation
from scripts.evaluation.items import ClassComparison
from scripts.measures.mask_measures import random_mask
from scripts.measures.metrics import classification_metrics
from scripts.runs.folder import write_csv


def rectangle(rows: slice, columns: slice) -> torch.Tensor:
    picture = torch.zeros(1, 12, 12)
    picture[0, rows, columns] = 1
    return picture


TUMOR = rectangle(slice(2, 6), slice(2, 6))  # 16 pixels
SHIFTED = rectangle(slice(2, 6), slice(4, 8))  # 16 pixels, 8 of them shared, 2 columns off
NOTHING = torch.zeros(1, 12, 12)


def batch(cases: list[dict]) -> tuple[dict, dict]:
    """(batch, output) as the evaluator leaves them in its state."""
    segmented = torch.stack([case.get("predicted", NOTHING) for case in cases])
    names = [case["name"] for case in cases]
    data = {
        "name": names,
        "patient": [case.get("patient", name) for case, name in zip(cases, names, strict=True)],
        "group": [case.get("group", "") for case in cases],
        "source": [case.get("source", "a") for case in cases],
        "label_coverage": torch.tensor([case.get("label_coverage", 1.0) for case in cases]),
        "volume": [case.get("volume", "") for case in cases],
        "slice": torch.tensor([case.get("slice", -1) for case in cases]),
        "pixel_mm": torch.tensor([case.get("pixel_mm", [float("nan")] * 2) for case in cases], dtype=torch.float64),
        "pixel_area": torch.tensor([case.get("pixel_area", 1.0) for case in cases]),
        "head_share": torch.tensor([case.get("head_share", 0.5) for case in cases]),
        "slice_mm": torch.tensor([case.get("slice_mm", float("nan")) for case in cases]),
    }
    target = {
        "label": torch.stack([case.get("label", NOTHING) for case in cases]).to(torch.uint8),
        "foreground": torch.ones(len(cases), 1, 12, 12, dtype=torch.uint8),
        "has_mask": torch.tensor(["label" in case for case in cases]),
        "diagnosis": torch.tensor([case.get("diagnosis", -1) for case in cases]),
    }
    pred = {
        "seg": torch.cat([1 - 2 * segmented, 2 * segmented - 1], dim=1),
        "cls": torch.tensor([case.get("logits", [0.0, 0.0]) for case in cases]),
    }
    return data, {"pred": pred, "label": target}


def rows_of(*batches: list[dict]) -> list[dict]:
    results, prepared = CaseResults(), [batch(cases) for cases in batches]

    def step(engine: Engine, pair: tuple[dict, dict]) -> dict:
        engine.state.batch = pair[0]  # as in MONAI's engines: the collated batch, and what the step made of it
        return pair[1]

    engine = Engine(step)
    results.attach(engine)
    engine.run(prepared)
    return results.rows


HIT = {"name": "hit", "label": TUMOR, "predicted": SHIFTED, "diagnosis": 1, "logits": [0.0, 2.0]}
EXACT = {"name": "exact", "label": TUMOR, "predicted": TUMOR, "diagnosis": 1, "logits": [0.0, 1.0]}
MISS = {"name": "miss", "label": TUMOR, "diagnosis": 1, "logits": [1.0, 0.0], "label_coverage": 0.75}
HEALTHY = {"name": "healthy", "label": NOTHING, "predicted": SHIFTED, "diagnosis": 0, "logits": [2.0, 0.0]}
MASKLESS = {"name": "maskless", "predicted": TUMOR, "diagnosis": 1, "source": "b", "logits": [0.0, 3.0]}
HEALTHY_MASKLESS = {"name": "clean", "diagnosis": 0, "source": "b", "logits": [1.0, 0.0]}
UNKNOWN = {"name": "unknown", "label": TUMOR, "predicted": TUMOR, "source": "b"}
CASES = [HIT, EXACT, MISS, HEALTHY, MASKLESS, HEALTHY_MASKLESS, UNKNOWN]


@pytest.fixture(scope="module")
def rows() -> list[dict]:
    return rows_of(CASES[:4], CASES[4:])


def test_cases_by_hand(rows):
    by_name = {row["name"]: row for row in rows}
    assert list(by_name) == [case["name"] for case in CASES]
    hit = by_name["hit"]
    assert (hit["dice"], hit["iou"], hit["hd95"]) == (pytest.approx(0.5), pytest.approx(8 / 24), 2.0)
    assert (hit["tumor_pixels"], hit["predicted_pixels"], hit["has_mask"], hit["diagnosis"]) == (16, 16, True, 1)
    assert hit["logits"] == [0.0, 2.0]
    exact = by_name["exact"]
    assert (exact["dice"], exact["iou"], exact["hd95"]) == (1.0, 1.0, 0.0)
    miss = by_name["miss"]
    assert (miss["dice"], miss["iou"], miss["predicted_pixels"]) == (0.0, 0.0, 0), "a tumor that is missed scores 0"
    assert np.isnan(miss["hd95"]), "no distance to nothing"
    assert miss["label_coverage"] == 0.75


def test_cases_without_a_tumor_in_the_mask_have_no_dice(rows):
    by_name = {row["name"]: row for row in rows}
    for name, tumor, predicted in (("healthy", 0, 16), ("maskless", None, 16), ("clean", None, 0)):
        row = by_name[name]
        assert np.isnan([row["dice"], row["iou"], row["hd95"]]).all()
        assert (row["tumor_pixels"], row["predicted_pixels"]) == (tumor, predicted)


def test_running_again_starts_from_nothing():
    results = CaseResults()
    engine = Engine(lambda engine, pair: pair[1])
    results.attach(engine)
    results.rows.append({"name": "left over"})
    engine.fire_event(Events.STARTED)
    assert results.rows == []


def test_more_than_two_segmentation_channels_count_as_tumor():
    data, output = batch([HIT])
    background, tumor = output["pred"]["seg"].split(1, dim=1)
    output["pred"]["seg"] = torch.cat([background, torch.full_like(tumor, -9.0), tumor], dim=1)
    results = CaseResults()
    results.collect(SimpleNamespace(state=SimpleNamespace(batch=data, output=output)))
    assert results.rows[0]["dice"] == pytest.approx(0.5)


def test_summary_by_hand(rows):
    result = summarize(rows, threshold=0.5, temperature=1.0)
    assert result["n"] == 7
    dice = result["segmentation"]["dice"]
    assert dice["n"] == 4, "hit, exact, miss, unknown"
    assert dice["mean"] == pytest.approx((0.5 + 1 + 0 + 1) / 4)
    assert dice["median"] == pytest.approx(0.75)
    assert result["segmentation"]["iou"]["mean"] == pytest.approx((1 / 3 + 1 + 0 + 1) / 4)
    assert (result["segmentation"]["hd95"]["n"], result["segmentation"]["hd95"]["mean"]) == (3, pytest.approx(2 / 3))
    false_positive = result["segmentation"]["false_positive_pixels"]
    assert (false_positive["n"], false_positive["mean"]) == (2, 8.0), "healthy by mask 16, healthy by diagnosis 0"
    coverage = result["segmentation"]["label_coverage"]
    assert (coverage["n"], coverage["mean"]) == (4, pytest.approx((1 + 1 + 0.75 + 1) / 4))


def test_classification_is_over_the_cases_with_a_diagnosis(rows):
    result = summarize(rows, threshold=0.6, temperature=2.0)["classification"]
    known = [case for case in CASES if "diagnosis" in case]
    expected = classification_metrics(
        np.array([c["logits"] for c in known]),
        np.array([c["diagnosis"] for c in known]),
        0.6,
        2.0,
        [c["name"] for c in known],
    )
    assert result == expected
    assert result["n"] == 6
    # Tumor probabilities sigmoid(1), sigmoid(0.5), sigmoid(-0.5), sigmoid(-1), sigmoid(1.5), sigmoid(-0.5) from 0.6 on.
    assert result["confusion_matrix"] == [[2, 0], [1, 3]]


def test_without_any_diagnosis_there_is_no_classification():
    result = summarize(rows_of([UNKNOWN]), 0.5, 1.0)
    assert "classification" not in result
    assert result["segmentation"]["dice"]["mean"] == 1.0


def test_intervals_are_by_patient():
    slices = [{**case, "patient": patient} for patient in "pq" for case in (HIT, EXACT, MISS)]
    result = summarize(rows_of(slices), 0.5, 1.0)["segmentation"]["dice"]
    assert result["clusters"] == 2
    wide = result["ci95"]
    apart = summarize(rows_of([{**case, "patient": case["name"]} for case in (HIT, EXACT, MISS)]), 0.5, 1.0)
    low, high = apart["segmentation"]["dice"]["ci95"]
    assert low < 0.2 < 0.8 < high
    once = summarize(rows_of([{**HIT, "patient": p} for p in "pq"]), 0.5, 1.0)["segmentation"]["dice"]
    assert wide == pytest.approx(once["ci95"]), "three slices of a patient count as one"


def test_where_patients_are_unknown_the_near_duplicate_group_or_else_the_name_stands_for_them():
    cases = [
        {**EXACT, "patient": "p1", "group": "g1"},
        {**EXACT, "patient": "", "group": "g1"},
        {**EXACT, "patient": ""},
    ]
    assert [row["patient"] for row in rows_of(cases)] == ["p1", "g1", "exact"]


def test_files_say_what_was_computed(rows, tmp_path):
    result = write_evaluation(rows, tmp_path, 0.6, 2.0, clustered_by="near-duplicate group")
    text = (tmp_path / "metrics.json").read_text(encoding="utf-8")
    assert json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is no JSON")) == result
    test = result["test"]
    assert sorted(test["by_source"]) == ["a", "b"]
    assert [test["overall"]["n"], test["by_source"]["a"]["n"], test["by_source"]["b"]["n"]] == [7, 4, 3]
    assert test["by_source"]["a"]["segmentation"]["dice"]["mean"] == pytest.approx(0.5)
    assert test["by_source"]["b"]["classification"]["n"] == 2
    assert "near-duplicate group" in result["intervals"]
    assert test["baselines"]["majority"] == {"class": "class 1", "accuracy": 4 / 6, "balanced_accuracy": 0.5}
    measures = {"n", "clusters", "mean", "std", "median", "ci95"}
    assert all(set(test["overall"]["segmentation"][name]) == measures for name in ("dice", "iou", "hd95"))

    with open(tmp_path / "cases.csv", encoding="utf-8", newline="") as file:
        table = {row["name"]: row for row in csv.DictReader(file)}
    assert len(table) == 7
    assert float(table["hit"]["dice"]) == pytest.approx(0.5)
    assert float(table["hit"]["tumor_probability"]) == pytest.approx(1 / (1 + np.exp(-1.0)))
    assert (table["hit"]["predicted"], table["exact"]["predicted"], table["miss"]["predicted"]) == ("1", "1", "0")
    assert (table["healthy"]["dice"], table["maskless"]["tumor_pixels"], table["miss"]["hd95"]) == ("", "", "")
    assert table["healthy"]["tumor_pixels"] == "0"
    names = ["cases.csv", "metrics.json", "patients.csv"]
    assert sorted(p.name for p in tmp_path.iterdir()) == names, "nothing half-written is left, no volume was evaluated"


def test_the_validation_part_alone_says_whether_volumes_have_a_threshold_of_their_own(rows, tmp_path):
    slices = [{**row, "volume": row["name"]} for row in rows]
    result = write_evaluation(slices, tmp_path, 0.6, 2.0, part="validation")
    assert result["validation"]["volumes"]["own_threshold"] is None
    assert [note for note in result["notes"] if note.startswith("volumes keep the threshold that they have")]
    result = write_evaluation(slices, tmp_path, 0.6, 2.0)
    assert "own_threshold" not in result["test"]["volumes"]


def test_logits_before_the_temperature_are_kept_beside_those_that_it_divides():
    results, (cases, output) = CaseResults(2.0, lift=torch.tensor([0.0, -1.5])), batch([HIT, HEALTHY])
    results.collect(SimpleNamespace(state=SimpleNamespace(batch=cases, output=output)))
    assert [row["logits"] for row in results.rows] == [[0.0, 2.0], [2.0, 0.0]]
    assert [row["uncalibrated"] for row in results.rows] == [[0.0, 3.5], [2.0, 1.5]]
    # Kinds of tumor taken together: both keep the probability of none, each at its own temperature.
    row = {**results.rows[0], "cluster": "u", "logits": [0.0, 2.0, 1.0], "uncalibrated": [0.5, 1.0, 3.0]}
    together = ClassComparison(["no tumor", "tumor"], [0, 1, 1], binary=True)
    (now,) = decided([row], 0.5, 2.0, together)
    before, after = softmax(row["uncalibrated"])[0], softmax(np.array(row["logits"]) / 2)[0]
    assert softmax(now["uncalibrated"])[0] == pytest.approx(before)
    assert now["probability"][0] == pytest.approx(after)
    assert len(now["uncalibrated"]) == 2


def test_dice_averaged_by_hand_over_the_table_equals_the_reported_one(rows, tmp_path):
    result = write_evaluation(rows, tmp_path, 0.6, 2.0)
    with open(tmp_path / "cases.csv", encoding="utf-8", newline="") as file:
        dice = [float(row["dice"]) for row in csv.DictReader(file) if row["dice"]]
    assert result["test"]["overall"]["segmentation"]["dice"]["mean"] == pytest.approx(sum(dice) / len(dice), abs=1e-15)


def test_missed_tumors_are_counted_beside_the_distance(rows):
    result = summarize(rows, 0.5, 1.0)["segmentation"]
    assert (result["hd95"]["n"], result["hd95_missed"]) == (3, 1)
    assert result["hd95"]["n"] + result["hd95_missed"] == result["dice"]["n"]
    assert result["hd95_mm"]["n"] == 0, "pictures do not say how large a pixel is"


def test_distance_in_millimeters_takes_the_spacing_of_each_axis():
    # The prediction is the tumor moved by 2 along the second axis.
    row = rows_of([{**HIT, "pixel_mm": [1.0, 0.75]}])[0]
    assert (row["hd95"], row["hd95_mm"]) == (2.0, pytest.approx(1.5))
    assert row["tumor_mm2"] == pytest.approx(16 * 0.75)


def test_whole_head_and_random_map_stand_beside_the_dice(rows):
    row = rows_of([HIT])[0]
    assert row["dice_whole_head"] == pytest.approx(2 * 16 / (144 + 16))
    assert 0 <= row["dice_random"] < 0.5
    assert row["dice_random"] == rows_of([HIT])[0]["dice_random"], "seeded by the name"
    head = torch.zeros(1, 12, 12, dtype=torch.bool)
    head[0, 3:9, 3:9] = True
    mask = random_mask(head, 10, "x")
    assert int(mask.sum()) == 10
    assert not bool((mask & ~head).any()), "inside the head only"


def test_patients_of_two_sources_with_the_same_name_are_two():
    same = [{**EXACT, "patient": "p1", "source": "a"}, {**MISS, "patient": "p1", "source": "b"}]
    summary = summarize(rows_of(same), 0.5, 1.0)["segmentation"]["dice"]
    assert summary["clusters"] == 2
    assert summary["ci95"][0] < 0.05
    assert summary["ci95"][1] > 0.95
    groups = [{**EXACT, "patient": "", "group": "g", "source": s} for s in "ab"]
    assert {row["cluster"] for row in rows_of(groups)} == {"g"}, "a near-duplicate group may span sources"


def test_area_bins_are_shares_of_the_head():
    small = rectangle(slice(0, 1), slice(0, 1))  # 1 of 144 pixels: 0.7 %
    rows = decided(rows_of([{**EXACT, "label": small, "predicted": small}, HIT, MISS, HEALTHY]), 0.5, 1.0)
    bins = by_area(rows)
    assert [(b["low"], b["high"], b["n"]) for b in bins] == [
        (0.0, 0.005, 0), (0.005, 0.01, 1), (0.01, 0.02, 0), (0.02, 0.05, 0), (0.05, 1.0, 2),
    ]  # fmt: skip
    assert bins[1]["dice"]["mean"] == 1.0
    assert bins[4]["dice"]["mean"] == pytest.approx(0.25), "hit 0.5, miss 0"
    assert bins[4]["detected"]["mean"] == bins[4]["segmented"]["mean"] == 0.5


def test_figures_by_class_are_of_one_class_against_the_others():
    logits = {"a": [4.0, 0, 0], "b": [0, 4.0, 0], "c": [0, 0, 4.0]}
    cases = [("1", 0, "a"), ("2", 1, "b"), ("3", 1, "c"), ("4", 2, "c")]
    given = [{"name": n, "diagnosis": d, "logits": logits[p], "label": TUMOR if d else NOTHING} for n, d, p in cases]
    result = by_class(decided(rows_of(given), 0.5, 1.0), ["none", "x", "y", "never"])
    assert list(result) == ["none", "x", "y"]
    assert (result["x"]["n"], result["x"]["classification"]["sensitivity"]) == (2, 0.5)
    assert result["y"]["classification"]["precision"] == 0.5
    assert result["x"]["segmentation"]["dice"]["n"] == 2


def test_table_is_written_whole_or_not_at_all(tmp_path):
    path = tmp_path / "deep" / "cases.csv"
    write_csv([{"a": 1, "b": None}, {"a": float("nan"), "b": "x,y"}], path)
    assert path.read_text(encoding="utf-8").splitlines() == ["a,b", "1,", ',"x,y"']
    with pytest.raises(ValueError, match="not in fieldnames"):
        write_csv([{"a": 1}, {"a": 2, "c": 3}], path)
    assert path.read_text(encoding="utf-8").startswith("a,b"), "the old one"


def test_missing_cases_and_intervals_are_named_by_source_and_class(rows, tmp_path):
    notes = write_evaluation(rows, tmp_path, 0.6, 2.0)["notes"]
    # Source b: a tumor without a mask, one healthy, one of unknown class with a mask; nothing is missing in "a".
    assert not [note for note in notes if "missing" in note or "intervals" in note]
    one = [row for row in rows if row["name"] in ("clean", "hit")]
    for row in one:
        row["cluster"] = "a: p1"
    notes = write_evaluation(one, tmp_path, 0.6, 2.0)["notes"]
    assert notes == [
        "missing cases, whose figures are therefore n/a: source a: none of class class 0; "
        "source b: none of class class 1, none with a tumor in the mask",
        "no intervals, which need more than one patient: all cases, source a, source b",
    ]
    metrics = json.loads((tmp_path / "metrics.json").read_text(encoding="utf-8"))["test"]["overall"]
    assert metrics["classification"]["accuracy"] == 1.0
    assert metrics["classification"]["accuracy_ci95"] == [None, None]
    assert metrics["segmentation"]["dice"]["ci95"] == [None, None]


def test_the_figures_are_printed_when_an_evaluation_is_done(rows, tmp_path, capsys):
    result = write_evaluation(rows, tmp_path, 0.6, 2.0, provenance={"seen": 2})
    printed = capsys.readouterr().out
    found, dice = result["test"]["overall"]["classification"], result["test"]["overall"]["segmentation"]["dice"]
    lines = [line.split("  ") for line in printed.splitlines()]
    values = {line[0].strip(): [part.strip() for part in line[1:] if part.strip()] for line in lines}
    assert values["cases of test"] == ["7"]
    assert values["accuracy"][0] == f"{found['accuracy']:.3f}"
    low, high = dice["ci95"]
    assert values[f"Dice over {dice['n']} tumors"] == [f"{dice['mean']:.3f}", f"[{low:.3f}, {high:.3f}]"]
    assert values["of them in the training"] == ["2"]
    assert printed.rstrip().endswith(f"written: {tmp_path / 'metrics.json'}")


def test_contradictions_and_what_is_right_raw_and_joined(rows):
    def case(name, **given):
        base = next(row for row in rows if row["name"] == name)
        evidence = {"evidence_maximum": 1.0, "evidence_overlap": True}
        return {**base, **evidence, "tumor_probability": 0.9, "predicted": 1, "name": name, **given}

    no = {"tumor_probability": 0.1, "predicted": 0}
    nothing = {"predicted_pixels": 0, "evidence_overlap": False}
    expected = [  # verdict, contradiction raw and joined, both right raw and joined
        (case("exact"), "tumor", 1, [0, 0, 1, 1]),
        (case("hit", predicted=2), "tumor", 2, [0, 0, 0, 0]),
        (case("exact", **no), "uncertain", 0, [1, None, 0, None]),
        (case("miss"), "uncertain", 1, [1, None, 0, None]),
        (case("exact", evidence_maximum=0.0, evidence_overlap=False), "uncertain", 1, [1, None, 1, None]),
        (case("exact", evidence_overlap=False), "uncertain", 1, [1, None, 1, None]),
        (case("healthy", **no, **nothing), "no tumor", 0, [0, 0, 1, 1]),
        (case("healthy", **no, head_pixels=10_000), "no tumor", 0, [1, 0, 0, 1]),
        (case("healthy", **no), "uncertain", 0, [1, None, 0, None]),
        (case("healthy"), "tumor", 1, [0, 0, 0, 0]),
        (case("maskless"), "tumor", 1, [0, 0, None, None]),
    ]
    found = [{**row, **joined_columns(row, 0.5)} for row, *_ in expected]
    columns = ("contradiction", "joined_contradiction", "both_right", "joined_both_right")
    for row, (_, verdict, predicted, values) in zip(found, expected, strict=True):
        assert (row["verdict"], row["predicted"]) == (verdict, predicted)
        assert [None if np.isnan(row[key]) else row[key] for key in columns] == values
    block = answer_summary(found)
    assert block["uncertain_rate"]["mean"] == pytest.approx(5 / 11)
    assert (block["empty_evidence"]["mean"], block["empty_evidence"]["n"]) == (pytest.approx(1 / 7), 7)
    assert block["contradictions"]["raw"]["mean"] == pytest.approx(6 / 11)
    assert (block["contradictions"]["joined"]["mean"], block["contradictions"]["joined"]["n"]) == (0, 6)
    assert block["both_right"]["raw"]["mean"] == pytest.approx(4 / 10)
    assert block["both_right"]["joined"]["mean"] == pytest.approx(3 / 5)
    assert block["both_right"]["raw"]["ci95"][0] < 0.4 < block["both_right"]["raw"]["ci95"][1]


def test_evidence_of_a_case_is_that_of_inference():
    evidence = torch.zeros(2, 6, 6)
    evidence[1, 1:3, 1:3] = 2.0
    found = evidence_of_case(TUMOR, torch.tensor([0.0, 1.0]), evidence, 1.5)
    assert found.pop("evidence_place") == pytest.approx([2 / 6, 2 / 6])
    assert found == {"evidence_maximum": 2.0, "evidence_overlap": True}
    far = rectangle(slice(9, 12), slice(9, 12))
    assert not evidence_of_case(far, torch.tensor([0.0, 1.0]), evidence, 1.5)["evidence_overlap"]
    against = evidence_of_case(TUMOR, torch.zeros(2), -evidence, 1.0)
    assert np.isnan(against.pop("evidence_place")).all()
    assert against == {"evidence_maximum": 0, "evidence_overlap": False}
    assert set(evidence_of_case(TUMOR, torch.zeros(2), None, 1.0).values()) == {None}
