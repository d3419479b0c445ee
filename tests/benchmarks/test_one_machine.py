"""The table of one machine is made of what the other benchmarks measure, with MONAI beside."""

from __future__ import annotations

from benchmarks import one_machine


def test_loading_and_verification_are_measured_on_the_same_images(tmp_path):
    lines = {line.name: line for line in one_machine.loading(tmp_path, count=2, rounds=1)}
    assert {name: line.goal for name, line in lines.items()} == {
        "cold load / decoding and resizing alone": 1.5,
        "cached item": 0.5,
        "verification of an image": 8.0,
    }
    assert all(line.ours > 0 for line in lines.values())
    assert lines["verification of an image"].monai is None
    assert lines["cached item"].monai > 0


def test_a_part_is_evaluated_and_explained_in_passes_over_it(tmp_path):
    lines = one_machine.parts(tmp_path, count=2, rounds=1)
    assert [line.name.partition(" of a part")[0] for line in lines] == ["evaluation", "evidence and its measures"]
    assert all(line.goal == 1.5 and line.ours > 0 for line in lines)


def test_the_table_says_what_is_missed():
    lines = [one_machine.Line("a", 2.0, "x", 1.5, 4.25), one_machine.Line("b", 1.0, "ms", 8.0)]
    assert one_machine.table(lines).splitlines()[2:] == [
        "| a | 2.000 x | 4.250 x | <= 1.5: MISSED |",
        "| b | 1.000 ms |  | <= 8: met |",
    ]
