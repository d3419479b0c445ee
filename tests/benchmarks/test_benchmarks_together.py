"""The fast subset of the benchmarks: ratios beside those of before, and what is worse."""

from __future__ import annotations

import json

import pytest

from benchmarks import __main__ as together
from benchmarks import small


def test_more_than_five_percent_is_worse_and_less_is_not():
    before = {"a": 1.0, "b": 0.2, "gone": 1.0}
    assert together.worse({"a": 1.051, "b": 0.209, "new": 9.0}, before) == ["a"]
    lines = together.table({"a": 1.051, "b": 0.19, "new": 9.0}, before).splitlines()
    assert lines[2:] == ["| a | 1.051 | 1.000 | +5 % WORSE |", "| b | 0.190 | 0.200 | -5 % |", "| new | 9.000 |  |  |"]


@pytest.mark.parametrize(("again", "status"), [(1.0, 0), (1.2, 1)])
def test_what_is_worse_is_measured_again_before_it_counts(again, status, monkeypatch, tmp_path, capsys):
    rounds = []

    def part(count: int) -> dict[str, float]:
        rounds.append(count)
        return {"a": 1.2 if count == 3 else again}

    monkeypatch.setattr(together, "PARTS", (part,))
    before = tmp_path / "ratios.json"
    before.write_text(json.dumps({"ratios": {"a": 1.0}}))
    assert together.main(["--rounds", "3", "--before", str(before)]) == status
    assert rounds == [3, 6]
    assert ("WORSE" in capsys.readouterr().out) == bool(status)
    assert together.main(["--rounds", "3", "--before", str(before), "--keep"]) == 0
    assert json.loads(before.read_text("utf-8"))["ratios"] == {"a": again}


def test_the_kept_ratios_are_those_that_are_measured():
    kept = json.loads(together.RATIOS.read_text("utf-8"))["ratios"]
    assert {*small.pairs()} < {*kept}
    assert sum(name.endswith("in MONAI's") for name in kept) >= 5
    assert sum(name.endswith("in predictions") for name in kept) >= 3


def test_each_small_function_equals_the_librarys():
    assert [row.name for row in small.measure(1)] == list(small.pairs())
