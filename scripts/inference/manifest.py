"""The inputs of a large prediction, one row each, in a file that every process reads row by row.

A CSV or Parquet file with a column ``image``, or a folder, becomes ``ledger/manifest.csv`` below the results, once: it
settles what number an input has, and so where its results lie and which shard it belongs to.
"""

from __future__ import annotations

import csv
import hashlib
import json
import os
from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from scripts.command.files import file_sha256, whole_folder, write_json
from scripts.command.optional import needed
from scripts.inference.image_files import find_images
from scripts.inference.result_names import safe, shown, stem

__all__ = ["LEDGER", "Manifest", "is_manifest", "opened", "prepare", "result_place"]

LEDGER, TABLE, SOURCE = "ledger", "manifest.csv", "source.json"
COLUMN = "image"
SUFFIXES = (".csv", ".parquet")
PER_FOLDER = 1000  # inputs whose results share a folder
_BATCH = 10_000  # rows of a Parquet file that are read at a time


@dataclass(frozen=True)
class Manifest:
    """Inputs of a prediction, counted from 0.

    Attributes:
        path: CSV file of one column, whole paths.
        rows: how many there are.
        source: what it was made of.
    """

    path: Path
    rows: int
    source: str

    def images(self) -> Iterator[tuple[int, Path]]:
        """Number and path of every input, in order; nothing but the row at hand is held."""
        with open(self.path, encoding="utf-8", errors="surrogateescape", newline="") as file:
            reader = csv.reader(file)
            next(reader)
            for row, (image,) in enumerate(reader):
                yield row, Path(image)


def result_place(row: int, image: Path) -> str:
    """Folder of the results of an input, below the folder of all results; at most 1000 inputs share one.

    >>> result_place(1234567, Path("scans/p01.nii.gz"))
    '1234/1234567_p01'
    """
    return f"{row // PER_FOLDER:04d}/{safe(f'{row:07d}_{stem(image)}')}"


def is_manifest(path: Path) -> bool:
    """Whether a path is a table of inputs by its name."""
    return path.suffix.lower() in SUFFIXES


def prepare(source: Path, out: Path, inputs: Sequence[Path] | None = None) -> Manifest:
    """The manifest below ``out``, made of a table or a folder when it is not there yet; by any number of processes.

    Args:
        source: CSV or Parquet file with a column ``image``, whose paths are relative to its own folder; or a folder of
            images; or a file that says what ``inputs`` are.
        out: folder of the results.
        inputs: names of the inputs, where they are no images.

    Raises:
        FileNotFoundError: when the source does not exist.
        ValueError: when the table has no such column, names an image twice or none, has changed since, or the results
            are those of something else.
    """
    ledger = out / LEDGER
    if not ledger.is_dir():
        if (out / "results.json").is_file():
            raise ValueError(f"{out} holds the results of a folder predicted in one process; choose another --out")
        _make(source, ledger, inputs)
    manifest = opened(out)
    content = _content(source)
    if manifest.source != shown(source.resolve()) or content != _about(ledger)["sha256"]:
        raise ValueError(
            f"{out} holds results of {manifest.source}"
            + (" as it was before" if manifest.source == shown(source.resolve()) else "")
            + f", not of {shown(source)}; choose another --out"
        )
    return manifest


def opened(out: Path) -> Manifest:
    """The manifest that a prediction made below ``out``.

    Raises:
        FileNotFoundError: when there is none.
    """
    if not (out / LEDGER / SOURCE).is_file():
        raise FileNotFoundError(f"{out} holds no ledger of a prediction ({LEDGER}/{SOURCE}); predict first")
    about = _about(out / LEDGER)
    return Manifest(out / LEDGER / TABLE, int(about["rows"]), str(about["source"]))


def _about(ledger: Path) -> dict[str, Any]:
    return json.loads((ledger / SOURCE).read_text(encoding="utf-8"))


def _content(source: Path) -> str | None:
    """Hash of a table; a folder is looked through once, and not again."""
    if not source.exists():
        raise FileNotFoundError(f"{source} does not exist; expected a folder of images or a table of them")
    return None if source.is_dir() else file_sha256(source)


def _make(source: Path, ledger: Path, inputs: Sequence[Path] | None) -> None:
    """Write manifest and source into a temporary folder and rename it to the ledger's; the first process wins."""
    content = _content(source)
    with whole_folder(ledger, replace=False) as place:
        rows = _write(_images(source, ledger.parent) if inputs is None else inputs, place / TABLE, source)
        write_json({"source": shown(source.resolve()), "sha256": content, "rows": rows}, place / SOURCE)


def _write(images: Iterable[Path], table: Path, source: Path) -> int:
    """Write the inputs and refuse duplicates; eight bytes a row are held in memory."""
    seen = array("Q")
    with open(table, "w", encoding="utf-8", errors="surrogateescape", newline="") as file:
        writer = csv.writer(file)
        writer.writerow([COLUMN])
        for image in images:
            writer.writerow([str(image)])
            seen.append(_short_hash(image))
    hashes = np.sort(np.frombuffer(seen, np.uint64)) if seen else np.zeros(0, np.uint64)
    twice = {int(value) for value in hashes[1:][hashes[1:] == hashes[:-1]][:1000]}
    first: dict[str, int] = {}
    for row, image in Manifest(table, len(seen), "").images() if twice else ():
        if _short_hash(image) in twice and (before := first.setdefault(str(image), row)) != row:
            raise ValueError(
                f"{source} names {shown(image)} twice (inputs {before} and {row}, counted from 0); name each image once"
            )
    if not seen:
        raise ValueError(f"{source} names no image")
    return len(seen)


def _short_hash(image: Path) -> int:
    return int.from_bytes(hashlib.blake2b(os.fsencode(image), digest_size=8).digest(), "little")


def _images(source: Path, out: Path) -> Iterator[Path]:
    if not is_manifest(source):
        listing = find_images(source, out)
        yield from sorted(path.absolute() for path in [*listing.images, *(path for path, _ in listing.failed)])
        return
    base = source.absolute().parent
    for row, image in enumerate(_parquet(source) if source.suffix.lower() == ".parquet" else _csv(source)):
        if not image or not isinstance(image, str):
            raise ValueError(f"{source}: input {row}, counted from 0, names no image")
        yield base / Path(image).expanduser()


def _csv(source: Path) -> Iterator[str | None]:
    with open(source, encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        reader = csv.DictReader(file)
        _check_columns(source, reader.fieldnames or ())
        for row in reader:
            yield row[COLUMN]


def _parquet(source: Path) -> Iterator[str | None]:
    parquet = needed(
        "pyarrow.parquet",
        f"{source} is a Parquet file, which needs pyarrow: pip install -c constraints.txt '.[parquet]'; or give a CSV",
    )
    file = parquet.ParquetFile(source)
    _check_columns(source, file.schema_arrow.names)
    for batch in file.iter_batches(_BATCH, columns=[COLUMN]):
        yield from batch.column(0).to_pylist()


def _check_columns(source: Path, names: Iterable[str]) -> None:
    if COLUMN not in (known := list(names)):
        raise ValueError(f"{source} has no column {COLUMN!r}; it has {', '.join(map(repr, known)) or 'none'}")
