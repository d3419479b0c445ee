"""How many small faults the tests notice: drawn mutants of a module, each run against the module's own tests.

    python -m benchmarks.mutants transforms scripts/measures --each 6 [--seed 0] [--out runs/mutants.json]

A mutant changes one place: a comparison, an arithmetic or logical operator, a constant, a condition or a returned
value; not annotations, messages or log lines. Places are drawn by seed, so many a module. Every mutant is tested in a
forked process that has torch and MONAI loaded already, which mutmut and cosmic-ray do not do: their mutants would
spend their time on imports. The tests of a module are its examples and the test files of its package that import
it or are named after it, see `own_tests`; a mutant is killed when one of them fails, or when they take four
times as long as without it. A survivor is a gap in these tests or a change without an effect; the rest of the suite may
still notice it.
"""

from __future__ import annotations

import argparse
import ast
import gc
import importlib
import importlib.util
import os
import random
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.metadata import entry_points
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any

import pytest

from scripts.command import errors
from scripts.command.files import write_json
from scripts.command.locations import ROOT

LOADED = ("torch", "monai.transforms", "monai.networks.nets", "monai.losses", "ignite.engine", "skimage", "nibabel")
COMPARISONS: dict[type[ast.cmpop], tuple[type[ast.cmpop], ...]] = {
    ast.Lt: (ast.LtE, ast.GtE),
    ast.LtE: (ast.Lt,),
    ast.Gt: (ast.GtE, ast.LtE),
    ast.GtE: (ast.Gt,),
    ast.Eq: (ast.NotEq,),
    ast.NotEq: (ast.Eq,),
    ast.Is: (ast.IsNot,),
    ast.IsNot: (ast.Is,),
    ast.In: (ast.NotIn,),
    ast.NotIn: (ast.In,),
}
OPERATORS: dict[type[ast.operator], type[ast.operator]] = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Div,
    ast.Div: ast.Mult,
    ast.FloorDiv: ast.Mult,
    ast.Mod: ast.Mult,
    ast.Pow: ast.Mult,
    ast.BitAnd: ast.BitOr,
    ast.BitOr: ast.BitAnd,
}
# Arguments that no answer depends on, in calls and as defaults; checkpoints that are re-entrant or not give the same
# gradients, and whether a bar shows the progress changes nothing.
WORDS = ("strict", "maxsize", "stacklevel", "encoding", "desc", "unit", "use_reentrant", "progress", "disable")
LEAST_S, TIMES = 30, 4  # a mutant's tests may take so long, and so many times what they take without it


@dataclass(frozen=True)
class Site:
    """A place to change: the node's number in `ast.walk`, what is changed, and for a comparison which and to what."""

    node: int
    kind: str
    part: int = 0
    to: type[ast.cmpop] | None = None


def _left_out(tree: ast.AST) -> set[int]:
    """Nodes that no test could notice: annotations, decorators, messages, log lines."""
    out: list[ast.AST] = []
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            named = [*node.args.args, *node.args.kwonlyargs, *node.args.posonlyargs, node.args.vararg, node.args.kwarg]
            out += [a.annotation for a in named if a is not None and a.annotation is not None]
            out += [*([node.returns] if node.returns is not None else []), *node.decorator_list]
            out += [d for a, d in zip(node.args.args[::-1], node.args.defaults[::-1], strict=False) if a.arg in WORDS]
            keywords = zip(node.args.kwonlyargs, node.args.kw_defaults, strict=True)
            out += [default for argument, default in keywords if default is not None and argument.arg in WORDS]
        elif isinstance(node, ast.ClassDef):
            out += node.decorator_list
        elif isinstance(node, ast.AnnAssign):
            out.append(node.annotation)
        elif isinstance(node, ast.Raise) or (isinstance(node, ast.keyword) and node.arg in WORDS):
            out.append(node)
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            owner = node.func.value
            if isinstance(owner, ast.Name) and owner.id in ("logger", "warnings"):
                out.append(node)
    skipped = {id(inner) for node in out for inner in ast.walk(node)}
    # Of `if not a` the condition is changed already; `if TYPE_CHECKING` holds for no run.
    conditions = [node for node in ast.walk(tree) if isinstance(node, (ast.If, ast.IfExp))]
    skipped |= {id(node.test) for node in conditions if isinstance(node.test, ast.UnaryOp)}
    return skipped | {id(n) for n in conditions if isinstance(n.test, ast.Name) and n.test.id == "TYPE_CHECKING"}


