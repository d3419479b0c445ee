"""Imports point one way, and configs name nothing but scripts, MONAI, torch and Ignite."""

from __future__ import annotations

import ast
import builtins
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]
OURS = ("transforms", "scripts", "bundle", "tests")
# The line each module stands in; a module imports from its own line or from lines before.
LINES = [
    ["transforms"],
    [
        "scripts.networks",
        "scripts.parallel",
        "scripts.losses",
        "scripts.bootstrap",
        "scripts.metrics",
        "scripts.samplers",
        "scripts.caching",
        "scripts.averaging",
        "scripts.checkpoint_files",
        "scripts.overrides",
    ],
    [
        "scripts.preprocessing",
        "scripts.inferers",
        "scripts.handlers",
        "scripts.engines",
        "scripts.checkpoints",
        "scripts.datalists",
        "scripts.provenance",
        "scripts.runs",
        "scripts.stages",
    ],
    ["scripts.explain"],
    ["scripts"],  # figures, overlays, report, phantoms, command lines: whatever is not named above
    ["bundle"],
    ["tests"],
]
ALONE = ("transforms", "scripts.explain")  # import nothing of ours outside themselves
CONFIG_ROOTS = ("scripts", "monai", "torch", "ignite")


def within(module: str, package: str) -> bool:
    return module == package or module.startswith(package + ".")


def line_of(module: str) -> int:
    if module.endswith(".__main__"):
        return line_of("scripts")  # a command line, wherever it lies
    found = [(len(p), i) for i, line in enumerate(LINES) for p in line if within(module, p)]
    return max(found)[1]


def modules() -> Iterator[tuple[str, Path]]:
    for package in ("transforms", "scripts", "bundle"):
        for path in sorted((ROOT / package).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            yield ".".join(parts[:-1] if parts[-1] == "__init__" else parts), path


def imported(tree: ast.AST, module: str, package: bool, exists: set[str]) -> set[str]:
    """Modules of ours that a syntax tree imports, submodules named by ``from a import b`` included."""
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parts = module.split(".")
                parents = parts[: len(parts) - node.level + package]
                base = ".".join([*parents, base] if base else parents)
            names = {f"{base}.{alias.name}" for alias in node.names}
            found.update(name if name in exists else base for name in names)
    return {name for name in found if name.split(".")[0] in OURS}


def faults(module: str, imports: set[str]) -> list[str]:
    found = []
    for name in sorted(imports):
        own = next((p for p in ALONE if within(module, p)), None)
        if own is not None and not within(name, own):
            found.append(f"{module} imports {name}, but {own} imports nothing of ours outside itself")
        elif line_of(name) > line_of(module):
            found.append(f"{module} imports {name}, which stands in a later line")
    return found


def graph() -> dict[str, set[str]]:
    every = dict(modules())
    return {
        module: imported(ast.parse(path.read_text(encoding="utf-8")), module, path.name == "__init__.py", set(every))
        for module, path in every.items()
    }


def test_imports_point_one_way():
    imports = graph()
    assert {"transforms", "scripts.networks.multitask_dynunet", "scripts.runs"} <= set(imports)
    assert [fault for module, names in imports.items() for fault in faults(module, names)] == []


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
    ("module", "source", "fault"),
    [
        ("scripts.losses", "from scripts.handlers import x", "a later line"),
        ("scripts.networks.heads", "import scripts.engines", "a later line"),
        ("scripts.handlers", "from scripts import report", "a later line"),
        ("scripts.runs", "def f():\n    from scripts.explain.maps import upsample", "a later line"),
        ("transforms.masking", "import scripts.networks", "nothing of ours outside itself"),
        ("scripts.explain.cam", "from scripts.networks import MultiTaskDynUNet", "nothing of ours outside itself"),
        ("scripts.report", "import bundle.service", "a later line"),
        ("bundle.service", "from tests import nets", "a later line"),
        ("scripts.datalists.schema", "from . import __main__", "a later line"),
        ("scripts.handlers", "from scripts.losses import x", None),
        ("scripts.report", "from scripts.explain import cam", None),
        ("scripts.explain.cam", "from scripts.explain.maps import upsample", None),
        ("scripts.datalists.__main__", "from scripts import cli", None),
        ("bundle.service", "from bundle.predictor import P\nimport scripts.runs", None),
        ("scripts.losses", "from torch import nn\nimport monai", None),
    ],
)
def test_the_rule_catches_what_it_should(module, source, fault):
    exists = {"scripts.report", "scripts.cli", "scripts.networks", "scripts.datalists.__main__", "scripts.explain.cam"}
    found = faults(module, imported(ast.parse(source), module, False, exists))
    assert len(found) == (fault is not None)
    assert fault is None or fault in found[0]


def inner_imports(module: str, tree: ast.AST, exists: set[str]) -> set[str]:
    """Modules of ours that are imported inside a function or class."""
    inner = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    return {
        name for node in ast.walk(tree) if isinstance(node, inner) for name in imported(node, module, False, exists)
    }


def test_our_modules_are_imported_at_the_top():
    """MONAI Label unloads ``scripts`` between bundles: a late import would find another bundle's."""
    every = dict(modules())
    found = {
        module: inner_imports(module, ast.parse(path.read_text(encoding="utf-8")), set(every))
        for module, path in every.items()
    }
    assert {module: names for module, names in found.items() if names} == {}
    late = ast.parse("import scripts.runs\nclass A:\n    def f(self):\n        from scripts import cli")
    assert inner_imports("scripts.report", late, {"scripts.cli"}) == {"scripts.cli"}


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
        ("_target_", "scripts.losses.MultiTaskLoss", set()),
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
    config = {"imports": ["$import torch", "$import scripts.runs as runs"]}
    assert foreign_names(key, text, imported_by_config(config)) == expected
