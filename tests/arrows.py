"""Which package imports which, read off the code; ``python -m tests.arrows`` prints what docs/architecture.md has."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
OURS = ("transforms", "scripts", "bundle", "tests")


def _packages(names: str) -> set[str]:
    """Full names of packages, written without ``scripts.`` and with commas between."""
    return {name if name in OURS else f"scripts.{name}" for name in names.split(", ") if name}


# What each package imports, itself apart: an import that is not here is refused, and so is one here that is not used.
ARROWS: dict[str, set[str]] = {
    name if name in OURS else f"scripts.{name}": _packages(allowed)
    for name, allowed in {
        "transforms": "",
        "explain": "",
        "interventions": "",
        "networks": "",
        "command": "",
        "pictures": "command",
        "phantoms": "command",
        "dicom": "transforms, command, phantoms",
        "data": "transforms, command",
        "measures": "explain",
        "runs": "networks, command, data",
        "training": "transforms, interventions, networks, command, pictures, data, measures, runs",
        "inference": "transforms, explain, networks, command, pictures, dicom, data, measures, runs",
        "adoption": "explain, networks, command, pictures, runs, training, inference",
        "evaluation": "transforms, explain, networks, command, pictures, data, measures, runs, training, inference",
        "checks": "transforms, command, pictures, data, measures, runs, inference",
        "certificate": "explain, interventions, networks, command, pictures, phantoms, data, measures, runs, "
        "evaluation",
        "diagnosis": "transforms, explain, interventions, command, pictures, data, measures, runs",
        "comparison": "networks, command, pictures, data, measures, runs, training, evaluation, certificate",
        "report": "command, pictures, measures, runs, evaluation, comparison",
        "demo": "command, phantoms, data, training, inference, checks, report",
        "scripts": "command",  # and the arguments of every verb
        "bundle": "transforms, explain, interventions, command, pictures, phantoms, dicom, data, "
        "measures, runs, inference, evaluation, checks, certificate",
        "tests": "transforms, scripts, bundle",  # any package of them
    }.items()
}


def within(module: str, package: str) -> bool:
    return module == package or module.startswith(package + ".")


def package_of(module: str) -> str:
    return max((package for package in ARROWS if within(module, package)), key=len)


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


@cache
def parsed(path: Path) -> ast.Module:
    """A module's syntax tree, which nobody changes."""
    return ast.parse(path.read_text(encoding="utf-8"))


@cache
def graph() -> dict[str, set[str]]:
    every = dict(modules())
    return {
        module: imported(parsed(path), module, path.name == "__init__.py", set(every)) for module, path in every.items()
    }


def used_arrows(imports: Mapping[str, set[str]]) -> dict[str, set[str]]:
    """Packages that each package imports, of a graph of modules.

    The command line, ``scripts.__main__``, imports the arguments of every verb, which is no arrow.
    """
    used: dict[str, set[str]] = {}
    for module, names in imports.items():
        own = package_of(module)
        arguments = module == "scripts.__main__"
        used.setdefault(own, set()).update(
            package_of(name) for name in names if not (arguments and name.endswith(".arguments"))
        )
    return {package: names - {package} for package, names in used.items()}


def longest_path(imports: Mapping[str, set[str]]) -> list[str]:
    """The longest way down from a module over what it imports to one that imports nothing of ours."""
    longest: dict[str, list[str]] = {}

    def of(module: str) -> list[str]:
        if module not in longest:
            below = [of(name) for name in sorted(imports[module] - {module}) if name in imports]
            longest[module] = [module, *max(below, key=len, default=[])]
        return longest[module]

    return max((of(module) for module in sorted(imports)), key=len)


def floors(arrows: Mapping[str, set[str]]) -> list[list[str]]:
    """Packages by floor: those of the first import nothing of ours, the others only what lies on floors below."""
    left = {package: set(allowed) for package, allowed in arrows.items()}
    result: list[list[str]] = []
    while left:
        floor = [package for package, allowed in left.items() if not allowed & left.keys()]
        if not floor:
            raise ValueError(f"packages import each other in a circle: {sorted(left)}")
        result.append(floor)
        left = {package: allowed for package, allowed in left.items() if package not in floor}
    return result


def without_detours(arrows: Mapping[str, set[str]]) -> dict[str, set[str]]:
    """The arrows that no way over other arrows replaces; whoever follows them reaches the same packages."""

    def reached(package: str) -> set[str]:
        return arrows[package].union(*(reached(name) for name in arrows[package]))

    return {package: names.difference(*(reached(name) for name in names)) for package, names in arrows.items()}


def drawing(arrows: Mapping[str, set[str]]) -> str:
    """Packages and arrows as a Mermaid flowchart, with the floors named; arrows that others replace are left out."""
    drawn = {package: names for package, names in arrows.items() if package not in ("scripts", "tests")}
    short = {package: package.removeprefix("scripts.") for package in drawn}
    lines = ["flowchart TD"]
    for number, floor in reversed(list(enumerate(floors(drawn), 1))):
        lines.append(f"    %% floor {number}: {', '.join(short[package] for package in floor)}")
        for package in floor:
            below = [name for name in drawn if name in without_detours(drawn)[package]]
            lines += [f"    {short[package]} --> {' & '.join(short[name] for name in below)}"] if below else []
    return "\n".join(lines)


if __name__ == "__main__":
    path = longest_path(graph())
    print(f"{sum(map(len, used_arrows(graph()).values()))} arrows, {len(floors(ARROWS))} floors")
    print(f"longest way over imports: {len(path)} modules\n  " + "\n  ".join(path))
    print(drawing(ARROWS))
