"""Mutants: each changes one place, and the tests that a module has of its own decide."""

from __future__ import annotations

import ast
import importlib
import sys
from pathlib import Path

import pytest

from benchmarks.mutants import mutated, of_module, own_tests, sites

SOURCE = '''"""A module."""
from __future__ import annotations


def larger(a: int, b: int = 2) -> bool:
    """Whether."""
    if not a:
        raise ValueError(f"{a + 1} is none")
    return a + b >= 3 and a != -b
'''


def test_every_kind_of_place_is_found_and_no_message_or_annotation():
    found = [(site.kind, site.to.__name__ if site.to else "") for site in sites(SOURCE)]
    assert sorted(found) == sorted(
        [
            ("constant", ""),  # b = 2
            ("constant", ""),  # 3
            ("condition", ""),
            ("sign", ""),  # -b
            ("returned", ""),
            ("and/or", ""),
            ("operator", ""),
            ("comparison", "Gt"),
            ("comparison", "Eq"),
        ]
    )


def test_arguments_that_no_answer_depends_on_are_left_alone():
    for text in (
        "def f(a, progress=True, *, desc=1, encoding=2): pass",
        "def f(*, a, progress=True): pass",
        "f(use_reentrant=False, disable=not a)",
        "@dataclass(frozen=True)\nclass A: pass",
    ):
        assert sites(text) == []
    kinds = [site.kind for site in sites("def f(a=1, progress=True, b=2, *, c=3): g(d=False, progress=True)")]
    assert kinds == ["constant"] * 4


def test_a_mutant_differs_in_one_line():
    lines = ast.unparse(ast.parse(SOURCE)).splitlines()
    changed = []
    for site in sites(SOURCE):
        tree, line = mutated(SOURCE, site)
        other = ast.unparse(tree).splitlines()
        assert sum(a != b for a, b in zip(lines, other, strict=True)) == 1
        assert SOURCE.splitlines()[line - 1]
        changed.append("\n".join(other))
    assert len(set(changed)) == len(changed)


@pytest.fixture
def small_tree(tmp_path, monkeypatch):
    for folder in ("mutable", "tests/mutable"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "mutable" / "__init__.py").touch()
    (tmp_path / "mutable" / "sizes.py").write_text("def larger(a, b):\n    return a > b\n", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))

    def write(*lines: str):
        text = "from mutable.sizes import larger\n\n\ndef test_larger():\n" + "".join(f"    {line}\n" for line in lines)
        (tmp_path / "tests" / "mutable" / "test_sizes.py").write_text(text, encoding="utf-8")
        return of_module(Path("mutable/sizes.py"), 9, 0)

    return write


def test_tests_that_see_a_change_kill_it_and_others_let_it_live(small_tree):
    blind = small_tree("assert larger(2, 1)")
    assert (blind["tried"], blind["killed"]) == (3, 2)  # >= answers alike, <= and None do not
    assert blind["survivors"] == [{"line": 2, "change": "comparison GtE", "code": "return a > b"}]
    assert small_tree("assert larger(2, 1)", "assert not larger(1, 1)")["survivors"] == []


def test_a_module_that_was_imported_before_is_replaced_too(small_tree):
    importlib.invalidate_caches()
    importlib.import_module("mutable.sizes")
    try:
        assert small_tree("assert larger(2, 1)", "assert not larger(1, 1)")["survivors"] == []
    finally:
        for name in ("mutable.sizes", "mutable"):
            sys.modules.pop(name, None)


def test_examples_are_tests_too(small_tree):
    text = 'def larger(a, b):\n    """Whether.\n\n    >>> larger(1, 1)\n    False\n    """\n    return a > b\n'
    Path("mutable/sizes.py").write_text(text, encoding="utf-8")
    Path("setup.cfg").write_text("[tool:pytest]\naddopts = --doctest-modules\n", encoding="utf-8")
    assert small_tree("assert larger(2, 1)")["survivors"] == []


def test_tests_that_fail_without_any_mutant_judge_none(small_tree):
    with pytest.raises(ValueError, match="they fail without any mutant"):
        small_tree("assert larger(1, 2)")


def test_the_own_tests_a_module_are_those_of_its_package():
    tests = own_tests(Path("scripts/measures/intervals.py"))
    assert "tests/measures/test_intervals.py" in tests
    assert all(test.startswith(("tests/measures/", "scripts/measures/intervals.py")) for test in tests)


def test_a_module_without_tests_has_those_that_reach_it_in_fewest_steps(small_tree, tmp_path):
    """Of its package through what imports it, elsewhere by its own name; not another package's of the same name."""
    small_tree("assert larger(2, 1)")
    for name, text in {
        "mutable/parts.py": "SIZE = 1\n",
        "mutable/sizes.py": "from mutable.parts import SIZE\n\n\ndef larger(a, b):\n    return a > b\n",
        "mutable/lists.py": "from mutable import sizes\n",
        "tests/mutable/test_lists.py": "import mutable.lists\n",
        "tests/pictures/test_parts.py": "from pictures import parts\n",
        "tests/pictures/test_sizes.py": "from mutable import parts\n",
    }.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text, encoding="utf-8")
    assert own_tests(Path("mutable/parts.py")) == ["tests/pictures/test_sizes.py", "tests/mutable/test_sizes.py"]
    assert own_tests(Path("mutable/sizes.py")) == ["tests/mutable/test_sizes.py"]
    (tmp_path / "tests/mutable/test_sizes.py").unlink()
    assert own_tests(Path("mutable/sizes.py")) == ["tests/mutable/test_lists.py"]


def test_a_module_that_nothing_imports_has_no_tests(small_tree, tmp_path):
    (tmp_path / "mutable" / "alone.py").write_text("SIZE = 1\n", encoding="utf-8")
    assert of_module(Path("mutable/alone.py"), 9, 0)["tests"] == []
