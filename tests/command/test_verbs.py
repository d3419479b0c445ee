"""The command line: light until a verb runs, the same words everywhere, errors in a sentence, what was written last."""

from __future__ import annotations

import argparse
import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest

from scripts.__main__ import main, verbs
from scripts.command.locations import ROOT
from scripts.command.verbs import (
    Outcome,
    Parser,
    Verb,
    add_compute,
    add_weights,
    inference_overlays,
    parse,
    root_parser,
)

HEAVY = (
    "torch",
    "monai",
    "ignite",
    "numpy",
    "scipy",
    "matplotlib",
    "sklearn",
    "nibabel",
    "PIL",
    "fastapi",
)
# One word for one thing: what other tools or earlier versions call it.
REFUSED = {"--datalist", "--data_dir", "--run", "--config", "--output", "--output_dir", "--out_dir", "--model_dir"}
# What the help of an option begins with where it goes on; that of all others is the same up to "(default".
STEMS = {
    "--dataset_dir": ("folder of the images",),
    "--folder": ("folder of the images: ",),
    "--layer": ("layer of the map",),
    "--limit": ("at most so many ",),
    "--masks": ("folder of the masks: ",),
    "--method": ("method of the map",),
    "--name": ("name of the ",),
    "--num_classes": ("number of classes",),
    "--only": ("only ",),
    "--out": ("folder ", "file "),
    "--overlay": ("config file merged over ",),
    "--run_dir": ("trained run", "folder to write the run to"),
    "--root": ("dataset_dir of the result",),
    "--seed": ("of ",),
    "--spatial_size": ("side of the network's input in pixels",),
    "--strict": ("fail where ",),
    "--weights": ("state dict ",),
}
# NAME[=TITLE] of several runs in the folder that a report is on; choices that only one of the verbs has.
EXCEPTIONS = {("report", "--run_dir")}
# Verbs that compute and have no --device, and why.
WITHOUT_DEVICE = {
    "demo": "its steps take the configs' device",
    "compare": "reads results; evaluates what is missing on the configs' device",
    "adopt": "converts weights; --train takes the configs' device",
    "card": "its steps take the configs' device",
    "diagnose": "a few dozen images, on the CPU",
    "planted": "no network",
    "rank-measures": "no network",
}


def actions(parser: argparse.ArgumentParser):
    """Every argument of a parser and of its sub-commands."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for inner in action.choices.values():
                yield from actions(inner)
        elif not isinstance(action, argparse._HelpAction):
            yield action


def commands(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    """Each verb's parser."""
    found = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    return dict(found[0].choices)


def test_building_every_parser_imports_nothing_heavy():
    code = (
        "import sys; from scripts.__main__ import verbs; from scripts.command.verbs import root_parser; "
        f"root_parser(verbs()).format_help(); print([name for name in {HEAVY} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_work_of_every_verb_is_a_module_of_ours():
    names = [verb.name for verb in verbs()]
    assert len(names) == len(set(names)) >= 25
    for verb in verbs():
        assert verb.module.partition(".")[0] in ("scripts", "bundle")
        spec = importlib.util.find_spec(verb.module)
        assert "\ndef execute(" in Path(spec.origin).read_text(encoding="utf-8"), verb.module


def test_a_word_means_the_same_for_every_verb():
    kinds: dict[str, set] = {}
    for verb, parser in commands(root_parser(verbs())).items():
        for action in actions(parser):
            for option in action.option_strings:
                assert option not in REFUSED, (verb, option)
                assert option == "-h" or "-" not in option[2:], (verb, option)
                kinds.setdefault(option, set()).add(action.type)
    for option in ("--dataset_dir", "--datalist_file", "--run_dir", "--out", "--overlay", "--device", "--seed"):
        assert option in kinds
    for option in ("--dataset_dir", "--datalist_file", "--overlay", "--weights"):
        assert len(kinds[option]) == 1, option


def shared_options() -> dict[str, list[tuple[str, argparse.Action]]]:
    """(verb, action) of each option that more than one verb has; earlier spellings, which no help lists, left out."""
    known: dict[str, list[tuple[str, argparse.Action]]] = {}
    for verb, parser in commands(root_parser(verbs())).items():
        for action in actions(parser):
            if action.help != argparse.SUPPRESS:
                for option in action.option_strings:
                    known.setdefault(option, []).append((verb, action))
    return {option: uses for option, uses in known.items() if len({verb for verb, _ in uses}) > 1}


SHARED = shared_options()


@pytest.mark.parametrize("option", SHARED)
def test_a_shared_option_has_one_type_one_metavar_and_one_meaning(option):
    uses = [(verb, action) for verb, action in SHARED[option] if (verb, option) not in EXCEPTIONS]
    kinds = {(type(action), action.type, action.metavar) for _, action in uses}
    assert len(kinds) == 1, (option, kinds)
    if option in STEMS:
        assert all(action.help.startswith(STEMS[option]) for _, action in uses), [action.help for _, action in uses]
    else:
        texts = {re.sub(r" \((default|as many|of a manifest)[^()]*\)", "", action.help) for _, action in uses}
        assert len(texts) == 1, texts


def test_what_computes_takes_a_device():
    work = (
        "train",
        "plan",
        "infill",
        "evaluate",
        "explain",
        "explain-nnunet",
        "scope",
        "certify",
        "predict",
        "ensemble",
    )
    of = {verb for verb, _ in SHARED["--device"]}
    assert {*work, "predict", "ablation", "leave-one-source-out", "serve", "page", "check", "export"} == of
    assert not of & set(WITHOUT_DEVICE)
    assert set(WITHOUT_DEVICE) <= {verb.name for verb in verbs()}


def test_earlier_spellings_are_still_taken():
    certify = parse(verbs(), ["certify", "--model", "m.onnx", "--images", "a", "--masks", "b", "--tumors", "7"])
    assert (certify.folder, certify.tumors, certify.healthy) == (Path("a"), 7, 60)
    assert parse(verbs(), ["demo", "--data", "a"]).folder == Path("a")
    assert parse(verbs(), ["diagnose", "--checkpoint", "a.pt"]).weights == Path("a.pt")


def test_every_argument_is_described_and_every_verb_has_an_example():
    for verb, parser in commands(root_parser(verbs())).items():
        undescribed = [action.dest for action in actions(parser) if not action.help]
        assert undescribed == [], verb
        assert f"python -m scripts {verb} " in parser.epilog + " "


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["audt"], "no verb 'audt'; nearest: audit"),
        (["zzz"], "no verb 'zzz'; there are demo, datalist"),
        (["audit", "--datalist", "x"], "audit has no argument --datalist; nearest: --datalist_file"),
        (["audit", "--dataset_dir", "x", "--out", "y"], "arguments are required: --datalist_file; the arguments are"),
        (["report", "x", "y"], "report takes no further argument 'y'"),
        (["datalist", "image_folder", "--folder", "x", "--out", "y", "--limit", "many"], "invalid int value: 'many'"),
        (["train", "--dataset_dir=d", "--datalist_file=l", "--run_dir=r", "7"], "expected --id value, got '7'"),
    ],
)
def test_what_is_mistyped_is_one_sentence(argv, said):
    with pytest.raises(ValueError, match=re.escape(said)) as caught:
        main(argv)
    assert "\n" not in str(caught.value)


