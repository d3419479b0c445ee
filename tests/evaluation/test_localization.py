"""What is explained at which layers, and what the rows of localization.json hold."""

from __future__ import annotations

import math

import pytest
import torch

from scripts.data.preprocessing import collate
from scripts.evaluation.explanation_plan import Plan, layers_of, make_plan, maps_of
from scripts.evaluation.localization import draw_cases, measure
from scripts.evaluation.localization_table import format_table, localization_table, sorted_rows
from scripts.explain.methods import METHODS, explain
from scripts.explain.targets import ClassScore, SegmentationRegion, TumorLogOdds
from scripts.networks.multitask_dynunet import MultiTaskDynUNet

CLASSES = {"0": "no_tumor", "1": "glioma", "2": "meningioma"}
FAST = {
    "integrated_gradients": {"n_steps": 2},
    "smoothgrad": {"n_samples": 2},
    "occlusion": {"window": 8, "stride": 8},
}


def make_net(head: str = "evidence", classes: int = 3) -> MultiTaskDynUNet:
    torch.manual_seed(0)
    net = MultiTaskDynUNet(
        2, 1, 2, [3] * 4, [1, 2, 2, 2], [2] * 3, [4, 4, 4, 4], num_classes=classes, head=head, evidence_channels=4
    ).eval()
    if head == "evidence":
        torch.nn.init.normal_(net.head.evidence.conv.weight, std=0.5)
    torch.nn.init.normal_(net.output_block.conv.conv.weight, std=2.0)
    return net


def make_cases(count: int = 4, size: int = 32) -> list[dict]:
    """Items as the pipeline leaves them: a head of noise with a bright square, the last one without a tumor."""
    generator = torch.Generator().manual_seed(0)
    cases = []
    for i in range(count):
        foreground = torch.zeros(1, size, size, dtype=torch.uint8)
        foreground[:, 4:28, 6:26] = 1
        image = torch.randn(1, size, size, generator=generator) * foreground
        label = torch.zeros_like(foreground)
        if i < count - 1:
            label[:, 10 + i : 18 + i, 10:16] = 1
            image += 2 * label
        cases.append(
            {
                **{"image": image, "foreground": foreground, "label": label, "has_mask": True},
                **{"diagnosis": i % 3 if i < count - 1 else 0, "label_coverage": 1.0},
                **{"name": f"c{i}", "patient": f"p{i}", "group": "", "source": "ab"[i % 2]},
            }
        )
        if cases[-1]["diagnosis"] == 0 and i < count - 1:
            cases[-1]["diagnosis"] = 1
    return cases


def test_all_means_every_method_and_quick_the_cheap_ones():
    assert make_plan(make_net(), "all").methods == tuple(METHODS)
    assert make_plan(make_net(), "quick").methods == ("evidence", "gradcam", "hirescam", "layercam_frozen")
    assert make_plan(make_net("average_pool"), "quick").methods == ("gradcam", "hirescam", "layercam_frozen")
    assert "evidence" not in make_plan(make_net("average_pool"), "all").methods


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"methods": "some"}, "methods: expected quick, all, or a list of"),
        ({"methods": ["cam"]}, r"methods: \['cam'\] not known"),
        ({"targets": ["tumor"]}, "unknown target 'tumor'; expected tumor_log_odds"),
        ({"layers": ["bottlenek"]}, "nearest: 'bottleneck'"),
        ({"slow_cases": 0}, "slow_cases: expected 1 or more"),
        ({"options": {"occlussion": {}}}, r"options for \['occlussion'\]"),
        ({"layers": "bottleneck"}, "layers: expected a list of names"),
        ({"targets": "tumor_log_odds"}, "targets: expected a list of names"),
        (
            {"layers": ["decoder_last"], "targets": ["tumor_log_odds"], "methods": ["gradcam"]},
            "none of gradcam explains tumor_log_odds at decoder_last .*in front of what they explain.; give others",
        ),
        (
            {"methods": ["evidence"], "targets": ["segmentation_1_predicted"]},
            "none of evidence explains segmentation_1_predicted; give others",
        ),
    ],
)
def test_what_is_not_there_is_refused_before_the_work_starts(arguments, message):
    with pytest.raises(ValueError, match=message):
        make_plan(make_net(), **arguments)


