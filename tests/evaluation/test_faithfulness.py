"""What faithfulness.json of a run says, and that its figure draws every test."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from PIL import Image

from scripts.command.files import write_json
from scripts.evaluation.explanation_plan import main_map, make_plan, maps_of
from scripts.evaluation.faithfulness import TESTS, check_faithfulness, chosen_methods
from scripts.evaluation.localization import draw_cases
from scripts.explain.faithfulness import background_swap, deletion_insertion
from scripts.explain.methods import METHODS
from scripts.explain.targets import TumorLogOdds
from scripts.pictures.explanation_figures import faithfulness_figure, localization_figure, map_label
from tests.evaluation.small_cases import FAST, make_cases, make_net


@pytest.fixture(scope="module")
def checked():
    net, cases = make_net(), make_cases(7)
    plan = make_plan(net, ["evidence", "saliency"], options=FAST)
    return net, cases, plan, check_faithfulness(net, cases, plan, methods="all", count=3, batch_size=2)


def test_tested_are_the_main_map_all_of_the_plan_or_the_named_ones():
    net, stock = make_net(), make_net("average_pool")
    plan = make_plan(net, "all")
    assert chosen_methods(net, plan, "main") == [("evidence", "evidence")]
    assert chosen_methods(stock, plan, "main") == [("gradcam", "bottleneck")]
    found = dict(chosen_methods(net, plan, "all"))
    assert list(found) == list(METHODS)
    assert (found["scorecam"], found["occlusion"]) == ("head.features", "input")
    assert chosen_methods(stock, plan, ["layercam"]) == [("layercam", "bottleneck")]
    with pytest.raises(ValueError, match="test_methods: expected main, all, or a list"):
        chosen_methods(net, plan, "every")
    with pytest.raises(ValueError, match="no evidence map"):
        chosen_methods(stock, plan, ["evidence"])


def test_every_test_has_its_rows_and_json_takes_them(checked, tmp_path):
    net, cases, _, result = checked
    assert result["n"] == 3
    assert set(result["cases"]) == draw_cases(cases, 3, 0)
    assert set(TESTS) <= set(result)
    for name in ("deletion_insertion", "randomization", "stability"):
        assert [r["method"] for r in result[name]] == ["evidence", "saliency"]
    write_json(result, tmp_path / "faithfulness.json")  # refuses what is not finite
    assert not any(p.grad is not None for p in net.parameters())


def test_deletion_is_that_of_the_cases_one_at_a_time(checked):
    net, cases, _, result = checked
    row = result["deletion_insertion"][0]
    gains = []
    for case in cases:
        if case["name"] in result["cases"]:
            image, inside = case["image"][None], case["foreground"][None]
            maps = maps_of(net, image, inside, TumorLogOdds(), make_plan(net, ["evidence"])).maps[
                "evidence", "evidence"
            ]
            curves = deletion_insertion(
                net, image, maps, TumorLogOdds(), {"output": "cls"}, inside, "foreground", steps=8, n_random=2
            )
            gains.append(float(curves.auc()["deletion_gain"]))
    assert row["deletion_gain"] == pytest.approx(np.mean(gains), rel=1e-3)
    # Student's with 2 degrees of freedom, and on each side one more case twice as far out as the furthest.
    mean, ends = np.mean(gains), []
    for side in (-1, 1):
        seen = [*gains, mean + side * 2 * max(side * (gain - mean) for gain in gains)]
        ends.append(np.mean(seen) + side * 4.303 * np.std(seen, ddof=1) / np.sqrt(len(seen)))
    assert row["deletion_gain_ci95"] == pytest.approx(ends, rel=2e-3)
    assert row["deletion_gain"] == pytest.approx(row["random_deletion"] - row["deletion"])
    assert row["curves"]["deletion"][0] == pytest.approx(row["score"])
    assert row["curves"]["deletion"][-1] == pytest.approx(row["score_replaced"])
    assert row["curves"]["share"] == pytest.approx(np.linspace(0, 1, 9))


def test_randomized_weights_begin_with_the_same_map_and_stability_with_likeness(checked):
    _, _, _, result = checked
    for row in result["randomization"]:
        assert row["stages"][0]["layers"] == []
        assert row["stages"][0]["rank_correlation"] == pytest.approx(1.0)
        assert len(row["stages"]) == 7
        assert abs(row["stages"][-1]["rank_correlation"]) < 0.7
    assert all(0.5 < row["ssim"] <= 1 for row in result["stability"])


def test_other_air_moves_nothing_where_the_foreground_is_given_and_the_stock_net_where_it_is_not_masked(checked):
    _, cases, plan, result = checked
    rows = {(r["foreground"], r["masked_again"], r["air"]): r for r in result["background_swap"]}
    assert len(rows) == 16
    for (foreground, masked, _), row in rows.items():
        if masked or foreground == "given":
            assert row["largest_change"] < 1e-5
    assert rows["read off the image", False, "brightest"]["largest_change"] > 1e-3
    stock = make_net("average_pool")
    stock_result = check_faithfulness(stock, cases, plan, ["background_swap"], count=2)
    change = {r["air"]: r["largest_change"] for r in stock_result["background_swap"] if not r["masked_again"]}
    case = next(c for c in cases if c["name"] == stock_result["cases"][0])
    by_hand = background_swap(
        stock, case["image"][None], case["foreground"][None], TumorLogOdds(), {"output": "cls"}
    ).after_masking["noise"]
    assert change["noise"] >= abs(float(by_hand)) - 1e-6


def test_what_is_unknown_is_refused(checked):
    net, cases, plan, _ = checked
    with pytest.raises(ValueError, match=r"tests: \['deletion'\] not known"):
        check_faithfulness(net, cases, plan, ["deletion"])
    with pytest.raises(ValueError, match="no case with a tumor mask"):
        check_faithfulness(net, cases[-1:], plan)


def read(png: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB"))


def test_the_figure_has_a_panel_a_test(checked):
    net, _, _, result = checked
    whole = read(faithfulness_figure(result, main_map(net), "run"))
    head = {k: v for k, v in result.items() if k not in TESTS}
    one = read(faithfulness_figure({**head, "stability": result["stability"]}, main_map(net), "run"))
    assert whole.shape[0] > 1.5 * one.shape[0]
    assert whole.shape[1] > 2.5 * one.shape[1]
    with pytest.raises(ValueError, match="without any test"):
        faithfulness_figure(head, main_map(net), "run")


def test_bars_are_as_long_as_the_energy_and_the_main_map_has_its_own_color():
    def row(method, energy, **more):
        return {
            **{"method": method, "layer": "input", "target": "tumor_log_odds", "n": 5, "tumor_energy": energy},
            **{"tumor_energy_ci95": [None, None], "background_energy": None, "background_energy_ci95": [None, None]},
            **{"pointing_game": 1.0, **more},
        }

    rows = [row("saliency", 0.8), row("occlusion", 0.4), row("uniform", 0.2, layer="none")]
    picture = read(localization_figure(rows, ("saliency", "input"), "bars"))
    lengths = {}
    for name, color in (("main", (213, 94, 0)), ("other", (0, 114, 178)), ("baseline", (154, 154, 154))):
        lengths[name] = (picture == color).all(-1).sum(1).max()
    assert lengths["main"] / lengths["other"] == pytest.approx(2.0, rel=0.05)
    assert lengths["main"] / lengths["baseline"] == pytest.approx(4.0, rel=0.1)
    with pytest.raises(ValueError, match="without any row"):
        localization_figure([], ("saliency", "input"), "bars")


def test_labels_say_method_layer_and_target():
    row = {"method": "gradcam", "layer": "bottleneck", "target": "segmentation_1_predicted"}
    assert map_label(row) == "gradcam at bottleneck (segmentation, predicted mask)"
    assert map_label({"method": "integrated_gradients", "layer": "input", "target": "class_2"}) == (
        "integrated gradients (class 2)"
    )
    assert map_label({"method": "evidence", "layer": "evidence"}) == "evidence"
    assert map_label({"method": "random", "layer": "none", "target": "t"}) == "random map"


def test_torch_is_not_left_seeded(checked):
    net, cases, plan, _ = checked
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    check_faithfulness(net, cases, plan, ["randomization"], ["saliency"], 1)
    assert torch.equal(torch.rand(3), expected)