def test_without_arguments_the_verbs_are_listed(capsys):
    with pytest.raises(SystemExit) as ended:
        main([])
    assert ended.value.code == 0
    printed = capsys.readouterr().out
    assert all(f"\n    {verb.name} " in printed for verb in verbs() if len(verb.name) < 20)


def add(parser: Parser) -> None:
    parser.add_argument("--result", default="ok")


OUTCOMES = {
    "ok": (Outcome("three lines", ["a.json", Path("b.png")]), 0, "three lines\nwritten: a.json, b.png\n"),
    "wrong": (Outcome(failed=True), 1, "written: nothing\n"),
}


@pytest.mark.parametrize("result", OUTCOMES)
def test_the_last_line_says_what_was_written_and_the_status_whether_it_is_right(result, capsys, monkeypatch):
    outcome, status, printed = OUTCOMES[result]
    module = argparse.Namespace(execute=lambda arguments: outcome)
    monkeypatch.setitem(sys.modules, "made_up_work", module)
    monkeypatch.setattr("scripts.__main__.verbs", lambda: [Verb("made-up", "made up", "made_up_work", add)])
    assert main(["made-up", "--result", result]) == status
    assert capsys.readouterr().out == printed


def test_paths_keep_numbers_and_signs_and_know_the_home_folder(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    given = ["evaluate", "--run_dir", "20241128", "--dataset_dir", "exp#2", "--datalist_file=~/1e5.json"]
    arguments = parse(verbs(), given)
    assert (arguments.run_dir, arguments.dataset_dir) == (Path("20241128"), Path("exp#2"))
    assert arguments.datalist_file == Path("/home/me/1e5.json")


def test_the_overlays_of_an_answer_are_the_runs_and_then_those_given(tmp_path):
    parser = Parser()
    add_weights(parser)
    (tmp_path / "network.yaml").touch()
    given = parser.parse_args(["--run_dir", str(tmp_path), "--overlay", "a.yaml", "--overlay", "b.yaml"])
    assert inference_overlays(given) == [tmp_path / "network.yaml", Path("a.yaml"), Path("b.yaml")]
    with pytest.raises(FileNotFoundError, match=r"x has no network\.yaml"):
        inference_overlays(parser.parse_args(["--run_dir", str(tmp_path / "x")]))


def test_the_released_bundle_has_the_verbs_of_its_scripts(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    names = [verb.name for verb in verbs()]
    assert "train" in names
    assert "serve" not in names


def test_the_shell_completes_verbs_and_their_arguments(capsys):
    pytest.importorskip("shtab")
    assert main(["completion", "bash"]) == 0
    script = capsys.readouterr().out
    assert script.startswith("# AUTOMATICALLY GENERATED")
    assert "written:" not in script
    assert "complete -o bashdefault" in script
    assert {"--overlay", "--datalist_file"} <= set(script.replace("'", " ").replace('"', " ").split())
    assert all(verb.name in script for verb in verbs())


def test_devices_are_given_by_the_same_argument():
    parser = Parser()
    add_compute(parser, precision=True)
    given = parser.parse_args(["--device", "cuda:1", "--precision", "float32"])
    assert (given.device, given.precision) == ("cuda:1", "float32")
