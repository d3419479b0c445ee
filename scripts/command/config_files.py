"""Config files as MONAI reads them, but for paths: its parser takes "#" for the sign between the parts of an id.

"exp#2" in a config or an override becomes "exp::2", and results land beside the folder that was asked for. Here such a
string is written as an expression that gives it back, ``$'exp\\x232'``.
"""

from __future__ import annotations

import ast
import logging
import warnings
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from monai.bundle import ConfigParser
from monai.bundle.utils import merge_kv

from scripts.command import yaml_text
from scripts.command.locations import ROOT

__all__ = ["META", "check_order", "literal", "parser_of", "read_config", "read_mapping"]

logger = logging.getLogger(__name__)

META = "_meta_"
SUFFIXES = (".json", ".yaml", ".yml")


def literal(value: Any) -> Any:
    r"""A value that MONAI's parser leaves as it is; ids and expressions stay what they are.

    >>> literal("exp#2"), literal(["a", "b#c"]), literal("@train#loss"), literal(3)
    ("$'exp\\x232'", ['a', "$'b\\x23c'"], '@train#loss', 3)
    """
    if isinstance(value, Path):
        value = str(value)
    if isinstance(value, str) and "#" in value and not value.startswith(("$", "@", "%")):
        return "$" + repr(value).replace("#", r"\x23")
    if isinstance(value, Mapping):
        return {key: literal(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [literal(inner) for inner in value]
    return value


def plain(value: Any) -> Any:
    r"""What `literal` was given.

    >>> plain({"a": ["$'b\\x23c'", "$1 + 1"]})
    {'a': ['b#c', '$1 + 1']}
    """
    if isinstance(value, str) and value.startswith(("$'", '$"')) and r"\x23" in value:
        try:
            text = ast.literal_eval(value[1:])
        except (ValueError, SyntaxError):  # an expression that begins with a string
            return value
        return text if literal(text) == value else value
    if isinstance(value, dict):
        return {key: plain(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [plain(inner) for inner in value]
    return value


def read_mapping(path: str | Path) -> dict[str, Any]:
    """A YAML or JSON file of values by id.

    Raises:
        FileNotFoundError: when it is not there.
        ValueError: when it is empty, no mapping, or no YAML; names the file.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise FileNotFoundError(f"no config file at {path}")
    if path.suffix.lower() not in SUFFIXES:
        raise ValueError(f"{path} is no config file: expected one of {', '.join(SUFFIXES)}")
    try:
        if path.suffix.lower() == ".json":
            with warnings.catch_warnings():
                warnings.filterwarnings("error", message="Duplicate key")  # the last one would win without a word
                content = ConfigParser.load_config_file(path)
        else:
            content = yaml_text.load(path.read_text(encoding="utf-8"), unique_keys=True)
    except (yaml.YAMLError, UnicodeDecodeError, UserWarning) as error:
        raise ValueError(f"{path} cannot be read as a config: {' '.join(str(error).split())}") from error
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    if not isinstance(content, dict) or not content:
        problem = "is empty" if not content else f"holds a {type(content).__name__}"
        raise ValueError(f"{path} {problem}; a config holds values by id, as configs/inference.yaml does")
    return content


def check_order(files: Sequence[str | Path], contents: Sequence[Mapping[str, Any]]) -> None:
    """Refuse a whole config behind another file, whose values it would replace: other weights, another training.

    Args:
        files: in the order in which they are merged.
        contents: of each.

    Raises:
        ValueError: naming the config that has to come first.
    """
    for file, content in list(zip(files, contents, strict=True))[1:]:
        if {"imports", "run"} <= content.keys():
            raise ValueError(
                f"{file} is a whole config and comes first, overlays behind it; here it would replace the values of "
                f"{', '.join(map(str, files[: list(files).index(file)]))}"
            )


@cache
def note_outside(file: str) -> None:
    """Say once that a config from elsewhere is a program: MONAI evaluates its expressions and builds what it names."""
    if not Path(file).is_relative_to(ROOT):
        logger.info("config %s lies outside the bundle; what it holds is run as code: load only what you trust", file)


def parser_of(config: Mapping[str, Any]) -> ConfigParser:
    """The parser of a config's content, its strings kept."""
    meta = config.get(META)
    content = {key: literal(value) for key, value in config.items() if key != META}
    return ConfigParser(content if meta is None else {**content, META: meta})


def read_config(files: str | Path | Sequence[str | Path], values: Mapping[str, Any] | None = None) -> ConfigParser:
    """The parser of config files merged in order, then of single values replaced; strings and paths are kept.

    Raises:
        FileNotFoundError, ValueError: as `read_mapping` and `check_order`.
    """
    paths = [files] if isinstance(files, (str, Path)) else list(files)
    contents = [read_mapping(path) for path in paths]
    check_order(paths, contents)
    for path in paths:
        note_outside(str(Path(path).expanduser().resolve()))
    merged = ConfigParser({})
    for content in contents:  # as `ConfigParser.load_config_files`, which would read them a second time
        for key, value in content.items():
            merge_kv(merged, key, value)
    parser = parser_of({META: {}, **merged.get()})
    parser.update(pairs={name: literal(value) for name, value in (values or {}).items()})
    return parser
