"""Imports point one way, and configs name nothing but scripts, MONAI, torch and Ignite."""

from __future__ import annotations

import ast
import builtins
import importlib
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from tests.arrows import (
    ARROWS,
    OURS,
    ROOT,
    floors,
    graph,
    imported,
    longest_path,
    modules,
    package_of,
    parsed,
    used_arrows,
    within,
)

CONFIG_ROOTS = ("scripts", "monai", "torch", "ignite")


def faults(module: str, imports: set[str]) -> list[str]:
    own = package_of(module)
    if module.endswith(".arguments"):
        light = {"scripts.command.verbs"}
        return [f"{module} imports {name}: arguments are light" for name in sorted(imports - light - {module})]
    if module == "scripts.__main__":
        imports = {name for name in imports if not name.endswith(".arguments") or within(name, "bundle")}
    return [
        f"{module} imports {name}: {own} may import {', '.join(sorted(ARROWS[own])) or 'nothing of ours'}"
        for name in sorted(imports)
        if package_of(name) != own and not any(within(name, allowed) for allowed in ARROWS[own])
    ]


def test_imports_point_one_way():
    imports = graph()
    assert {"transforms", "scripts.networks.multitask_dynunet", "scripts.runs.folder"} <= set(imports)
    assert [fault for module, names in imports.items() for fault in faults(module, names)] == []


def test_every_arrow_is_used():
    """One that nobody uses would let the next import in unseen."""
    used = used_arrows(graph())
    unused = {package: allowed - used[package] for package, allowed in ARROWS.items() if package != "tests"}
    assert {package: names for package, names in unused.items() if names} == {}


def test_no_module_imports_itself_over_others():
    imports = {module: {n for n in names if n != module} for module, names in graph().items()}
    done: set[str] = set()

    def visit(module: str, path: list[str]) -> None:
        assert module not in path, " -> ".join([*path, module])
        if module not in done:
            for name in sorted(imports.get(module, ())):
                visit(name, [*path, module])
            done.add(module)

    for module in imports:
        visit(module, [])


@pytest.mark.parametrize(
    ("module", "source", "refused"),
    [
        ("scripts.networks.heads", "import scripts.training.engines", True),
        ("scripts.training.handlers", "from scripts import report", True),
        ("scripts.runs.folder", "def f():\n    from scripts.explain.maps import upsample", True),
        ("transforms.masking", "import scripts.networks", True),
        ("scripts.explain.cam", "from scripts.networks import MultiTaskDynUNet", True),
        ("scripts.inference.predict", "from scripts.evaluation.items import x", True),
        ("scripts.report.report", "import bundle.service", True),
        ("bundle.service", "from tests import nets", True),
        ("scripts.__main__", "import bundle.arguments", True),
        ("scripts.__main__", "import scripts.training.train", True),
        ("scripts.__main__", "from scripts.training import arguments", False),
        ("scripts.training.arguments", "from scripts.runs import folder", True),
        ("scripts.training.arguments", "from scripts.command.verbs import Verb", False),
        ("scripts.training.handlers", "from scripts.training.losses import x", False),
        ("scripts.report.report", "from scripts.explain import cam", True),
        ("scripts.inference.scope", "from scripts.training.checkpoints import WEIGHTS", True),
        ("scripts.evaluation.explanations", "from scripts.explain import cam", False),
        ("scripts.explain.cam", "from scripts.explain.maps import upsample", False),
        ("scripts.data.datalists.building", "from scripts.command import cli", False),
        ("bundle.service", "from bundle.predictor import P\nimport scripts.runs.folder", False),
        ("scripts.training.losses", "from torch import nn\nimport monai", False),
    ],
)
def test_the_rule_catches_what_it_should(module, source, refused):
    exists = {
        "scripts.report",
        "scripts.training.arguments",
        "scripts.command.cli",
        "scripts.networks",
        "scripts.explain.cam",
    }
    assert bool(faults(module, imported(ast.parse(source), module, False, exists))) == refused


def test_arrows_between_packages_have_no_circle():
    assert all(names <= {*ARROWS} for names in ARROWS.values())
    below: set[str] = set()
    for floor in floors(ARROWS):
        assert all(ARROWS[package] <= below for package in floor)
        below.update(floor)
    assert below == {*ARROWS}
    with pytest.raises(ValueError, match="circle"):
        floors({"a": {"b"}, "b": {"a"}, "c": set()})


def test_the_longest_way_over_imports_is_found():
    assert longest_path({"a": {"b", "c"}, "b": {"d"}, "c": set(), "d": {"c", "torch"}}) == ["a", "b", "d", "c"]


