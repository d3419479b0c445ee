"""`python -OO`, which drops asserts and docstrings, changes nothing."""

from __future__ import annotations

import ast
import json
import subprocess
import sys

import pytest

from tests.scans import ROOT

PACKAGES = ("scripts", "transforms", "bundle", "benchmarks")
SCRIPT = """
import contextlib, io, json, sys
from scripts.__main__ import main, verbs
assert False, "asserts are dropped"
helps = {}
for verb in verbs():
    with contextlib.redirect_stdout(io.StringIO()) as text, contextlib.suppress(SystemExit):
        main([verb.name, "--help"])
    helps[verb.name] = text.getvalue()
print(json.dumps([main.__doc__, helps]))
"""


def test_every_verb_has_its_help_without_docstrings():
    found = {}
    for flags in ((), ("-OO",)):
        code = SCRIPT if flags else SCRIPT.replace('assert False, "asserts are dropped"\n', "")
        done = subprocess.run(
            [sys.executable, *flags, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
        )
        found[flags] = json.loads(done.stdout.splitlines()[-1])
    assert found[("-OO",)][0] is None
    assert found[()][0] is not None
    assert found[("-OO",)][1] == found[()][1]
    assert min(map(len, found[()][1].values())) > 100


@pytest.mark.parametrize("package", PACKAGES)
def test_nothing_works_on_a_docstring_that_may_be_dropped_nor_does_work_in_an_assert(package):
    """An assert only narrows a type; a docstring that is read has another text in its place."""
    bad = []
    for path in sorted((ROOT / package).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Assert) and not (
                isinstance(node.test, ast.Compare) and isinstance(node.test.ops[0], ast.IsNot)
            ):
                bad.append(f"{path.name}:{node.lineno} assert")
            if (
                isinstance(node, ast.Call)
                and isinstance(node.func, ast.Attribute)
                and isinstance(node.func.value, ast.Name)
                and node.func.value.id == "__doc__"
            ):
                bad.append(f"{path.name}:{node.lineno} docstring")
    assert bad == []


def test_phantoms_are_the_same_under_optimization(tmp_path):
    made = []
    for name, flags in (("plain", ()), ("optimized", ("-OO",))):
        own = ["--out", str(tmp_path / name), "--n_patients", "1", "--n_singles", "2"]
        subprocess.run(
            [sys.executable, *flags, "-m", "scripts", "phantoms", *own], cwd=ROOT, capture_output=True, check=True
        )
        files = sorted((tmp_path / name).rglob("*.png"))
        made.append({file.relative_to(tmp_path / name): file.read_bytes() for file in files})
    assert len(made[0]) >= 2
    assert made[0] == made[1]
