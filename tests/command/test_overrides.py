"""Values given beside config files: a misspelled one is refused, and what differs between two configs is named."""

from __future__ import annotations

import json

import pytest

from scripts.__main__ import main
from scripts.command import cli
from scripts.command.locations import CONFIGS
from scripts.command.overrides import bundle_command, check_overrides, differing, merged_config
from scripts.comparison.ablation import check_overrides as check_study
from scripts.runs import folder as runs
from scripts.training.train import by_stage

TRAIN = [str(CONFIGS / "train.yaml")]
PROGRAM = "/lib/python3.11/site-packages/monai/bundle/__main__.py"


def read(name: str) -> dict:
    return merged_config([CONFIGS / name])


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("learnin_rate", "--learnin_rate: the config has no 'learnin_rate'; nearest: --learning_rate"),
        ("evidence_wieght", "--evidence_wieght: the config has no 'evidence_wieght'; nearest: --evidence_weight"),
        ("run-dir", "nearest: --run_dir"),
        ("netwrk_def#filters", "the config has no 'netwrk_def'; nearest: --network_def"),
        ("train#smapler#seed", "the config has no 'train#smapler'; nearest: --train#sampler"),
        ("train::optimiser::lr", "the config has no 'train#optimiser'; nearest: --train#optimizer"),
        ("train#lr", "--train#lr: the config has no 'train#lr'"),
        ("network_def#a#b", "the config has no 'network_def#a'"),
        ("spatial_size#2", "spatial_size is a list of 2"),
        ("seed#x", "seed is 0 and has no parts"),
        ("zzz", "the values that can be changed stand in the config files"),
    ],
)
def test_an_id_that_addresses_nothing_is_refused_with_the_nearest(name, said):
    with pytest.raises(ValueError, match=r"the config|list of|no parts") as caught:
        check_overrides(read("train.yaml"), [name])
    assert said in str(caught.value)
    with pytest.raises(ValueError, match="the config"):
        merged_config(TRAIN, {name: 1})


@pytest.mark.parametrize(
    "name",
    [
        *("seed", "network_def#filters", "network_def::filters", "spatial_size#1", "train#trainer#max_epochs"),
        *("network_def#dropout", "stage_epochs#another", "train#handlers", "train#dataset#data", "_meta_#version"),
        "train#handlers#0#seed",
    ],
)
def test_ids_of_the_config_and_new_arguments_of_its_components_pass(name):
    check_overrides(read("train.yaml"), [name])


def test_an_added_argument_reaches_the_component():
    assert merged_config(TRAIN, {"network_def#dropout": 0.1})["network_def"]["dropout"] == 0.1


def command(*arguments: str, program: str = PROGRAM):
    return bundle_command([program, *arguments])


def test_a_bundle_command_is_read_as_fire_reads_it(tmp_path):
    given = ["run", "training", "--config_file", "['a.yaml','b.yaml']", "--dataset-dir=d", "--seed", "-1", "--flag",
             "--meta_file", "m.json", "--logging_file", "False", "--train#trainer#max_epochs", "2"]  # fmt: skip
    found = command(*given)
    assert found.files == ["a.yaml", "b.yaml"]
    assert found.values == {"dataset_dir": "d", "seed": -1, "flag": True, "train#trainer#max_epochs": 2}
    assert not found.tracking
    assert command("run", "--config_file", "a.yaml", "--tracking", "mlflow").tracking
    defaults = tmp_path / "args.json"
    defaults.write_text(json.dumps({"config_file": "a.yaml", "seed": 3, "max_epochs": 5}), encoding="utf-8")
    found = command("run", "--args_file", str(defaults), "--seed", "4")
    assert (found.files, found.values) == (["a.yaml"], {"seed": 4, "max_epochs": 5})


@pytest.mark.parametrize(
    ("program", "arguments"),
    [
        (PROGRAM, ("ckpt_export", "network_def", "--config_file", "a.yaml")),
        ("/home/me/bundle/release.py", ("run", "--config_file", "a.yaml")),
        ("-c", ()),
    ],
)
def test_other_programs_are_no_bundle_command(program, arguments):
    assert command(*arguments, program=program) is None


