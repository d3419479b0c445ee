"""One table of all shards: every input of the manifest once, done, refused or failed, or none at all."""

from __future__ import annotations

import csv
import json
from array import array
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from scripts.command.files import whole
from scripts.inference.ledger import entries, header, journals
from scripts.inference.manifest import opened
from scripts.inference.result_names import shown
from scripts.inference.result_table import cell

__all__ = ["merge", "merged"]


def merge(out: Path) -> tuple[Path, Counter[str]]:
    """Write results.csv from the journals; a few bytes a row are held in memory.

    Args:
        out: folder of the results.

    Returns:
        the table, and how many inputs are done, refused and failed.

    Raises:
        FileNotFoundError, ValueError: see `merged`.
    """
    counts = Counter[str]()
    with whole(out / "results.csv") as table, open(table, "w", encoding="utf-8", newline="") as target:
        writer = csv.writer(target)
        for number, row in enumerate(merged(out)):
            if not number:
                writer.writerow(row)
            counts[row["status"]] += 1
            writer.writerow([cell(value) for value in row.values()])
    return out / "results.csv", counts


def merged(out: Path) -> Iterator[dict[str, Any]]:
    """The row of every input, in order, as its worker made it.

    Args:
        out: folder of the results.

    Raises:
        FileNotFoundError: when there is no ledger.
        ValueError: when an input has no final state yet, or two, or the shards were made by different weights,
            configs or options.
    """
    manifest = opened(out)
    files = [journal for journal in journals(manifest.path.parent) if header(journal)]
    names = _about(files)["columns"]
    final, offsets, which = _final(files, manifest.rows)
    missing = final.count(0)
    if missing or not files:
        row, image = next((row, image) for row, image in manifest.images() if not final[row])
        raise ValueError(
            f"{missing} of {manifest.rows} inputs of {manifest.source} are not finished yet (first: {shown(image)}, "
            f"number {row}); run their shards again, then merge"
        )
    with ExitStack() as stack:
        opened_files = [stack.enter_context(open(file, "rb")) for file in files]
        for row, image in manifest.images():
            source = opened_files[which[row]]
            source.seek(offsets[row])
            values = json.loads(source.readline())["values"]
            if values[0] != shown(image):
                raise ValueError(
                    f"{files[which[row]]}: input {row} is {values[0]}, and {shown(image)} in {manifest.path}"
                )
            yield dict(zip(names, values, strict=True))


def _about(files: list[Path]) -> dict[str, Any]:
    """What made the results: the same in all journals."""
    first = header(files[0]) if files else {"columns": []}
    for other in files[1:]:
        if header(other) != first:
            raise ValueError(
                f"{files[0].parent} and {other.parent} were made with different weights, configs or options; "
                "delete one of them, and run its shard again"
            )
    return first


def _final(files: list[Path], rows: int) -> tuple[bytearray, array[int], array[int]]:
    """Of every input, whether it has come to its end (1: failed, 2: done or refused), and the place of that line."""
    final, offsets, which = bytearray(rows), array("q", bytes(8 * rows)), array("H", bytes(2 * rows))
    for number, file in enumerate(files):
        for place, row, state, attempt, of in entries(file):
            level = 2 if state in ("done", "refused") else 1 if state == "failed" and attempt >= of else 0
            if level == 2 and final[row] == 2:
                raise ValueError(
                    f"input {row} stands twice as finished, in {files[which[row]]} and {file}: two processes had it; "
                    f"delete {file} and predict again (results are kept), then merge"
                )
            if level and level >= final[row]:
                final[row], offsets[row], which[row] = level, place, number
    return final, offsets, which
