"""What is explained at which layers, and what is refused before the work starts."""

from __future__ import annotations

import pytest
import torch

from scripts.data.preprocessing import collate
from scripts.evaluation.explanation_plan import Plan, layers_of, make_plan, maps_of
from scripts.evaluation.localization import measure
from scripts.explain.methods import METHODS, explain
from scripts.explain.targets import ClassScore, SegmentationRegion, TumorLogOdds
from tests.evaluation.small_cases import CLASSES, FAST, make_cases, make_net


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
