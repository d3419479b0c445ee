"""What the rows of localization.json hold, and the table of them."""

from __future__ import annotations

import math

import pytest

from scripts.data.preprocessing import collate
from scripts.evaluation.explanation_plan import make_plan
from scripts.evaluation.localization import draw_cases, measure
from scripts.evaluation.localization_table import format_table, localization_table, sorted_rows
from tests.evaluation.small_cases import CLASSES, FAST, make_cases, make_net


@pytest.fixture(scope="module")
def measured():
    net, cases = make_net(), make_cases()
    targets = ["tumor_log_odds", "true_class", "true_class_minus_class_0", "segmentation_1_true_mask"]
    plan = make_plan(net, ["evidence", "saliency", "integrated_gradients"], targets, slow_cases=1, options=FAST)
    batches = [collate(cases[:2]), collate(cases[2:])]
    return measure(net, batches, plan, CLASSES, draw_cases(cases, 1, 0))


def test_rows_are_of_every_case_with_a_tumor_and_slow_methods_of_the_drawn_ones(measured):
    names = {m: {r["name"] for r in measured if r["method"] == m} for m in ("saliency", "integrated_gradients")}
    assert names["saliency"] == {"c0", "c1", "c2", "c3"}
    free = {(r["name"], r["target"], r["mask"]) for r in measured if r["tumor_area"] == 0 and r["method"] == "saliency"}
    assert {f for f in free if f[2] == "true"} == {("c3", "tumor_log_odds", "true")}  # without a tumor
    assert len(names["integrated_gradients"]) == 1
    targets = {r["target"] for r in measured if r["method"] == "saliency"}
    assert targets == {"tumor_log_odds", "true_class", "true_class_minus_class_0", "segmentation_1_true_mask"}
    assert {r["target"] for r in measured if r["method"] == "evidence"} == targets - {"segmentation_1_true_mask"}
    assert {r["mask"] for r in measured} == {"true", "predicted"}
    assert all(math.isnan(r["completeness_error"]) == (r["method"] != "integrated_gradients") for r in measured)


def test_a_batch_gives_the_rows_of_its_cases_one_at_a_time(measured):
    net, cases = make_net(), make_cases()
    plan = make_plan(net, ["saliency"], ["true_class"])
    for case in cases[:3]:
        rows = measure(net, [collate([case])], plan, CLASSES, set())
        alone = next(r for r in rows if r["method"] == "saliency" and r["mask"] == "true")
        together = next(
            r
            for r in measured
            if (r["method"], r["mask"], r["target"], r["name"]) == ("saliency", "true", "true_class", case["name"])
        )
        assert alone["tumor_energy"] == pytest.approx(together["tumor_energy"], rel=1e-3)


def test_the_table_holds_strata_masks_and_baselines_by_name(measured):
    table = localization_table(measured)
    assert [table[0][k] for k in ("mask", "source", "class")] == ["true", "all", "all"]
    strata = {(r["mask"], r["source"], r["class"]) for r in table}
    assert {("true", "all", "all"), ("true", "a", "all"), ("true", "b", "all")} <= strata
    assert {("true", "all", "glioma"), ("true", "all", "meningioma")} <= strata
    assert all(source == "all" or kind == "all" for _, source, kind in strata)
    keys = [tuple(r[k] for k in ("method", "layer", "target", "mask", "source", "class")) for r in table]
    assert len(keys) == len(set(keys))
    rows = {r["method"]: r for r in sorted_rows(table)}
    assert {"uniform", "random", "oracle"} <= set(rows)
    assert rows["uniform"]["tumor_energy"] == pytest.approx(rows["uniform"]["tumor_area"])
    assert rows["oracle"]["tumor_energy"] == pytest.approx(rows["oracle"]["oracle_tumor_energy"])
    assert rows["oracle"]["pointing_game"] == 1
    assert rows["saliency"]["n"] == 3
    assert rows["saliency"]["clustered_by"] == "patient"
    low, high = rows["saliency"]["tumor_energy_ci95"]
    assert low <= rows["saliency"]["tumor_energy"] <= high
    assert rows["integrated_gradients"]["completeness_error"] > 0
    assert "completeness_error" not in rows["saliency"]
    chosen = ("saliency", "true_class", "true", "glioma")
    keys = ("method", "target", "mask", "class")
    by_hand = [r["tumor_energy"] for r in measured if tuple(r[k] for k in keys) == chosen]
    row = next(
        r for r in sorted_rows(table, class_name="glioma") if (r["method"], r["target"]) == ("saliency", "true_class")
    )
    assert row["tumor_energy"] == pytest.approx(sum(by_hand) / len(by_hand))


def test_rows_against_the_predicted_mask_measure_that_mask():
    net, cases = make_net(), make_cases()
    batch = collate(cases[:3])
    rows = measure(net, [batch], make_plan(net, ["evidence"], ["tumor_log_odds"]), CLASSES, set())
    predicted = net.multitask(batch["image"])["seg"].argmax(1) > 0
    for i, case in enumerate(cases[:3]):
        row = next(r for r in rows if (r["name"], r["mask"], r["method"]) == (case["name"], "predicted", "uniform"))
        assert row["tumor_area"] == pytest.approx(float(predicted[i].double().mean()))
    assert any(r["tumor_area"] > 0 for r in rows if r["mask"] == "predicted")