# What packages that could be published alone take from others, and the modules that take more; docs/architecture.md
# says why.
STANDALONE: dict[str, set[str]] = {
    "scripts.explain": {"torch", "monai", "captum", "numpy", "scipy", "lazy_loader"},
    "scripts.networks": {"torch", "monai", "lazy_loader"},
    "scripts.interventions": {"torch", "monai", "numpy", "scipy", "lazy_loader"},
}
MORE = {
    "scripts.explain.network_findings": {"sklearn"},
    "scripts.explain.picture_findings": {"matplotlib"},
    "scripts.explain.sanity": {"skimage"},
    "scripts.interventions.infill": {"cv2"},
}


def foreign(tree: ast.AST) -> set[str]:
    """Third-party packages that a syntax tree imports, inside functions too."""
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names.update(alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            names.add(str(node.module).split(".")[0])
    return names - set(sys.stdlib_module_names) - set(OURS)


@pytest.mark.parametrize("package", STANDALONE)
def test_a_package_that_could_stand_alone_takes_little_from_others(package):
    found = {module: foreign(parsed(path)) for module, path in modules() if within(module, package)}
    more = {module: names - STANDALONE[package] for module, names in found.items()}
    expected = {module: names for module, names in MORE.items() if within(module, package)}
    assert {module: names for module, names in more.items() if names} == expected
    assert STANDALONE[package] <= set().union(*found.values()), "what nobody takes need not be allowed"
    assert foreign(ast.parse("import os\nimport skimage.io\ndef f():\n    from pandas import x")) == {
        "skimage",
        "pandas",
    }


def test_tests_mirror_the_tree():
    """A folder of tests each package, and none beside but those of configs and of the apps of MONAI Label.

    The latter, `bundle.label` with its environment, are tested apart: they run in a server of their own.
    """
    packages = {package.removeprefix("scripts.") for package in ARROWS} - {"scripts", "tests"}
    tested = {path.parent.name for path in (ROOT / "tests").glob("*/test_*.py")}
    assert tested == packages | {"benchmarks", "configs", "label"}


def test_no_module_lies_directly_in_scripts():
    assert {path.name for path in (ROOT / "scripts").glob("*.py")} == {"__init__.py", "__main__.py"}


def inner_imports(module: str, tree: ast.AST, exists: set[str]) -> set[str]:
    """Modules of ours that are imported inside a function or class."""
    inner = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    return {
        name for node in ast.walk(tree) if isinstance(node, inner) for name in imported(node, module, False, exists)
    }


def test_our_modules_are_imported_at_the_top():
    """MONAI Label unloads ``scripts`` between bundles: a late import would find another bundle's."""
    every = dict(modules())
    found = {module: inner_imports(module, parsed(path), set(every)) for module, path in every.items()}
    assert {module: names for module, names in found.items() if names} == {}
    late = ast.parse("import scripts.runs.folder\nclass A:\n    def f(self):\n        from scripts.command import cli")
    assert inner_imports("scripts.report.report", late, {"scripts.command.cli"}) == {"scripts.command.cli"}


def strings(value: object, key: str = "") -> Iterator[tuple[str, str]]:
    """(key, text) of every string in a config."""
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from strings(inner, str(name))
    elif isinstance(value, list):
        for inner in value:
            yield from strings(inner, key)
    elif isinstance(value, str):
        yield key, value


IMPORT = re.compile(r"\$\s*(import|from)\s")


def imported_by_config(config: dict) -> set[str]:
    """Names that the ``$import`` statements of a config bind."""
    nodes = [ast.parse(text[1:].strip()).body[0] for _, text in strings(config) if IMPORT.match(text)]
    aliases = [alias for node in nodes if isinstance(node, (ast.Import, ast.ImportFrom)) for alias in node.names]
    return {alias.asname or alias.name.split(".")[0] for alias in aliases}


def foreign_names(key: str, text: str, known: set[str]) -> set[str]:
    """Top-level packages that a config's string names and must not; ``known``: names bound by its imports."""
    if key == "_target_":
        return {text.split(".")[0]} - set(CONFIG_ROOTS) if "." in text else set()
    if not text.startswith("$"):
        return set()
    expression = re.sub(r"@(?:::|##|#)?[A-Za-z_][\w]*(?:(?:::|#)\w+)*", "None", text[1:].strip())
    tree = ast.parse(expression)
    first = tree.body[0]
    if isinstance(first, (ast.Import, ast.ImportFrom)):
        names = [a.name for a in first.names] if isinstance(first, ast.Import) else [first.module or "."]
        return {name.split(".")[0] for name in names} - set(CONFIG_ROOTS)
    bound = {n.arg for n in ast.walk(tree) if isinstance(n, ast.arg)}
    bound |= {n.id for n in ast.walk(tree) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}
    used = {n.id for n in ast.walk(tree) if isinstance(n, ast.Name)} - bound
    return used - known - set(CONFIG_ROOTS) - set(dir(builtins))


CONFIGS = sorted((ROOT / "configs").rglob("*.yaml"))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_configs_name_only_scripts_monai_torch_and_ignite(path):
    config = yaml.safe_load(path.read_text(encoding="utf-8"))
    whole = (
        config if "imports" in config else yaml.safe_load((ROOT / "configs" / "train.yaml").read_text(encoding="utf-8"))
    )
    known = imported_by_config(whole)
    found = {text: foreign_names(key, text, known) for key, text in strings(config)}
    assert {text: names for text, names in found.items() if names} == {}


def test_there_are_configs():
    assert {"train.yaml", "stage1_segmentation.yaml", "baseline.yaml"} <= {path.name for path in CONFIGS}


@pytest.mark.parametrize(
    ("key", "text", "expected"),
    [
        ("_target_", "transforms.masking.MaskForegroundd", {"transforms"}),
        ("_target_", "scripts.training.losses.MultiTaskLoss", set()),
        ("_target_", "CacheDataset", set()),
        ("imports", "$import transforms", {"transforms"}),
        ("imports", "$from bundle import predictor", {"bundle"}),
        ("imports", "$import torch", set()),
        ("x", "$transforms.masking.mask(@image)", {"transforms"}),
        ("x", "$np.mean(@train#loss)", {"np"}),
        ("x", "$[i for i in range(@max_epochs)] + list(@train#step.parameters())", set()),
        ("x", "$torch.device('cuda' if torch.cuda.is_available() else 'cpu')", set()),
        ("x", "transforms is a word here", set()),
        ("x", "$runs.num_classes(@datalist)", set()),
        ("imports", "$import transforms.masking as runs", {"transforms"}),
    ],
)
def test_the_config_rule_catches_what_it_should(key, text, expected):
    config = {"imports": ["$import torch", "$import scripts.runs.folder as runs"]}
    assert foreign_names(key, text, imported_by_config(config)) == expected


PACKAGES = sorted(package for package in ARROWS if package.startswith("scripts."))


def test_importing_every_package_imports_nothing_heavy():
    """Public names are imported when they are asked for."""
    heavy = ("torch", "monai", "numpy", "scipy", "matplotlib")
    code = f"import sys, {', '.join(PACKAGES)}; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("package", [*PACKAGES, "scripts.data.datalists", "scripts.training.handlers"])
def test_a_package_says_what_it_may_import_and_its_public_names_are_there(package):
    module = importlib.import_module(package)
    assert "import" in (module.__doc__ or "").lower()
    own = {path.stem for path in Path(module.__path__[0]).glob("*.py")}
    names = module.__all__
    assert names, "what is it for?"
    assert not own & set(names), "a module of the same name would be hidden"
    for name in names:
        value = getattr(module, name)
        assert not hasattr(value, "__module__") or value.__module__.startswith(package)


def package_names(module: str, tree: ast.AST) -> set[str]:
    """Names that our code takes from a package in place of the module that defines them."""
    return {
        f"{node.module}.{alias.name}"
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.module in PACKAGES and package_of(module) != "tests"
        for alias in node.names
        if not (ROOT / node.module.replace(".", "/") / f"{alias.name}.py").is_file()
        and not (ROOT / node.module.replace(".", "/") / alias.name).is_dir()
    }


def test_no_module_imports_a_package_for_its_names():
    """``datalists.read`` of the package would bring in, or look up late, what ``datalists.schema`` has."""
    packages = {module for module, path in modules() if path.name == "__init__.py"} - {"transforms"}
    assert {module: names & packages for module, names in graph().items() if names & packages} == {}


def test_our_own_code_imports_from_the_modules_that_define():
    """A name looked up in a package when a function runs may be another bundle's by then, and is not type-checked."""
    found = {module: package_names(module, parsed(path)) for module, path in modules()}
    assert {module: names for module, names in found.items() if names} == {}
    assert package_names("scripts.runs.folder", ast.parse("from scripts.networks import MultiTaskDynUNet")) == {
        "scripts.networks.MultiTaskDynUNet"
    }
