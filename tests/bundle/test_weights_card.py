"""The card of the shipped weights says what the kept results say, and the weights are those it speaks of."""

from __future__ import annotations

import copy
import hashlib
import json
import re
import shlex
from functools import reduce
from pathlib import Path

import pytest
import yaml

from bundle import weights_card
from bundle.targets import targets
from bundle.weights_card import RESULTS, interval, number, render
from scripts.__main__ import main as command
from scripts.data import datalists
from scripts.inference.pipeline import Inference
from scripts.runs import folder as runs
from scripts.training import train

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def results() -> dict:
    return json.loads(RESULTS.read_text(encoding="utf-8"))


@pytest.mark.parametrize("page", weights_card.CARD)
def test_card_is_what_the_results_give(results, page):
    assert (ROOT / "docs" / page).read_text(encoding="utf-8") == render(results, page)


def test_results_are_of_the_shipped_weights(results):
    weights = (ROOT / "models" / "model.pt").read_bytes()
    assert hashlib.sha256(weights).hexdigest() == results["weights_sha256"]
    assert len(weights) <= 25 * 2**20
    network = Inference(ROOT).network
    assert sum(p.numel() for p in network.parameters()) == results["parameters"] <= 2_500_000


def test_shipped_config_is_that_of_the_last_stage(results):
    kept = yaml.safe_load((weights_card.kept_stages()[-1] / "config.yaml").read_text(encoding="utf-8"))
    shipped = yaml.safe_load((ROOT / "configs" / "inference.yaml").read_text(encoding="utf-8"))
    assert shipped["network_def"]["regions"] == "@regions"
    assert shipped["network_def"]["window"].endswith("if @spacing_mm else None")
    of_regions = ("out_channels", "regions", "window")  # expressions, of the two values below
    stated, trained = ({k: v for k, v in one["network_def"].items() if k not in of_regions} for one in (shipped, kept))
    later = {"deep_supervision": False}  # came after the shipped training, off as it was then
    assert stated == {**later, **trained}
    assert [shipped[key] for key in ("regions", "spacing_mm")] == [None, None]
    assert all(shipped[key] == kept[key] for key in ("spatial_size", "num_classes"))
    assert shipped["classes"] == results["classes"]


def test_no_group_and_no_tested_image_was_trained_on(results):
    """In no stage of any run: the tested images are in the test part of each."""
    lists = [datalists.read(path) for path in weights_card.TRAINING.glob("*/datalist.json")]
    last = datalists.read(weights_card.kept_stages()[-1].parent / "datalist.json")
    datalists.assert_no_overlap(last)
    tested = {item["image"] for item in last["test"]}
    assert len(tested) == results["counts"]["test"] == results["overall"]["n"]
    for one in lists:
        assert tested.isdisjoint(item["image"] for part in ("training", "validation") for item in one[part])
        assert tested <= {item["image"] for item in one["test"]}


def test_remarks_by_hand_are_on_these_weights(results):
    assert f"SHA-256 {results['weights_sha256'][:16]}..." in render(results)


def test_commands_of_the_card_are_understood(results, monkeypatch):
    """Each is a verb with options that a shell hands on as they were."""
    commands = re.findall(r"^    (python -m scripts train .*)$", render(results), re.MULTILINE)
    assert len(commands) == len({stage["command"] for stage in results["stages"]}) >= 2
    given: list[tuple] = []

    class Understood(Exception):
        pass

    def taken(run_dir, overlays, stages, tracking, **overrides):
        given.append((overlays, overrides))
        raise Understood

    monkeypatch.setattr(train, "train", taken)
    for line in commands:
        words = shlex.split(line)
        with pytest.raises(Understood):
            command(words[3:])
        overlays, overrides = given[-1]
        assert all((ROOT / overlay).is_file() for overlay in overlays)
        assert (ROOT / overrides.pop("datalist_file")).is_file()
        assert overrides.pop("dataset_dir") == "BRISC"
        stage = [s for s in results["stages"] if s["command"].replace("DATASET_DIR", "BRISC") == line][-1]
        folder = weights_card.TRAINING / stage["run"] / stage["stage"]
        kept = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
        own = {key: value for key, value in overrides.items() if key not in runs.STAGES}
        assert {key: reduce(lambda part, name: part[name], key.split("#"), kept) for key in own} == own


def test_stages_tell_dice_and_balanced_accuracy_of_the_epoch_they_selected(results):
    stages = {(stage["run"], stage["stage"]): stage for stage in results["stages"]}
    for stage in stages.values():
        reached = {"dice": stage["dice"], "balanced_accuracy": stage["balanced_accuracy"]}
        reached["combined"] = (stage["dice"] + stage["balanced_accuracy"]) / 2
        if stage["key_metric"] == "because":
            reached["because"] = (reached["combined"] + stage["removed"] + stage["moved"]) / 3
        assert reached[stage["key_metric"]] == pytest.approx(stage["best_metric"], abs=1e-6)


def test_missed_target_is_told_by_how_much(results):
    worse = copy.deepcopy(results)
    worse["overall"]["segmentation"]["dice"]["mean"] = 0.5
    worse["overall"]["classification"]["ece"] = 0.01
    rows = {row["title"]: row for row in targets(worse)}
    assert rows["Dice over tumor cases"]["missed"] == pytest.approx(0.36)
    assert rows["ECE, 4 classes"]["missed"] == 0.0
    assert re.search(r"\| Dice over tumor cases \| >= 0\.86 \| 0\.5000 .* \| 0\.3600 \|", render(worse))


def test_target_of_a_painted_out_tumor_is_the_share_that_is_no_longer_called_tumor(results):
    changed = copy.deepcopy(results)
    rows = changed["certificate"]["rows"]
    row = next(r for r in rows if (r["test"], r["how"], r["measure"]) == ("removal", "learned", "called tumor"))
    row |= {"after": 0.3, "after_ci95": [0.1, 0.4]}
    target = next(t for t in targets(changed) if t["title"] == "Painted out (learned): no tumor")
    assert target["value"] == pytest.approx(0.7)
    assert target["ci95"] == pytest.approx([0.6, 0.9])
    assert target["missed"] == pytest.approx(0.2)


def test_numbers_of_nothing_are_not_invented():
    assert number(None) == number(float("nan")) == "n/a"
    assert number(0.12345) == "0.123"
    assert number(0.12345, 4) == "0.1235"
    assert interval(None) == interval([None, 1.0]) == ""
    assert interval([0.1, 0.2]) == "[0.100, 0.200]"
