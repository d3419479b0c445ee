"""Paths, devices and config files arrive as they were given, or are refused in a sentence."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys

import pytest
import torch
import yaml

from scripts.__main__ import main
from scripts.command import cli
from scripts.command.config_files import literal, plain, read_config, read_mapping
from scripts.command.devices import check_device
from scripts.command.locations import CONFIGS, ROOT
from scripts.command.overrides import bundle_command, merged_config, names_path, parse_overrides
from scripts.command.workflows import run_config
from scripts.runs import folder as runs
from scripts.training.train import train

PROGRAM = "/lib/python3.11/site-packages/monai/bundle/__main__.py"
SIGNS = ["exp#2", "a##b", "it's#1", 'say "#"', "back\\slash#", "ü#é"]


@pytest.mark.parametrize("name", SIGNS)
def test_a_sign_in_a_path_survives_the_parser_in_files_and_values(name, tmp_path):
    file = tmp_path / "a.yaml"
    content = {"folder": name, "parts": {"list": [name, 1]}, "id": "@parts#list#1", "sum": "$@parts#list#1 + 1"}
    file.write_text(yaml.safe_dump(content), encoding="utf-8")
    parser = read_config(file, {"folder": name})
    assert parser.get_parsed_content("folder") == name
    assert parser.get_parsed_content("parts")["list"] == [name, 1]
    assert (parser.get_parsed_content("id"), parser.get_parsed_content("sum")) == (1, 2)
    merged = merged_config([file], {"folder": name})
    assert merged["folder"] == name
    assert plain(literal({"x": [name]})) == {"x": [name]}


def test_every_id_of_a_file_or_folder_is_known_as_one():
    inference = read_mapping(CONFIGS / "inference.yaml")
    training = read_mapping(CONFIGS / "train.yaml")
    known = {name for name in {**inference, **training} if names_path(name)}
    assert {"run_dir", "dataset_dir", "datalist_file", "cache_dir", "stage_dir", "output_dir", "bundle_root"} <= known
    assert {"input", "foreground", "weights", "initial_weights"} <= known
    assert not {"seed", "classes", "device", "spatial_size", "label_slices"} & known


@pytest.mark.parametrize(
    ("text", "value"),
    [("20241128", "20241128"), ("1e5", "1e5"), ("2024_11", "2024_11"), ("True", "True"), ("exp#2", "exp#2"),
     ("['a','b']", ["a", "b"]), ("None", None), ("$@run_dir + '/x'", "$@run_dir + '/x'")],
)  # fmt: skip
def test_paths_among_further_values_stay_text(text, value):
    assert parse_overrides(["--initial_weights", text]) == {"initial_weights": value}


def test_the_home_folder_is_known_also_after_an_equals_sign(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    assert parse_overrides(["--cache_dir=~/cache"]) == {"cache_dir": "/home/me/cache"}
    with pytest.raises(ValueError, match=r"--run_dir=~/runs: the shell leaves ~ after =; write --run_dir ~/runs"):
        cli.begin("cpu", run_dir="~/runs")


def test_what_monais_command_line_makes_of_a_path_is_refused(tmp_path):
    for value, said in ((20241128, "int 20241128; write ./20241128"), (1e5, "float 100000.0"), (True, "bool True")):
        with pytest.raises(ValueError, match=f"--run_dir was read as the {said}"):
            cli.begin("cpu", run_dir=value)
    with pytest.raises(ValueError, match=r"--input was read as exp::2/a\.png: MONAI's config parser cannot take #"):
        cli.begin("cpu", input=["b.png", "exp::2/a.png"])
    (tmp_path / "a::b").mkdir()
    cli.begin("cpu", run_dir=str(tmp_path / "a::b"), dataset_dir=None, input=["a", "b"])
    command = bundle_command([PROGRAM, "run", "--config_file", str(CONFIGS / "explain.yaml"), "--run_dir", "exp#2"])
    with pytest.raises(ValueError, match=r"--run_dir exp#2: MONAI's command line cannot take # in a value"):
        command.check()


def test_a_mapping_of_an_args_file_must_not_replace_a_section(tmp_path):
    args = tmp_path / "args.json"
    config = str(CONFIGS / "train.yaml")
    args.write_text(json.dumps({"config_file": config, "train": {"trainer": {"max_epochs": 2}}}), encoding="utf-8")
    said = r"--train: a mapping replaces all of 'train', 'deterministic_transforms' too.*#trainer$"
    with pytest.raises(ValueError, match=said):
        bundle_command([PROGRAM, "run", "--args_file", str(args)]).check()
    args.write_text(json.dumps({"config_file": config, "stage_epochs": {"joint": 2}}), encoding="utf-8")
    bundle_command([PROGRAM, "run", "--args_file", str(args)]).check()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "no config file at "),
        ("", "a.yaml is empty; a config holds values by id"),
        ("- 1\n", "a.yaml holds a list"),
        ("a: [1\n", "a.yaml cannot be read as a config: "),
        ("a: 1\na: 2\n", "Duplicate key: `a`"),
    ],
)
def test_a_file_that_is_no_config_is_named(content, said, tmp_path):
    path = tmp_path / "a.yaml"
    if content is not None:
        path.write_text(content, encoding="utf-8")
    with pytest.raises((ValueError, FileNotFoundError), match=said) as caught:
        merged_config([CONFIGS / "train.yaml", path])
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_file_of_another_kind_is_no_config(tmp_path):
    (tmp_path / "a.txt").write_text("a: 1")
    with pytest.raises(ValueError, match=r"a\.txt is no config file: expected one of \.json, \.yaml, \.yml"):
        read_mapping(tmp_path / "a.txt")


@pytest.mark.parametrize("device", ["cuda:77", "gpu", "meta", "mps" if not torch.backends.mps.is_available() else "x"])
def test_a_device_that_is_not_there_is_refused_with_those_that_are(device):
    with pytest.raises(ValueError, match=f"device {device} cannot be used on this machine; it has cpu"):
        check_device(device)
    with pytest.raises(ValueError, match=f"device {device} cannot be used"):
        cli.begin(device)
    assert check_device("cpu") == torch.device("cpu")


def test_a_device_is_refused_by_the_verbs_before_they_work(small_run, tmp_path):
    run = str(small_run.run("ours"))
    given = [token for name, value in small_run.paths.items() for token in (f"--{name}", value)]
    with pytest.raises((ValueError, RuntimeError)) as caught:
        main(["evaluate", "--run_dir", run, *given, "--device", "cuda:77", "--out", str(tmp_path / "out")])
    assert "device cuda:77 cannot be used" in str(caught.value.__cause__ or caught.value)
    with pytest.raises(ValueError, match="device cuda:77 cannot be used"):
        main(
            [
                "predict",
                str(small_run.dataset_dir),
                "--out",
                str(tmp_path / "o"),
                "--run_dir",
                run,
                "--device",
                "cuda:77",
            ]
        )
    assert list(tmp_path.iterdir()) == []


def test_a_run_in_a_folder_with_a_sign_trains_and_answers_in_it(small_data, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    data = tmp_path / "data#1"
    data.symlink_to(small_data.dataset_dir, target_is_directory=True)
    run = tmp_path / "exp#2" / "20241128"
    paths = {"dataset_dir": str(data), "datalist_file": str(small_data.datalist_file)}
    train(run, [CONFIGS / "smoke.yaml"], stages=(runs.JOINT,), max_epochs=1, **paths)
    assert (run / "joint" / "model.pt").is_file()
    saved = read_mapping(run / "joint" / "config.yaml")
    assert (saved["run_dir"], saved["dataset_dir"]) == (str(run), str(data))
    assert runs.trained_tasks(run / "joint") == {"segmentation", "classification"}
    image = next((small_data.dataset_dir / "singles").rglob("images/*/*.png"))
    shutil.copyfile(image, tmp_path / "a#b.png")
    assert main(["predict", str(tmp_path / "a#b.png"), "--out", "out#3", "--run_dir", str(run)]) == 0
    assert (tmp_path / "out#3" / "a#b_mask.png").is_file()
    overlay = [str(run / "network.yaml")]
    run_config("inference.yaml", overlay, input=str(tmp_path / "a#b.png"), output_dir=str(tmp_path / "one#4"))
    assert (tmp_path / "one#4" / "a#b_mask.png").is_file()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a#b.png", "data#1", "exp#2", "one#4", "out#3"]


def test_the_verbs_run_from_any_folder(tmp_path):
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, str(ROOT / "scripts"), "train", "--help"], cwd=tmp_path, env=environment,
        capture_output=True, text=True, encoding="utf-8",
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    assert "--datalist_file LIST.json" in done.stdout


def test_configs_that_need_no_distributed_start_import_nothing_before_the_bundle_root_is_on_the_path():
    """``run`` comes after MONAI put the bundle's root on Python's path, ``initialize`` before."""
    for name in ("evaluate", "explain", "diagnose", "inference"):
        content = read_mapping(CONFIGS / f"{name}.yaml")
        assert "initialize" not in content, name
        assert content["run"][0] == "$cli.start()"


def test_the_folder_of_a_missing_list_or_of_no_data_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="gone"):
        main(
            [
                "train",
                "--dataset_dir",
                str(tmp_path),
                "--datalist_file",
                "gone.json",
                "--run_dir",
                str(tmp_path / "run"),
            ]
        )
    with pytest.raises(FileNotFoundError, match=r"no config file at .*gone\.yaml"):
        main(["train", "--dataset_dir", ".", "--datalist_file", "x", "--run_dir", "r", "--overlay", "gone.yaml"])