def _is_text(node: ast.AST) -> bool:
    return isinstance(node, ast.JoinedStr) or (isinstance(node, ast.Constant) and isinstance(node.value, str))


def sites(source: str) -> list[Site]:
    """All places of a module that can be changed."""
    tree = ast.parse(source)
    skipped = _left_out(tree)
    return [site for i, node in enumerate(ast.walk(tree)) if id(node) not in skipped for site in _sites_of(i, node)]


def _sites_of(i: int, node: ast.AST) -> Iterator[Site]:
    if isinstance(node, ast.Compare):
        for part, operator in enumerate(node.ops):
            yield from (Site(i, "comparison", part, to) for to in COMPARISONS[type(operator)])
    elif isinstance(node, ast.BinOp) and type(node.op) in OPERATORS:
        if not (_is_text(node.left) or _is_text(node.right)):
            yield Site(i, "operator")
    elif isinstance(node, ast.AugAssign) and type(node.op) in OPERATORS:
        yield Site(i, "operator")
    elif isinstance(node, ast.BoolOp):
        yield Site(i, "and/or")
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, (ast.Not, ast.USub)):
        yield Site(i, "sign")
    elif isinstance(node, ast.Constant) and type(node.value) in (int, float, bool):
        yield Site(i, "constant")
    elif isinstance(node, (ast.If, ast.IfExp)):
        yield Site(i, "condition")
    elif isinstance(node, ast.Return) and not (node.value is None or isinstance(node.value, ast.Constant)):
        yield Site(i, "returned")


def mutated(source: str, site: Site) -> tuple[ast.Module, int]:
    """The module with one place changed, and its line."""
    tree = ast.parse(source)
    node: Any = next(inner for i, inner in enumerate(ast.walk(tree)) if i == site.node)
    if site.kind == "comparison":
        assert site.to is not None
        node.ops[site.part] = site.to()
    elif site.kind == "operator":
        node.op = OPERATORS[type(node.op)]()
    elif site.kind == "and/or":
        node.op = ast.Or() if isinstance(node.op, ast.And) else ast.And()
    elif site.kind == "sign":
        if isinstance(node.op, ast.USub):
            node.op = ast.UAdd()
        else:
            node.operand = ast.UnaryOp(ast.Not(), node.operand)
    elif site.kind == "constant":
        value = node.value
        node.value = not value if type(value) is bool else value + 1 if type(value) is int else value * 2 + 0.1
    elif site.kind == "condition":
        node.test = ast.UnaryOp(ast.Not(), node.test)
    else:
        node.value = ast.Constant(None)
    return ast.fix_missing_locations(tree), node.lineno


class Replaced(MetaPathFinder, Loader):
    """Gives a module's name the mutant's code."""

    def __init__(self, name: str, code: CodeType, path: Path):
        self.name, self.code, self.path = name, code, path

    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        """The mutant's, for the one name."""
        if fullname != self.name:
            return None
        return importlib.util.spec_from_loader(fullname, self, origin=str(self.path))

    def exec_module(self, module: ModuleType) -> None:
        """Run the mutant's code as the module."""
        module.__file__ = str(self.path)
        exec(self.code, module.__dict__)


def module_name(path: Path) -> str:
    """The name that a file of the repository is imported by."""
    return ".".join(path.with_suffix("").parts)


