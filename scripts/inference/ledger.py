"""Status of every input of a large prediction: one journal per shard, one line per event.

A line is written at once, with one call of the system; one that a killed process left unfinished is cut off. ``begun``
stands before the work, so that an input that ends its process is known by it; ``done`` and ``refused`` are final,
``failed`` is so after a stated number of tries.
"""

from __future__ import annotations

import json
import os
import re
from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from scripts.inference.result_names import shown
from scripts.runs import lock

__all__ = ["JOURNAL", "TRIES", "Ledger", "entries", "finished", "header", "journals"]

JOURNAL = "journal.jsonl"
TRIES = 3
_LINE = re.compile(rb'\{"row": (\d+), "state": "(\w+)"(?:, "try": (\d+), "of": (\d+))?')


def journals(folder: Path) -> list[Path]:
    """The journals of all shards, in order of their names."""
    return sorted(folder.glob(f"shard-*-of-*/{JOURNAL}"))


def header(journal: Path) -> dict[str, Any]:
    """Header of a journal: what made its results, and the columns of a row; empty before the first write."""
    with open(journal, "rb") as file:
        line = file.readline()
    return json.loads(line) if line.endswith(b"\n") else {}


def entries(journal: Path) -> Iterator[tuple[int, int, str, int, int]]:
    """Offset, input and status of each whole line, with the number of a failed try and how many there are.

    Raises:
        ValueError: when a line is none that was written here.
    """
    place = 0
    with open(journal, "rb") as file:
        for line in file:
            if line.endswith(b"\n") and place:
                match = _LINE.match(line)
                if match is None or not line.endswith(b"}\n"):
                    raise ValueError(
                        f"{journal} is damaged at byte {place}; delete it, and predict again: results are kept"
                    )
                row, state, number, of = match.groups(b"0")
                yield place, int(row), state.decode(), int(number), int(of)
            place += len(line)


def finished(folder: Path, shard: tuple[int, int]) -> int:
    """Number of settled inputs of a shard, failures included; 0 before it is begun."""
    journal = _folder(folder, shard) / JOURNAL
    known = entries(journal) if journal.is_file() else ()
    return sum(state in ("done", "refused", "failed") for _, _, state, _, _ in known)


def _folder(folder: Path, shard: tuple[int, int]) -> Path:
    return folder / f"shard-{shard[0]}-of-{shard[1]}"


class Ledger:
    """The journal of one shard, open for writing, and what all journals say of its inputs.

    Args:
        folder: of the ledger.
        shard: its number, from 1, and how many there are.
        rows: number of inputs.
        made_by: what decides about a result beside the image.
        columns: of the row that an input leads to; among them ``status``.
        tries: how often an input is tried.

    Raises:
        ValueError: when another process works on this shard, or on shards of another number, or the results in the
            ledger were made by something else.
    """

    def __init__(
        self,
        folder: Path,
        shard: tuple[int, int],
        rows: int,
        made_by: Mapping[str, Any],
        columns: Sequence[str],
        tries: int = TRIES,
    ) -> None:
        self.shard, self.tries, self._columns = shard, tries, list(columns)
        self._final, self._begun, self._failed = (
            bytearray(rows),
            array("H", bytes(2 * rows)),
            array("H", bytes(2 * rows)),
        )
        self._folder = _folder(folder, shard)
        about = {"made_by": dict(made_by), "columns": self._columns}
        lock.acquire(self._folder, "--shard")
        try:
            _check_others(folder, shard[1])
            for journal in journals(folder):
                self._read(journal, about)
            path = self._folder / JOURNAL
            _cut(path)
            self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
            if not path.stat().st_size:
                self._write(about)
        except BaseException:
            lock.release(self._folder)
            raise

    def __enter__(self) -> Ledger:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self._file)
        lock.release(self._folder)

    def mine(self, row: int) -> bool:
        """Whether an input belongs to this shard: every n-th does."""
        return row % self.shard[1] == self.shard[0] - 1

    def settled(self, row: int) -> bool:
        """Whether nothing is left to do for an input."""
        return bool(self._final[row]) or self._failed[row] >= self.tries

    def tried(self, row: int) -> int:
        """Number of times that an input was begun."""
        return self._begun[row]

    def begin(self, row: int) -> None:
        """Record that an input is about to be read."""
        self._begun[row] += 1
        self._write({"row": row, "state": "begun"})

    def take_back(self, row: int) -> None:
        """Record that a begun input was put back, through no fault of its own."""
        self._begun[row] -= 1
        self._write({"row": row, "state": "back"})

    def settle(self, row: int, table: Mapping[str, Any]) -> None:
        """Record the result of an input, in a row of the table whose ``status`` is done, refused or failed."""
        about: dict[str, Any] = {"row": row, "state": table["status"]}
        if table["status"] == "failed":
            self._failed[row] = self._begun[row]
            about |= {"try": self._begun[row], "of": self.tries}
        else:
            self._final[row] = 1
        self._write({**about, "values": [table[name] for name in self._columns]})

    def _write(self, line: Mapping[str, Any]) -> None:
        content = (json.dumps(line, allow_nan=False) + "\n").encode()
        if os.write(self._file, content) != len(content):
            raise OSError(28, "the disk is full", str(self._folder / JOURNAL))

    def _read(self, journal: Path, about: Mapping[str, Any]) -> None:
        other = header(journal)
        if other and other != about:
            mine, theirs = about["made_by"], other["made_by"]
            unlike = sorted(key for key in mine.keys() | theirs.keys() if theirs.get(key) != mine.get(key))
            raise ValueError(
                f"{journal} holds results made otherwise ({', '.join(unlike) or 'other columns'} differ); choose "
                "another --out, or predict with the weights, config and options of before"
            )
        change: dict[str, Callable[[int, int], None]] = {
            "begun": lambda row, _: self._count(row, 1),
            "back": lambda row, _: self._count(row, -1),
            "done": lambda row, _: self._final.__setitem__(row, 1),
            "refused": lambda row, _: self._final.__setitem__(row, 1),
            "failed": lambda row, number: self._failed.__setitem__(row, number),
        }
        for _, row, state, number, _ in entries(journal):
            change[state](row, number)

    def _count(self, row: int, step: int) -> None:
        self._begun[row] = min(max(self._begun[row] + step, 0), 1000)


def _check_others(folder: Path, count: int) -> None:
    """Refuse to cut the work into another number of shards while a process works on those of before."""
    for other in sorted(folder.glob("shard-*-of-*")):
        if other.name.rpartition("-")[2] != str(count) and (holder := lock.holder(other)):
            raise ValueError(
                f"{holder} works on {shown(other)}, which is no shard of {count}: wait until it ends, or start "
                "as many shards"
            )


def _cut(journal: Path) -> None:
    """Cut off a line that a killed process did not finish."""
    if not journal.is_file():
        return
    with open(journal, "rb+") as file:
        end = file.seek(0, os.SEEK_END)
        start = max(0, end - (1 << 20))
        file.seek(start)
        tail = file.read()
        if tail and not tail.endswith(b"\n"):
            file.truncate(start + tail.rfind(b"\n") + 1)