def test_parts_that_were_not_trained_are_not_explained_and_it_is_said_why(caplog):
    net = make_net()
    net.trained_tasks = ("segmentation",)
    assert make_plan(net).targets == ("segmentation_1_predicted",)
    assert "not explained: tumor_log_odds; the head of this network was not trained" in caplog.text
    with pytest.raises(ValueError, match="none is left of tumor_log_odds, true_class, the head of this network"):
        make_plan(net, targets=["tumor_log_odds", "true_class"])
    rows = measure(net, [collate(make_cases())], make_plan(net, ["gradcam"]), CLASSES, set())
    assert {row["target"] for row in rows} == {"segmentation_1_predicted"}
    assert {row["method"] for row in rows} == {"gradcam", "uniform", "random", "oracle"}

    net.trained_tasks = ("classification",)
    plan = make_plan(net, ["evidence"])
    assert plan.targets == ("tumor_log_odds",)
    assert "segmentation_1_predicted; the decoder of this network was not trained" in caplog.text
    rows = measure(net, [collate(make_cases())], plan, CLASSES, set())
    assert {row["mask"] for row in rows} == {"true"}, "its own masks are those of random weights"


def test_a_target_that_no_method_explains_is_left_out_and_it_is_said(caplog):
    assert make_plan(make_net(), ["evidence"]).targets == ("tumor_log_odds",)
    assert "not explained: segmentation_1_predicted, by none of evidence" in caplog.text
    assert make_plan(make_net(), ["hirescam"], layers=["seg_head"]).targets == ("segmentation_1_predicted",)


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


def test_an_aggregate_is_cancelled_where_no_layer_has_a_map():
    net, batch = make_net(), collate(make_cases())
    keys = {"mean": ["bottleneck", "input_block"], "max": ["bottleneck", "head.features"],
            "product": ["bottleneck", "head.features"]}  # fmt: skip
    for aggregate, layers in keys.items():
        plan = make_plan(net, ["gradcam"], ["tumor_log_odds"], layers, aggregate)
        found = maps_of(net, batch["image"], batch["foreground"], TumorLogOdds(), plan)
        cancelled = found.cancelled["gradcam", f"{aggregate}({', '.join(layers)})"]
        assert cancelled.tolist() == [aggregate != "max"] * 4


def test_evidence_of_a_network_without_is_an_error_only_if_it_is_named():
    with pytest.raises(ValueError, match="no evidence map"):
        make_plan(make_net("average_pool"), ["evidence"])


def test_layers_lie_in_front_of_their_target():
    net = make_net()
    encoder = ["input_block", "downsamples.0", "downsamples.1", "bottleneck", "head.features"]
    assert layers_of(net, TumorLogOdds(), None) == encoder
    assert layers_of(net, SegmentationRegion(), None) == ["upsamples.0", "upsamples.1", "upsamples.2"]
    asked = ["encoder_last", "decoder_last", "evidence"]
    assert layers_of(net, ClassScore(1), asked) == ["encoder_last", "evidence"]
    assert layers_of(net, SegmentationRegion(), asked) == ["encoder_last", "decoder_last"]


def test_maps_are_those_of_the_front_door_with_the_foreground_held_fixed():
    net, batch = make_net(), collate(make_cases())
    image, foreground = batch["image"], batch["foreground"]
    plan = make_plan(net, ["evidence", "hirescam", "occlusion"], layers=["bottleneck"], options=FAST)
    found = maps_of(net, image, foreground, TumorLogOdds(), plan)
    expected = explain(
        net, image, ["evidence", "hirescam", "occlusion"], "bottleneck", TumorLogOdds(),
        forward_kwargs={"output": "cls"}, foreground=foreground, foreground_kwarg="foreground",
        options={"occlusion": FAST["occlusion"]},
    )  # fmt: skip
    assert list(found.maps) == list(expected.maps)
    for key, value in expected.maps.items():
        assert torch.equal(found.maps[key], value)
    dense = maps_of(net, image, foreground, SegmentationRegion(), plan)
    assert [method for method, _ in dense.maps] == ["hirescam", "occlusion"]
    assert maps_of(net, image, foreground, SegmentationRegion(), Plan(("evidence",))) is None
    both = maps_of(net, image, foreground, TumorLogOdds(), make_plan(net, ["hirescam"], aggregate="max"))
    assert list(both.maps)[-1][1].startswith("max(input_block, ")


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