@pytest.mark.parametrize("config", ["train", "evaluate", "explain", "diagnose", "inference"])
def test_every_config_refuses_misspelled_values_as_its_first_step(config, monkeypatch):
    path = CONFIGS / f"{config}.yaml"
    monkeypatch.setattr("sys.excepthook", lambda *_: None)
    content = read(path.name)
    assert content.get("initialize", content["run"])[0] == "$cli.start()"
    monkeypatch.setattr("sys.argv", [PROGRAM, "run", "--config_file", str(path), "--bundle_rot", "x"])
    with pytest.raises(ValueError, match="no 'bundle_rot'; nearest: --bundle_root"):
        cli.start()
    given = [PROGRAM, "run", "--config_file", str(path), "--bundle_root", "x", "--tracking", "mlflow"]
    monkeypatch.setattr("sys.argv", [*given, "--experiment_name", "mine", "--run_id", "run"])
    cli.start()


def test_overrides_are_checked_for_every_stage_before_the_first():
    misspelled = {"seed": 1, "stage3_joint": {"max_epoch": 20}}
    with pytest.raises(ValueError, match="no 'max_epoch'; nearest: --max_epochs"):
        by_stage(runs.STAGES, [], misspelled)
    given = by_stage(runs.STAGES, [], {"seed": 1, "max_epochs": 2, "stage3_joint": {"max_epochs": 20}})
    assert [values["max_epochs"] for values in given.values()] == [2, 2, 20]
    assert {values["seed"] for values in given.values()} == {1}


@pytest.mark.parametrize(
    ("stages", "overrides", "said"),
    [
        (runs.STAGES, {"stage3_join": {"seed": 1}}, "--stage3_join: no such stage; nearest: --stage3_joint"),
        ((runs.JOINT,), {"stage3_joint": {}}, "--stage3_joint: no such stage in this run, its stages: joint"),
        (runs.STAGES, {"stage3_joint": 5}, "--stage3_joint takes values by id"),
    ],
)
def test_stages_are_named_and_given_values_by_id(stages, overrides, said):
    with pytest.raises(ValueError, match=said):
        by_stage(stages, [], overrides)


def test_training_refuses_before_it_writes(tmp_path, small_data):
    paths = [f"--{name}={value}" for name, value in small_data.paths.items()]
    arguments = ["train", *paths, "--run_dir", str(tmp_path / "run"), "--joint", "--learnin_rate", "0.1"]
    with pytest.raises(ValueError, match="nearest: --learning_rate"):
        main(arguments)
    assert list(tmp_path.iterdir()) == []


def test_a_study_refuses_for_all_variants_and_gives_each_the_values_of_its_stages():
    check_study(
        ["ours", "no_stages", "densenet121", "ensemble"], [], {"stage3_joint": {"seed": 1}, "joint": {"seed": 2}}
    )
    with pytest.raises(ValueError, match="nearest: --learning_rate"):
        check_study(["no_stages"], [], {"learnin_rate": 1})


def test_the_help_of_training_describes_overrides(capsys):
    with pytest.raises(SystemExit):
        main(["train", "--help"])
    text = capsys.readouterr().out
    assert "\"{'max_epochs': 20}\"" in text
    assert "--network_def#dropout 0.1" in text


def test_what_differs_is_named_by_its_id_and_what_changes_no_result_is_not():
    saved, now = read("train.yaml"), read("train.yaml")
    assert differing(saved, now) == []
    for name in ("run_dir", "dataset_dir", "cache_dir", "device", "backend", "image_interval", "tracking_uri"):
        now[name] = "another"
    now["train"]["dataset"] |= {"num_workers": 4, "progress": False}
    now["train"]["dataloader"]["num_workers"] = 4
    assert differing(saved, now) == []
    now["spatial_size"] = tuple(saved["spatial_size"])
    assert differing(saved, now) == []
    now["network_def"] |= {"filters": [1, 2], "dropout": 0.1}
    now["train"]["dataset"]["data"] = "$[]"
    now["max_epochs"] = 3
    del now["seed"]
    names = ["max_epochs", "network_def#dropout", "network_def#filters", "seed", "train#dataset#data"]
    assert differing(saved, now) == names