def test_a_network_that_predicts_no_tumor_has_no_rows_against_its_own_masks(measured):
    nothing = [{**r, "tumor_area": 0.0} if r["mask"] == "predicted" else r for r in measured]
    assert {r["mask"] for r in localization_table(nothing)} == {"true"}


def test_the_table_says_how_often_a_map_finds_nothing_where_there_is_no_tumor(measured):
    rows = {(r["method"], r["target"]): r for r in sorted_rows(localization_table(measured))}
    assert rows["saliency", "tumor_log_odds"]["n_free"] == 1
    assert rows["saliency", "tumor_log_odds"]["empty_rate_free"] == 0  # magnitudes are never nothing
    assert rows["saliency", "true_class"]["empty_rate_free"] is None
    assert rows["integrated_gradients", "tumor_log_odds"]["n_free"] == 0
    assert "empty_rate_free" not in rows["uniform", "tumor_log_odds"]
    evidence = next(r for r in measured if (r["method"], r["name"], r["mask"]) == ("evidence", "c3", "true"))
    assert rows["evidence", "tumor_log_odds"]["empty_rate_free"] == evidence["empty"]


def test_no_tumor_mask_at_all_is_an_error():
    net, cases = make_net(), make_cases()
    with pytest.raises(ValueError, match="no case with a tumor mask"):
        measure(net, [collate(cases[3:])], make_plan(net), CLASSES, set())


def test_drawn_cases_depend_on_the_seed_alone():
    cases = make_cases(20)
    assert draw_cases(cases, None, 0) == {f"c{i}" for i in range(19)}
    assert draw_cases(cases, 30, 0) == draw_cases(cases, None, 0)
    assert len(draw_cases(cases, 5, 0)) == 5
    assert draw_cases(cases, 5, 0) == draw_cases(cases[::-1], 5, 0)
    assert draw_cases(cases, 5, 0) != draw_cases(cases, 5, 1)


def test_the_printed_table_is_sorted_by_energy_in_the_tumor():
    def row(method, energy, pointing):
        return {
            **{"method": method, "layer": "input", "target": "t", "mask": "true", "source": "all", "class": "all"},
            **{"n": 7, "tumor_energy": energy, "tumor_energy_ci95": [0.1, 0.9], "pointing_game": pointing},
            **{
                "pointing_game_ci95": [None, None],
                "background_energy": None,
                "empty_rate": 0.25,
                "cancelled_rate": 0.5,
            },
        }

    rows = sorted_rows([row("b", 0.2, 0.1), row("a", 0.5, 0.0), row("c", 0.2, 0.3), {**row("d", 1, 1), "source": "x"}])
    text = format_table(rows)
    assert [line.split()[0] for line in text.splitlines()[2:]] == ["a", "c", "b"]
    assert "50.0 % [10.0, 90.0]" in text
    assert "n/a" in text
    assert "25.0 %" in text


def test_completeness_error_is_that_of_the_rows_own_stratum(measured):
    rows = [dict(row) for row in measured]
    target = "tumor_log_odds"
    gradients = [row for row in rows if row["method"] == "integrated_gradients"]
    name = gradients[0]["name"]
    own = next(row for row in rows if row["method"] == "saliency" and row["name"] == name)
    for row in gradients:
        row["completeness_error"] = 0.25
    copies = [
        {**row, "name": "other", "patient": "p9", "source": "elsewhere", "class": "glioma", "completeness_error": 0.75}
        for row in gradients
    ]
    table = localization_table([*rows, *copies])
    errors = {
        (row["source"], row["class"]): (row["completeness_error"], row["completeness_error_n"])
        for row in table
        if (row["method"], row["target"], row["mask"]) == ("integrated_gradients", target, "true")
    }
    assert errors["all", "all"] == (0.5, 2)
    assert errors["elsewhere", "all"] == (0.75, 1)
    assert errors[own["source"], "all"] == (0.25, 1)


def test_a_grad_cam_that_cancels_is_no_map_that_found_nothing():
    """Foreground-aware norms behind a block cancel plain Grad-CAM; averaged over the head alone it is there."""
    net, batch = make_net(), collate(make_cases())
    arguments = {"methods": ["gradcam", "hirescam"], "targets": ["tumor_log_odds"], "layers": ["bottleneck"]}
    rows = measure(net, [batch], make_plan(net, **arguments), CLASSES, set())
    grad = [row for row in rows if row["method"] == "gradcam" and row["mask"] == "true"]
    assert [(row["cancelled"], row["empty"]) for row in grad] == [(1.0, 0.0)] * 4
    table = {row["method"]: row for row in sorted_rows(localization_table(rows))}
    assert [table["gradcam"][k] for k in ("cancelled_rate", "empty_rate", "empty_rate_free")] == [1.0, 0.0, 0.0]
    assert (table["gradcam"]["tumor_energy"], table["gradcam"]["pointing_game"]) == (0.0, 0.0), "still a miss"
    assert table["hirescam"]["cancelled_rate"] == 0.0
    head = format_table(list(table.values())).splitlines()[0]
    assert [word for word in ("empty", "cancelled") if word in head] == ["empty", "cancelled"]

    over_the_head = make_plan(net, **arguments, options={"cam": {"foreground": True}})
    rows = measure(net, [batch], over_the_head, CLASSES, set())
    assert {row["cancelled"] for row in rows} == {0.0}
    assert any(row["tumor_energy"] > 0 for row in rows if row["method"] == "gradcam")