@cache
def _imported(source: str) -> frozenset[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return frozenset(names)


def imports(file: Path) -> frozenset[str]:
    """All names that a file imports, of modules and of what is in them."""
    return _imported(file.read_text(encoding="utf-8"))


def own_tests(path: Path) -> list[str]:
    """Its examples, and the test files of its package that import it or are named after it.

    Where there are none: those elsewhere that import it, and those of its package that import what imports it, by as
    few steps as there are.
    """
    package = Path(*path.parts[: 1 + (path.parts[0] == "scripts")])
    examples = [str(path)] if ">>> " in path.read_text(encoding="utf-8") else []
    tests = sorted(Path("tests").rglob("test_*.py"))
    inside = [f for f in tests if f.parts[1] == package.name]
    names = {module_name(path)}
    chosen = [f for f in inside if f.stem.startswith(f"test_{path.stem}") or imports(f) & names]
    if not chosen:
        chosen = [f for f in tests if imports(f) & names]
        sources = [*package.rglob("*.py"), *(Path("tests") / package.name).rglob("*.py")]
        seen: set[str] = set()
        while names and not any(imports(f) & names for f in inside):
            seen |= names
            names = {module_name(f) for f in sources if imports(f) & names} - seen
        chosen += [f for f in inside if imports(f) & names and f not in chosen]
    return [*examples, *map(str, chosen)]


def passes(tests: Sequence[str], replaced: Replaced | None, limit_s: int) -> bool:
    """Whether test files pass in a forked process within so many seconds."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            signal.alarm(limit_s)
            gc.freeze()  # what is loaded is no garbage: pytest looks through it several times a run
            nothing = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nothing, 1)
            os.dup2(nothing, 2)
            for name in [name for name in sys.modules if Path(name.partition(".")[0]).is_dir()]:
                del sys.modules[name]  # loaded from this folder before: imported again, the mutant by its new code
            if replaced is not None:
                sys.meta_path.insert(0, replaced)
            status = int(pytest.main(["-x", "-q", "-p", "no:cacheprovider", "--assert=plain", "-n", "0", *tests]) != 0)
        finally:
            os._exit(status)
    _, ended = os.waitpid(child, 0)
    return ended == 0


def of_module(path: Path, each: int, seed: int) -> dict[str, Any]:
    """Draw and test mutants of a module: how many of how many places were tried and killed, and the survivors.

    Raises:
        ValueError: when its own tests fail without any mutant.
    """
    source = path.read_text(encoding="utf-8")
    places = sites(source)
    random.Random(f"{seed} {path}").shuffle(places)
    tests = own_tests(path)
    result: dict[str, Any] = {"module": str(path), "places": len(places), "tests": tests, "tried": 0, "killed": 0}
    result["survivors"] = []
    if not tests or not places:
        return result
    start = time.monotonic()
    if not passes(tests, None, 600):
        raise ValueError(f"{', '.join(tests)}: they fail without any mutant")
    limit = int(max(LEAST_S, TIMES * (time.monotonic() - start)))
    for site in places[:each]:
        tree, line = mutated(source, site)
        code = compile(tree, str(path.resolve()), "exec")
        result["tried"] += 1
        if passes(tests, Replaced(module_name(path), code, path.resolve()), limit):
            change = f"{site.kind} {site.to.__name__}" if site.to is not None else site.kind
            result["survivors"].append({"line": line, "change": change, "code": source.splitlines()[line - 1].strip()})
        else:
            result["killed"] += 1
    return result


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.mutants", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument("paths", type=Path, nargs="+", help="modules or packages, relative to the repository")
    parser.add_argument("--each", type=int, default=6, help="mutants a module (default: 6)")
    parser.add_argument("--seed", type=int, default=0, help="of the draw (default: 0)")
    parser.add_argument("--out", type=Path, help="JSON file of all results, written after every module")
    options = parser.parse_args(arguments)
    out = None if options.out is None else options.out.resolve()
    os.chdir(ROOT)
    sys.path.insert(0, str(ROOT))
    for name in LOADED:
        importlib.import_module(name)
    for plugin in entry_points(group="pytest11"):
        plugin.load()
    importlib.import_module("torch").set_num_threads(1)
    modules = [f for path in options.paths for f in ([path] if path.suffix else sorted(path.rglob("*.py")))]
    if not modules or not all(f.is_file() for f in modules):
        raise ValueError(f"no Python modules: {', '.join(map(str, options.paths))}")
    results = []
    for file in modules:
        if file.name == "__init__.py":
            continue
        results.append(of_module(file, options.each, options.seed))
        row = results[-1]
        print(f"{file}: {row['killed']} of {row['tried']} killed ({row['places']} places)", flush=True)
        for survivor in row["survivors"]:
            print(f"    {survivor['line']}: {survivor['change']}: {survivor['code'][:100]}", flush=True)
        if out is not None:
            write_json(results, out)
    tried, killed = (sum(row[key] for row in results) for key in ("tried", "killed"))
    untested = [row["module"] for row in results if not row["tests"]]
    print(
        f"killed {killed} of {tried} ({killed / max(tried, 1):.3f}); without tests of their own: {untested or 'none'}"
    )
    return 0


if __name__ == "__main__":
    with errors.one_sentence_errors():
        raise SystemExit(main())
