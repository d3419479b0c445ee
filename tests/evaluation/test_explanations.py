"""explanations/ of a network: what is refused before the work, what an earlier explanation left, what is left out."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from monai.bundle import ConfigParser

from scripts.command.errors import sentence
from scripts.command.locations import CONFIGS
from scripts.evaluation import explanations
from scripts.evaluation.explanations import check_cases, make_plan, write_explanations
from tests.evaluation.small_cases import CLASSES, make_cases, make_net


@pytest.mark.parametrize("names", [6, "case", [1, 2]])
def test_cases_are_names(names):
    with pytest.raises(ValueError, match="cases: expected a list of names"):
        check_cases(names)
    check_cases(None)
    check_cases(["a"])


@pytest.mark.parametrize(
    ("config", "key", "value", "message"),
    [
        ("evaluate.yaml", "extras", ["uncertanty"], "extras: 'uncertanty' not known"),
        ("explain.yaml", "cases", 6, "cases: expected a list of names"),
        ("explain.yaml", "tests", ["deletion"], "tests: ['deletion'] not known"),
        ("explain.yaml", "tests", "stability", "tests: ['stability'] not known"),
    ],
)
def test_mistyped_values_are_refused_when_a_config_begins(config, key, value, message):
    parser = ConfigParser()
    parser.read_config(str(CONFIGS / config))
    parser[key] = value
    with pytest.raises(RuntimeError) as caught:
        parser.get_parsed_content("run")
    assert message in sentence(caught.value)


@pytest.mark.parametrize("config", ["evaluate.yaml", "explain.yaml", "diagnose.yaml"])
def test_without_a_run_one_sentence_names_the_key(config):
    for key in ("trained", "output_dir"):
        parser = ConfigParser()
        parser.read_config(str(CONFIGS / config))
        with pytest.raises(RuntimeError) as caught:
            parser.get_parsed_content(key)
        assert sentence(caught.value) == "run_dir is required; give it as --run_dir PATH"


def test_unknown_tests_are_refused_before_anything_is_measured(tmp_path, monkeypatch):
    net = make_net()
    monkeypatch.setattr(explanations, "measure", lambda *_: pytest.fail("measured"))
    with pytest.raises(ValueError, match=r"tests: .'deletion'. not known"):
        write_explanations(net, make_cases(), [], (32, 32), tmp_path, make_plan(net), CLASSES, tests=["deletion"])


def files(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def test_a_head_that_was_not_trained_is_not_explained_and_old_files_go(tmp_path):
    folder = tmp_path / "run" / "explanations"
    for name in ("localization.json", "faithfulness.json", "gallery.json", "overlays/c0_overlay.png", "notes.txt"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("[]", encoding="utf-8")
    net = make_net()
    net.trained_tasks = ("segmentation",)
    plan = make_plan(net, ["gradcam"], layers=["decoder_last"])
    table = write_explanations(net, make_cases(), [], (32, 32), folder, plan, CLASSES, tests=["stability"])
    assert {row["target"] for row in table} == {"segmentation_1_predicted"}
    left = {"localization.json", "localization.png", "cases.csv", "unavailable.json", "notes.txt"}
    assert files(folder) == left | {"methods/segmentation_1_predicted.png"}
    reasons = json.loads((folder / "unavailable.json").read_text(encoding="utf-8"))
    assert "head of this network was not trained" in reasons["classification"]
