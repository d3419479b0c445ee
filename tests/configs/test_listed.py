"""The configs list what they do: transforms one by one, equal in every config."""

from __future__ import annotations

import ast
import re
from typing import Any

import pytest
import yaml
from monai.bundle import ConfigParser
from monai.transforms import Transform

from scripts.command.locations import CONFIGS
from scripts.data.caching import describe_setting
from scripts.data.preprocessing import Pipeline, make_augmentation, make_preprocessing, make_training_pipeline
from scripts.runs.folder import merged_config

# Id of the listed transforms in every config that prepares images.
LISTS = {
    "train": "train#deterministic_transforms",
    "evaluate": "preprocessing#transforms",
    "explain": "preprocessing#transforms",
    "diagnose": "preprocessing#transforms",
    "inference": "preprocessing#transforms#0#transforms",
}


def listed(name: str, place: str) -> list[dict[str, Any]]:
    """A list in a config, as it is written."""
    value: Any = yaml.safe_load((CONFIGS / f"{name}.yaml").read_text(encoding="utf-8"))
    for part in place.split("#"):
        value = value[int(part) if part.isdigit() else part]
    return value


def build(entries: list[dict[str, Any]], **values: Any) -> list[Transform]:
    parser = ConfigParser({"imports": [], "steps": entries, **values})
    return parser.get_parsed_content("steps")


def test_every_config_that_prepares_images_is_looked_at():
    with_images = {p.stem for p in CONFIGS.glob("*.yaml") if "LoadCased" in p.read_text(encoding="utf-8")}
    assert with_images == LISTS.keys()


@pytest.mark.parametrize("name", LISTS)
@pytest.mark.parametrize(("size", "spacing"), [([64, 48], None), ([32, 32, 24], None), ([32, 32, 24], [1, 1, 2])])
def test_listed_transforms_are_those_of_every_other_consumer(name, size, spacing):
    entries = listed(name, LISTS[name])
    assert all(isinstance(entry, dict) and "_target_" in entry for entry in entries)
    if entries[-1]["_target_"].endswith("Finalized"):
        entries[-1] = {**entries[-1], "num_classes": 3}
        expected = make_training_pipeline(size, augment=False, num_classes=3, spacing_mm=spacing)
    else:
        assert name == "inference"
        expected = make_preprocessing(size, trace=False, spacing_mm=spacing)
    made = build(entries, spatial_size=size, spatial_dims=len(size), spacing_mm=spacing)
    assert describe_setting(made) == describe_setting(expected.transforms)


def test_random_transforms_are_listed_with_their_ranges():
    entries = listed("train", "train#random_transforms")
    assert all("_target_" in entry for entry in entries)
    assert describe_setting(Pipeline(build(entries)).transforms) == describe_setting(
        make_augmentation((64, 64)).transforms
    )


@pytest.mark.parametrize("augment", [True, False])
def test_training_and_validation_are_built_of_the_lists(augment):
    values = {"augment": augment, "num_classes": 2, "spatial_size": [64, 64]}
    parser = ConfigParser(merged_config([CONFIGS / "train.yaml"], values))
    train, validate = (parser.get_parsed_content(f"{part}#preprocessing") for part in ("train", "validate"))
    assert isinstance(train, Pipeline)
    assert describe_setting(train.transforms) == describe_setting(make_training_pipeline(64, augment, 2).transforms)
    assert describe_setting(validate.transforms) == describe_setting(make_training_pipeline(64, False, 2).transforms)


def test_patches_are_listed_between_preparation_and_augmentation():
    values = {"num_classes": 2, "spatial_size": [32, 32, 32], "spacing_mm": 1.0, "tumor_share": 0.7}
    train = ConfigParser(merged_config([CONFIGS / "train.yaml"], values)).get_parsed_content("train#preprocessing")
    made = make_training_pipeline((32, 32, 32), True, 2, spacing_mm=1.0, tumor_share=0.7)
    assert describe_setting(train.transforms) == describe_setting(made.transforms)


def test_a_list_in_another_order_is_refused():
    entries = listed("train", "train#deterministic_transforms")
    names = [entry["_target_"].rpartition(".")[2] for entry in entries]
    mask, normalize = (entries[names.index(name)] for name in ("MaskBackgroundd", "NormalizeForegroundd"))
    wrong = [mask if e is normalize else normalize if e is mask else e for e in entries]
    config = {"p": {"_target_": "scripts.data.preprocessing.Pipeline", "transforms": wrong}}
    parser = ConfigParser({**config, "spatial_size": [64, 64], "spatial_dims": 2, "num_classes": 2, "spacing_mm": None})
    with pytest.raises(RuntimeError) as caught:
        parser.get_parsed_content("p")
    assert "NormalizeForegroundd after MaskBackgroundd" in str(caught.value.__cause__)


LONGEST = 120  # characters of an expression


def expressions(value: Any) -> list[str]:
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else []
    own = [value] if isinstance(value, str) and value.startswith("$") else []
    return own + [text for each in inner for text in expressions(each)]


@pytest.mark.parametrize("path", sorted(CONFIGS.rglob("*.yaml")), ids=lambda path: path.stem)
def test_expressions_are_of_one_short_line(path):
    text = path.read_text(encoding="utf-8")
    assert ">-" not in text
    assert "|-" not in text
    found = expressions(yaml.safe_load(text))
    assert [e for e in found if len(e) > LONGEST or "\n" in e] == []


# Whose arguments have no names, or are as plain without.
UNNAMED = ("min", "max", ".get")


@pytest.mark.parametrize("path", sorted(CONFIGS.rglob("*.yaml")), ids=lambda path: path.stem)
def test_calls_have_at_most_one_positional_argument(path):
    for expression in expressions(yaml.safe_load(path.read_text(encoding="utf-8"))):
        code = expression[1:].replace("@", "_").replace("#", "_")
        assert not re.search(r"@[\w#]+\[\d+\]", expression), f"{expression}: take a field by its name"
        for call in ast.walk(ast.parse(code)):
            if isinstance(call, ast.Call) and not ast.unparse(call.func).endswith(UNNAMED):
                assert len(call.args) <= 1, expression


def test_configs_fit_the_temperature_before_it_and_measure_after_it():
    train, evaluate = (
        yaml.safe_load((CONFIGS / f"{name}.yaml").read_text(encoding="utf-8")) for name in ("train", "evaluate")
    )
    assert train["validate"]["step"]["calibrated"] is False
    assert "calibrated" not in evaluate["step"]
    assert evaluate["results"]["lift"] == "$engines.lift_of(@network)"
