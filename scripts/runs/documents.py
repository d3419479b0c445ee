"""The files that a report reads, and the one way in which a number is taken from them and shown."""

from __future__ import annotations

import csv
import json
import os
import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml
from markupsafe import Markup

from scripts.command import yaml_text

__all__ = ["MISSING", "Document", "Figure", "format_number", "optional"]

MISSING = "n/a"
LIMIT = re.compile(r"(.*?)(/ci95|_ci95)/([01])")
# Ends of names, and the unit that they say.
UNITS = {"mm": "mm", "mm2": "mm²", "ml": "ml", "pixels": "pixels", "hd95": "pixels", "seconds": "s"}
# Of a block {mean, ci95, n} or {difference, ci95, n}: what the other two belong to.
OF_BLOCK = ("mean", "difference")
# What is set, not counted over cases.
SETTINGS = ("threshold", "temperature", "limit", "limit_quantile", "strength", "seed", "best_epoch", "best_metric")
# What says which row of a list a number is of.
ROW_NAMES = (
    *("name", "source", "kind", "target", "value", "features", "stage", "method", "layer", "mask", "class", "test"),
    *("how", "measure", "part", "unit", "strength", "low", "high"),
)


def format_number(value: float | None, kind: str) -> str:
    """The one way in which a number is written on the page and in the printed table.

    Args:
        value: None is written "n/a".
        kind: "count", "ratio" (three decimals), "percent" (of a share in [0, 1], one decimal), "decimal" (one decimal)
            or "plain" (four significant digits). What would round to a bound of a share without being it says so.

    >>> [format_number(v, "percent") for v in (0.7312, 0.0, 0.0002, 1.0, 0.9999)]
    ['73.1 %', '0 %', '< 0.1 %', '100 %', '> 99.9 %']
    >>> format_number(0.8446, "ratio"), format_number(1234, "count"), format_number(2e-4, "plain")
    ('0.845', '1,234', '0.0002')
    """
    if value is None:
        return MISSING
    if kind == "percent":
        if value in (0, 1):
            return f"{value:.0%}".replace("%", " %")
        if 0 < value < 0.0005:
            return "< 0.1 %"
        if 0.9995 <= value < 1:
            return "> 99.9 %"
        return f"{100 * value:.1f} %"
    if kind == "ratio":
        return "> 0.999" if 0.9995 <= value < 1 else f"{value:.3f}"
    formats = {"count": "{:,d}", "decimal": "{:,.1f}", "plain": "{:.4g}"}
    if kind not in formats:
        raise ValueError(f"kind is one of count, ratio, percent, decimal, plain, got {kind!r}")
    return formats[kind].format(int(value) if kind == "count" else value)


@dataclass
class Figure:
    """A number with what belongs to it, as report.json has it.

    Attributes:
        name: where it stands, in words.
        value: None: not defined.
        interval: of 95 %; None where the file gives none.
        n: cases that it is over; None where the file does not say.
        unit: "count", "mm", "ml", …; "1" of shares and scores.
        file, pointer: where it stands (JSON pointer, RFC 6901; in CSV ``/<row>/<column>``).
    """

    name: str
    value: float | None
    interval: list[float | None] | None
    n: int | None
    unit: str
    file: str
    pointer: str

    def as_dict(self) -> dict[str, Any]:
        """For report.json."""
        return asdict(self)


