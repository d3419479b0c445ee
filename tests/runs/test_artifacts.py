"""The files of an evaluation: what is left of an earlier one goes, and every JSON says which weights it is of."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from scripts.command.files import write_json
from scripts.runs.artifacts import EVALUATION, EXPLANATION, KEY, check_extras, clear, mark, marks


@pytest.mark.parametrize(
    ("extras", "message"),
    [
        (["uncertanty"], "extras: 'uncertanty' not known; expected a list of uncertainty, robustness, scope"),
        (["scope", "audit", "x"], "extras: 'audit', 'x' not known"),
        ("scope", "expected a list .* got 'scope'"),
        (None, "expected a list .* got None"),
    ],
)
def test_a_mistyped_part_is_refused(extras, message):
    with pytest.raises(ValueError, match=message):
        check_extras(extras)


def test_known_parts_and_none_are_taken():
    check_extras(["robustness", "uncertainty"])
    check_extras([])


def put(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("{}", encoding="utf-8")


def test_only_what_an_evaluation_wrote_is_deleted(tmp_path):
    left = ("notes.txt", "figures/source.svg", "cases/more/a.png", "audit.json")
    gone = ("metrics.json", "cases.csv", "robustness.json", "scope.json", "figures/roc.png", "uncertainty/a_std.png")
    put(tmp_path, *left, *gone)
    assert {p.relative_to(tmp_path).as_posix() for p in clear(tmp_path, EVALUATION)} == set(gone)
    assert {p.relative_to(tmp_path).as_posix() for p in tmp_path.rglob("*") if p.is_file()} == set(left)
    put(tmp_path, "figures/roc.png")
    assert clear(tmp_path, EVALUATION) == [], "without its main file it is no folder of results"
    assert clear(tmp_path / "absent", EVALUATION) == []


def test_every_json_says_which_weights_it_is_of(tmp_path):
    write_json([{"n": 1}, {"n": 2, KEY: "a"}], tmp_path / "localization.json")
    write_json({"n": 3}, tmp_path / "faithfulness.json")
    write_json([], tmp_path / "gallery.json")
    write_json({"n": 4}, tmp_path / "other.json")
    mark(tmp_path, EXPLANATION, "b")
    rows = json.loads((tmp_path / "localization.json").read_text(encoding="utf-8"))
    assert rows == [{"n": 1, KEY: "b"}, {"n": 2, KEY: "a"}]
    assert list(marks(rows)) == ["b", "a"]
    assert json.loads((tmp_path / "faithfulness.json").read_text(encoding="utf-8")) == {"n": 3, KEY: "b"}
    assert json.loads((tmp_path / "gallery.json").read_text(encoding="utf-8")) == []
    assert json.loads((tmp_path / "other.json").read_text(encoding="utf-8")) == {"n": 4}
    assert list(marks({"n": 1})) == [None]
    write_json({"n": 5}, tmp_path / "metrics.json")
    mark(tmp_path, EVALUATION, "b", {"no": 0.9, "yes": 0.1})
    marked = json.loads((tmp_path / "metrics.json").read_text(encoding="utf-8"))
    assert marked == {"n": 5, KEY: "b", "prevalence": {"no": 0.9, "yes": 0.1}}
