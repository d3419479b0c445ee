"""Names say what the data is: words that only point to it are no names of values."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from scripts.command.locations import ROOT

# Participles and adverbs that were names of data in 200 places.
POINTERS = {"own", "given", "found", "few", "where", "told"}
FOLDERS = ("scripts", "transforms", "bundle", "benchmarks")


# Idioms of ours that no author of a library would write, and a letter for a summary.
IDIOMS = re.compile(
    r"\btold (apart|from|by)\b|\btells? \w+( \w+)? apart\b|\bS of\b|\bas S\b|\bjudges?\b|\bone door\b|\bmade anew\b"
)


def bindings(source: str) -> list[str]:
    """Names of arguments and of assigned variables."""
    nodes = list(ast.walk(ast.parse(source)))
    stored = [node.id for node in nodes if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)]
    return stored + [node.arg for node in nodes if isinstance(node, ast.arg)]


def test_bindings_are_arguments_assignments_and_loops():
    source = "def f(own, *, few=1):\n    where: int = own.found\n    return [given for given in own if g(found=1)]"
    assert sorted(set(bindings(source)) & POINTERS) == ["few", "given", "own", "where"]


@pytest.mark.parametrize("folder", FOLDERS)
def test_pointers_are_names_of_nothing(folder):
    paths = sorted(Path(ROOT, folder).rglob("*.py"))
    named = [(str(path), name) for path in paths for name in bindings(path.read_text(encoding="utf-8"))]
    assert len(named) > 100
    assert [(path, name) for path, name in named if name in POINTERS] == []


@pytest.mark.parametrize("folder", ["scripts", "transforms", "bundle", "configs"])
def test_sentences_have_none_of_the_idioms(folder):
    found = []
    for path in sorted(Path(ROOT, folder).rglob("*")):
        if path.suffix in (".py", ".yaml", ".j2", ".html"):
            text = re.sub(r"\s+", " ", path.read_text(encoding="utf-8"))
            found += [(path.name, match.group()) for match in IDIOMS.finditer(text)]
    assert found == []