class Document:
    """A JSON, YAML or CSV file; values are found by JSON pointer (RFC 6901), in CSV as ``/<row>/<column>``.

    Args:
        root: folder that the page's ``data-source`` is relative to.
        name: the file's path in it.

    Raises:
        FileNotFoundError: when the file is absent.
        ValueError: when it can not be read.

    Attributes:
        path: of the file.
        figures: by pointer, the numbers that were shown so far.
    """

    def __init__(self, root: Path, name: str):
        self.name, self.path = name, root / name
        self.figures: dict[str, Figure] = {}
        path = self.path
        if not path.is_file():
            raise FileNotFoundError(f"{path} is missing: the report needs it; run the evaluation and explanation first")
        try:
            if path.suffix == ".csv":
                with open(path, encoding="utf-8", newline="") as file:
                    self.content: Any = list(csv.DictReader(file))
            else:
                text = path.read_text(encoding="utf-8")
                self.content = json.loads(text) if path.suffix == ".json" else yaml_text.load(text)
        except (ValueError, yaml.YAMLError) as error:
            raise ValueError(f"{path} can not be read: {error}") from error

    @classmethod
    def of(cls, root: Path, path: Path, content: Any) -> Document:
        """A document that is about to be written to `path`."""
        document = cls.__new__(cls)
        document.name, document.path = Path(os.path.relpath(path, root)).as_posix(), path
        document.content, document.figures = content, {}
        return document

    def value(self, pointer: str) -> Any:
        """What stands at a pointer; text from a CSV as number where it is asked for by `number`."""
        node = self.content
        for token in pointer.split("/")[1:]:
            token = token.replace("~1", "/").replace("~0", "~")
            try:
                node = node[int(token)] if isinstance(node, list) else node[token]
            except (KeyError, IndexError, ValueError, TypeError):
                raise ValueError(f"{self.name} has no {pointer!r} ({token!r} not found)") from None
        return node

    def real(self, pointer: str) -> float | None:
        """A number, or None where the file has null or an empty cell."""
        value = self.value(pointer)
        if value is None or value == "":
            return None
        try:
            return value if isinstance(value, int) else float(value)
        except (TypeError, ValueError):
            raise ValueError(f"{self.name}, {pointer}: expected a number, got {value!r}") from None

    def number(self, pointer: str, kind: str) -> Markup:
        """A number as it stands on the page, written from its `Figure`, which is kept in `figures`."""
        value = self._shown(pointer, kind)
        return Markup('<span class="num" data-source="{}" data-value="{}" data-kind="{}">{}</span>').format(
            f"{self.name}#{pointer}", "" if value is None else repr(value), kind, format_number(value, kind)
        )

    def _shown(self, pointer: str, kind: str) -> float | None:
        """A value, a limit of its interval, or its n: all three are of one figure."""
        limit = LIMIT.fullmatch(pointer)
        if limit is not None:
            owners = [limit[1]] if limit[2] == "_ci95" else [f"{limit[1]}/{name}" for name in OF_BLOCK]
            figure = self._figure(next(filter(self.has, owners)), kind)
            return None if figure.interval is None else figure.interval[int(limit[3])]
        if pointer.endswith("/n") and self.has(pointer[:-1] + "mean"):
            return self._figure(pointer[:-1] + "mean", "ratio").n
        return self._figure(pointer, kind).value

    def _figure(self, pointer: str, kind: str) -> Figure:
        if pointer not in self.figures:
            value = self.real(pointer)
            block, _, last = pointer.rpartition("/")
            limits = block + "/ci95" if last in OF_BLOCK else pointer + "_ci95"
            interval = [self.real(f"{limits}/{i}") for i in (0, 1)] if self.has(limits + "/1") else None
            counted = kind != "count" and last not in SETTINGS and self.has(block + "/n")
            n = self.real(block + "/n") if counted else None
            named = block.rpartition("/")[2] if last in (*OF_BLOCK, "median") else last
            self.figures[pointer] = Figure(
                name=" ".join(self._words(pointer)),
                value=value,
                interval=interval,
                n=None if n is None else int(n),
                unit="count" if kind == "count" else UNITS.get(named.rpartition("_")[2], "1"),
                file=self.name,
                pointer=pointer,
            )
        return self.figures[pointer]

    def _words(self, pointer: str) -> Iterator[str]:
        """Where a pointer leads, in words: rows of a list by what names them."""
        node = self.content
        for token in pointer.split("/")[1:]:
            token = token.replace("~1", "/").replace("~0", "~")
            listed = isinstance(node, list)
            node = node[int(token)] if listed else node[token]
            named = _row_name(node) if listed and isinstance(node, dict) else ""
            yield named or token.replace("_", " ")

    def has(self, pointer: str) -> bool:
        """Whether something stands at a pointer."""
        try:
            self.value(pointer)
        except ValueError:
            return False
        return True


def optional(root: Path, *names: str) -> Document | None:
    """The first of some files that is there; None where none is.

    Raises:
        ValueError: when it is there and can not be read.
    """
    return next((Document(root, name) for name in names if (root / name).is_file()), None)


def _row_name(row: dict[str, Any]) -> str:
    known = [(key, row[key]) for key in ROW_NAMES if isinstance(row.get(key), str | int | float)]
    words = [f"{key} {value:g}" if isinstance(value, int | float) else value for key, value in known if value != ""]
    return ", ".join(dict.fromkeys(words))
