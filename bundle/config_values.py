"""Values of a YAML config replaced in its text, so that comments and order stay."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import yaml


def set_values(text: str, values: Mapping[str, Any]) -> str:
    """Replace values of a YAML text.

    Args:
        text: a mapping; its values are scalars, lists and mappings.
        values: new values by id ("spatial_size", "network_def#filters"). A mapping replaces value by value; a key that
            the text does not have yet is appended to its mapping, one that the new mapping lacks is removed.

    Returns:
        the text, in which everything else is as it was.

    Raises:
        KeyError: when an id is not in the text.
        ValueError: when the text is empty.

    >>> text = "size: [256, 256]   # pixels\\nnet:\\n  width: 8         # of a level\\n  old: 1\\nlast: 1\\n"
    >>> print(set_values(text, {"size": [64, 64], "net": {"width": 4, "depth": 2}}), end="")
    size: [64, 64]   # pixels
    net:
      width: 4         # of a level
      depth: 2
    last: 1
    """
    for name, value in values.items():
        text = _set(text, name.split("#"), value)
    return text


def _pair(text: str, path: list[str]) -> tuple[yaml.Node, yaml.Node]:
    node = yaml.compose(text, Loader=yaml.SafeLoader)
    if node is None:
        raise ValueError("expected a YAML mapping, got an empty text")
    key: yaml.Node = node
    for name in path:
        pairs = {k.value: (k, v) for k, v in node.value} if isinstance(node, yaml.MappingNode) else {}
        if name not in pairs:
            raise KeyError(f"the config has no {'#'.join(path)!r}; at {name!r} it has {sorted(pairs)}")
        key, node = pairs[name]
    return key, node


def _set(text: str, path: list[str], value: Any) -> str:
    _, node = _pair(text, path)
    block = isinstance(node, yaml.MappingNode) and not node.flow_style
    if not (isinstance(value, Mapping) and block):
        start = node.start_mark.index
        end = start + len(text[start : node.end_mark.index].rstrip())
        return text if yaml.safe_load(text[start:end]) == value else text[:start] + _flow(value) + text[end:]
    old = {key.value for key, _ in node.value}
    for name in sorted(old - value.keys()):
        text = _without(text, [*path, name])
    for name in value:
        if name in old:
            text = _set(text, [*path, name], value[name])
    for name in value:
        if name not in old:
            text = _appended(text, path, name, value[name])
    return text


def _without(text: str, path: list[str]) -> str:
    key, node = _pair(text, path)
    start = text.rindex("\n", 0, key.start_mark.index) + 1
    return text[:start] + text[_line_end(text, node) :]


def _appended(text: str, path: list[str], name: str, value: Any) -> str:
    _, node = _pair(text, path)
    last_key, last = node.value[-1]
    indent = " " * last_key.start_mark.column
    end = _line_end(text, last)
    return f"{text[:end]}{indent}{name}: {_flow(value)}\n{text[end:]}"


def _line_end(text: str, node: yaml.Node) -> int:
    """Where the line after the last one of a node begins."""
    last = node.start_mark.index + len(text[node.start_mark.index : node.end_mark.index].rstrip())
    newline = text.find("\n", last)
    return len(text) if newline < 0 else newline + 1


def _flow(value: Any) -> str:
    """A value on one line."""
    dumped = yaml.safe_dump(value, default_flow_style=True, sort_keys=False, allow_unicode=True, width=10_000)
    return dumped.removesuffix("\n").removesuffix("\n...")
