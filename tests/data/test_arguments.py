"""Arguments of the verb `datalist`: each source takes what its builder takes, and no more."""

from __future__ import annotations

import inspect
from pathlib import Path

import pytest

from scripts.command.verbs import Parser, parse
from scripts.data.arguments import SOURCES, VERBS
from scripts.data.datalists.building import BUILDERS, RULE

# Of the verb itself, and of the rule for slices.
ITS_OWN = {"help", "source", "out", "strict", "dry_run"}
OF_SLICES = {"whole_volumes", *RULE}
# What the command line leaves to the verb: where pictures are written, and what is the same for all.
UNASKED = {"folder", "file", "unpack", "progress", "rule", "layout"}


def taken() -> dict[str, set[str]]:
    """The destinations of the arguments of each source."""
    parser = Parser(prog="datalist")
    VERBS[0].add(parser)
    (commands,) = (action for action in parser._actions if action.dest == "command")
    return {name: {a.dest for a in one._actions} for name, one in commands.choices.items() if name in SOURCES}


@pytest.mark.parametrize("name", [name for name in SOURCES if name != "build"])
def test_a_source_takes_what_its_builder_takes(name):
    known, options = set(inspect.signature(BUILDERS[name].plan).parameters), taken()[name]
    assert ("planes" in options) == ("rule" in known)
    assert options >= ITS_OWN
    assert options - ITS_OWN - OF_SLICES <= known
    assert known - UNASKED <= options
    if "rule" in known:
        assert options >= OF_SLICES


def test_any_layout_takes_what_one_source_takes_and_can_be_named():
    every = taken()
    assert every["build"] == {"layout"}.union(*every.values())
    assert "layout" not in set().union(*(options for name, options in every.items() if name != "build"))


def arguments(*more: str, name: str = "build", folder: str = "--folder"):
    return vars(parse(VERBS, ["datalist", name, folder, "~/in", "--out", "x.json", *more]))


def test_nothing_that_was_not_said_reaches_the_builders():
    given = arguments()
    assert set(given) - {"verb", "chosen", "overrides", "parser"} == {
        "command", "source", "out", "strict", "dry_run", "whole_volumes",
    }  # fmt: skip
    assert (given["source"], given["out"]) == (Path("~/in").expanduser(), Path("x.json"))
    assert [given[name] for name in ("strict", "dry_run", "whole_volumes")] == [False] * 3
    assert "whole_volumes" not in arguments(name="image_folder")


def test_values_have_their_kinds():
    given = arguments(
        "--seed", "3", "--fractions", "0", "0.5", "0.5", "--planes", "axial", "coronal", "--tumor_slices", "2",
        "--min_tumor_area", "0.01", "--channels", "T1", "T2", "--patients", "p.csv", "--classes", "a", "b", "--strict",
        "--diagnosis", "unknown", "--max_distance", "30", "--limit", "5", "--shifted_air", "--masks", "m", "--dry_run",
        "--whole_volumes",
    )  # fmt: skip
    expected = {
        "seed": 3, "fractions": [0.0, 0.5, 0.5], "planes": ["axial", "coronal"], "tumor_slices": 2,
        "min_tumor_area": 0.01, "channels": ["T1", "T2"], "patients": Path("p.csv"), "classes": ["a", "b"],
        "diagnosis": "unknown", "max_distance": 30, "limit": 5, "shifted_air": True, "masks": Path("m"), "strict": True,
        "dry_run": True, "whole_volumes": True,
    }  # fmt: skip
    assert {name: given[name] for name in expected} == expected


@pytest.mark.parametrize(
    "line",
    [
        [],
        ["build", "--out", "x.json"],
        ["build", "--folder", "in"],
        ["decathlon", "--out", "x.json"],
        ["build", "--folder", "in", "--out", "x.json", "--fractions", "0.5", "0.5"],
        ["build", "--folder", "in", "--out", "x.json", "--classes", "a"],
        ["build", "--folder", "in", "--out", "x.json", "--diagnosis", "tumor"],
        ["nifti_volumes", "--folder", "in", "--out", "x.json", "--channels", "T1"],
        ["merge", "--out", "x.json"],
        ["merge", "a.json"],
        ["nnunet", "--datalist_file", "a.json", "--dataset_dir", "in"],
        ["check", "--dataset_dir", "in"],
    ],
)
def test_what_is_missing_or_not_taken_is_refused_in_a_sentence(line):
    with pytest.raises(ValueError, match=r"the arguments are listed by: |takes no further argument"):
        parse(VERBS, ["datalist", *line])


def test_lists_are_joined_with_what_was_said_alone():
    given = vars(parse(VERBS, ["datalist", "merge", "a.json", "b.json", "--out", "c.json"]))
    assert given["lists"] == [Path("a.json"), Path("b.json")]
    assert given["dataset_dir"] is None
    asked = ("--dataset_dir", "x", "y", "--binary", "--resplit", "--near_index", "n", "--fingerprints", "f", "g")
    given = vars(parse(VERBS, ["datalist", "merge", "a.json", "--out", "c.json", *asked]))
    assert given["dataset_dir"] == [Path("x"), Path("y")]
    assert (given["binary"], given["resplit"], given["near_index"]) == (True, True, Path("n"))
    assert given["fingerprints"] == [Path("f"), Path("g")]
    assert not {"mixed_modality", "same_patients", "root", "seed", "max_distance"} & set(given)
